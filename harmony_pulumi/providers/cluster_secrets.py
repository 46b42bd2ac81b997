"""The Pulumi resource that is what a PostgreSQL cluster on Kubernetes needs before it is there: its secrets, say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi.dynamic import CheckFailure, CheckResult, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from harmony_pulumi.errors import UnreachableError
from harmony_pulumi.providers.base import Provider, clean_errors, is_known, plain, show

_OF_CERTIFICATES = ("address", "certificate_lifetime_days", "certificate_generation", "authority_generation")


class ClusterSecretsProvider(Provider):
    """Waits for the address of a cluster's service, and makes the certificates that name it, and passwords."""

    @clean_errors
    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Find what would make an empty database in the place of one that was there, or stop both members."""
        from harmony_pulumi.kubernetes import made

        old, new = plain(_olds), plain(news)
        if not is_known([new.get(key) for key in ("kubeconfig", "namespace", "cluster", "image")]):
            return CheckResult({**new, "seen": old.get("seen")}, [])
        try:
            cluster = made.look(new)
        except UnreachableError as error:
            show(f"warning: {new['cluster']}: not checked at its API server: {error}")
            return CheckResult({**new, "seen": old.get("seen")}, [])
        failures = [CheckFailure(path, message) for path, message in made.problems(old, new, cluster)]
        return CheckResult({**new, "seen": made.uid(cluster) or old.get("seen")}, failures)

    @clean_errors
    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Tell whether anything is made anew: for what certificates depend on, and for passwords as declared."""
        old, new = plain(_olds), plain(_news)
        keys = (*_OF_CERTIFICATES, "roles", "passwords", "service_type")
        return DiffResult(changes=any(is_known(new.get(key)) and old.get(key) != new.get(key) for key in keys))

    @clean_errors
    def create(self, props: dict[str, Any]) -> CreateResult:
        """Make everything."""
        from harmony_pulumi.kubernetes import made, tls

        props = plain(props)
        endpoint = made.endpoint(props)
        found = {
            **tls.make(tls.files_of(props), endpoint["host"], props["certificate_lifetime_days"]),
            "passwords": made.passwords(props["roles"], props["passwords"]),
        }
        return CreateResult(
            f"{props['namespace']}/{props['cluster']}",
            {**props, "endpoint": endpoint, "made": found, "standing": made.standing(props)},
        )

    @clean_errors
    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Make what changed: a password that is not declared stays what it is."""
        from harmony_pulumi.kubernetes import made, tls

        old, new = plain(_olds), plain(_news)
        endpoint, kept = made.endpoint(new), tls.files_of(new)
        moved = old["endpoint"]["host"] != endpoint["host"]
        if moved or any(_raised(old, new, key) for key in _OF_CERTIFICATES):
            authority = _raised(old, new, "authority_generation")
            tls.renew_as_declared(kept, new, endpoint["host"], moved=moved, authority=authority)
        found = {**old["made"], **tls.shown(kept)}
        passwords = made.passwords(new["roles"], new["passwords"], old["made"]["passwords"])
        return UpdateResult({**old, **new, "endpoint": endpoint, "made": {**found, "passwords": passwords}})

    @clean_errors
    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """See what a rotation by command has made; what cannot be asked stays as it was known."""
        from harmony_pulumi.kubernetes import tls

        state = plain(props)
        try:
            found = tls.shown(tls.files_of(state))
        except UnreachableError as error:
            show(f"warning: {state['cluster']}: {error}")
            found = {}
        return ReadResult(id_, {**state, "made": {**state["made"], **found}})


def _raised(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> bool:
    return (old.get(key) or 0) != (new.get(key) or 0)


class ClusterSecrets(Resource, module="harmony", name="ClusterSecrets"):
    """Certificates and passwords of a PostgreSQL cluster."""

    endpoint: pulumi.Output[Any]
    made: pulumi.Output[Any]
    standing: pulumi.Output[Any]
    """What says whom the cluster follows, of one that was there before; empty if there was none."""

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare them. `props` is what `K8sAnywhereTopology` makes of a configuration."""
        hidden = pulumi.ResourceOptions(additional_secret_outputs=["made", "passwords"])
        super().__init__(
            ClusterSecretsProvider(),
            name,
            {"endpoint": None, "made": None, "standing": None, "seen": None, **props},
            pulumi.ResourceOptions.merge(hidden, opts),
        )
