"""One stable address for a pair: PgBouncer in front of it, on real servers, by the real engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from harmony_pulumi.capabilities.endpoint_site import EndpointSite, load_endpoint
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql.site import HostPostgreSQL
from tests.e2e.conftest import (
    Stack,
    as_os_user,
    base_folder,
    eventually,
    free_port,
    needs_root,
    parent_of,
    port_of,
    processes_about,
    stop_postmaster,
    superuser,
    with_machine,
    with_mounts,
)
from tests.e2e.history import Clients
from tests.e2e.secret_values import leaked, secrets_of, watched_arguments, written_below
from tests.e2e.test_lifecycle import ELSEWHERE
from tests.e2e.test_roles_cli import harmony
from tests.e2e.test_switchover import active

pytestmark = pytest.mark.e2e

ONE = '[EndpointConfig(on=LinuxHostTopology("kingston"){more})]'
TWO = '[EndpointConfig(on=LinuxHostTopology(name)) for name in ("kingston", "ottawa")]'
DEADLINE = 10.0

Outputs = dict[str, Any]


def pair(stack: Stack, config: str = "", roles: str = "None", endpoints: str = ONE.format(more="")) -> None:
    """Set the program to a pair with endpoints."""
    stack.pair(config, active=f"{roles}, endpoints={endpoints}")


def endpoints_of(outputs: Outputs) -> list[EndpointSite]:
    """Return the sites of the endpoints, as the runner finds them: by the handle of the pair."""
    return [load_endpoint(handle) for handle in outputs["site"]["endpoints"]]


def home(stack: Stack, host: str = "kingston") -> Path:
    (found,) = (base_folder() / stack.project).glob(f"*/{host}-orders-endpoint")
    return found


def process(stack: Stack, host: str = "kingston") -> int:
    return int((home(stack, host) / "run/pgbouncer.pid").read_text())


def superuser_says(stack: Stack, outputs: Outputs, role: str, query: str) -> str:
    """Ask the server of a member past its endpoint."""
    name = {"primary": "montreal", "replica": "toronto"}[role]
    (root,) = (root for root, _ in stack.markers() if root.name == f"{name}-orders")
    return superuser(root, query, port_of(outputs[f"{role}_uri"]))


def console(stack: Stack, command: str) -> str:
    """Ask PgBouncer's console as its administrator would."""
    port = json.loads((home(stack) / "endpoint.json").read_text())["port"]
    argv = ["psql", "-XAtw", "-h", f"{home(stack)}/run", "-p", str(port), "-U", "pgbouncer", "-d", "pgbouncer"]
    return subprocess.run(
        as_os_user(*argv, "-c", command), capture_output=True, text=True, check=True, timeout=30
    ).stdout


def connect(stack: Stack, outputs: Outputs, **differently: Any) -> psycopg.Connection[Any]:
    """Connect as a user would, by the pair's uri."""
    path = stack.folder / "endpoint-ca.crt"
    path.write_text(outputs["ca_certificate"])
    options: Outputs = {"sslrootcert": str(path), "connect_timeout": 10, "prepare_threshold": None}
    return psycopg.connect(outputs["uri"], autocommit=True, **{**options, **differently})


def server_of(connection: psycopg.Connection[Any]) -> str:
    """Return the address of the server that answers a client of an endpoint."""
    row = connection.execute("SELECT current_setting('port')").fetchone()
    assert row is not None
    return f"localhost:{row[0]}"


def address_of(outputs: Outputs, role: str) -> str:
    return f"localhost:{port_of(outputs[f'{role}_uri'])}"


@contextmanager
def waiting(*work: Callable[[], object]) -> Generator[list[Future[object]]]:
    """Do some work meanwhile, each on a thread of its own."""
    with ThreadPoolExecutor(len(work)) as pool:
        yield [pool.submit(each) for each in work]


@pytest.fixture
def held() -> Generator[ExitStack]:
    """Close what a test holds as it ends."""
    with ExitStack() as stack:
        yield stack


