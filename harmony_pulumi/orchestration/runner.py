"""The runner of role changes: looks, asks what is next, does it, records it, until nothing is left to do.

It knows no topology and no Pulumi: only what the capability's sites offer. It may be killed anywhere and run again:
the operation is kept at the sites of both members, and each act may be repeated.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from harmony_pulumi.capabilities.site import Observation, Operation, Roles, Survey, Token
from harmony_pulumi.errors import SiteError
from harmony_pulumi.orchestration.journal import Journal, Write
from harmony_pulumi.orchestration.preflight import Check, checks, problems
from harmony_pulumi.orchestration.replication import Member, establish
from harmony_pulumi.orchestration.roles import Desired, latest, moves
from harmony_pulumi.orchestration.switchover import Facts, Step, after, may_give_up, next_step, unclear

_CATCH_UP = 30.0
"""Seconds for the target to replay the token; it streams and is at most 64 MB behind, so it takes less than one."""


@dataclass(frozen=True)
class Pair:
    """A pair as the runner sees it."""

    id: str
    """`<project>/<stack>/<resource>`."""
    name: str
    members: Mapping[str, Member]
    """By role."""
    synchronous: bool
    deadline: float
    """Seconds, for a member to stream."""

    @property
    def names(self) -> dict[str, str]:
        """The names of the members by role."""
        return {role: member.name for role, member in self.members.items()}


def look(pair: Pair) -> dict[str, Observation]:
    """Observe every member, by role."""
    return {role: member.site.observe() for role, member in pair.members.items()}


def told(seen: Mapping[str, Observation]) -> Roles | None:
    """Return what the sites were told last."""
    return latest({role: observation["roles"] for role, observation in seen.items()})


def active_now(pair: Pair) -> str | None:
    """Return the role of the member that the sites know as active; None while a role change is under way."""
    return _settled_active(told(look(pair)))


def other_than(pair: Pair, role: str) -> str:
    """Return the role of the other member."""
    return next(r for r in pair.members if r != role)


def preflight(pair: Pair, target: str, seen: Mapping[str, Observation]) -> list[Check]:
    """Look at everything that a switchover to a member depends on. Changes nothing."""
    roles = (other_than(pair, target), target)
    surveys: tuple[Survey, Survey] | None = None
    if all(seen[role]["state"] == "running" for role in roles):
        surveys = (pair.members[roles[0]].movable.survey(), pair.members[roles[1]].movable.survey())
    return checks(seen[roles[0]], seen[roles[1]], surveys, now=datetime.now(UTC))


def reach(pair: Pair, desired: Desired, journal: Journal, *, by: str) -> Observation:
    """Bring a pair to the roles that are desired, and its members to replicate; return what was seen of the leader.

    Raises:
        SiteError: what is desired is refused, or could not be done; the message says how the pair was left.
    """
    seen = look(pair)
    _refuse_strangers(pair, seen)
    if moves(desired, told(seen), pair.names) and desired.active != _settled_active(told(seen)):
        move(pair, desired, journal, by=by)
    else:
        _refuse_drift(pair, desired, seen)
        with _alone(pair, seen, by):
            if told(look(pair)) != told(seen):
                msg = f"{pair.name}: somebody else was moving its roles until a moment ago; run this again"
                raise SiteError(msg)
            _tell(pair, {role: _roles(pair, role, desired, None) for role in pair.members}, seen)
            _forget_leader(pair, desired.active, seen)
            _keep_following(pair, desired, seen)
    return establish(
        pair.members,
        active=desired.active,
        synchronous=pair.synchronous,
        follows=False,
        deadline=pair.deadline,
        journal=journal,
    )


def move(pair: Pair, desired: Desired, journal: Journal, *, by: str) -> None:
    """Move roles by a switchover, or finish one that was begun.

    Raises:
        SiteError: it was refused before anything was touched, or given up, and then the old primary is back; or it
            could not be finished, and is when this is run again.
    """
    seen = look(pair)
    with _alone(pair, seen, by) as write, journal.writing_to(write):
        held = [role for role, observation in seen.items() if observation["state"] in {"running", "stopped"}]
        seen = look(pair)  # Again: whoever held the lock has moved on.
        for role, observation in seen.items():
            if observation["state"] in {"running", "stopped"} and role not in held:
                msg = f"{pair.name}: {pair.names[role]} did not answer a moment ago, and does now; run this again"
                raise SiteError(msg)
        _refuse_strangers(pair, seen)
        known = told(seen)
        if not moves(desired, known, pair.names):
            return
        under_way = known["operation"] if known else None
        if under_way is None:
            found = problems(preflight(pair, desired.active, seen))
            if found:
                lines = "".join(f"\n  - {problem}" for problem in found)
                msg = f"{pair.name}: no switchover to {pair.names[desired.active]}; nothing was touched{lines}"
                raise SiteError(msg)
            under_way = _begin(pair, desired, by)
        else:
            journal.note(f"going on with the {under_way['kind']} begun by {under_way['operator']}", step="resume")
        _Run(pair, journal, under_way, _all_told(pair, seen)).finish(seen)


def _settled_active(known: Roles | None) -> str | None:
    """Return who is active as far as the sites know, or None while an operation is under way."""
    if known is None:
        return "primary"
    return None if known["operation"] else known["active"]


def _refuse_strangers(pair: Pair, seen: Mapping[str, Observation]) -> None:
    """Refuse to act on what is told of another pair: no step of an operation of that may be taken here."""
    for role, observation in seen.items():
        roles = observation["roles"]
        if roles and roles["pair"] != pair.id:
            msg = (
                f"{pair.name}: {pair.names[role]} was told that it is a member of the pair {roles['pair']}, not of "
                f"{pair.id}; nothing was touched. Find out whose it is before you do anything about it"
            )
            raise SiteError(msg)


def _refuse_drift(pair: Pair, desired: Desired, seen: Mapping[str, Observation]) -> None:
    """Refuse to go on where somebody else has moved the roles: that never moves a desired role."""
    primaries = [role for role, observation in seen.items() if observation["role"] == "primary"]
    if primaries and primaries != [desired.active]:
        names = " and ".join(pair.names[role] for role in primaries)
        msg = (
            f"{pair.name}: {names} accepts writes, and {pair.names[desired.active]} is to be active alone. Somebody "
            f"promoted a member by hand. Look at `harmony status`; stop the one that is not to stay, and keep its data"
        )
        raise SiteError(msg)


def _begin(pair: Pair, desired: Desired, by: str) -> Operation:
    return {
        "id": uuid.uuid4().hex,
        "kind": "switchover",
        "epoch": desired.epoch,
        "source": other_than(pair, desired.active),
        "target": desired.active,
        "operator": by,
        "prepared": False,
        "token": None,
        "given_up": "",
    }


def _roles(pair: Pair, me: str, desired: Desired, operation: Operation | None) -> Roles:
    return {"pair": pair.id, "epoch": desired.epoch, "active": desired.active, "me": me, "operation": operation}


def _all_told(pair: Pair, seen: Mapping[str, Observation]) -> dict[str, Roles]:
    """Return what each site was told; for one that was told nothing, the roles that it was deployed with."""
    deployed = Desired("primary", 0)
    return {role: seen[role]["roles"] or _roles(pair, role, deployed, None) for role in pair.members}


def _tell(pair: Pair, roles: Mapping[str, Roles], seen: Mapping[str, Observation]) -> None:
    """Tell those sites that answer, and do not know yet."""
    for role, site_roles in roles.items():
        if seen[role]["state"] in {"running", "stopped"} and seen[role]["roles"] != site_roles:
            pair.members[role].movable.tell(site_roles)


def _forget_leader(pair: Pair, active: str, seen: Mapping[str, Observation]) -> None:
    """Have no standby keep WAL for the member that leads, as one does that was got ready to lead and never did."""
    for role, member in pair.members.items():
        if role != active and seen[role]["role"] == "standby":
            member.movable.forget(pair.members[active].slot)


def _keep_following(pair: Pair, desired: Desired, seen: Mapping[str, Observation]) -> None:
    """Have the standby know where the leader is now, and its certificates, which a deployment may have changed.

    Before the first role change the deployment itself sees to that.
    """
    if desired.epoch and all(observation["state"] == "running" for observation in seen.values()):
        offer = pair.members[desired.active].movable.offer()
        for role, member in pair.members.items():
            if role != desired.active and seen[role]["role"] == "standby":
                member.movable.follow(offer)


@contextmanager
def _alone(pair: Pair, seen: Mapping[str, Observation], by: str) -> Generator[Write]:
    """Keep every other operation away from the members that answer; give what records at the sites of all of them."""
    with ExitStack() as stack:
        writes = [
            stack.enter_context(member.movable.alone(by))
            for role, member in pair.members.items()
            if seen[role]["state"] in {"running", "stopped"}
        ]

        def record(lines: str) -> None:
            for write in writes:
                write(lines)

        yield record


@dataclass
class _Run:
    """One operation, under way."""

    pair: Pair
    journal: Journal
    operation: Operation
    roles: dict[str, Roles]
    """What each site was told, by role."""
    facts: tuple[Facts, Facts] = field(init=False)
    """Of the source and of the target."""
    demoted: bool = False
    """Whether the token is from the source itself, in this run."""
    insisted: bool = False
    """Whether it was interrupted after the point of no return, and went on."""

    @property
    def source(self) -> Member:
        return self.pair.members[self.operation["source"]]

    @property
    def target(self) -> Member:
        return self.pair.members[self.operation["target"]]

    def finish(self, seen: Mapping[str, Observation]) -> None:
        """Do what is next until the operation is over."""
        self.facts = self._facts(seen)
        while True:
            step = next_step(self.operation, *self.facts)
            if step is Step.GIVE_UP:
                self._give_up(step, unclear(*self.facts))
                continue
            try:
                self._do(step)
            except (SiteError, KeyboardInterrupt) as error:
                seen = look(self.pair)
                self.facts = self._facts(seen)
                # What was being told may have arrived or not. Of one that does not answer, what it was told before.
                self.roles = {role: observation["roles"] or self.roles[role] for role, observation in seen.items()}
                if not self.operation["given_up"] and may_give_up(self.operation, *self.facts):
                    self._give_up(step, str(error) or "interrupted")
                elif isinstance(error, KeyboardInterrupt) and not self.insisted:
                    self.insisted = True
                    text = "interrupted where there is no way back: going on; interrupt again to leave it open"
                    self.journal.note(text, step="resume", state="warning")
                elif not (step is Step.VERIFY and self._both_told()) or isinstance(error, KeyboardInterrupt):
                    raise
                continue
            self.facts = after(step, self.operation, *self.facts)
            if step is Step.SETTLE:
                return
            if step is Step.CLOSE:
                reason = self.operation["given_up"]
                msg = f"{self.pair.name}: the switchover was given up, and {self.source.name} is active: {reason}"
                raise SiteError(msg)

    def _facts(self, seen: Mapping[str, Observation]) -> tuple[Facts, Facts]:
        return Facts.of(seen[self.operation["source"]]), Facts.of(seen[self.operation["target"]])

    def _both_told(self) -> bool:
        return all(facts.epoch == self.operation["epoch"] for facts in self.facts)

    def _do(self, step: Step) -> None:
        with self.journal.step(step, self._words(step), id=self.operation["id"], epoch=self.operation["epoch"]):
            self._act(step)

    def _act(self, step: Step) -> None:
        match step:
            case Step.PREPARE:
                self._prepare()
            case Step.DEMOTE:
                # Kept with the assignment: until then, to demote again gives the same token.
                self.operation = {**self.operation, "token": self.source.movable.demote()}
                self.demoted = True
            case Step.VERIFY:
                self.target.movable.verify(self._token(), deadline=_CATCH_UP)
                self._assign(self.operation["epoch"], self.operation["target"], first=self.operation["source"])
            case Step.PROMOTE:
                self._promote()
            case Step.FOLLOW:
                if self.facts[0].epoch != self.operation["epoch"]:
                    self._assign(self.operation["epoch"], self.operation["target"], first=self.operation["source"])
                self.source.movable.follow(self.target.movable.offer())
            case Step.WITHDRAW:
                self._assign(self.operation["epoch"] + 1, self.operation["source"], first=self.operation["target"])
            case Step.REINSTATE:
                self.source.movable.reinstate()
            case Step.SETTLE:
                self.source.movable.forget(self.target.slot)
                self._save(None)
            case Step.CLOSE:
                if self.facts[1].state == "running":
                    self.target.movable.forget(self.source.slot)
                # The source last: as long as the target cannot be told, this is not over.
                self._save(None, only=[self.operation["target"], self.operation["source"]])
            case Step.GIVE_UP:  # Acts on no site.
                pass

    def _prepare(self) -> None:
        self._save(self.operation)
        self.target.movable.forget(self.source.slot)  # One that was left may have lost its WAL.
        self.target.movable.prepare(self.source.slot)
        if self.pair.synchronous:  # From its first commit on: they wait until the source follows.
            self.target.site.require_synchronous([self.source.name])
        self.source.movable.ease()
        self.operation = {**self.operation, "prepared": True}
        self._save(self.operation)

    def _promote(self) -> None:
        if self.facts[0].state == "stopped" and self.facts[1].role != "primary":
            self._token()  # It may have been a primary once more since it was verified, by hand.
        self.target.movable.promote()

    def _token(self) -> Token:
        """Return the token. One that was kept must be that of this very stop, not of one before, say."""
        token = self.operation["token"]
        assert token is not None, "a step that follows the demotion"
        if not self.demoted and (found := self.source.movable.demote()) != token:
            msg = (
                f"{self.pair.name}: the token that was kept is not that of {self.source.name}: expected {found}, found "
                f"{token}"
            )
            raise SiteError(msg)
        return token

    def _assign(self, epoch: int, active: str, *, first: str) -> None:
        for role in sorted(self.pair.members, key=lambda role: role != first):
            told_now = _roles(self.pair, role, Desired(active, epoch), self.operation)
            self.pair.members[role].movable.tell(told_now)
            self.roles[role] = told_now

    def _save(self, operation: Operation | None, only: Sequence[str] = ()) -> None:
        for role in only or self.pair.members:
            self.roles[role] = {**self.roles[role], "operation": operation}
            self.pair.members[role].movable.tell(self.roles[role])

    def _give_up(self, step: Step, reason: str) -> None:
        self.journal.note(f"giving up at the step {step}: {reason}", step="give-up", state="warning")
        self.operation = {**self.operation, "given_up": reason}
        self._save(self.operation, only=[self.operation["source"]])
        with suppress(SiteError):  # What decides is kept at the source's site: the target may be what failed.
            self._save(self.operation, only=[self.operation["target"]])

    def _words(self, step: Step) -> str:
        source, target = self.source.name, self.target.name
        return {
            Step.PREPARE: f"{target} begins to keep WAL for {source}; {source} writes a checkpoint",
            Step.DEMOTE: f"{source} steps down: it stops, and is a standby from now on",
            Step.VERIFY: f"{target} must have everything that {source} wrote; then it is to be active",
            Step.PROMOTE: f"{target} becomes the primary",
            Step.FOLLOW: f"{source} follows {target}",
            Step.GIVE_UP: "the switchover is taken back",
            Step.SETTLE: f"{target} is active at epoch {self.operation['epoch']}",
            Step.WITHDRAW: f"{source} is to be active after all, at epoch {self.operation['epoch'] + 1}",
            Step.REINSTATE: f"{source} becomes the primary again",
            Step.CLOSE: f"the switchover to {target} is over: given up",
        }[step]


def steps_in_words(pair_names: Mapping[str, str], active: str) -> list[str]:
    """Return in words what a switchover to a member does, told without looking at any site."""
    new = pair_names[active]
    old = next(name for role, name in pair_names.items() if role != active)
    return [
        f"switch over from {old} to {new}",
        f"{old} stops cleanly and becomes a standby",
        f"{new} is promoted once it has everything that {old} wrote",
        f"{old} follows {new}; if anything fails before the promotion, {old} is back",
    ]
