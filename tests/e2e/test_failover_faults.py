"""A primary is lost, and whoever mends that is killed, too: the same again ends it, and what is lost is known exactly.

By default a sample of the boundaries is visited, by a seed that is printed (HARMONY_TEST_SEED); HARMONY_TEST_ALL=1
visits all.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from harmony_pulumi.capabilities.site import Terms, Transaction
from harmony_pulumi.orchestration.pair import pair_of
from tests.e2e.conftest import as_os_user, eventually, found_postgresql, stacks, stop_postmaster, superuser
from tests.e2e.driver import REFUSED, Act, Kind, processes_in
from tests.e2e.history import Account, Clients
from tests.e2e.sampling import SEED, sampled
from tests.e2e.test_repair import small_disk
from tests.e2e.test_switchover_faults import KILLED, STATES, Driven, Mover, act, other_than

pytestmark = pytest.mark.e2e

ANYTHING = Terms(max_data_loss=2**40, accept_unknown_loss=False, fenced="")
NOTHING = Terms(max_data_loss=0, accept_unknown_loss=False, fenced="")


def boundaries(*steps: str) -> list[str]:
    return [f"{step}:{state}" for step in steps for state in STATES]


FAILOVER = boundaries("fence", "elect", "promote", "settle")
FAILOVER_TOLD = ["fence:told", "elect:told", "settle:told"]
REWIND = boundaries("retire", "archive", "rewind", "follow", "settle", "streaming")
REWIND_TOLD = ["retire:told", "archive:told", "rewind:told", "settle:told"]
CLONE = boundaries("retire", "archive", "rewind", "clone", "follow", "settle", "streaming")
CLONE_TOLD = ["retire:told", "archive:told", "rewind:told", "clone:told", "settle:told"]
REVERT = boundaries("retire", "rewind", "follow", "settle", "prepare", "demote", "verify", "promote")
REVERT_TOLD = ["archive:told", "prepare:told", "verify:told"]


@dataclass
class Pair(Mover):
    """A deployed pair that loses its primary, and gets it back."""

    def port(self, role: str) -> int:
        return int(json.loads((self.root(role) / "harmony.json").read_text())["port"])

    def ask(self, role: str, sql: str) -> str:
        return superuser(self.root(role), sql, self.port(role))

    def data(self, role: str) -> Path:
        return Path(self.handle["members"][role]["data"])

    def kept(self, role: str, what: str) -> set[Path]:
        return set((self.root(role) / "kept").glob(what))

    def kill(self, role: str) -> None:
        """Kill a server as a loss of power does, and wait until none of its processes is left."""
        stop_postmaster(self.data(role), signal.SIGKILL)
        eventually(lambda: not processes_in(self.data(role)), f"the last process of {role}'s server to end")

    def lose(self, role: str, clients: Clients, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Kill the primary while its clients write what its standby receives no more."""
        sender = int(self.ask(role, "SELECT pid FROM pg_stat_replication"))
        os.kill(sender, signal.SIGSTOP)
        try:
            meanwhile()
            if self.ask(role, "SHOW synchronous_standby_names"):
                waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                eventually(lambda: int(self.ask(role, waiting)), "commits that wait for the standby")
            else:
                clients.wait_until_served()
            stop_postmaster(self.data(role), signal.SIGKILL)
        finally:
            os.kill(sender, signal.SIGKILL)
        self.kill(role)

    def do(
        self,
        kind: Kind,
        active: str,
        acts: Sequence[Act] = (),
        *,
        terms: Terms | None = None,
        die_at_command: int = 0,
    ) -> Driven:
        terms = terms or (ANYTHING if kind == "failover" else None)
        return self.drive(active, self.next_epoch, acts, kind=kind, terms=terms, die_at_command=die_at_command)

    def killed_and_again(self, kind: Kind, active: str, acts: Sequence[Act] = (), *, die_at_command: int = 0) -> Driven:
        """Have whoever does this be killed, if that is planned, and do the same again."""
        if acts or die_at_command:
            first = self.do(kind, active, acts, die_at_command=die_at_command)
            # It looks as often as it must, so the command of that number may be beyond its end.
            assert first.status == KILLED or (die_at_command and first.status == 0), first
        again = self.do(kind, active)
        assert again.status == 0, again.said
        return again

    def account(self, clients: Clients, leader: str) -> Account:
        """Clients are served, both members are equal, and what is missing is what the old primary put aside, exactly.

        Called once for each failover: what was put aside is taken away.
        """
        follower = other_than(leader)
        clients.wait_until_served()
        eventually(self.healthy, "the standby to stream", 120)
        assert self.leader == leader
        assert self.told("primary")["away"] is self.told("replica")["away"] is None
        found = clients.insist(self.outputs[f"{leader}_uri"], self.outputs[f"{follower}_uri"], lossless=False)
        lost = {attempt.xid for attempt in found.missing if attempt.outcome == "acknowledged"}
        unknown = [attempt for attempt in found.missing if attempt.outcome == "unknown"]
        where, archived = self.where(), self.archived()
        inserts = {t["xid"] for t in archived if changed(t, where)}
        print(f"{found}; lost: {len(lost)}, {len(unknown)} unknown, archived: {len(inserts)}")
        assert lost <= {t["xid"] for t in archived}, sorted(lost - {t["xid"] for t in archived})
        # Of a transaction that was open where the histories part, both have the insert, and its commit was put aside.
        assert len(lost - inserts) <= len(clients), sorted(lost - inserts)
        # What was committed as its client's connection broke, nobody acknowledged.
        assert len(inserts - lost) <= len(unknown), sorted(inserts - lost)
        return found

    def where(self) -> str:
        """Return where the rows of the history are, as a list of changes names it."""
        with psycopg.connect(self.outputs[f"{self.leader}_uri"], sslrootcert=str(self.ca)) as connection:
            found = connection.execute(
                "SELECT format('%s/%s', oid, pg_relation_filenode('history')) FROM pg_database "
                "WHERE datname = current_database()"
            ).fetchone()
        assert found is not None
        return str(found[0])

    def archived(self) -> list[Transaction]:
        """Return the transactions that were put aside, and take away what is kept."""
        found: list[list[Transaction]] = []
        for role in ("primary", "replica"):
            for lists in self.kept(role, "diverged-*/transactions.json"):
                found.append(json.loads(lists.read_text())["transactions"])
                assert list(lists.parent.glob("pg_wal/0*")), f"no WAL beside {lists}"
            for folder in self.kept(role, "*-*Z"):
                shutil.rmtree(folder)
        # Put aside a second time if the first time was cut off after that: the same.
        assert all(transactions == found[0] for transactions in found), found
        return found[0] if found else []


