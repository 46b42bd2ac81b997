"""A pair as a site: it offers what a server offers, through its active member, so that pairs nest."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harmony_pulumi.capabilities.endpoint_site import load_endpoint
from harmony_pulumi.capabilities.site import (
    Beyond,
    Certificates,
    Fork,
    Observation,
    Rejoining,
    Roles,
    RoleSite,
    Rotation,
    Survey,
    Token,
)
from harmony_pulumi.errors import PassingError, SiteError, UnreachableError
from harmony_pulumi.orchestration.failover import lsn_bytes
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.members import Pair, look, roles_for, told
from harmony_pulumi.orchestration.rejoin import fork_of
from harmony_pulumi.orchestration.replication import Member, all_alone, followed, members_of, missing
from harmony_pulumi.orchestration.roles import Desired, levels
from harmony_pulumi.orchestration.switchover import ANSWERING, Step, host_answers
from harmony_pulumi.orchestration.wait import wait_for

KIND = "harmony_pulumi.orchestration.pair:PairSite"


def pair_of(handle: Mapping[str, Any]) -> Pair:
    """Return the pair of a handle, for the runner."""
    return Pair(
        id=str(handle["pair"]),
        name=str(handle["name"]),
        members=members_of(handle["members"]),
        synchronous=bool(handle["synchronous"]),
        deadline=float(handle["deadline"]),
        fence_commands=handle.get("fence_commands") or {},
        endpoints={str(endpoint["name"]): load_endpoint(endpoint) for endpoint in handle.get("endpoints") or ()},
        follows=bool(handle.get("follows")),
    )


def followed_by(known: Roles | None, around: Mapping[str, Any]) -> Member | None:
    """Return whose leader a pair follows: the active member of a pair around it; None if there is none.

    Args:
        known: what the pair that follows was told.
        around: the handle of the outermost pair that it is in.
    """
    for level in levels(known and known["outer"]):
        if level["active"] != level["me"]:
            handle = next((each for each in _pairs_in(around) if each["pair"] == level["pair"]), None)
            return pair_of(handle).members[level["active"]] if handle else None
    return None


def _pairs_in(handle: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "pair" in handle:
        yield handle
        for member in handle["members"].values():
            yield from _pairs_in(member)


def has_roles(handle: Mapping[str, Any]) -> bool:
    """Tell whether a handle is of a pair whose roles can be moved: one that was not deployed as a copy of another."""
    return "pair" in handle and not handle.get("follows")


def rotates(handle: Mapping[str, Any]) -> bool:
    """Tell whether the certificates of a pair can be rotated on their own: it is one of servers."""
    return has_roles(handle) and all("members" not in member for member in handle["members"].values())


def has_all_of(source: Observation, standby: Observation) -> bool:
    """Tell whether a source is connected to its own, or a primary, and has come as far as its standby."""
    ends = [seen["received"] or seen["lsn"] for seen in (source, standby)]
    settled = source["role"] == "primary" or source["receiver"] == "streaming"
    return settled and all(ends) and lsn_bytes(ends[0]) >= lsn_bytes(ends[1])


@dataclass
class _Held:
    """What is known of a pair while its members are locked."""

    leader: Member
    others: list[Member]
    """Those that answer."""


@dataclass(frozen=True)
class PairSite:
    """A pair of PostgreSQL clusters, by its handle: `members` by role, and the `active` role.

    Its active member does what is asked of the pair, and the other one is taken along: it always follows the first.
    """

    handle: Mapping[str, Any]
    pair: Pair
    _held: list[_Held] = field(default_factory=list["_Held"], repr=False)

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> PairSite:
        """Make the site."""
        return cls(handle, pair_of(handle))

    def leading(self) -> Mapping[str, Any]:
        """Return the handle of the server that leads in the pair, by which replication knows it."""
        return self._leader.handle

    def observe(self) -> Observation:
        """Look at the active member. What that was told of the pair around counts: it is the one that would lead."""
        seen = look(self.pair)
        found = seen[self._active(seen)]
        return {**found, "roles": found["roles"] and found["roles"]["outer"]}

    def record(self, lines: str) -> None:
        """Append lines to the active member's log of events."""
        self._leader.site.record(lines)

    def require_synchronous(self, replicas: list[str]) -> None:
        """Have commits on the active member wait for one of these replicas."""
        self._leader.site.require_synchronous(replicas)

    # -- moving roles --------------------------------------------------------------------------------------------

    @contextmanager
    def alone(self, operator: str) -> Generator[Callable[[str], None]]:
        """Keep every other operation on the members that answer out, that of the pair itself, too."""
        expected = self._leader
        before = look(self.pair)
        answering = [member for role, member in self.pair.members.items() if host_answers(before[role])]
        with all_alone(answering, operator) as record:
            self._refuse_unsettled(look(self.pair), expected)
            self._held.append(_Held(expected, [member for member in answering if member is not expected]))
            try:
                yield record
            finally:
                self._held.clear()

    def _refuse_unsettled(self, seen: Mapping[str, Observation], expected: Member) -> None:
        """Refuse to act on a pair whose own roles are not settled."""
        known = told(seen)
        if known and (operation := known["operation"]):
            msg = (
                f"a {operation['kind']} in {self.pair.id}, begun by {operation['operator']}, has not ended; have that "
                f"finished first"
            )
            raise SiteError(msg)
        if self.pair.members[self._active(seen)] is not expected:
            msg = f"{self.pair.id}: somebody else was moving its roles until a moment ago; run this again"
            raise SiteError(msg)

    def survey(self) -> Survey:
        """Look at what decides whether the active member can take another's place, or follow it."""
        return self._leader.movable.survey()

    def events(self) -> str:
        """Return what the members have recorded."""
        found: dict[str, None] = {}
        for role, observation in look(self.pair).items():
            if host_answers(observation):
                found |= dict.fromkeys(self.pair.members[role].movable.events().splitlines(keepends=True))
        return "".join(found)

    def tell(self, roles: Roles) -> None:
        """Keep what the roles of the pair around this one are, with both members; the active one last."""
        seen = look(self.pair)
        deployed = Desired("primary", 0)
        members = self.pair.members
        for role in sorted(members, key=lambda role: role == self._active(seen)):
            if seen[role]["state"] in ANSWERING or seen[role]["roles"]:  # One that hangs can be told, too.
                mine = seen[role]["roles"] or roles_for(self.pair, role, deployed, None)
                members[role].movable.tell({**mine, "outer": roles})

    def peers(self) -> list[Observation]:
        """Look at the servers that the active member knows of."""
        return self._leader.movable.peers()

    def prepare(self, follower: str) -> None:
        """Keep WAL from here on with the active member; no longer with one that was it before, once it is not used."""
        self._leader.movable.prepare(follower)
        for other in self._others:
            if any(slot["name"] == follower and not slot["active"] for slot in other.site.observe()["slots"]):
                other.movable.forget(follower)

    def echo(self, follower: str, *, deadline: float) -> str:
        """Have a record come back from a follower of the active member."""
        return self._leader.movable.echo(follower, deadline=deadline)

    def cannot_follow(self) -> str:
        """Return why the active member will never follow, as it is."""
        return self._leader.movable.cannot_follow()

    def ease(self) -> None:
        """Get ready to step down fast."""
        self._leader.movable.ease()

    def demote(self) -> Token:
        """Have the active member step down. It stays that of the pair, and the other one follows it."""
        return self._leader.movable.demote()

    def reinstate(self) -> None:
        """Have the active member be the primary again."""
        self._leader.movable.reinstate()

    def verify(self, token: Token, *, deadline: float) -> None:
        """Wait until the active member has replayed a token."""
        self._leader.movable.verify(token, deadline=deadline)

    def promote(self) -> None:
        """Have the active member become the primary."""
        self._leader.movable.promote()

    def offer(self) -> Mapping[str, Any]:
        """Return what a standby needs to connect to the active member. Secret."""
        return self._leader.movable.offer()

    def follow(self, source: Mapping[str, Any]) -> None:
        """Have the active member be a standby of what another site offers, and the other one stay its own."""
        self._leader.movable.follow(source)
        for other in self._others:
            if not self._told_of_one_away():  # It may be lost for good: `gather` is told to bring it back.
                self._take_along(other, source)

    def forget(self, follower: str) -> None:
        """Stop keeping WAL for a member that leads now, wherever in the pair it is kept."""
        for member in (self._leader, *self._others):
            if member is self._leader or member.site.observe()["state"] == "running":
                member.movable.forget(follower)

    def remember(self, text: str) -> None:
        """Keep what the pair around this one looked like."""
        for member in (self._leader, *self._others):
            member.movable.remember(text)

    def remembered(self) -> str:
        """Return that."""
        return self._leader.movable.remembered()

    def fence(self) -> str:
        """Have no member accept writes."""
        for other in self._others:
            seen = other.site.observe()
            if "primary" in {seen["role"], seen["left_as"]}:  # Somebody has promoted it.
                other.movable.fence()
        return self._leader.movable.fence()

    def history(self) -> list[Fork]:
        """Return the timelines of the active member."""
        return self._leader.movable.history()

    def beyond(self, fork: Fork) -> Beyond:
        """Return what the active member wrote past a fork. The other one has no more than that."""
        return self._leader.movable.beyond(fork)

    def rejoining(self) -> Rejoining:
        """Look at what it takes to have the active member follow another one."""
        return self._leader.movable.rejoining()

    def retire(self) -> None:
        """Stop both, cleanly if they can be."""
        for member in (*self._others, self._leader):
            member.movable.retire()

    def archive(self, fork: Fork) -> str:
        """Put aside what the active member alone has."""
        return self._leader.movable.archive(fork)

    def rewind(self, source: Mapping[str, Any]) -> str:
        """Take back what the active member wrote; the other one comes along as it follows."""
        return self._leader.movable.rewind(source)

    def clone(self, source: Mapping[str, Any], show: Callable[[str], None]) -> None:
        """Copy the data of another site."""
        self._leader.movable.clone(source, show)

    def gather(self, source: Mapping[str, Any]) -> None:
        """Bring back a member that was left behind, and have the members know that it follows again."""
        for other in self._others:
            if known := self._told_of_one_away():
                self._take_along(other, source)
                active = known["active"]
                for role in sorted(self.pair.members, key=lambda role: role == active):
                    self.pair.members[role].movable.tell({**known, "me": role, "away": None})

    def _told_of_one_away(self) -> Roles | None:
        """Return what the members were told, if that is that the other one was left behind."""
        known = told(look(self.pair))
        return known if known and known["away"] else None

    def _take_along(self, other: Member, source: Mapping[str, Any]) -> None:
        """Have the other member follow the active one, which follows a new source by now.

        One that runs goes on with it. One that was ahead of what the new source has is rewound to that, too; if it
        cannot be, or lacks WAL that the active one no longer has, it is copied, and its data of before kept.
        """
        site, leader = other.movable, self._leader.movable
        if site.observe()["role"] == "standby" and not self._why_not_following(other):
            return
        site.retire()
        why = self._why_not_rewound(site, source)
        if not why:
            if not (passing := self._why_not_following(other)):
                return
            if not (why := site.cannot_follow()):  # It may pass: a refused connection, say.
                raise SiteError(passing)
        journal = Journal(self.pair.name, "follow", lambda _: None)
        journal.write_to(self._leader.site.record)
        journal.note(f"{other.name} is copied anew: {why}", step=Step.CLONE, state="warning")
        site.retire()
        leader.forget(other.slot)
        leader.prepare(other.slot)
        site.clone(leader.offer(), lambda _: None)
        if why := self._why_not_following(other):
            raise SiteError(why)

    def _why_not_rewound(self, site: RoleSite, source: Mapping[str, Any]) -> str:
        """Put aside what a member alone has, and have it be as the new source; return why it cannot be, or nothing."""
        try:
            fork = fork_of(site.history(), self._leader.movable.history())
            if fork:
                site.archive(fork)
            return site.rewind(source)
        except (PassingError, UnreachableError):
            raise
        except SiteError as error:  # Then its whole data directory is kept.
            return str(error)

    def _why_not_following(self, other: Member) -> str:
        """Have the other member follow the active one; return why it does not stream, or nothing.

        If it says once more that it never can after the active one has all that it may ask for, nothing is waited for.
        """
        leader = self._leader
        leader.movable.prepare(other.slot)
        other.movable.follow(leader.movable.offer())
        said: list[str] = []

        def look_at_both() -> tuple[Observation, str]:
            source = leader.site.observe()
            if missing(source, [other.name]) and (said or has_all_of(source, other.site.observe())):
                said.append(other.movable.cannot_follow())
                # The first may have been said of an attempt before that, and the second, too, a moment after.
                return source, said[-1] if len({*said}) > 2 else ""
            return source, ""

        try:
            _, why = wait_for(
                f"{other.name} streaming from {leader.name}",
                look_at_both,
                lambda found: bool(found[1]) or not missing(found[0], [other.name]),
                deadline=self.pair.deadline,
                words=lambda found: followed(found[0]),
                advice=f"Look at the end of the log of {other.name}.",
            )
        except SiteError as error:
            return str(error)
        return why

    # -- certificates --------------------------------------------------------------------------------------------

    def certificates(self) -> Certificates:
        """Look at what a rotation depends on, of the active member."""
        return self._leader.movable.certificates()

    def renew(self, rotation: Rotation) -> None:
        """Refuse: the certificates of each pair in a pair are rotated by changing their inputs."""
        del rotation
        msg = f"{self.pair.id}: the certificates of a pair inside a pair are rotated by input: see rotate-certificates"
        raise SiteError(msg)

    def reconnect(self, follower: str) -> None:
        """End the connection of a member that replicates from the active one."""
        self._leader.movable.reconnect(follower)

    def distrust(self) -> None:
        """Have both members trust their authorities of now alone."""
        for member in (*self._others, self._leader):
            member.movable.distrust()

    # -- which member --------------------------------------------------------------------------------------------

    @property
    def _leader(self) -> Member:
        return self._held[0].leader if self._held else self.pair.members[self._active(look(self.pair))]

    @property
    def _others(self) -> list[Member]:
        """The other members that answer."""
        if self._held:
            return self._held[0].others
        seen = look(self.pair)
        active = self._active(seen)
        return [m for role, m in self.pair.members.items() if role != active and host_answers(seen[role])]

    def _active(self, seen: Mapping[str, Observation]) -> str:
        known = told(seen)
        return known["active"] if known else str(self.handle["active"])
