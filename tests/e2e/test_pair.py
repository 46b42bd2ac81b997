"""A failover pair on this machine, from one `pulumi up`: what a user gets, seen as users see it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.e2e.conftest import Stack, connection, eventually, parent_of, port_of, postmaster, superuser
from tests.e2e.secret_values import (
    assert_secrets_are_all_there,
    leaked,
    secrets_of,
    watched_arguments,
    written_below,
)

pytestmark = pytest.mark.e2e


def test_one_up_makes_a_pair_that_streams_and_outlives_the_cli(stack: Stack) -> None:
    stack.pair()
    shown = stack.up()
    for step in ("making an empty database", "copying the data from", "copied", "waiting until it streams"):
        assert step in shown
    outputs = stack.outputs()
    ca = outputs["ca_certificate"]

    with connection(stack, outputs["uri"], ca) as client:
        assert client.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        client.execute("CREATE TABLE kept (value int)")
        client.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
    with connection(stack, outputs["replica_uri"], ca) as reader:
        eventually(
            lambda: (
                reader.execute("SELECT to_regclass('kept')").fetchone() != (None,)
                and reader.execute("SELECT count(*) FROM kept").fetchone() == (1000,)
            ),
            "1000 rows on the replica",
        )
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            reader.execute("INSERT INTO kept VALUES (0)")

    for name in ("montreal", "toronto"):
        pid = postmaster(Path(stack.server(name)["data_directory"]))
        assert pid is not None
        assert parent_of(pid) == 1, "its parent is init, not the plugin"

    assert "7 unchanged" in stack.up("--expect-no-changes")
    assert "7 unchanged" in stack.refresh()
    stack.preview("--expect-no-changes")

    assert outputs["lag"].keys() == {"toronto"}
    events = [json.loads(line) for line in Path(outputs["event_log"]).read_text().splitlines()]
    assert [e["step"] for e in events if e["state"] == "done"] == [
        "prepare",
        "initdb",
        "start",
        "populate",
        "streaming",
    ]
    assert {"time", "subject", "operation", "step", "state", "text", "seconds"} <= set(events[-1])


def test_replication_is_by_certificate_over_tls_and_everything_else_is_refused(stack: Stack, tmp_path: Path) -> None:
    stack.pair()
    stack.up()
    outputs = stack.outputs()
    ca, uri = outputs["ca_certificate"], outputs["primary_uri"]
    (tmp_path / "ca.crt").write_text(ca)
    seen = superuser(
        Path(stack.server("montreal")["root"]),
        "SELECT r.application_name, r.state, s.ssl, s.version, s.client_dn FROM pg_stat_replication r "
        "JOIN pg_stat_ssl s USING (pid)",
        port_of(uri),
    )
    assert seen == "toronto|streaming|t|TLSv1.3|/CN=harmony_replication"

    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        psycopg.connect(uri.replace("verify-full", "disable"), connect_timeout=10)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(uri, password="wrong", sslrootcert=str(tmp_path / "ca.crt"), connect_timeout=10)
    with pytest.raises(psycopg.OperationalError, match="requires a valid client certificate"):
        psycopg.connect(
            uri,
            connect_timeout=10,
            user="harmony_replication",
            replication="true",
            sslrootcert=str(tmp_path / "ca.crt"),
        )
    # The database's owner is a good client, and still no replica.
    with pytest.raises(psycopg.OperationalError, match="rejects replication connection"):
        psycopg.connect(uri, connect_timeout=10, replication="true", sslrootcert=str(tmp_path / "ca.crt"))


def test_the_multi_host_uri_finds_the_primary_and_names_no_path(stack: Stack) -> None:
    stack.pair()
    stack.up()
    outputs = stack.outputs()
    assert "sslrootcert" not in outputs["uri"]
    assert "target_session_attrs=read-write" in outputs["uri"]
    first, second = port_of(outputs["primary_uri"]), port_of(outputs["replica_uri"])
    swapped = (
        outputs["uri"].replace(f":{first},", ":X,").replace(f":{second}/", f":{first}/").replace(":X,", f":{second},")
    )
    assert swapped != outputs["uri"]
    with connection(stack, swapped, outputs["ca_certificate"]) as client:
        assert client.info.port == first


@pytest.mark.parametrize("config", ["", 'passwords={"orders": "correct horse battery"}'], ids=["generated", "declared"])
def test_no_secret_is_in_the_state_the_logs_the_display_or_an_argument_list(stack: Stack, config: str) -> None:
    stack.pair(config)
    with watched_arguments() as arguments:
        shown = stack.preview() + stack.up() + stack.refresh()
        made = secrets_of(stack)
        stack.pair(f'settings={{"work_mem": "8MB", "max_connections": 150}}, replication="synchronous", {config}')
        shown += stack.preview()
        updated = stack.up()
        shown += updated + stack.refresh()
    assert "3 updated" in updated, updated
    outputs = stack.outputs()
    if config:
        assert "correct%20horse%20battery" in outputs["uri"]
    secrets = {**made, **secrets_of(stack)}
    assert_secrets_are_all_there(secrets, "montreal", "toronto")
    for uri in ("uri", "primary_uri", "replica_uri"):
        assert urlsplit(outputs[uri]).password in secrets.values()
    assert outputs["certs"]["client_key"].splitlines()[1] in secrets.values()

    logs = "".join(written_below(root / "log") for root, _ in stack.markers())
    assert "restarting" in logs
    state = written_below(stack.folder / "state") + stack.run("stack", "export")
    assert "ciphertext" in state
    for text in (shown, logs, state):
        assert not leaked(secrets, text)

    # It has seen what is most likely to be given a password or a key.
    for program in ("initdb", "pg_basebackup", "psql", "pg_ctl"):
        assert [line for line in arguments if re.search(rf"(^|[/ ]){program} ", line)], program
    assert not leaked(secrets, "\n".join(arguments))


def test_what_an_argument_list_holds_is_seen() -> None:
    with watched_arguments() as arguments:
        process = subprocess.Popen(["sh", "-c", "read line", "sh", "hunter2"], stdin=subprocess.PIPE)
        try:
            eventually(lambda: leaked({"password": "hunter2"}, "\n".join(arguments.copy())), "the argument to be seen")
        finally:
            process.communicate(timeout=30)


def test_synchronous_replication_is_on_once_the_pair_is_up(stack: Stack) -> None:
    stack.pair('replication="synchronous"')
    stack.up()
    outputs = stack.outputs()
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        assert client.execute("SHOW synchronous_standby_names").fetchone() == ('FIRST 1 ("toronto")',)
        client.execute("CREATE TABLE kept (value int)")
    stack.pair('replication="asynchronous"')
    assert "synchronous" in stack.preview()
    stack.up()
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        assert client.execute("SHOW synchronous_standby_names").fetchone() == ("",)


def test_many_pairs_on_one_machine_go_up_at_once(stack: Stack) -> None:
    stack.program(
        """
