"""The sites of a pair of Kubernetes clusters keep the contract by which roles are moved, as those of hosts do."""

from __future__ import annotations

import json

import pytest

from harmony_pulumi.orchestration.pair import pair_of
from harmony_pulumi.orchestration.replication import Member
from harmony_pulumi.testing import check_sites
from tests.e2e.conftest import Stack
from tests.e2e.kubernetes.conftest import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]


def test_the_sites_of_a_pair_keep_the_contract_by_which_roles_move(
    stack: Stack, our_clusters: tuple[Cluster, Cluster]
) -> None:
    state = json.loads(stack.run("stack", "export", "--show-secrets"))["deployment"]["resources"]
    (handle,) = (r["outputs"]["site"] for r in state if r["type"].endswith("PostgreSQLPair"))
    handle = json.loads(handle["plaintext"])
    clusters = {cluster.name: cluster for cluster in our_clusters}

    def ask(member: Member, sql: str) -> str:
        where = member.handle["namespace"], f"{member.handle['cluster']}-1"
        status, said = clusters[member.name].execute(*where, "psql", "-XAtqc", sql, "orders")
        assert status == 0, said
        return said

    def commit(member: Member) -> None:
        ask(member, "CREATE TABLE IF NOT EXISTS commits (); INSERT INTO commits DEFAULT VALUES")

    def count(member: Member) -> int:
        there = ask(member, "SELECT to_regclass('commits')").strip()
        return int(ask(member, "SELECT count(*) FROM commits")) if there else 0

    report = check_sites(lambda: pair_of(handle), commit, count)
    assert (report.subject, len(report.passed)) == ("ClusterPostgreSQL", 13)
