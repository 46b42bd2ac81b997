"""The steps of a planned role change: which one is next, told from what was seen. Pure. Knows no topology, no Pulumi.

Nothing is lost: the member that steps down ends cleanly, and the other takes over only once it has replayed the very
last record of it. Until then, whatever goes wrong, the old primary is put back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from harmony_pulumi.capabilities.site import Observation, Operation
from harmony_pulumi.errors import SiteError


class Step(StrEnum):
    """One act; the runner records it before and after. In the order in which a switchover takes them."""

    PREPARE = "prepare"
    """The target keeps WAL for the source, and the source writes a checkpoint, so that it will stop fast."""
    DEMOTE = "demote"
    """The source stops cleanly, and is a standby from now on: its last record is the token."""
    VERIFY = "verify"
    """The target has replayed the token; then both are told the new epoch, the source first."""
    PROMOTE = "promote"
    FOLLOW = "follow"
    """The source follows the target."""
    SETTLE = "settle"
    """The source no longer keeps WAL for the target; the operation is over."""
    GIVE_UP = "give-up"
    """The source is not as it was left, and nobody was promoted: the switchover is taken back."""
    WITHDRAW = "withdraw"
    """Given up: both are told once more, with a still higher epoch, that the source is active; the target first."""
    REINSTATE = "reinstate"
    """Given up: the source is the primary again."""
    CLOSE = "close"
    """Given up: the operation is over."""
    ACCEPT = "accept"
    """The target was promoted by hand, and has all that the source wrote: both are told that it is active."""
    FENCE = "fence"
    """Failover: the source accepts no writes, and will not by a start alone."""
    ELECT = "elect"
    """Failover: the target is told the new epoch; the source, too, if it answers, and before."""
    RETIRE = "retire"
    """Rejoin: the source is stopped, and where it crashed, has recovered."""
    ARCHIVE = "archive"
    """Rejoin: what the source alone has is put aside, and its transactions are listed."""
    REWIND = "rewind"
    """Rejoin: what the source alone has is taken back."""
    CLONE = "clone"
    """Rejoin: the source is copied from the target anew; what it had is kept aside."""


ANSWERING = ("running", "stopped")


def host_answers(seen: Observation) -> bool:
    """Tell whether a site can be asked, even if its server hangs or recovers: it can be stopped then."""
    return bool(seen["endpoint"])


@dataclass(frozen=True)
class Facts:
    """What the choice of the next step depends on, of one member."""

    name: str
    state: str
    role: str
    left_as: str
    ended_cleanly: bool
    epoch: int | None
    """What it was told last, 0 if nothing; None if that is not known."""
    streams: bool = False
    """Of a standby: whether it is connected to its source."""
    host_answers: bool = False
    """Whether its site can be asked, even if its server does not answer."""

    @classmethod
    def of(cls, seen: Observation) -> Facts:
        """Take the facts from what was seen."""
        told = seen["roles"]
        return cls(
            seen["name"],
            seen["state"],
            seen["role"],
            seen["left_as"],
            seen["ended_cleanly"],
            told["epoch"] if told else None if seen["state"] == "unreachable" else 0,
            seen["receiver"] == "streaming",
            host_answers(seen),
        )


def next_step(operation: Operation, source: Facts, target: Facts) -> Step:
    """Return what is to be done next.

    Args:
        operation: as it was recorded.
        source: the member that steps down.
        target: the member that takes over.

    Raises:
        SiteError: there is nothing that could safely be done: what was seen, and what to do, is in the message.
    """
    if target.role == "primary":
        return _after_promotion(operation, source, target)
    if operation["given_up"]:
        return taking_back(operation, source, target)
    if target.epoch == operation["epoch"] == source.epoch:
        if "standby" in {source.role, source.left_as}:
            return Step.PROMOTE
        raise SiteError(unclear(source, target))  # It may have taken writes since its last record was looked for.
    if target.left_as == "primary":
        if source.role == "primary" and knows_less(operation, target):
            return Step.GIVE_UP
        raise SiteError(promoted_and_stopped(operation, source, target))
    if source.role == "primary":
        return Step.DEMOTE if operation["prepared"] else Step.PREPARE
    if source.ended_cleanly:
        return Step.VERIFY if operation["token"] and source.left_as == "standby" else Step.DEMOTE
    if source.state in ANSWERING and untold(operation, source, target):
        return Step.GIVE_UP
    raise SiteError(unclear(source, target))


def taking_back(operation: Operation, source: Facts, target: Facts) -> Step:
    """Return what is to be done next to take back an operation that has promoted nobody.

    Raises:
        SiteError: somebody else promoted the target.
    """
    if target.left_as == "primary" and source.role != "primary":
        raise SiteError(promoted_and_stopped(operation, source, target))
    if operation["epoch"] in {source.epoch, target.epoch}:
        return Step.WITHDRAW
    return Step.CLOSE if source.role == "primary" else Step.REINSTATE


def promoted_by_somebody(operation: Operation, source: Facts, target: Facts) -> str:
    """Return what to say where the target is a primary that nobody told to be one."""
    return (
        f"{target.name} is a primary, and not by this {operation['kind']}: somebody promoted it, and {source.name} is "
        f"{_words(source)}. If {target.name} is to stay, run `harmony accept`; then `harmony rejoin` has {source.name} "
        f"follow it, and keeps what that alone has"
    )


def promoted_and_stopped(operation: Operation, source: Facts, target: Facts) -> str:
    """Return what to say where the target was promoted by hand, and runs no more."""
    return (
        f"{target.name} is stopped and was a primary, not by this {operation['kind']}: somebody promoted it; "
        f"{source.name} is {_words(source)}. If {target.name} is to stay, start it, then run this again; if it cannot "
        f"be started, `harmony failover --to {source.name}` says what is lost by going on without it"
    )


def unclear(source: Facts, target: Facts) -> str:
    """Return why a switchover cannot go on where the members are not as they were left."""
    if target.left_as == "primary" and source.role == "primary":
        return f"{target.name} is stopped and was a primary: somebody promoted it"
    return (
        f"{source.name} was to step down and is {_words(source)}: it cannot be told whether {target.name} has all that "
        f"it acknowledged"
    )


def _after_promotion(operation: Operation, source: Facts, target: Facts) -> Step:
    if source.role == "primary":
        msg = (
            f"both {source.name} and {target.name} are primaries. Stop one of them now; the one that clients are to "
            f"keep stays. Then run `harmony accept`, and `harmony rejoin`"
        )
        raise SiteError(msg)
    if operation["given_up"]:
        raise SiteError(promoted_by_somebody(operation, source, target))
    if knows_less(operation, target):
        # Whether it has all that the source wrote is told from their WAL, where the source writes no more.
        if source.role == "standby" or source.ended_cleanly:
            return Step.ACCEPT
        raise SiteError(promoted_by_somebody(operation, source, target))
    if source.state in {"unreachable", "absent"}:
        msg = (
            f"{target.name} is active, and {source.name} cannot follow it: it is {source.state}. Run this again once "
            f"it is back"
        )
        raise SiteError(msg)
    # One that was started meanwhile, by hand say, is a standby that follows nobody.
    return Step.SETTLE if source.streams and source.epoch == operation["epoch"] else Step.FOLLOW


def after(step: Step, operation: Operation, source: Facts, target: Facts) -> tuple[Facts, Facts]:
    """Return the facts as a step that succeeded has made them, so that between two steps nobody must be asked.

    Clients wait meanwhile; each look at both sites would make their wait longer.
    """
    told = operation["epoch"]
    match step:
        case Step.DEMOTE:
            return replace(source, state="stopped", role="", left_as="standby", ended_cleanly=True), target
        case Step.VERIFY | Step.ACCEPT:
            return replace(source, epoch=told), replace(target, epoch=told)
        case Step.PROMOTE:
            return source, replace(target, role="primary")
        case Step.FOLLOW:
            running = replace(source, state="running", left_as="", ended_cleanly=False)
            return replace(running, role="standby", epoch=told, streams=True), target
        case Step.WITHDRAW:
            return replace(source, epoch=told + 1), replace(target, epoch=told + 1)
        case Step.REINSTATE:
            return replace(source, state="running", role="primary", left_as="", ended_cleanly=False), target
        case Step.ELECT:
            return replace(source, epoch=told if source.state in ANSWERING else None), replace(target, epoch=told)
        case Step.RETIRE | Step.REWIND | Step.CLONE:
            retired = replace(source, state="stopped", role="", left_as="standby", ended_cleanly=True, streams=False)
            return retired, target
        case Step.PREPARE | Step.SETTLE | Step.CLOSE | Step.GIVE_UP | Step.ARCHIVE | Step.FENCE:
            return source, target


def may_give_up(operation: Operation, source: Facts, target: Facts) -> bool:
    """Tell whether a step that failed leaves the way back open: nobody was promoted, and that is known.

    A promotion that was requested goes on by itself, so once both may have been told, it is not known of a target that
    runs. One that is stopped and was left as a standby has accepted no write, and starts as a standby.
    """
    if operation["kind"] == "rejoin" or "primary" in {target.role, target.left_as}:
        return False
    if operation["kind"] == "failover" and source.state not in ANSWERING:
        return False  # There is nobody to go back to.
    # The source must know, too, that what is taken back is to be withdrawn: the target may not answer by then.
    return untold(operation, source, target) or (target.left_as == "standby" and not knows_less(operation, source))


def untold(operation: Operation, source: Facts, target: Facts) -> bool:
    """Tell whether the target was certainly not told to lead.

    A target that answers says so itself. Else, in a switchover, the source does, which is told before; in a failover it
    may have been out of reach then.
    """
    if target.state in ANSWERING:
        return knows_less(operation, target)
    return operation["kind"] == "switchover" and knows_less(operation, source)


def knows_less(operation: Operation, facts: Facts) -> bool:
    """Tell whether a member was certainly not told the epoch of the operation. Of one that is not known, no."""
    return facts.epoch is not None and facts.epoch < operation["epoch"]


def _words(facts: Facts) -> str:
    if facts.state == "running":
        return f"a running {facts.role}"
    return f"{facts.state}, not cleanly" if facts.state == "stopped" and not facts.ended_cleanly else facts.state
