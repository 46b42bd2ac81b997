"""What hosts do to a pair: pids are used again, clocks are wrong, certificates expire, a rewind is cut off.

Clients write all the while; each test ends in the account of what they were told and what is there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harmony_pulumi.capabilities.postgresql_facts import REPLICATION_ROLE
from harmony_pulumi.capabilities.site import Terms
from harmony_pulumi.hosts.postgresql import certificates
from harmony_pulumi.orchestration.preflight import checks
from tests.e2e.clocks import forget_the_dead, on_shifted_host, shifted
from tests.e2e.conftest import PAIR, Stack, as_os_user, eventually, postmaster, stacks, stop_postmaster
from tests.e2e.driver import REFUSED, Kind, processes_in
from tests.e2e.sampling import SEED, sampled
from tests.e2e.test_boot import RUNS, boot
from tests.e2e.test_failover_faults import ANYTHING, Pair, out_of_reach
from tests.e2e.test_roles_cli import harmony
from tests.e2e.test_switchover_faults import KILLED, act, other_than

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


# Where it works cannot be read, as of ssh-agent: prctl(2), PR_SET_DUMPABLE; then PR_SET_NAME.
HIDDEN = """
import ctypes, sys
prctl = ctypes.CDLL(None).prctl
prctl(4, 0, 0, 0, 0)
prctl(15, sys.argv[1].encode(), 0, 0, 0)
sys.stdin.read()
"""


@contextmanager
def stranger(argv: Sequence[str], cwd: str = "/", *, name: str = "cat", hidden: bool = False) -> Generator[int]:
    """Run a process that waits, and insist that nobody has ended it, or even signalled it, meanwhile."""
    waits = [sys.executable, "-c", HIDDEN, name] if hidden else ["cat"]
    with subprocess.Popen([*argv, *waits], cwd=cwd, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            eventually(
                lambda: Path(f"/proc/{process.pid}/comm").read_text() == f"{name}\n", f"the process to be {name}"
            )
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


KINDS: list[Kind] = ["failover", "rejoin"]
WHOSE = ["the same user", "another user"]


@pytest.mark.parametrize("whose", sampled(WHOSE, 1))
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


@pytest.mark.parametrize("whose", sampled(WHOSE, 1))
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


def test_an_update_starts_a_standby_whose_pid_is_used_again(pair: Pair) -> None:
    leader, follower = "primary", "replica"  # As the stack knows: drivers do not tell it.
    if pair.leader != leader:
        pair.killed_and_again("switchover", leader)
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


def test_a_process_that_hides_where_it_works_is_in_the_way_only_if_it_may_be_a_server(pair: Pair) -> None:
    leader = pair.leader
    follower = other_than(leader)
    with pair.clients() as clients:
        pair.kill(follower)
        with used_again(pair, follower, whose="the same user"):
            with stranger(as_os_user(), name="postgres", hidden=True) as hidden:
                status, said = boot(pair.root(follower))
                assert status != RUNS, said
                assert f"it cannot be told where process {hidden} works" in said
            with stranger(as_os_user(), name="ssh-agent", hidden=True):
                status, said = boot(pair.root(follower))
                assert status == RUNS, said
        pair.insist(clients, leader)


# -- certificates ------------------------------------------------------------------------------------------------------

Spoil = Callable[[Path], None]


def sign(tls: Path, authority: certificates.KeyPair, days: int) -> None:
    """Have a server's certificates be of an authority, and of so many days."""
    made = {
        "server": certificates.make_server(authority, "localhost", days),
        "replication": certificates.make_client(authority, REPLICATION_ROLE, days),
    }
    for name, (certificate, key) in made.items():
        (tls / f"{name}.crt").write_text(certificate)
        (tls / f"{name}.key").write_text(key)


def expired(tls: Path) -> None:
    sign(tls, certificates.KeyPair((tls / "ca.crt").read_text(), (tls / "ca.key").read_text()), 0)


def of_another_authority(tls: Path) -> None:
    sign(tls, certificates.make_authority("somebody else"), 365)


def with_keys_of_others(tls: Path) -> None:
    texts = [(tls / f"{name}.key").read_text() for name in ("server", "replication")]
    for name, text in zip(("replication", "server"), texts, strict=True):
        (tls / f"{name}.key").write_text(text)