def test_clients_reach_the_active_member_by_one_address_over_tls(stack: Stack) -> None:
    pair(stack)
    shown = stack.up()
    assert "kingston/orders endpoint: starting PgBouncer" in shown
    assert "9 created" in shown
    outputs = stack.outputs()
    (endpoint,) = endpoints_of(outputs)
    assert outputs["uri"].count("localhost:") == 1
    assert outputs["uri"].endswith("/orders?sslmode=verify-full")
    assert outputs["endpoint"]["port"] != port_of(outputs["uri"]), "replication does not go through it"

    with closing(connect(stack, outputs)) as client:
        assert client.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        assert client.pgconn.ssl_in_use
        assert server_of(client) == address_of(outputs, "primary")
        seen = endpoint.observe()
        assert seen == {
            "name": "kingston",
            "state": "running",
            "detail": "",
            "address": f"localhost:{port_of(outputs['uri'])}",
            "points_to": address_of(outputs, "primary"),
            "paused": False,
            "clients": 1,
            "waiting": 0,
            "certificates": seen["certificates"],
            "version": seen["version"],
        }
        assert seen["certificates"].keys() == {"ca", "server"}
        assert re.fullmatch(r"1\.\d+\.\d+", seen["version"])
        status = json.loads(harmony(stack, "status", "--json"))
        (shown_endpoint,) = status["databases"][0]["endpoints"]
        assert (shown_endpoint["leads_to"], shown_endpoint["clients"]) == ("montreal", 1)
        assert {c["name"]: c["days_left"] for c in shown_endpoint["certificates"]}["server"] in {364, 365}
        assert f"localhost:{port_of(outputs['uri'])}" in harmony(stack, "status")
        (resource,) = stack.resources("PgBouncer")
        assert resource["outputs"]["prepared_statements"] == ("has no prepared statements" not in shown)
    root, pid = home(stack), process(stack)
    assert parent_of(pid) == 1, "its parent is init, not the plugin"
    assert os.getsid(pid) != os.getsid(0)

    with pytest.raises(psycopg.OperationalError, match="SSL required"):
        connect(stack, outputs, sslmode="disable")
    (stack.folder / "other.crt").write_text(outputs["certs"]["ca_certificate"])
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        connect(stack, outputs, sslrootcert=str(stack.folder / "other.crt"))
    with pytest.raises(psycopg.OperationalError, match=r"authentication failed"):
        connect(stack, outputs, password="wrong-0123456789")
    for role in ("postgres", "pgbouncer", "harmony_replication"):
        with pytest.raises(psycopg.OperationalError, match=r"authentication failed|no such user"):
            connect(stack, outputs, user=role)

    stack.up("--expect-no-changes")
    assert "9 unchanged" in stack.refresh()
    stack.preview("--expect-no-changes")
    stack.destroy()
    assert not root.exists()
    assert processes_about(str(root)) == []
    with closing(socket.socket()) as client_of_none:
        assert client_of_none.connect_ex(("localhost", port_of(outputs["uri"]))) != 0


def test_a_pause_holds_statements_back_and_a_resume_lets_them_go_on(stack: Stack) -> None:
    pair(stack, endpoints=TWO)
    stack.up()
    outputs = stack.outputs()
    assert outputs["uri"].count("localhost:") == 2
    assert "target_session_attrs" not in outputs["uri"]
    both = endpoints_of(outputs)
    ports = [int(endpoint.observe()["address"].rpartition(":")[2]) for endpoint in both]
    assert len(set(ports)) == 2
    clients = [connect(stack, outputs, port=str(port), host="localhost") for port in (*ports, *ports)]
    select = [lambda client=client: client.execute("SELECT 1").fetchone() for client in clients]
    for endpoint in both:
        for _ in range(2):
            endpoint.pause(DEADLINE)
        assert endpoint.observe()["paused"]
        assert endpoint.observe()["clients"] == 2

    def come() -> object:
        with psycopg.connect(outputs["uri"], sslrootcert=str(stack.folder / "endpoint-ca.crt")) as new:
            return new.execute("SELECT 1").fetchone()

    with waiting(*select, come) as answers:
        for host in ("kingston", "ottawa"):
            port = json.loads((home(stack, host) / "endpoint.json").read_text())["port"]
            assert port in ports
        eventually(lambda: "|2|" in console(stack, "SHOW POOLS"), "statements to wait")
        time.sleep(0.5)  # As long as nothing is answered, there is nothing to wait for.
        assert not [answer for answer in answers if answer.done()]
        busy = superuser(
            next(root for root, _ in stack.markers() if root.name == "montreal-orders"),
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'orders'",
            port_of(outputs["primary_uri"]),
        )
        assert busy == "0", "no connection to the server is left"
        for endpoint in both:
            for _ in range(2):
                endpoint.resume()
            assert not endpoint.observe()["paused"]
        assert [answer.result(30) for answer in answers] == [(1,)] * 5
    for client in clients:
        client.close()


