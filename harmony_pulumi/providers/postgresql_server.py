"""The Pulumi resource that is one PostgreSQL server on a host. Thin: the acts are in `hosts.postgresql`.

They are imported where they are done. The program's process needs this module, too, but only to declare resources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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

from harmony_pulumi.capabilities.postgresql import PostgreSQLCluster, Replication, uri
from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.hosts.connection import machine_id
from harmony_pulumi.providers.base import Provider, clean_errors, is_known, plain, show

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.postgresql_config import PostgreSQLConfig

REPLACED_BY = ("owner", "identity")
"""Inputs whose change makes another server. Everything that cannot change in place is part of `identity`."""


SETTLED = ("plan", "peers")
"""Inputs whose change asks for nothing: words, and what is said of the peers beside which and where they are."""


class PostgreSQLServerProvider(Provider):
    """Makes, changes, reads and removes one server."""

    @clean_errors
    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Complete the inputs, and find what only the site can tell."""
        from harmony_pulumi.hosts.postgresql import inspection

        old, new = plain(_olds), plain(news)
        new = _bound(old, new)
        new = _with_settled_source(old, new)
        new["plan"] = inspection.plan(old, new)
        found = inspection.value_problems(old, new, inspection.roles_told(old))
        failures = [CheckFailure(path, message) for path, message in found]
        try:
            failures += [CheckFailure(p, m) for p, m in inspection.site_problems(old, new)]
        except UnreachableError as error:
            show(f"warning: {new['host']['name']}/{new['name']}: not checked at its site: {error}")
        return CheckResult(new, failures)

    @clean_errors
    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Tell an update from a replacement. A server that was seen stopped, say, is to be brought back."""
        old, new = plain(_olds), plain(_news)
        replaces = [key for key in REPLACED_BY if is_known(new[key]) and old.get(key) != new[key]]
        changed = any(old.get(key) != value for key, value in new.items() if key not in SETTLED)
        changed |= _places(old) != _places(new)  # A server asks them whenever it starts.
        ill = old.get("status") in {"stopped", "half-changed", "left behind"}
        return DiffResult(changes=bool(replaces) or changed or ill, replaces=replaces, delete_before_replace=True)

    @clean_errors
    def create(self, props: dict[str, Any]) -> CreateResult:
        """Make the server."""
        from harmony_pulumi.hosts.postgresql.deployment import open_deployment

        props = plain(props)
        deployment = open_deployment(props, "create", show)
        insist_on_machine(props["host"])
        outputs = deployment.create()
        return CreateResult(f"{props['host']['machine_id']}:{outputs['root']}", {**props, **outputs})

    @clean_errors
    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Change the server in place."""
        from harmony_pulumi.hosts.postgresql.deployment import open_deployment

        old, new = plain(_olds), plain(_news)
        return UpdateResult({**old, **new, **open_deployment(new, "update", show).update(old)})

    @clean_errors
    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """See how the server is: `inspection.status`."""
        from harmony_pulumi.hosts.postgresql import inspection

        state = plain(props)
        status = inspection.status(state)
        if status == "absent":
            show(f"{state['host']['name']}/{state['name']}: {state['root']} is gone from its host")
            return ReadResult("", {})
        if status != "running":
            show(f"warning: {state['host']['name']}/{state['name']}: {status}")
        return ReadResult(id_, {**state, "status": status.partition(":")[0], **_certificates_now(state)})

    @clean_errors
    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Stop the server; its data is kept unless `on_destroy` says otherwise."""
        from harmony_pulumi.hosts.postgresql.deployment import open_deployment

        open_deployment(plain(_props), "destroy", show).destroy()


def _places(props: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Return which peers a server has, and where."""
    return [(peer["owner"], peer.get("directory")) for peer in props.get("peers") or ()]