SPOILT: list[tuple[Spoil, str]] = [
    (expired, "expired"),
    (of_another_authority, "was signed by no authority that is trusted there"),
    (with_keys_of_others, "does not belong to its key"),
]


def spoil(pair: Pair, role: str, how: Spoil) -> None:
    """Spoil a member's certificates, as somebody does who restores the wrong files, and have its server read them."""
    how(pair.root(role) / "tls")
    if postmaster(pair.data(role)):
        pair.ask(role, "SELECT pg_reload_conf()")


def rotate(pair: Pair) -> str:
    return harmony(pair.stack, "rotate-certificates", "--yes", "--site", str(site_file(pair)))


def site_file(pair: Pair) -> Path:
    path = pair.stack.folder / "sites.json"
    path.write_text(json.dumps(pair.handle))
    return path


@pytest.mark.parametrize(("how", "said"), sampled(SPOILT, 1))
def test_a_switchover_to_a_member_whose_certificates_are_bad_is_refused_until_they_are_rotated(
    pair: Pair, how: Spoil, said: str
) -> None:
    source, epoch = pair.leader, pair.epoch
    target = other_than(source)
    with pair.clients() as clients:
        spoil(pair, target, how)
        refused = pair.drive(target, epoch + 1)
        assert refused.status == REFUSED, refused.said
        assert "nothing was touched" in refused.said
        for name in ("server", "replication"):
            words = rf"certificate: '{name}' of \w+ {said}.*; `harmony rotate-certificates` makes a new one"
            assert re.search(words, refused.said), refused.said
        assert pair.epoch == epoch
        rotate(pair)
        done = pair.drive(target, epoch + 1)
        assert done.status == 0, done.said
        pair.insist(clients, target)


def test_a_primary_that_could_not_start_again_does_not_step_down(pair: Pair) -> None:
    source, epoch = pair.leader, pair.epoch
    target = other_than(source)
    with pair.clients() as clients:
        spoil(pair, source, with_keys_of_others)
        refused = pair.drive(target, epoch + 1)
        assert refused.status == REFUSED, refused.said
        assert "does not belong to its key, so it may not start again; `harmony rotate-certificates`" in refused.said
        rotate(pair)
        done = pair.drive(target, epoch + 1)
        assert done.status == 0, done.said
        pair.insist(clients, target)


@pytest.mark.parametrize("how", sampled([expired, of_another_authority], 1))
def test_certificates_that_go_bad_during_a_switchover_are_rotated_and_the_same_again_ends_it(
    pair: Pair, how: Spoil
) -> None:
    source, epoch = pair.leader, pair.epoch + 1
    target = other_than(source)
    pair.handle["deadline"] = 10
    try:
        with pair.clients() as clients:
            cut_off = pair.drive(target, epoch, [act("verify:done")])
            assert cut_off.status == KILLED, cut_off
            spoil(pair, target, how)
            failed = pair.drive(target, epoch)
            assert failed.status == REFUSED, failed.said
            assert "harmony rotate-certificates" in failed.said, failed.said
            assert pair.leader == target, "promoted, and not followed"
            rotate(pair)
            done = pair.drive(target, epoch)
            assert done.status == 0, done.said
            pair.insist(clients, target)
    finally:
        pair.handle["deadline"] = 60


@pytest.mark.parametrize(("how", "said"), sampled(SPOILT, 1))
def test_a_failover_to_a_member_whose_certificates_are_bad_warns_and_a_rotation_lets_the_old_one_back(
    pair: Pair, how: Spoil, said: str
) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        spoil(pair, target, how)
        pair.lose(source, clients)
        done = pair.do("failover", target)
        assert done.status == 0, done.said
        failed = pair.do("rejoin", target)
        assert failed.status == REFUSED, failed.said
        assert "harmony rotate-certificates" in failed.said, failed.said
        assert "alone, as" in rotate(pair)
        done = pair.do("rejoin", target)
        assert done.status == 0, done.said
        rotate(pair)
        pair.account(clients, target)


# -- clocks ------------------------------------------------------------------------------------------------------------

# Less than a day: the certificates that replace one which was made to have expired are valid for a day.
HOURS = [-20, -1, 1, 20]


def seconds_unheard(said: str) -> int:
    """Return how long ago the old primary was last heard of, as a failover says that is refused for that."""
    found = re.search(r"committed in the (-?\d+) s since it was last heard of", said)
    assert found, said
    return int(found[1])


