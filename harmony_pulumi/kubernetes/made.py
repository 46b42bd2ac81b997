"""What a PostgreSQL cluster needs before it is there: the address that its certificates name, and passwords."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from harmony_pulumi.errors import SiteError
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


def passwords(roles: Sequence[str], *known: Mapping[str, str]) -> dict[str, str]:
    """Return a password for each role: the first that is known, else a new one."""
    return {
        role: next((found[role] for found in known if found.get(role)), None) or secrets.token_urlsafe(24)
        for role in roles
    }