def test_a_pause_that_meets_a_long_transaction_gives_up_at_its_deadline(stack: Stack) -> None:
    pair(stack)
    stack.up()
    outputs = stack.outputs()
    (endpoint,) = endpoints_of(outputs)
    with closing(connect(stack, outputs)) as long, closing(connect(stack, outputs)) as other:
        long.execute("BEGIN")
        long.execute("SELECT 1")
        began = time.monotonic()
        with pytest.raises(SiteError, match="after 1 s, of 2 clients, 1 transaction had not ended, so all go"):
            endpoint.pause(1)
        assert time.monotonic() - began < 5
        assert not endpoint.observe()["paused"]
        assert other.execute("SELECT 1").fetchone() == (1,)

        # One that paused it was killed while it waited: whoever comes next waits for the same transaction.
        pause = f"import json, sys\nfrom {load_endpoint.__module__} import load_endpoint\n"
        pause += "load_endpoint(json.load(sys.stdin)).pause(60)\n"
        with subprocess.Popen([sys.executable, "-c", pause], stdin=subprocess.PIPE, text=True) as killed:
            assert killed.stdin is not None
            killed.stdin.write(json.dumps(outputs["site"]["endpoints"][0]))
            killed.stdin.close()
            eventually(lambda: endpoint.observe()["paused"], "it to be paused")
            killed.kill()
        with pytest.raises(SiteError, match="of 2 clients, 1 transaction had not ended"):
            endpoint.pause(1)
        with waiting(lambda: endpoint.pause(DEADLINE)) as (paused,):
            eventually(lambda: endpoint.observe()["paused"], "it to be paused")
            assert not paused.done()
            long.execute("COMMIT")
            paused.result(DEADLINE)
        with waiting(lambda: other.execute("SELECT 1").fetchone()) as (answer,):
            endpoint.resume()
            assert answer.result(DEADLINE) == (1,)


def offer_of(outputs: Outputs, role: str) -> Any:
    return HostPostgreSQL(outputs[f"{role}_site"]).offer()


def test_to_point_moves_every_connection_and_lasts(stack: Stack, held: ExitStack) -> None:
    pair(stack)
    stack.up()
    outputs = stack.outputs()
    (endpoint,) = endpoints_of(outputs)
    there, back = offer_of(outputs, "replica"), offer_of(outputs, "primary")
    one, other = (held.enter_context(closing(connect(stack, outputs))) for _ in range(2))
    assert server_of(one) == server_of(other) == address_of(outputs, "primary")

    for offer, role in ((there, "replica"), (there, "replica"), (back, "primary"), (there, "replica")):
        endpoint.point(offer)
        servers = console(stack, "SHOW SERVERS")
        assert (
            f"|{address_of(outputs, 'primary' if role == 'replica' else 'replica').rpartition(':')[2]}|" not in servers
        )
        assert endpoint.observe()["points_to"] == address_of(outputs, role)
        assert server_of(one) == server_of(other) == address_of(outputs, role)
        assert f"|{address_of(outputs, role).rpartition(':')[2]}|" in console(stack, "SHOW SERVERS")

    # A deployment moves it nowhere.
    pair(stack, endpoints=ONE.format(more=", pool_size=5"))
    assert "1 updated" in stack.up()
    assert server_of(one) == address_of(outputs, "replica"), "the client is still there"
    assert "default_pool_size|5|" in console(stack, "SHOW CONFIG")

    os.kill(process(stack), signal.SIGKILL)
    eventually(lambda: endpoint.observe()["state"] == "stopped", "its end")
    assert endpoint.observe()["points_to"] == address_of(outputs, "replica")
    endpoint.pause(DEADLINE)
    endpoint.resume()
    with closing(connect(stack, outputs)) as client:
        assert server_of(client) == address_of(outputs, "replica")
    os.kill(process(stack), signal.SIGKILL)
    endpoint.point(back)
    endpoint.resume()
    with closing(connect(stack, outputs)) as client:
        assert server_of(client) == address_of(outputs, "primary")

        # Not paused, and a transaction at work: its client cannot be kept, and must not go on with the old server.
        client.execute("BEGIN")
        client.execute("SELECT 1")
        endpoint.point(there)
        assert address_of(outputs, "primary").rpartition(":")[2] not in console(stack, "SHOW SERVERS")
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")
    with closing(connect(stack, outputs)) as client:
        assert server_of(client) == address_of(outputs, "replica")


