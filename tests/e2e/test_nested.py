"""A pair of pairs: its roles move as those of a pair of servers do, and every pair in it stays whole."""

from __future__ import annotations

import json
import signal
from collections.abc import Generator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Terms
from harmony_pulumi.orchestration.pair import pair_of
from harmony_pulumi.orchestration.replication import Member
from harmony_pulumi.orchestration.wait import wait_for
from harmony_pulumi.testing import check_sites
from tests.e2e.conftest import Stack, eventually, postmaster, stacks, stop_postmaster, superuser
from tests.e2e.driver import Kind
from tests.e2e.history import Clients
from tests.e2e.sampling import sampled
from tests.e2e.test_roles_cli import harmony
from tests.e2e.test_switchover_faults import KILLED, LAST_STEPS, STATES, STEPS, Mover, act, other_than

pytestmark = pytest.mark.e2e

PROGRAM = """
east = FailoverTopology("east", primary=LinuxHostTopology("montreal"), replica=LinuxHostTopology("toronto"))
west = FailoverTopology("west", primary=LinuxHostTopology("calgary"), replica=LinuxHostTopology("vancouver"))
site = FailoverTopology("orders", primary=east, replica=west)
database = site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]{config}))
for name in ("uri", "ca_certificate", "site", "active", "observed_active"):
    pulumi.export(name, getattr(database, name))
names = iter(["montreal", "toronto", "calgary", "vancouver"])
for pair in database.members.values():
    for server in pair.members.values():
        pulumi.export(next(names), server.uri)
"""
EAST, WEST = ("montreal", "toronto"), ("calgary", "vancouver")
FIRST = {"primary": EAST[0], "replica": WEST[0]}
TERMS = Terms(max_data_loss=10**8, accept_unknown_loss=False, fenced="")
_STREAMS = """
SELECT coalesce(string_agg(application_name, ' ' ORDER BY application_name), '') FROM pg_stat_replication
WHERE state = 'streaming'
"""


class Four:
    """The servers of a pair of pairs, by their names."""

    def __init__(self, stack: Stack, config: str = "") -> None:
        self.stack = stack
        stack.program(PROGRAM.replace("{config}", config))
        stack.up()
        self.homes = {root.name.removesuffix("-orders"): root for root, _ in stack.markers()}

    def ask(self, name: str, sql: str, database: str = "postgres") -> str:
        marker = json.loads((self.homes[name] / "harmony.json").read_text())
        return superuser(self.homes[name], sql, marker["port"], database)

    def roles(self) -> str:
        """Return what each server is, and who streams from it."""
        found: list[str] = []
        for name in (*EAST, *WEST):
            if postmaster(self.homes[name] / "data") is None:
                found.append(f"{name} is down")
                continue
            role = {"t": "standby", "f": "primary"}[self.ask(name, "SELECT pg_is_in_recovery()")]
            found.append(f"{name} {role} < {self.ask(name, _STREAMS)}".strip(" <"))
        return "; ".join(found)

    def insist_on(self, roles: str) -> None:
        wait_for(f"expected {roles}", self.roles, lambda found: found == roles, deadline=60, advice="See their logs.")

    def kill(self, *names: str) -> None:
        for name in names:
            stop_postmaster(self.homes[name] / "data", signal.SIGKILL)

    def clients(self) -> Clients:
        outputs = self.stack.outputs()
        ca = self.stack.folder / "clients-ca.crt"
        ca.write_text(outputs["ca_certificate"])
        return Clients([outputs["uri"]] * 2, ca, pause=0.01)

    def insist(self, clients: Clients, leader: str, *, lossless: bool = True) -> None:
        """Nothing was lost, and every server has it all."""
        clients.stop()
        account = None
        for name in (*EAST, *WEST):
            if name != leader:
                found = clients.insist(self.uri(leader), self.uri(name), lossless=lossless)
                assert account is None or str(found) == str(account)
                account = found

    def commit(self, member: Member) -> None:
        self.ask(member.name, "CREATE TABLE IF NOT EXISTS commits (); INSERT INTO commits DEFAULT VALUES", "orders")

    def count(self, member: Member) -> int:
        there = self.ask(member.name, "SELECT to_regclass('commits')", "orders")
        return int(self.ask(member.name, "SELECT count(*) FROM commits", "orders")) if there else 0

    def uri(self, name: str) -> str:
        uri: str = self.stack.outputs()[name]
        return uri


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Generator[Four]:
    with stacks(tmp_path_factory) as make:
        yield Four(make())


