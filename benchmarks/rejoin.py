"""How long a dead primary takes until it streams again, by size: by pg_rewind, and by a full copy. By hand."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import common
from benchmarks.pairs.base import FAILURES, running, wait_for
from benchmarks.pairs.by_hand import Floor
from benchmarks.writer import Writer
from harmony_pulumi.hosts.postgresql.server import Binaries

_ROW = 1000
"""Bytes."""
_DEADLINE = 600.0
"""Seconds, for each act."""


def measure(gigabytes: float, binaries: Binaries) -> dict[str, Any]:
    """Return the seconds that each way takes, and the size of the database in bytes; or why that failed.

    The primary dies while a client writes, so that it has what the new one has not; between the two ways nothing but
    what the client writes changes.
    """
    with common.workspace() as folder:
        pair = Floor(folder / "floor", binaries)
        try:
            pair.start()
            _fill(pair, gigabytes)
            size = int(pair.sql("SELECT pg_database_size('postgres')"))
            dead = pair.leader
            with Writer(pair.conninfo()):
                time.sleep(1)
                processes = pair.kill()
                pair.fail_over()
                time.sleep(1)
            wait_for("the end of what was killed", lambda: not running(processes), deadline=60)
            rewind = _timed(pair, dead, pair.rewind)
            pair.run(pair.program("pg_ctl"), "stop", "-D", str(pair.data(dead)), "-m", "fast", "-s", "-w")
            copy = _timed(pair, dead, pair.copy)
            found: dict[str, Any] = {"database bytes": size, "rewind": round(rewind, 2), "copy": round(copy, 2)}
        except FAILURES as error:
            found = {"failed": f"{error}"[:2000]}
        finally:
            pair.stop()
    print(f"rejoin of {gigabytes:g} GB: {found}", file=sys.stderr, flush=True)
    return found


def report(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the result as a Markdown table."""
    rows = [
        [
            f"{row['database bytes'] / 1e9:.2f} GB",
            f"{row['rewind']:.1f} s",
            f"{row['copy']:.1f} s",
            f"{row['copy'] / row['rewind']:.1f}",
        ]
        for row in found.values()
        if "failed" not in row
    ]
    head = ["rejoin, until it streams", "pg_rewind", "pg_basebackup", "copy to rewind"]
    failed = [f"- a rejoin of {size} GB failed: {row['failed']}\n" for size, row in found.items() if "failed" in row]
    return "".join([common.table(head, rows), *failed])


def _timed(pair: Floor, member: str, act: Callable[[str], None]) -> float:
    began = time.monotonic()
    act(member)
    pair.follow(member)
    wait_for(f"the {member} streaming", lambda: pair.is_followed(pair.leader), deadline=_DEADLINE, interval=0.02)
    return time.monotonic() - began


def _fill(pair: Floor, gigabytes: float) -> None:
    """Fill the database; the standby has it, too, and both have it in their last checkpoint."""
    filler = f"ALTER TABLE filler ALTER value SET STORAGE PLAIN; INSERT INTO filler SELECT repeat('x', {_ROW - 28})"
    pair.sql("CREATE TABLE filler (value text)")
    rows = int(gigabytes * 1e9 / _ROW)
    while rows > 0:
        pair.sql(f"{filler} FROM generate_series(1, {min(rows, 200_000)})", timeout=_DEADLINE)
        rows -= 200_000
    end = pair.sql("SELECT pg_current_wal_lsn()")
    replayed = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
    wait_for("the standby having it all", lambda: pair.sql(replayed, pair.follower) == "t", deadline=_DEADLINE)
    pair.sql("CHECKPOINT", timeout=_DEADLINE)
    pair.sql("CHECKPOINT", pair.follower, timeout=_DEADLINE)
