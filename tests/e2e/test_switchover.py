"""Roles move by one changed input, and lose nothing; what is not the next thing is refused, and touches nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harmony_pulumi.capabilities.postgresql_facts import REPLICATION_ROLE
from harmony_pulumi.hosts.postgresql import certificates
from harmony_pulumi.hosts.postgresql.site import HostPostgreSQL
from tests.e2e.conftest import (
    PAIR,
    Stack,
    connection,
    eventually,
    found_postgresql,
    make_wal_in_advance,
    postmaster,
    stop_postmaster,
    superuser,
    with_machine,
)
from tests.e2e.history import Clients
from tests.e2e.sampling import sampled
from tests.e2e.test_lifecycle import ELSEWHERE, data, put_row, rows, show
from tests.e2e.test_repair import server_program

pytestmark = pytest.mark.e2e

NAMES = {"primary": "montreal", "replica": "toronto"}


def active(member: str, epoch: int) -> str:
    """Return the program's word for who is to be active."""
    return f'Active("{member}", epoch={epoch})'


@contextmanager
def clients(stack: Stack, count: int = 2, pause: float = 0.005) -> Generator[Clients]:
    """Have clients write all the while."""
    outputs = stack.outputs()
    ca = stack.folder / "clients-ca.crt"
    ca.write_text(outputs["ca_certificate"])
    with Clients([outputs["uri"]] * count, ca, pause=pause) as running:
        yield running


def insist(stack: Stack, running: Clients, leader: str) -> None:
    """Nothing was lost; the named member, by its role, has it all, and so has the other."""
    outputs = stack.outputs()
    follower = next(role for role in NAMES if role != leader)
    found = running.insist(outputs[f"{leader}_uri"], outputs[f"{follower}_uri"])
    print(f"history: {found}")


def home(stack: Stack, role: str) -> tuple[Path, int]:
    """Return the folder and the port of a member, by its role, without asking Pulumi."""
    return next((root, marker["port"]) for root, marker in stack.markers() if root.name == f"{NAMES[role]}-orders")


def ask(stack: Stack, role: str, sql: str) -> str:
    """Ask a member's server as its administrator."""
    root, port = home(stack, role)
    return superuser(root, sql, port)


def roles_seen(stack: Stack) -> dict[str, str]:
    """Return what the running servers of the members are, by their roles."""
    running = [role for role in NAMES if postmaster(home(stack, role)[0] / "data") is not None]
    return {role: {"t": "standby", "f": "primary"}[ask(stack, role, "SELECT pg_is_in_recovery()")] for role in running}


def streams(stack: Stack, role: str) -> bool:
    """Tell whether a standby streams from a member."""
    return ask(stack, role, "SELECT state FROM pg_stat_replication") == "streaming"


def kept(stack: Stack, role: str) -> dict[str, Any]:
    """Return what the site of a member keeps of its pair's roles."""
    return json.loads((home(stack, role)[0] / "roles.json").read_text())


def processes(stack: Stack) -> dict[str, int | None]:
    return {role: postmaster(home(stack, role)[0] / "data") for role in NAMES}


def traces(stack: Stack) -> dict[str, Any]:
    """Return what would differ had a site been touched: processes, roles, and the record of what was done."""
    events = {role: (home(stack, role)[0] / "log/events.jsonl").read_text() for role in NAMES}
    return {"processes": processes(stack), "roles": {role: kept(stack, role) for role in NAMES}, "events": events}


