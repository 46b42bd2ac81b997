"""Two hosts whose links are cut, cut one way, slow, lossy or late, while roles move: never two writers, nothing lost.

By default, a sample of the faults and boundaries is visited, by a seed that is printed (HARMONY_TEST_SEED);
HARMONY_TEST_ALL=1 visits all.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest

from harmony_pulumi.capabilities.site import Terms
from tests.e2e.conftest import PAIR, Stack, eventually, needs_root, stacks, superuser
from tests.e2e.driver import REFUSED, running_with
from tests.e2e.history import Clients
from tests.e2e.network import ROOT, Network, missing_programs, network, within
from tests.e2e.sampling import SEED, sampled
from tests.e2e.test_failover_faults import Pair, on_a_small_disk
from tests.e2e.test_switchover_faults import STEPS, act, other_than

pytestmark = pytest.mark.e2e

# A link that is cut is noticed soon; a member that does not stream is not waited for long.
CONFIG = 'settings={"wal_sender_timeout": "2s", "wal_receiver_timeout": "2s", "wal_retrieve_retry_interval": "500ms"}'
STREAMS_WITHIN = 20
# A client gives up a server that is cut off, and goes to the other one.
CLIENT = "&tcp_user_timeout=3000&keepalives_idle=2&keepalives_interval=1&keepalives_count=2"
CUTS = ["cut", "deaf source", "deaf target"]
VOUCHED = Terms(max_data_loss=2**40, accept_unknown_loss=True, fenced="its network is cut")
BULK = "CREATE TABLE bulk AS SELECT repeat(md5(g::text), 30) AS text FROM generate_series(1, {megabytes} * 1000) AS g"


@dataclass
class ApartPair(Pair):
    """A pair of two hosts, each in a network namespace."""

    network: Network = field(init=False)

    def __post_init__(self) -> None:
        self.network = Network.of(self.handle)
        self.handle["deadline"] = STREAMS_WITHIN

    def start(self, role: str, env: Mapping[str, str] | None = None) -> None:
        with within(self.network.namespaces[role]):
            super().start(role, env)

    def ask(self, role: str, sql: str) -> str:
        return superuser(self.root(role), sql, self.port(role))

    def clients(self) -> Clients:
        return Clients([self.outputs["uri"] + CLIENT] * 2, self.ca, pause=0.01)

    def fault(self, what: str, source: str) -> str:
        """Return a fault in the words of a network."""
        return what.replace("source", source).replace("target", other_than(source))

    def streams(self) -> bool:
        return any(r["state"] == "streaming" for seen in self.look().values() for r in seen["replicas"])

    def converge(self, target: str, epoch: int) -> None:
        """Ask for the same again, once all links are whole; if that was given up, for the next epoch."""
        self.network.fault("heal")
        again = self.drive(target, epoch)
        if again.status != 0:
            assert self.leader == other_than(target), again.said
            eventually(self.healthy, "the standby to stream")
            again = self.drive(target, self.epoch + 1)
        assert again.status == 0, again.said


def program(hosts: Network) -> str:
    text = "from tests.e2e.network import NamespaceHost\n" + PAIR.format(config=CONFIG, active="None")
    for role, city in (("primary", "montreal"), ("replica", "toronto")):
        place = f'NamespaceHost("{city}", "{hosts.namespaces[role]}", "{hosts.addresses[role]}")'
        text = text.replace(f'LinuxHostTopology("{city}")', place)
    return text


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[[], ApartPair]]:
    """Return the pair of before, or a new one if that was left ill by a test that failed."""
    needs_root("network namespaces are made")
    if missing := missing_programs():
        pytest.fail(f"without {', '.join(missing)}, no network can be made: apt-get install iproute2 iptables")
    print(f"HARMONY_TEST_SEED={SEED}")  # Shown if a test fails; what was chosen is in the names.
    with network() as hosts, stacks(tmp_path_factory) as make:
        made: list[ApartPair] = []

        def deployed(stack: Stack) -> ApartPair:
            stack.env["PYTHONPATH"] = str(ROOT)
            stack.program(program(hosts))
            return ApartPair.of(stack)

        def get() -> ApartPair:
            hosts.fault("heal")
            if not made or not made[-1].healthy():
                made.append(deployed(make()))
            return made[-1]

        yield get


@pytest.fixture
def pair(current: Callable[[], ApartPair]) -> ApartPair:
    return current()


# -- planned -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", sampled(CUTS, 1))
def test_a_switchover_over_a_link_that_is_cut_is_refused_and_nothing_is_touched(pair: ApartPair, cut: str) -> None:
    source = pair.leader
    target, epoch = other_than(source), pair.epoch + 1
    with pair.clients() as clients:
        pair.network.fault(pair.fault(cut, source))
        eventually(lambda: not pair.streams(), "the link to be missed")
        done = pair.drive(target, epoch)
        assert done.status == REFUSED, done.said
        assert "is not connected" in done.said
        assert "nothing was touched" in done.said
        clients.wait_until_served()
        assert pair.leader == source
        pair.network.fault("heal")
        eventually(pair.healthy, "the standby to stream")
        assert pair.drive(target, epoch).status == 0
        pair.insist(clients, target)


@pytest.mark.parametrize("cut", sampled(CUTS, 1))
def test_a_link_that_was_cut_a_moment_ago_and_that_nobody_misses_yet_is_found_before_anything_is_touched(
    pair: ApartPair, cut: str
) -> None:
    source = pair.leader
    target, epoch = other_than(source), pair.epoch + 1
    patient = {source: "wal_sender_timeout", target: "wal_receiver_timeout"}
    for role, setting in patient.items():
        pair.ask(role, f"ALTER SYSTEM SET {setting} = '60s'")
        pair.ask(role, "SELECT pg_reload_conf()")
        eventually(lambda role=role, name=setting: pair.ask(role, f"SHOW {name}") == "1min", "the timeout")
    with pair.clients() as clients:
        clients.wait_until_served()
        pair.network.fault(pair.fault(cut, source))
        done = pair.drive(target, epoch)
        assert done.status == REFUSED, done.said
        assert "nothing was touched" in done.said
        assert f"a word of {pair.look()[target]['name']} that it has what was written for this: not within" in done.said
        assert not [at for at in done.boundaries if at.startswith(("prepare", "demote"))]
        clients.wait_until_served()
        assert pair.leader == source
        pair.network.fault("heal")
        for role, setting in patient.items():
            pair.ask(role, f"ALTER SYSTEM RESET {setting}")
            pair.ask(role, "SELECT pg_reload_conf()")
        eventually(pair.healthy, "the standby to stream")
        assert pair.drive(target, epoch).status == 0
        pair.insist(clients, target)


@pytest.mark.parametrize(("at", "cut"), sampled(list(product(STEPS, CUTS)), 1))
def test_a_link_that_is_cut_during_a_switchover_leaves_one_writer(pair: ApartPair, at: str, cut: str) -> None:
    source = pair.leader
    target, epoch = other_than(source), pair.epoch + 1
    with pair.clients() as clients:
        done = pair.drive(target, epoch, [act(at, f"network {pair.fault(cut, source)}")])
        assert at in done.boundaries
        assert done.status in {0, REFUSED}, done
        clients.wait_until_served()
        assert pair.leader == (source if "given up" in done.said else target), done.said
        pair.converge(target, epoch)
        pair.insist(clients, target)


@pytest.mark.parametrize(("at", "cut"), sampled(list(product(STEPS, ["operator source", "operator target"])), 1))
def test_an_operator_who_is_cut_off_from_a_member_finishes_later(pair: ApartPair, at: str, cut: str) -> None:
    source = pair.leader
    target, epoch = other_than(source), pair.epoch + 1
    with pair.clients() as clients:
        done = pair.drive(target, epoch, [act(at, f"network {pair.fault(cut, source)}")])
        assert at in done.boundaries
        assert done.status == REFUSED, done
        assert "does not answer" in done.said
        pair.converge(target, epoch)
        pair.insist(clients, target)


def test_a_standby_that_lags_behind_a_slow_link_is_waited_for_or_else_refused(pair: ApartPair) -> None:
    source = pair.leader
    target, epoch = other_than(source), pair.epoch + 1
    with pair.clients() as clients:
        # So slow that it is behind still once it is looked at, however slow this machine is.
        with pair.network.slow("4mbit"):
            pair.ask(source, BULK.format(megabytes=80))
            done = pair.drive(target, epoch)
            assert done.status == REFUSED, done.said
            assert "bytes behind, more than" in done.said
            assert "wait until it has caught up" in done.said
            clients.wait_until_served()
            assert pair.leader == source
        pair.ask(source, "DROP TABLE bulk")
        eventually(lambda: lag(pair, source) < 2**16, "the standby to catch up")
        with pair.network.slow("16mbit"):
            pair.ask(source, BULK.format(megabytes=8))
            assert lag(pair, source) > 2**20
            done = pair.drive(target, epoch)
            assert done.status == 0, done.said
        pair.ask(target, "DROP TABLE bulk")
        pair.insist(clients, target)


def lag(pair: ApartPair, source: str) -> int:
    (replica,) = pair.look()[source]["replicas"]
    return replica["lag_bytes"]


def test_a_switchover_over_a_lossy_link_loses_nothing(pair: ApartPair) -> None:
    target = other_than(pair.leader)
    with pair.clients() as clients:
        pair.network.fault("lossy")
        pair.handle["deadline"] = 120  # A member may need many attempts to connect over it.
        done = pair.drive(target, pair.epoch + 1)
        pair.handle["deadline"] = STREAMS_WITHIN
        assert done.status == 0, done.said
        pair.network.fault("heal")
        pair.insist(clients, target)


def test_a_switchover_over_a_link_where_everything_is_late_loses_nothing(pair: ApartPair) -> None:
    target = other_than(pair.leader)
    with pair.clients() as clients, pair.network.late(50):
        done = pair.drive(target, pair.epoch + 1)
        assert done.status == 0, done.said
        pair.insist(clients, target)


# -- unplanned ---------------------------------------------------------------------------------------------------------


def test_a_primary_that_only_the_operator_cannot_reach_is_replaced_only_once_it_is_fenced(pair: ApartPair) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.network.fault(f"operator {source}")
        refused = pair.do("failover", target, terms={**VOUCHED, "fenced": ""})
        assert refused.status == REFUSED, refused
        assert "may accept writes" in refused.said
        assert "--fenced-by-me" in refused.said
        pair.network.fault("cut")
        clients.wait_until_served()  # By the old primary, which its standby does not hear of.
        refused = pair.do("failover", target, terms={**VOUCHED, "accept_unknown_loss": False})
        assert refused.status == REFUSED, refused
        assert "--accept-unknown-loss" in refused.said

        pair.network.fault(f"clients {source}")  # This is how it is fenced.
        done = pair.do("failover", target, terms=VOUCHED)
        assert done.status == 0, done.said
        clients.wait_until_served()
        refused = pair.do("rejoin", target)
        assert refused.status == REFUSED, refused
        assert "does not answer" in refused.said or "cannot rejoin" in refused.said

        pair.network.fault(f"mend operator {source}")
        pair.network.fault("mend cut")
        done = pair.do("rejoin", target)
        assert done.status == 0, done.said
        pair.network.fault("heal")
        found = pair.account(clients, target)
    assert [a for a in found.missing if a.outcome == "acknowledged"], "nothing was lost, so no account was checked"


def lose_and_fail_over(pair: ApartPair, clients: Clients) -> str:
    """Lose the primary, and have the other member take over; return the role of the one that was lost."""
    source = pair.leader
    pair.lose(source, clients)
    pair.killed_and_again("failover", other_than(source))
    clients.wait_until_served()
    return source


@pytest.mark.parametrize("cut", sampled(CUTS, 1))
def test_a_link_that_is_cut_before_a_rewind_makes_it_wait_and_not_copy(pair: ApartPair, cut: str) -> None:
    with pair.clients() as clients:
        source = lose_and_fail_over(pair, clients)
        target = other_than(source)
        done = pair.do("rejoin", target, [act("rewind:started", f"network {pair.fault(cut, source)}")])
        assert done.status == REFUSED, done.said
        clients.wait_until_served()
        pair.network.fault("heal")
        pair.killed_and_again("rejoin", target)
        assert not pair.kept(source, "data-*"), "it was copied anew"
        pair.account(clients, target)


@pytest.mark.parametrize("cut", sampled(CUTS, 1))
def test_a_link_that_is_cut_during_a_copy_ends_it_and_the_next_run_copies_again(pair: ApartPair, cut: str) -> None:
    with pair.clients() as clients:
        source = lose_and_fail_over(pair, clients)
        target = other_than(source)
        gone = pair.root(source) / "gone"
        gone.mkdir()
        for file in (pair.data(source) / "pg_wal").glob("0*"):  # Without its WAL it cannot be rewound.
            file.rename(gone / file.name)
        with pair.network.slow("20mbit"):
            done = pair.do("rejoin", target, [act("clone:progress", f"network {pair.fault(cut, source)}", times=2)])
        assert done.boundaries.count("clone:progress") >= 2, done
        assert done.status == REFUSED, done.said
        clients.wait_until_served()
        pair.network.fault("heal")
        pair.killed_and_again("rejoin", target)
        assert len(pair.kept(source, "data-*/PG_VERSION")) == 1, "the data of before"
        eventually(pair.healthy, "the standby to stream")
        clients.insist(pair.outputs[f"{target}_uri"], pair.outputs[f"{source}_uri"], lossless=False)
    for folder in (gone, *pair.kept(source, "*-*Z")):
        shutil.rmtree(folder)


def written_by(pid: int) -> int:
    """Return how many bytes a process has written: proc(5)."""
    return int(re.findall(r"wchar: (\d+)", Path(f"/proc/{pid}/io").read_text())[0])


@pytest.mark.parametrize("what", sampled(["cut", "kill pg_rewind", "kill the source"], 1))
def test_a_rewind_that_ends_half_way_is_followed_by_a_copy_and_all_is_accounted_for(pair: ApartPair, what: str) -> None:
    with pair.clients() as clients:
        source = lose_and_fail_over(pair, clients)
        target = other_than(source)
        pair.ask(target, f"DROP TABLE IF EXISTS bulk; {BULK.format(megabytes=20)}")
        root = pair.root(source)
        with pair.network.slow("20mbit"), ThreadPoolExecutor(1) as pool:
            running = pool.submit(pair.do, "rejoin", target)
            eventually(lambda: running.done() or running_with("--write-recovery-conf", root), "the rewind")
            pid = running_with("--write-recovery-conf", root)
            assert pid, running.result()
            eventually(lambda: written_by(pid) > 2**21, "the rewind to have written something")
            if what == "cut":
                pair.network.fault("cut")
            elif what == "kill pg_rewind":
                os.kill(pid, signal.SIGKILL)
            else:
                pair.kill(target)
            done = running.result(120)
        if what != "kill pg_rewind":  # Which a copy is tried after, at once.
            assert done.status == REFUSED, done.said
        pair.network.fault("heal")
        if not pair.primaries():
            pair.start(target)
        pair.killed_and_again("rejoin", target)
        assert pair.kept(source, "data-*/PG_VERSION"), "the data that was half rewound"
        assert pair.kept(source, "diverged-*/transactions.json")
        pair.account(clients, target)


def test_a_disk_that_fills_up_during_a_copy_ends_it_and_the_next_run_copies_again(pair: ApartPair) -> None:
    with pair.clients() as clients:
        source = lose_and_fail_over(pair, clients)
        target = other_than(source)
        pair.ask(target, f"DROP TABLE IF EXISTS bulk; {BULK.format(megabytes=20)}")
        root = pair.root(source)
        with on_a_small_disk(root, 900):
            for file in (pair.data(source) / "pg_wal").glob("0*"):  # Without its WAL it cannot be rewound.
                file.unlink()
            with pair.network.slow("40mbit"):
                done = pair.do("rejoin", target, [act("clone:progress", f"fill {root}/filler", times=2)])
            assert done.status == REFUSED, done.said
            assert "No space left on device" in done.said
            clients.wait_until_served()
            (root / "filler").unlink()
            pair.killed_and_again("rejoin", target)
            assert len(pair.kept(source, "data-*/PG_VERSION")) == 1, "the data of before"
            eventually(pair.healthy, "the standby to stream")
            clients.insist(pair.outputs[f"{target}_uri"], pair.outputs[f"{source}_uri"], lossless=False)