def _bound(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Settle what the program leaves open, once: machine, folder, version. Say what makes the server this one."""
    settled: dict[str, Any] = {**new, "host": {**bound_machine(old), **new["host"]}}
    declared = {key: new.get(key) for key in ("directory", "version")}
    chosen = old or _choices(settled)
    settled |= {key: value or chosen.get(key) for key, value in declared.items()}
    settled["peers"] = _placed(old, settled)
    source = (new.get("source") or {}).get("identity", "")
    identity = {
        "machine": settled["host"].get("machine_id"),
        "directory": settled["directory"],
        "version": settled["version"],
        "locale": new["locale"],
        "source": source,
    }
    text = " ".join(f"{key}={value}" for key, value in identity.items() if value)
    return {**settled, "identity": text if is_known(source) else source}


def _placed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the peers with the folders that the program leaves open settled, once, as their own are."""
    from harmony_pulumi.hosts.connection import connect
    from harmony_pulumi.hosts.postgresql.home import is_on_host, root_of

    before = {peer["owner"]: peer.get("directory") for peer in old.get("peers") or ()}

    def place(peer: Mapping[str, Any]) -> dict[str, Any]:
        if not is_on_host(peer):
            return {}
        if directory := peer.get("directory") or before.get(peer["owner"]):
            return {"directory": directory}
        try:
            return {"directory": root_of(connect(new["host"]), peer)}
        except SiteError:
            return {}  # `inspection.site_problems` tells why.

    return [{**peer, **place(peer)} for peer in new.get("peers") or ()]


def insist_on_machine(host: Mapping[str, Any]) -> None:
    """Refuse a host that is bound to no machine: its server would be taken for another one by the next run.

    Raises:
        SiteError: this machine got its machine-id after `check` had looked for it.
    """
    if not host.get("machine_id"):
        msg = f"{host['name']}: this machine had no machine-id when the run began, and has one now; run this again"
        raise SiteError(msg)


def bound_machine(old: Mapping[str, Any]) -> dict[str, str]:
    """Return the machine of a host, where the program names none: that of before, else this one, if it has an id."""
    if before := (old.get("host") or {}).get("machine_id"):
        return {"machine_id": before}
    try:
        return {"machine_id": machine_id()}
    except UnreachableError:
        return {}  # `inspection.site_problems` tells why, and `create` refuses.


def _choices(props: Mapping[str, Any]) -> dict[str, Any]:
    from harmony_pulumi.hosts.postgresql.deployment import open_deployment

    try:
        return open_deployment(props, "check", show).choices()
    except SiteError:
        return {}  # `inspection.site_problems` tells why.


def _certificates_now(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the outputs that a rotation by command has changed; nothing if the site cannot be asked."""
    from harmony_pulumi.hosts.postgresql.deployment import open_deployment

    try:
        deployment = open_deployment(state, "read", show)
        return deployment.certificate_outputs(deployment.existing()[1])
    except SiteError:
        return {}  # The status tells why.


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
        """Declare the server. `props` is what `deploy_server` makes of a configuration."""
        outputs = (
            "endpoint data_directory event_log postgresql_version system_identifier identity ca_certificate "
            "replication_certs credentials site status root mount incarnation revision plan"
        )
        super().__init__(
            PostgreSQLServerProvider(),
            name,
            {**dict.fromkeys(outputs.split()), **props},
            pulumi.ResourceOptions.merge(
                pulumi.ResourceOptions(additional_secret_outputs=["credentials", "replication_certs"]), opts
            ),
        )


def deploy_server(
    name: str,
    config: PostgreSQLConfig,
    *,
    host: Mapping[str, Any],
    owner: str,
    replication: Replication | None = None,
    opts: pulumi.ResourceOptions | None = None,
) -> PostgreSQLCluster:
    """Deploy one server on a host, and return it as a cluster: what topologies of hosts build on, anyone's.

    Args:
        name: of the database, for people.
        config: as it is for this member: `config.for_member(topology.name)`.
        host: `connection` (`local`), `name` (the topology's; replication calls the member so), `address` (that others
            connect to), `user` (of the OS, where Pulumi runs as root), and `machine_id` if the host is bound already.
        owner: whose server it is, `<project>/<stack>/<resource>`; as in the plan's `homes`.
        replication: what a higher-order topology says of the source to follow, and of the peers.
        opts: of the resource; give the topology as `parent`.
    """
    replication = replication or Replication()
    source = replication.source
    server = PostgreSQLServer(
        owner.rpartition("/")[2],
        {
            "host": host,
            "name": name,
            "owner": owner,
            **_declared(config),
            "source": None if source is None else _source(source, replication),
            "peers": [dict(peer) for peer in replication.peers],
        },
        pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[source.resource] if source else [])),
    )
    first = config.declared_databases[0]
    return PostgreSQLCluster(
        name=name,
        endpoint=server.endpoint,
        uri=pulumi.Output.all(server.endpoint, server.credentials).apply(
            lambda known: uri([known[0]], first.name, first.owner_role, known[1][first.owner_role])
        ),
        ca_certificate=server.ca_certificate,
        data_directory=server.data_directory,
        version=server.postgresql_version,
        site=server.site,
        replication_certs=server.replication_certs,
        credentials=server.credentials,
        identity=server.identity,
        system_identifier=server.system_identifier,
        event_log=server.event_log,
        resource=server,
    )


def _declared(config: PostgreSQLConfig) -> dict[str, Any]:
    """Return a configuration as the inputs of a server."""
    passwords = {role: pulumi.Output.secret(value) for role, value in config.passwords.items()}
    databases = [
        {"name": d.name, "owner": d.owner_role, "extensions": list(d.extensions)} for d in config.declared_databases
    ]
    values = config.model_dump(mode="json", exclude={"databases", "members", "passwords"})
    return {**values, "databases": databases, "passwords": passwords}


def _source(source: PostgreSQLCluster, replication: Replication) -> dict[str, Any]:
    """Return what a replica needs of its source."""
    return {
        "identity": source.identity,
        "endpoint": source.endpoint,
        "system_identifier": source.system_identifier,
        "version": source.version,
        "certs": pulumi.Output.secret(replication.certs or source.replication_certs),
        "credentials": pulumi.Output.secret(source.credentials),
    }


__all__ = ["PostgreSQLServer", "PostgreSQLServerProvider", "SiteError", "deploy_server"]
