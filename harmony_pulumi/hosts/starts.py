"""Starts of several servers or endpoints of a host, some of which wait for an answer. Knows not what it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from harmony_pulumi.errors import SiteError
from harmony_pulumi.orchestration.wait import wait_for

T = TypeVar("T")


def start_all(
    roots: Sequence[str],
    start: Callable[[str], T],
    *,
    waits: Callable[[T], bool],
    would_wait: Callable[[str], bool],
    wait: float,
) -> dict[str, T | SiteError]:
    """Start what is in folders; return how each is then, by its folder, or why it is not started.

    Args:
        roots: the folders.
        start: starts what is in one, and returns how it is then.
        waits: tells whether that is to wait for an answer.
        would_wait: asks, and tells whether the answer is still missing. Changes nothing.
        wait: seconds to ask for, again and again, for those that wait.
    """

    def started(root: str) -> T | SiteError:
        try:
            return start(root)
        except SiteError as error:
            return error

    def is_answered(root: str) -> bool:
        try:
            return not would_wait(root)
        except SiteError:  # What is wrong, the start will say.
            return True

    def waiting() -> list[str]:
        return [root for root, outcome in found.items() if not isinstance(outcome, SiteError) and waits(outcome)]

    def ask_again() -> list[str]:
        for root in waiting():
            if is_answered(root):
                found[root] = started(root)
        return waiting()

    found = {root: started(root) for root in roots}
    if wait and waiting():
        with suppress(SiteError):  # They still wait, as is found.
            wait_for("the answers", ask_again, lambda left: not left, deadline=wait, advice="")
    return found
