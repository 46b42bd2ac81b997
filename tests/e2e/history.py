"""A history checker: clients that append unique values all the while, and whether a database has what it acknowledged.

What is checked, of the attempts that clients remember and the rows that are found: every acknowledged value is there
exactly once, in its client's order; nothing is there that nobody wrote, or that was refused; and no two servers took
writes at once, as timelines and LSNs tell.
"""

from __future__ import annotations

import heapq
import secrets
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import psycopg

from tests.e2e.conftest import eventually

_TABLE = """
CREATE TABLE IF NOT EXISTS history (place bigserial, client int, sequence int, value text,
  system_identifier text, timeline int, lsn pg_lsn)
"""
_APPEND = """
INSERT INTO history (client, sequence, value, system_identifier, timeline, lsn)
SELECT %s, %s, %s, (SELECT system_identifier FROM pg_control_system()),
  ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int, pg_current_wal_insert_lsn()
RETURNING timeline, (lsn - '0/0')::bigint, pg_current_xact_id()::text::bigint
"""
_HASH = """
SELECT count(*), md5(coalesce(string_agg(h::text, '|' ORDER BY place, value), '')) FROM history AS h
"""
_OPTIONS = "-c statement_timeout=15000"

Outcome = Literal["acknowledged", "failed", "unknown"]


@dataclass(frozen=True)
class Attempt:
    """One insert, as its client remembers it."""

    client: int
    sequence: int
    value: str
    outcome: Outcome
    """`failed` if the server said so and lived on: it is not there. `unknown`: it may be there."""
    began: float
    ended: float
    position: tuple[int, int] = (0, 0)
    """Timeline and LSN at the insert, of one that was acknowledged."""
    xid: int = 0
    """Its transaction, of one that was acknowledged."""


@dataclass(frozen=True)
class Row:
    """What is found of one insert; rows are in the order in which the server took them."""

    client: int
    sequence: int
    value: str


@dataclass(frozen=True)
class Account:
    """What a check found."""

    problems: list[str]
    acknowledged: int
    failed: int
    unknown: int
    longest_gap: float
    """Seconds between two acknowledged commits, of any client."""
    missing: list[Attempt]
    """What was acknowledged, or may have been committed, and is not there."""

    def __str__(self) -> str:
        """Return it in one line."""
        counts = f"{self.acknowledged} acknowledged, {self.failed} failed, {self.unknown} unknown"
        return f"{counts}, longest gap {self.longest_gap * 1000:.0f} ms, {len(self.problems)} problems"


def account(attempts: Sequence[Attempt], rows: Sequence[Row]) -> Account:
    """Compare what clients remember with what is found."""
    outcomes = Counter(attempt.outcome for attempt in attempts)
    moments = sorted(attempt.ended for attempt in attempts if attempt.outcome == "acknowledged")
    there = {row.value for row in rows}
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    return Account(
        [*_missing_or_many(attempts, rows), *_out_of_order(rows), *_two_writers(attempts)],
        outcomes["acknowledged"],
        outcomes["failed"],
        outcomes["unknown"],
        max(gaps, default=0.0),
        [attempt for attempt in attempts if attempt.outcome != "failed" and attempt.value not in there],
    )


def _missing_or_many(attempts: Sequence[Attempt], rows: Sequence[Row]) -> list[str]:
    found = Counter(row.value for row in rows)
    outcomes = {attempt.value: attempt.outcome for attempt in attempts}
    problems = [
        f"lost: {attempt.value} of client {attempt.client}, at {attempt.position}"
        for attempt in attempts
        if attempt.outcome == "acknowledged" and not found[attempt.value]
    ]
    for value, count in found.items():
        if count > 1:
            problems.append(f"{count} times: {value}")
        if value not in outcomes:
            problems.append(f"written by nobody: {value}")
        elif outcomes[value] == "failed":
            problems.append(f"refused, and there: {value}")
    return problems


def _out_of_order(rows: Sequence[Row]) -> list[str]:
    problems: list[str] = []
    last: dict[int, int] = {}
    for row in rows:
        if (before := last.get(row.client, -1)) > row.sequence:
            problems.append(f"out of order: {row.value} of client {row.client}, {row.sequence} after {before}")
        last[row.client] = row.sequence
    return problems


def _two_writers(attempts: Sequence[Attempt]) -> list[str]:
    """Tell who wrote behind another: what began after another had ended is later in the one history, too."""
    problems: list[str] = []
    ended: list[tuple[float, tuple[int, int], str]] = []
    furthest, of = (0, 0), ""
    acknowledged = (attempt for attempt in attempts if attempt.outcome == "acknowledged")
    for attempt in sorted(acknowledged, key=lambda attempt: attempt.began):
        while ended and ended[0][0] < attempt.began:
            _, position, value = heapq.heappop(ended)
            furthest, of = max((furthest, of), (position, value))
        if attempt.position <= furthest:
            problems.append(f"two writers: {attempt.value} at {attempt.position}, after {of} at {furthest}")
        heapq.heappush(ended, (attempt.ended, attempt.position, attempt.value))
    return problems


