"""The primary is lost: failover, rejoin, and what they refuse, on real servers and stacks."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from harmony_pulumi.capabilities.postgresql_facts import REPLICATION_ROLE
from tests.e2e.conftest import Stack, eventually, make_wal_in_advance, stop_postmaster, with_mounts
from tests.e2e.test_lifecycle import put_row, rows
from tests.e2e.test_roles_cli import harmony
from tests.e2e.test_switchover import ask, data, home, roles_seen, server_program, streams

pytestmark = pytest.mark.e2e

FAILOVER = ("failover", "--to", "toronto", "--yes", "--max-data-loss", "0")


def kill(stack: Stack, name: str) -> Path:
    """Kill a server as a loss of power does; return its data directory."""
    folder = data(stack, name)
    stop_postmaster(folder, signal.SIGKILL)
    return folder


def test_a_dead_primary_is_failed_over_from_and_comes_back_by_a_rewind(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    eventually(lambda: rows(stack, "replica") == [1], "the row on the standby")
    kill(stack, "montreal")
    plan = json.loads(harmony(stack, "plan", "--json"))
    assert (plan["operation"], plan["possible"]) == ("failover", True)

    shown = harmony(stack, *FAILOVER)
    assert "toronto becomes the primary" in shown
    assert "The stack knows" in shown
    assert stack.outputs()["active"] == "replica"
    put_row(stack, 2)
    stack.up("--expect-no-changes")
    assert json.loads(harmony(stack, "plan", "--json"))["operation"] == "rejoin"

    shown = harmony(stack, "rejoin", "--yes")
    assert "montreal is rewound" in shown
    assert "is copied" not in shown
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    eventually(lambda: rows(stack, "primary") == [1, 2], "both rows on the old primary")
    stack.up("--expect-no-changes")
    harmony(stack, "switchover", "--to", "montreal", "--yes")
    assert roles_seen(stack) == {"primary": "primary", "replica": "standby"}
    put_row(stack, 3)
    eventually(lambda: rows(stack, "replica") == [1, 2, 3], "all rows on the standby")


def isolate(stack: Stack) -> None:
    """Have the standby receive nothing more, and commit on the primary what it will not have."""
    ask(stack, "replica", "ALTER SYSTEM SET primary_conninfo = ''")
    ask(stack, "replica", "SELECT pg_reload_conf()")
    eventually(lambda: not streams(stack, "primary"), "the standby to be cut off")


def test_what_the_old_primary_alone_has_is_bounded_before_and_listed_after(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    eventually(lambda: rows(stack, "replica") == [1], "the row on the standby")
    isolate(stack)
    for number in (2, 3):
        put_row(stack, number)
    make_wal_in_advance(kill(stack, "montreal"))

    shown = harmony(stack, *FAILOVER, expect=1)
    assert "2 transactions, that toronto has not received" in shown
    assert "bytes would be lost, and at most 0 are accepted" in shown
    assert roles_seen(stack) == {"replica": "standby"}
    bound = ("--max-data-loss", "1000000")
    shown = harmony(stack, *FAILOVER[:-2], *bound)
    assert "2 transactions" in shown
    put_row(stack, 4)

    # Whoever starts the old one has a standby that follows nobody, and shows what is lost.
    stack.refresh()
    stack.up()
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    assert rows(stack, "primary") == [1, 2, 3]
    assert "with 2 committed transactions" in harmony(stack, "plan")

    harmony(stack, "rejoin", "--yes")
    eventually(lambda: rows(stack, "primary") == [1, 4], "the rows of the new primary on the old one")
    (lists,) = (home(stack, "primary")[0] / "kept").glob("diverged-*/transactions.json")
    found = json.loads(lists.read_text())
    assert len(found["transactions"]) == 2
    assert all(any(change.startswith("INSERT") for change in t["changes"]) for t in found["transactions"])
    assert list(lists.parent.glob("pg_wal/0000*"))
    stack.refresh()
    stack.up()
    stack.up("--expect-no-changes")


def test_a_revert_after_a_failover_leaves_everything_as_it_was_but_the_history(stack: Stack) -> None:
    stack.pair('replication="synchronous"')
    stack.up()
    put_row(stack, 1)
    kill(stack, "montreal")
    # A synchronous pair loses nothing that counts, however little can be read of the old primary.
    shown = harmony(stack, *FAILOVER)
    assert "commits wait for nobody until montreal has rejoined" in shown
    put_row(stack, 2)
    shown = harmony(stack, "revert", "--yes")
    assert "montreal.timeline" in shown
    assert "differs" not in shown
    assert re.search(r"(\d+) of \d+ fields are as they were", shown)
    assert roles_seen(stack) == {"primary": "primary", "replica": "standby"}
    assert ask(stack, "primary", "SELECT sync_state FROM pg_stat_replication") == "sync"
    put_row(stack, 3)
    eventually(lambda: rows(stack, "replica") == [1, 2, 3], "all rows on the standby")
    stack.up("--expect-no-changes")
    assert "fields are as they were" in harmony(stack, "revert", "--yes")


def test_a_member_promoted_by_hand_is_accepted_by_command(stack: Stack) -> None:
    stack.pair()
    stack.up()
    kill(stack, "montreal")
    server_program(stack, "toronto", "pg_ctl", "promote", "-s", "-w", "-D", "{root}/data")
    stack.refresh()
    assert "expected exactly one primary" not in harmony(stack, "accept", "--yes")
    assert stack.outputs()["active"] == "replica"
    put_row(stack, 1)
    harmony(stack, "rejoin", "--yes")
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    eventually(lambda: rows(stack, "primary") == [1], "the row on the old primary")
    stack.up()
    stack.up("--expect-no-changes")


def elsewhere(stack: Stack, name: str) -> str:
    """Return a file of sites in which a member is on a machine that is out of reach."""
    sites = json.loads(stack.run("stack", "output", "--json", "site"))
    for member in sites["members"].values():
        if member["name"] == name:
            member["host"]["machine_id"] = "0" * 31 + "1"
    file = stack.folder / "sites.json"
    file.write_text(json.dumps(sites))
    return str(file)


def test_a_primary_that_cannot_be_asked_is_not_failed_over_from_unless_it_is_fenced(stack: Stack) -> None:
    marks = stack.folder / "fenced"
    fence = f'members={{"montreal": MemberPlacement(fence_command=["touch", "{marks}"])}}'
    stack.pair()
    stack.up()
    put_row(stack, 1)
    eventually(lambda: rows(stack, "replica") == [1], "the row on the standby")
    site = ("--site", elsewhere(stack, "montreal"))

    shown = harmony(stack, *FAILOVER, "--accept-unknown-loss", *site, expect=1)
    assert "add --fenced-by-me montreal" in shown
    shown = harmony(stack, *FAILOVER, "--fenced-by-me", "montreal", *site, expect=1)
    assert "add --accept-unknown-loss" in shown
    words = ("--accept-unknown-loss", "--fenced-by-me", "toronto")
    assert "the member to be fenced is montreal" in harmony(stack, *FAILOVER, *words, *site, expect=2)
    assert "loses nothing" in harmony(stack, *FAILOVER, "--accept-unknown-loss", expect=1)
    assert roles_seen(stack) == {"primary": "primary", "replica": "standby"}

    stack.pair(fence)
    stack.up()
    site = ("--site", elsewhere(stack, "montreal"))
    shown = harmony(stack, *FAILOVER, "--accept-unknown-loss", *site)
    assert "its fence_command, touch, succeeded" in shown
    assert marks.exists()
    # It lied: the old primary lives on, takes writes, and is found out as soon as it answers.
    assert roles_seen(stack) == {"primary": "primary", "replica": "primary"}
    put_row(stack, 2, "primary")
    assert "montreal and toronto take writes" in harmony(stack, "status", expect=1)
    stack.refresh()
    assert "roles have moved since" in stack.up(expect=1)
    harmony(stack, "rejoin", "--yes")
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    assert rows(stack, "primary") == [1]
    (lists,) = (home(stack, "primary")[0] / "kept").glob("diverged-*/transactions.json")
    assert len(json.loads(lists.read_text())["transactions"]) == 1


def test_a_primary_whose_roles_cannot_be_read_is_failed_over_from_by_the_operator_s_word_alone(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    eventually(lambda: rows(stack, "replica") == [1], "the row on the standby")
    root = home(stack, "primary")[0]
    roles = (root / "roles.json").read_text()
    (root / "roles.json").write_text("{")
    terms = (*FAILOVER, "--accept-unknown-loss")
    shown = harmony(stack, *terms, "--fenced-by-me", "montreal", expect=1)
    assert "Its server runs, as process" in shown
    put_row(stack, 2)  # It takes writes: nobody else was promoted.
    eventually(lambda: rows(stack, "replica") == [1, 2], "the row on the standby")
    kill(stack, "montreal")

    shown = harmony(stack, *terms, expect=1)
    assert "roles.json is not what this version of harmony writes" in shown
    assert shown.rstrip().endswith("then add --fenced-by-me montreal")
    with subprocess.Popen(["flock", str(root / "lock"), "cat"], stdin=subprocess.PIPE) as holder:
        (root / "lock").write_text("grace\n")
        eventually(lambda: str(holder.pid) in Path("/proc/locks").read_text(), "the lock to be held")
        shown = harmony(stack, *terms, "--fenced-by-me", "montreal", expect=1)
        assert "grace has held it for the last 5 s" in shown
        assert holder.stdin is not None
        holder.stdin.close()
    shown = harmony(stack, *terms, "--fenced-by-me", "montreal")
    assert "montreal is passed by" in shown
    assert roles_seen(stack) == {"replica": "primary"}
    assert (root / "roles.json").read_text() == "{"
    assert not (data(stack, "montreal") / "standby.signal").exists()

    (root / "roles.json").write_text(roles)
    harmony(stack, "rejoin", "--yes")
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}


def test_a_member_that_is_gone_is_made_as_a_copy_of_the_active_one_whatever_it_was_declared_as(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    eventually(lambda: rows(stack, "replica") == [1], "the row on the standby")
    kill(stack, "montreal")
    shutil.rmtree(home(stack, "primary")[0])
    harmony(stack, "failover", "--to", "toronto", "--yes", "--max-data-loss", "0", "--accept-unknown-loss")
    put_row(stack, 2)
    stack.refresh()
    shown = stack.up()
    assert "toronto is active at epoch 1: this is made as a copy of it" in shown
    assert "initdb" not in shown
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    eventually(lambda: rows(stack, "primary") == [1, 2], "both rows on the member that was made again")
    harmony(stack, "rejoin", "--yes")
    stack.up("--expect-no-changes")
    harmony(stack, "revert", "--yes", expect=None)
    assert roles_seen(stack) == {"primary": "primary", "replica": "standby"}


def let_in(stack: Stack, role: str, database: str, *, allowed: bool) -> None:
    """Have a member's server let standbys in, as it does, or not: its rules are read anew."""
    root = home(stack, role)[0]
    rules, rule = root / "config/pg_hba.conf", f"hostssl {database} {REPLICATION_ROLE} all cert"
    text = rules.read_text()
    assert rule in text
    rules.write_text(text.replace(f"# {rule}", rule) if allowed else text.replace(rule, f"# {rule}"))
    ask(stack, role, "SELECT pg_reload_conf()")
    reads = (
        f"SELECT count(*) FROM pg_hba_file_rules WHERE '{REPLICATION_ROLE}' = ANY(user_name) AND auth_method = 'cert'"
    )
    eventually(lambda: ask(stack, role, reads) == str(2 if allowed else 1), "the rules to be read")


