"""What a cluster refuses before anything is declared, and what its objects are called."""

from __future__ import annotations

from typing import Any

import pytest

from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import certificates
from harmony_pulumi.kubernetes import api, facts, found, made, objects, operator, slots, tls
from harmony_pulumi.providers import cluster_secrets, kubernetes_cluster

INPUTS = {
    "namespace": "shop",
    "cluster": "east-orders",
    "image": "registry.example/postgresql:16",
    "owner": "shop/dev/east-orders",
}
THERE = {
    "metadata": {"uid": "a-b-c", "annotations": {objects.OWNER: INPUTS["owner"]}},
    "spec": {"imageName": "registry.example/postgresql:16.4-bookworm"},
}


def problems(
    old: dict[str, Any], new: dict[str, Any], cluster: dict[str, Any] | None, served: str = "a-b-c"
) -> list[str]:
    return [path for path, _ in made.problems(old, new, cluster, served)]


def test_one_that_has_served_is_not_made_anew_and_empty() -> None:
    assert problems({}, INPUTS, None, "") == []
    assert problems(INPUTS, INPUTS, None, "") == [], "it has never served: a run that made it was cut off"
    assert problems(INPUTS, INPUTS, THERE) == []
    assert problems(INPUTS, INPUTS, None) == ["cluster"]
    assert problems({}, INPUTS, None) == ["cluster"], "the stack has forgotten it"
    assert problems(INPUTS, {**INPUTS, "namespace": "other"}, None, "") == ["namespace"]


def test_somebody_else_s_cluster_is_refused_before_anything_is_taken_over() -> None:
    assert problems({}, {**INPUTS, "owner": "shop/prod/east-orders"}, THERE) == ["cluster"]
    assert problems({}, INPUTS, {**THERE, "metadata": {"uid": "a-b-c"}}) == ["cluster"]


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ("registry.example/postgresql:16.6", []),
        ("registry.example/postgresql:17", ["version"]),
        ("registry.example:5000/postgresql@sha256:0123", []),
    ],
)
def test_another_major_version_is_refused(declared: str, found: list[str]) -> None:
    assert problems(INPUTS, {**INPUTS, "image": declared}, THERE) == found


def test_a_configuration_has_its_slot_once_and_first() -> None:
    first = slots.with_slot("port = 5432\ninclude 'custom.conf'\n", "harmony_one")
    assert first == "primary_slot_name = 'harmony_one'\nport = 5432\ninclude 'custom.conf'\n"
    assert slots.with_slot(first, "harmony_one") == first
    assert slots.with_slot(first, "harmony_other").splitlines()[:2] == [
        "primary_slot_name = 'harmony_other'",
        "port = 5432",
    ]


def test_each_name_has_an_object_of_its_own() -> None:
    roles = ["stock", "Stock", "stock_one", "Stock_one", "Stock_One", "stock-one", "größe", "_"]
    names = [objects.login_name("east-orders", role) for role in roles]
    assert len(set(names)) == len(roles)
    assert names[0] == "east-orders-login-stock"
    assert all(name.isascii() and name == name.lower() and not name.endswith("-") for name in names)
    declared = [{"name": name, "owner": "app", "extensions": []} for name in ("a_b", "a-b", "A-b")]
    made_of = [objects.database("east", "shop", "o", each)["metadata"]["name"] for each in declared]
    assert len(set(made_of)) == 3


@pytest.mark.parametrize(
    ("annotation", "found"), [(None, False), ("[]", False), ('["x-2"]', False), ('["x-1"]', True), ('["*"]', True)]
)
def test_a_cluster_is_fenced_if_the_instance_that_leads_is(annotation: str | None, found: bool) -> None:
    about = {} if annotation is None else {"annotations": {objects.FENCED: annotation}}
    assert objects.is_fenced({"metadata": about, "status": {"currentPrimary": "x-1"}}) is found
    assert not objects.is_fenced(None)


class Api(api.Api):
    """What an API server answers, by how a path ends; and nothing else is there."""

    def __init__(self, **there: Any) -> None:
        self.name, self.address, self.there = "east", "https://east", there

    def get(self, path: str) -> Any:
        return next((answer for end, answer in self.there.items() if path.endswith(end)), None)


def test_an_operator_that_is_not_found_and_whose_kind_is_known_is_not_installed_over() -> None:
    operator.insist_on_none(Api(), "shop/dev/east")
    known = Api(v1={"resources": []}, io={"metadata": {"annotations": {objects.OWNER: "shop/dev/east"}}})
    operator.insist_on_none(known, "shop/dev/east")  # Ours, and cut off before its deployment.
    with pytest.raises(SiteError, match=r"is known there, and no deployment with the label"):
        operator.insist_on_none(known, "shop/prod/east")


def test_a_release_is_refused_or_warned_of_by_what_it_is_known_to_do() -> None:
    for release, refused, warned in (
        ("1.25.4", True, False),
        ("1.26.0", False, False),
        ("1.27.2", False, False),
        ("1.28.0", False, True),
        ("2.0.0", False, True),
        ("", False, True),
    ):
        assert bool(operator.problem(release)) is refused, release
        assert bool(operator.warning(release)) is warned, release
    assert "expected 1.26 or newer" in str(operator.problem("1.25.4"))
    assert "1.27 is the newest that" in str(operator.warning("1.28.0"))
    assert "does not say its release" in str(operator.warning(""))
    assert objects.RELEASE.startswith(".".join(map(str, operator.NEWEST)))


BY_DIGEST = f"ghcr.io/cloudnative-pg/cloudnative-pg@sha256:{'53995e9d' * 8}"


