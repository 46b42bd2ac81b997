"""What a PostgreSQL cluster needs before it is there: the address that its certificates name, and passwords."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harmony_pulumi.errors import SiteError
from harmony_pulumi.kubernetes import found, objects
from harmony_pulumi.kubernetes.facts import api_of
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


def look(props: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a cluster as it is, or None if there is none."""
    return api_of(props).get(objects.path_of(props["namespace"], props["cluster"]))


def uid(cluster: Mapping[str, Any] | None) -> str:
    """Return what tells a cluster from every other one; empty if there is none."""
    return "" if cluster is None else str(cluster["metadata"]["uid"])


def problems(
    old: Mapping[str, Any], new: Mapping[str, Any], cluster: Mapping[str, Any] | None
) -> Iterator[tuple[str, str]]:
    """Iterate over what is wrong with inputs, and the paths of that.

    Args:
        old: the inputs of before; empty for a cluster that is new to the stack.
        new: those of now.
        cluster: as it is; None if there is none.
    """
    where = f"{new['namespace']}/{new['cluster']}"
    for key in ("namespace", "cluster"):
        if old.get(key) not in {None, new[key]}:
            yield key, f"was {old[key]!r} and would be {new[key]!r}, where an empty database would be made; leave it"
    if cluster is None and old.get("seen"):
        message = (
            f"{where} was there, and is gone: another one would be empty, at the address that clients know. If its "
            f"pair lives on, `harmony failover` to the other member, and keep this one out of the program; else have "
            f"its object and volumes back from a backup, or `pulumi destroy` what is left of it"
        )
        yield "cluster", message
    found, wanted = _major((cluster or {"spec": {}})["spec"].get("imageName")), _major(new.get("image"))
    if found and wanted and found != wanted:
        message = (
            f"{where} runs PostgreSQL {found}, and {wanted} is declared: an upgrade to another major version is not "
            f"offered, as a standby cannot follow it"
        )
        yield "version", message


def _major(image: str | None) -> str:
    """Return the major version in an image's tag, as CloudNativePG has it; empty if it does not say."""
    found = re.match(r"[^@:]+:(\d+)", (image or "").rpartition("/")[2])
    return found[1] if found else ""


def standing(props: Mapping[str, Any]) -> dict[str, Any]:
    """Return whom a cluster that is there already follows; nothing if there is none.

    Raises:
        SiteError: it is somebody else's.
    """
    api = api_of(props)
    cluster = look(props)
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