def cannot_be_asked(pair: Pair, role: str) -> Pair:
    away = replace(out_of_reach(pair, role), environment=pair.environment)
    away.handle["members"][role]["host"]["connection"] = "local"  # Which asks for the machine-id.
    return away


def lose_and_come_back(pair: Pair) -> None:
    """Lose the primary, see what is said of the loss, fail over, and rejoin."""
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        vouched: Terms = {**ANYTHING, "fenced": "an operator vouches"}
        refused = cannot_be_asked(pair, source).do("failover", target, terms=vouched)
        assert refused.status == REFUSED, refused.said
        assert 0 <= seconds_unheard(refused.said) < 120, refused.said
        for kind in KINDS:
            done = pair.do(kind, target)
            assert done.status == 0, done.said
        pair.account(clients, target)


def switch_over(pair: Pair) -> None:
    target = other_than(pair.leader)
    with pair.clients() as clients:
        began = time.monotonic()
        done = pair.drive(target, pair.epoch + 1)
        assert done.status == 0, done.said
        assert time.monotonic() - began < 60
        pair.insist(clients, target)


@pytest.mark.parametrize("hours", sampled(HOURS, 1))
def test_an_operator_whose_clock_is_wrong_moves_roles_and_renews_certificates_as_any_other(
    pair: Pair, hours: int
) -> None:
    pair.environment = shifted(hours)
    before = dict(pair.stack.env)
    pair.stack.env |= pair.environment
    try:
        switch_over(pair)
        with pair.clients() as clients:
            rotate(pair)
            pair.insist(clients, pair.leader)
        lose_and_come_back(pair)
        pair.environment = {}
        pair.stack.env = before
        switch_over(pair)
    finally:
        pair.environment = {}
        pair.stack.env = before
        forget_the_dead()
    events = json.loads(harmony(pair.stack, "events", "--json", "--site", str(site_file(pair))))
    done = [event["step"] for event in events if event["state"] == "done"]
    last = {step: number for number, step in enumerate(done)}
    order = [last[step] for step in ("archive", "prepare", "demote", "verify", "promote", "follow")]
    assert order == sorted(order), last


@contextmanager
def on_a_host_whose_clock_is_wrong(pair: Pair, role: str, hours: int) -> Generator[Pair]:
    """Have a member's server, and all that is run beside it, have a wrong clock."""
    there = replace(pair, handle=on_shifted_host(pair.handle, role, hours))

    def restart(env: dict[str, str]) -> None:
        stop_postmaster(pair.data(role), signal.SIGINT)
        there.start(role, env)
        eventually(there.healthy, "the standby to stream")

    try:
        restart(shifted(hours))
        yield there
    finally:
        if other_than(role) != pair.leader:
            there.drive(other_than(role), pair.epoch + 1)
        restart({})
        forget_the_dead()


@pytest.mark.parametrize("hours", sampled([-20, 20], 1))
def test_a_member_whose_clock_is_wrong_takes_over_and_comes_back_as_any_other(pair: Pair, hours: int) -> None:
    role = other_than(pair.leader)
    with on_a_host_whose_clock_is_wrong(pair, role, hours) as there:
        clocks = {name: datetime.fromisoformat(seen["clock"]) for name, seen in there.look().items()}
        ahead = (clocks[role] - clocks[other_than(role)]).total_seconds()
        assert abs(ahead - hours * 3600) < 60
        seen = there.look()
        found = checks(seen[other_than(role)], seen[role], None, now=datetime.now(UTC))
        (warning,) = [check for check in found if check.verdict != "ok"]
        assert (warning.name, warning.verdict) == ("clocks", "warning")
        switch_over(there)
        lose_and_come_back(there)  # The one with the wrong clock is lost,
        lose_and_come_back(there)  # and the other one.
        with there.clients() as clients:
            rotate(there)
            there.insist(clients, there.leader)


# -- ports -------------------------------------------------------------------------------------------------------------


@contextmanager
def taken(port: int) -> Generator[None]:
    """Have somebody else listen on a port, on every address that `localhost` has."""
    addresses = {info[4][:2] for info in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)}
    with ExitStack() as stack:
        for address in addresses:
            family = socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
            stack.enter_context(closing(socket.create_server(address, family=family)))
        yield


