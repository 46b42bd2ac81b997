"""A pair of two Kubernetes clusters as what is around it sees it: an endpoint outside, and whoever moves roles."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from harmony_pulumi.orchestration.pair import pair_of
from harmony_pulumi.orchestration.replication import Member
from harmony_pulumi.testing import check_sites
from tests.e2e.conftest import Stack, stacks
from tests.e2e.kubernetes.conftest import Cluster, new_namespace
from tests.e2e.kubernetes.pairs import EXAMPLE, clients, deploy, insist
from tests.e2e.test_roles_cli import harmony

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]

ENDPOINT = (
    "from harmony_pulumi import EndpointConfig, LinuxHostTopology\n"
    'endpoints = [EndpointConfig(on=LinuxHostTopology("kingston"))]\n'
)


@pytest.fixture(scope="module")
def operators(clusters: tuple[Cluster, Cluster]) -> list[dict[str, Any]]:
    """Return the operators that were there before the pair."""
    return [cluster.operators() for cluster in clusters]


@pytest.fixture(scope="module")
def stack(
    clusters: tuple[Cluster, Cluster], operators: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Generator[Stack]:
    """Return a stack with a pair that is up, behind an endpoint on this machine."""
    head, declared, tail = EXAMPLE.read_text().partition('PostgreSQLConfig(databases=["orders"]))')
    assert declared
    program = f"{head}{declared[:-1]}, endpoints=endpoints){tail}"
    line = "pair = FailoverTopology("
    assert line in program
    program = program.replace(line, f"{ENDPOINT}{line}")
    with stacks(tmp_path_factory) as make, new_namespace(*clusters) as namespace:
        stack = make()
        deploy(stack, clusters, namespace, program)
        yield stack


def test_an_operator_that_was_there_is_left_as_it_is(
    operators: list[dict[str, Any]], stack: Stack, clusters: tuple[Cluster, Cluster]
) -> None:
    for before, cluster in zip(operators, clusters, strict=True):
        after = cluster.operators()
        assert len(after) == 1
        assert after == before or not before


def test_an_endpoint_outside_of_the_clusters_fails_no_statement_as_roles_move(stack: Stack) -> None:
    with clients(stack, pooled=True) as running:
        harmony(stack, "switchover", "--to", "toronto", "--yes")
        running.wait_until_served()
        harmony(stack, "switchover", "--to", "montreal", "--yes")
        running.wait_until_served()
        running.stop()
        assert not running.errors
    insist(stack, running, "primary")


def test_the_sites_of_a_pair_keep_the_contract_by_which_roles_move(
    stack: Stack, clusters: tuple[Cluster, Cluster]
) -> None:
    handle = stack.outputs()["site"]
    named = {cluster.name: cluster for cluster in clusters}

    def ask(member: Member, sql: str) -> str:
        where = member.handle["namespace"], f"{member.handle['cluster']}-1"
        status, said = named[member.name].execute(*where, "psql", "-XAtqc", sql, "orders")
        assert status == 0, said
        return said

    def commit(member: Member) -> None:
        ask(member, "CREATE TABLE IF NOT EXISTS commits (); INSERT INTO commits DEFAULT VALUES")

    def count(member: Member) -> int:
        there = ask(member, "SELECT to_regclass('commits')").strip()
        return int(ask(member, "SELECT count(*) FROM commits")) if there else 0

    report = check_sites(lambda: pair_of(handle), commit, count)
    assert (report.subject, len(report.passed)) == ("ClusterPostgreSQL", 13)