def test_a_changed_input_moves_the_roles_there_and_back_and_nothing_is_lost(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    for role in NAMES:
        make_wal_in_advance(home(stack, role)[0] / "data")
    with clients(stack, 3) as running:
        stack.pair(active=active("replica", 1))
        before = traces(stack)
        for wrapper in ([], with_machine(ELSEWHERE, stack.folder, hide_postgresql=True)):
            stack.wrapper = wrapper
            shown = stack.preview()
            assert re.search(r'~ active +: "primary" => "replica"', shown)
            assert re.search(r"~ epoch +: 0 => 1", shown)
            for words in (
                "switch over from montreal to toronto",
                "montreal stops cleanly and becomes a standby",
                "toronto is promoted once it has everything that montreal wrote",
                "montreal follows toronto; if anything fails before the promotion, montreal is back",
            ):
                assert words in shown
            assert "1 to update" in shown
        stack.wrapper = []
        assert traces(stack) == before, "a preview touches no site"
        shown = stack.up()
        assert "toronto becomes the primary" in shown
        running.wait_until_served()
        assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
        assert stack.outputs()["active"] == "replica"
    insist(stack, running, "replica")

    stack.up("--expect-no-changes")
    assert "7 unchanged" in stack.refresh()
    stack.up("--expect-no-changes")
    assert kept(stack, "primary")["epoch"] == kept(stack, "replica")["epoch"] == 1
    assert kept(stack, "primary")["operation"] is None

    with clients(stack) as running:
        stack.pair(active=active("primary", 2))
        assert "switch over from toronto to montreal" in stack.preview()
        stack.up()
        running.wait_until_served()
        assert roles_seen(stack) == {"primary": "primary", "replica": "standby"}
        assert stack.outputs()["active"] == "primary"
    insist(stack, running, "primary")
    stack.up("--expect-no-changes")
    assert rows(stack) == [1]


@pytest.mark.parametrize("replication", sampled(["asynchronous", "synchronous"], 1))
def test_the_stack_s_configuration_moves_the_roles_too(stack: Stack, replication: str) -> None:
    stack.pair(f'replication="{replication}"')
    stack.up()

    def configure(member: str, epoch: int) -> None:
        stack.run("config", "set", "--path", 'harmony:active["orders-orders"].member', member)
        stack.run("config", "set", "--path", 'harmony:active["orders-orders"].epoch', str(epoch))

    for epoch, role in enumerate(("replica", "primary"), start=1):
        with clients(stack) as running:
            configure(role, epoch)
            stack.up()
            running.wait_until_served()
        insist(stack, running, role)
        assert stack.outputs()["active"] == role
        stack.up("--expect-no-changes")
        waits = ask(stack, role, "SHOW synchronous_standby_names")
        other = next(name for r, name in NAMES.items() if r != role)
        assert waits == (f'FIRST 1 ("{other}")' if replication == "synchronous" else "")

    stack.pair(f'replication="{replication}"', active=active("replica", 3))
    assert "say it in one place" in stack.preview(expect=1)


def test_what_is_not_the_next_thing_is_refused_and_touches_nothing(stack: Stack) -> None:
    stack.pair()
    stack.up()
    stack.pair(active=active("replica", 1))
    stack.up()
    put_row(stack, 1)
    before = traces(stack)

    for wanted, said in {
        active("primary", 1): "active changes from 'replica' (toronto) to 'primary' (montreal), and epoch stays 1; "
        "write epoch=2",
        active("replica", 0): "epoch 1 becomes 0, which is older",
        "None": "epoch 1 becomes 0, which is older",
    }.items():
        stack.pair(active=wanted)
        for shown in (stack.preview(expect=1), stack.up(expect=1)):
            assert said in shown
    stack.pair(active=active("primary", 3))
    assert "epoch 1 becomes 3: `up` refuses that, unless the sites have come to epoch 2 or 3" in stack.preview()
    shown = stack.up(expect=1)
    assert "epochs are raised by one. Write active='primary', epoch=2" in shown
    assert traces(stack) == before
    stack.pair(active=active("replica", 1))
    stack.up("--expect-no-changes")


def test_a_stale_checkout_is_refused_whatever_its_state_says(stack: Stack) -> None:
    stack.pair()
    stack.up()
    old = stack.run("stack", "export")
    stack.pair(active=active("replica", 1))
    stack.up()
    put_row(stack, 1)
    new = stack.run("stack", "export")
    before = traces(stack)

    # As after a role change by command: the stack's state does not know of it.
    (stack.folder / "old.json").write_text(old)
    stack.run("stack", "import", "--file", str(stack.folder / "old.json"))
    stack.pair()
    stack.up()
    assert traces(stack) == before, "nothing changed, so nothing is done"
    for wanted, said in {
        "None": "roles have moved since. Write active='replica', epoch=1 to keep them as they are",
        active("replica", 3): "epochs are raised by one. Write active='replica', epoch=1",
    }.items():
        stack.refresh()
        stack.pair(active=wanted)
        before = traces(stack)
        assert said in stack.up(expect=1)
        assert traces(stack) == before
        assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    (stack.folder / "new.json").write_text(new)
    stack.run("stack", "import", "--file", str(stack.folder / "new.json"))
    stack.pair(active=active("replica", 1))
    stack.up()
    assert rows(stack, "replica") == [1]
    stack.up("--expect-no-changes")


def program(stack: Stack, config: str, roles: str, databases: str = '"orders"') -> None:
    """Set the program to a pair with more than one database."""
    stack.program(PAIR.format(config=config, active=roles).replace('databases=["orders"]', f"databases=[{databases}]"))


def test_what_is_deployed_after_a_switchover_reaches_the_active_member_and_the_other_follows(stack: Stack) -> None:
    there = active("replica", 1)
    stack.pair(active=there)
    stack.up()
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    put_row(stack, 1)
    with clients(stack) as running:
        for changes in ({"work_mem": "8MB"}, {"work_mem": "8MB", "max_connections": "150"}):
            stack.pair(f"settings={changes}", active=there)
            stack.up()
            for name, value in changes.items():
                assert show(stack, name, "primary") == show(stack, name, "replica") == value
            eventually(lambda: streams(stack, "replica"), "the standby to stream")
            stack.up("--expect-no-changes")
        stack.pair(active=there)
        stack.up()
        assert (show(stack, "work_mem", "replica"), show(stack, "max_connections", "replica")) == ("4MB", "100")
        assert show(stack, "work_mem", "primary") == "4MB"
        eventually(lambda: streams(stack, "replica"), "the standby to stream")

        program(stack, 'passwords={"orders": "another-0123456789"}', there, '"orders", "invoices"')
        stack.up()
        running.wait_until_served()  # On the connections that they have: the old password is none any more.
        outputs = stack.outputs()
        assert "another-0123456789" in outputs["uri"]
        with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
            assert client.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        databases = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database"
        assert "invoices" in ask(stack, "replica", databases)
        eventually(
            lambda: ask(stack, "primary", databases) == ask(stack, "replica", databases), "the database on the standby"
        )
    running.stop()
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    assert rows(stack, "replica") == [1]

    program(stack, 'passwords={"orders": "another-0123456789"}', active("primary", 2), '"orders", "invoices"')
    stack.up()
    insist(stack, running, "primary")


def test_destroyed_while_switched_the_active_data_is_kept_and_taken_over(stack: Stack) -> None:
    stack.pair(active=active("replica", 1))
    stack.up()
    with clients(stack) as running:
        running.wait_until_served()
        shown = stack.destroy()
        running.stop()
    folders = {name: data(stack, name, kept=True) for name in NAMES.values()}
    assert all(f"its data is kept in {folder}" in shown for folder in folders.values())
    assert [postmaster(folder) for folder in folders.values()] == [None, None]

    # Deployed as before any change, it would make the standby of before the primary.
    stack.pair()
    shown = stack.up(expect=1)
    assert "roles have moved since. Write active='replica', epoch=1" in shown
    stack.destroy()

    stack.pair(active=active("replica", 1))
    shown = stack.up()
    for words in ("initdb", "making an empty database", "copying the data"):
        assert words not in shown
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    insist(stack, running, "replica")
    stack.up("--expect-no-changes")


def test_a_lowered_limit_does_not_hinder_the_way_back(stack: Stack) -> None:
    stack.pair('settings={"max_connections": 150}', active=active("replica", 1))
    stack.up()
    stack.pair(active=active("replica", 1))
    stack.up()
    stack.pair(active=active("primary", 2))
    stack.up()  # The one that steps down gets what it needs to follow.
    assert roles_seen(stack) == {"primary": "primary", "replica": "standby"}


def test_the_active_member_is_not_replaced_whatever_its_role_was_first(stack: Stack) -> None:
    stack.pair(active=active("replica", 1))
    stack.up()
    put_row(stack, 1)
    place = stack.folder / "pg"
    place.mkdir()
    stack.pair(f'members={{"toronto": MemberPlacement(directory="{place}")}}', active=active("replica", 1))
    for shown in (stack.preview(expect=1), stack.up(expect=1)):
        assert "which is the active member" in shown
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    assert rows(stack, "replica") == [1]


def test_a_standby_that_was_promoted_by_hand_moves_no_role(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    server_program(stack, "toronto", "pg_ctl", "promote", "-s", "-D", "{root}/data")
    stack.refresh()
    (pair,) = stack.resources("PostgreSQLPair")
    assert (pair["outputs"]["observed_active"], pair["outputs"]["active"]) == ("primary and replica", "primary")
    for wanted in ("None", active("replica", 1)):
        stack.pair(active=wanted)
        shown = stack.up(expect=1)
        assert re.search("promoted a member by hand|toronto: a running primary; a standby that runs is needed", shown)
        assert roles_seen(stack) == {"primary": "primary", "replica": "primary"}
    assert kept(stack, "primary")["epoch"] == 0
    assert rows(stack) == [1]


def test_a_switchover_that_could_not_go_well_is_refused_before_anything_is_touched(stack: Stack) -> None:
    stack.pair('settings={"wal_level": "logical"}')
    stack.up()
    put_row(stack, 1)
    toronto = home(stack, "replica")[0]
    stack.pair('settings={"wal_level": "logical"}', active=active("replica", 1))

    def refused(*words: str) -> None:
        before = (processes(stack), [kept(stack, role) for role in NAMES])
        shown = stack.up(expect=1)
        assert "no switchover to toronto; nothing was touched" in shown
        for word in words:
            assert word in shown
        assert (processes(stack), [kept(stack, role) for role in NAMES]) == before
        assert roles_seen(stack)["primary"] == "primary"

    def start_toronto() -> None:
        server_program(
            stack, "toronto", "pg_ctl", "start", "-s", "-w", "-D", "{root}/config", "-l", "{root}/log/postgresql.log"
        )
        eventually(lambda: streams(stack, "primary"), "the replica to stream")

    stop_postmaster(toronto / "data", signal.SIGINT)
    refused("toronto: stopped", "toronto is not connected")

    start_toronto()

    cut_off = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication"
    ask(stack, "primary", f"ALTER ROLE {REPLICATION_ROLE} NOLOGIN; {cut_off}")
    eventually(lambda: not streams(stack, "primary"), "the replica to be cut off")
    refused("toronto is not connected")
    ask(stack, "primary", f"ALTER ROLE {REPLICATION_ROLE} LOGIN")
    eventually(lambda: streams(stack, "primary"), "the replica to stream")

    ask(stack, "replica", "SELECT pg_wal_replay_pause()")
    refused("replay: paused on toronto")
    ask(stack, "replica", "SELECT pg_wal_replay_resume()")
    ask(stack, "replica", "ALTER SYSTEM SET recovery_min_apply_delay = '1min'; SELECT pg_reload_conf()")
    delay = "SELECT setting FROM pg_settings WHERE name = 'recovery_min_apply_delay'"
    eventually(lambda: ask(stack, "replica", delay) == "60000", "the delay to be known")
    refused("replay: toronto delays it by 60000 ms")
    ask(stack, "replica", "ALTER SYSTEM RESET recovery_min_apply_delay; SELECT pg_reload_conf()")
    eventually(lambda: ask(stack, "replica", delay) == "0", "the delay to be gone")

    major = found_postgresql().major
    ask(stack, "primary", "SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
    refused("logical slot: feed would not be on toronto" + (", as only PostgreSQL 17" if major < 17 else ": ALTER"))
    ask(stack, "primary", "SELECT pg_drop_replication_slot('feed')")

    tls = toronto / "tls"
    valid = {name: (tls / name).read_text() for name in ("server.crt", "server.key")}
    authority = certificates.KeyPair((tls / "ca.crt").read_text(), (tls / "ca.key").read_text())
    for name, text in zip(valid, certificates.make_server(authority, "localhost", 0), strict=True):
        (tls / name).write_text(text)
    refused("'server' of toronto expired", "`harmony rotate-certificates` makes a new one")
    for name, text in valid.items():
        (tls / name).write_text(text)

    with clients(stack) as running:
        stack.up()
        running.wait_until_served()
    insist(stack, running, "replica")


def test_what_text_is_sorted_by_is_looked_at_where_something_depends_on_it(stack: Stack) -> None:
    stack.pair()
    stack.up()
    root, port = home(stack, "primary")
    table = """
    CREATE DOMAIN name AS text COLLATE "de-x-icu"; CREATE TABLE place (name text COLLATE "sv-x-icu");
    CREATE INDEX ON place (name COLLATE "da-x-icu"); SELECT pg_current_wal_lsn()
    """
    lsn = superuser(root, table, port, "orders").splitlines()[-1]
    eventually(lambda: ask(stack, "replica", f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'") == "t", "the replay")
    outputs = stack.outputs()
    surveys = [HostPostgreSQL(outputs[f"{role}_site"]).survey() for role in NAMES]
    used = {f'"{name}-x-icu" (in orders)' for name in ("da", "de", "sv")}
    for found in surveys:
        assert {name for name in found["collations"] if "icu" in name} == used
        assert all(recorded == actual for recorded, actual in found["collations"].values())

    superuser(root, "UPDATE pg_collation SET collversion = '1' WHERE collname = 'sv-x-icu'", port, "orders")
    shown = subprocess.run(
        ["harmony", "plan", "--to", "toronto"],
        cwd=stack.folder,
        env=stack.env,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert '"sv-x-icu" (in orders) was made with 1 and is ' in shown
