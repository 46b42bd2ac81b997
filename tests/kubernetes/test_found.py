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


def test_another_way_to_reach_a_server_is_refused_and_a_route_with_the_reason() -> None:
    assert found.service_type_problem("LoadBalancer") is None
    assert found.service_type_problem("NodePort") is None
    for other in ("ClusterIP", "loadbalancer", ""):
        assert str(found.service_type_problem(other)).startswith(f"{other!r} is no way in which servers are reached; ")
    why = str(found.service_type_problem("Route"))
    assert "name (SNI) in the first bytes of TLS" in why
    assert "only some since PostgreSQL 17" in why
    assert why.endswith("expected 'LoadBalancer' or 'NodePort', or nothing, to have it found out")
