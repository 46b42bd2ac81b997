"""What a Kubernetes cluster is, and how its servers are reached, by what API servers of each kind say."""

from __future__ import annotations

from typing import Any

import pytest

from harmony_pulumi.kubernetes import found

OPENSHIFT = ("apps", "config.openshift.io", "route.openshift.io")
CLUSTERS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], str, str]] = {
    # Each: `gitVersion`, API groups, `spec.providerID` of nodes; then what it is, and how it is reached.
    "vanilla": ("v1.34.1", ("apps",), ("", ""), "Kubernetes", "NodePort"),
    "vanilla, no node seen": ("v1.34.1", ("apps",), (), "Kubernetes", "NodePort"),
    "kind": ("v1.34.0", ("apps",), ("kind://docker/kind/kind-control-plane",), "Kubernetes", "NodePort"),
    "MetalLB": ("v1.34.1", ("apps", "metallb.io"), ("",), "Kubernetes", "LoadBalancer"),
    "k3s": ("v1.34.4+k3s1", ("apps", "k3s.cattle.io"), ("k3s://node-1",), "k3s", "LoadBalancer"),
    "RKE2": ("v1.34.4+rke2r1", ("apps", "helm.cattle.io"), ("rke2://node-1",), "Kubernetes", "NodePort"),
    "OpenShift, bare metal": (
        "v1.31.6",
        OPENSHIFT,
        ("baremetalhost:///openshift-machine-api/a/b",),
        "OpenShift",
        "NodePort",
    ),
    "OpenShift, vSphere": ("v1.31.6", OPENSHIFT, ("vsphere://4201d2c5-3f4c",), "OpenShift", "NodePort"),
    "OpenShift, MetalLB": ("v1.31.6", (*OPENSHIFT, "metallb.io"), ("",), "OpenShift", "LoadBalancer"),
    "OpenShift, AWS": ("v1.31.6", OPENSHIFT, ("aws:///eu-central-1a/i-0123",), "OpenShift", "LoadBalancer"),
    "EKS": (
        "v1.33.5-eks-3025e55",
        ("vpcresources.k8s.aws",),
        ("aws:///eu-west-1b/i-0123",),
        "Kubernetes",
        "LoadBalancer",
    ),
    "GKE": (
        "v1.33.4-gke.1134000",
        ("networking.gke.io",),
        ("gce://shop/europe-west1-b/gke-1",),
        "Kubernetes",
        "LoadBalancer",
    ),
    "AKS": ("v1.33.3", ("apps",), ("azure:///subscriptions/0/resourceGroups/mc/a",), "Kubernetes", "LoadBalancer"),
    "one node of a cloud": ("v1.34.1", ("apps",), ("", "hcloud://42"), "Kubernetes", "LoadBalancer"),
    "a node by a name like a cloud's": ("v1.34.1", ("apps",), ("awsome://1", "on-aws://2"), "Kubernetes", "NodePort"),
}


@pytest.mark.parametrize(("version", "groups", "nodes", "platform", "reached"), CLUSTERS.values(), ids=CLUSTERS)
def test_a_cluster_is_told_by_what_its_api_server_says(
    version: str, groups: tuple[str, ...], nodes: tuple[str, ...], platform: str, reached: str
) -> None:
    assert found.platform(version, groups) == platform
    assert found.service_type(platform, groups, nodes) == reached


def service(kind: str, *ingress: dict[str, str], node_port: int | None = None) -> dict[str, Any]:
    """Return a service as an API server has it; one of a load balancer has a node port, too."""
    port = {"name": "postgresql", "port": 5432, "targetPort": 5432, **({"nodePort": node_port} if node_port else {})}
    balanced = {"ingress": list(ingress)} if ingress else {}
    return {"spec": {"type": kind, "ports": [port]}, "status": {"loadBalancer": balanced}}


