"""The rights that the documentation lists for a login are those that are used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from harmony_pulumi.hosts.postgresql import trial
from harmony_pulumi.kubernetes import facts, lease, made, objects, site, tls, waiting
from harmony_pulumi.kubernetes.keeping import Keeping
from harmony_pulumi.kubernetes.pods import Pod, PodInstance
from tests.docs.blocks import ROOT, blocks_of
from tests.kubernetes.kept import Api

DEPLOYMENT = {
    "metadata": {"namespace": "cnpg-system", "name": "cnpg-controller-manager"},
    "spec": {"template": {"spec": {"containers": [{"image": "ghcr.io/cloudnative-pg/cloudnative-pg:1.27.0"}]}}},
    "status": {"readyReplicas": 1},
}
PLACE = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+))?/(?P<kind>[a-z]+)(?:/(?P<name>[^/?]+)(?P<sub>/[a-z]+)?)?(\?.*)?"
)


SHOP = "/api/v1/namespaces/postgresql"
CLUSTER = objects.path_of("postgresql", "east-orders")
THERE = {
    "/version": {"gitVersion": "v1.34.1"},
    "/apis": {"groups": []},
    "/api/v1/nodes": {"items": []},
    "/api/v1/namespaces/kube-system": {"metadata": {"uid": "a-b-c"}},
    "/apis/apps/v1/deployments?labelSelector=app.kubernetes.io%2Fname%3Dcloudnative-pg": {"items": [DEPLOYMENT]},
    CLUSTER: {
        "metadata": {"name": "east-orders", "uid": "a-b-c"},
        "spec": {"instances": 1, "postgresql": {}, "storage": {"size": "2Gi"}},
        "status": {
            "instanceNames": ["east-orders-1", "east-orders-2", "east-orders-3"],
            "currentPrimary": "east-orders-1",
            "readyInstances": 1,
        },
    },
    f"{SHOP}/persistentvolumeclaims/east-orders-2": {"metadata": {}},
    f"{SHOP}/persistentvolumeclaims/east-orders-3": {"metadata": {}},
    objects.listed("postgresql", "pods", "east-orders"): {
        "items": [
            {
                "metadata": {"name": "east-orders-1", "labels": {"cnpg.io/instanceName": "east-orders-1"}},
                "spec": {"containers": [{"name": "postgres", "image": "postgresql:17"}]},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            },
            {
                "metadata": {"name": "east-orders-1-join", "labels": {"cnpg.io/jobRole": "join"}},
                "status": {"phase": "Failed"},
            },
        ]
    },
}
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def needed(asked: list[tuple[str, str]]) -> Iterator[tuple[str, str, str, str | None, str | None]]:
    """Yield which verb each call is, on what: Kubernetes, "Authorization"."""
    for method, path in asked:
        if path in {"/version", "/apis"} or path == f"/apis/{objects.API_VERSION}":
            continue  # Whoever has a login may: Kubernetes, "Using RBAC Authorization", `system:discovery`.
        found = PLACE.fullmatch(path)
        assert found, path
        group, namespace, kind, name = found["group"] or "", found["namespace"], found["kind"], found["name"]
        yield VERBS.get(method, "get" if name else "list"), group, kind + (found["sub"] or ""), namespace, name


@pytest.fixture
def roles() -> dict[str, dict[str, Any]]:
    page = ROOT / "docs/how-to/kubernetes-platforms.md"
    return {role["kind"]: role for role in (yaml.safe_load(b.text) for b in blocks_of(page) if b.language == "yaml")}


def allows(role: Mapping[str, Any], verb: str, group: str, kind: str, name: str | None) -> bool:
    return any(
        verb in rule["verbs"]
        and group in rule["apiGroups"]
        and kind in rule["resources"]
        and (not rule.get("resourceNames") or name in rule["resourceNames"])
        for rule in role["rules"]
    )


def test_the_documented_rights_are_enough(roles: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(THERE)
    monkeypatch.setattr(facts, "api_of", lambda _: api)
    monkeypatch.setattr(waiting, "api_of", lambda _: api)
    monkeypatch.setattr(made, "api_of", lambda _: api)
    monkeypatch.setattr(trial, "refused", lambda *_: {})
    facts.of({})
    facts.have_operator({}, print)
    for line in ("one\n", "two\n"):
        Keeping(api, "postgresql", "east-orders", "o", "events").append("events", line)
    with lease.held(api, "postgresql", "east-orders", "o", "who", deadline=1):
        pass
    files = tls.ClusterFiles(api, "postgresql", "east-orders", "o")
    files.write({"ca.crt": "c", "ca.key": "k"})
    files.serves("a-b-c")
    files.forget()
    handle = {"name": "east", "namespace": "postgresql", "cluster": "east-orders", "owner": "o"}
    monkeypatch.setattr(PodInstance, "look", lambda *_, **__: {"settings": {}, "hba": "", "loaded": True})
    waiting.Watch(handle, api, print).until_settled(1)
    assert not [*made.refused({**handle, "parameters": {}, "storage": {"size": "2Gi"}}, api.get(CLUSTER))]
    of_cluster = site.ClusterPostgreSQL(handle)
    of_cluster.__dict__["api"] = api
    kept = {"east-orders-2": True, "east-orders-3": False}
    monkeypatch.setattr(of_cluster.__class__, "_keeps", lambda _, server: kept[server.connection.pod])
    of_cluster._have_copies_made_anew(PodInstance(Pod(api, "postgresql", "east-orders-1")))  # pyright: ignore[reportPrivateUsage]
    assert f"{SHOP}/persistentvolumeclaims/east-orders-3" not in api.kept
    detached = api.kept[f"{SHOP}/persistentvolumeclaims/east-orders-2"]["metadata"]
    assert detached["annotations"] == {objects.VOLUME_STATUS: "detached"}
    seen = list(needed(api.asked))
    assert ("get", "", "pods/log", "postgresql", "east-orders-1-join") in seen
    assert {verb for verb, *_ in seen} == {"get", "list", "create", "update", "patch", "delete"}
    for verb, group, kind, namespace, name in seen:
        role = roles["Role" if namespace == "postgresql" else "ClusterRole"]
        assert allows(role, verb, group, kind, name), (verb, group, kind, name)
    assert allows(roles["ClusterRole"], "patch", "", "namespaces", "postgresql"), "the program declares it"
    assert allows(roles["Role"], "get", "", "pods/exec", None)
