"""The report as people see it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console

from harmony_pulumi.cli.deployed import Resources
from harmony_pulumi.cli.report import Seen, report
from harmony_pulumi.cli.status_view import view
from tests.cli.sites import endpoint, replica, seen, slot
from tests.cli.states import one_pair

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def shown(*observations: Seen, verdict_first: bool = False, endpoints: Sequence[Seen] = ()) -> str:
    (database,) = Resources.of(one_pair()).databases()
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(view(report([(database, observations)], now=NOW, endpoints=[endpoints]), verdict_first=verdict_first))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip()


HEALTHY = """\
✓ orders on FailoverTopology orders

                 montreal  ● active           toronto
 ──────────────────────────────────────────────────────────────────
  deployed as    primary                      replica
  role           primary                      standby
  state          running                      running
  endpoint       montreal.example:5432        toronto.example:5432
  version        17.2                         17.2
  timeline       1                            1
  LSN            0/3000148 written            0/3000148 replayed
  source         -                            montreal
  replication    -                            streaming, async
  lag            -                            2 kB, 0.2 s
  TLS            -                            TLSv1.3
  slots          harmony_toronto_orders       -
                   16 MB of 10 GB, reserved
  certificates   server 334 days              server 334 days

✓ the database is healthy"""


def test_a_healthy_pair_is_a_table_of_its_members_side_by_side() -> None:
    source = seen(
        "montreal", replicas=[replica("toronto")], slots=[slot("harmony_toronto_orders", retained_bytes=2**24)]
    )
    assert shown(source, seen("toronto", "standby")) == HEALTHY


ENDPOINTS = """\
 endpoints      kingston                ottawa
 ────────────────────────────────────────────────────────────
  state          running, paused         stopped
  address        kingston.example:6432   -
  leads to       montreal                dublin.example:5432
  clients        3, 1 waiting            -
  PgBouncer      1.25.0                  -
  certificates   server 334 days         -
                 ca 3287 days
"""


def test_endpoints_are_a_table_of_their_own() -> None:
    gone = {"name": "ottawa", "state": "stopped", "points_to": "dublin.example:5432"}
    members = seen("montreal", replicas=[replica("toronto")]), seen("toronto", "standby")
    text = shown(*members, endpoints=[endpoint("kingston", paused=True), gone])
    print(text)
    assert ENDPOINTS.strip() in text
    assert "✗ orders: the endpoint on ottawa is stopped" in text


def test_the_lag_of_a_stopped_replica_is_said_to_be_unknown_and_why() -> None:
    text = shown(seen("montreal"), {"name": "toronto", "state": "stopped", "detail": "no server process"})
    assert "unknown: stopped" in text
    assert "✗ orders/toronto is stopped: no server process" in text
    assert text.endswith("✗ 1 of 1 database not healthy")


def test_a_cut_off_standby_says_how_old_its_last_commit_is() -> None:
    source = {"name": "montreal", "state": "unreachable", "detail": "another machine"}
    assert "unknown; last commit 30 s ago" in shown(source, seen("toronto", "standby", receiver=""))


def test_where_the_end_may_be_cut_off_the_verdict_comes_first() -> None:
    assert shown(seen("montreal"), seen("toronto"), verdict_first=True).startswith("✗ orders: montreal and toronto")