BY_NAME, BY_IP = {"hostname": "a.elb.amazonaws.com"}, {"ip": "192.0.2.7"}
BALANCED, AT_NODES = "LoadBalancer", "NodePort"
SERVICES: dict[str, tuple[dict[str, Any], str | None, tuple[str, int] | None]] = {
    "balancer by name": (service(BALANCED, BY_NAME, node_port=30432), None, ("a.elb.amazonaws.com", 5432)),
    "balancer by IP": (service(BALANCED, BY_IP, node_port=30432), None, ("192.0.2.7", 5432)),
    "balancer by both": (service(BALANCED, {**BY_IP, **BY_NAME}), None, ("a.elb.amazonaws.com", 5432)),
    "several of them": (service(BALANCED, BY_IP, {"ip": "192.0.2.8"}), None, ("192.0.2.7", 5432)),
    "with a name in DNS": (service(BALANCED, BY_NAME), "db.example", ("db.example", 5432)),
    "none yet": (service(BALANCED, node_port=30432), None, None),
    "none yet, with a name in DNS": (service(BALANCED, node_port=30432), "db.example", None),
    "node port": (service(AT_NODES, node_port=30432), "nodes.example", ("nodes.example", 30432)),
    "node port, no address": (service(AT_NODES, node_port=30432), None, None),
    "node port, none yet": (service(AT_NODES), "nodes.example", None),
}


@pytest.mark.parametrize(("there", "address", "expected"), SERVICES.values(), ids=SERVICES)
def test_a_server_is_reached_where_its_service_is(
    there: dict[str, Any], address: str | None, expected: tuple[str, int] | None
) -> None:
    assert found.outside(there, address) == (expected and {"host": expected[0], "port": expected[1]})


@pytest.mark.parametrize("status", [{}, {"status": None}, {"status": {}}, {"status": {"loadBalancer": None}}])
def test_a_service_that_nobody_has_looked_at_yet_is_reached_nowhere(status: dict[str, Any]) -> None:
    assert found.outside({"spec": service(BALANCED)["spec"], **status}, None) is None


def test_another_way_to_reach_a_server_is_refused() -> None:
    for known in ("LoadBalancer", "NodePort", "Route"):
        assert found.service_type_problem(known) is None
    for other in ("ClusterIP", "loadbalancer", "route", ""):
        assert str(found.service_type_problem(other)).startswith(f"{other!r} is no way in which servers are reached; ")


LONGEST = ".".join(["a" * 63] * 3 + ["a" * 61])


@pytest.mark.parametrize("address", ["orders.example.com", "orders", "1.orders.example", LONGEST])
def test_a_router_tells_a_server_by_a_host_name(address: str) -> None:
    assert found.route_problem(address) is None


@pytest.mark.parametrize(
    "address",
    [
        "192.0.2.7",
        "2001:db8::1",
        "Orders.example",
        "orders..example",
        ".example",
        "example.",
        "-a.b",
        "a-.b",
        "a_b",
        "",
    ],
)
def test_a_router_tells_a_server_by_nothing_else(address: str) -> None:
    assert str(found.route_problem(address)).startswith(f"{address!r} is no host name")
    assert found.route_problem(f"{LONGEST}a")
    assert str(found.route_problem(None)).startswith("is missing")


@pytest.mark.parametrize(
    ("version", "starts"), [(None, "is missing; expected 17"), (16, "16; expected 17"), (17, "None")]
)
def test_a_route_takes_a_version_that_is_told_and_has_direct_tls(version: int | None, starts: str) -> None:
    assert str(found.route_version_problem(version)).startswith(starts)


ADMITTED, OTHER = {"type": "Admitted", "status": "True"}, {"type": "Admitted", "status": "False"}


@pytest.mark.parametrize(
    ("status", "reached"),
    [
        ({}, False),
        ({"ingress": None}, False),
        ({"ingress": [{"host": "db.example"}]}, False),
        ({"ingress": [{"host": "db.example", "conditions": [OTHER]}]}, False),
        ({"ingress": [{"host": "before.example", "conditions": [ADMITTED]}]}, False),
        ({"ingress": [{"host": "db.example", "conditions": [ADMITTED]}]}, True),
        ({"ingress": [{"host": "db.example", "conditions": [each]} for each in (OTHER, ADMITTED)]}, True),
    ],
)
def test_a_server_is_reached_by_a_route_once_a_router_has_admitted_it(status: dict[str, Any], reached: bool) -> None:
    place = {"host": "db.example", "port": 443, "direct": True}
    assert found.by_route({"spec": {"host": "db.example"}, "status": status}) == (place if reached else None)
    assert found.by_route({"spec": {"host": "db.example"}}) is None