primary, replica = LinuxHostTopology("montreal"), LinuxHostTopology("toronto")
site = FailoverTopology("site", primary=primary, replica=replica)
for name in ("a", "b", "c"):
    database = site.deploy_postgresql(name, PostgreSQLConfig(databases=[name]))
    pulumi.export(name, {"uri": database.uri, "ca": database.ca_certificate})
"""
    )
    stack.up()
    outputs = stack.outputs()
    ports = set[int]()
    for name in ("a", "b", "c"):
        with connection(stack, outputs[name]["uri"], outputs[name]["ca"]) as client:
            assert client.info.dbname == name
            ports.add(client.info.port)
    assert len(ports) == 3
    stack.up("--expect-no-changes")


def test_a_pair_of_pairs_streams_from_one_to_all(stack: Stack) -> None:
    stack.program(
        """
east = FailoverTopology("east", primary=LinuxHostTopology("montreal"), replica=LinuxHostTopology("toronto"))
west = FailoverTopology("west", primary=LinuxHostTopology("calgary"), replica=LinuxHostTopology("vancouver"))
site = FailoverTopology("orders", primary=east, replica=west)
database = site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))
pulumi.export("uri", database.uri)
pulumi.export("ca_certificate", database.ca_certificate)
"""
    )
    stack.up()
    outputs = stack.outputs()
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        client.execute("CREATE TABLE kept AS SELECT generate_series(1, 10) AS value")
        assert client.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
    assert len({stack.server(n)["system_identifier"] for n in ("montreal", "toronto", "calgary", "vancouver")}) == 1
    stack.up("--expect-no-changes")
    assert "warning" not in stack.refresh()
    stack.preview("--expect-no-changes")
