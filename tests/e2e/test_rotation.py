"""Certificates are rotated while clients write and the standby streams: nobody is disconnected, and all ends up new."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from harmony_pulumi.hosts.postgresql import certificates
from tests.e2e.conftest import Stack, connection, eventually, free_port, postmaster, stop_postmaster
from tests.e2e.driver import Act
from tests.e2e.history import Clients
from tests.e2e.rotation_driver import RotationPlan
from tests.e2e.sampling import ALL, sampled
from tests.e2e.test_lifecycle import put_row, rows
from tests.e2e.test_roles_cli import harmony
from tests.e2e.test_switchover import NAMES, ask, clients, home, insist, processes
from tests.e2e.test_switchover_faults import KILLED, ROOT, act

pytestmark = pytest.mark.e2e

_USED = "SELECT client_serial FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)"
_MOMENT = re.compile(
    r"^(\S+ \S+) UTC .*(replication terminated|terminating walreceiver|could not receive|started stre)"
)
BOUNDARIES = [
    f"{step}:{state}" for step in ("renew", "hand-over", "reconnect", "distrust") for state in ("started", "done")
]
TWICE = {"renew", "distrust"}
"""What is done at each member."""


@dataclass(frozen=True)
class Held:
    """What a member holds: of files, their texts; of certificates, their serial numbers."""

    authority: str
    trusted: str
    server: str
    issued: str
    follows_with: str


def held(stack: Stack, role: str) -> Held:
    tls = home(stack, role)[0] / "tls"
    texts = {path.name: path.read_text() for path in tls.iterdir()}
    source = texts.get("source-client.crt")
    return Held(
        texts["ca.crt"],
        texts["trusted.crt"],
        certificates.serial(texts["server.crt"]),
        certificates.serial(texts["replication.crt"]),
        certificates.serial(source) if source else "",
    )


def held_by_all(stack: Stack) -> dict[str, Held]:
    return {role: held(stack, role) for role in NAMES}


def insist_on_rotated(stack: Stack, before: dict[str, Held], leader: str, *, authority: bool) -> None:
    """Everything is new, in use, and nothing old is trusted where the authority is another."""
    now = held_by_all(stack)
    for role in NAMES:
        assert (now[role].authority != before[role].authority) == authority
        assert now[role].trusted == now[role].authority
        assert now[role].server != before[role].server
        assert now[role].issued != before[role].issued
    follower = next(role for role in NAMES if role != leader)
    assert now[follower].follows_with == now[leader].issued
    assert ask(stack, leader, _USED) == now[leader].issued, "the stream is of the new certificate"
    for role in NAMES:
        insist_on_shown(stack, role)


def insist_on_shown(stack: Stack, role: str) -> None:
    """The certificate that the server shows to a client is the one that it has."""
    root, port = home(stack, role)
    argv = ["openssl", "s_client", "-starttls", "postgres", "-connect", f"localhost:{port}"]
    done = subprocess.run(argv, input="", capture_output=True, text=True, timeout=30, check=False)
    begin = done.stdout.index("-----BEGIN CERTIFICATE")
    assert certificates.serial(done.stdout[begin:]) == certificates.serial((root / "tls/server.crt").read_text())


def interruptions(log: str) -> list[float]:
    """Return for how many seconds a standby did not stream, each time, as its log has it."""
    moments = [(datetime.fromisoformat(m[1]), m[2]) for line in log.splitlines() if (m := _MOMENT.search(line))]
    found: list[float] = []
    lost: datetime | None = None
    for when, what in moments:
        if what == "started stre":
            assert lost is not None, log
            found.append((when - lost).total_seconds())
            lost = None
        else:
            lost = lost or when
    assert lost is None, log
    return found


@contextmanager
def streaming_watched(stack: Stack, role: str) -> Generator[list[float]]:
    """Give how long the stream of a standby was interrupted, each time, while the block lasted."""
    log = home(stack, role)[0] / "log/postgresql.log"
    size, found = log.stat().st_size, list[float]()
    yield found
    found += interruptions(log.read_bytes()[size:].decode())


@contextmanager
def sessions_kept(stack: Stack) -> Generator[None]:
    """Sessions of clients on both members, which are open, stay open; and so do the servers."""
    before, outputs = processes(stack), stack.outputs()
    ca = outputs["ca_certificate"]
    with connection(stack, outputs["primary_uri"], ca) as one, connection(stack, outputs["replica_uri"], ca) as two:
        yield
        for client in (one, two):
            assert client.execute("SELECT 1").fetchone() == (1,)
    assert processes(stack) == before


def served_with(stack: Stack, ca: str) -> None:
    """Clients that trust this are served by both members, verify-full."""
    outputs = stack.outputs()
    for role in NAMES:
        with connection(stack, outputs[f"{role}_uri"], ca) as client:
            assert client.execute("SELECT 1").fetchone() == (1,)


WAYS = list(product(["asynchronous", "synchronous"], [False, True]))


@pytest.mark.parametrize(("replication", "authority"), sampled(WAYS, 1))
def test_a_rotation_by_command_disconnects_nobody_and_interrupts_the_stream_once(
    stack: Stack, replication: str, authority: bool
) -> None:
    stack.pair(f'replication="{replication}"')
    stack.up()
    before, ca = held_by_all(stack), stack.outputs()["ca_certificate"]
    assert "nobody is there to be asked" in harmony(stack, "rotate-certificates", expect=2)
    assert held_by_all(stack) == before
    with clients(stack) as running, sessions_kept(stack), streaming_watched(stack, "replica") as gaps:
        shown = harmony(stack, "rotate-certificates", "orders", "--yes", *(["--authority"] if authority else []))
        running.wait_until_served()
        running.stop()
        assert not running.errors
        assert {attempt.outcome for attempt in running.attempts} == {"acknowledged"}
    print(f"not streaming for {gaps} s")
    assert len(gaps) == 1
    assert gaps[0] < 2
    assert "pulumi refresh" in shown
    assert ("gets another authority" in shown) == authority
    insist(stack, running, "primary")
    insist_on_rotated(stack, before, "primary", authority=authority)
    for role in NAMES:
        assert "PRIVATE KEY" not in (home(stack, role)[0] / "tls/rotation.json").read_text()

    assert stack.outputs()["ca_certificate"] == ca, "the stack does not know yet"
    served_with(stack, ca)
    stack.up("--expect-no-changes")
    stack.refresh()
    stack.up()
    now = stack.outputs()["ca_certificate"]
    assert now == "".join(held(stack, role).authority for role in NAMES)
    served_with(stack, now)
    served_with(stack, ca)  # The old authorities vouch for the new ones.
    stack.up("--expect-no-changes")
    insist_on_rotated(stack, before, "primary", authority=authority)
    events = json.loads(harmony(stack, "events", "--json"))
    steps = [
        event["step"] for event in events if event["operation"] == "rotate-certificates" and event["state"] == "done"
    ]
    assert steps == ["renew", "renew", "hand-over", "reconnect", "distrust", "distrust"]


def test_a_second_authority_is_trusted_by_clients_that_have_the_first(stack: Stack) -> None:
    stack.pair()
    stack.up()
    ca = stack.outputs()["ca_certificate"]
    for _ in range(2):
        harmony(stack, "rotate-certificates", "--authority", "--yes")
    served_with(stack, ca)


def test_an_up_that_does_not_know_of_a_rotation_puts_nothing_old_back(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    before = held_by_all(stack)
    harmony(stack, "rotate-certificates", "--authority", "--yes")
    now = held_by_all(stack)
    port = free_port()
    placed = f'members={{"toronto": MemberPlacement(port={port})}}'
    stack.pair(placed)
    stack.up()
    assert held_by_all(stack) == now, "the standby alone was changed, by a stack that has the old certificates"
    insist_on_rotated(stack, before, "primary", authority=True)
    stack.refresh()
    stack.up()
    assert held_by_all(stack) == now

    harmony(stack, "switchover", "--to", "toronto", "--yes")
    put_row(stack, 2)
    before = held_by_all(stack)
    with clients(stack) as running, sessions_kept(stack), streaming_watched(stack, "primary") as gaps:
        harmony(stack, "rotate-certificates", "--authority", "--yes")
        running.wait_until_served()
        running.stop()
        assert not running.errors
    assert len(gaps) == 1
    insist(stack, running, "replica")
    insist_on_rotated(stack, before, "replica", authority=True)
    now = held_by_all(stack)
    stack.pair(placed + ', settings={"work_mem": "8MB"}')
    stack.up()
    insist_on_rotated(stack, before, "replica", authority=True)
    stack.refresh()
    stack.up()
    stack.up("--expect-no-changes")
    insist_on_rotated(stack, before, "replica", authority=True)
    assert {role: held(stack, role).issued for role in NAMES} == {role: now[role].issued for role in NAMES}

    harmony(stack, "switchover", "--to", "montreal", "--yes")
    put_row(stack, 3)
    stack.pair(placed)
    stack.up()
    assert ask(stack, "primary", _USED) == now["primary"].issued == held(stack, "replica").follows_with
    eventually(lambda: rows(stack, "replica") == [1, 2, 3], "all rows on the standby")


def test_a_changed_input_rotates_and_the_preview_says_so(stack: Stack) -> None:
    stack.pair()
    stack.up()
    ca = stack.outputs()["ca_certificate"]
    for config, authority in (("certificate_generation=1", False), ("authority_generation=1", True)):
        before = held_by_all(stack)
        with clients(stack) as running, sessions_kept(stack), streaming_watched(stack, "replica") as gaps:
            stack.pair(config)
            shown = stack.preview()
            assert f"reload for {'another authority and ' if authority else ''}new certificates" in shown
            assert "the standby connects anew with the certificate that the primary has issued to it" in shown
            assert ("trusted by no server any more" in shown) == authority
            assert held_by_all(stack) == before
            stack.up()
            running.wait_until_served()
            running.stop()
            assert not running.errors
        print(f"not streaming for {gaps} s")
        assert len(gaps) == 1
        insist(stack, running, "primary")
        insist_on_rotated(stack, before, "primary", authority=authority)
        stack.up("--expect-no-changes")
        assert "7 unchanged" in stack.refresh()
        stack.up("--expect-no-changes")
    assert stack.outputs()["ca_certificate"] != ca
    served_with(stack, ca)
    served_with(stack, stack.outputs()["ca_certificate"])

    harmony(stack, "switchover", "--to", "toronto", "--yes")
    before = held_by_all(stack)
    stack.pair("authority_generation=2")
    with clients(stack) as running, sessions_kept(stack), streaming_watched(stack, "primary") as gaps:
        stack.up()
        running.wait_until_served()
        running.stop()
        assert not running.errors
    assert len(gaps) == 1
    insist(stack, running, "replica")
    insist_on_rotated(stack, before, "replica", authority=True)
    stack.up("--expect-no-changes")


def test_a_rotation_mends_a_pair_whose_certificates_have_expired(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    before = held_by_all(stack)
    for role in NAMES:
        tls = home(stack, role)[0] / "tls"
        authority = certificates.KeyPair((tls / "ca.crt").read_text(), (tls / "ca.key").read_text())
        expired = {
            "server": certificates.make_server(authority, "localhost", 0),
            "replication": certificates.make_client(authority, "harmony_replication", 0),
        }
        for name, pair in expired.items():
            (tls / f"{name}.crt").write_text(pair.certificate)
            (tls / f"{name}.key").write_text(pair.key)
        ask(stack, role, "SELECT pg_reload_conf()")
    source, copy = (home(stack, role)[0] / "tls" for role in NAMES)
    for suffix in ("crt", "key"):
        (copy / f"source-client.{suffix}").write_text((source / f"replication.{suffix}").read_text())
    ask(stack, "primary", "SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
    eventually(lambda: not ask(stack, "primary", _USED), "the stream to be lost")
    assert "expired" in harmony(stack, "status", expect=1)
    harmony(stack, "rotate-certificates", "--yes")
    insist_on_rotated(stack, before, "primary", authority=False)
    put_row(stack, 2)
    eventually(lambda: rows(stack, "replica") == [1, 2], "both rows on the standby")


def test_a_rotation_is_refused_where_a_member_does_not_run_and_touches_nothing(stack: Stack) -> None:
    stack.pair()
    stack.up()
    before = held_by_all(stack)
    stop_postmaster(home(stack, "replica")[0] / "data", signal.SIGINT)
    shown = harmony(stack, "rotate-certificates", "--yes", expect=1)
    assert "toronto is stopped" in shown
    assert held_by_all(stack) == before
    assert postmaster(home(stack, "primary")[0] / "data") is not None


def test_a_server_that_stands_alone_is_rotated_too(stack: Stack) -> None:
    alone = (
        'database = LinuxHostTopology("montreal").deploy_postgresql("orders", PostgreSQLConfig(["orders"]{config}))\n'
    )
    program = alone.replace('(["orders"]', '(databases=["orders"]') + (
        'pulumi.export("primary_uri", database.uri)\npulumi.export("ca_certificate", database.ca_certificate)\n'
    )
    stack.program(program.format(config=""))
    stack.up()

    def insist_on_new(before: Held) -> None:
        now = held(stack, "primary")
        assert now.trusted == now.authority != before.authority
        insist_on_shown(stack, "primary")

    before = held(stack, "primary")
    harmony(stack, "rotate-certificates", "--authority", "--yes")
    insist_on_new(before)
    before = held(stack, "primary")
    stack.program(program.format(config=", authority_generation=1"))
    stack.up()
    insist_on_new(before)
    outputs = stack.outputs()
    with connection(stack, outputs["primary_uri"], outputs["ca_certificate"]) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)


# -- killed anywhere, and run again ------------------------------------------------------------------------------------


def drive(handle: dict[str, Any], *acts: Act, authority: bool = True, command: int = 0) -> list[dict[str, Any]]:
    """Rotate in a process of its own, which must die if it is to; return the boundaries that it passed."""
    plan: RotationPlan = {
        "handle": handle,
        "kind": "switchover",
        "active": "",
        "epoch": 0,
        "terms": None,
        "acts": list(acts),
        "die_at_command": command,
        "die_after": 0.0,
        "authority": authority,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.rotation_driver"],
        cwd=ROOT,
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == (KILLED if acts or command else 0), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def is_begun(stack: Stack) -> bool:
    """Tell whether a member knows of a rotation that has not ended."""
    records = [home(stack, role)[0] / "tls/rotation.json" for role in NAMES]
    return any(record.exists() and not json.loads(record.read_text())["ended"] for record in records)


def test_a_rotation_that_is_killed_anywhere_is_finished_by_the_next_run(stack: Stack) -> None:
    stack.pair()
    stack.up()
    outputs = stack.outputs()
    handle, ca = {**outputs["site"], "deadline": 60}, stack.folder / "old-ca.crt"
    ca.write_text(outputs["ca_certificate"])
    passed = drive(handle)
    found = [p["at"] for p in passed if p["at"] != "end"]
    assert sorted(set(found)) == sorted(BOUNDARIES)
    acts = [[act(at, times=n)] for at, n in product(BOUNDARIES, (1, 2)) if n == 1 or at.partition(":")[0] in TWICE]
    first = next(p["commands"] for p in passed if p["at"] == "renew:started")
    last = next(p["commands"] for p in reversed(passed) if p["at"] == "distrust:started")
    commands = range(first + 1, last + 1)
    cases: list[dict[str, Any]] = [{"acts": a} for a in sampled(acts, 3)]
    # In the first ones, certificates are decided, written, and taken over by the server.
    some = {*sampled(commands[:12], 2), *sampled(commands, 2)}
    cases += [{"acts": [], "command": number} for number in sorted(some)]
    with Clients([outputs["uri"]] * 2, ca, pause=0.01, most=100_000, deadline=3000) as running, sessions_kept(stack):
        for number, case in enumerate(cases):
            before = held_by_all(stack)
            authority = bool(number % 2) or ALL
            print(case, authority)
            drive(handle, *case["acts"], authority=authority, command=case.get("command", 0))
            between = held_by_all(stack)
            # What was begun is finished as what it is, whatever is asked for.
            drive(handle, authority=authority and not is_begun(stack))
            insist_on_rotated(stack, before, "primary", authority=authority)
            for role in NAMES:  # What was made is not made again, but by a rotation that begins after the last one.
                made = between[role].issued != before[role].issued
                begun_anew = case["acts"] == [act("distrust:done", times=2)]
                assert not made or begun_anew or held(stack, role).issued == between[role].issued
        running.wait_until_served()
        running.stop()
        assert not running.errors
    insist(stack, running, "primary")


def test_an_up_that_is_killed_as_it_rotates_is_finished_by_the_next_one(stack: Stack) -> None:
    stack.pair()
    stack.up()
    before = held_by_all(stack)
    stack.pair("authority_generation=1")
    process = stack.start("up", "--yes", "--skip-preview")
    record: Path = home(stack, "primary")[0] / "tls/rotation.json"
    try:
        eventually(record.exists, "the rotation to begin")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    stack.run("cancel", "--yes", expect=None)
    stack.up()
    insist_on_rotated(stack, before, "primary", authority=True)
    stack.up("--expect-no-changes")
    put_row(stack, 1)
    eventually(lambda: rows(stack, "replica") == [1], "the row on the standby")