def test_one_that_was_killed_is_seen_and_started_again_by_up(stack: Stack) -> None:
    pair(stack)
    stack.up()
    outputs = stack.outputs()
    (endpoint,) = endpoints_of(outputs)
    os.kill(process(stack), signal.SIGKILL)
    eventually(lambda: endpoint.observe()["state"] == "stopped", "its end")
    # What a reboot leaves: the pid is another process's now.
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        (home(stack) / "run/pgbouncer.pid").write_text(f"{other.pid}\n")
        assert endpoint.observe()["state"] == "stopped"
        shown = stack.refresh()
        assert "no PgBouncer runs in" in shown
        assert "1 to update" in stack.preview()
        port = port_of(outputs["uri"])
        with closing(socket.create_server(("127.0.0.1", port))):
            assert f"something else listens on {port}, by which clients know" in stack.up(expect=1)
        assert "1 updated" in stack.up()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert stack.outputs()["uri"] == outputs["uri"]
    with closing(connect(stack, outputs)) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)
    stack.up("--expect-no-changes")

    os.kill(process(stack), signal.SIGSTOP)
    try:
        seen = endpoint.observe()
        assert seen["state"] == "unreachable"
        assert "PgBouncer in" in seen["detail"] or "psql" in seen["detail"]
    finally:
        os.kill(process(stack), signal.SIGCONT)

    shutil.rmtree(home(stack) / "run")
    os.kill(pid := int(_pid_of(home(stack))), signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "its end")
    shutil.rmtree(home(stack))
    assert endpoint.observe()["state"] == "absent"
    with pytest.raises(SiteError, match="kingston has no endpoint of"):
        endpoint.pause(DEADLINE)
    assert "is gone from its host" in stack.refresh()
    assert "1 created" in stack.up()
    outputs = stack.outputs()  # With an authority of its own, a new one.
    with closing(connect(stack, outputs)) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)


def _pid_of(root: Path) -> str:
    (found,) = processes_about(f"{root}/config/pgbouncer.ini")
    return found.partition(" ")[0]


