"""A pair as orchestration sees it, and what its sites say of it. Knows no topology and no Pulumi."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from harmony_pulumi.capabilities.addresses import address, is_same
from harmony_pulumi.capabilities.endpoint_site import EndpointObservation, EndpointSite
from harmony_pulumi.capabilities.site import Away, Beyond, Fork, Observation, Operation, Roles
from harmony_pulumi.errors import SiteError
from harmony_pulumi.orchestration import failover
from harmony_pulumi.orchestration.failover import Loss
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.rejoin import fork_of, place_of
from harmony_pulumi.orchestration.replication import Member
from harmony_pulumi.orchestration.roles import Desired, follows_another, latest, outer_of
from harmony_pulumi.orchestration.switchover import host_answers


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
    fence_commands: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """By role: what is run here to make certain that a member which does not answer accepts no writes."""
    endpoints: Mapping[str, EndpointSite] = field(default_factory=dict[str, EndpointSite])
    """What forwards clients to the active member, by name."""
    follows: bool = False
    """Whether it was deployed as a copy of another cluster, so that its leader is a standby itself."""
    passed_by: Mapping[str, str] = field(default_factory=dict[str, str])
    """By role, of a member that nothing is done to though its host answers: why not."""

    @property
    def names(self) -> dict[str, str]:
        """The names of the members by role."""
        return {role: member.name for role, member in self.members.items()}


def look(pair: Pair) -> dict[str, Observation]:
    """Observe every member, by role. One that is passed by counts as one that does not answer."""
    return {role: _look_at(pair, role) for role in pair.members}


def _look_at(pair: Pair, role: str) -> Observation:
    seen = pair.members[role].site.observe()
    if role in pair.passed_by:
        return {**seen, "state": "unreachable", "endpoint": "", "detail": pair.passed_by[role]}
    return seen


def look_at_endpoints(pair: Pair) -> dict[str, EndpointObservation]:
    """Observe every endpoint, by name."""
    return {name: endpoint.observe() for name, endpoint in pair.endpoints.items()}


def told(seen: Mapping[str, Observation]) -> Roles | None:
    """Return what the sites were told last."""
    roles = {role: observation["roles"] for role, observation in seen.items()}
    known = latest(roles)
    return known and {**known, "outer": outer_of(roles)}


def refuse_newcomers(pair: Pair, before: Mapping[str, Observation], seen: Mapping[str, Observation]) -> None:
    """Refuse to go on with a member that did not answer before, so that nobody else was kept away from it."""
    for role, observation in seen.items():
        if host_answers(observation) and not host_answers(before[role]):
            msg = f"{pair.name}: {pair.names[role]} did not answer a moment ago, and does now; run this again"
            raise SiteError(msg)


def other_than(pair: Pair, role: str) -> str:
    """Return the role of the other member."""
    return next(r for r in pair.members if r != role)


def roles_for(
    pair: Pair,
    me: str,
    desired: Desired,
    operation: Operation | None,
    *,
    outer: Roles | None = None,
    away: Away | None = None,
    synchronous: bool = False,
) -> Roles:
    """Return what a site is to be told."""
    return {
        "pair": pair.id,
        "epoch": desired.epoch,
        "active": desired.active,
        "me": me,
        "synchronous": synchronous,
        "operation": operation,
        "away": away,
        "outer": outer,
    }


def follows(pair: Pair, known: Roles | None) -> bool:
    """Tell whether a pair's leader is to be a standby of another cluster: by what it was told, else as deployed."""
    return follows_another(known["outer"] if known else None, deployed=pair.follows)


def estimated_loss(pair: Pair, target: str, seen: Mapping[str, Observation]) -> Loss:
    """Return what a failover to a member would lose. Changes nothing."""
    source = other_than(pair, target)
    known = told(seen)
    beyond: Beyond | None = None
    unread = ""
    if seen[source]["state"] == "stopped" and seen[target]["state"] == "running":
        try:
            beyond = pair.members[source].movable.beyond(_shared(pair, source, target, seen))
        except SiteError as error:  # Then the loss is not known, and the reason is told with that.
            unread = str(error)
    # The flag says whose commits waited: of the one that was active, for the other.
    covered = bool(known and known["synchronous"] and known["active"] == source)
    return failover.loss(seen[target], synchronous=covered, beyond=beyond, unread=unread)


def alone_there(pair: Pair, source: str, target: str) -> Beyond:
    """Return what a member that writes no more has, and one that leads has not. Changes nothing.

    Raises:
        SiteError: that cannot be told; the message says why.
    """
    mine, theirs = pair.members[source].movable.history(), pair.members[target].movable.history()
    fork = fork_of(mine, theirs)
    return pair.members[source].movable.beyond(fork) if fork else Beyond(bytes=0, transactions=[])


def _shared(pair: Pair, source: str, target: str, seen: Mapping[str, Observation]) -> Fork:
    """Return up to where a running standby has what another member wrote. Its own history may be another one."""
    known = told(seen)
    away = known and known["away"]
    if away and away["member"] == target:
        return Fork(timeline=away["timeline"], lsn=away["fork"])
    mine, theirs = pair.members[source].movable.history(), pair.members[target].movable.history()
    received = seen[target]["received"] or seen[target]["lsn"]
    fork = fork_of(mine, theirs)
    if fork is None or fork["timeline"] == theirs[-1]["timeline"]:
        # One that is not connected may not know which timeline it has come to; its source does.
        return place_of(received, mine)
    return Fork(timeline=fork["timeline"], lsn=min(fork["lsn"], received, key=failover.lsn_bytes))


def serve(pair: Pair, role: str, journal: Journal) -> None:
    """Have every endpoint forward to the one member that leads, and hold nothing back.

    One that does so already is left alone. One that cannot be told leads to no second primary: that is recorded, and
    it is told by whatever acts on the pair next.
    """
    if not pair.endpoints:
        return
    try:
        offer = pair.members[role].movable.offer()
        each_endpoint(pair, lambda endpoint: _lead(endpoint, offer))
    except SiteError as error:
        journal.note(str(error), step="endpoint", state="warning")


def _lead(endpoint: EndpointSite, offer: Mapping[str, Any]) -> None:
    seen = endpoint.observe()
    if not is_same(seen["points_to"], address(offer["endpoint"]["host"], offer["endpoint"]["port"])):
        endpoint.point(offer)
    if seen["paused"] or seen["state"] == "stopped":
        endpoint.resume()


def each_endpoint(pair: Pair, act: Callable[[EndpointSite], None]) -> None:
    """Do something with every endpoint, with the others also where one fails.

    Raises:
        SiteError: one or more did; the message says which, and why.
    """
    problems: list[str] = []
    for name, endpoint in pair.endpoints.items():
        try:
            act(endpoint)
        except SiteError as error:
            problems.append(f"the endpoint on {name}: {error}")
    if problems:
        raise SiteError("; ".join(problems))


def not_following(leader: Member, left: str, fenced: str) -> Away:
    """Return how a member was left behind by one that leads in a pair that follows: nothing says what it has."""
    timeline = leader.movable.history()[-1]["timeline"]
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"member": left, "timeline": timeline, "fork": "0/0", "fenced": fenced, "since": since}


def left_behind(leader: Member, left: str, fenced: str) -> Away:
    """Return how a member was left behind by one that leads now."""
    history = leader.movable.history()
    fork = history[-2] if len(history) > 1 else Fork(timeline=history[-1]["timeline"], lsn="0/0")
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"member": left, "timeline": fork["timeline"], "fork": fork["lsn"], "fenced": fenced, "since": since}