AT_FIRST = "montreal primary < calgary toronto; toronto standby; calgary standby < vancouver; vancouver standby"
SWITCHED = "montreal standby < toronto; toronto standby; calgary primary < montreal vancouver; vancouver standby"


def test_a_switchover_of_a_pair_of_pairs_loses_nothing_and_is_taken_back(four: Four) -> None:
    stack = four.stack
    assert four.roles() == AT_FIRST
    with four.clients() as clients:
        clients.wait_until_served()
        shown = harmony(stack, "plan")
        assert "calgary streams from montreal" in shown
        harmony(stack, "switchover", "--to", "calgary", "--yes")
        clients.wait_until_served()
        four.insist_on(SWITCHED)
        assert stack.outputs()["observed_active"] == "replica"
        stack.up("--expect-no-changes")
        assert "warning" not in stack.refresh()
        stack.up("--expect-no-changes")
        shown = harmony(stack, "revert", "--yes")
        assert "differs" not in shown
        clients.wait_until_served()
        four.insist_on(AT_FIRST)
        four.insist(clients, "montreal")
    stack.up("--expect-no-changes")


def test_a_pair_that_is_lost_is_failed_over_from_and_comes_back_whole(four: Four) -> None:
    stack = four.stack
    assert four.roles() == AT_FIRST
    with four.clients() as clients:
        clients.wait_until_served()
        four.kill("toronto", "montreal")
        shown = harmony(stack, "failover", "--to", "calgary", "--max-data-loss", "100000000", "--yes")
        assert "calgary becomes the primary" in shown
        clients.wait_until_served()
        assert four.roles() == "montreal is down; toronto is down; calgary primary < vancouver; vancouver standby"
        harmony(stack, "rejoin", "--yes")
        four.insist_on(SWITCHED)
        shown = harmony(stack, "revert", "--yes")
        assert "differs" not in shown
        clients.wait_until_served()
        four.insist_on(AT_FIRST)
        four.insist(clients, "montreal", lossless=False)
    stack.refresh()
    stack.up()
    stack.up("--expect-no-changes")


MOVED = "montreal standby; toronto primary < calgary montreal; calgary standby < vancouver; vancouver standby"


def test_the_pair_around_follows_a_role_change_in_its_active_pair(four: Four) -> None:
    stack = four.stack
    assert four.roles() == AT_FIRST
    with four.clients() as clients:
        clients.wait_until_served()
        assert "there are: orders, east-orders, west-orders" in harmony(stack, "plan", "nowhere", expect=2)
        harmony(stack, "switchover", "east-orders", "--to", "toronto", "--yes")
        clients.wait_until_served()
        four.insist_on(MOVED)
        assert four.ask("montreal", "SELECT count(*) FROM pg_replication_slots") == "0"
        four.insist(clients, "toronto")
    stack.up()
    stack.up("--expect-no-changes")
    refused = harmony(stack, "switchover", "west-orders", "--to", "vancouver", "--yes", expect=1)
    assert "its roles cannot be moved while it follows another cluster" in refused

    with four.clients() as clients:
        clients.wait_until_served()
        four.kill("toronto")
        harmony(stack, "failover", "east-orders", "--to", "montreal", "--max-data-loss", "100000000", "--yes")
        clients.wait_until_served()
        eventually(lambda: "calgary" in four.roles().partition(";")[0], "calgary to follow montreal")
        harmony(stack, "rejoin", "east-orders", "--yes")
        four.insist_on(AT_FIRST)
        four.insist(clients, "montreal", lossless=False)
    stack.refresh()
    stack.up()
    stack.up("--expect-no-changes")