class Clients:
    """Clients that append, each on a connection of its own, until they are stopped. Bounded in number and in time."""

    def __init__(
        self,
        uris: Sequence[str],
        ca: Path,
        *,
        most: int = 20_000,
        deadline: float = 300,
        pause: float = 0.005,
        pooled: bool = False,
    ) -> None:
        """Make them: one for each uri, with an authority to trust; at most so many inserts each, for so many seconds.

        `pause` is between the inserts of one client, in seconds. `pooled`: the uris are of an endpoint.
        """
        self.attempts: list[Attempt] = []
        self.errors: Counter[str] = Counter()
        """What clients were told while they were not served."""
        self._ca, self._most, self._deadline, self._pause = str(ca), most, deadline, pause
        self._uris = uris
        # Transaction pooling takes no options, and below PgBouncer 1.21 no prepared statements.
        self._pooled: dict[str, Any] = {"prepare_threshold": None} if pooled else {"options": _OPTIONS}
        self._stopped = threading.Event()
        self._run = secrets.token_hex(4)
        self._threads = [
            threading.Thread(target=self._append, args=(client, uri), name=f"client {client}")
            for client, uri in enumerate(uris)
        ]

    def __enter__(self) -> Self:
        """Start them, and return once each was served."""
        with self._connect(self._uris[0]) as connection:
            connection.execute(_TABLE)
        for thread in self._threads:
            thread.start()
        self.wait_until_served()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop them."""
        self.stop()

    def __len__(self) -> int:
        """Return how many they are."""
        return len(self._threads)

    def stop(self) -> None:
        """Have them end what they are at, and wait for that."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} hangs"

    def wait_until_served(self, deadline: float = 60) -> None:
        """Return once every client had one more insert acknowledged, and nothing stopped it for good."""
        since = time.monotonic()

        def served() -> bool:
            recent = {a.client for a in self.attempts[-1000:] if a.outcome == "acknowledged" and a.began > since}
            return len(recent) == len(self._uris)

        eventually(served, f"every client to be served; they were told {self.errors.most_common(3)}", deadline)

    def check(self, uri: str) -> Account:
        """Stop them, and compare what they remember with what is found at a uri."""
        self.stop()
        with self._connect(uri) as connection:
            rows = connection.execute(
                "SELECT client, sequence, value FROM history WHERE value LIKE %s ORDER BY place", (f"{self._run}-%",)
            ).fetchall()
        return account(self.attempts, [Row(*row) for row in rows])

    def insist(self, primary: str, standby: str, *, lossless: bool = True) -> Account:
        """Stop them; nothing may be lost at the final primary, unless that is so, and both members must be equal."""
        found = self.check(primary)
        problems = [problem for problem in found.problems if lossless or not problem.startswith("lost: ")]
        assert not problems, f"{found}: {problems[:10]}"
        assert found.acknowledged > 0
        equal = [hash_of(primary, self._ca)]
        eventually(
            lambda: hash_of(standby, self._ca) == equal[0],
            f"the standby to have the rows of the primary, {equal[0]}",
        )
        return found

    def _connect(self, uri: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(uri, sslrootcert=self._ca, connect_timeout=5, autocommit=True, **self._pooled)

    def _append(self, client: int, uri: str) -> None:
        end = time.monotonic() + self._deadline
        connection: psycopg.Connection[tuple[Any, ...]] | None = None
        waited: list[str] = []  # A commit that did not wait for its replica is none that counts: it says so.
        sequence = 0
        while not self._stopped.wait(self._pause) and sequence < self._most and time.monotonic() < end:
            if connection is None:
                try:
                    connection = self._connect(uri)
                except psycopg.Error as error:
                    self.errors[str(error).strip()[:200]] += 1
                    continue
                connection.add_notice_handler(lambda notice: waited.append(str(notice.message_primary)))
            value = f"{self._run}-{client}-{sequence}"
            waited.clear()
            began, outcome, position, xid = time.monotonic(), "acknowledged", (0, 0), 0
            try:
                row = connection.execute(_APPEND, (client, sequence, value)).fetchone()
                assert row is not None
                position, xid = (row[0], row[1]), row[2]
                outcome = "unknown" if waited else "acknowledged"
            except psycopg.Error as error:
                self.errors[str(error).strip()[:200]] += 1
                outcome = "unknown" if connection.broken or not error.sqlstate else "failed"
                connection.close()
                connection = None
            ended = time.monotonic()
            self.attempts.append(Attempt(client, sequence, value, outcome, began, ended, position, xid))  # type: ignore[arg-type]
            sequence += 1
        if connection is not None:
            connection.close()


def hash_of(uri: str, ca: str) -> tuple[Any, ...] | None:
    """Return how many rows there are at a uri, and a hash of them all; None while it does not answer."""
    try:
        with psycopg.connect(uri, sslrootcert=ca, connect_timeout=5) as connection:
            return connection.execute(_HASH).fetchone()
    except psycopg.OperationalError:
        return None
