"""Two real Kubernetes clusters, and a link between them that can be cut.

They are made by scripts/kubernetes/site for the session and removed at its end, however it ends. With
HARMONY_E2E_KUBECONFIGS=ONE:OTHER, two paths, they are two that are given, with or without the operator; their link and
their nodes are out of reach, and nothing but the operator is left in them.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config, stream

from harmony_pulumi.kubernetes import facts
from tests.e2e.conftest import Stack, eventually, needs_root, stacks

ROOT = Path(__file__).parents[3]
SITE = ROOT / "scripts/kubernetes/site"
NAMES = ("montreal", "toronto")
UP_WITHIN = 600


@dataclass
class Cluster:
    """One cluster. That of a site of ours knows the site's run."""

    name: str
    kubeconfig: Path
    run: str | None = None

    @cached_property
    def connections(self) -> Any:
        """The connections to its API server."""
        return config.new_client_from_config(config_file=str(self.kubeconfig))

    def api(self, kind: str) -> Any:
        """Return a client of one of the cluster's interfaces, such as `CoreV1Api`: it is untyped."""
        return getattr(client, kind)(self.connections)

    def nodes(self) -> list[Any]:
        """Return the nodes, as they are."""
        return self.api("CoreV1Api").list_node(_request_timeout=30).items

    @cached_property
    def service_type(self) -> str:
        """How services are reached from outside: `NodePort`, or `LoadBalancer`."""
        return str(facts.of({"name": self.name, "kubeconfig": self.kubeconfig.read_text()})["service_type"])

    @property
    def address(self) -> str | None:
        """The address at which NodePorts are reached, from here and from the other; load balancers have their own."""
        if self.service_type != "NodePort":
            return None
        addresses = {one.type: one.address for one in self.nodes()[0].status.addresses}
        return addresses.get("ExternalIP") or addresses["InternalIP"]

    @property
    def image(self) -> str:
        """The image of PostgreSQL that runs here: one that is there, unless HARMONY_E2E_POSTGRESQL_IMAGE says which."""
        there = [name for node in self.nodes() for image in node.status.images or () for name in image.names]
        found = [os.environ.get("HARMONY_E2E_POSTGRESQL_IMAGE"), *(name for name in there if "/postgresql:" in name)]
        chosen = next(filter(None, found), None)
        assert chosen, f"the cluster {self.name} has no image of PostgreSQL: HARMONY_E2E_POSTGRESQL_IMAGE must name one"
        return chosen

    def operator_manifest(self, folder: Path) -> str | None:
        """Return what its operator is installed from if it has none; None leaves that to the product.

        Args:
            folder: for the manifest of a cluster of ours, which can pull nothing: the image is there.
        """
        if self.run is None:
            told = os.environ.get("HARMONY_E2E_OPERATOR_MANIFEST")
            return str(Path(told).absolute()) if told and "://" not in told else told
        path = folder / "operator.yaml"
        text = (self.kubeconfig.parent / "parts/operator.yaml").read_text()
        path.write_text(text.replace("imagePullPolicy: Always", "imagePullPolicy: IfNotPresent"))
        return str(path)

    def has_operator(self) -> bool:
        """Return whether the definitions of CloudNativePG's resources are installed."""
        found = self.api("ApiextensionsV1Api").list_custom_resource_definition(_request_timeout=30).items
        return any(one.metadata.name == "clusters.postgresql.cnpg.io" for one in found)

    def operators(self) -> dict[str, tuple[Any, ...]]:
        """Return what a change of the operator's deployments, or by whom it was made, would change."""
        label = "app.kubernetes.io/name=cloudnative-pg"
        found = self.api("AppsV1Api").list_deployment_for_all_namespaces(label_selector=label, _request_timeout=30)
        about = [one.metadata for one in found.items]
        return {one.uid: (one.generation, one.labels, one.annotations) for one in about}

    def execute(self, namespace: str, pod: str, *argv: str, deadline: float = 60) -> tuple[int, str]:
        """Run a command in a pod; return its exit status and what it said."""
        api = self.api("CoreV1Api")
        # A stream has no deadline: it would wait long for a cluster that does not answer.
        api.read_namespaced_pod(pod, namespace, _request_timeout=10)
        done = stream.stream(
            api.connect_get_namespaced_pod_exec,
            pod,
            namespace,
            command=[*argv],
            stdout=True,
            stderr=True,
            _preload_content=False,
        )
        with ExitStack() as stack:
            stack.callback(done.sock.shutdown)  # `done.close` leaves a socket open that the other end has closed
            done.run_forever(timeout=deadline)
            assert not done.is_open(), f"{' '.join(argv)} in {pod} took longer than {deadline} s: {done.read_all()}"
            return done.returncode, done.read_all()

    def site(self, command: str, *arguments: str, deadline: float = 120) -> None:
        """Have scripts/kubernetes/site do something to this cluster, which is ours: `kill-node`, `start-node`."""
        assert self.run, f"the cluster {self.name} is given: no 'scripts/kubernetes/site {command}' reaches it"
        argv = [SITE, command, self.name, *arguments, "--run", self.run]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=deadline)
        assert done.returncode == 0, done.stderr

    def cut(self) -> None:
        """Have it reach nothing, and nothing reach it: a real partition."""
        self.site("cut")

    def cut_from_peer(self) -> None:
        """Have the two clusters not reach each other, while both are reached from here."""
        self.site("cut", "sites")

    def mend(self) -> None:
        """End what `cut` and `cut_from_peer` began."""
        self.site("mend")

    @contextmanager
    def namespace(self) -> Generator[str]:
        """Make a namespace; at the end remove it with all that is in it."""
        with new_namespace(self) as name:
            self.api("CoreV1Api").create_namespace({"metadata": {"name": name}}, _request_timeout=30)
            yield name

    def namespaces(self, name: str) -> list[Any]:
        """Return the namespace of a name, if there is one."""
        return self.api("CoreV1Api").list_namespace(field_selector=f"metadata.name={name}", _request_timeout=30).items


