"""What a Kubernetes cluster is, as its API server says; and the operator that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harmony_pulumi.kubernetes import found, operator
from harmony_pulumi.kubernetes.api import Api


def api_of(props: Mapping[str, Any]) -> Api:
    """Return the API of the cluster that inputs, or a handle, speak of."""
    return Api(props["name"], props["kubeconfig"], props.get("context"))


def of(props: Mapping[str, Any]) -> dict[str, Any]:
    """Look at a cluster: `uid`, `platform`, `version`, `service_type`, `routes`, `operator` (its release), `problems`.

    `problems` refuse it; `warnings` are shown.

    Raises:
        UnreachableError: the API server does not answer.
        SiteError: it does not let us look; the message says which right is missing.
    """
    api = api_of(props)
    version = str((api.get("/version") or {})["gitVersion"])
    groups = [group["name"] for group in (api.get("/apis") or {"groups": []})["groups"]]
    nodes = api.items("/api/v1/nodes")
    what = found.platform(version, groups)
    releases = [operator.version_of(each) for each in operator.deployments(api)]
    # Each cluster has this namespace from its beginning to its end, so its id is the cluster's.
    itself = api.get("/api/v1/namespaces/kube-system") or {"metadata": {}}
    return {
        "uid": str(itself["metadata"].get("uid") or ""),
        "platform": what,
        "version": version,
        "service_type": found.service_type(what, groups, [node["spec"].get("providerID", "") for node in nodes]),
        "routes": found.ROUTES in groups,
        "operator": releases[0] if releases else "",
        "problems": [problem for release in releases if (problem := operator.problem(release))],
        "warnings": [warning for release in releases if (warning := operator.warning(release))],
    }


def have_operator(props: Mapping[str, Any], show: Callable[[str], None]) -> None:
    """Install the operator if there is none, and wait until it is at work."""
    api = api_of(props)
    if not operator.deployments(api):
        operator.insist_on_none(api, props["owner"])
        operator.install(api, operator.read_manifest(props["operator_manifest"]), props["owner"], show)
    operator.wait_until_ready(api)
