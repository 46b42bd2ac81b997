"""Waiting for a PostgreSQL cluster that was declared, and what it then is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from harmony_pulumi.capabilities.postgresql_facts import REPLICATION_ROLE
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import files, queries, renewal
from harmony_pulumi.hosts.postgresql.roles import roles_from
from harmony_pulumi.kubernetes import lease, objects, slots, tls
from harmony_pulumi.kubernetes.api import Api
from harmony_pulumi.kubernetes.facts import api_of
from harmony_pulumi.kubernetes.keeping import Keeping
from harmony_pulumi.kubernetes.pods import PORT, Pod, PodInstance
from harmony_pulumi.orchestration.journal import operator
from harmony_pulumi.orchestration.roles import last_epoch
from harmony_pulumi.orchestration.wait import wait_for


def in_words(cluster: Mapping[str, Any] | None) -> str:
    """Return how a cluster is, as its operator says."""
    if cluster is None:
        return "there is no such cluster"
    status = cluster.get("status") or {}
    phase, reason = status.get("phase") or "the operator has not looked at it", status.get("phaseReason") or ""
    ready = f"{status.get('readyInstances', 0)} of {cluster['spec']['instances']} instances are ready"
    return "; ".join(filter(None, (phase, reason, ready)))


def is_ready(cluster: Mapping[str, Any] | None) -> bool:
    """Tell whether the instance that leads in a cluster serves, and all others run."""
    if cluster is None:
        return False
    status = cluster.get("status") or {}
    return bool(status.get("currentPrimary")) and status.get("readyInstances") == cluster["spec"]["instances"]


def until_ready(props: Mapping[str, Any], show: Callable[[str], None]) -> dict[str, Any]:
    """Wait until a cluster serves; return its outputs.

    Raises:
        SiteError: it does not, in time.
    """
    site = props["site"]
    api, namespace, name = api_of(site), site["namespace"], site["cluster"]
    api.patch(objects.path_of(namespace, name), {"metadata": {"annotations": {objects.HIBERNATION: None}}})
    show(f"{api.name}: waiting until the cluster {namespace}/{name} serves")
    cluster = wait_for(
        f"{api.name}: the cluster {namespace}/{name}",
        lambda: api.get(objects.path_of(namespace, name)),
        lambda cluster: is_ready(cluster) or objects.is_fenced(cluster),
        deadline=props["deadline"],
        words=in_words,
        advice=f"See `kubectl describe cluster --namespace {namespace} {name}`, and the pods there.",
    )
    if cluster is None:
        raise SiteError(f"{api.name}: the cluster {namespace}/{name} is gone")
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
    if api.get(objects.path_of(namespace, name)) is None:
        return
    api.patch(objects.path_of(namespace, name), {"metadata": {"annotations": {objects.HIBERNATION: "on"}}})
    wait_for(
        f"{api.name}: the cluster {namespace}/{name}, stopping",
        lambda: api.get(objects.path_of(namespace, name)),
        # Of one that is fenced nothing runs, and the operator waits for it for ever.
        lambda cluster: cluster is None or _hibernates(cluster) or objects.is_fenced(cluster),
        deadline=props["deadline"],
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
