"""What a PostgreSQL cluster needs before it is there: the address that its certificates name, and passwords."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.hosts.postgresql import certificates, trial
from harmony_pulumi.kubernetes import found, objects, settled, tls
from harmony_pulumi.kubernetes.api import Api
from harmony_pulumi.kubernetes.facts import api_of
from harmony_pulumi.kubernetes.waiting import instance
from harmony_pulumi.orchestration.wait import wait_for


def endpoint(props: Mapping[str, Any]) -> dict[str, Any]:
    """Wait until the service of a cluster, or its route, has an address outside of Kubernetes, and return that.

    Raises:
        SiteError: it gets none, in time.
    """
    api, name = api_of(props), f"{props['cluster']}-{objects.OUTSIDE}"
    what, advice = "service", "where nothing makes load balancers, use `service_type='NodePort'`."
    if props["service_type"] == "Route":
        what, advice = "route", "no router admits one whose host name is another's."
    place = wait_for(
        f"{api.name}: an address of the {what} {props['namespace']}/{name}",
        lambda: _endpoint_now(props),
        bool,
        deadline=props["deadline"],
        words=lambda _: "it has none",
        advice=f"See `kubectl describe {what}`; {advice}",
    )
    if place is None:
        raise SiteError(f"{api.name}: the {what} {name} has no address")
    return place


def live(props: Mapping[str, Any], cluster: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what may change while nobody deploys: the address, by itself; certificates, by command; all, by `destroy`.

    Args:
        props: the inputs of a cluster.
        cluster: as it is; None if there is none.
    """
    return {
        "endpoint": _endpoint_now(props),
        "issued": issued(tls.shown(tls.files_of(props))),
        "asleep": cluster is not None and objects.is_asleep(cluster),
    }


def has_changed(now: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Tell whether what is live now is not what was deployed, as far as it is known."""
    endpoint, serials = now.get("endpoint"), now.get("issued")
    # One that sleeps was left so by a `destroy` that was cut off: it is declared anew next, and must be as it stands.
    asleep = now.get("asleep")
    return bool(asleep or (endpoint and endpoint != old["endpoint"]) or (serials and serials != issued(old["made"])))


def issued(made: Mapping[str, Any]) -> list[str]:
    """Return the serial numbers of a cluster's certificates; empty if they are not there."""
    return [
        certificates.serial(made[part]) for part in ("server_certificate", "replication_certificate") if part in made
    ]


def _endpoint_now(props: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the address that a cluster has outside of Kubernetes; None if it has none yet."""
    if props["service_type"] == "Route":
        route = api_of(props).get(objects.route_path(props["namespace"], props["cluster"]))
        return None if route is None else found.by_route(route)
    name = f"{props['cluster']}-{objects.OUTSIDE}"
    service = api_of(props).get(f"/api/v1/namespaces/{props['namespace']}/services/{name}")
    return None if service is None else found.outside(service, props.get("address"))


def look(props: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a cluster as it is, or None if there is none."""
    return api_of(props).get(objects.path_of(props["namespace"], props["cluster"]))


def problems(
    old: Mapping[str, Any], new: Mapping[str, Any], cluster: Mapping[str, Any] | None, served: str
) -> Iterator[tuple[str, str]]:
    """Iterate over what is wrong with inputs, and the paths of that.

    Args:
        old: the inputs of before; empty for a cluster that is new to the stack.
        new: those of now.
        cluster: as it is; None if there is none.
        served: which one of that name has served before; empty if none has.
    """
    where = f"{new['namespace']}/{new['cluster']}"
    for key in ("namespace", "cluster"):
        if old.get(key) not in {None, new[key]}:
            yield key, f"was {old[key]!r} and would be {new[key]!r}, where an empty database would be made; leave it"
    owner = ((cluster or {"metadata": {}})["metadata"].get("annotations") or {}).get(objects.OWNER)
    if cluster is not None and owner != new["owner"]:
        message = (
            f"{where} is {f'that of {owner}' if owner else 'none of ours'}, and would be that of {new['owner']}: "
            f"choose another name, or namespace"
        )
        yield "cluster", message
    if cluster is None and served:
        message = (
            f"{where} has served, and is gone. If the other member of its pair lives: `harmony failover` to that one, "
            f"unless it is active, and take this one out of the program. To have another one made in its place, which "
            f"copies its source, or is EMPTY if it has none: `kubectl annotate secret --namespace {new['namespace']} "
            f"{objects.secret_names(new['cluster'])['authority']} {objects.SERVED}-`, then `pulumi up --refresh`"
        )
        yield "cluster", message
    found = objects.major((cluster or {"spec": {}})["spec"].get("imageName") or "")
    wanted = objects.major(new["image"])
    if found and wanted and found != wanted:
        message = (
            f"{where} runs PostgreSQL {found}, and would run {wanted}: an upgrade to another major version is not "
            f"offered, as a standby cannot follow it"
        )
        yield "version", message


def refused(props: Mapping[str, Any], cluster: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Iterate over what a cluster that is there would not take, and the paths of that; nothing is changed for it.

    Raises:
        SiteError: it cannot be asked.
    """
    pod = ((cluster or {}).get("status") or {}).get("currentPrimary")
    if cluster is None or not pod or objects.is_asleep(cluster):
        return
    api, known = api_of(props), cluster["spec"]["postgresql"].get("parameters") or {}
    server = instance(api, props["namespace"], pod)
    changed = {name: value for name, value in props["parameters"].items() if known.get(name) != value}
    for name, reason in trial.refused(server.connection, server.program("postgres"), server.user, changed).items():
        yield f"settings.{name}", f"is refused by PostgreSQL: {reason}"
    claims = objects.listed(props["namespace"], "persistentvolumeclaims", props["cluster"])
    for claim in settled.volumes(api.items(claims)):
        if problem := _size_problem(api, props["namespace"], claim, props["storage"]["size"]):
            yield "storage", problem


def _size_problem(api: Api, namespace: str, claim: Mapping[str, Any], wanted: str) -> str | None:
    """Return why a volume cannot have another size, or None."""
    volume, has = claim["metadata"]["name"], claim["spec"]["resources"]["requests"]["storage"]
    if settled.quantity(wanted) < settled.quantity(has):
        return f"would be {wanted}, and the volume {volume} was made with {has}: none can be made smaller"
    if settled.quantity(wanted) > settled.quantity(has):
        larger = {"spec": {"resources": {"requests": {"storage": wanted}}}}
        try:
            api.patch(objects.volume_path(namespace, volume), larger, dry_run=True)
        except UnreachableError:
            raise
        except SiteError as error:
            return f"cannot be raised from {has} to {wanted}: {error}"
    return None


def standing(props: Mapping[str, Any]) -> dict[str, Any]:
    """Return whom a cluster that is there already follows; nothing if there is none.

    Raises:
        SiteError: none may be made there, or it is somebody else's.
    """
    cluster = look(props)
    if found := [message for _, message in problems({}, props, cluster, tls.files_of(props).served())]:
        raise SiteError(f"{props['name']}: {'; '.join(found)}")
    return {} if cluster is None else objects.roles_of(cluster)


def passwords(roles: Sequence[str], *known: Mapping[str, str]) -> dict[str, str]:
    """Return a password for each role: the first that is known, else a new one."""
    return {
        role: next((found[role] for found in known if found.get(role)), None) or secrets.token_urlsafe(24)
        for role in roles
    }