def changed(transaction: Transaction, where: str) -> bool:
    return any(c.startswith("INSERT ") and c.endswith(f"/{where}") for c in transaction["changes"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[[str], Pair]]:
    """Return the pair of before that has such a configuration, or a new one if that was left ill by a test."""
    print(f"HARMONY_TEST_SEED={SEED}")
    with stacks(tmp_path_factory) as make:
        pairs: dict[str, Pair] = {}

        def get(config: str) -> Pair:
            if config not in pairs or not pairs[config].healthy():
                pairs[config] = Pair.deployed(make(), config)
            return pairs[config]

        yield get


@pytest.fixture
def pair(made: Callable[[str], Pair]) -> Pair:
    return made("")


@pytest.fixture
def synchronous(made: Callable[[str], Pair]) -> Pair:
    return made('replication="synchronous"')


@pytest.fixture
def unchecked(made: Callable[[str], Pair]) -> Pair:
    """Return a pair that cannot be rewound: it has neither data checksums nor wal_log_hints."""
    pair = made('settings={"wal_log_hints": "off"}')
    if pair.ask("primary", "SHOW data_checksums") == "on":
        leader = pair.leader
        for role in (leader, other_than(leader)):
            stop_postmaster(pair.data(role), signal.SIGINT)
            argv = [f"{found_postgresql().path}/pg_checksums", "--disable", "-D", str(pair.data(role))]
            assert runs(*argv)
        for role in (leader, other_than(leader)):
            pair.start(role)
        eventually(pair.healthy, "the standby to stream")
    return pair


def lose_and_get_back(pair: Pair, failover: Sequence[str] = (), rejoin: Sequence[str] = ()) -> Account:
    """Lose the primary, fail over, and rejoin; be killed at these boundaries, and do the same again."""
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        pair.killed_and_again("failover", target, [act(at) for at in failover])
        clients.wait_until_served()
        pair.killed_and_again("rejoin", target, [act(at) for at in rejoin])
        return pair.account(clients, target)


def passed_by(driven: Driven) -> tuple[list[str], list[str]]:
    """Return the steps that were passed, and where sites were told their roles."""
    steps = [at for at in driven.boundaries if at.endswith((":started", ":done"))]
    return steps, [at for at in driven.boundaries if at.endswith(":told")]


@pytest.mark.parametrize(
    ("kind", "expected", "expected_told"), [("pair", REWIND, REWIND_TOLD), ("unchecked", CLONE, CLONE_TOLD)]
)
def test_the_boundaries_are_those_that_are_visited(
    request: pytest.FixtureRequest, kind: str, expected: list[str], expected_told: list[str]
) -> None:
    pair: Pair = request.getfixturevalue(kind)
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        steps, told = passed_by(pair.killed_and_again("failover", target))
        assert steps == FAILOVER
        assert list(dict.fromkeys(told)) == FAILOVER_TOLD
        clients.wait_until_served()
        steps, told = passed_by(pair.killed_and_again("rejoin", target))
        assert steps == expected
        assert list(dict.fromkeys(told)) == expected_told
        found = pair.account(clients, target)
    assert [a for a in found.missing if a.outcome == "acknowledged"], "nothing was lost, so no account was checked"


def test_a_transaction_that_was_open_where_the_histories_part_is_put_aside(pair: Pair) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        with psycopg.connect(pair.outputs[f"{source}_uri"], sslrootcert=str(pair.ca)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS open (x int)")
            connection.commit()
            xid = connection.execute("INSERT INTO open VALUES (1) RETURNING pg_current_xact_id()::text").fetchone()
            written = pair.ask(source, "SELECT pg_current_wal_insert_lsn()")
            has = f"SELECT pg_last_wal_replay_lsn() >= '{written}'"
            eventually(lambda: pair.ask(target, has) == "t", "the insert to be replayed")
            pair.lose(source, clients, connection.commit)
        pair.killed_and_again("failover", target)
        clients.wait_until_served()
        pair.killed_and_again("rejoin", target)
        (lists,) = pair.kept(source, "diverged-*/transactions.json")
        (told,) = [t for t in json.loads(lists.read_text())["transactions"] if [str(t["xid"])] == list(xid or ())]
        pair.account(clients, target)
    assert told["changes"] == {}, told
    with psycopg.connect(pair.outputs[f"{target}_uri"], sslrootcert=str(pair.ca)) as connection:
        assert connection.execute("SELECT count(*) FROM open").fetchone() == (0,)


def in_step(failover: Sequence[str], rejoin: Sequence[str]) -> list[tuple[str, str]]:
    """Pair boundaries up, so that each is visited, and one loss visits one of both."""
    return [(failover[n % len(failover)], at) for n, at in enumerate(rejoin)]


@pytest.mark.parametrize(
    ("failover", "rejoin"), sampled(in_step([*FAILOVER, *FAILOVER_TOLD], [*REWIND, *REWIND_TOLD]), 3)
)
def test_whoever_fails_over_or_rewinds_is_killed_between_two_steps(pair: Pair, failover: str, rejoin: str) -> None:
    lose_and_get_back(pair, [failover], [rejoin])


@pytest.mark.parametrize("rejoin", sampled([*boundaries("clone", "follow"), "clone:told"], 1))
def test_whoever_copies_anew_is_killed_between_two_steps(unchecked: Pair, rejoin: str) -> None:
    lose_and_get_back(unchecked, [], [rejoin])


@pytest.mark.parametrize("failover", sampled(FAILOVER, 1))
def test_a_synchronous_pair_loses_nothing_that_was_acknowledged(synchronous: Pair, failover: str) -> None:
    found = lose_and_get_back(synchronous, [failover])
    assert not [attempt for attempt in found.missing if attempt.outcome == "acknowledged"]


@pytest.mark.parametrize("at", sampled([*REVERT, *REVERT_TOLD], 1))
def test_whoever_reverts_is_killed_between_two_steps(pair: Pair, at: str) -> None:
    if pair.leader != "primary":
        pair.killed_and_again("switchover", "primary")
    with pair.clients() as clients:
        pair.lose("primary", clients)
        pair.killed_and_again("failover", "replica")
        clients.wait_until_served()
        pair.killed_and_again("revert", "primary", [act(at)])
        pair.account(clients, "primary")


def test_whoever_fails_over_or_rejoins_is_killed_between_two_commands(pair: Pair) -> None:
    """Both are counted in a run that is not killed, as the number of commands depends on nothing but the path."""
    counted: dict[Kind, list[int]] = {}
    steps: list[tuple[Kind, str, str]] = [("failover", "fence", "settle"), ("rejoin", "retire", "settle")]
    source = pair.leader
    with pair.clients() as clients:
        pair.lose(source, clients)
        for kind, first, last in steps:
            done = pair.do(kind, other_than(source))
            assert done.status == 0, done.said
            at = {passed["at"]: passed["commands"] for passed in done.passed}
            counted[kind] = sampled(range(at[f"{first}:started"] + 1, at[f"{last}:done"] + 1), 2)
        pair.account(clients, other_than(source))
    for number in range(max(map(len, counted.values()))):
        source = pair.leader
        with pair.clients() as clients:
            pair.lose(source, clients)
            for kind, numbers in counted.items():
                command = numbers[number % len(numbers)]
                print(f"command {command} of a {kind}")
                pair.killed_and_again(kind, other_than(source), die_at_command=command)
            pair.account(clients, other_than(source))


# -- servers die, too ------------------------------------------------------------------------------------------------


def test_a_standby_that_dies_as_it_is_to_take_over_is_started_and_promoted(pair: Pair) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        done = pair.do("failover", target, [act("elect:done", f"kill {target}")])
        assert done.status == 0, done.said
        pair.killed_and_again("rejoin", target)
        pair.account(clients, target)


@pytest.mark.parametrize("word", sampled(["--write-recovery-conf", "--single"], 1))
def test_a_new_primary_that_dies_while_the_old_one_comes_back_is_started_and_followed(pair: Pair, word: str) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        pair.killed_and_again("failover", target)
        clients.wait_until_served()
        done = pair.do("rejoin", target, [act(f"runs {word}", f"kill {target}")])
        assert f"runs {word}" in done.boundaries, done
        assert done.status == REFUSED, done.said
        assert pair.primaries() == []
        pair.start(target)
        pair.killed_and_again("rejoin", target)
        pair.account(clients, target)


def test_a_new_primary_that_dies_while_the_old_one_is_copied_is_started_and_copied_again(unchecked: Pair) -> None:
    source = unchecked.leader
    target = other_than(source)
    with unchecked.clients() as clients:
        unchecked.lose(source, clients)
        unchecked.killed_and_again("failover", target)
        clients.wait_until_served()
        done = unchecked.do("rejoin", target, [act("runs stream", f"kill {target}")])
        assert done.status == REFUSED, done.said
        unchecked.start(target)
        unchecked.killed_and_again("rejoin", target)
        unchecked.account(clients, target)


def test_an_old_primary_whose_recovery_is_killed_recovers_the_next_time(pair: Pair) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        pair.killed_and_again("failover", target)
        clients.wait_until_served()
        done = pair.do("rejoin", target, [act("runs --single", "kill it")])
        assert "runs --single" in done.boundaries, done
        pair.killed_and_again("rejoin", target)
        pair.account(clients, target)


def test_a_rewind_that_is_killed_is_followed_by_a_copy_and_the_old_data_is_kept(pair: Pair) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        pair.killed_and_again("failover", target)
        clients.wait_until_served()
        done = pair.do("rejoin", target, [act("runs --write-recovery-conf", "kill it")])
        assert "runs --write-recovery-conf" in done.boundaries, done
        pair.killed_and_again("rejoin", target)
        assert pair.kept(source, "data-*/PG_VERSION")
        pair.account(clients, target)


# -- what is refused -------------------------------------------------------------------------------------------------


def out_of_reach(pair: Pair, role: str) -> Pair:
    """Return the pair as seen from where one of its members is on a machine that cannot be asked."""
    handle = copy.deepcopy(pair.handle)
    handle["members"][role]["host"]["machine_id"] = "0" * 31 + "1"
    return Pair(pair.stack, handle, pair.outputs, pair.ca)


def test_a_failover_is_refused_where_more_may_be_lost_than_is_accepted_or_the_old_primary_lives(pair: Pair) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        refused = pair.do("failover", target)
        assert refused.status == REFUSED
        assert "it runs and answers" in refused.said
        assert "loses nothing" in refused.said

        pair.lose(source, clients)
        refused = pair.do("failover", target, terms=NOTHING)
        assert refused.status == REFUSED
        assert "bytes would be lost, and at most 0 are accepted (--max-data-loss)" in refused.said

        away = out_of_reach(pair, source)
        refused = away.do("failover", target, terms={**ANYTHING, "accept_unknown_loss": True})
        assert refused.status == REFUSED
        assert "--fenced-by-me" in refused.said
        refused = away.do("failover", target, terms={**ANYTHING, "fenced": "an operator vouches"})
        assert refused.status == REFUSED
        assert "--accept-unknown-loss" in refused.said

        pair.kill(target)
        refused = pair.do("failover", target)
        assert refused.status == REFUSED
        assert "a standby that runs is needed" in refused.said
        pair.start(target)
        eventually(lambda: pair.look()[target]["role"] == "standby", "the standby to answer")
        assert pair.told(source)["operation"] is pair.told(target)["operation"] is None

        done = away.do("failover", target, terms=Terms(max_data_loss=0, accept_unknown_loss=True, fenced="off"))
        assert done.status == 0, done.said
        clients.wait_until_served()
        assert away.do("rejoin", target).status == REFUSED
        pair.killed_and_again("rejoin", target)
        pair.account(clients, target)


def test_two_operators_at_once_do_not_hinder_each_other(pair: Pair) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients, ThreadPoolExecutor(2) as pool:
        pair.lose(source, clients)
        kinds: list[Kind] = ["failover", "rejoin"]
        for kind in kinds:
            both = [pool.submit(pair.do, kind, target) for _ in range(2)]
            ends = [driven.result() for driven in both]
            assert 0 in {driven.status for driven in ends}, ends
            assert {driven.status for driven in ends} <= {0, REFUSED}, ends
        pair.account(clients, target)


# -- the ways back ---------------------------------------------------------------------------------------------------


def test_an_old_primary_without_its_wal_is_copied_and_its_data_is_kept(pair: Pair) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        pair.killed_and_again("failover", target)
        clients.wait_until_served()
        gone = pair.root(source) / "gone"
        gone.mkdir()
        for file in (pair.data(source) / "pg_wal").glob("0*"):
            file.rename(gone / file.name)
        pair.killed_and_again("rejoin", target)
        assert pair.kept(source, "data-*/PG_VERSION")
        assert not pair.kept(source, "diverged-*")
        shutil.rmtree(gone)
        clients.wait_until_served()
        eventually(pair.healthy, "the standby to stream")
        clients.insist(pair.outputs[f"{target}_uri"], pair.outputs[f"{source}_uri"], lossless=False)


def test_a_pair_without_checksums_is_copied_and_what_it_alone_had_is_listed(unchecked: Pair) -> None:
    source = unchecked.leader
    target = other_than(source)
    with unchecked.clients() as clients:
        unchecked.lose(source, clients)
        unchecked.killed_and_again("failover", target)
        done = unchecked.killed_and_again("rejoin", target)
        assert "neither data checksums nor wal_log_hints" in done.said
        assert unchecked.kept(source, "data-*/PG_VERSION")
        assert [at for at in passed_by(done)[0] if at in CLONE] == CLONE
        found = unchecked.account(clients, target)
    assert [a for a in found.missing if a.outcome == "acknowledged"]


def test_a_slot_that_somebody_dropped_is_made_again(pair: Pair) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        pair.killed_and_again("failover", target)
        pair.ask(target, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        pair.killed_and_again("rejoin", target)
        pair.account(clients, target)


def runs(*argv: str) -> bool:
    """Run a command as the OS user of servers; tell whether it succeeded."""
    done = subprocess.run(as_os_user(*argv), check=False, timeout=120, cwd="/", stdin=subprocess.DEVNULL)
    return done.returncode == 0


def start_apart(pair: Pair, role: str, *, promote: int = 1) -> None:
    """Start a dead primary as a standby of nobody, and promote it by hand, so many times."""
    root, pg_ctl = pair.root(role), f"{found_postgresql().path}/pg_ctl"
    start = [pg_ctl, "start", "-sw", "-D", f"{root}/config", "-l", f"{root}/log/postgresql.log"]
    # On its Unix socket alone: the other one, which looks for it all the while, would follow it.
    start += ["-o", "-c primary_conninfo='' -c listen_addresses=''"]
    for _ in range(promote):
        assert runs("touch", str(pair.data(role) / "standby.signal"))
        eventually(lambda: runs(*start), f"the server in {root} to start")
        assert runs(pg_ctl, "promote", "-sw", "-D", str(pair.data(role)))
        pair.ask(role, "CREATE TABLE IF NOT EXISTS apart (x int); INSERT INTO apart VALUES (1)")
        stop_postmaster(pair.data(role), signal.SIGINT)


def come_back_from_apart(pair: Pair, target: str) -> None:
    """Rejoin one that was promoted apart; nothing of what it did apart is left in it, and its list has that."""
    source = other_than(target)
    with pair.clients() as clients:
        pair.killed_and_again("rejoin", target)
        eventually(pair.healthy, "the standby to stream", 120)
        clients.insist(pair.outputs[f"{target}_uri"], pair.outputs[f"{source}_uri"])
    (lists,) = pair.kept(source, "diverged-*/transactions.json")
    listed = json.loads(lists.read_text())["transactions"]
    assert len(listed) >= 2, lists.read_text()  # That which made the table, and that of its row.
    assert pair.ask(source, "SELECT to_regclass('apart') IS NULL") == "t"
    assert timeline(pair, source) == timeline(pair, target)
    for folder in pair.kept(source, "*-*Z"):
        shutil.rmtree(folder)


def timeline(pair: Pair, role: str) -> int:
    return pair_of(pair.handle).members[role].movable.history()[-1]["timeline"]


@pytest.mark.parametrize("promotions", [1, 2])
def test_two_members_that_were_promoted_apart_have_different_histories_of_the_same_number(
    pair: Pair, promotions: int
) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
    start_apart(pair, source, promote=promotions)
    pair.killed_and_again("failover", target)
    assert timeline(pair, source) == timeline(pair, target) + promotions - 1
    come_back_from_apart(pair, target)


def test_two_members_that_were_promoted_apart_at_the_same_place_are_not_taken_for_one(pair: Pair) -> None:
    source = pair.leader
    target = other_than(source)
    stop_postmaster(pair.data(source), signal.SIGINT)  # Cleanly: both have the same last record.
    start_apart(pair, source)
    pair.killed_and_again("failover", target)
    members = pair_of(pair.handle).members
    assert members[source].movable.history() == members[target].movable.history()
    come_back_from_apart(pair, target)


@contextmanager
def on_a_small_disk(root: Path, megabytes: int) -> Generator[None]:
    """Have the folder of a dead server be on a disk of its own, which has so much room left."""
    used = sum(file.stat().st_blocks // 2 for file in root.rglob("*")) // 1024
    aside = root.with_name(f"{root.name}-aside")
    root.rename(aside)
    with small_disk(root, used + megabytes):
        subprocess.run(["cp", "-a", f"{aside}/.", str(root)], check=True, timeout=60)
        yield
    root.rmdir()
    aside.rename(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_copy_for_which_there_is_no_room_is_refused_and_done_once_there_is(unchecked: Pair) -> None:
    source = unchecked.leader
    target = other_than(source)
    with unchecked.clients() as clients:
        unchecked.lose(source, clients)
        unchecked.killed_and_again("failover", target)
        clients.wait_until_served()
        root = unchecked.root(source)
        with on_a_small_disk(root, 200):
            done = unchecked.do("rejoin", target)
            assert done.status == REFUSED, done.said
            assert re.search(r"the copy needs \d+ MB more, and the disk of .* has \d+ MB free", done.said)
            assert pair_of(unchecked.handle).members[source].movable.rejoining()["no_rewind"]
            again = unchecked.do("rejoin", target)
            assert again.status == REFUSED, again.said
            assert len(unchecked.kept(source, "data-*/PG_VERSION")) == 1, "the data of before"
            subprocess.run(["mount", "-o", "remount,size=2g", str(root)], check=True, timeout=10)
            unchecked.killed_and_again("rejoin", target)
            unchecked.account(clients, target)