def test_what_only_the_host_can_tell_is_found_before_anything_is_done(stack: Stack) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        pair(stack, endpoints=ONE.format(more=f", port={port}"))
        for shown in (stack.preview(expect=1), stack.up(expect=1)):
            assert f"something listens on {port} already; choose another, or leave it out" in shown
            assert "/harmony_pulumi/" not in shown
    assert not stack.resources("PgBouncer")

    needs_root("PgBouncer is hidden in a mount namespace")
    pair(stack)
    nothing = stack.folder / "nothing"
    nothing.touch()
    programs = [
        path for name in ("/usr/sbin", "/usr/bin", "/usr/local/bin") if (path := Path(name, "pgbouncer")).exists()
    ]
    hidden = [f"mount --bind {nothing} {path.resolve()}" for path in programs]
    stack.wrapper = with_mounts(*hidden)
    for shown in (stack.preview(expect=1), stack.up(expect=1)):
        assert "kingston: PgBouncer is needed for an endpoint, and is not installed" in shown
        assert "apt-get install pgbouncer" in shown
    assert not stack.resources("PgBouncer")

    stack.wrapper = []
    stack.up()
    uri = stack.outputs()["uri"]
    pair(stack, endpoints=ONE.format(more=", pool_size=7"))
    stack.wrapper = with_machine(ELSEWHERE, stack.folder, hide_postgresql=True)
    assert "warning: kingston/orders endpoint: not checked at its site" in stack.preview()
    assert "it cannot be reached from here" in stack.up(expect=1)
    assert "warning: kingston/orders endpoint: unreachable" in stack.refresh()
    assert stack.outputs()["uri"] == uri
    stack.wrapper = []
    stack.up()

    # A change of the port is one of PgBouncer's process.
    port = free_port()
    pair(stack, endpoints=ONE.format(more=f", pool_size=7, port={port}"))
    stack.up()
    outputs = stack.outputs()
    assert port_of(outputs["uri"]) == port
    with closing(connect(stack, outputs)) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)
    # Without endpoints, the pair is reached at its members again.
    stack.pair()
    assert "2 deleted" in stack.up()
    outputs = stack.outputs()
    assert outputs["site"]["endpoints"] == []
    assert "target_session_attrs=read-write" in outputs["uri"]
    stack.up("--expect-no-changes")


def test_what_clients_log_in_with_reaches_no_log_no_argument_and_no_open_state(stack: Stack) -> None:
    password, changed = "sem;co:lon=qu\"ote'back\\slash %25 #hash", "another-0123456789"
    with watched_arguments() as arguments:
        pair(stack, f"passwords={{'orders': {password!r}}}")
        shown = stack.preview() + stack.up()
        outputs = stack.outputs()
        with closing(connect(stack, outputs)) as client:
            assert client.execute("SELECT 1").fetchone() == (1,)
            (endpoint,) = endpoints_of(outputs)
            endpoint.pause(DEADLINE)
            endpoint.point(offer_of(outputs, "primary"))
            endpoint.resume()
            pair(stack, f'passwords={{"orders": "{changed}"}}')
            shown += stack.preview() + stack.up() + stack.refresh()
            os.kill(process(stack), 0)
            endpoint.pause(DEADLINE)
            endpoint.resume()
            assert client.execute("SELECT 1").fetchone() == (1,), "those who are connected go on"
        outputs = stack.outputs()
        assert changed in outputs["uri"]
        with closing(connect(stack, outputs)) as client:
            assert client.execute("SELECT 1").fetchone() == (1,)
    root = home(stack)
    secrets = secrets_of(stack) | {"the first password": password}
    for path in root.glob(
        "tls/*.key"
    ):  # The third line of a key is of its public part, which the certificate has, too.
        secrets |= {f"{path} line {number}": path.read_text().splitlines()[number] for number in (1, 2)}
    assert any("kingston-orders-endpoint/tls/server.key" in place for place in secrets)
    assert any("kingston-orders-endpoint inputs.passwords.orders" in place for place in secrets)
    state = written_below(stack.folder / "state") + stack.run("stack", "export")
    logs = "".join(written_below(place / "log") for place in (root, *(folder for folder, _ in stack.markers())))
    assert "starting PgBouncer" in logs
    assert [line for line in arguments if "PAUSE" in line]
    for text in (shown, state, logs, "\n".join(arguments)):
        assert not leaked(secrets, text)
    for path in (root, root / "config/userlist.txt", *root.glob("tls/*.key")):
        assert path.stat().st_mode & 0o077 == 0, path


# -- a switchover fails no statement -----------------------------------------------------------------------------------


def test_a_planned_switchover_through_endpoints_fails_no_statement(stack: Stack) -> None:
    pair(stack, endpoints=TWO)
    stack.up()
    outputs = stack.outputs()
    ca = stack.folder / "clients-ca.crt"
    ca.write_text(outputs["ca_certificate"])
    uris = [
        re.sub(r"@[^/]+/", f"@{endpoint.observe()['address']}/", outputs["uri"]) for endpoint in endpoints_of(outputs)
    ]
    with Clients(uris * 2, ca, pooled=True) as running:
        for target, epoch in (("replica", 1), ("primary", 2), ("replica", 3)):
            pair(stack, roles=active(target, epoch), endpoints=TWO)
            stack.up()
            running.wait_until_served()
            for endpoint in endpoints_of(outputs):
                seen = endpoint.observe()
                assert (seen["points_to"], seen["paused"]) == (address_of(outputs, target), False)
    found = running.insist(outputs["replica_uri"], outputs["primary_uri"])
    print(f"history: {found}")
    assert (found.failed, found.unknown) == (0, 0), running.errors
    assert not running.errors


