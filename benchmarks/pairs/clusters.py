"""Pairs of PostgreSQL on two Kubernetes clusters: this package's, and one whose roles are moved by hand."""

from __future__ import annotations

import importlib.metadata
import json
import secrets
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import common
from benchmarks.pairs.base import Switched, wait_for
from benchmarks.pairs.ours import harmony, keep_site
from harmony_pulumi import PostgreSQLConfig
from harmony_pulumi.capabilities.postgresql_facts import OPERATOR_ROLE
from harmony_pulumi.hosts.postgresql import certificates
from harmony_pulumi.kubernetes import found, objects, tls
from harmony_pulumi.kubernetes.api import Api, Paths
from harmony_pulumi.kubernetes.objects import path_of
from harmony_pulumi.kubernetes.settled import serves
from tests.e2e.kubernetes.conftest import NAMES, Cluster
from tests.plugins.found import add_kubernetes_plugin

_STORAGE = "20Gi"
_DATABASE = "orders"
_DEADLINE = 300.0
_TICK = 0.02


class OnClusters(Switched):
    """A pair, each member of which is a PostgreSQL cluster in a Kubernetes cluster, in a namespace of its own."""

    members = NAMES
    cluster_names: ClassVar[Mapping[str, str]] = {name: f"{name}-{_DATABASE}" for name in NAMES}

    def __init__(self, folder: Path, clusters: Sequence[Cluster]) -> None:
        """Plan it in a folder of its own, which is made."""
        folder.mkdir(mode=0o700)
        self.folder, self.leader = folder, self.members[0]
        self.clusters = {cluster.name: cluster for cluster in clusters}
        self.authority = folder / "ca.crt"
        self.endpoints: dict[str, Mapping[str, Any]] = {}
        self.password = secrets.token_hex(16)
        self.namespaces: dict[str, str] = {}

    def start(self) -> None:
        for name, cluster in self.clusters.items():
            namespace = f"b{secrets.token_hex(4)}"
            cluster.api("CoreV1Api").create_namespace({"metadata": {"name": namespace}}, _request_timeout=30)
            self.namespaces[name] = namespace
        self.deploy()
        wait_for(f"{self.name}: the replica streaming", self._streams, deadline=_DEADLINE, interval=_TICK)

    @abstractmethod
    def deploy(self) -> None:
        """Deploy it, and know its `endpoints` and authorities."""

    @abstractmethod
    def revert(self) -> None:
        """Bring back the roles that it was deployed with."""

    def stop(self) -> None:
        # That takes minutes, for which nobody waits: what there is goes by itself.
        for name, namespace in self.namespaces.items():
            self.clusters[name].api("CoreV1Api").delete_namespace(namespace, _request_timeout=30)
        self.namespaces = {}

    def conninfo(self, *members: str) -> dict[str, str]:
        chosen = [self.endpoints[member] for member in members or self.members]
        found = {
            "host": ",".join(str(each["host"]) for each in chosen),
            "port": ",".join(str(int(each["port"])) for each in chosen),
            "user": "client",
            "password": self.password,
            "dbname": "postgres",
            "sslmode": "verify-full",
            "sslrootcert": str(self.authority),
            "connect_timeout": "5",
        }
        return found if members else {**found, "target_session_attrs": "read-write"}

    def streams_since(self) -> float:
        """Return when the member that follows connected, by the leader's clock."""
        query = "SELECT extract(epoch FROM max(backend_start)) FROM pg_stat_replication WHERE state = 'streaming'"
        with self.connect(self.leader) as connection:
            row = connection.execute(query).fetchone()
        return float(row[0]) if row and row[0] is not None else float("inf")

    def sql(self, text: str) -> str:
        pod = f"{self.cluster_names[self.leader]}-1"
        argv = ["psql", "-XqAt", "-h", "/controller/run", "-v", "ON_ERROR_STOP=1", "-c", text]
        status, said = self.clusters[self.leader].execute(self.namespaces[self.leader], pod, *argv)
        if status:
            raise SystemExit(f"{self.name}: psql in {pod} ended with status {status}: {said}")
        return said.strip()

    def _streams(self) -> bool:
        return self.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"


class OursOnClusters(OnClusters):
    """harmony_pulumi: deployed once by Pulumi, then its roles are moved by the command alone."""

    name = "ours"
    how = "deployed by Pulumi; `harmony switchover --to NAME --yes --site FILE`, `harmony revert --yes --site FILE`"

    def version(self) -> str:
        return f"harmony_pulumi {importlib.metadata.version('harmony-pulumi')}"

    def deploy(self) -> None:
        declared = {
            name: {
                "kubeconfig": str(cluster.kubeconfig),
                "namespace": self.namespaces[name],
                "address": cluster.address,
                "image": cluster.image,
                "storage": _STORAGE,
            }
            for name, cluster in self.clusters.items()
        }
        project = common.Project(
            self.folder / "project",
            "benchmarks.programs.clusters",
            {"BENCHMARK_CLUSTERS": json.dumps(declared)},
        )
        add_kubernetes_plugin(project.environment)
        project.up()
        outputs = json.loads(project.pulumi("stack", "output", "--json", "--show-secrets"))
        self.endpoints = dict(zip(self.members, outputs["endpoints"], strict=True))
        self.authority.write_text(outputs["ca_certificate"], encoding="utf-8")
        self.site = self.folder / "site.json"
        keep_site(self.site, outputs)

    def switch_over(self) -> None:
        harmony(self.site, "switchover", "--to", self.follower)
        self.leader = self.follower

    def revert(self) -> None:
        harmony(self.site, "revert")
        self.leader = self.members[0]