def test_what_is_changed_while_the_other_pair_leads_reaches_all_four(four: Four) -> None:
    stack = four.stack
    harmony(stack, "switchover", "orders", "--to", "calgary", "--yes")
    four.insist_on(SWITCHED)
    program = (stack.folder / "__main__.py").read_text()
    stack.program(program.partition("\n\n")[2].replace('["orders"])', '["orders"], settings={"max_connections": 130})'))
    stack.up()
    four.insist_on(SWITCHED)
    assert {four.ask(name, "SHOW max_connections") for name in (*EAST, *WEST)} == {"130"}
    stack.up("--expect-no-changes")
    assert "warning" not in stack.refresh()
    harmony(stack, "switchover", "orders", "--to", "montreal", "--yes")
    four.insist_on(AT_FIRST)
    stack.up("--expect-no-changes")


def test_a_standby_in_a_pair_that_follows_is_brought_back_by_a_rejoin_of_the_pair_around(four: Four) -> None:
    assert four.roles() == AT_FIRST
    four.ask("vancouver", "SELECT pg_promote()")
    four.ask("vancouver", "SELECT txid_current()")
    harmony(four.stack, "rejoin", "orders", "--yes")
    four.insist_on(AT_FIRST)
    kept = [path.name for path in (four.homes["vancouver"] / "kept").iterdir()]
    assert [name for name in kept if name.startswith("diverged-")], kept


LED_BY_THE_OTHER = (
    "montreal primary < toronto vancouver; toronto standby; calgary is down; vancouver standby",
    "montreal primary < toronto vancouver; toronto standby; calgary standby; vancouver standby < calgary",
)


def test_a_pair_that_follows_and_has_lost_its_leading_server_is_led_by_its_other_one(four: Four) -> None:
    stack = four.stack
    assert four.roles() == AT_FIRST
    terms = ("--max-data-loss", "0", "--yes")
    with four.clients() as clients:
        clients.wait_until_served()
        four.kill("calgary")
        four.homes["calgary"].rename(four.homes["calgary"].with_suffix(".away"))  # As if its disk were not there.
        shown = harmony(stack, "switchover", "west-orders", "--to", "vancouver", "--yes", expect=1)
        assert "`harmony failover` has the other one lead in it" in shown
        shown = harmony(stack, "failover", "west-orders", *terms)
        assert "vancouver follows montreal" in shown
        assert "The stack knows" in shown
        four.insist_on(LED_BY_THE_OTHER[0])
        slots = four.ask("montreal", "SELECT count(*) FROM pg_replication_slots")
        assert slots == "2", "none for calgary"

        four.kill(*reversed(EAST))  # And it can take over.
        harmony(stack, "failover", "orders", "--to", "vancouver", *terms[:1], "100000000", "--yes")
        clients.wait_until_served()
        harmony(stack, "rejoin", "orders", "--yes")
        four.insist_on("montreal standby < toronto; toronto standby; calgary is down; vancouver primary < montreal")
        harmony(stack, "switchover", "orders", "--to", "montreal", "--yes")
        four.insist_on(LED_BY_THE_OTHER[0])

        four.homes["calgary"].with_suffix(".away").rename(four.homes["calgary"])
        harmony(stack, "rejoin", "orders", "--yes")
        four.insist_on(LED_BY_THE_OTHER[1])
        assert json.loads((four.homes["calgary"] / "roles.json").read_text())["away"] is None
        refused = harmony(stack, "failover", "west-orders", "--to", "calgary", *terms, expect=1)
        assert "its roles cannot be moved while it runs" in refused
        four.kill("vancouver")
        harmony(stack, "failover", "west-orders", "--to", "calgary", *terms)
        harmony(stack, "rejoin", "orders", "--yes")
        four.insist_on(AT_FIRST)
        four.insist(clients, "montreal", lossless=False)
    stack.refresh()
    stack.up()
    stack.up("--expect-no-changes")


