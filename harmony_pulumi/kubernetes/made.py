"""What is made for a PostgreSQL cluster before it is there: its certificates, which name its address, and passwords."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import certificates
from harmony_pulumi.kubernetes import found, objects
from harmony_pulumi.kubernetes.facts import api_of
from harmony_pulumi.kubernetes.waiting import path_of
from harmony_pulumi.orchestration.wait import wait_for


def endpoint(props: Mapping[str, Any]) -> dict[str, Any]:
    """Wait until the service of a cluster has an address outside of Kubernetes, and return that.

    Raises:
        SiteError: it gets none, in time.
    """
    api, name = api_of(props), f"{props['cluster']}-{objects.OUTSIDE}"

    def look() -> dict[str, Any] | None:
        service = api.get(f"/api/v1/namespaces/{props['namespace']}/services/{name}")
        return service and found.outside(service, props.get("address"))

    place = wait_for(
        f"{api.name}: an address of the service {props['namespace']}/{name}",
        look,
        bool,
        deadline=props["deadline"],
        words=lambda _: "it has none",
        advice="See `kubectl describe service`; where nothing makes load balancers, use `service_type='NodePort'`.",
    )
    if place is None:
        raise SiteError(f"{api.name}: the service {name} has no address")
    return place


def standing(props: Mapping[str, Any]) -> dict[str, Any]:
    """Return whom a cluster that is there already follows; nothing if there is none.

    Raises:
        SiteError: it is somebody else's.
    """
    api = api_of(props)
    cluster = api.get(path_of(props["namespace"], props["cluster"]))
    if cluster is None:
        return {}
    owner = (cluster["metadata"].get("annotations") or {}).get(objects.OWNER)
    if owner != props["owner"]:
        msg = (
            f"{api.name}: expected no cluster {props['namespace']}/{props['cluster']}, or that of {props['owner']}; "
            f"found one of {owner or 'somebody else'}: choose another name, or namespace"
        )
        raise SiteError(msg)
    return objects.roles_of(cluster)


def make(address: str, days: int, cluster: str) -> dict[str, str]:
    """Make the certificates of a cluster. The authority's key is kept nowhere.

    So each renewal is a new authority.

    Args:
        address: that clients connect to, a host name or an IP.
        days: for which the certificates are valid.
        cluster: its name, for the authority's.
    """
    authority = certificates.make_authority(f"{cluster} PostgreSQL")
    server = certificates.make_server(authority, address, days)
    replication = certificates.make_client(authority, objects.STREAMING_ROLE, days)
    return {
        "ca": authority.certificate,
        "server_certificate": server.certificate,
        "server_key": server.key,
        "replication_certificate": replication.certificate,
        "replication_key": replication.key,
    }


def passwords(roles: Sequence[str], *known: Mapping[str, str]) -> dict[str, str]:
    """Return a password for each role: the first that is known, else a new one."""
    return {
        role: next((found[role] for found in known if found.get(role)), None) or secrets.token_urlsafe(24)
        for role in roles
    }
