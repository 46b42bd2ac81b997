"""Taking over an existing server as primary: shown first, done in place, given back if it cannot be."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from harmony_pulumi.hosts.postgresql.server import Binaries
from tests.e2e.conftest import (
    Stack,
    as_os_user,
    connection,
    eventually,
    found_postgresql,
    os_user,
    postmaster,
    stop_postmaster,
)

pytestmark = pytest.mark.e2e


@dataclass
class Old:
    """A server that was made by hand: no TLS, its own settings, a table."""

    data: Path
    port: int
    binaries: Binaries

    def run(self, program: str, *args: str) -> str:
        argv = as_os_user(f"{self.binaries.path}/{program}", *args)
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60, cwd="/").stdout

    def start(self) -> None:
        self.run("pg_ctl", "start", "-D", str(self.data), "-l", f"{self.data}.log", "-s", "-w")

    def sql(self, text: str, database: str = "postgres") -> str:
        where = ("-h", str(self.data.parent), "-p", str(self.port), "-U", "postgres", "-d", database)
        return self.run("psql", "-XAtq", *where, "-c", text).strip()


@pytest.fixture
def old(stack: Stack) -> Generator[Old]:
    folder = stack.folder / "old"
    folder.mkdir()
    shutil.chown(folder, os_user())
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    server = Old(folder / "data", port, found_postgresql())
    server.run("initdb", "-D", str(server.data), "-U", "postgres", "--auth=trust")
    with (server.data / "postgresql.conf").open("a") as conf:
        conf.write(f"port = {port}\nunix_socket_directories = '{folder}'\nwork_mem = '7MB'\n")
    server.start()
    server.sql("CREATE ROLE orders LOGIN")
    server.sql("CREATE DATABASE orders OWNER orders")
    server.sql("CREATE TABLE kept AS SELECT generate_series(1, 100) AS value", "orders")
    server.sql("ALTER TABLE kept OWNER TO orders", "orders")
    try:
        yield server
    finally:
        stop_postmaster(server.data, signal.SIGINT)


def adopting(stack: Stack, old: Old, extra: str = "") -> None:
    stack.pair(f'adopt="{old.data}", {extra}')


def test_an_existing_server_becomes_the_primary_and_what_changes_is_shown_first(stack: Stack, old: Old) -> None:
    adopting(stack, old, 'settings={"max_connections": 130}')
    before = old.run("pg_controldata", "-D", str(old.data))
    shown = stack.preview()
    assert f"take over PostgreSQL {old.binaries.major} in {old.data}: a restart" in shown
    assert "ssl: off becomes on" in shown
    assert "max_connections: 100 becomes 130" in shown
    assert "work_mem" not in shown
    pid = postmaster(old.data)
    assert pid is not None

    shown = stack.up()
    assert "making an empty database" not in shown
    outputs = stack.outputs()
    assert stack.server("montreal")["data_directory"] == str(old.data)
    assert stack.server("montreal")["endpoint"]["port"] == old.port
    assert str(stack.server("montreal")["system_identifier"]) in before
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        assert client.execute("SELECT count(*) FROM kept").fetchone() == (100,)
        assert client.execute("SHOW work_mem").fetchone() == ("7MB",)
        assert client.execute("SHOW max_connections").fetchone() == ("130",)
    with connection(stack, outputs["replica_uri"], outputs["ca_certificate"]) as reader:
        assert reader.execute("SELECT count(*) FROM kept").fetchone() == (100,)
    # The old rules still hold for the old clients, and no old rule lets replication in.
    psycopg.connect(f"host=127.0.0.1 port={old.port} user=orders dbname=orders connect_timeout=10").close()
    with pytest.raises(psycopg.OperationalError, match="rejects replication"):
        psycopg.connect(f"host=127.0.0.1 port={old.port} user=postgres replication=true connect_timeout=10")

    stack.up("--expect-no-changes")
    stack.destroy()
    assert (old.data / "PG_VERSION").is_file()
    stack.up()
    assert stack.server("montreal")["system_identifier"] == stack.server("toronto")["system_identifier"]


def test_a_server_that_cannot_be_taken_over_is_started_again_as_it_was(stack: Stack, old: Old) -> None:
    adopting(stack, old, 'settings={"shared_preload_libraries": "no_such_library"}')
    shown = stack.up(expect=1)
    assert "no_such_library" in shown
    assert "starting it again as it was" in shown
    assert old.sql("SHOW work_mem") == "7MB"
    assert old.sql("SHOW ssl") == "off"
    adopting(stack, old)
    stack.up()
    outputs = stack.outputs()
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        assert client.execute("SELECT count(*) FROM kept").fetchone() == (100,)


def test_what_is_no_primary_is_refused_before_anything_is_done(stack: Stack, old: Old) -> None:
    stack.pair(f'adopt="{stack.folder}/nothing"')
    assert "is not a data directory of PostgreSQL" in stack.up(expect=1)
    (old.data / "standby.signal").touch()
    adopting(stack, old)
    assert "is that of a standby" in stack.up(expect=1)
    assert not stack.resources("PostgreSQLServer")
    assert postmaster(old.data) is not None
    (old.data / "standby.signal").unlink()
    eventually(lambda: old.sql("SELECT 1") == "1", "the old server to serve on")
