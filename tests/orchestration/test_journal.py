"""The record of what is done."""

from __future__ import annotations

import json

import pytest

from harmony_pulumi.errors import SiteError
from harmony_pulumi.orchestration.journal import Journal, in_order


class Log:
    """A place to write that fails while it is full."""

    def __init__(self) -> None:
        self.text = ""
        self.full = False

    def write(self, lines: str) -> None:
        if self.full:
            raise SiteError("no space left")
        self.text += lines

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(event["step"], event["state"]) for event in map(json.loads, self.text.splitlines())]


def test_a_step_is_recorded_before_and_after_it_acts() -> None:
    log, shown = Log(), list[str]()
    journal = Journal("orders", "switchover", shown.append)
    journal.write_to(log.write)
    with journal.step("demote", "montreal steps down"):
        assert log.events == [("demote", "started")]
    assert log.events == [("demote", "started"), ("demote", "done")]
    assert shown == ["orders: montreal steps down"]


def test_a_step_that_fails_is_recorded_with_its_reason_and_raises() -> None:
    log = Log()
    journal = Journal("orders", "switchover", lambda _: None)
    journal.write_to(log.write)
    with pytest.raises(SiteError, match="out of luck"), journal.step("demote", "montreal steps down"):
        raise SiteError("out of luck")
    assert log.events == [("demote", "started"), ("demote", "failed")]
    assert "out of luck" in log.text


def test_what_is_recorded_before_there_is_a_place_is_written_there() -> None:
    log = Log()
    journal = Journal("orders", "switchover", lambda _: None)
    journal.note("first")
    journal.write_to(log.write)
    journal.note("second")
    assert [json.loads(line)["text"] for line in log.text.splitlines()] == ["first", "second"]


def test_a_record_that_cannot_be_written_stops_nothing_and_is_written_later() -> None:
    log = Log()
    journal = Journal("orders", "switchover", lambda _: None)
    journal.write_to(log.write)
    log.full = True
    with journal.step("demote", "montreal steps down"):
        pass
    assert log.events == []
    log.full = False
    journal.note("there is space again")
    assert log.events == [("demote", "started"), ("demote", "done"), ("note", "note")]


def test_what_is_recorded_for_a_while_elsewhere_is_there_alone() -> None:
    log, other = Log(), Log()
    journal = Journal("orders", "switchover", lambda _: None)
    journal.write_to(log.write)
    with journal.writing_to(other.write):
        journal.note("inside")
    journal.note("outside")
    assert [json.loads(each.text)["text"] for each in (other, log)] == ["inside", "outside"]


def test_how_far_a_step_is_is_shown_and_recorded() -> None:
    log, shown = Log(), list[str]()
    journal = Journal("orders", "rejoin", shown.append)
    journal.write_to(log.write)
    journal.progress("clone", "half of it")
    assert log.events == [("clone", "progress")]
    assert shown == ["orders: half of it"]


def line(name: str, hour: int) -> str:
    return json.dumps({"time": f"2030-01-01T{hour:02}:00:00", "step": name})


def test_records_are_read_as_one_in_the_order_in_which_each_was_written_whatever_the_clocks_said() -> None:
    ahead, both, later, here, there = line("a", 20), line("b", 9), line("c", 10), line("h", 8), line("t", 7)
    assert in_order([[here], [there]]) == [there, here]
    assert in_order([[ahead, both, later], [both, later]]) == [ahead, both, later]
    assert in_order([[both, later], [ahead, both, later]]) == [ahead, both, later]
    assert in_order([[here, both, later], [there, both]]) == [there, here, both, later]
    assert in_order([[both, ahead], [both, there]]) == [both, there, ahead]
    assert in_order([[both, later], [later, both]]) in ([both, later], [later, both])
    # One that has lines in another order than the others holds nobody up by that.
    earlier = line("c", 5)
    assert in_order([[both, earlier, here], [earlier, both, ahead]]) == [earlier, both, here, ahead]
    assert in_order([[here, "cut o"], [here, later]]) == [here, "cut o", later]
    assert in_order([[here, here], [there]]) == [there, here]
    assert in_order([[], [here]]) == [here]
    assert in_order([]) == []
