"""The clusters of these tests are what the tests take them for."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from tests.e2e.conftest import eventually, needs_root, processes_about
from tests.e2e.kubernetes.conftest import Cluster, sites

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]

SERVE = """
initdb --pgdata /data/db --auth trust
echo 'host all all all trust' >>/data/db/pg_hba.conf
exec postgres -D /data/db -c listen_addresses='*' -c unix_socket_directories=/tmp
"""


def pod(name: str, image: str, script: str, **spec: Any) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["bash", "-ec", script],
        "volumeMounts": [{"name": volume["name"], "mountPath": "/data"} for volume in spec.get("volumes", ())],
    }
    security = {"runAsUser": 26, "runAsGroup": 26, "fsGroup": 26}
    return {
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [container], "securityContext": security, "terminationGracePeriodSeconds": 0, **spec},
    }


def running(api: Any, namespace: str, name: str) -> bool:
    return api.read_namespaced_pod(name, namespace).status.phase == "Running"


def serve(cluster: Cluster, namespace: str) -> int:
    """Run a server on a volume; return the NodePort of its service."""
    api = cluster.api("CoreV1Api")
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    api.create_namespaced_persistent_volume_claim(namespace, {"metadata": {"name": "data"}, "spec": claim})
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    api.create_namespaced_pod(namespace, pod("server", cluster.image, SERVE, volumes=volumes))
    service = {"type": "NodePort", "selector": {"app": "server"}, "ports": [{"port": 5432}]}
    made = api.create_namespaced_service(namespace, {"metadata": {"name": "server"}, "spec": service})
    eventually(lambda: running(api, namespace, "server"), "the server's pod to run", 120)
    return made.spec.ports[0].node_port


def test_a_pod_reaches_a_service_of_the_other_cluster_unless_the_link_is_cut(
    clusters: tuple[Cluster, Cluster],
) -> None:
    one, other = clusters
    for cluster in clusters:
        for node in cluster.nodes():
            assert {"Ready": "True"}.items() <= {c.type: c.status for c in node.status.conditions}.items()

    with one.namespace() as here, other.namespace() as there:
        port = serve(other, there)
        one.api("CoreV1Api").create_namespaced_pod(here, pod("client", one.image, "exec sleep infinity"))
        eventually(lambda: running(one.api("CoreV1Api"), here, "client"), "the client's pod to run", 120)

        def ask(cluster: Cluster, namespace: str, name: str, uri: str) -> tuple[int, str]:
            uri = f"postgresql://postgres@{uri}/postgres?connect_timeout=3"
            return cluster.execute(namespace, name, "psql", "-XAtc", "select 6 * 7", uri)

        def over_the_link() -> tuple[int, str]:
            return ask(one, here, "client", f"{other.address}:{port}")

        eventually(lambda: over_the_link() == (0, "42\n"), "an answer over the link")
        assert ask(other, there, "server", f"server.{there}.svc") == (0, "42\n")  # by its name and its own service
        socket.create_connection((other.address, port), timeout=10).close()

        address = other.address
        other.cut_from_peer()
        status, said = ask(one, here, "client", f"{address}:{port}")
        assert status == 2, said
        socket.create_connection((address, port), timeout=10).close()
        other.cut()
        status, said = ask(one, here, "client", f"{address}:{port}")
        assert status == 2, said
        with pytest.raises(OSError, match=r"timed out|No route to host"):
            socket.create_connection((address, port), timeout=3).close()
        other.mend()
        eventually(lambda: over_the_link() == (0, "42\n"), "an answer over the mended link")

        other.site("kill-node")
        assert other.nodes(), "the control plane stays"
        assert over_the_link()[0] == 2
        other.site("start-node", deadline=300)

    volumes = other.api("CoreV1Api").list_persistent_volume
    eventually(lambda: there not in [v.spec.claim_ref.namespace for v in volumes().items], "the volume to be gone")


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
                eventually(lambda: not traces(cast("str", cluster.run)), "all of the site to be gone")
        finally:
            owner.kill()
