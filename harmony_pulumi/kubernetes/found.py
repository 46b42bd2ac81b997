"""What a Kubernetes cluster is, and how its services are reached. Pure: what its API says in, facts out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

ServiceType = Literal["LoadBalancer", "NodePort", "Route"]
ROUTES = "route.openshift.io"
"""The API group of OpenShift's routes."""
ROUTES_SINCE = 17
"""The first version of PostgreSQL whose servers and clients get past a router that goes by names: by direct TLS."""
_WITHOUT_DIRECT = "1.26.0"
"""Of the releases of CloudNativePG that are worked with, the one whose client (pgx 5.7.4) has no direct TLS."""
_ROUTER_PORT = 443
_DNS_NAME = re.compile(r"(?=.{1,253}$)(?=.*[a-z])([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.(?!$)|$))+")


def platform(git_version: str, groups: Collection[str]) -> str:
    """Return what a cluster is: `OpenShift`, `k3s`, or `Kubernetes`.

    Args:
        git_version: of the API server, for instance `v1.34.4+k3s1`.
        groups: the API groups that it serves.
    """
    if "config.openshift.io" in groups:
        return "OpenShift"
    return "k3s" if "+k3s" in git_version else "Kubernetes"


_CLOUDS = ("aws", "azure", "digitalocean", "gce", "hcloud", "ibm", "linode", "openstack", "oci", "vultr")


def service_type(what: str, groups: Collection[str], provider_ids: Sequence[str]) -> ServiceType:
    """Return how a service is reached from outside of a cluster: by a load balancer, if something makes one.

    Args:
        what: the platform.
        groups: the API groups that the cluster serves.
        provider_ids: of its nodes (`spec.providerID`), for instance `aws:///eu-central-1a/i-0123`.
    """
    # k3s has one of its own (ServiceLB); the others are made by the cloud, or by MetalLB.
    balanced = what == "k3s" or "metallb.io" in groups or any(i.partition(":")[0] in _CLOUDS for i in provider_ids)
    return "LoadBalancer" if balanced else "NodePort"


def service_type_problem(service_type: str) -> str | None:
    """Return why servers are not reached in such a way from outside, or None."""
    if service_type in get_args(ServiceType):
        return None
    expected = "expected 'LoadBalancer', 'NodePort' or 'Route', or nothing, to have one of the first two found out"
    return f"{service_type!r} is no way in which servers are reached; {expected}"


def route_problem(address: str | None) -> str | None:
    """Return why a router cannot tell a server by such an address, or None."""
    if address is None:
        return "is missing; a route needs the host name by which a router is to know the server"
    if not _DNS_NAME.fullmatch(address):
        return f"{address!r} is no host name that a route could have; expected one in lower case, not an IP address"
    return None


def route_version_problem(version: int | None) -> str | None:
    """Return why servers of a version are not reached by a route, or None."""
    if version is not None and version >= ROUTES_SINCE:
        return None
    return (
        f"{'is missing' if version is None else version}; expected {ROUTES_SINCE} or newer, said so, with "
        f"`service_type='Route'`, for every member: a router tells servers apart by the name (SNI) in the first bytes "
        f"of TLS, and until {ROUTES_SINCE} PostgreSQL's own request for TLS comes before those"
    )


def operator_route_problem(release: str) -> str | None:
    """Return why the release of an operator does not go with routes, or None."""
    if release != _WITHOUT_DIRECT:
        return None
    return f"has CloudNativePG {release}, whose client cannot get past a router; upgrade it, then run this again"


def by_route(route: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return where a service is reached by a route, as the API has that; None until a router has admitted it."""
    host = route["spec"]["host"]
    at_routers = [each for each in (route.get("status") or {}).get("ingress") or () if each.get("host") == host]
    said = {(each["type"], each["status"]) for at in at_routers for each in at.get("conditions") or ()}
    return {"host": host, "port": _ROUTER_PORT, "direct": True} if ("Admitted", "True") in said else None


def outside(service: Mapping[str, Any], address: str | None) -> dict[str, Any] | None:
    """Return where a service is reached from outside of its cluster, `host` and `port`; None while that is not known.

    Args:
        service: as the API has it.
        address: as the program says: of the nodes; or the name of a load balancer in DNS, which beats what it is called
            by what made it.
    """
    spec = service["spec"]
    [port] = spec["ports"]
    if spec["type"] == "NodePort":
        return {"host": address, "port": port["nodePort"]} if address and port.get("nodePort") else None
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    if not ingress:
        return None
    return {"host": address or ingress[0].get("hostname") or ingress[0]["ip"], "port": port["port"]}
