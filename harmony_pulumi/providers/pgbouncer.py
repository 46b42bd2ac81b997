"""The Pulumi resource that is one endpoint of a pair: a PgBouncer on a host. Thin: the acts are in `hosts.pgbouncer`.

They are imported where they are done. The program's process needs this module, too, but only to declare resources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CheckFailure, CheckResult, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from harmony_pulumi.capabilities.endpoint import DeployedEndpoint
from harmony_pulumi.capabilities.postgresql import PostgreSQLCluster
from harmony_pulumi.errors import UnreachableError
from harmony_pulumi.providers.base import Provider, clean_errors, is_known, plain, show
from harmony_pulumi.providers.postgresql_server import bound_machine, insist_on_machine

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.endpoint_config import EndpointConfig

_SETTLED = ("active",)
"""Inputs whose change asks for nothing: they are only looked at as an endpoint is made. Orchestration points it."""


class PgBouncerProvider(Provider):
    """Makes, changes, reads and removes one endpoint."""

    @clean_errors
    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Complete the inputs, and find what only the site can tell."""
        from harmony_pulumi.hosts.pgbouncer import deployment

        old, new = plain(_olds), plain(news)
        new["host"] = {**bound_machine(old), **new["host"]}
        for key in ("servers", "sites"):
            new[key] = _settled(old.get(key) or {}, new[key])
        if old and not is_known(new["passwords"]):
            new["passwords"] = old["passwords"]
        failures = [CheckFailure(path, message) for path, message in deployment.value_problems(new)]
        try:
            failures += [CheckFailure(path, message) for path, message in deployment.site_problems(new)]
        except UnreachableError as error:
            show(f"warning: {new['host']['name']}/{new['name']} endpoint: not checked at its site: {error}")
        return CheckResult(new, failures)

    @clean_errors
    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Tell an update from a replacement. One that was seen stopped is to be brought back."""
        old, new = plain(_olds), plain(_news)
        replaces = [key for key in ("owner", "directory") if old.get(key) != new.get(key)]
        if old["host"].get("machine_id") != new["host"].get("machine_id"):
            replaces.append("host")
        changed = any(old.get(key) != value for key, value in new.items() if key not in _SETTLED)
        ill = old.get("status") in {"stopped", "half-changed"}
        return DiffResult(changes=bool(replaces) or changed or ill, replaces=replaces, delete_before_replace=True)

    @clean_errors
    def create(self, props: dict[str, Any]) -> CreateResult:
        """Make the endpoint."""
        from harmony_pulumi.hosts.pgbouncer.deployment import open_deployment

        props = plain(props)
        deployment = open_deployment(props, "create", show)
        insist_on_machine(props["host"])
        outputs = deployment.deploy()
        return CreateResult(f"{props['host']['machine_id']}:{outputs['root']}", {**props, **outputs})

    @clean_errors
    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Change the endpoint in place; start it if it is stopped."""
        from harmony_pulumi.hosts.pgbouncer.deployment import open_deployment

        old, new = plain(_olds), plain(_news)
        return UpdateResult({**old, **new, **open_deployment(new, "update", show).deploy(old)})

    @clean_errors
    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """See how the endpoint is: `deployment.status`."""
        from harmony_pulumi.hosts.pgbouncer import deployment

        state = plain(props)
        status = deployment.status(state)
        if status == "absent":
            show(f"{state['host']['name']}/{state['name']} endpoint: {state['root']} is gone from its host")
            return ReadResult("", {})
        if status != "running":
            show(f"warning: {state['host']['name']}/{state['name']} endpoint: {status}")
        return ReadResult(id_, {**state, "status": status.partition(":")[0]})

    @clean_errors
    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Stop the endpoint and delete its folder."""
        from harmony_pulumi.hosts.pgbouncer.deployment import open_deployment

        open_deployment(plain(_props), "destroy", show).destroy()


def _settled(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what is known of members while it is not known anew: an update of a server mostly changes nothing of it."""
    return {role: server if is_known(server) else old.get(role, server) for role, server in new.items()}


class PgBouncer(Resource, module="harmony", name="PgBouncer"):
    """One endpoint of a pair."""

    endpoint: pulumi.Output[Any]
    ca_certificate: pulumi.Output[str]
    handle: pulumi.Output[Any]
    """By which orchestration finds it. Not `site`: what has one of these is a database."""
    status: pulumi.Output[str]
    pgbouncer_version: pulumi.Output[str]
    prepared_statements: pulumi.Output[bool]
    """Whether prepared statements of the protocol work."""
    root: pulumi.Output[str]

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare the endpoint. `props` is what `deploy_endpoint` makes of a configuration."""
        outputs = "endpoint ca_certificate handle status pgbouncer_version prepared_statements root revision"
        super().__init__(
            PgBouncerProvider(),
            name,
            {**dict.fromkeys(outputs.split()), **props},
            pulumi.ResourceOptions.merge(pulumi.ResourceOptions(additional_secret_outputs=["passwords"]), opts),
        )


def deploy_endpoint(
    name: str,
    config: EndpointConfig,
    *,
    host: Mapping[str, Any],
    owner: str,
    members: Mapping[str, PostgreSQLCluster],
    active: str,
    opts: pulumi.ResourceOptions | None = None,
) -> DeployedEndpoint:
    """Deploy one endpoint on a host.

    Args:
        name: of the database, for people.
        config: what it is to be.
        host: as in `deploy_server`.
        owner: whose endpoint it is, `<project>/<stack>/<resource>`.
        members: the clusters of the pair, by role.
        active: the role of the member that a new endpoint forwards to.
        opts: of the resource.
    """
    depends = pulumi.ResourceOptions(depends_on=[member.resource for member in members.values()])
    resource = PgBouncer(
        owner.rpartition("/")[2],
        {
            "host": host,
            "name": name,
            "owner": owner,
            **config.model_dump(mode="json", exclude={"on"}),
            "servers": {role: _server(member) for role, member in members.items()},
            "sites": {role: member.site for role, member in members.items()},
            "active": active,
            "passwords": pulumi.Output.secret(members["primary"].credentials),
        },
        pulumi.ResourceOptions.merge(opts, depends),
    )
    return DeployedEndpoint(resource.endpoint, resource.ca_certificate, resource.handle, resource)


def _server(member: PostgreSQLCluster) -> pulumi.Output[dict[str, Any]]:
    return pulumi.Output.all(member.endpoint, member.ca_certificate).apply(
        lambda known: {"host": known[0]["host"], "port": known[0]["port"], "ca_certificate": known[1]}
    )
