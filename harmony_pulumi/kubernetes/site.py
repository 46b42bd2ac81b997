"""A PostgreSQL cluster on Kubernetes as orchestration sees it: one server, the instance that leads in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harmony_pulumi.capabilities.addresses import address
from harmony_pulumi.capabilities.site import Observation, unseen
from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.hosts.postgresql import certificates, queries
from harmony_pulumi.hosts.postgresql.roles import roles_from
from harmony_pulumi.kubernetes import objects
from harmony_pulumi.kubernetes.api import Api
from harmony_pulumi.kubernetes.facts import api_of
from harmony_pulumi.kubernetes.keeping import Keeping
from harmony_pulumi.kubernetes.pods import PORT
from harmony_pulumi.kubernetes.waiting import in_words, instance, path_of

_FENCED = "cnpg.io/fencedInstances"


@dataclass(frozen=True)
class ClusterPostgreSQL:
    """One cluster, by its handle."""

    handle: Mapping[str, Any]

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> ClusterPostgreSQL:
        """Make the site."""
        return cls(handle)

    @cached_property
    def api(self) -> Api:
        """The API of its Kubernetes cluster."""
        return api_of(self.handle)

    def observe(self) -> Observation:
        """Look at the cluster, and at the instance that leads in it."""
        name = str(self.handle["name"])
        try:
            cluster = self._cluster()
        except SiteError as error:
            return unseen(name, "unreachable", str(error))
        if cluster is None:
            return unseen(name, "absent", f"there is no cluster {self._where} at {self.api.address}")
        seen = unseen(name, "stopped", in_words(cluster))
        seen["endpoint"] = address(self.handle["endpoint"]["host"], self.handle["endpoint"]["port"])
        try:
            self._look(cluster, seen)
        except SiteError as error:
            seen["state"], seen["detail"] = "unreachable", str(error)
        return seen

    def _look(self, cluster: Mapping[str, Any], seen: Observation) -> None:
        """Fill in what is to be seen of a cluster that is there."""
        status = cluster.get("status") or {}
        seen["system_identifier"] = str(status.get("systemID") or "")
        text = self._keeping("roles").read("roles")
        seen["roles"] = None if text is None else roles_from(json.loads(text))
        seen["certificates"], seen["flaws"] = self._certificates()
        pod = status.get("currentPrimary")
        if not pod or self._is_asleep(cluster):
            seen["left_as"] = self._left_as(cluster)
            return
        server = instance(self.api, self._namespace, pod)
        try:
            seen.update(server.look(queries.LOOK, port=PORT))
        except UnreachableError:
            raise
        except SiteError as error:
            if not self._is_fenced(cluster):
                seen["state"], seen["detail"] = "unreachable", f"its pod runs and does not answer: {error}"
                return
            seen["left_as"] = self._left_as(cluster)
            seen["ended_cleanly"] = server.control_data()["Database cluster state"] == "shut down"
            return
        seen["state"], seen["detail"] = "running", ""
        # Its own instances are this one site: who follows from elsewhere says by what name.
        own = re.compile(rf"{re.escape(self.handle['cluster'])}-\d+")
        seen["replicas"] = [replica for replica in seen["replicas"] if not own.fullmatch(replica["name"])]
        seen["version"] = server.sql("SHOW server_version", port=PORT).split()[0]

    def record(self, lines: str) -> None:
        """Append whole lines to the log of events."""
        self._keeping("events").append("events", lines)

    def require_synchronous(self, replicas: list[str]) -> None:
        """Have commits wait for nobody: that they wait for another cluster is not offered yet."""
        if replicas:
            msg = f"{self.handle['name']}: commits on Kubernetes cannot be had wait for {', '.join(replicas)}"
            raise SiteError(msg)

    @property
    def _namespace(self) -> str:
        return str(self.handle["namespace"])

    @property
    def _where(self) -> str:
        return f"{self._namespace}/{self.handle['cluster']}"

    def _cluster(self) -> dict[str, Any] | None:
        return self.api.get(path_of(self._namespace, self.handle["cluster"]))

    def _keeping(self, what: str) -> Keeping:
        return Keeping(self.api, self._namespace, self.handle["cluster"], self.handle["owner"], what)

    def _left_as(self, cluster: Mapping[str, Any]) -> str:
        replica = cluster["spec"].get("replica")
        return "primary" if replica is None or replica["primary"] == replica["self"] else "standby"

    def _is_fenced(self, cluster: Mapping[str, Any]) -> bool:
        return bool(json.loads((cluster["metadata"].get("annotations") or {}).get(_FENCED) or "[]"))

    def _is_asleep(self, cluster: Mapping[str, Any]) -> bool:
        return (cluster["metadata"].get("annotations") or {}).get(objects.HIBERNATION) == "on"

    def _certificates(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return when each certificate expires."""
        expiries: dict[str, str] = {}
        for kind in ("server", "replication"):
            path = f"/api/v1/namespaces/{self._namespace}/secrets/{objects.secret_names(self.handle['cluster'])[kind]}"
            text = objects.decoded(self.api.get(path), "tls.crt")
            if certificates.serial(text):
                expiries[kind] = certificates.expires(text).isoformat()
        return expiries, {}
