"""Waiting for a condition, always with a deadline, and failing with what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from harmony_pulumi.errors import SiteError

V = TypeVar("V")


def wait_for(
    what: str,
    look: Callable[[], V],
    good: Callable[[V], bool],
    *,
    deadline: float,
    advice: str | Callable[[V], str],
    words: Callable[[V], object] = str,
    interval: float = 0.05,
) -> V:
    """Look until what is seen is good, and return it.

    Args:
        what: what is waited for, as a noun phrase.
        look: returns what is to be seen now.
        good: tells whether that is what is waited for.
        deadline: seconds from now.
        advice: what the reader of the failure should do next; or returns that for what was seen last.
        words: says what was seen, for the failure.
        interval: seconds between the first looks; later ones are up to 1 s apart.

    Raises:
        SiteError: the deadline passed; the message says what was seen last.
    """
    end = time.monotonic() + deadline
    while True:
        seen = look()
        if good(seen):
            return seen
        left = end - time.monotonic()
        if left <= 0:
            then = advice if isinstance(advice, str) else advice(seen)
            msg = f"{what}: not within {deadline:g} s; last seen: {words(seen)}. {then}"
            raise SiteError(msg)
        time.sleep(min(interval, left))
        interval = min(interval * 1.3, 1.0)
