"""A failover pair of two Kubernetes clusters, as tests deploy, look at and use it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Stack
from tests.e2e.history import Clients
from tests.e2e.kubernetes.conftest import Cluster
from tests.e2e.test_roles_cli import harmony
from tests.plugins.found import add_kubernetes_plugin

NAMES = {"primary": "montreal", "replica": "toronto"}
EXAMPLE = Path(__file__).parents[3] / "examples/kubernetes_failover/__main__.py"
# What is cut off says nothing: without a limit a client would wait for minutes.
CLIENT = "&tcp_user_timeout=3000"
# Only for tests, which move roles by the handle itself, too.
EXPORT = '\npulumi.export("site", database.site)\n'


def with_plugin(stack: Stack, plugin: Path | None = None) -> Stack:
    """Have the stack find a Kubernetes plugin."""
    add_kubernetes_plugin(stack.env, plugin)
    return stack


def configure(stack: Stack, key: str, value: str, *options: str) -> None:
    """Set the stack's configuration, by standard input, as an operator does with a secret."""
    argv = ["pulumi", "config", "set", key, *options, "--non-interactive"]
    subprocess.run(argv, cwd=stack.folder, env=stack.env, input=value, text=True, check=True, timeout=60)


def configure_cluster(stack: Stack, name: str, cluster: Cluster, namespace: str) -> None:
    """Set what an example takes of a cluster."""
    configure(stack, f"{name}:kubeconfig", cluster.kubeconfig.read_text(), "--secret")
    for key, value in {
        "address": cluster.address,
        "image": cluster.image,
        "namespace": namespace,
        "operator-manifest": cluster.operator_manifest(stack.folder),
        "storage": "20Gi",
    }.items():
        if value is not None:
            configure(stack, f"{name}:{key}", value)


def declare(stack: Stack, clusters: Sequence[Cluster], namespace: str, program: str = EXAMPLE.read_text()) -> None:
    """Have a stack declare, on two clusters, what a program does: by default the example."""
    with_plugin(stack)
    (stack.folder / "__main__.py").write_text(program + EXPORT)
    for name, cluster in zip(NAMES.values(), clusters, strict=True):
        configure_cluster(stack, name, cluster, namespace)


def deploy(stack: Stack, clusters: Sequence[Cluster], namespace: str, program: str = EXAMPLE.read_text()) -> None:
    """Deploy a program, by default the example, on two clusters."""
    declare(stack, clusters, namespace, program)
    stack.up()


def status(stack: Stack) -> dict[str, Any]:
    """Return what `harmony status` says of each member."""
    (database,) = json.loads(harmony(stack, "status", "--json", expect=None))["databases"]
    return {member["name"]: member for member in database["members"]}


@contextmanager
def clients(stack: Stack, *, pooled: bool = False) -> Generator[Clients]:
    """Have clients write all the while, to whichever cluster takes writes. `pooled`: the uri is of an endpoint."""
    outputs = stack.outputs()
    ca = stack.folder / "ca.crt"
    ca.write_text(outputs["ca_certificate"])
    with Clients([outputs["uri"] + CLIENT] * 2, ca, pause=0.02, pooled=pooled) as running:
        yield running


def insist(stack: Stack, running: Clients, leader: str) -> None:
    """Nothing was lost, and both members are equal."""
    outputs = stack.outputs()
    follower = next(role for role in NAMES if role != leader)
    found = running.insist(outputs[f"{leader}_uri"], outputs[f"{follower}_uri"])
    print(f"history: {found}")
