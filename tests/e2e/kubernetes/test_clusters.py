"""The clusters of these tests are what the tests take them for."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from urllib3.exceptions import HTTPError

from harmony_pulumi.kubernetes.found import outside
from tests.e2e.conftest import eventually, needs_root, processes_about
from tests.e2e.kubernetes.conftest import Cluster, sites

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]

SERVE = """
initdb --pgdata /data/db --auth trust
echo 'host all all all trust' >>/data/db/pg_hba.conf
exec postgres -D /data/db -c listen_addresses='*' -c unix_socket_directories=/tmp
"""


ANSWER = (0, "42\n")
CANNOT_CONNECT = 2  # psql's exit status


def pod(name: str, image: str, script: str, **spec: Any) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["bash", "-ec", script],
        "volumeMounts": [{"name": volume["name"], "mountPath": "/data"} for volume in spec.get("volumes", ())],
    }
    security = {"runAsUser": 26, "runAsGroup": 26, "fsGroup": 26}
    spec |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0}
    return {
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [container], "securityContext": security, **spec},
    }


def running(api: Any, namespace: str, name: str) -> bool:
    return api.read_namespaced_pod(name, namespace).status.phase == "Running"


def serve(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """Run a server on a volume; return the `host` and `port` at which it is reached from outside."""
    api = cluster.api("CoreV1Api")
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    api.create_namespaced_persistent_volume_claim(namespace, {"metadata": {"name": "data"}, "spec": claim})
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    api.create_namespaced_pod(namespace, pod("server", cluster.image, SERVE, volumes=volumes))
    service = {"type": cluster.service_type, "selector": {"app": "server"}, "ports": [{"port": 5432}]}
    api.create_namespaced_service(namespace, {"metadata": {"name": "server"}, "spec": service})

    def place() -> dict[str, Any] | None:
        there = api.read_namespaced_service("server", namespace)
        return outside(api.api_client.sanitize_for_serialization(there), cluster.address)

    eventually(lambda: running(api, namespace, "server") and place(), "the server to run and to be reached", 120)
    return place() or {}


@dataclass(frozen=True)
class Pair:
    """A client in one cluster, and a server in the other."""

    one: Cluster
    other: Cluster
    here: str
    there: str
    address: str
    port: int

    def ask(self, cluster: Cluster, namespace: str, pod: str, server: str) -> tuple[int, str]:
        uri = f"postgresql://postgres@{server}/postgres?connect_timeout=3"
        return cluster.execute(namespace, pod, "psql", "-XAtc", "select 6 * 7", uri)

    def over_the_link(self) -> tuple[int, str]:
        return self.ask(self.one, self.here, "client", f"{self.address}:{self.port}")

    def from_here(self) -> None:
        socket.create_connection((self.address, self.port), timeout=3).close()


@contextmanager
def pair_of_pods(clusters: tuple[Cluster, Cluster]) -> Generator[Pair]:
    one, other = clusters
    with one.namespace() as here, other.namespace() as there:
        place = serve(other, there)
        pair = Pair(one, other, here, there, place["host"], place["port"])
        one.api("CoreV1Api").create_namespaced_pod(here, pod("client", one.image, "exec sleep infinity"))
        eventually(lambda: running(one.api("CoreV1Api"), here, "client"), "the client's pod to run", 120)
        eventually(lambda: pair.over_the_link() == ANSWER, "an answer over the link")
        yield pair


def test_nodes_are_ready_and_pods_reach_services_of_both_clusters(clusters: tuple[Cluster, Cluster]) -> None:
    for cluster in clusters:
        for node in cluster.nodes():
            assert {"Ready": "True"}.items() <= {c.type: c.status for c in node.status.conditions}.items()
    with pair_of_pods(clusters) as pair:
        assert pair.ask(pair.other, pair.there, "server", f"server.{pair.there}.svc") == ANSWER
        pair.from_here()
    volumes = pair.other.api("CoreV1Api").list_persistent_volume
    eventually(lambda: pair.there not in [v.spec.claim_ref.namespace for v in volumes().items], "its volume to be gone")


def test_a_cut_link_carries_nothing_until_it_is_mended(our_clusters: tuple[Cluster, Cluster]) -> None:
    with pair_of_pods(our_clusters) as pair:
        pair.other.cut_from_peer()
        assert pair.over_the_link()[0] == CANNOT_CONNECT
        pair.from_here()
        pair.other.cut()
        assert pair.over_the_link()[0] == CANNOT_CONNECT
        with pytest.raises(OSError, match=r"timed out|No route to host"):
            pair.from_here()
        pair.other.mend()
        eventually(lambda: pair.over_the_link() == ANSWER, "an answer over the mended link")


def test_what_ran_on_a_killed_node_is_gone_and_its_cluster_answers(our_clusters: tuple[Cluster, Cluster]) -> None:
    with pair_of_pods(our_clusters) as pair:
        pair.other.site("kill-node")
        assert pair.over_the_link()[0] == CANNOT_CONNECT
        assert pair.other.nodes()
        pair.other.site("start-node")
        api = pair.other.api("CoreV1Api")
        eventually(lambda: api.read_namespaced_pod("server", pair.there).status.phase == "Failed", "it to be noticed")


def test_whatever_runs_behind_an_api_server_that_hangs_goes_on(our_clusters: tuple[Cluster, Cluster]) -> None:
    cluster, _ = our_clusters
    with cluster.namespace() as namespace:
        server = serve(cluster, namespace)
        cluster.site("freeze-api")
        try:
            with pytest.raises(HTTPError):
                cluster.api("VersionApi").get_code(_request_timeout=1)
            socket.create_connection((server["host"], server["port"]), timeout=3).close()
        finally:
            cluster.mend()
        assert cluster.nodes()


def test_an_operator_is_ready_in_each(clusters_with_operator: tuple[Cluster, Cluster]) -> None:
    for cluster in clusters_with_operator:
        deployments = cluster.api("AppsV1Api").list_deployment_for_all_namespaces().items
        ready = {one.metadata.name: one.status.ready_replicas for one in deployments}
        assert ready.get("cnpg-controller-manager") == 1


def traces(run: str) -> list[str]:
    """Return what there is of a run: processes, mounts, devices, control groups, files."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if run in line]
    devices = [name for _, name in socket.if_nameindex() if run in name]
    patterns = {"/sys/fs/cgroup": ("*", "*/*"), "/run": ("*", "*/*"), "/var/lib": ("*", "*/*")}
    files = [str(path) for top, levels in patterns.items() for level in levels for path in Path(top).glob(level)]
    return processes_about(run) + mounts + devices + [path for path in files if run in path]


def test_nothing_is_left_of_a_site_whose_owner_was_killed() -> None:
    needs_root("clusters are made in namespaces")
    with subprocess.Popen(["sleep", "infinity"]) as owner:
        try:
            with sites("gatineau", owner=owner.pid) as (cluster,):
                assert cluster.run is not None
                seen = traces(cluster.run)
                assert len(seen) > 10, seen
                owner.kill()
                owner.wait()  # until then it is there for `tail`
                eventually(lambda: not traces(cast("str", cluster.run)), "all of the site to be gone")
        finally:
            owner.kill()
