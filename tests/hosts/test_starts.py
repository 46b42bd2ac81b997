"""Starts of several at once, some of which wait for an answer, with nothing at hand that could be started."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql.boot import Home
from harmony_pulumi.hosts.starts import start_all


def test_those_that_wait_are_started_once_there_is_an_answer_and_the_others_once() -> None:
    calls: list[str] = []
    answers = iter([True, True, False])

    def start(root: str) -> str:
        calls.append(root)
        if root == "broken":
            raise SiteError("it is broken")
        return "runs" if root == "alone" or calls.count(root) > 1 else "waits"

    def would_wait(root: str) -> bool:
        calls.append(f"ask {root}")
        return next(answers)

    found = start_all(
        ["alone", "broken", "late"], start, waits=lambda said: said == "waits", would_wait=would_wait, wait=30
    )
    assert {root: str(outcome) for root, outcome in found.items()} == {
        "alone": "runs",
        "broken": "it is broken",
        "late": "runs",
    }
    assert calls == ["alone", "broken", "late", "ask late", "ask late", "ask late", "late"]


def test_one_that_cannot_be_asked_any_more_says_so_by_its_start() -> None:
    outcomes = iter(["waits", "gone"])

    def start(_root: str) -> str:
        if (said := next(outcomes)) == "gone":
            raise SiteError("its folder is gone")
        return said

    def would_wait(_root: str) -> bool:
        raise SiteError("its folder is gone")

    (outcome,) = start_all(["x"], start, waits=lambda said: said == "waits", would_wait=would_wait, wait=30).values()
    assert str(outcome) == "its folder is gone"


def test_nobody_is_asked_again_unless_that_is_wanted_and_not_for_longer() -> None:
    asked: list[str] = []

    def would_wait(root: str) -> bool:
        asked.append(root)
        return True

    for wait in (0, 0.01):
        assert start_all(["x"], lambda _: "waits", waits=bool, would_wait=would_wait, wait=wait) == {"x": "waits"}
        assert bool(asked) == bool(wait)


def test_a_folder_of_servers_folders_is_told_from_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="or it is not whole"):
        Home.at(str(tmp_path))
    (tmp_path / "montreal-orders").mkdir()
    (tmp_path / "montreal-orders/harmony.json").write_text("{}")
    with pytest.raises(SiteError, match=r"one that has servers' folders in it: `harmony start .*/[*]`"):
        Home.at(str(tmp_path))
