"""Establishing replication between deployed members. Knows no topology and no Pulumi: sites only."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from harmony_pulumi.capabilities.site import Observation, PostgreSQLSite, RoleSite, load_site, roles_of
from harmony_pulumi.errors import SiteError, UnlockableError, UnreachableError
from harmony_pulumi.orchestration.journal import Journal, Write
from harmony_pulumi.orchestration.preflight import certificate_advice
from harmony_pulumi.orchestration.roles import follows_another, outer_of
from harmony_pulumi.orchestration.wait import wait_for


@runtime_checkable
class Group(Protocol):
    """A site that is several servers."""

    def leading(self) -> Mapping[str, Any]:
        """The handle of the one that leads among them, now."""
        ...

    def gather(self, source: Mapping[str, Any]) -> None:
        """Bring back those of them that were left behind, where the one that leads follows a source.

        Args:
            source: what the source offers.
        """
        ...


@dataclass(frozen=True)
class Member:
    """A member of a pair: its role as declared, its site, and the handle of the server that leads there."""

    role: str
    site: PostgreSQLSite
    handle: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its topology's name, by which replication knows it."""
        return str(self.handle["name"])

    @property
    def movable(self) -> RoleSite:
        """Its site, as one whose role can be moved.

        Raises:
            SiteError: it is not one.
        """
        return roles_of(self.site, self.name)

    @property
    def slot(self) -> str:
        """The replication slot by which its source keeps WAL for it."""
        return str(self.handle["slot"])


def members_of(handles: Mapping[str, Mapping[str, Any]]) -> dict[str, Member]:
    """Return the members of a pair by role, of their handles, in one order: a stack's state keeps none."""
    return {role: _member(role, load_site(handle), handle) for role, handle in sorted(handles.items())}


def _member(role: str, site: PostgreSQLSite, handle: Mapping[str, Any]) -> Member:
    return Member(role, site, site.leading() if isinstance(site, Group) else handle)


def _refuse(_: Member, error: UnlockableError) -> None:
    raise error


@contextmanager
def all_alone(
    members: Iterable[Member], by: str, pass_by: Callable[[Member, UnlockableError], None] = _refuse
) -> Generator[Write]:
    """Keep every other operation away from these members; give what records at the sites of all of them.

    Args:
        members: to be locked.
        by: who does this, for others to read.
        pass_by: is called with one that cannot be locked though nobody else is at work on it, and returns if this is to
            go on without it.
    """
    writes: list[Write] = []
    with ExitStack() as stack:
        for member in members:
            try:
                writes.append(stack.enter_context(member.movable.alone(by)))
            except UnlockableError as error:
                pass_by(member, error)

        def record(lines: str) -> None:
            for write in writes:
                write(lines)

        yield record


def establish(
    members: Mapping[str, Member],
    *,
    active: str,
    synchronous: bool,
    follows: bool,
    deadline: float,
    journal: Journal,
) -> Observation:
    """Wait until every other member streams from the active one, then have commits wait if declared so.

    Returns what was seen of the leader at the end.

    Args:
        members: by role.
        active: the role of the member that leads.
        synchronous: whether commits are to wait for another member.
        follows: whether the pair follows another cluster, so that its leader is a standby itself.
        deadline: seconds for each wait.
        journal: records the steps.

    Raises:
        SiteError: the leader is not what it is to be, or a member does not stream in time.
    """
    source = members[active].site
    names = [members[role].site.observe()["name"] for role in members if role != active]
    if not synchronous or follows:
        source.require_synchronous([])
    with journal.step("streaming", f"waiting until {' and '.join(names)} streams from the {active}"):
        seen = wait_for(
            f"{' and '.join(names)} streaming",
            source.observe,
            lambda observation: not missing(observation, names),
            deadline=deadline,
            words=followed,
            advice=lambda seen: certificate_advice(seen) or "Look at the members' logs.",
        )
    wanted = "standby" if follows else "primary"
    if seen["role"] != wanted:
        msg = f"{seen['name']} was to be a {wanted} and is a {seen['role']}; see `harmony status`"
        raise SiteError(msg)
    if synchronous and not follows:  # A standby has no commits of its own to wait with.
        with journal.step("synchronous", f"commits wait for {' or '.join(names)} from here on"):
            source.require_synchronous(names)
            seen = wait_for(
                "a synchronous replica",
                source.observe,
                lambda observation: any(r["sync_state"] == "sync" for r in observation["replicas"]),
                deadline=deadline,
                words=followed,
                advice="Look at the primary's log.",
            )
    return seen


def followed(source: Observation) -> str:
    """Return in words how a member runs that others are to stream from, and who does."""
    detail = f": {source['detail']}" if source["detail"] else ""
    state = f"{source['name']} is {source['state']}{detail}"
    if source["role"]:
        state = f"{source['name']} is a running {source['role']}"
    replicas = [f"{r['name']} is connected ({r['state']}, {r['sync_state']})" for r in source["replicas"]]
    slots = [f"slot {s['name']} is {s['wal_status']}" for s in source["slots"] if s["wal_status"] == "lost"]
    return "; ".join([state, *(replicas or ["no replica is connected"]), *slots])


def missing(source: Observation, names: list[str]) -> list[str]:
    """Return which of the named replicas do not stream from a source."""
    streaming = {replica["name"] for replica in source["replicas"] if replica["state"] == "streaming"}
    return [name for name in names if name not in streaming]


def leaders(members: Mapping[str, Member], *, follows: bool) -> list[str]:
    """Return the roles of the members that lead: a running primary, or in a pair that follows, one with a replica.

    Args:
        members: by role.
        follows: whether the pair was deployed to follow another; what it was told of a role change counts more.

    Raises:
        UnreachableError: none was seen, and one could not be asked.
    """
    seen = {role: member.site.observe() for role, member in members.items()}
    follows = follows_another(outer_of({role: o["roles"] for role, o in seen.items()}), deployed=follows)
    found = [role for role, o in seen.items() if (bool(o["replicas"]) if follows else o["role"] == "primary")]
    unreachable = [observation["detail"] for observation in seen.values() if observation["state"] == "unreachable"]
    if not found and unreachable:
        raise UnreachableError("; ".join(unreachable))
    return found
