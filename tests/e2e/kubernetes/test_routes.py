"""A pair of two clusters that are reached by routes alone, past routers that go by names (SNI) and pass TLS on."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import threading
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kubernetes.client.exceptions import NotFoundException

from tests.e2e.conftest import Stack, eventually, stacks
from tests.e2e.kubernetes.conftest import Cluster, new_namespace
from tests.e2e.kubernetes.pairs import EXAMPLE, configure, declare, status
from tests.e2e.test_roles_cli import harmony
from tests.e2e.test_versions import versions

__all__ = ["versions"]
pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]

GROUP = "route.openshift.io"
# Of OpenShift's own kind, what a router and a program need.
KIND: dict[str, Any] = {
    "metadata": {"name": f"routes.{GROUP}"},
    "spec": {
        "group": GROUP,
        "names": {"kind": "Route", "listKind": "RouteList", "plural": "routes", "singular": "route"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
# As OpenShift's router has it for routes with `termination: passthrough`.
FRONTEND = """
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend router
  bind {address}:443
  tcp-request inspect-delay 3s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
"""
USE = "  use_backend {name} if {{ req.ssl_sni -i {host} }}\n"
BACKEND = "backend {name}\n  server service {service}:{port}\n"
# Not as `Cluster.image` looks for one: the other tests are to have theirs.
IMAGE = "localhost/postgresql-17:17"


class Router:
    """The router of one cluster: an HAProxy at its address, which has what routes say, and admits them."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def _run(self) -> None:
        api, known = self._cluster.api("CustomObjectsApi"), ""
        while not self._stop.wait(0.2):
            routes = api.list_cluster_custom_object(GROUP, "v1", "routes", _request_timeout=30)["items"]
            if routes and (config := self._config(routes)) != known:
                self._end()
                path = self._folder / f"{self._cluster.name}.haproxy"
                path.write_text(config)
                self._process, known = subprocess.Popen([*self._within(), "haproxy", "-db", "-f", str(path)]), config
                for route in routes:
                    self._admit(api, route)

    def _config(self, routes: list[dict[str, Any]]) -> str:
        backends = [self._backend(f"route{number}", route) for number, route in enumerate(routes)]
        head = FRONTEND.format(address=self._cluster.address)
        return head + "".join(USE.format(**each) for each in backends) + "".join(BACKEND.format(**b) for b in backends)

    def _backend(self, name: str, route: Mapping[str, Any]) -> dict[str, Any]:
        spec, namespace = route["spec"], route["metadata"]["namespace"]
        assert spec["tls"] == {"termination": "passthrough"}
        there = self._cluster.api("CoreV1Api").read_namespaced_service(spec["to"]["name"], namespace).spec
        (port,) = [one.port for one in there.ports if one.name == spec["port"]["targetPort"]]
        return {"name": name, "host": spec["host"], "service": there.cluster_ip, "port": port}

    def _within(self) -> list[str]:
        """Return what runs a program in the network of the cluster's node."""
        holder = (self._cluster.kubeconfig.parent / "control.pid").read_text().strip()
        first = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()[0]
        return ["nsenter", "--target", first, "--net"]

    def _admit(self, api: Any, route: Mapping[str, Any]) -> None:
        admitted = {"type": "Admitted", "status": "True"}
        told = {"status": {"ingress": [{"host": route["spec"]["host"], "conditions": [admitted]}]}}
        about = route["metadata"]
        api.patch_namespaced_custom_object_status(
            GROUP, "v1", about["namespace"], "routes", about["name"], told, _request_timeout=30
        )


def image_of_17(base: Path, versions: Path, archive: Path) -> None:
    """Make an image of PostgreSQL 17, upon one of an older version, as `docker save` writes it."""
    layers = ["layer.tar", "17.tar"]
    with tarfile.open(base) as there:
        there.extractall(archive.parent, filter="data")
    config = json.loads(archive.with_name("config.json").read_text())
    config["config"]["Env"] = [f"PATH={versions}/17/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]
    config["history"] = [{}, {}]
    with tarfile.open(archive.with_name("17.tar"), "w") as layer:
        layer.add(versions / "17", str(versions / "17").lstrip("/"))
    with archive.with_name("17.tar").open("rb") as content:
        config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}")
    with tarfile.open(archive, "w") as image:
        for name in layers:
            image.add(archive.with_name(name), name)
            archive.with_name(name).unlink()
        manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": layers}]
        for name, value in {"config.json": config, "manifest.json": manifest}.items():
            text = json.dumps(value).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            image.addfile(entry, io.BytesIO(text))


def _are_served(cluster: Cluster) -> bool:
    try:
        cluster.api("CustomObjectsApi").list_cluster_custom_object(GROUP, "v1", "routes", _request_timeout=30)
    except NotFoundException:
        return False
    groups = cluster.api("ApisApi").get_api_versions(_request_timeout=30).groups
    return GROUP in [group.name for group in groups]


@contextmanager
def routes(cluster: Cluster) -> Generator[None]:
    """Have a cluster know routes."""
    api = cluster.api("ApiextensionsV1Api")
    api.create_custom_resource_definition(KIND, _request_timeout=30)
    try:
        eventually(lambda: _are_served(cluster), "routes to be served")
        yield
    finally:
        api.delete_custom_resource_definition(KIND["metadata"]["name"], _request_timeout=30)


