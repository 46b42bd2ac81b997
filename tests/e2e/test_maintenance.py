"""Settings that need a restart, while clients write: which member comes first, and that the standby is never lost."""

from __future__ import annotations

import json
import re
import signal

import pytest

from tests.e2e.conftest import Stack, eventually, free_port, port_of, postmaster
from tests.e2e.sampling import sampled
from tests.e2e.test_lifecycle import put_row, rows
from tests.e2e.test_switchover import NAMES, active, ask, clients, home, insist, processes, streams

pytestmark = pytest.mark.e2e

_STARTED = "SELECT extract(epoch FROM pg_postmaster_start_time())"
_TOO_LOW = re.compile("hot standby is not possible|recovery has paused|recovery aborted|insufficient parameter")
LIMITS = {
    "max_connections": 130,
    "max_worker_processes": 12,
    "max_wal_senders": 14,
    "max_prepared_transactions": 5,
    "max_locks_per_transaction": 80,
}


def order_of_starts(stack: Stack) -> list[str]:
    """Return the roles of the members in the order in which their servers were started."""
    return sorted(NAMES, key=lambda role: float(ask(stack, role, _STARTED)))


def log_of(stack: Stack, role: str) -> str:
    return (home(stack, role)[0] / "log/postgresql.log").read_text()


def limits_of(stack: Stack, role: str) -> dict[str, int]:
    return {name: int(ask(stack, role, f"SHOW {name}")) for name in LIMITS}


@pytest.mark.parametrize("leader", sampled(["primary", "replica"], 1))
def test_limits_are_raised_on_the_standby_first_and_lowered_on_the_primary_first(stack: Stack, leader: str) -> None:
    follower = next(role for role in NAMES if role != leader)
    roles = "None" if leader == "primary" else active(leader, 1)
    stack.pair(active=roles)
    stack.up()
    before = {role: limits_of(stack, role) for role in NAMES}
    with clients(stack) as running:
        stack.pair(f"settings={LIMITS}", active=roles)
        stack.up()
        running.wait_until_served()
        assert order_of_starts(stack) == [follower, leader]
        assert limits_of(stack, "primary") == limits_of(stack, "replica") == LIMITS

        stack.pair('settings={"shared_buffers": "64MB"}', active=roles)
        stack.up()
        running.wait_until_served()
        assert {role: limits_of(stack, role) for role in NAMES} == before
        assert order_of_starts(stack) == [leader, follower]
        assert [ask(stack, role, "SHOW shared_buffers") for role in NAMES] == ["64MB", "64MB"]
        stack.up("--expect-no-changes")
        eventually(lambda: streams(stack, leader), "the standby to stream")
    assert not any(_TOO_LOW.search(log_of(stack, role)) for role in NAMES)
    insist(stack, running, leader)


@pytest.mark.parametrize("leader", sampled(["primary", "replica"], 1))
def test_a_setting_that_no_server_starts_with_interrupts_no_client(stack: Stack, leader: str) -> None:
    roles = "None" if leader == "primary" else active(leader, 1)
    stack.pair(active=roles)
    stack.up()
    leading = processes(stack)[leader]
    with clients(stack) as running:
        stack.pair('settings={"shared_preload_libraries": "nowhere", "max_connections": 150}', active=roles)
        shown = stack.up(expect=1)
        assert 'could not access file "nowhere"' in shown
        running.wait_until_served()
        assert processes(stack)[leader] == leading
        eventually(lambda: streams(stack, leader), "the standby to stream")
        assert {ask(stack, role, "SHOW max_connections") for role in NAMES} == {"100"}
        assert json.loads((home(stack, leader)[0] / "harmony.json").read_text())["state"] == "ready"
        stack.pair('settings={"work_mem": "8MB"}', active=roles)
        stack.up()
        assert processes(stack)[leader] == leading, "what was taken back asks for no restart"
        assert {ask(stack, role, "SHOW work_mem") for role in NAMES} == {"8MB"}
    found = running.check(stack.outputs()["uri"])
    assert (found.problems, found.failed, found.unknown) == ([], 0, 0)


def test_an_up_that_is_killed_between_the_members_is_finished_by_the_next(stack: Stack) -> None:
    stack.pair()
    stack.up()
    with clients(stack) as running:
        stack.pair(f"settings={LIMITS}")
        process = stack.start("up", "--yes", "--skip-preview")
        events = home(stack, "primary")[0] / "log/events.jsonl"
        eventually(lambda: '"standby-first"' in events.read_text(), "the standby's turn")
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        running.wait_until_served()
        stack.run("cancel", "--yes")
        stack.refresh()
        stack.up()
        running.wait_until_served()
        assert limits_of(stack, "primary") == limits_of(stack, "replica") == LIMITS
        assert postmaster(home(stack, "replica")[0] / "data") is not None
        eventually(lambda: streams(stack, "primary"), "the standby to stream")
    assert not any(_TOO_LOW.search(log_of(stack, role)) for role in NAMES)
    insist(stack, running, "primary")


@pytest.mark.parametrize("leader", sampled(["primary", "replica"], 1))
def test_a_leader_whose_port_and_certificates_change_is_still_followed(stack: Stack, leader: str) -> None:
    roles = "None" if leader == "primary" else active(leader, 1)
    stack.pair(active=roles)
    stack.up()
    put_row(stack, 1)
    eventually(lambda: streams(stack, leader), "the standby to stream")
    port = free_port()
    place = f'members={{"{NAMES[leader]}": MemberPlacement(port={port})}}'
    stack.pair(f"{place}, certificate_lifetime_days=99", active=roles)
    stack.up()
    assert port_of(stack.outputs()[f"{leader}_uri"]) == port
    put_row(stack, 2)
    eventually(lambda: all(rows(stack, role) == [1, 2] for role in NAMES), "both rows on both")
    stack.up("--expect-no-changes")