@contextmanager
def new_namespace(*clusters: Cluster) -> Generator[str]:
    """Return the name of a namespace that is yet to be made; at the end remove it from each with all that is in it."""
    name = f"t{secrets.token_hex(4)}"
    try:
        yield name
    finally:
        made = [cluster for cluster in clusters if cluster.namespaces(name)]
        for api in [cluster.api("CoreV1Api") for cluster in made]:
            api.delete_namespace(name, _request_timeout=30)
            # A server would wait long for its clients to leave.
            api.delete_collection_namespaced_pod(name, grace_period_seconds=0, _request_timeout=30)
        eventually(lambda: not any(cluster.namespaces(name) for cluster in made), f"{name} to be gone", 120)


def _given(paths: str) -> list[Cluster]:
    found = [Path(path).absolute() for path in paths.split(":")]
    assert len(found) == 2, f"HARMONY_E2E_KUBECONFIGS must be two paths with a colon between, and is {paths}"
    return [Cluster(name, path) for name, path in zip(NAMES, found, strict=True)]


def _kubeconfig(up: subprocess.Popen[str]) -> Path:
    said, problem = up.communicate(timeout=UP_WITHIN)
    assert up.returncode == 0, problem
    return Path(said.splitlines()[-1])


@contextmanager
def sites(*names: str, owner: int) -> Generator[list[Cluster]]:
    """Make clusters that reach each other; remove them at the end, or once the process that owns them has ended."""
    run = f"t{secrets.token_hex(4)}"
    with ExitStack() as stack:
        started: list[subprocess.Popen[str]] = []
        for number, name in enumerate(names, 1):
            argv = [SITE, "up", name, str(number), "--run", run, "--owner", str(owner)]
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            started.append(process)
            # One that is not done does no more once what it waits for is gone.
            stack.callback(process.communicate, timeout=60)
            stack.callback(Cluster(name, Path(), run).site, "down")
            stack.callback(process.terminate)
        yield [Cluster(name, _kubeconfig(process), run) for name, process in zip(names, started, strict=True)]


@contextmanager
def two_clusters() -> Generator[tuple[Cluster, Cluster]]:
    """Return those that are given, or make two, which needs root. Ours start without the operator."""
    with ExitStack() as stack:
        given = os.environ.get("HARMONY_E2E_KUBECONFIGS")
        one, other = _given(given) if given else stack.enter_context(sites(*NAMES, owner=os.getpid()))
        for cluster in (one, other):
            stack.enter_context(cluster.connections)
        yield one, other


@pytest.fixture(scope="session")
def clusters() -> Generator[tuple[Cluster, Cluster]]:
    """Return two clusters that reach each other. Ours start without the operator."""
    if not os.environ.get("HARMONY_E2E_KUBECONFIGS"):
        needs_root("clusters are made in namespaces")
    with two_clusters() as found:
        yield found


@pytest.fixture(scope="session")
def our_clusters(clusters: tuple[Cluster, Cluster]) -> tuple[Cluster, Cluster]:
    """Return two clusters whose link and nodes are in reach."""
    if clusters[0].run is None:
        pytest.skip("the link and the nodes of clusters that are given are out of reach")
    return clusters


@pytest.fixture(scope="session")
def clusters_with_operator(clusters: tuple[Cluster, Cluster]) -> tuple[Cluster, Cluster]:
    """Return two clusters that have the operator."""
    for cluster in clusters:
        if not cluster.has_operator():
            if cluster.run is None:
                pytest.skip(f"the cluster {cluster.name}, which is given, has no operator")
            cluster.site("operator", deadline=300)
    return clusters


@contextmanager
def declared_on(clusters: tuple[Cluster, Cluster], tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """Return a stack that declares a pair in a namespace that is yet to be made; at the end, remove both."""
    from tests.e2e.kubernetes.pairs import declare  # It knows what a cluster is by this module.

    with stacks(tmp_path_factory) as make, new_namespace(*clusters) as namespace:
        stack = make()
        declare(stack, clusters, namespace)
        yield stack


@pytest.fixture(scope="module")
def declared(clusters: tuple[Cluster, Cluster], tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """Return a stack that declares a pair in a namespace that is yet to be made."""
    with declared_on(clusters, tmp_path_factory) as stack:
        yield stack


@pytest.fixture(scope="module")
def stack(declared: Stack) -> Stack:
    """Return a stack with a pair that is up."""
    declared.up()
    return declared