def test_a_port_that_is_taken_as_the_old_primary_is_to_follow_is_told_and_the_same_again_ends_it(pair: Pair) -> None:
    source, epoch = pair.leader, pair.epoch + 1
    target, port = other_than(source), pair.port(source)
    with pair.clients() as clients:
        cut_off = pair.drive(target, epoch, [act("verify:done")])
        assert cut_off.status == KILLED, cut_off
        with taken(port):
            failed = pair.drive(target, epoch)
            assert failed.status == REFUSED, failed.said
            assert re.search("did not start: .*could not bind", failed.said, re.DOTALL), failed.said
            assert pair.leader == target
            clients.wait_until_served()
        done = pair.drive(target, epoch)
        assert done.status == 0, done.said
        pair.insist(clients, target)


def test_a_port_that_is_taken_as_a_primary_is_to_be_back_is_told_and_the_same_again_ends_it(pair: Pair) -> None:
    """It has stepped down, and cannot come back yet: nobody else has taken over, and the roles move as they were to."""
    source, epoch = pair.leader, pair.epoch + 1
    target = other_than(source)
    with pair.clients() as clients:
        cut_off = pair.drive(target, epoch, [act("demote:done")])
        assert cut_off.status == KILLED, cut_off
        with taken(pair.port(source)):
            pair.kill(target)
            failed = pair.drive(target, epoch)
            assert failed.status == REFUSED, failed.said
            assert pair.primaries() == []
        pair.drive(target, epoch)
        clients.wait_until_served()
        leader = pair.leader
        if postmaster(pair.data(other_than(leader))) is None:
            pair.start(other_than(leader))
        pair.insist(clients, leader)


def test_a_port_that_is_taken_as_a_lost_primary_is_to_rejoin_is_told_and_the_same_again_ends_it(pair: Pair) -> None:
    source = pair.leader
    target, port = other_than(source), pair.port(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        pair.killed_and_again("failover", target)
        clients.wait_until_served()
        with taken(port):
            failed = pair.do("rejoin", target)
            assert failed.status == REFUSED, failed.said
            assert re.search("did not start: .*could not bind", failed.said, re.DOTALL), failed.said
        pair.killed_and_again("rejoin", target)
        assert not pair.kept(source, "data-*"), "it was rewound, and that is kept"
        pair.account(clients, target)


# -- the stack ---------------------------------------------------------------------------------------------------------


def test_roles_move_by_command_while_another_run_has_locked_the_stack_and_that_changes_nothing(
    make_stack: Callable[[], Stack],
) -> None:
    pair = Pair.deployed(make_stack())
    stack, gate = pair.stack, pair.stack.folder / "gate"
    os.mkfifo(gate)
    stack.program(f"{PAIR.format(config='', active='None')}\nopen({str(gate)!r}).read()\n")
    locks = stack.folder / "state/.pulumi/locks"
    site = str(site_file(pair))
    with pair.clients() as clients:
        run = stack.start("up", "--yes", "--skip-preview")
        try:
            eventually(lambda: [*locks.rglob("*.json")], "the run to lock the stack")
            said = harmony(stack, "switchover", "--to", "toronto", "--yes", expect=None)
            assert "locked" in said, said
            harmony(stack, "switchover", "--to", "toronto", "--yes", "--site", site)
            assert pair.leader == "replica"
            with gate.open("w"):
                pass
            run.wait(120)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait(30)
        pair.insist(clients, "replica")


def test_an_up_of_a_stale_checkout_after_a_failover_by_command_changes_nothing(
    make_stack: Callable[[], Stack],
) -> None:
    pair = Pair.deployed(make_stack())
    stack = pair.stack
    old, site = stack.run("stack", "export"), str(site_file(pair))
    with pair.clients() as clients:
        pair.lose("primary", clients)
        words = ["--to", "toronto", "--max-data-loss", str(2**40), "--yes"]
        harmony(stack, "failover", *words)
        clients.wait_until_served()
        (stack.folder / "old.json").write_text(old)
        stack.run("stack", "import", "--file", str(stack.folder / "old.json"))
        stack.run("config", "rm", "harmony:active", expect=None)
        told = pair.told("replica")
        stack.pair()
        for args in ([], ["--refresh"]):
            stack.up(*args, expect=None)
            assert pair.primaries() == ["replica"]
            assert pair.told("replica") == told, "no role has moved"
        assert "roles have moved since" in stack.up("--refresh", expect=1)
        harmony(stack, "rejoin", "--yes", "--site", site)
        pair.account(clients, "replica")
