"""A client that commits a row each 2 ms, reconnects at once where it fails, and remembers what was acknowledged.

`Writer` runs it as a process of its own, so that what else the benchmark does in its process delays no commit.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import psycopg
from psycopg.conninfo import make_conninfo

from benchmarks import common

PERIOD = 0.002
"""Seconds between two commits, and between two attempts to connect."""
_DEADLINE = 300.0
TABLE = "written"
_SERVED = "served\n"


class Written(NamedTuple):
    """What a client remembers."""

    acknowledged: Mapping[str, float]
    """When each value was acknowledged, by the monotonic clock, in order."""
    failed: Sequence[float]
    """When each statement failed that was sent and not acknowledged; the client connected anew then."""
    errors: Mapping[str, int]
    """What the client was told, and how often."""


def longest_gap(moments: Sequence[float], since: float) -> float:
    """Return the longest time in seconds between two acknowledged commits of which the later was after a moment."""
    return max((later - earlier for earlier, later in pairwise(moments) if later > since), default=float("inf"))


def served_again(moments: Sequence[float], failed: Sequence[float]) -> float:
    """Return the moment of the first commit that was acknowledged after the first failure; endless if there is none."""
    return next((moment for moment in moments if failed and moment > failed[0]), float("inf"))


def missing(acknowledged: Mapping[str, float], found: Sequence[str]) -> list[str]:
    """Return the values that were acknowledged and are not there."""
    there = set(found)
    return [value for value in acknowledged if value not in there]


class Writer:
    """The client, from the beginning of the block to its end."""

    def __init__(self, conninfo: Mapping[str, str]) -> None:
        """Connect by these parameters of libpq, which no argument list may hold: a password is among them."""
        self._conninfo = conninfo
        self.prefix = f"{secrets.token_hex(4)}-"

    def __enter__(self) -> Self:
        """Start it, and return once a commit of its is acknowledged.

        Raises:
            SystemExit: none ever was.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.writer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=common.REPOSITORY,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([make_conninfo(**self._conninfo), self.prefix]) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout is not None
        if self._process.stdout.readline() != _SERVED:
            self.__exit__()
            raise SystemExit("the client was never served")
        return self

    def stop(self) -> Written:
        """End it; return what it remembers."""
        said, _ = self._process.communicate("", 30)
        return Written(*json.loads(said))

    def __exit__(self, *_: object) -> None:
        """End it whatever happened."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def write(conninfo: str, prefix: str, stopped: threading.Event) -> Written:
    """Be the client, until it is stopped, at most for five minutes."""
    acknowledged: dict[str, float] = {}
    failed, errors = list[float](), Counter[str]()
    connection: psycopg.Connection[Any] | None = None
    due = time.monotonic()
    end = due + _DEADLINE
    while not stopped.wait(max(0.0, due - time.monotonic())) and time.monotonic() < end:
        due = max(due, time.monotonic() - PERIOD) + PERIOD  # What was missed is not made up for.
        value = f"{prefix}{len(acknowledged) + len(failed)}"
        try:
            connection = connection or psycopg.connect(conninfo, autocommit=True)
        except psycopg.Error as error:
            errors[str(error).strip()[:300]] += 1
            continue
        try:
            connection.execute(f"INSERT INTO {TABLE} VALUES (%s)", (value,))
            acknowledged[value] = time.monotonic()
            if len(acknowledged) == 1:
                sys.stdout.write(_SERVED)
                sys.stdout.flush()
        except psycopg.Error as error:
            failed.append(time.monotonic())
            errors[str(error).strip()[:300]] += 1
            connection.close()
            connection = None
    return Written(acknowledged, failed, errors)


def _main() -> None:
    conninfo, prefix = json.loads(sys.stdin.readline())
    stopped = threading.Event()

    def stop_at_end_of_input() -> None:
        sys.stdin.read()
        stopped.set()

    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    json.dump(write(conninfo, prefix, stopped), sys.stdout)


if __name__ == "__main__":
    _main()
