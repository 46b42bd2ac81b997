"""The Pulumi resource that is what a PostgreSQL cluster on Kubernetes needs before it is there: its secrets, say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi.dynamic import CheckFailure, CheckResult, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.providers.base import Provider, clean_errors, is_known, plain, show

_TRIED = ("parameters", "storage")
"""Inputs that only `check` needs: the cluster itself is declared with them."""


class ClusterSecretsProvider(Provider):
    """Waits for the address of a cluster's service, and makes the certificates that name it, and passwords."""

    @clean_errors
    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Find what would make an empty database in the place of one that was there, or stop both members."""
        from harmony_pulumi.kubernetes import made, tls

        old, new = plain(_olds), plain(news)
        new["live"] = old.get("live")
        if not is_known([new.get(key) for key in ("kubeconfig", "namespace", "cluster", "image")]):
            return CheckResult(new, [])
        try:
            cluster = made.look(new)
            found = [*made.problems(old, new, cluster, tls.files_of(new).served())]
            new["live"] = made.live(new, cluster)
            # One that is somebody else's, say, is not asked anything.
            found = found or _refused(new, cluster)
        except UnreachableError as error:
            show(f"warning: {new['cluster']}: not checked at its API server: {error}")
            return CheckResult(new, [])
        return CheckResult(new, [CheckFailure(path, message) for path, message in found])

    @clean_errors
    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Tell whether anything is made anew, is reached in another way, or has changed while nobody deployed."""
        from harmony_pulumi.kubernetes import made

        old, new = plain(_olds), plain(_news)
        keys = new.keys() - {"endpoint", "made", "standing", "deadline", "live", *_TRIED}
        changed = any(not is_known(new[key]) or old.get(key) != new[key] for key in keys)
        return DiffResult(changes=changed or made.has_changed(new.get("live") or {}, old))

    @clean_errors
    def create(self, props: dict[str, Any]) -> CreateResult:
        """Make everything."""
        from harmony_pulumi.kubernetes import made, tls

        props = plain(props)
        standing = made.standing(props)
        endpoint = made.endpoint(props)
        found = {
            **tls.make(tls.files_of(props), endpoint["host"], props["certificate_lifetime_days"]),
            "passwords": made.passwords(props["roles"], props["passwords"]),
        }
        return CreateResult(
            f"{props['namespace']}/{props['cluster']}",
            {**props, "endpoint": endpoint, "made": found, "standing": standing},
        )

    @clean_errors
    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Make what changed: a password that is not declared stays what it is."""
        from harmony_pulumi.hosts.postgresql import renewal
        from harmony_pulumi.kubernetes import lease, made, tls
        from harmony_pulumi.orchestration.journal import operator

        old, new = plain(_olds), plain(_news)
        standing, endpoint, kept = made.standing(new), made.endpoint(new), tls.files_of(new)
        moved = old["endpoint"]["host"] != endpoint["host"]
        changed = renewal.changed_inputs(old, new)
        if moved or changed:
            authority, by = "authority_generation" in changed, operator("`pulumi up`")
            with lease.held(kept.api, kept.namespace, kept.cluster, kept.owner, by, deadline=new["deadline"]):
                tls.renew_as_declared(kept, new, endpoint["host"], moved=moved, authority=authority)
        found = {**old["made"], **tls.shown(kept)}
        passwords = made.passwords(new["roles"], new["passwords"], old["made"]["passwords"])
        return UpdateResult(
            {**old, **new, "endpoint": endpoint, "made": {**found, "passwords": passwords}, "standing": standing}
        )

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

    @clean_errors
    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Remove the authority where the data was removed, too; else the next `up` takes over both."""
        from harmony_pulumi.kubernetes import tls

        props = plain(_props)
        if props["on_destroy"] == "delete":
            tls.files_of(props).forget()


def _refused(new: Mapping[str, Any], cluster: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what a cluster that is there would not take. A pod that cannot be asked just now is no reason to end."""
    from harmony_pulumi.kubernetes import made

    try:
        return [*made.refused(new, cluster)]
    except UnreachableError:
        raise
    except SiteError as error:
        show(f"warning: {new['cluster']}: whether it takes what is declared was not tried: {error}")
        return []


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
            {"endpoint": None, "made": None, "standing": None, "live": None, **props},
            pulumi.ResourceOptions.merge(hidden, opts),
        )
