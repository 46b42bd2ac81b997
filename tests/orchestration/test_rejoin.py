"""Where two histories part, and the choice of the next step of a rejoin."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Away, Fork
from harmony_pulumi.errors import SiteError
from tests.orchestration.code import Code
from tests.orchestration.test_roles import operation
from tests.orchestration.test_switchover import KINDS, OLD, facts


def history(*ends: str) -> list[Fork]:
    """Return the timelines from 1 on, each with its end; the last has none."""
    return [Fork(timeline=number, lsn=end) for number, end in enumerate((*ends, ""), 1)]


FORKS: list[tuple[list[Fork], list[Fork], Fork | None]] = [
    (history(), history(), None),
    (history("0/50"), history("0/50"), None),
    (history(), history("0/50"), Fork(timeline=1, lsn="0/50")),
    (history("0/50"), history(), Fork(timeline=1, lsn="0/50")),
    (history("0/50"), history("0/60"), Fork(timeline=1, lsn="0/50")),
    (history("0/F0"), history("1/0"), Fork(timeline=1, lsn="0/F0")),
    (history("0/50", "0/70"), history("0/50", "0/90"), Fork(timeline=2, lsn="0/70")),
    (history("0/50"), history("0/50", "0/90"), Fork(timeline=2, lsn="0/90")),
    (history("0/50", "0/70"), history("0/60", "0/70"), Fork(timeline=1, lsn="0/50")),
    ([Fork(timeline=1, lsn="0/50"), Fork(timeline=3, lsn="")], history("0/50"), Fork(timeline=1, lsn="0/50")),
]


@pytest.mark.parametrize(("mine", "theirs", "fork"), FORKS)
def test_a_history_leaves_another_where_they_end_their_last_common_timeline(
    code: Code, mine: list[Fork], theirs: list[Fork], fork: Fork | None
) -> None:
    assert code.rejoin.fork_of(mine, theirs) == fork
    assert code.rejoin.fork_of(theirs, mine) == fork


def test_a_place_is_on_the_timeline_that_had_not_ended_there(code: Code) -> None:
    known = history("0/50", "0/F0")
    for lsn, timeline in {"0/10": 1, "0/4F": 1, "0/50": 2, "0/EF": 2, "0/F0": 3, "1/0": 3}.items():
        assert code.rejoin.place_of(lsn, known) == Fork(timeline=timeline, lsn=lsn)


def test_histories_that_do_not_begin_alike_are_of_different_databases(code: Code) -> None:
    for mine, theirs in (([], history()), ([Fork(timeline=2, lsn="")], history())):
        with pytest.raises(SiteError, match="the histories do not begin alike"):
            code.rejoin.fork_of(mine, theirs)


def away(timeline: int) -> Away:
    return {"member": "primary", "timeline": timeline, "fork": "0/50", "fenced": "", "since": ""}


def test_equal_numbers_of_timelines_are_not_equal_timelines(code: Code) -> None:
    apart = code.rejoin.begun_apart
    assert apart(history("0/50"), history("0/60"), None) == Fork(timeline=1, lsn="0/50")
    assert apart(history("0/50", "0/70"), history("0/60", "0/70"), away(2)) == Fork(timeline=1, lsn="0/50")
    assert not apart(history("0/50"), history("0/50"), None)
    assert not apart(history(), history(), away(1))
    # Promoted apart at one place: only that the member was left behind on an earlier timeline tells.
    assert apart(history("0/48"), history("0/48"), away(1)) == Fork(timeline=1, lsn="0/50")
    assert not apart(history("0/48"), history("0/48"), away(2))
    assert not apart(history("0/50"), history("0/50"), away(2))
    # Other numbers: pg_rewind sees that.
    assert not apart(history(), history("0/50"), away(1))
    assert not apart(history("0/50", "0/60"), history("0/50"), away(1))


STREAMS, DEMOTED, RESTED = "a standby that streams", "stopped, standby, clean", "stopped, standby, not clean"
SITUATIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, STREAMS, "settle"),
    ({}, "a standby", "retire"),
    ({}, "a primary", "retire"),
    ({}, RESTED, "retire"),
    ({}, "stopped, primary, not clean", "retire"),
    ({}, "stopped, nothing, not clean", "retire"),
    ({}, "stopped, nothing, clean", "retire"),
    ({}, DEMOTED, "archive"),
    ({}, "stopped, primary, clean", "archive"),
    ({"stage": "archived"}, DEMOTED, "rewind"),
    ({"stage": "archived"}, "a primary", "retire"),
    ({"stage": "archived", "clone": "it must be"}, DEMOTED, "clone"),
    ({"clone": "it must be"}, DEMOTED, "clone"),
    ({"stage": "rewinding"}, DEMOTED, "rewind"),
    ({"stage": "rewinding"}, RESTED, "clone"),
    ({"stage": "rewinding"}, "stopped, nothing, not clean", "clone"),
    ({"stage": "rewinding"}, "stopped, nothing, clean", "clone"),
    ({"stage": "rewinding"}, "stopped, primary, not clean", "retire"),
    ({"stage": "rewinding"}, "stopped, primary, clean", "archive"),
    ({"stage": "rewinding"}, "a standby", "retire"),
    ({"stage": "rewinding"}, "a primary", "retire"),
    ({"stage": "rewinding"}, STREAMS, "settle"),
    ({"stage": "copied"}, RESTED, "follow"),
    ({"stage": "copied"}, "a standby", "follow"),
    ({"stage": "copied"}, STREAMS, "settle"),
    ({"stage": "copied"}, "a primary", "retire"),
    ({"stage": "copied"}, "stopped, primary, not clean", "retire"),
    ({"stage": "copied"}, "stopped, primary, clean", "archive"),
    ({"stage": "copied"}, "stopped, nothing, not clean", "retire"),
    ({}, "unreachable", "montreal cannot rejoin: it is unreachable. Run this again once it answers"),
    ({"stage": "copied"}, "unreachable", "montreal cannot rejoin: it is unreachable"),
    ({}, "absent", "montreal has no server to rejoin with; `pulumi up` makes one"),
]


def test_what_is_next_in_every_situation_that_a_rejoin_meets(code: Code) -> None:
    leader = facts(code, "toronto", "a primary", OLD)
    for done, kind, expected in SITUATIONS:
        try:
            begun = operation(kind="rejoin", **done)
            found = str(code.rejoin.next_step(begun, facts(code, "montreal", kind, OLD), leader))
        except SiteError as error:
            found = str(error)
        assert expected == found if " " not in expected else expected in found, (done, kind, found)


def test_nobody_rejoins_one_that_does_not_lead(code: Code) -> None:
    for source, target in product(KINDS, KINDS):
        if target != "a primary":
            with pytest.raises(SiteError, match="toronto is to be followed by montreal, and is no running primary"):
                code.rejoin.next_step(
                    operation(kind="rejoin"), facts(code, "montreal", source), facts(code, "toronto", target)
                )