def name_in_dns(clusters: tuple[Cluster, Cluster], namespace: str) -> dict[str, str]:
    """Have pods of both clusters find each router by a name; return the names."""
    for each in clusters:
        each.api("CoreV1Api").create_namespace({"metadata": {"name": namespace}}, _request_timeout=30)
        for router in clusters:
            service = {"metadata": {"name": router.name}, "spec": {"clusterIP": "None", "ports": [{"port": 443}]}}
            each.api("CoreV1Api").create_namespaced_service(namespace, service, _request_timeout=30)
            leads_to = {
                "metadata": {"name": router.name, "labels": {"kubernetes.io/service-name": router.name}},
                "addressType": "IPv4",
                "ports": [{"port": 443}],
                "endpoints": [{"addresses": [router.address]}],
            }
            each.api("DiscoveryV1Api").create_namespaced_endpoint_slice(namespace, leads_to, _request_timeout=30)
    return {cluster.name: f"{cluster.name}.{namespace}.svc.cluster.local" for cluster in clusters}


@pytest.fixture(scope="module")
def stack(
    our_clusters: tuple[Cluster, Cluster], versions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Stack]:
    """Return a stack that declares a pair whose members are reached by routes, in clusters that know none yet."""
    folder = tmp_path_factory.mktemp("image")
    archive = folder / "image.tar"
    image_of_17(our_clusters[0].kubeconfig.parent / "parts/images/postgresql.tar", versions, archive)
    for cluster in our_clusters:
        cluster.site("load", str(archive), deadline=300)
    archive.unlink()
    program = EXAMPLE.read_text()
    for line, told in (
        ("        name,\n", '        name,\n        service_type="Route",\n'),
        ('databases=["orders"]', 'databases=["orders"], version=17'),
    ):
        assert program.count(line) == 1
        program = program.replace(line, told)
    with stacks(tmp_path_factory) as make, new_namespace(*our_clusters) as space, new_namespace(*our_clusters) as names:
        stack = make()
        declare(stack, our_clusters, space, program)
        for name, host in name_in_dns(our_clusters, names).items():
            configure(stack, f"{name}:address", host)
            configure(stack, f"{name}:image", IMAGE)
        yield stack


def test_a_pair_is_reached_by_routes_alone_and_its_roles_move_there_and_back(
    our_clusters: tuple[Cluster, Cluster], stack: Stack, tmp_path: Path
) -> None:
    said = stack.preview(expect=1)
    assert f"serves no {GROUP}; expected OpenShift" in said, said

    with ExitStack() as routers:
        for cluster in our_clusters:
            routers.enter_context(routes(cluster))
            routers.enter_context(Router(cluster, tmp_path))
        stack.up()
        stack.up("--expect-no-changes")
        outputs = stack.outputs()
        assert outputs["uri"].endswith(
            "/orders?sslmode=verify-full&sslnegotiation=direct&target_session_attrs=read-write"
        )
        authority = tmp_path / "ca.crt"
        authority.write_text(outputs["ca_certificate"])
        # The names are known in the clusters.
        addresses = {
            role: str(cluster.address) for role, cluster in zip(("primary", "replica"), our_clusters, strict=True)
        }

        def ask(sql: str, at: str = "uri", **options: str) -> object:
            where = addresses[at.removesuffix("_uri")] if at != "uri" else ",".join(addresses.values())
            words: dict[str, Any] = {
                "hostaddr": where,
                "sslrootcert": str(authority),
                "connect_timeout": 10,
                "autocommit": True,
                **options,
            }
            with psycopg.connect(outputs[at], **words) as client:
                done = client.execute(sql.encode())
                return (done.fetchone() or [None])[0] if done.description else None

        def insist_on(follower: str, count: int) -> None:
            ask("INSERT INTO kept VALUES (1) RETURNING value")
            look = "SELECT count(*) FROM kept"
            eventually(lambda: ask(look, f"{follower}_uri") == count, f"{count} rows on the {follower}")
            assert ask("SELECT pg_is_in_recovery()", f"{follower}_uri") is True

        ask("CREATE TABLE kept AS SELECT 0 AS value")
        insist_on("replica", 2)
        receiver = "SELECT conninfo FROM pg_stat_wal_receiver"
        _, conninfo = our_clusters[1].execute(
            json.loads(stack.run("config", "get", "toronto:namespace", "--json"))["value"],
            "toronto-orders-1", "psql", "-XAtqc", receiver,
        )  # fmt: skip
        assert "sslnegotiation=direct" in conninfo
        assert "port=443" in conninfo
        # The router passes on what begins with TLS, and with a name that it knows, alone.
        with pytest.raises(psycopg.OperationalError, match="server closed the connection unexpectedly"):
            ask("SELECT 1", "primary_uri", sslnegotiation="postgres")
        with pytest.raises(psycopg.OperationalError, match=r"SSL|closed the connection"):
            ask("SELECT 1", "primary_uri", sslsni="0")
        harmony(stack, "switchover", "--to", "toronto", "--yes")
        insist_on("primary", 3)
        harmony(stack, "switchover", "--to", "montreal", "--yes")
        insist_on("replica", 4)
        assert {name: member["role"] for name, member in status(stack).items()} == {
            "montreal": "primary",
            "toronto": "standby",
        }
        stack.up("--expect-no-changes")