@pytest.mark.parametrize(
    ("image", "labels", "release"),
    [
        ("ghcr.io/cloudnative-pg/cloudnative-pg:1.27.0", {}, "1.27.0"),
        ("registry.example:5000/cloudnative-pg:v1.26.1-rc1", None, "1.26.1"),
        (f"ghcr.io/cloudnative-pg/cloudnative-pg:1.27.0@sha256:{'0' * 64}", {}, "1.27.0"),
        # By the Operator Lifecycle Manager, as the bundle of the project has it.
        (BY_DIGEST, {"olm.owner": "cloudnative-pg.v1.25.1", "olm.owner.kind": "ClusterServiceVersion"}, "1.25.1"),
        (BY_DIGEST, {"app.kubernetes.io/version": "1.28.0", "app.kubernetes.io/managed-by": "Helm"}, "1.28.0"),
        # A chart's label says what it installs unless told otherwise; the image is what runs.
        ("mirror/cloudnative-pg:1.26.0", {"app.kubernetes.io/version": "1.28.0"}, "1.26.0"),
        (BY_DIGEST, {"app.kubernetes.io/name": "cloudnative-pg"}, ""),
        (BY_DIGEST, None, ""),
        ("registry.example:5000/cloudnative-pg:latest", {"olm.owner": "cloudnative-pg"}, ""),
    ],
)
def test_the_release_of_an_operator_is_told_by_its_image_or_by_what_has_installed_it(
    monkeypatch: pytest.MonkeyPatch, image: str, labels: dict[str, str] | None, release: str
) -> None:
    template = {"spec": {"containers": [{"image": image}]}}
    deployment = {"metadata": {"name": "cnpg", "labels": labels}, "spec": {"template": template}}
    assert operator.version_of(deployment) == release
    there = {"version": {"gitVersion": "v1.31.6"}, "cloudnative-pg": {"items": [deployment]}}
    monkeypatch.setattr(facts, "api_of", lambda _: Api(**there))
    seen = facts.of({})
    assert seen["operator"] == release
    assert seen["problems"] == [problem for problem in [operator.problem(release)] if problem]
    assert seen["warnings"] == [warning for warning in [operator.warning(release)] if warning]


def test_a_kubeconfig_that_leads_to_another_cluster_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {"platform": "k3s", "version": "v1.31", "operator": "1.28.0", "service_type": "LoadBalancer"}
    seen |= {"problems": [], "warnings": ["is new"]}
    provider = kubernetes_cluster.KubernetesClusterProvider()
    props = {"name": "east", "kubeconfig": "k", "address": None, "service_type": None}
    monkeypatch.setattr(facts, "of", lambda _: {**seen, "uid": "one"})
    first = provider.check({}, props)
    assert not first.failures
    assert capsys.readouterr().err == "warning: east: is new\n"
    assert first.inputs["found"]["uid"] == "one"
    assert not provider.check(first.inputs, props).failures
    monkeypatch.setattr(facts, "of", lambda _: {**seen, "uid": "other"})
    [failure] = provider.check(first.inputs, props).failures
    assert failure.property == "kubeconfig"
    assert "other" in failure.reason
    assert "one" in failure.reason


def test_a_route_is_refused_where_the_api_server_knows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, Any] = {"version": {"gitVersion": "v1.31.6+k3s1"}, "nodes": {"items": []}}
    provider = kubernetes_cluster.KubernetesClusterProvider()
    props = {"name": "east", "kubeconfig": "k", "address": "db.example", "service_type": "Route"}
    monkeypatch.setattr(facts, "api_of", lambda _: Api(**there, apis={"groups": [{"name": "apps"}]}))
    [failure] = provider.check({}, props).failures
    assert failure.property == "service_type"
    assert failure.reason.startswith(
        "would be 'Route', and this cluster (k3s v1.31.6+k3s1) serves no route.openshift.io"
    )
    assert not provider.check({}, {**props, "service_type": None}).failures, "it has a load balancer"
    monkeypatch.setattr(facts, "api_of", lambda _: Api(**there, apis={"groups": [{"name": "route.openshift.io"}]}))
    checked = provider.check({}, props)
    assert not checked.failures
    assert checked.inputs["found"]["service_type"] == "Route"
    # A route is only ever told: what is told no more is found out anew.
    again = provider.check(checked.inputs, {**props, "service_type": None})
    assert again.inputs["found"]["service_type"] == "LoadBalancer"


def test_a_route_is_refused_where_the_operator_has_no_direct_tls() -> None:
    assert found.operator_route_problem("1.26.1") is found.operator_route_problem("") is None
    assert "has CloudNativePG 1.26.0, whose client cannot" in str(found.operator_route_problem("1.26.0"))


def test_what_changes_while_nobody_deploys_is_deployed_by_the_next_up() -> None:
    authority = certificates.make_authority("east")
    shown = {which: tls.issued(authority, "192.0.2.10", 30) for which in ("before", "now")}
    old = {**INPUTS, "endpoint": {"host": "192.0.2.10", "port": 30432.0}, "made": shown["before"], "live": None}
    same = {"endpoint": {"host": "192.0.2.10", "port": 30432}, "issued": made.issued(shown["before"]), "asleep": False}
    diff = cluster_secrets.ClusterSecretsProvider().diff
    for live, changes in (
        (None, False),
        (same, False),
        ({"endpoint": None, "issued": []}, False),
        ({**same, "endpoint": {"host": "192.0.2.10", "port": 30433}}, True),
        ({**same, "issued": made.issued(shown["now"])}, True),
        ({**same, "asleep": True}, True),
    ):
        assert diff("id", old, {**INPUTS, "endpoint": None, "made": None, "live": live}).changes is changes, live
    assert diff("id", old, {**INPUTS, "owner": "another", "live": None}).changes
