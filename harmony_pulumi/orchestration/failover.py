"""The steps of an unplanned role change, and what it may lose. Pure. Knows no topology, no Pulumi.

The primary is dead or out of reach. Nobody takes over before it is certain that it accepts no writes, nor where more
may be lost than was accepted. What is lost is what the old primary wrote and the other had not received.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from harmony_pulumi.capabilities.endpoint_site import EndpointObservation
from harmony_pulumi.capabilities.site import Beyond, Observation, Operation, Roles, Terms
from harmony_pulumi.errors import SiteError, counted
from harmony_pulumi.orchestration.preflight import Check, certificates
from harmony_pulumi.orchestration.roles import newness, told_of_pair
from harmony_pulumi.orchestration.switchover import (
    Facts,
    Step,
    host_answers,
    knows_less,
    promoted_by_somebody,
    taking_back,
)


def lsn_bytes(lsn: str) -> int:
    """Return an LSN as a number of bytes: PostgreSQL, "pg_lsn Type"."""
    high, _, low = lsn.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


@dataclass(frozen=True)
class Loss:
    """What a failover would lose."""

    bytes: int
    """Of WAL: at least so much is known to be missing."""
    transactions: int | None
    """So many are missing; None if that is not known."""
    heard_at: str
    """When the old primary was last heard of, ISO 8601, by the clock of the one that takes over; empty if not known."""
    clock: str
    """What that clock says now; empty if that is not known."""
    unknown: bool
    """Whether there may be more that nobody knows of, committed after `heard_at`."""
    unread: str = ""
    """Why what the old primary wrote could not be read, though it is stopped and its host answers."""

    def words(self, source: str, target: str) -> str:
        """Return it in words."""
        words = self._words(source, target)
        return f"{words} (what {source} wrote cannot be read: {self.unread})" if self.unread else words

    def _words(self, source: str, target: str) -> str:
        if self.transactions is not None:
            count = counted(self.transactions, "transaction")
            return f"{self.bytes} bytes of WAL, {count}, that {target} has not received"
        missing = f"{self.bytes} bytes of WAL that {target} is known to lack"
        if not self.unknown:
            return f"{missing}; commits waited for {target}, so none that counts is lost"
        if not self.heard_at or not self.clock:
            return f"{missing}, and whatever {source} committed since it was last heard of, nobody knows when"
        seconds = (datetime.fromisoformat(self.clock) - datetime.fromisoformat(self.heard_at)).total_seconds()
        if seconds < 0:
            return (
                f"{missing}, and whatever {source} committed since it was last heard of, nobody knows when: the clock "
                f"of {target} was {-seconds:.0f} s later then than it is now"
            )
        return f"{missing}, and whatever {source} committed in the {seconds:.0f} s since it was last heard of"


def loss(target: Observation, *, synchronous: bool, beyond: Beyond | None, unread: str = "") -> Loss:
    """Return what would be lost if a standby took over now.

    Args:
        target: the standby.
        synchronous: whether every commit that counts waited for it.
        beyond: what the old primary wrote past what the standby has received, if that could be read.
        unread: why not, if that was tried.
    """
    if beyond is not None:
        return Loss(beyond["bytes"], len(beyond["transactions"]), target["heard_at"], target["clock"], unknown=False)
    received, heard = (lsn_bytes(target[key]) if target[key] else 0 for key in ("received", "heard_lsn"))
    heard_at, clock = target["heard_at"], target["clock"]
    return Loss(max(heard - received, 0), None, heard_at, clock, unknown=not synchronous, unread=unread)


def loss_problem(found: Loss, terms: Terms) -> str | None:
    """Return why a loss is not accepted, or None if it is."""
    if found.bytes > terms["max_data_loss"]:
        return f"{found.bytes} bytes would be lost, and at most {terms['max_data_loss']} are accepted (--max-data-loss)"
    if found.unknown and not terms["accept_unknown_loss"]:
        return "what would be lost is not known in full: read the old primary's WAL, or add --accept-unknown-loss"
    return None


def checks(
    source: Observation,
    target: Observation,
    found: Loss,
    terms: Terms,
    *,
    can_fence: bool,
    now: datetime,
) -> Iterator[Check]:
    """Return what a failover depends on, and whether it holds.

    Args:
        source: the old primary.
        target: the member that is to take over.
        found: what would be lost.
        terms: what is accepted.
        can_fence: whether a command is declared that makes certain that the old primary accepts no writes.
        now: the time.
    """
    old, new = source["name"], target["name"]
    if source["role"] == "primary":
        advice = f"it runs and answers: `harmony switchover --to {new}` loses nothing"
        yield Check(old, "problem", advice)
    else:
        yield Check(old, "ok", _state_of(source))
    if not target["role"]:
        yield Check(new, "problem", f"{target['state']}: {target['detail']}; a standby that runs is needed")
        return
    if target["role"] == "standby":
        yield Check(new, "ok", f"a running standby, with everything up to {target['received'] or target['lsn']}")
    elif source["state"] == "unreachable":  # Then it cannot be accepted, for which every member must answer.
        yield Check(new, "warning", f"a primary already, which somebody promoted; {old} cannot be asked what it lacks")
    else:
        advice = "a primary already; if somebody promoted it, `harmony accept` takes it as the active one"
        yield Check(new, "problem", advice)
        return
    yield fencing(source, terms, can_fence=can_fence)
    problem = loss_problem(found, terms)
    words = found.words(old, new)
    yield Check("loss", "problem" if problem else "warning" if found.bytes or found.unknown else "ok",
                f"{words}: {problem}" if problem else words)  # fmt: skip
    # No reason to have nobody lead. Until it leads, none can be made for it; then they can, for it alone.
    for check in certificates(target, now):
        late = check.verdict == "problem"
        yield replace(check, verdict="warning", found=f"{check.found}, once {new} leads") if late else check


def _state_of(seen: Observation | EndpointObservation) -> str:
    return f"{seen['state']}: {seen['detail']}" if seen["detail"] else seen["state"]


def standing(source: Observation, target: Observation, *, leads: bool) -> list[Check]:
    """Return whether a standby can take the place of another one, of which it was a standby.

    Args:
        source: the one that is lost.
        target: the one that takes its place.
        leads: whether the first one is still known as the one that leads.
    """
    old, new = source["name"], target["name"]
    if source["role"] == "primary":
        first = Check(old, "problem", "it accepts writes, and its pair follows another: promoted by hand? Stop it")
    elif source["state"] == "running" and not leads:
        first = Check(old, "warning", "a running standby, which is stopped: it is known as lost")
    elif source["state"] == "running":
        runs = "its roles cannot be moved while it runs: `harmony rejoin` has it follow again; or stop it first"
        first = Check(old, "problem", f"a running standby, which leads in a pair that follows; {runs}")
    else:
        first = Check(old, "ok", _state_of(source))
    if target["role"] == "standby":
        return [first, Check(new, "ok", "a running standby")]
    state = f"{target['state']} {target['role']} {target['detail']}".strip()
    return [first, Check(new, "problem", f"{state}; a standby that runs is needed")]


def still_follows(outer: Roles | None, heard: Sequence[Roles | None]) -> list[Check]:
    """Return whether a pair certainly still follows another one, as a member of it was told.

    Args:
        outer: what the member was told of the pair around.
        heard: what the servers of the other pair were told; None of those that do not answer.
    """
    assert outer is not None, "a pair that follows is in another one"
    told = told_of_pair({str(number): roles for number, roles in enumerate(heard)}, outer["pair"])
    if not told:
        silent = "nobody of the other pair can be asked whether this one was made active meanwhile: have one answer"
        return [Check(outer["pair"], "problem", silent)]
    newest = max([outer, *(level for level, _ in told.values())], key=newness)
    if newest["active"] == outer["me"]:
        moved = f"this pair is the active one there at epoch {newest['epoch']}: its server that is lost was the primary"
        return [Check(outer["pair"], "problem", f"{moved}. Fail the pair around over, or start that server")]
    return [Check(outer["pair"], "ok", "the other pair is the active one there")]


def fencing(source: Observation, terms: Terms, *, can_fence: bool) -> Check:
    """Return whether it is certain, or will be, that the old primary accepts no writes."""
    old = source["name"]
    if source["state"] == "absent":
        return Check("fencing", "ok", f"{old} has no server any more: there is nothing to fence")
    if host_answers(source):
        return Check("fencing", "ok", f"{old} answers: it is made certain that it accepts no writes")
    if terms["fenced"]:
        return Check("fencing", "warning", f"{terms['fenced']}; clients that still reach {old} are not protected")
    if can_fence:
        return Check("fencing", "ok", f"{old} does not answer; its fence_command is run")
    found = (
        f"{old} does not answer, and may accept writes: {source['detail']}. Make certain that it does not (its machine "
        f"off, or its network cut for good), then add --fenced-by-me {old}; it stays marked until it has rejoined"
    )
    return Check("fencing", "problem", found)


def around(outer: Roles, heard: Mapping[str, Roles | None], vouched: Collection[str]) -> Check:
    """Return whether a pair, a member of which is to take over, is certainly still active in the pair around it.

    Args:
        outer: what the pair was told of the one around it.
        heard: by name, what the servers outside the pair were told; None of those that do not answer.
        vouched: those of them of whom an operator has made certain that they accept no writes.
    """
    told = told_of_pair(heard, outer["pair"])
    newest = max([outer, *(level for level, _ in told.values())], key=newness)
    if newest["active"] != outer["me"]:
        moved = f"its {newest['active']} is active at epoch {newest['epoch']}, not this pair: have this one rejoin it"
        return Check(outer["pair"], "problem", moved)
    speaking = [level for level, speaks in told.values() if speaks]
    if len(told) == len(heard) or any(level["me"] != outer["me"] for level in speaking):
        return Check(outer["pair"], "ok", f"this pair is the active one there, as {' and '.join(told)} know it, too")
    silent = [name for name in heard if name not in told]
    words = " and ".join(silent)
    if not set(silent) - set(vouched):
        return Check(outer["pair"], "warning", f"--fenced-by-me {words}: an operator vouches that they take no writes")
    doubt = (
        f"{words} do not answer, and may have been made active there. Make certain that they accept no writes, then "
        f"add {' '.join(f'--fenced-by-me {name}' for name in silent)}"
    )
    return Check(outer["pair"], "problem", doubt)


def endpoint_checks(
    seen: Mapping[str, EndpointObservation], source: Observation, terms: Terms, *, can_fence: bool
) -> Iterator[Check]:
    """Return of each endpoint whether it can be told to lead nobody to the old primary any more.

    One that cannot counts as not fenced, unless it is certain otherwise that the old primary accepts no writes.

    Args:
        seen: of every endpoint, by its name.
        source: the old primary.
        terms: what is accepted.
        can_fence: as in `checks`.
    """
    old = source["name"]
    for name, endpoint in seen.items():
        untold = f"{name} cannot be told ({_state_of(endpoint)}), and may lead clients to {old}"
        if endpoint["state"] in {"running", "stopped"}:
            yield Check("endpoint", "ok", f"{name} can be told ({endpoint['state']}): it leads away from {old} first")
        elif terms["fenced"]:
            yield Check("endpoint", "warning", f"{untold}: {terms['fenced']}")
        elif can_fence and not host_answers(source):
            yield Check("endpoint", "warning", f"{untold}, whose fence_command is run")
        else:
            found = (
                f"{untold}, so that counts as not fenced. Have it answer, or make certain that {old} accepts no "
                f"writes, then add --fenced-by-me {old}"
            )
            yield Check("endpoint", "problem", found)


def next_step(operation: Operation, source: Facts, target: Facts) -> Step:
    """Return what is to be done next in a failover.

    Args:
        operation: as it was recorded.
        source: the old primary.
        target: the member that takes over.

    Raises:
        SiteError: there is nothing that could safely be done: what was seen, and what to do, is in the message.
    """
    if target.role == "primary":
        if operation["given_up"]:
            raise SiteError(promoted_by_somebody(operation, source, target))
        if not _is_fenced(operation, source):
            return Step.FENCE
        # One that was promoted by hand is elected afterwards: what is lost by that is to be accepted all the same.
        return Step.ELECT if knows_less(operation, target) else Step.SETTLE
    if operation["given_up"]:
        return taking_back(operation, source, target)
    if not _is_fenced(operation, source):
        return Step.FENCE
    return Step.PROMOTE if target.epoch == operation["epoch"] else Step.ELECT


def _is_fenced(operation: Operation, source: Facts) -> bool:
    """Tell whether the old primary accepts no writes, and never will by a start alone.

    One that runs may: a standby may have been asked to be the primary, and that goes on by itself.
    """
    # Whoever vouches for it may not know that its server only hangs, or recovers: one that can be stopped is.
    is_vouched = bool(operation["terms"] and operation["terms"]["fenced"])
    tried = operation["stage"] == "vouched"
    if source.state == "stopped":
        # One that is half-made cannot start at all; one that could not be marked, somebody has made certain of.
        return source.left_as != "primary" or (is_vouched and tried)
    if source.state == "unreachable":
        return is_vouched and (tried or not source.host_answers) and source.role != "primary"
    return source.state == "absent"