def test_a_pair_that_was_failed_over_from_unawares_starts_no_primary(four: Four) -> None:
    stack = four.stack
    assert four.roles() == AT_FIRST
    with four.clients() as clients:
        clients.wait_until_served()
        four.kill(*reversed(EAST))
        for name in EAST:  # As if their disks were not there.
            four.homes[name].rename(four.homes[name].with_suffix(".away"))
        terms = ("--max-data-loss", "100000000", "--accept-unknown-loss", "--yes")
        harmony(stack, "failover", "orders", "--to", "calgary", *terms)
        clients.wait_until_served()
        for name in EAST:
            four.homes[name].with_suffix(".away").rename(four.homes[name])
        refused = harmony(stack, "failover", "east-orders", "--to", "toronto", *terms, expect=1)
        assert "a standby that runs is needed" in refused
        assert "calgary is active at epoch" in harmony(stack, "start", str(four.homes["montreal"]))
        harmony(stack, "start", str(four.homes["toronto"]))
        assert "montreal standby" in four.roles()
        refused = harmony(stack, "failover", "east-orders", "--to", "toronto", *terms, expect=1)
        assert "its roles cannot be moved" in refused or "not this pair" in refused
        harmony(stack, "rejoin", "orders", "--yes")
        four.insist_on(SWITCHED)
        harmony(stack, "revert", "orders", "--yes")
        four.insist_on(AT_FIRST)
        four.insist(clients, "montreal", lossless=False)


# -- killed ------------------------------------------------------------------------------------------------------------


class Outer(Mover):
    """The pair around both."""

    def told(self, role: str) -> dict[str, Any]:
        path = Path(self.handle["members"][role]["members"]["primary"]["root"]) / "roles.json"
        outer = json.loads(path.read_text())["outer"]
        return outer or {"epoch": 0, "active": "primary", "operation": None}

    def killed_and_again(self, kind: Kind, target: str, at: str) -> None:
        """Have whoever does this die at a boundary, then do it again."""
        epoch = self.epoch + (kind == "switchover")
        terms = TERMS if kind == "failover" else None
        done = self.drive(target, epoch, [act(at)], kind=kind, terms=terms)
        assert done.status == KILLED, done
        again = self.drive(target, epoch, kind=kind, terms=terms)
        assert again.status == 0, again.said


@pytest.fixture
def outer(four: Four) -> Outer:
    eventually(lambda: four.roles() in (AT_FIRST, SWITCHED), "all four to be as one of them leads")
    outputs = four.stack.outputs()
    return Outer(four.stack, {**outputs["site"], "deadline": 60}, outputs, Path())


@pytest.mark.parametrize("at", sampled([*STEPS, *LAST_STEPS], 1))
def test_a_switchover_that_is_killed_is_finished_by_the_same_again(four: Four, outer: Outer, at: str) -> None:
    target = other_than(outer.leader)
    with four.clients() as clients:
        clients.wait_until_served()
        outer.killed_and_again("switchover", target, at)
        clients.wait_until_served()
        as_wanted = AT_FIRST if target == "primary" else SWITCHED
        four.insist_on(as_wanted)
        four.insist(clients, FIRST[target])


FAILOVER = [f"{step}:{state}" for step, state in product(("fence", "elect", "promote", "settle"), STATES)]
REJOIN = [f"{step}:{state}" for step, state in product(("retire", "archive", "rewind", "follow", "settle"), STATES)]


@pytest.mark.parametrize(("first", "then"), sampled([*product(FAILOVER, REJOIN)], 1))
def test_a_failover_and_a_rejoin_that_are_killed_are_finished_by_the_same_again(
    four: Four, outer: Outer, first: str, then: str
) -> None:
    source = outer.leader
    target = other_than(source)
    with four.clients() as clients:
        clients.wait_until_served()
        four.kill(*reversed(EAST if source == "primary" else WEST))
        outer.killed_and_again("failover", target, first)
        clients.wait_until_served()
        outer.killed_and_again("rejoin", target, then)
        as_wanted = AT_FIRST if target == "primary" else SWITCHED
        four.insist_on(as_wanted)
        four.insist(clients, FIRST[target], lossless=False)


def test_a_pair_as_a_site_keeps_the_contract_of_one(four: Four) -> None:
    harmony(four.stack, "switchover", "orders", "--to", "montreal", "--yes")  # Which may lead already.
    four.insist_on(AT_FIRST)
    site = four.stack.outputs()["site"]
    handle = {**site, "deadline": 60}
    report = check_sites(lambda: pair_of(handle), four.commit, four.count)
    assert (report.subject, len(report.passed)) == ("PairSite", 13)
    four.insist_on(AT_FIRST)
