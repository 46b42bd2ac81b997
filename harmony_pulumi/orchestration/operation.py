"""One operation, under way: step after step, each recorded before and after it acts, until none is left.

Knows no topology and no Pulumi: only what the capability's sites offer. What is next is decided in `switchover`,
`failover` and `rejoin`.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from harmony_pulumi.capabilities.endpoint_site import EndpointSite
from harmony_pulumi.capabilities.site import Away, Observation, Operation, Roles, Terms, Token
from harmony_pulumi.errors import PassingError, SiteError, UnreachableError, counted
from harmony_pulumi.orchestration import failover, rejoin, switchover
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.members import (
    Pair,
    alone_there,
    each_endpoint,
    estimated_loss,
    left_behind,
    look,
    refuse_newcomers,
    roles_for,
    serve,
)
from harmony_pulumi.orchestration.preflight import certificate_advice
from harmony_pulumi.orchestration.replication import Group, Member, followed, missing
from harmony_pulumi.orchestration.roles import Desired, latest, outer_of
from harmony_pulumi.orchestration.switchover import (
    ANSWERING,
    Facts,
    Step,
    after,
    knows_less,
    may_give_up,
    promoted_by_somebody,
    unclear,
    untold,
)
from harmony_pulumi.orchestration.wait import wait_for

_CATCH_UP = 30.0
"""Seconds for the target to replay the token; it streams and is at most 64 MB behind, so it takes less than one."""
_PAUSE = 10.0
"""Seconds for the transactions that are at work as clients are held back; one that takes longer ends the switchover."""
_BACK = 30.0
"""Seconds for the target to stream again once a role change is taken back; it looks for its primary all the while."""
_FENCE_COMMAND = 120
"""Seconds for a fence_command: it may wait until a machine is off."""
_NEXT: Mapping[str, Callable[[Operation, Facts, Facts], Step]] = {
    "switchover": switchover.next_step,
    "failover": failover.next_step,
    "rejoin": rejoin.next_step,
}


def next_step(operation: Operation, source: Facts, target: Facts) -> Step:
    """Return what is to be done next in an operation, whatever its kind.

    Raises:
        SiteError: there is nothing that could safely be done; the message says why, and what to do.
    """
    return _NEXT[operation["kind"]](operation, source, target)


def fence_yourself(error: SiteError, name: str) -> str:
    """Return what to say where a host answers, and its server can neither be stopped nor marked."""
    return f"{error}. Mend that; or make certain that {name} accepts no writes, then add --fenced-by-me {name}"


def _run_here(command: Sequence[str]) -> tuple[int | str, str]:
    """Run a command on this machine; return its status, or why it has none, and what it said.

    It gets nothing of Pulumi's own: no passphrase, no token. At its deadline, all that it has started ends.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")}
    try:
        process = subprocess.Popen(
            command,
            env=env,
            text=True,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        return error.strerror or "not started", ""
    with process:
        try:
            said, _ = process.communicate(timeout=_FENCE_COMMAND)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"not within {_FENCE_COMMAND} s", ""
    return process.returncode, said.strip() or "it said nothing"


def fence_from_here(pair: Pair, role: str, why: str) -> str:
    """Run what is declared to make certain that a member accepts no writes; return in words how that is certain.

    Args:
        pair: whose member it is.
        role: of the member.
        why: it does not answer.

    Raises:
        SiteError: nothing is declared, or it did not succeed.
    """
    name, command = pair.names[role], pair.fence_commands.get(role)
    if not command:
        msg = (
            f"{name} does not answer, and may accept writes: {why}. Make certain that it does not, then add "
            f"--fenced-by-me {name}"
        )
        raise SiteError(msg)
    status, said = _run_here(command)
    if status:
        msg = f"the fence_command of {name}, {command[0]}, did not succeed ({status}): {said[-500:]}"
        raise SiteError(msg)
    return f"its fence_command, {command[0]}, succeeded"


@dataclass
class Run:
    """One operation, under way."""

    pair: Pair
    journal: Journal
    operation: Operation
    roles: dict[str, Roles]
    """What each site was told, by role."""
    facts: tuple[Facts, Facts] = field(init=False)
    """Of the source and of the target."""
    locked: Mapping[str, Observation] = field(init=False)
    """What was seen of the members as they were locked."""
    demoted: bool = False
    """Whether the token is from the source itself, in this run."""
    covers: bool = False
    """Whether commits on the target are going to wait for the source, as this run has seen to."""
    offered: Mapping[str, Any] | None = None
    """What the target offers to those who connect to it, once it was asked."""
    insisted: bool = False
    """Whether it was interrupted after the point of no return, and went on."""

    @property
    def source(self) -> Member:
        """The member that is to follow in the end."""
        return self.pair.members[self.operation["source"]]

    @property
    def target(self) -> Member:
        """The member that is to lead in the end."""
        return self.pair.members[self.operation["target"]]

    @property
    def _terms(self) -> Terms:
        """What whoever ordered a failover accepts."""
        terms = self.operation["terms"]
        assert terms is not None, "a failover has its terms"
        return terms

    def finish(self, seen: Mapping[str, Observation]) -> None:
        """Do what is next until the operation is over.

        Args:
            seen: of the members as they were locked: of those that answered.
        """
        self.locked = seen
        self.facts = self._facts(seen)
        if self._promoted():  # By a run that was cut off.
            serve(self.pair, self.operation["target"], self.journal)
        while True:
            step = next_step(self.operation, *self.facts)
            if step is Step.GIVE_UP:
                self._give_up(step, unclear(*self.facts))
                continue
            try:
                self._do(step)
            except (SiteError, KeyboardInterrupt) as error:
                seen = self._look()
                self.facts = self._facts(seen)
                # What was being told may have arrived or not. Of one that does not answer, what it was told before.
                self.roles = {role: observation["roles"] or self.roles[role] for role, observation in seen.items()}
                if not self.operation["given_up"] and may_give_up(self.operation, *self.facts):
                    self._give_up(step, str(error) or "interrupted")
                elif isinstance(error, KeyboardInterrupt) and not self.insisted and self._past_return():
                    self.insisted = True
                    text = "interrupted where there is no way back: going on; interrupt again to leave it open"
                    self.journal.note(text, step="resume", state="warning")
                elif not (step is Step.VERIFY and self._both_told()) or isinstance(error, KeyboardInterrupt):
                    raise
                continue
            if step is Step.FENCE or (step is Step.FOLLOW and self.operation["kind"] == "rejoin"):
                # Whether one that was fenced is stopped, or one that was rewound streams, is to be seen.
                self.facts = self._facts(self._look())
            else:
                self.facts = after(step, self.operation, *self.facts)
            if step is Step.SETTLE:
                return
            if step is Step.CLOSE:
                raise SiteError(f"{self._given_up()}{self._apart()}")

    def _given_up(self) -> str:
        kind, reason = self.operation["kind"], self.operation["given_up"]
        return f"{self.pair.name}: the {kind} was given up, and {self.source.name} is active: {reason}"

    def _apart(self) -> str:
        """Wait until the target follows the source again, as it did before; if it does not, return that in words."""
        if self.facts[1].role != "standby":
            return ""
        try:
            wait_for(
                f"{self.target.name} streaming from {self.source.name}",
                self.source.site.observe,
                lambda seen: not missing(seen, [self.target.name]),
                deadline=_BACK,
                words=followed,
                advice="`harmony status` tells how it is; if it can follow no more, `harmony rejoin` brings it back",
            )
        except SiteError as error:
            return f". {error}"
        except KeyboardInterrupt:  # What was begun is over: there is nothing to be left open.
            return f". {self.target.name} was not waited for, which is to stream again: `harmony status` tells"
        return ""

    def _promoted(self) -> bool:
        """Tell whether the target leads as it was told to."""
        leads = self.facts[1].role == "primary" and not self.operation["given_up"]
        return leads and not knows_less(self.operation, self.facts[1])

    def _look(self) -> dict[str, Observation]:
        seen = look(self.pair)
        refuse_newcomers(self.pair, self.locked, seen)
        return seen

    def _facts(self, seen: Mapping[str, Observation]) -> tuple[Facts, Facts]:
        return Facts.of(seen[self.operation["source"]]), Facts.of(seen[self.operation["target"]])

    def _past_return(self) -> bool:
        """Tell whether the target may have been told to lead, and does not yet. A rejoin may be left open anywhere."""
        return self.operation["kind"] != "rejoin" and not untold(self.operation, *self.facts)

    def _both_told(self) -> bool:
        return all(facts.epoch == self.operation["epoch"] for facts in self.facts)

    def _do(self, step: Step) -> None:
        with self.journal.step(step, self._words(step), id=self.operation["id"], epoch=self.operation["epoch"]):
            self._act(step)

    def _act(self, step: Step) -> None:
        acts: Mapping[Step, Callable[[], None]] = {
            Step.PREPARE: self._prepare,
            Step.DEMOTE: self._demote,
            Step.VERIFY: self._verify,
            Step.PROMOTE: self._promote,
            Step.FOLLOW: self._follow_again if self.operation["kind"] == "rejoin" else self._follow,
            Step.SETTLE: self._settle,
            Step.WITHDRAW: self._withdraw,
            Step.REINSTATE: self.source.movable.reinstate,
            Step.CLOSE: self._close,
            Step.ACCEPT: self._accept,
            Step.FENCE: self._fence,
            Step.ELECT: self._elect,
            Step.RETIRE: self._retire,
            Step.ARCHIVE: self._archive,
            Step.REWIND: self._rewind,
            Step.CLONE: self._clone,
        }
        acts[step]()

    def _demote(self) -> None:
        if self.pair.endpoints:
            self._offer()  # Where it has none, the way back is still open.
            with self.journal.step("pause", "clients of the endpoint wait"):
                each_endpoint(self.pair, lambda endpoint: endpoint.pause(_PAUSE))
        # Kept with the assignment: until then, to demote again gives the same token.
        self.operation = {**self.operation, "token": self.source.movable.demote()}
        self.demoted = True

    def _verify(self) -> None:
        self.target.movable.verify(self._token(), deadline=_CATCH_UP)
        self._assign(self.operation["epoch"], self.operation["target"], first=self.operation["source"])

    def _accept(self) -> None:
        """Take the promotion by somebody else for that of the switchover, if nothing is lost by that."""
        if not self.facts[0].streams:
            what = f"The WAL of {self.source.name} from where {self.target.name} took over"
            try:
                found = alone_there(self.pair, self.operation["source"], self.operation["target"])
            except UnreachableError:
                raise
            except SiteError as error:
                msg = f"{promoted_by_somebody(self.operation, *self.facts)}. {what} cannot be read: {error}"
                raise SiteError(msg) from error
            if found["bytes"]:
                size = f"{found['bytes']} bytes, {counted(len(found['transactions']), 'transaction')}"
                msg = f"{promoted_by_somebody(self.operation, *self.facts)}. {what} has {size}"
                raise SiteError(msg)
        self._assign(self.operation["epoch"], self.operation["target"], first=self.operation["source"])
        serve(self.pair, self.operation["target"], self.journal)

    def _follow(self) -> None:
        if self.facts[0].epoch != self.operation["epoch"]:
            self._assign(self.operation["epoch"], self.operation["target"], first=self.operation["source"])
        self.source.movable.follow(self.target.movable.offer())

    def _withdraw(self) -> None:
        self._assign(self.operation["epoch"] + 1, self.operation["source"], first=self.operation["target"])

    def _close(self) -> None:
        serve(self.pair, self.operation["source"], self.journal)
        if self.facts[1].state == "running":
            self.target.movable.forget(self.source.slot)
        # The source last: as long as the target cannot be told, this is not over.
        try:
            self._save(None, only=[self.operation["target"], self.operation["source"]])
        except SiteError as error:
            raise SiteError(f"{self._given_up()}. Not both could be told so, run the same again: {error}") from error

    def _retire(self) -> None:
        # It may have written since it was looked at last: what it alone has is put aside anew.
        self._reached("")
        self.source.movable.retire()

    def _clone(self) -> None:
        self.target.movable.forget(self.source.slot)  # It may have lost its WAL, or be gone.
        self.target.movable.prepare(self.source.slot)
        self.source.movable.clone(self.target.movable.offer(), self._show)
        self._reached("copied")

    def _prepare(self) -> None:
        self._save(self.operation)
        self.target.movable.forget(self.source.slot)  # One that was left may have lost its WAL.
        self.target.movable.prepare(self.source.slot)
        if self.pair.synchronous:  # From its first commit on: they wait until the source follows.
            self.target.site.require_synchronous([self.source.name])
            self.covers = True
        self.source.movable.ease()
        self.operation = {**self.operation, "prepared": True}
        self._save(self.operation)

    def _fence(self) -> None:
        self._save(self.operation)  # Before anything stops: whoever comes next is to know why nobody leads.
        try:
            how = self.source.movable.fence()
        except UnreachableError as error:
            how = fence_from_here(self.pair, self.operation["source"], str(error))
            self.operation = {**self.operation, "terms": {**self._terms, "fenced": how}}
            self._save(self.operation, only=[self.operation["target"]])
        except SiteError as error:
            # Its host answers, and what it has cannot be read: then somebody's word is all there is.
            if not self._terms["fenced"]:
                raise SiteError(fence_yourself(error, self.source.name)) from error
            self.journal.note(str(error), step=Step.FENCE, state="warning")
            how = self._terms["fenced"]
            self.operation = {**self.operation, "stage": "vouched"}
        self.journal.note(f"{self.source.name} accepts no writes: {how}", step=Step.FENCE)

    def _elect(self) -> None:
        """Have the target be the one that is to lead, if what is lost by that is accepted."""
        seen = self._look()
        found = estimated_loss(self.pair, self.operation["target"], seen)
        words = found.words(self.source.name, self.target.name)
        if problem := failover.loss_problem(found, self._terms):
            msg = f"{words}: {problem}"
            raise SiteError(msg)
        self.journal.note(f"lost: {words}", step=Step.ELECT, bytes=found.bytes, unknown=found.unknown)
        self.target.site.require_synchronous([])
        if self.pair.synchronous:
            text = f"commits wait for nobody until {self.source.name} has rejoined"
            self.journal.note(text, step=Step.ELECT, state="warning")
        self._assign(self.operation["epoch"], self.operation["target"], first=self.operation["source"])

    def _settle(self) -> None:
        left = None
        serve(self.pair, self.operation["target"], self.journal)
        if self.operation["kind"] != "failover":
            self.source.movable.forget(self.target.slot)
        else:
            self.target.movable.prepare(self.source.slot)  # So that it can be rewound, and follow.
            fenced = self._terms["fenced"] or "its site was asked, and it was stopped"
            left = left_behind(self.target, self.operation["source"], fenced)
        # In full: one that did not answer when roles moved would else still be told that it leads.
        settled = Desired(self.operation["target"], self.operation["epoch"])
        # It may have been declared otherwise since; and before commits wait for nobody, nobody is to count on them.
        covered = self.roles[self.operation["target"]]["synchronous"] and self.pair.synchronous
        # The active one first, as long as it is not told this is not over; then the other may count on it.
        for role in sorted(self._to_tell(), key=lambda role: role != self.operation["target"]):
            told_now = roles_for(
                self.pair, role, settled, None, outer=outer_of(self.roles), away=left, synchronous=covered
            )
            self.pair.members[role].movable.tell(told_now)
            self.roles[role] = told_now

    def _archive(self) -> None:
        """Put aside what the source alone has; where that cannot be read, its whole data directory is kept."""
        source, target = self.source.movable, self.target.movable
        theirs = target.history()  # It leads: if that cannot be told now, it can be later.
        try:
            mine = source.history()
            fork = rejoin.fork_of(mine, theirs)
            if apart := rejoin.begun_apart(mine, theirs, self._away()):
                why = f"it cannot be rewound: its timeline {mine[-1]['timeline']} is not that of {self.target.name}"
                self.operation = {**self.operation, "clone": why}
                fork = apart
            place = source.archive(fork) if fork else ""
        except (UnreachableError, PassingError):
            raise
        except SiteError as error:
            self.operation = {**self.operation, "clone": f"what it alone has cannot be listed ({error})"}
            self.journal.note(f"its whole data directory is kept: {error}", step=Step.ARCHIVE, state="warning")
        else:
            text = (
                f"what {self.source.name} alone has is in {place}"
                if place
                else f"{self.source.name} has nothing alone that was not put aside before"
            )
            self.journal.note(text, step=Step.ARCHIVE)
        self._reached("archived")

    def _rewind(self) -> None:
        self.target.movable.prepare(self.source.slot)
        self.target.movable.ease()  # A rewind looks for the timeline in the last checkpoint.
        offer = self.target.movable.offer()
        self._reached("rewinding")
        try:
            why = self.source.movable.rewind(offer)
        except PassingError as error:
            self._reached("archived")  # Nothing was changed, so that it can be rewound yet.
            self._blame_certificates(error)
            raise
        except UnreachableError as error:
            self._blame_certificates(error)
            raise
        except SiteError as error:
            why = str(error)
        if why:
            self._copy_anew(f"it cannot be rewound: {why}")
        else:
            self._reached("copied")

    def _follow_again(self) -> None:
        self.target.movable.prepare(self.source.slot)  # Somebody may have dropped it: nothing else has it made anew.
        self.source.movable.follow(self.target.movable.offer())
        try:
            wait_for(
                f"{self.source.name} streaming from {self.target.name}",
                self.target.site.observe,
                lambda seen: not missing(seen, [self.source.name]),
                deadline=self.pair.deadline,
                words=followed,
                advice=f"The end of the log of {self.source.name} says why: mend that, then run this again",
            )
        except SiteError as error:
            self._blame_certificates(error)
            # Only what cannot pass is a reason to copy it: a refused connection is none.
            if self.operation["clone"] or not (why := self.source.movable.cannot_follow()):
                raise
            self._copy_anew(f"rewound, it cannot stream: {why}")

    def _blame_certificates(self, error: SiteError) -> None:
        """Say what cures it where the leader's certificates are why it cannot be reached: a copy could not, either."""
        if advice := certificate_advice(self.target.site.observe()):
            msg = f"{error}. {advice}"
            raise type(error)(msg) from error

    def _copy_anew(self, why: str) -> None:
        self.journal.note(f"{self.source.name} is copied anew: {why}", step=Step.CLONE, state="warning")
        self.operation = {**self.operation, "clone": why}
        self._reached("archived")

    def _reached(self, stage: str) -> None:
        self.operation = {**self.operation, "stage": stage}
        # In full: the source may have been out of reach when another took over, and is to know who leads.
        self._assign(self.operation["epoch"], self.operation["target"], first=self.operation["target"])

    def _show(self, text: str) -> None:
        self.journal.progress(Step.CLONE, f"{self.source.name}: {text}")

    def _promote(self) -> None:
        if self.operation["kind"] == "failover":
            self._leave_the_source()
        else:
            self._insist_on_the_token()
        self.target.movable.promote()

        def let_go(endpoint: EndpointSite) -> None:
            endpoint.point(self._offer())
            endpoint.resume()

        try:
            each_endpoint(self.pair, let_go)
        except SiteError as error:  # It is told once more as this is settled; clients of the others wait no longer.
            self.journal.note(str(error), step="endpoint", state="warning")

    def _leave_the_source(self) -> None:
        """Have no endpoint lead to the old primary once there is a new one: that would be two writers."""
        if not self.pair.endpoints:
            return
        offer = self._offer()
        with self._unless_fenced():
            each_endpoint(self.pair, lambda endpoint: endpoint.point(offer))

    def _offer(self) -> Mapping[str, Any]:
        """Return what endpoints are to lead to: asked for once, as clients wait for it."""
        if self.offered is None:
            self.offered = self.target.movable.offer()
        return self.offered

    @contextmanager
    def _unless_fenced(self) -> Generator[None]:
        """Go on without an endpoint that cannot be told, if that could lead clients to no other primary."""
        try:
            yield
        except SiteError as error:
            if not self._terms["fenced"]:
                msg = (
                    f"{error}; it may lead clients to {self.source.name}, so that counts as not fenced. Start it, or "
                    f"make certain that {self.source.name} accepts no writes and add --fenced-by-me {self.source.name}"
                )
                raise SiteError(msg) from error
            self.journal.note(str(error), step="endpoint", state="warning")

    def _insist_on_the_token(self) -> None:
        if self.facts[0].state == "stopped":
            self._token()  # It may have been a primary once more since it was verified, by hand.

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
        # One that takes over as planned has its commits wait for the other from the first one on.
        covered = self.covers and active == self.target.role
        away = self._away()  # Until this is settled, whoever was left behind is.
        for role in sorted(self._to_tell(), key=lambda role: role != first):
            told_now = roles_for(
                self.pair,
                role,
                Desired(active, epoch),
                self.operation,
                outer=outer_of(self.roles),
                away=away,
                # The other one may count on it only once the active one certainly knows: when this is settled.
                synchronous=covered and role == active,
            )
            self.pair.members[role].movable.tell(told_now)
            self.roles[role] = told_now

    def _away(self) -> Away | None:
        known = latest(self.roles)
        assert known is not None, "every site was told something, or is to be"
        return known["away"]

    def _to_tell(self) -> list[str]:
        """Return the roles of the members that must be told. In a failover, one that does not answer cannot be.

        Of a pair, other servers than the one that leads there may answer: none of them is to take over unawares.
        """
        if self.operation["kind"] != "failover":
            return list(self.pair.members)
        facts = dict(zip((self.operation["source"], self.operation["target"]), self.facts, strict=True))
        return [
            role
            for role, member in self.pair.members.items()
            if role == self.target.role or facts[role].state in ANSWERING or isinstance(member.site, Group)
        ]

    def _save(self, operation: Operation | None, only: Sequence[str] = ()) -> None:
        for role in only or self._to_tell():
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
            Step.GIVE_UP: f"the {self.operation['kind']} is taken back",
            Step.FENCE: f"{source} is to accept no writes",
            Step.ELECT: f"{target} is to be active",
            Step.RETIRE: f"{source} is stopped, to come back as a standby",
            Step.ARCHIVE: f"what {source} alone has is put aside",
            Step.REWIND: f"{source} is rewound to where {target} took over",
            Step.CLONE: f"{source} is copied from {target} anew; what it had is kept",
            Step.SETTLE: f"{target} is active at epoch {self.operation['epoch']}"
            + (f"; {source} is to rejoin" if self.operation["kind"] == "failover" else ""),
            Step.WITHDRAW: f"{source} is to be active after all, at epoch {self.operation['epoch'] + 1}",
            Step.REINSTATE: f"{source} becomes the primary again",
            Step.ACCEPT: f"{target} was promoted by somebody: it must have everything that {source} wrote; then it is "
            "active",
            Step.CLOSE: f"the {self.operation['kind']} to {target} is over: given up",
        }[step]
