"""Databases and topologies are found in a state as the engine writes it."""

from __future__ import annotations

from harmony_pulumi.cli.deployed import Resources, active_server, databases_in
from tests.cli.states import failover, handle, one_pair, pair, pair_handle, pair_of_pairs, server, stack, topology


def test_a_pair_is_one_database_and_its_servers_are_its_members() -> None:
    (database,) = Resources.of(one_pair()).databases()
    assert (database.name, database.topology and database.topology.kind) == ("orders", "FailoverTopology")
    assert [(m.name, m.position, m.declared_active) for m in database.members] == [
        ("montreal", "primary", True),
        ("toronto", "replica", False),
    ]


def test_a_server_outside_every_pair_is_a_database_of_its_own() -> None:
    resources = Resources.of([stack(), topology("dublin"), server("dublin", "audit")])
    (database,) = resources.databases()
    assert (database.name, database.is_group, [m.position for m in database.members]) == ("audit", False, [""])
    assert database.topology == resources.topology_of(handle("dublin", "audit"))


def test_a_pair_of_pairs_is_one_database_with_three_servers() -> None:
    (database,) = Resources.of(pair_of_pairs()).databases()
    assert [m.position for m in database.members] == ["primary/primary", "primary/replica", "replica"]
    assert [m.declared_active for m in database.members] == [True, False, False]


def test_what_the_stack_exports_and_what_waits_for_deletion_is_not_found_again() -> None:
    old = {**server("montreal", "old"), "delete": True}
    (_, *others) = one_pair()
    exporting = stack({"site": pair_handle("orders", handle("montreal"), handle("toronto"))})
    assert [d.name for d in Resources.of([exporting, *others, old]).databases()] == ["orders"]


def test_databases_of_equal_names_are_told_apart_by_their_resources() -> None:
    west = failover("west", "lima", "quito")
    servers = [server("lima"), server("quito")]
    second = pair(pair_handle("orders", handle("lima"), handle("quito")), west)
    hosts = [topology("lima"), topology("quito")]
    names = [d.name for d in Resources.of([*one_pair(), *hosts, west, *servers, second]).databases()]
    assert names == ["orders-orders", "west-orders"]


def test_nothing_is_found_in_an_empty_state() -> None:
    assert Resources.of([]).databases() == []


def test_handles_are_found_among_stack_outputs_each_server_once() -> None:
    both = pair_handle("orders", handle("montreal"), handle("toronto"))
    outputs = {"uri": "[secret]", "site": both, "primary_site": handle("montreal"), "audit": handle("dublin", "audit")}
    assert [d.name for d in databases_in(outputs)] == ["orders", "dublin"]
    assert [d.name for d in databases_in(both)] == ["orders"]
    assert [d.name for d in databases_in([handle("dublin")])] == ["dublin"]
    assert databases_in("no document") == []


def test_the_active_server_is_the_recorded_one_and_none_if_the_record_says_so() -> None:
    site = pair_handle("orders", handle("montreal"), handle("toronto"))
    assert active_server(site) == handle("montreal")
    assert active_server(site, "replica") == handle("toronto")
    assert active_server(site, "none, was primary") is None