class ByHand(OnClusters):
    """The flow that CloudNativePG documents, "Replica clusters", for a distributed topology."""

    name = "by_hand"
    how = (
        "the same clusters, certificates and services, made by the API; the old primary's `replica.primary` is "
        "changed, its `demotionToken` read each 20 ms, and given to the other one as `promotionToken`"
    )

    def version(self) -> str:
        return f"CloudNativePG {objects.RELEASE}"

    def deploy(self) -> None:
        self._apis = {name: Api(name, cluster.kubeconfig.read_text()) for name, cluster in self.clusters.items()}
        self._paths = {name: Paths(api) for name, api in self._apis.items()}
        for name in self.members:
            self._apply(name, objects.service(*self._about(name), "NodePort"))
            self.endpoints[name] = self._endpoint(name)
        made = {
            name: tls.issued(certificates.make_authority(name), str(self.endpoints[name]["host"]), 30)
            for name in self.members
        }
        authorities = "".join(made[name]["ca"] for name in self.members)
        self.authority.write_text(authorities, encoding="utf-8")
        for name, other in (self.members, self.members[::-1]):
            theirs = made[other]
            peer = {
                "ca_certificate": theirs["ca"],
                "client_certificate": theirs["replication_certificate"],
                "client_key": theirs["replication_key"],
            }
            for secret in (
                *objects.secrets(*self._about(name), made[name]),
                objects.peer_secret(*self._about(name), peer),
                objects.login_secret(*self._about(name), _DATABASE, secrets.token_hex(16)),
            ):
                self._apply(name, secret)
        for name, other in (self.members, self.members[::-1]):
            self._make(name, other)

    def _make(self, name: str, other: str) -> None:
        config = PostgreSQLConfig(databases=[_DATABASE])
        endpoint = {
            "host": self.endpoints[other]["host"],
            "port": str(self.endpoints[other]["port"]),
            "user": OPERATOR_ROLE,
        }
        cluster, leads = self.cluster_names[name], name == self.leader
        thing = objects.cluster(
            *self._about(name),
            {
                "databases": [{"name": each.name, "owner": each.owner_role} for each in config.declared_databases],
                "settings": config.settings,
                "networks": config.authentication.networks,
                "slot_size_bound": config.slot_size_bound,
                "instances": 1,
                "synchronous_instances": 0,
                "resources": {},
                "locale": config.locale,
            },
            image=self.clusters[name].image,
            storage={"size": _STORAGE},
            follows=not leads,
            roles={
                "replica": objects.following(cluster, leads=leads),
                "externalClusters": objects.external_clusters(cluster, name, endpoint),
            },
        )
        self._apply(name, thing)
        wait_for(f"{self.name}: {name} ready", lambda: serves(self._read(name)), deadline=_DEADLINE, interval=_TICK * 5)

    def switch_over(self) -> None:
        old, new = self.leader, self.follower
        # A token of before would have been taken for this demotion's, and one that is left over makes it fail.
        before = self._read(old).get("status", {}).get("demotionToken")
        self._patch(old, {"primary": objects.PEER, "promotionToken": None})
        token = self._wait_for_token(old, before)
        self._patch(new, {"primary": self.cluster_names[new], "promotionToken": token})
        wait_for(
            f"{self.name}: {new} promoted",
            lambda: self._read(new)["status"].get("lastPromotionToken") == token,
            deadline=_DEADLINE,
            interval=_TICK,
        )
        self._patch(new, {"promotionToken": None})
        self.leader = new

    def revert(self) -> None:
        self.switch_over()

    def _wait_for_token(self, name: str, before: str | None) -> str:
        end = time.monotonic() + _DEADLINE
        while time.monotonic() < end:
            token = self._read(name)["status"].get("demotionToken")
            if token and token != before:
                return str(token)
            time.sleep(_TICK)
        raise SystemExit(f"{self.name}: {name} has no demotion token: not within {_DEADLINE:g} s")

    def _endpoint(self, name: str) -> dict[str, Any]:
        service = objects.service(*self._about(name), "NodePort")
        there = self._apis[name].get(self._paths[name].of(service))
        place = found.outside(there, self.clusters[name].address) if there else None
        if place is None:
            raise SystemExit(f"{self.name}: the service of {name} has no node port")
        return place

    def _about(self, name: str) -> tuple[str, str, str]:
        return self.cluster_names[name], self.namespaces[name], "benchmark"

    def _apply(self, name: str, thing: Mapping[str, Any]) -> None:
        self._apis[name].apply(self._paths[name].of(thing), thing, manager="benchmark")

    def _read(self, name: str) -> dict[str, Any]:
        there = self._apis[name].get(path_of(self.namespaces[name], self.cluster_names[name]))
        if there is None:
            raise SystemExit(f"{self.name}: the cluster {name} is gone")
        return there

    def _patch(self, name: str, replica: Mapping[str, Any]) -> None:
        path = path_of(self.namespaces[name], self.cluster_names[name])
        self._apis[name].patch(path, {"spec": {"replica": replica}})
