"""Waiting for a PostgreSQL cluster that was declared, and what it then is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from harmony_pulumi.capabilities.postgresql_facts import REPLICATION_ROLE
from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.hosts.postgresql import files, queries, renewal
from harmony_pulumi.hosts.postgresql.roles import roles_from
from harmony_pulumi.kubernetes import lease, objects, settled, slots, tls
from harmony_pulumi.kubernetes.api import Api
from harmony_pulumi.kubernetes.facts import api_of
from harmony_pulumi.kubernetes.keeping import Keeping
from harmony_pulumi.kubernetes.pods import PORT, Pod, PodInstance
from harmony_pulumi.orchestration.journal import operator
from harmony_pulumi.orchestration.roles import last_epoch
from harmony_pulumi.orchestration.wait import wait_for

_SLOW = 600
"""Seconds for which a cluster is waited for at least: volumes are made, images come, servers restart."""
_LINES = 200


def in_words(cluster: Mapping[str, Any] | None) -> str:
    """Return how a cluster is, as its operator says."""
    if cluster is None:
        return "there is no such cluster"
    status = cluster.get("status") or {}
    phase, reason = status.get("phase") or "the operator has not looked at it", status.get("phaseReason") or ""
    ready = f"{status.get('readyInstances', 0)} of {cluster['spec']['instances']} instances are ready"
    return "; ".join(filter(None, (phase, reason, ready)))


def until_ready(props: Mapping[str, Any], show: Callable[[str], None]) -> dict[str, Any]:
    """Wait until a cluster serves, as it is declared; return its outputs.

    Raises:
        SiteError: it does not, in time; or something keeps it from that which does not pass by waiting.
    """
    site = props["site"]
    api, namespace, name = api_of(site), site["namespace"], site["cluster"]
    api.patch(objects.path_of(namespace, name), {"metadata": {"annotations": {objects.HIBERNATION: None}}})
    show(f"{api.name}: waiting until the cluster {namespace}/{name} serves, as it is declared")
    cluster = Watch(site, api, show).until_settled(max(props["deadline"], _SLOW))
    if not (cluster.get("status") or {}).get("currentPrimary"):
        raise SiteError(
            f"{api.name}: {namespace}/{name} is fenced before it has served: lift that, then run this again"
        )
    server = instance(api, namespace, cluster["status"]["currentPrimary"])
    if objects.is_fenced(cluster):
        show(f"{api.name}: {namespace}/{name} is fenced, as a role change left it: see `harmony status`")
        control = server.control_data()
        version = server.connection.check([server.program("postgres"), "--version"]).split()[2]
        return {"postgresql_version": version, "system_identifier": control["Database system identifier"]}
    kept = tls.files_of(site)
    kept.serves(cluster["metadata"]["uid"])
    # A role change, or a rotation by command, is to come before all of this, or after it.
    with lease.held(api, namespace, name, site["owner"], operator("`pulumi up`"), deadline=props["deadline"]):
        if server.look(queries.IN_RECOVERY, port=PORT):
            if source := props.get("source"):  # Pulumi leaves out what is None, as for one that was to lead at first.
                _follow_as_declared(api, cluster, site, source)
            _use_slot(server, cluster, site["slot"], show)
        elif not props["alone"]:  # What follows from a host tries new certificates by its own role.
            server.sql(files.follower_role_sql(REPLICATION_ROLE), port=PORT)
        _use_certificates(server, kept, alone=props["alone"])
    return {
        "postgresql_version": server.sql("SHOW server_version", port=PORT).split()[0],
        "system_identifier": server.sql("SELECT system_identifier FROM pg_control_system()", port=PORT),
    }


class Watch:
    """Looks at a cluster until it is what is declared of it."""

    def __init__(self, site: Mapping[str, Any], api: Api, show: Callable[[str], None]) -> None:
        """Look at the cluster of a site; `show` is told what hinders it."""
        self._api, self._show = api, show
        self._namespace, self._cluster, self._owner = site["namespace"], site["cluster"], site["owner"]
        self._since: float | None = None
        self._shown = ""

    def until_settled(self, deadline: float) -> dict[str, Any]:
        """Wait; return the cluster. One that is fenced, as a role change left it, is what it is.

        Raises:
            SiteError: it is not, in time; or something has kept it from that for some while.
        """
        seen = wait_for(
            f"{self._api.name}: the cluster {self._namespace}/{self._cluster}",
            self._look,
            lambda seen: objects.is_fenced(seen.cluster) or not any(settled.missing(seen)),
            deadline=deadline,
            words=lambda seen: "; ".join([*settled.missing(seen), in_words(seen.cluster)]),
            advice=f"See `kubectl describe cluster --namespace {self._namespace} {self._cluster}`, and the pods there.",
        )
        return dict(seen.cluster)

    def _look(self) -> settled.Seen:
        cluster = self._api.get(objects.path_of(self._namespace, self._cluster))
        if cluster is None:
            raise SiteError(f"{self._api.name}: the cluster {self._namespace}/{self._cluster} is gone")
        pods = self._list("pods")
        databases = self._api.items(objects.databases_in(self._namespace))
        seen = settled.Seen(
            cluster,
            pods,
            self._list("persistentvolumeclaims"),
            [each for each in databases if objects.is_of(each, self._cluster, self._owner)],
            logs={name: self._log(name, previous=previous) for name, previous in settled.telling(pods)},
        )
        if not (objects.is_fenced(cluster) or any(settled.missing(seen))):
            servers = {name: self._asked(name, cluster) for name in settled.ready_instances(pods)}
            seen = replace(seen, servers=servers)
        self._insist_on_hope(list(settled.hindrances(seen)))
        return seen

    def _insist_on_hope(self, found: list[settled.Hindrance]) -> None:
        """End early where waiting is of no use."""
        words = "; ".join(each.words for each in found)
        if words and words != self._shown:
            self._shown = words
            self._show(f"{self._api.name}: {self._namespace}/{self._cluster}: {words}")
        self._since = (self._since or time.monotonic()) if found else None
        if self._since and (lasted := time.monotonic() - self._since) > max(each.seconds for each in found):
            msg = (
                f"{self._api.name}: the cluster {self._namespace}/{self._cluster} does not become what is declared: "
                f"{words}. This has been so for {lasted:.0f} s. Correct it, or what is declared, then run this again"
            )
            raise SiteError(msg)

    def _asked(self, pod: str, cluster: Mapping[str, Any]) -> Mapping[str, Any]:
        declared = files.quote_literal(json.dumps(cluster["spec"]["postgresql"].get("parameters") or {}))
        try:
            query = settled.SETTINGS.format(declared=declared)
            return dict(instance(self._api, self._namespace, pod).look(query, port=PORT))
        except SiteError as error:
            return {"unasked": str(error)}

    def _log(self, pod: str, *, previous: bool) -> str:
        """Return the end of a pod's log, or of the one of before; if it cannot be read, a line that says so."""
        path = (
            f"/api/v1/namespaces/{self._namespace}/pods/{pod}/log?tailLines={_LINES}&previous={str(previous).lower()}"
        )
        try:
            return self._api.text(path)
        except UnreachableError:
            raise
        except SiteError as error:
            return json.dumps({"level": "error", "msg": f"its log cannot be read: {error}"})

    def _list(self, kind: str) -> list[dict[str, Any]]:
        """Return the pods or volumes of the cluster."""
        return self._api.items(objects.listed(self._namespace, kind, self._cluster))


