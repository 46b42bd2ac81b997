"""A failover pair of a Kubernetes cluster and this host, whichever begins as the primary, with clients that write."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.e2e.conftest import Stack, eventually, stacks, stop_postmaster
from tests.e2e.kubernetes.conftest import Cluster, new_namespace
from tests.e2e.kubernetes.pairs import clients, configure, configure_cluster, status, with_plugin
from tests.e2e.sampling import sampled
from tests.e2e.test_roles_cli import harmony

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]

EXAMPLE = Path(__file__).parents[3] / "examples/mixed_failover/__main__.py"
CLUSTER, HOST = "montreal", "toronto"


def address_towards(cluster: Cluster) -> str:
    """Return the address by which a cluster's pods reach this machine."""
    if told := os.environ.get("HARMONY_E2E_HOST_ADDRESS"):
        return told
    if cluster.run is None:
        pytest.skip(
            f"by what address the cluster {cluster.name}, which is given, reaches this machine is not known: "
            f"HARMONY_E2E_HOST_ADDRESS says it"
        )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((cluster.address, 9))
        return str(probe.getsockname()[0])


@dataclass(frozen=True)
class Mixed:
    """A stack with a pair that is up."""

    stack: Stack
    first: str
    """The member that began as the primary."""
    cluster: Cluster
    namespace: str

    @property
    def other(self) -> str:
        return HOST if self.first == CLUSTER else CLUSTER

    def uri(self, name: str) -> str:
        return str(self.stack.outputs()["primary_uri" if name == self.first else "replica_uri"])

    def ask(self, name: str, query: str) -> object:
        """Return the one value of a query's answer by a member."""
        ca = self.stack.folder / "ca.crt"
        ca.write_text(self.stack.outputs()["ca_certificate"])
        with psycopg.connect(self.uri(name), sslrootcert=str(ca), connect_timeout=5) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def put_aside(self, place: str) -> set[int]:
        """Return the transactions that the cluster's member alone had, by the folder where they are listed."""
        pods = self.cluster.api("CoreV1Api").list_namespaced_pod(
            self.namespace, label_selector="cnpg.io/podRole=instance"
        )
        (pod,) = (one.metadata.name for one in pods.items)
        code, said = self.cluster.execute(self.namespace, pod, "cat", f"{place}/transactions.json")
        assert code == 0, said
        return {transaction["xid"] for transaction in json.loads(said)["transactions"]}

    def insist_on_roles(self, primary: str) -> None:
        found = {name: member["role"] for name, member in status(self.stack).items()}
        assert found == {name: "primary" if name == primary else "standby" for name in (CLUSTER, HOST)}


@pytest.fixture(scope="module", params=sampled([CLUSTER, HOST], 1))
def pair(
    request: pytest.FixtureRequest, clusters: tuple[Cluster, Cluster], tmp_path_factory: pytest.TempPathFactory
) -> Generator[Mixed]:
    """Return a pair whose cluster, or whose host, begins as the primary."""
    cluster = clusters[0]
    address = address_towards(cluster)
    with stacks(tmp_path_factory) as make, new_namespace(cluster) as namespace:
        stack = with_plugin(make())
        shutil.copy(EXAMPLE, stack.folder)
        configure(stack, "primary", request.param)
        configure(stack, f"{HOST}:address", address)
        configure_cluster(stack, CLUSTER, cluster, namespace)
        stack.up()
        yield Mixed(stack, request.param, cluster, namespace)


def test_the_pair_settles_and_the_primarys_rows_are_on_the_replica(pair: Mixed) -> None:
    outputs = pair.stack.outputs()
    ca = pair.stack.folder / "ca.crt"
    ca.write_text(outputs["ca_certificate"])
    with psycopg.connect(outputs["uri"], sslrootcert=str(ca)) as connection:
        connection.execute("CREATE TABLE first AS SELECT generate_series(1, 1000) AS value")
    eventually(
        lambda: pair.ask(pair.other, "SELECT to_regclass('first') IS NOT NULL"), "the table to be on the replica"
    )
    assert pair.ask(pair.other, "SELECT sum(value) FROM first") == 500_500
    pair.insist_on_roles(pair.first)
    pair.stack.up("--expect-no-changes")
    pair.stack.refresh()
    pair.stack.up("--expect-no-changes")


