"""A logical subscriber goes on after the roles have moved: no row is missing, none is there twice. PostgreSQL 17."""

from __future__ import annotations

import secrets
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import PAIR, Stack, eventually, stop_postmaster, superuser
from tests.e2e.sampling import sampled
from tests.e2e.test_roles_cli import harmony
from tests.e2e.test_switchover import NAMES, active, ask, clients, home
from tests.e2e.test_versions import KEPT, SCRIPT

pytestmark = pytest.mark.e2e
MAJOR = "17"
SUBSCRIBER = """
LinuxHostTopology("ottawa").deploy_postgresql("feed", PostgreSQLConfig(databases=["feed"], version=17))
"""
TABLE = "history (place bigint, client int, sequence int, value text, system_identifier text, timeline int, lsn pg_lsn)"
ROWS = "SELECT count(*), md5(string_agg(h::text, '|' ORDER BY place, value)) FROM history h"
COPY = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'feed' AND synced AND NOT temporary"


@pytest.fixture(scope="session")
def binaries() -> Path:
    """Return the folder of the programs of PostgreSQL 17."""
    done = subprocess.run([SCRIPT, KEPT, MAJOR], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return KEPT / MAJOR / "bin"


def deploy(stack: Stack, replication: str, roles: str = "None") -> None:
    config = f'version={MAJOR}, replication="{replication}", settings={{"wal_level": "logical"}}'
    stack.program(PAIR.format(config=config, active=roles) + SUBSCRIBER)
    stack.up()


def at_subscriber(stack: Stack, sql: str) -> str:
    root, marker = next(found for found in stack.markers() if found[0].name == "ottawa-feed")
    return superuser(root, sql, marker["port"], "feed")


def at_publisher(stack: Stack, role: str, sql: str) -> str:
    root, port = home(stack, role)
    return superuser(root, sql, port, "orders")


def subscribe(stack: Stack) -> None:
    """Have the third server receive what is written to the pair, whichever member leads."""
    password = secrets.token_urlsafe(16)
    role = f"CREATE ROLE feeder LOGIN REPLICATION PASSWORD '{password}'; GRANT SELECT ON history TO feeder;"
    at_publisher(stack, "primary", f"{role} CREATE PUBLICATION feed FOR TABLE history")
    ports = ",".join(str(home(stack, role)[1]) for role in NAMES)
    words = f"host=localhost,localhost port={ports} dbname=orders user=feeder password={password} sslmode=require"
    at_subscriber(stack, f"CREATE TABLE {TABLE}")
    connection = f"CONNECTION '{words} target_session_attrs=read-write'"
    at_subscriber(stack, f"CREATE SUBSCRIPTION feed {connection} PUBLICATION feed")


@pytest.mark.parametrize("replication", sampled(["asynchronous", "synchronous"], 1))
def test_a_subscriber_goes_on_after_switchovers_there_and_back(stack: Stack, binaries: Path, replication: str) -> None:
    stack.env["PATH"] = f"{binaries}:{stack.env['PATH']}"
    deploy(stack, replication)
    with clients(stack) as running:
        subscribe(stack)
        shown = harmony(stack, "plan", "--to", "toronto", expect=1)
        assert "feed would not be on toronto: ALTER SUBSCRIPTION … SET (failover = true)" in shown
        for change in ("DISABLE", "SET (failover = true)", "ENABLE"):
            at_subscriber(stack, f"ALTER SUBSCRIPTION feed {change}")

        for epoch, leader in enumerate(("replica", "primary"), start=1):
            eventually(lambda there=leader: ask(stack, there, COPY) == "1", "a copy of the slot", 120)
            deploy(stack, replication, active(leader, epoch))
            running.wait_until_served()
            received = at_subscriber(stack, "SELECT count(*) FROM history")
            eventually(
                lambda before=received: int(at_subscriber(stack, "SELECT count(*) FROM history")) > int(before),
                "the subscriber to go on",
            )
            waits = ask(stack, leader, "SHOW synchronized_standby_slots")
            assert (waits != "") == (replication == "synchronous")
            assert waits in ask(
                stack, leader, "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'physical'"
            )
    rows = at_publisher(stack, "primary", ROWS)
    eventually(lambda: at_subscriber(stack, ROWS) == rows, "the subscriber to have every row once")


def test_a_subscriber_waits_for_no_replica_after_a_failover(stack: Stack, binaries: Path) -> None:
    stack.env["PATH"] = f"{binaries}:{stack.env['PATH']}"
    deploy(stack, "synchronous")
    with clients(stack) as running:
        subscribe(stack)
        for change in ("DISABLE", "SET (failover = true)", "ENABLE"):
            at_subscriber(stack, f"ALTER SUBSCRIPTION feed {change}")
        eventually(lambda: ask(stack, "replica", COPY) == "1", "a copy of the slot", 120)
        stop_postmaster(home(stack, "primary")[0] / "data", signal.SIGKILL)
        # What was written and not yet sent, nobody was told of: its commit waits for the standby.
        harmony(stack, "failover", "--to", "toronto", "--yes", "--max-data-loss", "100000")
        running.wait_until_served()
    rows = at_publisher(stack, "replica", ROWS)
    eventually(lambda: at_subscriber(stack, ROWS) == rows, "the subscriber to have every row once")
    harmony(stack, "rejoin", "--yes")
    eventually(lambda: ask(stack, "primary", COPY) == "1", "a copy of the slot on the one that rejoined", 120)
