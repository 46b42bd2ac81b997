"""The Pulumi resource that is a PostgreSQL cluster on Kubernetes as it serves: its objects are declared beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from harmony_pulumi.providers.base import Provider, clean_errors, is_known, plain, show

OUTPUTS = ("postgresql_version", "system_identifier")


class PostgreSQLClusterProvider(Provider):
    """Waits for a cluster, and on destroy has it keep its data."""

    @clean_errors
    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Tell whether it is to be waited for once more: what was declared of it has changed."""
        old, new = plain(_olds), plain(_news)
        return DiffResult(changes=any(not is_known(value) or old.get(key) != value for key, value in new.items()))

    @clean_errors
    def create(self, props: dict[str, Any]) -> CreateResult:
        """Wait until it serves."""
        from harmony_pulumi.kubernetes import waiting

        props = plain(props)
        site = props["site"]
        return CreateResult(f"{site['namespace']}/{site['cluster']}", {**props, **waiting.until_ready(props, show)})

    @clean_errors
    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Wait until it serves as it is declared now."""
        from harmony_pulumi.kubernetes import waiting

        old, new = plain(_olds), plain(_news)
        return UpdateResult({**old, **new, **waiting.until_ready(new, show)})

    @clean_errors
    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Keep the state; how the cluster is, is what `harmony status` shows."""
        return ReadResult(id_, plain(props))

    @clean_errors
    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Stop the cluster where its data is kept; else its object is deleted next, and the data with it."""
        from harmony_pulumi.kubernetes import waiting

        props = plain(_props)
        if props["on_destroy"] == "keep":
            waiting.hibernate(props, show)


class PostgreSQLClusterResource(Resource, module="harmony", name="PostgreSQLCluster"):
    """A PostgreSQL cluster as it serves."""

    postgresql_version: pulumi.Output[str]
    system_identifier: pulumi.Output[str]
    site: pulumi.Output[Any]

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare it. `props` is what `K8sAnywhereTopology` makes of a configuration."""
        super().__init__(PostgreSQLClusterProvider(), name, {**dict.fromkeys(OUTPUTS), **props}, opts)