def test_roles_move_there_and_back_and_nothing_is_lost(pair: Mixed) -> None:
    with clients(pair.stack) as running:
        harmony(pair.stack, "switchover", "--to", pair.other, "--yes")
        running.wait_until_served()
        pair.insist_on_roles(pair.other)
        harmony(pair.stack, "revert", "--yes")
        running.wait_until_served()
    pair.insist_on_roles(pair.first)
    found = running.insist(pair.uri(pair.first), pair.uri(pair.other))
    print(f"history: {found}")
    pair.stack.up("--expect-no-changes")


def test_certificates_are_rotated_on_both_and_roles_move_with_them(pair: Mixed) -> None:
    for target in (pair.other, pair.first):
        harmony(pair.stack, "rotate-certificates", "--yes")
        harmony(pair.stack, "rotate-certificates", "--authority", "--yes")
        pair.stack.up("--refresh")
        pair.stack.up("--expect-no-changes")
        with clients(pair.stack) as running:
            harmony(pair.stack, "switchover", "--to", target, "--yes")
            running.wait_until_served()
        pair.insist_on_roles(target)
        running.insist(pair.uri(pair.first), pair.uri(pair.other))


def test_a_host_that_died_is_failed_over_from_and_comes_back_by_a_rewind(pair: Mixed) -> None:
    if pair.first == CLUSTER:
        harmony(pair.stack, "switchover", "--to", HOST, "--yes")
    stop_postmaster(Path(pair.stack.server(HOST)["data_directory"]), signal.SIGKILL)
    terms = ("--max-data-loss", "1000000", "--accept-unknown-loss")
    harmony(pair.stack, "failover", "--to", CLUSTER, "--yes", *terms)
    said = harmony(pair.stack, "rejoin", "--yes")
    assert f"{HOST} is rewound" in said
    assert "copied anew" not in said
    pair.insist_on_roles(CLUSTER)


def test_a_cluster_that_is_cut_off_is_failed_over_from_and_comes_back_by_a_rewind(
    pair: Mixed, our_clusters: tuple[Cluster, Cluster]
) -> None:
    if status(pair.stack)[HOST]["role"] == "primary":
        harmony(pair.stack, "switchover", "--to", CLUSTER, "--yes")
    with clients(pair.stack) as running:
        running.wait_until_served()
        pair.cluster.cut()
        try:
            terms = ("--max-data-loss", "1000000", "--accept-unknown-loss", "--fenced-by-me", CLUSTER)
            said = harmony(pair.stack, "failover", "--to", HOST, "--yes", *terms)
            print(said)
            running.wait_until_served()  # By the host, before the cluster is a primary again that can be reached.
        finally:
            pair.cluster.mend()
        eventually(lambda: status(pair.stack)[CLUSTER]["state"] == "running", "the cluster to answer", 60)
        said = harmony(pair.stack, "rejoin", "--yes")
        print(said)
        assert f"{CLUSTER} is rewound" in said
        pair.insist_on_roles(HOST)
        place = re.search(rf"what {CLUSTER} alone has is in (\S+)", said)
        aside = pair.put_aside(place[1]) if place else set()
        running.wait_until_served()
        if pair.first == CLUSTER:
            harmony(pair.stack, "revert", "--yes")
            running.wait_until_served()
    pair.insist_on_roles(pair.first)
    found = running.insist(pair.uri(pair.first), pair.uri(pair.other), lossless=False)
    print(f"history: {found}")
    assert {attempt.xid for attempt in found.missing if attempt.outcome == "acknowledged"} <= aside
    pair.stack.up("--expect-no-changes")
