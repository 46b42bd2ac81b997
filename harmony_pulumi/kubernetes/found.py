"""What a Kubernetes cluster is, and how its services are reached. Pure: what its API says in, facts out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

ServiceType = Literal["LoadBalancer", "NodePort"]


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
    expected = "expected 'LoadBalancer' or 'NodePort', or nothing, to have it found out"
    if service_type == "Route":
        return (
            "'Route' is not offered: a router tells servers apart by the name (SNI) in the first bytes of TLS, and "
            "PostgreSQL's clients send its own request for TLS before those; only some since PostgreSQL 17 can do "
            f"without, each if it is told so (sslnegotiation=direct); {expected}"
        )
    return f"{service_type!r} is no way in which servers are reached; {expected}"


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
