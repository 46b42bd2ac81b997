"""The steps by which a member comes back as a standby of the one that leads. Pure. Knows no topology, no Pulumi.

It is rewound if it can be, and else copied anew. What it alone has is put aside before, and never deleted here.
"""

from __future__ import annotations

from collections.abc import Sequence

from harmony_pulumi.capabilities.site import Away, Fork, Operation
from harmony_pulumi.errors import SiteError
from harmony_pulumi.orchestration.failover import lsn_bytes
from harmony_pulumi.orchestration.switchover import ANSWERING, Facts, Step


def next_step(operation: Operation, source: Facts, target: Facts) -> Step:
    """Return what is to be done next in a rejoin.

    Args:
        operation: as it was recorded.
        source: the member that comes back.
        target: the member that leads.

    Raises:
        SiteError: there is nothing that could be done: what was seen, and what to do, is in the message.
    """
    if target.role != "primary":
        msg = f"{target.name} is to be followed by {source.name}, and is no running primary: it is {target.state}"
        raise SiteError(msg)
    if source.streams:
        return Step.SETTLE
    if source.state not in ANSWERING:
        msg = (
            f"{source.name} cannot rejoin: it is {source.state}. Run this again once it answers"
            if source.state == "unreachable"
            else f"{source.name} has no server to rejoin with; `pulumi up` makes one"
        )
        raise SiteError(msg)
    if operation["stage"] == "copied" and "standby" in {source.role, source.left_as}:
        return Step.FOLLOW
    if operation["stage"] == "rewinding" and source.state == "stopped" and source.left_as != "primary":
        # Cut off in the rewind, or after it: it has its leader's WAL by now, so what it alone had cannot be told again.
        return Step.REWIND if source.left_as and source.ended_cleanly else Step.CLONE
    if not source.left_as or not source.ended_cleanly:  # One that runs is not left yet.
        return Step.RETIRE
    if operation["clone"]:  # All of it is kept then; and one that was rewound has its leader's WAL by now.
        return Step.CLONE
    return Step.REWIND if operation["stage"] == "archived" else Step.ARCHIVE


def place_of(lsn: str, history: Sequence[Fork]) -> Fork:
    """Return on which timeline of a history an LSN is. A standby that streamed from a server is on its history."""
    ends = ((one["timeline"], one["lsn"]) for one in history)
    return Fork(timeline=next(on for on, end in ends if not end or lsn_bytes(lsn) < lsn_bytes(end)), lsn=lsn)


def fork_of(mine: Sequence[Fork], theirs: Sequence[Fork]) -> Fork | None:
    """Return where a server's history leaves another's; None if it does not: what it has, the other may have, too.

    Equal numbers of timelines are not equal histories: two servers promoted apart have the same. They are the same
    timeline if they begin at the same place.

    Args:
        mine: the timelines of the one.
        theirs: of the other.

    Raises:
        SiteError: they do not even begin alike.
    """
    common: Fork | None = None
    for one, other in zip(mine, theirs, strict=False):
        if one["timeline"] != other["timeline"]:
            break
        ends = [end["lsn"] for end in (one, other) if end["lsn"]]
        common = Fork(timeline=one["timeline"], lsn=min(ends, key=lsn_bytes, default=""))
        if one["lsn"] != other["lsn"]:
            break
    if common is None:
        msg = f"the histories do not begin alike: {list(mine)} and {list(theirs)}; this is another database"
        raise SiteError(msg)
    return common if common["lsn"] else None


def begun_apart(mine: Sequence[Fork], theirs: Sequence[Fork], away: Away | None) -> Fork | None:
    """Return from where on a server's timeline is another one than another's of the same number; None if it is not.

    A rewind goes by numbers alone, and would take them for the same one.

    Where both begin at the same place, the histories are equal, too. But on a later timeline than that which it was
    left on, a member that was left behind is by its own promotion.

    Args:
        mine: the timelines of the server.
        theirs: of the one that leads.
        away: how a failover left the server behind; None if none did.
    """
    if mine[-1]["timeline"] != theirs[-1]["timeline"]:
        return None
    if fork := fork_of(mine, theirs):
        return fork
    if away is None or mine[-1]["timeline"] <= away["timeline"]:
        return None
    return Fork(timeline=away["timeline"], lsn=away["fork"])
