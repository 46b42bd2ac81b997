"""The Pulumi resource that is what a Kubernetes cluster has for PostgreSQL: what it is, and its operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi.dynamic import CheckFailure, CheckResult, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from harmony_pulumi.errors import UnreachableError
from harmony_pulumi.kubernetes.found import ROUTES, operator_route_problem
from harmony_pulumi.providers.base import Provider, clean_errors, is_known, plain, show


class KubernetesClusterProvider(Provider):
    """Looks at a cluster, and installs the operator where there is none."""

    @clean_errors
    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Find out what the cluster is, and what can be known of it before anything is done there."""
        from harmony_pulumi.kubernetes import facts

        old, new = plain(_olds), plain(news)
        if not is_known(new):
            return CheckResult(new, [])
        try:
            found = facts.of(new)
        except UnreachableError as error:
            show(f"warning: {new['name']}: not checked at its API server: {error}")
            return CheckResult({**new, "found": old.get("found")}, [])
        for warning in found["warnings"]:
            show(f"warning: {new['name']}: {warning}")
        return CheckResult(*_checked(old, new, found))

    @clean_errors
    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """A change of how it is reached is all that there can be."""
        old, new = plain(_olds), plain(_news)
        return DiffResult(changes=any(old.get(key) != value for key, value in new.items()))

    @clean_errors
    def create(self, props: dict[str, Any]) -> CreateResult:
        """Install the operator, if there is none."""
        from harmony_pulumi.kubernetes import facts

        props = plain(props)
        facts.have_operator(props, show)
        return CreateResult(props["name"], props)

    @clean_errors
    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Install the operator, if there is none any more."""
        from harmony_pulumi.kubernetes import facts

        old, new = plain(_olds), plain(_news)
        facts.have_operator(new, show)
        return UpdateResult({**old, **new})

    @clean_errors
    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Keep the state: what the cluster is, is looked at by `check`."""
        return ReadResult(id_, plain(props))

    @clean_errors
    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Leave the operator: other clusters may be its, and their data would go with its kinds."""
        props = plain(_props)
        show(f"{props['name']}: CloudNativePG is left as it is")


def _checked(
    old: Mapping[str, Any], new: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[dict[str, Any], list[CheckFailure]]:
    """Return the inputs with what was found, and what is wrong."""
    failures = [CheckFailure("operator", problem) for problem in found["problems"]]
    before = old.get("found") or {}
    if before.get("uid") not in {None, found["uid"]}:
        message = (
            f"leads to another Kubernetes cluster (its id is {found['uid']}) than everything was deployed to "
            f"({before['uid']}); give the one of that cluster, or another topology a name of its own"
        )
        failures.append(CheckFailure("kubeconfig", message))
    # Once found out it stays, or the service would be made anew; a route is only ever told.
    settled = before.get("service_type")
    reached = new.get("service_type") or (settled if settled != "Route" else None) or found["service_type"]
    if reached == "NodePort" and not new.get("address"):
        message = "is missing, and nothing makes load balancers there; give the address of a node, a host name or an IP"
        failures.append(CheckFailure("address", message))
    if reached == "Route" and not found["routes"]:
        message = (
            f"would be 'Route', and this cluster ({found['platform']} {found['version']}) serves no {ROUTES}; expected "
            f"OpenShift, or 'LoadBalancer' or 'NodePort'"
        )
        failures.append(CheckFailure("service_type", message))
    if reached == "Route" and (problem := operator_route_problem(found["operator"])):
        failures.append(CheckFailure("operator", problem))
    kept = {
        "uid": found["uid"],
        "platform": found["platform"],
        "version": found["version"],
        "operator": found["operator"],
    }
    # What it was as it was first looked at: its upgrades are nobody's changes here.
    return {**new, "found": {**kept, **before, "service_type": reached}}, failures


class KubernetesCluster(Resource, module="harmony", name="KubernetesCluster"):
    """A Kubernetes cluster, as a place for PostgreSQL."""

    found: pulumi.Output[Any]

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare it. `props`: `name`, `kubeconfig` (secret), `context`, `address`, `service_type`, ..."""
        super().__init__(KubernetesClusterProvider(), name, {"found": None, **props}, opts)
