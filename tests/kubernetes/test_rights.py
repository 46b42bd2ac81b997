"""The rights that the documentation lists for a login are those that are used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from harmony_pulumi.kubernetes import facts, lease, objects, site, tls
from harmony_pulumi.kubernetes.keeping import Keeping
from harmony_pulumi.kubernetes.pods import Pod, PodInstance
from tests.docs.blocks import ROOT, blocks_of

DEPLOYMENT = {
    "metadata": {"namespace": "cnpg-system", "name": "cnpg-controller-manager"},
    "spec": {"template": {"spec": {"containers": [{"image": "ghcr.io/cloudnative-pg/cloudnative-pg:1.27.0"}]}}},
    "status": {"readyReplicas": 1},
}
PLACE = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+))?/(?P<kind>[a-z]+)(?:/(?P<name>[^/?]+))?(\?.*)?"
)


class Api:
    """An API server that has the operator and a namespace; it notes what is done."""

    name, address = "east", "https://east"

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.made: dict[str, Any] = {}

    def get(self, path: str) -> Any:
        self.done.append(("get", path))
        there: dict[str, Any] = {
            **self.made,
            "/version": {"gitVersion": "v1.34.1"},
            "/apis": {"groups": []},
            "/api/v1/nodes": {"items": []},
            "/api/v1/namespaces/kube-system": {"metadata": {"uid": "a-b-c"}},
        }
        return {"items": [DEPLOYMENT]} if path.startswith("/apis/apps/v1/deployments") else there.get(path)

    def create(self, path: str, body: Mapping[str, Any]) -> None:
        self.done.append(("create", path))
        self.made[f"{path}/{body['metadata']['name']}"] = dict(body)

    def replace(self, path: str, body: Mapping[str, Any]) -> None:
        self.done.append(("update", path))

    def patch(self, path: str, body: Mapping[str, Any]) -> None:
        self.done.append(("patch", path))

    def delete(self, path: str) -> None:
        self.done.append(("delete", path))


def needed(done: list[tuple[str, str]]) -> Iterator[tuple[str, str, str, str | None, str | None]]:
    """Yield which verb each call is, on what: Kubernetes, "Authorization"."""
    for verb, path in done:
        if path in {"/version", "/apis"} or path == f"/apis/{objects.API_VERSION}":
            continue  # Whoever has a login may: Kubernetes, "Using RBAC Authorization", `system:discovery`.
        found = PLACE.fullmatch(path)
        assert found, path
        group, namespace, kind, name = found["group"] or "", found["namespace"], found["kind"], found["name"]
        yield ("list" if verb == "get" and name is None else verb), group, kind, namespace, name


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
    api: Any = Api()
    monkeypatch.setattr(facts, "api_of", lambda _: api)
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
    path = objects.path_of("postgresql", "east-orders")
    api.patch(path, {})
    api.made[path] = {"status": {"instanceNames": ["east-orders-1", "east-orders-2"]}}
    made = site.ClusterPostgreSQL({"name": "east", "namespace": "postgresql", "cluster": "east-orders", "owner": "o"})
    made.__dict__["api"] = api
    made._have_copies_made_anew(PodInstance(Pod(api, "postgresql", "east-orders-1")))  # pyright: ignore[reportPrivateUsage]
    seen = list(needed(api.done))
    assert len(seen) > 8
    for verb, group, kind, namespace, name in seen:
        role = roles["Role" if namespace == "postgresql" else "ClusterRole"]
        assert allows(role, verb, group, kind, name), (verb, group, kind, name)
    assert allows(roles["ClusterRole"], "patch", "", "namespaces", "postgresql"), "the program declares it"
    assert allows(roles["Role"], "get", "", "pods/exec", None)
