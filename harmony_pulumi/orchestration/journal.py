"""The record of what is done: a line as it happens, and a JSON object a line for machines.

Knows no topology, no capability and no Pulumi: it is given where to show and where to write.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from harmony_pulumi.errors import SiteError

Show = Callable[[str], None]
Write = Callable[[str], None]


def operator(operation: str) -> str:
    """Return who does this, for others who find it under way: operation, user, host, process and time."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return f"{operation} by {getpass.getuser()}@{platform.node()}, process {os.getpid()}, since {when}"


def in_order(records: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of several records as one, each once, the oldest first. Pure.

    Whoever wrote them may have had another clock than who wrote before: what a record has later is later. Only between
    lines that no record has both of, their times decide.
    """
    order: list[str] = []
    for record in records:
        order = _merged(order, list(dict.fromkeys(record)))
    return order


def _merged(one: Sequence[str], other: Sequence[str]) -> list[str]:
    shared = set(one) & set(other)
    found: dict[str, None] = {}
    ends = [list(reversed(one)), list(reversed(other))]
    while ends[0] and ends[1]:
        first, second = ends[0][-1], ends[1][-1]
        if first in found:
            ends[0].pop()
        elif second in found:
            ends[1].pop()
        elif (first in shared) != (second in shared):  # What both have waits until both have come to it.
            found[ends[first in shared].pop()] = None
        else:
            found[ends[_time(second) < _time(first)].pop()] = None
    return [*dict.fromkeys([*found, *reversed(ends[0]), *reversed(ends[1])])]


def _time(line: str) -> str:
    try:
        return str(json.loads(line)["time"])
    except (ValueError, TypeError, KeyError):  # Its writer died as it wrote.
        return ""


class Journal:
    """Records the steps of one operation on one subject.

    What is recorded before there is a place to write it, or while that fails, is kept and written later.
    Must not be given a secret: texts and details are shown and stored as they are.
    """

    def __init__(self, subject: str, operation: str, show: Show) -> None:
        """Make the record of `operation` (create, update, ...) on `subject`."""
        self.subject = subject
        self.operation = operation
        self._show = show
        self._write: Write | None = None
        self._waiting: list[str] = []

    def write_to(self, write: Write) -> None:
        """Write to `write`, which takes whole lines, from here on, and first what waited for it."""
        self._write = write
        if self._waiting:
            write("".join(self._waiting))
            self._waiting = []

    @contextmanager
    def writing_to(self, write: Write) -> Generator[None]:
        """Write to `write` for as long as the block lasts, then to where it was written before."""
        before = self._write
        self.write_to(write)
        try:
            yield
        finally:
            self._write = before

    @contextmanager
    def step(self, name: str, text: str, **detail: Any) -> Generator[None]:
        """Record a step before it acts and after: done, or failed with the reason, which is raised on."""
        self.note(text, step=name, state="started", **detail)
        began = time.monotonic()
        try:
            yield
        except BaseException as error:
            self._record(name, "failed", text, seconds=_seconds_since(began), error=str(error), **detail)
            raise
        self._record(name, "done", text, seconds=_seconds_since(began), **detail)

    def note(self, text: str, *, step: str = "note", state: str = "note", **detail: Any) -> None:
        """Show a line and record it."""
        self._show(f"{self.subject}: {text}")
        self._record(step, state, text, **detail)

    def progress(self, step: str, text: str, **detail: Any) -> None:
        """Show and record how far a long step is."""
        self.note(text, step=step, state="progress", **detail)

    def _record(self, step: str, state: str, text: str, **detail: Any) -> None:
        event = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "subject": self.subject,
            "operation": self.operation,
            "step": step,
            "state": state,
            "text": text,
            **detail,
        }
        self._waiting.append(json.dumps(event, separators=(",", ":"), default=str) + "\n")
        if self._write is not None:
            with suppress(SiteError):  # What is done must not depend on where it is recorded: that may be what failed.
                self.write_to(self._write)


def _seconds_since(began: float) -> float:
    return round(time.monotonic() - began, 3)
