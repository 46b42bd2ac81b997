"""`pulumi destroy` while failed over: what the active member has is kept or deleted as configured, whatever is dead."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL

import pytest

from tests.e2e.conftest import (
    Stack,
    as_os_user,
    eventually,
    found_postgresql,
    needs_root,
    postmaster,
    processes_about,
    stop_postmaster,
    superuser,
)
from tests.e2e.sampling import sampled
from tests.e2e.test_failover import FAILOVER, kill
from tests.e2e.test_lifecycle import put_row, rows
from tests.e2e.test_roles_cli import harmony
from tests.e2e.test_switchover import ask, home, roles_seen

pytestmark = pytest.mark.e2e

ANY_LOSS = (*FAILOVER, "--accept-unknown-loss")


def without_process(root: Path) -> None:
    del root


def without_data(root: Path) -> None:
    shutil.rmtree(root / "data")


def without_folder(root: Path) -> None:
    shutil.rmtree(root)


def torn_marker(root: Path) -> None:
    (root / "harmony.json").write_text("{")


LOSSES: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (without_process, without_data, without_folder)
}


def read_by_hand(root: Path, port: int) -> list[int]:
    """Start what `destroy` has kept, by hand, and return the rows that are in it."""
    assert not (root / "data/standby.signal").exists(), "it was a primary, and is to start as one"
    pg_ctl = [f"{found_postgresql().path}/pg_ctl", "-s", "-w", "-D", str(root / "config")]
    log = ["-l", str(root / "log/by-hand.log")]
    subprocess.run(as_os_user(*pg_ctl, *log, "start"), check=True, timeout=60, cwd="/", stdin=DEVNULL, stdout=DEVNULL)
    try:
        found = superuser(root, "SELECT value FROM kept ORDER BY value", port, "orders")
        return [int(value) for value in found.splitlines()]
    finally:
        stop_postmaster(root / "data", signal.SIGINT)


def failed_over(stack: Stack, config: str, loss: Callable[[Path], None]) -> tuple[Path, Path, int]:
    """Lose the primary, and fail over; return the folders of the old primary and of the new one, and its port."""
    stack.pair(config)
    stack.up()
    put_row(stack, 1)
    (old, _), (new, port) = home(stack, "primary"), home(stack, "replica")
    kill(stack, "montreal")
    loss(old)
    harmony(stack, *ANY_LOSS, "--fenced-by-me", "montreal")
    return old, new, port


def insist_on_nothing_left(stack: Stack) -> None:
    assert stack.resources("PostgreSQLServer") == stack.resources("PostgreSQLPair") == []
    eventually(lambda: not processes_about(f"/{stack.project}/"), "every process of the stack to end")


@pytest.mark.parametrize("loss", sampled(list(LOSSES), 1))
def test_destroyed_while_failed_over_the_active_data_is_kept_whatever_became_of_the_old_primary(
    stack: Stack, loss: str
) -> None:
    _, new, port = failed_over(stack, 'replication="synchronous"', LOSSES[loss])
    put_row(stack, 2)
    shown = stack.destroy()
    assert f"its data is kept in {new}/data" in shown
    insist_on_nothing_left(stack)
    assert read_by_hand(new, port) == [1, 2]


@pytest.mark.parametrize("loss", sampled(list(LOSSES), 1))
def test_destroyed_while_failed_over_everything_is_deleted_where_the_configuration_says_so(
    stack: Stack, loss: str
) -> None:
    old, new, _ = failed_over(stack, 'on_destroy="delete"', LOSSES[loss])
    stack.destroy()
    insist_on_nothing_left(stack)
    assert (old.exists(), new.exists()) == (False, False)


@pytest.mark.parametrize("config", ['on_destroy="delete"', ""])
def test_what_cannot_be_known_to_be_ours_is_not_deleted_and_hinders_nothing(stack: Stack, config: str) -> None:
    old, new, _ = failed_over(stack, config, torn_marker)
    shown = stack.destroy()
    assert f"whose {old} is cannot be told, so it is left as it is, its data too" in shown
    assert "is not a marker of this version of harmony" in shown
    assert (old / "data/PG_VERSION").exists()
    assert (new / "data/PG_VERSION").exists() == (config == "")
    insist_on_nothing_left(stack)
    shutil.rmtree(old)


def test_a_server_that_runs_in_a_folder_that_cannot_be_read_is_not_left_behind(stack: Stack) -> None:
    stack.pair()
    stack.up()
    root, _ = home(stack, "replica")
    whole = (root / "harmony.json").read_text()
    torn_marker(root)
    pid = postmaster(root / "data")
    shown = stack.destroy(expect=1)
    assert "A server may run there (process" in shown
    assert str(pid) in shown
    assert postmaster(root / "data") == pid
    stop_postmaster(root / "data", signal.SIGINT)
    stack.destroy()
    insist_on_nothing_left(stack)
    (root / "harmony.json").write_text(whole)


@pytest.mark.parametrize("part", sampled(["", "data"], 1))
def test_a_folder_that_cannot_be_read_does_not_block_a_failover_that_is_vouched_for_nor_destroy(
    stack: Stack, part: str
) -> None:
    needs_root("the servers' OS user is another one")
    stack.pair()
    stack.up()
    put_row(stack, 1)
    eventually(lambda: rows(stack, "replica") == [1], "the row on the standby")
    (old, _), (new, port) = home(stack, "primary"), home(stack, "replica")
    kill(stack, "montreal")
    closed = old / part if part else old
    os.chown(closed, 0, 0)
    harmony(stack, *ANY_LOSS, expect=1)
    assert roles_seen(stack) == {"replica": "standby"}
    shown = harmony(stack, *ANY_LOSS, "--fenced-by-me", "montreal")
    assert "toronto becomes the primary" in shown
    put_row(stack, 2)
    shown = stack.destroy()
    assert f"its data is kept in {new}/data" in shown
    insist_on_nothing_left(stack)
    assert (old / "data/PG_VERSION").exists()
    assert read_by_hand(new, port) == [1, 2]


@pytest.mark.parametrize("told", sampled([True, False], 1))
def test_destroyed_after_roles_moved_by_command_the_active_data_is_kept_whether_or_not_the_stack_knows(
    stack: Stack, tmp_path: Path, *, told: bool
) -> None:
    stack.pair('replication="synchronous"')
    stack.up()
    put_row(stack, 1)
    sites = tmp_path / "sites.json"
    sites.write_text(stack.run("stack", "output", "--json", "site"))
    at = () if told else ("--site", str(sites))
    kill(stack, "montreal")
    harmony(stack, *FAILOVER, *at)
    harmony(stack, "rejoin", "--yes", *at)
    assert roles_seen(stack) == {"primary": "standby", "replica": "primary"}
    assert stack.outputs()["active"] == ("replica" if told else "primary")
    put_row(stack, 2)
    (old, _), (new, port) = home(stack, "primary"), home(stack, "replica")
    (old / "log/postgresql.log").write_text("")
    # One that has commits wait for it and is gone would keep the other from writing, as long as that lives.
    assert ask(stack, "replica", "SHOW synchronous_standby_names")
    shown = stack.destroy()
    assert f"its data is kept in {new}/data" in shown
    insist_on_nothing_left(stack)
    assert (new / "config/synchronous.conf").read_text().count("FIRST") == 0
    assert read_by_hand(new, port) == [1, 2]


def test_a_server_whose_folder_was_removed_under_it_does_not_outlive_its_destruction(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    assert rows(stack) == [1]
    root, _ = home(stack, "primary")
    pid = postmaster(root / "data")
    assert pid is not None
    shutil.rmtree(root)
    stack.destroy()
    insist_on_nothing_left(stack)