def back_by_a_rewind(stack: Stack) -> None:
    """Have the old primary rejoin, and assert that it was rewound: nothing was copied."""
    harmony(stack, "rejoin", "--yes")
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    root = home(stack, "primary")[0]
    assert not list((root / "kept").glob("data-*")), "it was copied anew"
    eventually(lambda: rows(stack, "primary") == rows(stack, "replica"), "the rows of the new primary")


def test_what_may_pass_is_no_reason_to_copy_a_member_anew(stack: Stack) -> None:
    stack.pair("deadlines=Deadlines(stream=10)")
    stack.up()
    put_row(stack, 1)
    eventually(lambda: rows(stack, "replica") == [1], "the row on the standby")
    isolate(stack)
    put_row(stack, 2)
    kill(stack, "montreal")
    harmony(stack, *FAILOVER[:-1], "1000000")
    put_row(stack, 3)

    let_in(stack, "replica", "postgres", allowed=False)
    for _ in range(2):
        shown = harmony(stack, "rejoin", "--yes", expect=1)
        assert "cannot be rewound now: " in " ".join(shown.split())
        assert "pg_hba.conf rejects connection" in " ".join(shown.split())
        assert "copied anew:" not in shown
    let_in(stack, "replica", "postgres", allowed=True)
    let_in(stack, "replica", "replication", allowed=False)
    for _ in range(2):
        shown = harmony(stack, "rejoin", "--yes", expect=1)
        assert "montreal streaming from toronto: not within 10 s" in " ".join(shown.split())
        assert "copied anew:" not in shown
    let_in(stack, "replica", "replication", allowed=True)
    back_by_a_rewind(stack)


def test_a_disk_without_room_is_no_reason_to_copy_a_member_anew(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    eventually(lambda: rows(stack, "replica") == [1], "the row on the standby")
    isolate(stack)
    put_row(stack, 2)
    kill(stack, "montreal")
    harmony(stack, *FAILOVER[:-1], "1000000")
    kept = home(stack, "primary")[0] / "kept"
    full = with_mounts(f"mount -t tmpfs -o size=1m,mode=777 none {kept}")
    command = [*full, "harmony", "rejoin", "--yes"]
    done = subprocess.run(command, cwd=stack.folder, env=stack.env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MB are needed to put aside what this server alone has" in " ".join((done.stdout + done.stderr).split())
    assert "copied anew:" not in done.stdout
    back_by_a_rewind(stack)