def endpoint_checks(stack: Stack, expect: int) -> list[tuple[str, str]]:
    plan = json.loads(harmony(stack, "plan", "--json", expect=expect))
    return [(check["verdict"], check["found"]) for check in plan["checks"] if check["name"] == "endpoint"]


def test_a_switchover_is_refused_where_an_endpoint_could_not_go_along(stack: Stack) -> None:
    pair(stack, endpoints=TWO)
    stack.up()
    outputs = stack.outputs()
    kingston, ottawa = endpoints_of(outputs)

    def refused(why: str) -> None:
        before = [endpoint.observe() for endpoint in (kingston, ottawa)]
        shown = harmony(stack, "switchover", "--to", "toronto", "--yes", expect=1)
        assert why in shown
        assert "refused; nothing was touched. montreal stays active" in shown
        # By the program, too, whose preview does not look at sites.
        pair(stack, roles=active("replica", 1), endpoints=TWO)
        shown = stack.up(expect=1)
        assert "no switchover to toronto; nothing was touched" in shown
        assert f"endpoint: {why}" in shown
        pair(stack, endpoints=TWO)
        assert [endpoint.observe() for endpoint in (kingston, ottawa)] == before
        assert superuser_says(stack, outputs, "primary", "SELECT pg_is_in_recovery()") == "f"

    good = [("ok", f"{name} leads to montreal; 0 clients") for name in ("kingston", "ottawa")]
    assert endpoint_checks(stack, 0) == good
    kingston.point(offer_of(outputs, "replica"))
    there = address_of(outputs, "replica")
    refused(f"kingston leads to {there}, and montreal, at {address_of(outputs, 'primary')}, is active")
    assert [verdict for verdict, _ in endpoint_checks(stack, 1)] == ["problem", "ok"]
    assert "montreal is active already" in harmony(stack, "switchover", "--to", "montreal", "--yes")
    assert endpoint_checks(stack, 0) == good

    os.kill(process(stack), signal.SIGSTOP)
    try:
        plan = harmony(stack, "plan", expect=1)
        assert "kingston does not answer, so its clients can be neither held back nor led on" in plan
    finally:
        os.kill(process(stack), signal.SIGCONT)
    os.kill(process(stack), signal.SIGKILL)
    eventually(lambda: kingston.observe()["state"] == "stopped", "its end")
    refused("kingston is stopped, so nobody gets through")
    # To reach what is reached already starts it, and nothing else.
    harmony(stack, "switchover", "--to", "montreal", "--yes")
    assert endpoint_checks(stack, 0) == good


def test_an_endpoint_that_cannot_be_told_of_a_failover_counts_as_not_fenced(stack: Stack) -> None:
    pair(stack, endpoints=TWO)
    stack.up()
    outputs = stack.outputs()
    kingston, ottawa = endpoints_of(outputs)
    there, before = address_of(outputs, "replica"), offer_of(outputs, "primary")
    (montreal,) = (root for root, _ in stack.markers() if root.name == "montreal-orders")
    stop_postmaster(montreal / "data", signal.SIGKILL)
    os.kill(process(stack, "ottawa"), signal.SIGKILL)
    os.kill(process(stack), signal.SIGSTOP)
    try:
        first, second = endpoint_checks(stack, 1)
        assert first[0] == "problem"
        assert "so that counts as not fenced" in first[1]
        assert second == ("ok", "ottawa can be told (stopped): it leads away from montreal first")
        lose = ("failover", "--to", "toronto", "--max-data-loss", "0", "--yes")
        assert "so that counts as not fenced" in harmony(stack, *lose, expect=1)
        assert ottawa.observe()["points_to"] == address_of(outputs, "primary")
        shown = harmony(stack, *lose, "--fenced-by-me", "montreal")
        assert "the endpoint on kingston: " in shown
    finally:
        os.kill(process(stack), signal.SIGCONT)
    seen = ottawa.observe()
    assert (seen["state"], seen["points_to"]) == ("running", there)
    kingston.point(before)  # As if it had not heard of it at all.
    shown = harmony(stack, *lose)
    assert "toronto is active already, at epoch 1" in shown
    assert "toronto becomes the primary" not in shown
    seen = kingston.observe()
    assert (seen["state"], seen["points_to"], seen["paused"]) == ("running", there, False)


