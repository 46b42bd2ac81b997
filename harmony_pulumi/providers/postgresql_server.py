"""The Pulumi resource that is one PostgreSQL server on a host. Thin: the acts are in `hosts.postgresql`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi.dynamic import (
    CheckFailure,
    CheckResult,
    CreateResult,
    DiffResult,
    ReadResult,
    Resource,
    UpdateResult,
)

from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.hosts.connection import machine_id
from harmony_pulumi.hosts.postgresql import inspection
from harmony_pulumi.hosts.postgresql.deployment import open_deployment
from harmony_pulumi.providers.base import Provider, clean_errors, is_known, plain, show

REPLACED_BY = ("owner", "identity")
"""Inputs whose change makes another server. Everything that cannot change in place is part of `identity`."""


class PostgreSQLServerProvider(Provider):
    """Makes, changes, reads and removes one server."""

    @clean_errors
    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Complete the inputs, and find what only the site can tell."""
        old, new = plain(_olds), plain(news)
        new = _bound(old, new)
        new = _with_settled_source(old, new)
        new["plan"] = inspection.plan(old, new)
        failures = [CheckFailure(path, message) for path, message in inspection.value_problems(old, new)]
        try:
            failures += [CheckFailure(p, m) for p, m in inspection.site_problems(old, new)]
        except UnreachableError as error:
            show(f"warning: {new['host']['name']}/{new['name']}: not checked at its site: {error}")
        return CheckResult(new, failures)

    @clean_errors
    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Tell an update from a replacement. A server that was seen stopped is to be started."""
        old, new = plain(_olds), plain(_news)
        replaces = [key for key in REPLACED_BY if is_known(new[key]) and old.get(key) != new[key]]
        changed = any(old.get(key) != value for key, value in new.items() if key != "plan")
        stopped = old.get("status") == "stopped"
        return DiffResult(changes=bool(replaces) or changed or stopped, replaces=replaces, delete_before_replace=True)

    @clean_errors
    def create(self, props: dict[str, Any]) -> CreateResult:
        """Make the server."""
        props = plain(props)
        outputs = open_deployment(props, "create", show).create()
        return CreateResult(f"{props['host']['machine_id']}:{outputs['root']}", {**props, **outputs})

    @clean_errors
    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Change the server in place."""
        old, new = plain(_olds), plain(_news)
        return UpdateResult({**old, **new, **open_deployment(new, "update", show).update(old)})

    @clean_errors
    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """See whether the server runs, is stopped, cannot be reached, or is proven absent."""
        state = plain(props)
        status = inspection.status(state)
        if status == "absent":
            show(f"{state['host']['name']}/{state['name']}: {state['root']} is gone from its host")
            return ReadResult("", {})
        if status != "running":
            show(f"warning: {state['host']['name']}/{state['name']}: {status}")
        return ReadResult(id_, {**state, "status": status.partition(":")[0]})

    @clean_errors
    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Stop the server; its data is kept unless `on_destroy` says otherwise."""
        open_deployment(plain(_props), "destroy", show).destroy()


def _bound(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Bind a host that names no machine to this one, once; and say what makes this server this one."""
    host = dict(new["host"])
    if not host.get("machine_id"):
        host["machine_id"] = (old.get("host") or {}).get("machine_id") or machine_id()
    identity = {
        "machine": host["machine_id"],
        "directory": new.get("directory") or "",
        "adopt": new.get("adopt") or "",
        "version": new.get("version") or "",
        "locale": new["locale"],
        "source": (new.get("source") or {}).get("identity", ""),
    }
    text = " ".join(f"{key}={value}" for key, value in identity.items() if value or key == "machine")
    return {**new, "host": host, "identity": text if is_known(identity) else new["source"]["identity"]}


def _with_settled_source(old: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Keep the source as it was while it is not known anew, unless it becomes another database.

    At preview, everything that the source's update outputs is unknown, though an update changes none of it; shown as
    changes, these would drown what does change.
    """
    source, before = new.get("source"), old.get("source")
    if source and before and not is_known(source) and source.get("identity") == before.get("identity"):
        return {**new, "source": before}
    return new


class PostgreSQLServer(Resource, module="harmony", name="PostgreSQLServer"):
    """One PostgreSQL server on a host."""

    endpoint: pulumi.Output[Any]
    data_directory: pulumi.Output[str]
    event_log: pulumi.Output[str]
    postgresql_version: pulumi.Output[str]
    system_identifier: pulumi.Output[str]
    identity: pulumi.Output[str]
    ca_certificate: pulumi.Output[str]
    replication_certs: pulumi.Output[Any]
    credentials: pulumi.Output[Any]
    site: pulumi.Output[Any]
    status: pulumi.Output[str]
    root: pulumi.Output[str]
    plan: pulumi.Output[Any]

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare the server. `props` is what `LinuxHostTopology` makes of a configuration."""
        outputs = (
            "endpoint data_directory event_log postgresql_version system_identifier identity ca_certificate "
            "replication_certs credentials site status root plan"
        )
        super().__init__(
            PostgreSQLServerProvider(),
            name,
            {**dict.fromkeys(outputs.split()), **props},
            pulumi.ResourceOptions.merge(
                pulumi.ResourceOptions(additional_secret_outputs=["credentials", "replication_certs"]), opts
            ),
        )


__all__ = ["PostgreSQLServer", "PostgreSQLServerProvider", "SiteError"]
