"""Taking over an existing server as primary: shown first, done in place, given back if it cannot be."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Generator
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
    free_port,
    os_user,
    postmaster,
    stop_postmaster,
)
from tests.e2e.test_roles_cli import harmony

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

    def configure(self, lines: str) -> None:
        """Add to its configuration, and restart it."""
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(lines)
        stop_postmaster(self.data, signal.SIGINT)
        self.start()

    def sql(self, text: str, database: str = "postgres", user: str = "postgres") -> str:
        where = ("-h", str(self.data.parent), "-p", str(self.port), "-U", user, "-d", database)
        return self.run("psql", "-XAtq", *where, "-c", text).strip()


@pytest.fixture
def old(stack: Stack) -> Generator[Old]:
    folder = stack.folder / "old"
    folder.mkdir()
    shutil.chown(folder, os_user())
    port = free_port()
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


def test_roles_move_and_a_crashed_primary_is_rewound_also_where_its_write_ahead_log_is_a_link(
    stack: Stack, old: Old
) -> None:
    stop_postmaster(old.data, signal.SIGINT)
    elsewhere = old.data.parent / "wal"
    (old.data / "pg_wal").rename(elsewhere)
    (old.data / "pg_wal").symlink_to(elsewhere)
    old.start()
    adopting(stack, old)
    stack.up()
    for name in ("toronto", "montreal"):
        assert f"{name} becomes the primary" in harmony(stack, "switchover", "--to", name, "--yes")
    stop_postmaster(old.data, signal.SIGKILL)
    shown = harmony(stack, "failover", "--to", "toronto", "--max-data-loss", "0", "--yes")
    assert "toronto becomes the primary" in shown
    shown = harmony(stack, "rejoin", "--yes")
    assert "montreal is rewound" in shown
    assert "copied" not in shown
    assert (old.data / "pg_wal").is_symlink()
    outputs = stack.outputs()
    with connection(stack, outputs["primary_uri"], outputs["ca_certificate"]) as reader:
        assert reader.execute("SELECT count(*) FROM kept").fetchone() == (100,)
        assert reader.execute("SHOW work_mem").fetchone() == ("7MB",)


def test_a_taking_over_that_is_killed_is_finished_by_the_next_run_and_loses_no_setting(stack: Stack, old: Old) -> None:
    stop_postmaster(old.data, signal.SIGINT)
    elsewhere = old.data.with_name("shop.conf")
    shutil.copy(old.data / "postgresql.conf", elsewhere)
    shutil.chown(elsewhere, os_user())
    (old.data / "postgresql.conf").write_text("work_mem = '5MB'\n")
    options = f"-c config_file={elsewhere} -c max_connections=77"
    old.run("pg_ctl", "start", "-D", str(old.data), "-l", f"{old.data}.log", "-s", "-w", "-o", options)
    adopting(stack, old)
    process = stack.start("up", "--yes", "--skip-preview")
    try:
        opts = old.data / "postmaster.opts"
        eventually(lambda: str(elsewhere) not in opts.read_text(), "the server under harmony's configuration")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    stack.run("cancel", "--yes", expect=None)
    stack.up()
    outputs = stack.outputs()
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        assert client.execute("SHOW work_mem").fetchone() == ("7MB",)
        assert client.execute("SHOW max_connections").fetchone() == ("77",)
        assert client.execute("SELECT count(*) FROM kept").fetchone() == (100,)


def test_a_server_that_cannot_be_taken_over_is_started_again_as_it_was(stack: Stack, old: Old) -> None:
    old.sql("ALTER SYSTEM SET password_encryption = 'md5'")
    adopting(stack, old, 'settings={"shared_preload_libraries": "no_such_library"}')
    shown = stack.up(expect=1)
    assert "no_such_library" in shown
    assert "starting it again as it was" in shown
    assert old.sql("SHOW password_encryption") == "md5"
    assert "password_encryption = 'md5'" in (old.data / "postgresql.auto.conf").read_text()
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


ALONE = """
site = LinuxHostTopology("montreal")
database = site.deploy_postgresql("orders", PostgreSQLConfig({config}))
pulumi.export("uri", database.uri)
pulumi.export("ca_certificate", database.ca_certificate)
"""


def test_the_preview_lists_all_that_changes_and_the_rest_stays_as_it_was(stack: Stack, old: Old) -> None:
    make_certificate(old)
    old.configure(
        "wal_level = logical\nmax_wal_senders = 2\nmax_replication_slots = 2\n"
        "max_connections = 150\nmax_worker_processes = 20\nmax_locks_per_transaction = 96\n"
        "max_prepared_transactions = 5\nssl = on\nssl_cert_file = 'old.crt'\nssl_key_file = 'old.key'\n"
    )
    old.sql("ALTER SYSTEM SET work_mem = '11MB'")
    old.sql("ALTER SYSTEM SET maintenance_work_mem = '99MB'")
    old.sql("ALTER SYSTEM SET password_encryption = 'md5'")
    old.sql("SELECT pg_reload_conf()")
    old.sql("SELECT pg_create_logical_replication_slot('changes', 'pgoutput')", "orders")
    old.sql("CREATE ROLE alice LOGIN PASSWORD 'alice-had-it'")
    old.sql("ALTER DATABASE orders OWNER TO alice")
    old.sql("ALTER ROLE orders NOLOGIN")
    adopting(stack, old, 'settings={"work_mem": "8MB"}')

    shown = stack.preview()
    folder = f"/{stack.project}/dev/montreal-orders"
    for line in (
        "ssl_cert_file: old.crt becomes ",
        f"{folder}/tls/server.crt",
        "certificate: of a new authority",
        "wal_log_hints: off becomes on",
        "max_wal_senders: 2 becomes 10",
        "max_replication_slots: 2 becomes 10",
        "max_slot_wal_keep_size: -1 becomes 10GB",
        f"{folder}/run comes first, the rest stays",
        "password_encryption: md5 becomes scram-sha-256",
        "cluster_name: empty becomes montreal",
        "work_mem: 11MB becomes 8MB",
        "postgresql.auto.conf: without password_encryption, work_mem, which would beat the above",
        f"{folder}/kept/postgresql.auto.conf",
        "make roles harmony_replication",
        "role orders: NOLOGIN becomes LOGIN",
        "role orders: it has no password, and gets one",
        "database orders: owner alice becomes orders",
    ):
        assert line in shown
    for unchanged in ("wal_level", "max_connections", "hot_standby", "ssl: ", "listen_addresses"):
        assert unchanged not in shown.partition("plan ")[2].partition("]\n")[0]

    shown = stack.up()
    assert "database orders: owner alice becomes orders" in shown
    # Its clients on the old socket go on, its own settings hold, and so does what is declared.
    assert old.sql("SELECT count(*) FROM kept", "orders", "orders") == "100"
    outputs = stack.outputs()
    own = {
        "max_connections": "150",
        "max_worker_processes": "20",
        "max_locks_per_transaction": "96",
        "max_prepared_transactions": "5",
        "max_wal_senders": "10",
        "wal_level": "logical",
        "work_mem": "8MB",
        "maintenance_work_mem": "99MB",
    }
    for uri in ("uri", "replica_uri"):
        with connection(stack, outputs[uri], outputs["ca_certificate"]) as client:
            found = dict(client.execute("SELECT name, current_setting(name) FROM pg_settings").fetchall())
            assert {name: found[name] for name in own} == own
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        assert client.execute("SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical'").fetchall()
    stack.up("--expect-no-changes")


def make_certificate(old: Old) -> None:
    """Make a certificate of its own, in its data directory."""
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    argv += ["-keyout", f"{old.data}/old.key", "-out", f"{old.data}/old.crt"]
    subprocess.run(as_os_user(*argv), capture_output=True, check=True, timeout=60, cwd="/")


def test_the_password_of_an_owner_that_is_there_is_never_replaced_unasked(stack: Stack, old: Old) -> None:
    old.sql("ALTER ROLE orders PASSWORD 'clients-have-it'")
    before = old.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'orders'")
    config = f'databases=["orders"], adopt="{old.data}"'
    stack.program(ALONE.format(config=config))
    shown = stack.up(expect=1)
    assert "passwords.orders" in shown
    assert "the role orders is in the server already and has a password" in shown

    # One that does not run cannot be asked before; it is given back as it was.
    stop_postmaster(old.data, signal.SIGINT)
    assert "not looked at" in stack.preview()
    assert "the role orders is in the server already and has a password" in stack.up(expect=1)
    assert postmaster(old.data) is None
    old.start()
    assert old.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'orders'") == before

    stack.program(ALONE.format(config=f'{config}, passwords={{"orders": "clients-have-it"}}'))
    assert "role orders: its password becomes the one in `passwords`" in stack.preview()
    stack.up()
    outputs = stack.outputs()
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        assert client.execute("SELECT count(*) FROM kept").fetchone() == (100,)

    # The same holds for an owner that is declared later, and for what ALTER SYSTEM has set meanwhile.
    old.sql("CREATE ROLE alice LOGIN PASSWORD 'alice-had-it'")
    old.sql("CREATE DATABASE more OWNER alice")
    config = config.replace('["orders"]', '["orders", Database(name="more", owner="alice")]')
    config += ', passwords={"orders": "clients-have-it"}, settings={"work_mem": "8MB"}'
    stack.program(ALONE.format(config=config))
    old.sql("ALTER SYSTEM SET work_mem = '11MB'")
    shown = stack.up(expect=1)
    assert "ALTER SYSTEM has set work_mem" in shown
    old.sql("ALTER SYSTEM RESET work_mem")
    assert "the role alice is in the server already and has a password" in stack.up(expect=1)
    stack.program(ALONE.format(config=config.replace('-it"}', '-it", "alice": "alice-had-it"}')))
    stack.up()
    assert old.sql("SHOW work_mem") == "8MB"


def test_a_server_with_tablespaces_gets_no_replica_on_its_own_machine(stack: Stack, old: Old) -> None:
    place = old.data.parent / "fast"
    place.mkdir()
    shutil.chown(place, os_user())
    old.sql(f"CREATE TABLESPACE fast LOCATION '{place}'")
    adopting(stack, old)
    shown = stack.up(expect=1)
    assert f"has tablespaces in {place}" in shown
    assert old.sql("SHOW ssl") == "off"