def test_a_transaction_that_lasts_too_long_ends_the_switchover_and_clients_go_on(stack: Stack) -> None:
    pair(stack, endpoints=TWO)
    stack.up()
    outputs = stack.outputs()
    with closing(connect(stack, outputs)) as long, closing(connect(stack, outputs)) as other:
        long.execute("BEGIN")
        long.execute("SELECT 1")
        shown = harmony(stack, "switchover", "--to", "toronto", "--yes", expect=1)
        assert "of 2 clients, 1 transaction had not ended" in shown
        assert "the switchover was given up, and montreal is active" in shown
        assert not any(endpoint.observe()["paused"] for endpoint in endpoints_of(outputs))
        long.execute("COMMIT")
        assert server_of(other) == address_of(outputs, "primary")


def test_an_endpoint_gets_the_new_authority_of_the_server_that_it_leads_to(stack: Stack) -> None:
    pair(stack)
    stack.up()
    outputs = stack.outputs()
    (montreal,) = (root for root, _ in stack.markers() if root.name == "montreal-orders")
    trusted, authority = home(stack) / "tls/server-ca.crt", montreal / "tls/ca.crt"
    before = authority.read_text()
    assert trusted.read_text() == before
    with closing(connect(stack, outputs)) as at_work:
        at_work.execute("BEGIN")
        at_work.execute("SELECT 1")
        harmony(stack, "rotate-certificates", "--authority", "--yes")
        at_work.execute("SELECT 1")
        at_work.execute("COMMIT")
    assert authority.read_text() != before
    assert trusted.read_text() == authority.read_text()
    # Also without the cross certificate by which the old authority vouches for the new one, as once that has expired.
    shown = montreal / "tls/server.crt"
    shown.write_text(shown.read_text().partition("-----END CERTIFICATE-----\n")[0] + "-----END CERTIFICATE-----\n")
    superuser_says(stack, outputs, "primary", "SELECT pg_reload_conf()")
    console(stack, "RECONNECT")
    with closing(connect(stack, outputs)) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)

    os.kill(process(stack), signal.SIGSTOP)
    try:
        shown_then = harmony(stack, "rotate-certificates", "--authority", "--yes", expect=1)
        assert "the endpoint on kingston: " in shown_then
        assert "have it answer, then run this again" in shown_then
    finally:
        os.kill(process(stack), signal.SIGCONT)
    assert "going on with the rotation" in harmony(stack, "rotate-certificates", "--authority", "--yes")
    assert trusted.read_text() == authority.read_text()
    with closing(connect(stack, outputs)) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)


def test_a_failover_leads_the_clients_of_the_endpoint_to_the_one_that_took_over(stack: Stack) -> None:
    pair(stack)
    stack.up()
    outputs = stack.outputs()
    (montreal,) = (root for root, _ in stack.markers() if root.name == "montreal-orders")
    stop_postmaster(montreal / "data", signal.SIGKILL)
    harmony(stack, "failover", "--to", "toronto", "--max-data-loss", "0", "--yes")
    with closing(connect(stack, outputs)) as client:
        assert server_of(client) == address_of(outputs, "replica")
        client.execute("CREATE TABLE written (by_whom text)")
    harmony(stack, "revert", "--yes")
    with closing(connect(stack, outputs)) as client:
        assert server_of(client) == address_of(outputs, "primary")
        assert client.execute("SELECT count(*) FROM written").fetchone() == (0,)
