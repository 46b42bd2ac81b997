"""What hosts do to a pair: pids are used again, clocks are wrong, certificates expire, a rewind is cut off, ports are taken.

Clients write all the while; each test ends in the account of what they were told and what is there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.conftest import as_os_user, eventually, postmaster, stacks
from tests.e2e.driver import processes_in
from tests.e2e.test_boot import RUNS, boot
from tests.e2e.test_failover_faults import Pair
from tests.e2e.test_switchover_faults import SEED, other_than

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[[], Pair]]:
    """Return the pair of before, or a new one if that was left ill by a test that failed."""
    print(f"HARMONY_TEST_SEED={SEED}")
    with stacks(tmp_path_factory) as make:
        made: list[Pair] = []

        def get() -> Pair:
            if not made or not made[-1].healthy():
                made.append(Pair.deployed(make()))
            return made[-1]

        yield get


@pytest.fixture
def pair(current: Callable[[], Pair]) -> Pair:
    return current()


# -- a pid is used again -----------------------------------------------------------------------------------------------


@contextmanager
def stranger(argv: Sequence[str], cwd: str = "/") -> Generator[int]:
    """Run a process that waits, and insist that nobody has ended it, or even signalled it, meanwhile."""
    with subprocess.Popen([*argv, "cat"], cwd=cwd, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            eventually(lambda: os.readlink(f"/proc/{process.pid}/exe").endswith("/cat"), "the process to be cat")
            yield process.pid
            assert process.poll() is None, "the stranger was ended"
        finally:
            process.kill()


def give_pid(pair: Pair, role: str, pid: int | str) -> None:
    """Have the lock files of a dead server name this process, as if it had got the server's pid after a reboot."""
    assert postmaster(pair.data(role)) is None
    locks = [pair.data(role) / "postmaster.pid", *(pair.root(role) / "run").glob(".s.PGSQL.*.lock")]
    assert len(locks) == 2, locks
    for lock in locks:
        _, _, rest = lock.read_text().partition("\n")
        lock.write_text(f"{pid}\n{rest}")


@contextmanager
def used_again(pair: Pair, *roles: str, whose: str) -> Generator[list[int]]:
    """Have strangers have the pids of dead servers: of the servers' OS user, or of another one."""
    with ExitStack() as strangers:
        argv = as_os_user() if whose == "the same user" else []
        pids = [strangers.enter_context(stranger(argv)) for _ in roles]
        for role, pid in zip(roles, pids, strict=True):
            give_pid(pair, role, pid)
        yield pids


WHOSE = ["the same user", "another user"]


@pytest.mark.parametrize("whose", WHOSE)
def test_a_process_with_the_pid_of_a_killed_primary_is_neither_taken_for_it_nor_in_its_way(
    pair: Pair, whose: str
) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        with used_again(pair, source, whose=whose):
            assert pair.look()[source]["state"] == "stopped"
            pair.killed_and_again("failover", target)
            clients.wait_until_served()
            done = pair.do("rejoin", target)
            assert done.status == 0, done.said
        pair.account(clients, target)


@pytest.mark.parametrize("whose", WHOSE)
def test_servers_whose_pids_are_used_again_are_started_at_a_boot(pair: Pair, whose: str) -> None:
    leader = pair.leader
    follower = other_than(leader)
    with pair.clients() as clients:
        pair.kill(leader)
        pair.kill(follower)
        with used_again(pair, leader, follower, whose=whose):
            status, said = boot(pair.root(leader), pair.root(follower))
            assert status == RUNS, said
        pair.insist(clients, leader)


def test_an_update_and_a_failover_start_a_standby_whose_pid_is_used_again(pair: Pair) -> None:
    leader = pair.leader
    follower = other_than(leader)
    with pair.clients() as clients:
        pair.kill(follower)
        with used_again(pair, follower, whose="the same user"):
            pair.stack.up("--refresh")
        eventually(pair.healthy, "the standby to stream")
        pair.insist(clients, leader)


def test_nothing_is_started_while_something_of_the_server_may_live(pair: Pair) -> None:
    """A process of its user works in the data directory, and is not the one that the lock file names."""
    leader = pair.leader
    follower = other_than(leader)
    data = pair.data(follower)
    with pair.clients() as clients:
        pair.kill(follower)
        with used_again(pair, follower, whose="the same user") as pids, stranger(as_os_user(), str(data)) as inside:
            status, said = boot(pair.root(follower))
            assert status != RUNS, said
            assert f"process {inside} works in the data directory" in said
            assert (data / "postmaster.pid").read_text().startswith(f"{pids[0]}\n"), "left alone"
            assert processes_in(data) == [str(inside)]
        status, said = boot(pair.root(follower))
        assert status == RUNS, said
        pair.insist(clients, leader)
