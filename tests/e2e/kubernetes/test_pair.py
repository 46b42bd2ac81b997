"""A failover pair of two Kubernetes clusters, by the real engine, operator and commands, and clients that write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.e2e.conftest import Stack, eventually, stacks
from tests.e2e.history import Clients
from tests.e2e.kubernetes.conftest import Cluster
from tests.e2e.test_roles_cli import harmony

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]

PLUGINS = Path(__file__).parents[2] / "plugins"
NAMES = {"primary": "montreal", "replica": "toronto"}
EXAMPLE = Path(__file__).parents[3] / "examples/kubernetes_failover/__main__.py"


def with_plugin(stack: Stack) -> Stack:
    """Have the stack find the stand-in for the Kubernetes plugin."""
    stack.env["PATH"] = f"{PLUGINS}:{os.environ['PATH']}"
    return stack


def configure(stack: Stack, key: str, value: str, *options: str) -> None:
    """Set the stack's configuration, by standard input, as an operator does with a secret."""
    argv = ["pulumi", "config", "set", key, *options, "--non-interactive"]
    subprocess.run(argv, cwd=stack.folder, env=stack.env, input=value, text=True, check=True, timeout=60)


def manifest(cluster: Cluster, folder: Path) -> Path:
    """Return the operator's manifest for a cluster that can pull nothing."""
    path = folder / "operator.yaml"
    text = (cluster.kubeconfig.parent / "parts/operator.yaml").read_text()
    path.write_text(text.replace("imagePullPolicy: Always", "imagePullPolicy: IfNotPresent"))
    return path


@pytest.fixture(scope="module")
def stack(our_clusters: tuple[Cluster, Cluster], tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """Return a stack with a pair that is up."""
    with stacks(tmp_path_factory) as make, our_clusters[0].namespace() as namespace:
        stack = with_plugin(make())
        operator = manifest(our_clusters[0], stack.folder)
        shutil.copy(EXAMPLE, stack.folder)
        for name, cluster in zip(NAMES.values(), our_clusters, strict=True):
            configure(stack, f"{name}:kubeconfig", cluster.kubeconfig.read_text(), "--secret")
            for key, value in {
                "address": cluster.address,
                "image": cluster.image,
                "namespace": namespace,
                "operator-manifest": str(operator),
                "storage": "1Gi",
            }.items():
                configure(stack, f"{name}:{key}", value)
        stack.up()
        yield stack


def status(stack: Stack) -> dict[str, Any]:
    """Return what `harmony status` says of each member."""
    (database,) = json.loads(harmony(stack, "status", "--json", expect=None))["databases"]
    return {member["name"]: member for member in database["members"]}


@contextmanager
def clients(stack: Stack) -> Generator[Clients]:
    """Have clients write all the while, to whichever cluster takes writes."""
    outputs = stack.outputs()
    ca = stack.folder / "ca.crt"
    ca.write_text(outputs["ca_certificate"])
    with Clients([outputs["uri"]] * 2, ca, pause=0.02) as running:
        yield running


def insist(stack: Stack, running: Clients, leader: str) -> None:
    outputs = stack.outputs()
    follower = next(role for role in NAMES if role != leader)
    found = running.insist(outputs[f"{leader}_uri"], outputs[f"{follower}_uri"])
    print(f"history: {found}")


def test_the_operator_is_installed_and_the_pair_settles(stack: Stack) -> None:
    outputs = stack.outputs()
    ca = stack.folder / "ca.crt"
    ca.write_text(outputs["ca_certificate"])
    with psycopg.connect(outputs["uri"], sslrootcert=str(ca)) as connection:
        found = connection.execute("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert found == ("TLSv1.3",)
    seen = status(stack)
    assert {name: member["role"] for name, member in seen.items()} == {"montreal": "primary", "toronto": "standby"}
    stack.up("--expect-no-changes")
    stack.refresh()
    stack.up("--expect-no-changes")


def test_roles_move_there_and_back_and_nothing_is_lost(stack: Stack) -> None:
    with clients(stack) as running:
        harmony(stack, "switchover", "--to", "toronto", "--yes")
        running.wait_until_served()
        stack.up("--expect-no-changes")
        harmony(stack, "switchover", "--to", "montreal", "--yes")
        running.wait_until_served()
    insist(stack, running, "primary")


def test_a_cluster_that_is_cut_off_is_failed_over_from_and_comes_back_by_a_rewind(
    stack: Stack, our_clusters: tuple[Cluster, Cluster]
) -> None:
    lost = our_clusters[0]
    lost.cut()
    try:
        said = harmony(stack, "failover", "--to", "toronto", "--yes", "--max-data-loss", "0", expect=1)
        assert "--fenced-by-me" in said
        harmony(
            stack,
            *("failover", "--to", "toronto", "--yes", "--max-data-loss", "1000000", "--accept-unknown-loss"),
            *("--fenced-by-me", "montreal"),
        )
    finally:
        lost.mend()
    eventually(lambda: status(stack)["montreal"]["state"] == "running", "montreal to answer", 60)
    said = harmony(stack, "rejoin", "--yes")
    assert "montreal is rewound" in said
    seen = status(stack)
    assert {name: member["role"] for name, member in seen.items()} == {"montreal": "standby", "toronto": "primary"}
    with clients(stack) as running:
        harmony(stack, "revert", "--yes")
        running.wait_until_served()
    insist(stack, running, "primary")


def test_destroy_keeps_the_data_and_the_next_up_takes_it_over(stack: Stack) -> None:
    def rows() -> int:
        outputs = stack.outputs()
        ca = stack.folder / "ca.crt"
        ca.write_text(outputs["ca_certificate"])
        with psycopg.connect(outputs["uri"], sslrootcert=str(ca)) as connection:
            found = connection.execute("SELECT count(*) FROM history").fetchone()
        assert found is not None
        return int(found[0])

    before = rows()
    assert before
    said = stack.destroy()
    assert "is stopped; its data is kept" in said
    stack.up()
    assert rows() == before