def _follow_as_declared(
    api: Api, cluster: Mapping[str, Any], site: Mapping[str, Any], source: Mapping[str, Any]
) -> None:
    """Have a cluster know where its source is now; once roles have moved, that is orchestration's matter."""
    namespace, name = site["namespace"], site["cluster"]
    told = Keeping(api, namespace, name, site["owner"], "roles").read("roles")
    moved = told is not None and last_epoch(roles_from(json.loads(told)))
    if not (moved or objects.follows_as(cluster, source)):
        clusters = objects.external_clusters(name, site["name"], source)
        api.apply(objects.path_of(namespace, name), objects.told(name, clusters, leads=False), manager=objects.MANAGER)


def _use_slot(server: PodInstance, cluster: Mapping[str, Any], slot: str, show: Callable[[str], None]) -> None:
    """Have a cluster that follows stream by its slot, whichever of its instances leads in it."""
    for each in instances(cluster, server):
        slots.use(each, slot)
    try:
        slots.make(server, slot)
    except SiteError as error:  # Its source may wake up after it. The pair has the slot made, too.
        show(f"warning: {error}")
    server.sql("SELECT pg_reload_conf()", port=PORT)


def _use_certificates(server: PodInstance, kept: tls.ClusterFiles, *, alone: bool) -> None:
    """Have new certificates count, now that the server, which runs, is certain to use them."""
    rotation, in_use = renewal.last_rotation(kept)
    if rotation is None:
        return
    if not in_use:
        tls.use(server, kept)
    # No other member has a certificate of the authority of before; a rotation by command may wait for others.
    if alone and not rotation["ended"] and renewal.is_by_input(rotation):
        renewal.distrust(kept)
        tls.take_over(server, kept)


def hibernate(props: Mapping[str, Any], show: Callable[[str], None]) -> None:
    """Stop a cluster and keep its data: CloudNativePG, "Declarative hibernation". One that is gone is no error.

    Raises:
        SiteError: it does not stop, in time.
    """
    site = props["site"]
    api, namespace, name = api_of(site), site["namespace"], site["cluster"]
    there = api.get(objects.path_of(namespace, name))
    if there is None:
        return
    # One instance after the other gives its clients so long to leave: CloudNativePG, "Postgres instance manager".
    leave = int(there["spec"].get("smartShutdownTimeout") or 0) * int(there["spec"]["instances"])
    api.patch(objects.path_of(namespace, name), {"metadata": {"annotations": {objects.HIBERNATION: "on"}}})
    wait_for(
        f"{api.name}: the cluster {namespace}/{name}, stopping",
        lambda: api.get(objects.path_of(namespace, name)),
        # Of one that is fenced nothing runs, and the operator waits for it for ever.
        lambda cluster: cluster is None or _hibernates(cluster) or objects.is_fenced(cluster),
        deadline=leave + props["deadline"],
        words=in_words,
        advice=f"See `kubectl describe cluster --namespace {namespace} {name}`.",
    )
    show(f"{api.name}: the cluster {namespace}/{name} is stopped; its data is kept")


def _hibernates(cluster: Mapping[str, Any]) -> bool:
    conditions = (cluster.get("status") or {}).get("conditions") or []
    return any(each["type"] == objects.HIBERNATION and each["status"] == "True" for each in conditions)


def instance(api: Api, namespace: str, pod: str) -> PodInstance:
    """Return the instance in a pod."""
    return PodInstance(Pod(api, namespace, pod))


def instances(cluster: Mapping[str, Any], leading: PodInstance) -> list[PodInstance]:
    """Return the instances of a cluster that have a pod, the one that leads first: without a pod nothing runs."""
    api, namespace = leading.connection.api, leading.connection.namespace
    others = [name for name in cluster["status"].get("instanceNames") or () if name != leading.connection.pod]
    there = [name for name in others if api.get(f"/api/v1/namespaces/{namespace}/pods/{name}") is not None]
    return [leading, *(instance(api, namespace, name) for name in there)]
