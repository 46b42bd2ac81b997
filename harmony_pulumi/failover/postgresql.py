"""How failover gets PostgreSQL from its members: the primary, then a replica of it, then their wiring."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, cast

import pulumi

from harmony_pulumi.capabilities.postgresql import (
    Endpoint,
    PostgreSQL,
    PostgreSQLCluster,
    PostgreSQLPair,
    PostgreSQLPlan,
    Replication,
    ReplicationCerts,
    insist,
    uri,
)
from harmony_pulumi.failover.base import Active, Failover
from harmony_pulumi.input_errors import Problem
from harmony_pulumi.topologies.base import T

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.endpoint import DeployedEndpoint
    from harmony_pulumi.capabilities.endpoint_config import EndpointConfig
    from harmony_pulumi.capabilities.postgresql_config import PostgreSQLConfig
    from harmony_pulumi.providers.postgresql_pair import PostgreSQLPairResource


@Failover.derive(PostgreSQL)
class FailoverPostgreSQL(Failover[T]):
    """Derives PostgreSQL."""

    def plan_postgresql(self: Failover[PostgreSQL], name: str, config: PostgreSQLConfig) -> PostgreSQLPlan:
        """Return the problems and claims of both members, side by side."""
        configs = _by_role(config)
        return PostgreSQLPlan.joined([m.plan_postgresql(name, configs[role]) for role, m in self.members.items()])

    def deploy_postgresql(
        self: Failover[PostgreSQL],
        name: str,
        config: PostgreSQLConfig,
        *,
        replication: Replication | None = None,
        active: Active | None = None,
        endpoints: Sequence[EndpointConfig] = (),
    ) -> PostgreSQLPair:
        """Deploy the primary; take its certificates and endpoint; deploy the replica; wait until it streams.

        With `replication.source` the pair itself follows another cluster: its primary is a cascading replica.

        Args:
            name: of the database, for people.
            config: what it is to be.
            replication: what an outer topology says.
            active: the member that is to be active. By default what the stack's configuration says,
                `harmony:active: {"<topology>-<name>": {"member": "replica", "epoch": 1}}`; else the primary.
            endpoints: the stable addresses of the pair, each on a topology of its own. With them, the uri is theirs;
                without, it names both members, and clients find the active one by themselves.
        """
        from harmony_pulumi.providers.postgresql_pair import PostgreSQLPairResource

        configs = _by_role(config)
        plans = {role: member.plan_postgresql(name, configs[role]) for role, member in self.members.items()}
        whole = PostgreSQLPlan.joined([*plans.values(), *_plans_of_endpoints(name, endpoints)])
        resource_name = f"{cast('Any', self).name}-{name}"
        names = {role: str(cast("Any", member).name) for role, member in self.members.items()}
        roles, role_problems = declared_active(resource_name, active, names)
        more = [*role_problems, *_problems_of_nesting(config, plans), *_problems_of_direct(whole, endpoints)]
        whole = replace(whole, problems=(*whole.problems, *more))
        insist(f"PostgreSQL {name!r} on {cast('Any', self).name!r}", whole, config)
        outer = replication or Replication()
        primary = self.primary.deploy_postgresql(
            name,
            _only(plans["primary"].members, configs["primary"]),
            replication=Replication(outer.source, outer.certs, (*outer.peers, *plans["replica"].homes)),
        )
        certs = self.primary.get_replication_certs(primary)
        replica = self.replica.deploy_postgresql(
            name,
            _only(plans["replica"].members, configs["replica"]),
            replication=Replication(primary, certs, (*outer.peers, *plans["primary"].homes)),
        )
        members = {"primary": primary, "replica": replica}
        fences = {
            role: list(config.members[name].fence_command)
            for role, name in names.items()
            if name in config.members and config.members[name].fence_command
        }
        deployed = {
            endpoint.on.name: endpoint.on.deploy_endpoint(
                name, endpoint, members=members, active=roles.member, parent=cast("Any", self)
            )
            for endpoint in endpoints
        }
        pair = PostgreSQLPairResource(
            resource_name,
            {
                "name": name,
                "pair": f"{pulumi.get_project()}/{pulumi.get_stack()}/{resource_name}",
                "members": {
                    role: {
                        "name": names[role],
                        "site": cluster.site,
                        "identity": cluster.identity,
                    }
                    for role, cluster in members.items()
                },
                "active": roles.member,
                "active_from": "program" if active else "configuration",
                "epoch": roles.epoch,
                "replication": config.replication,
                "follows": outer.source is not None,
                "deadline": config.deadlines.stream,
                **({"fence_commands": fences} if fences else {}),
                **({"endpoints": {on: endpoint.site for on, endpoint in deployed.items()}} if deployed else {}),
                "rotation": {
                    "lifetime_days": config.certificate_lifetime_days,
                    "generation": config.certificate_generation,
                    "authority": config.authority_generation,
                },
            },
            pulumi.ResourceOptions(
                parent=cast("Any", self),
                depends_on=[primary.resource, replica.resource, *(e.resource for e in deployed.values())],
                additional_secret_outputs=["site"] if primary.sensitive or replica.sensitive else None,
            ),
        )
        return _pair(name, config, members, pair, active=roles.member, endpoints=list(deployed.values()))

    def get_replication_certs(
        self: Failover[PostgreSQL], cluster: PostgreSQLCluster
    ) -> pulumi.Output[ReplicationCerts]:
        """Return what a replica of the active member needs to connect. Secret."""
        return _ask_active(cluster, {r: m.get_replication_certs for r, m in self.members.items()})

    def get_endpoint(self: Failover[PostgreSQL], cluster: PostgreSQLCluster) -> pulumi.Output[Endpoint]:
        """Return where the active member answers."""
        return _ask_active(cluster, {role: member.get_endpoint for role, member in self.members.items()})

    def get_ca_certificate(self: Failover[PostgreSQL], cluster: PostgreSQLCluster) -> pulumi.Output[str]:
        """Return the authority of the active member, PEM."""
        return _ask_active(cluster, {role: member.get_ca_certificate for role, member in self.members.items()})


def _by_role(config: PostgreSQLConfig) -> Mapping[str, PostgreSQLConfig]:
    """Return the configuration as it is for each role: a replica is a copy, and takes over no server that is there."""
    return {"primary": config, "replica": config.model_copy(update={"adopt": None})}


def _problems_of_nesting(config: PostgreSQLConfig, plans: Mapping[str, PostgreSQLPlan]) -> list[Problem]:
    """Return what a pair of pairs cannot do."""
    if config.replication != "synchronous" or all(len(plan.members) == 1 for plan in plans.values()):
        return []
    message = (
        "'synchronous' is not possible in a pair of pairs, whose primary would have to wait for its own standby and "
        "for the other pair at once; use 'asynchronous', or a pair of two servers"
    )
    return [Problem("replication", message)]


def _problems_of_direct(whole: PostgreSQLPlan, endpoints: Sequence[EndpointConfig]) -> list[Problem]:
    """Return why endpoints could not get to the members: PgBouncer's changelog, up to 1.25."""
    if not (whole.direct and endpoints):
        return []
    message = (
        f"cannot lead to {' and '.join(whole.direct)}: a route takes direct TLS alone, which PgBouncer has for clients "
        f"(from 1.25 on), not towards servers; leave them out, as the uri names every member, or have `service_type` "
        f"'LoadBalancer' or 'NodePort' there"
    )
    return [Problem("endpoints", message)]


def _plans_of_endpoints(name: str, endpoints: Sequence[EndpointConfig]) -> list[PostgreSQLPlan]:
    """Return the problems and claims of endpoints, their paths below `endpoints`."""
    plans: list[PostgreSQLPlan] = []
    seen: dict[str, int] = {}
    for index, endpoint in enumerate(endpoints):
        plan, path = endpoint.on.plan_endpoint(name, endpoint), f"endpoints.{index}"
        problems = [Problem(f"{path}.{problem.path}", problem.message) for problem in plan.problems]
        if (first := seen.setdefault(endpoint.on.name, index)) != index:
            message = f"{endpoint.on.name!r} has endpoints.{first} already; give each endpoint a topology of its own"
            problems.append(Problem(f"{path}.on", message))
        claims = tuple(replace(claim, path=f"{path}.{claim.path}") for claim in plan.claims)
        plans.append(replace(plan, problems=tuple(problems), claims=claims))
    return plans


def declared_active(pair: str, given: Active | None, names: Mapping[str, str]) -> tuple[Active, list[Problem]]:
    """Return which member the program, or else the stack's configuration, wants active; and what is wrong with that.

    Args:
        pair: the name of the pair's resource, the key in the configuration.
        given: by the program.
        names: of the topologies that are its members, by role.
    """
    of_pairs, problems = _configured()
    if problems:
        return given or Active("primary", 0), problems
    configured = of_pairs.get(pair)
    if configured is None:
        found, path = given or Active("primary", 0), "active"
    elif given is not None:
        message = f"is in the stack's configuration (harmony:active), too; say it in one place: {given} or {configured}"
        return given, [Problem("active", message)]
    else:
        path = f"harmony:active.{pair}"
        if not isinstance(configured, Mapping):
            message = (
                f'{configured!r} is not taken; expected a member and an epoch: {{"member": "replica", "epoch": 1}}'
            )
            return Active("primary", 0), [Problem(path, message)]
        problems += _fields_of_active(cast("Mapping[str, Any]", configured), path)
        found = Active(configured.get("member", "primary"), configured.get("epoch", 0))
    if found.member not in [*names]:  # A configuration holds anything, a list, too.
        expected = " or ".join(f"{role!r} ({name})" for role, name in names.items())
        problems.append(Problem(f"{path}.member", f"{found.member!r} is not a member; expected {expected}"))
    if type(found.epoch) is not int or found.epoch < 0:  # A bool is an int, too, and a configuration holds anything.
        problems.append(Problem(f"{path}.epoch", f"{found.epoch!r} is not an epoch; expected a whole number from 0 on"))
    return found, problems


def _fields_of_active(configured: Mapping[str, Any], path: str) -> list[Problem]:
    """Return which fields are missing, and which there are none of."""
    known = ("member", "epoch")
    missing = [Problem(f"{path}.{field}", "is missing") for field in known if field not in configured]
    unknown = [field for field in configured if field not in known]
    return [
        *missing,
        *(Problem(f"{path}.{field}", f"no such field; there are {' and '.join(known)}") for field in unknown),
    ]


def _configured() -> tuple[Mapping[str, Any], list[Problem]]:
    """Return what the stack's configuration has, by pair; and what is wrong with it as a whole."""
    text = pulumi.Config("harmony").get("active")
    try:
        found: object = json.loads(text) if text else {}
    except ValueError:
        found = text
    if isinstance(found, Mapping):
        return cast("Mapping[str, Any]", found), []
    message = (
        f"{found!r} is not taken; expected the members by the names of their pairs, for instance "
        f'{{"orders-orders": {{"member": "replica", "epoch": 1}}}}: `pulumi config rm harmony:active`, then '
        f"`pulumi config set --path 'harmony:active[\"orders-orders\"].member' replica`, and its epoch likewise"
    )
    return {}, [Problem("harmony:active", message)]


def _only(members: Sequence[str], config: PostgreSQLConfig) -> PostgreSQLConfig:
    """Return the configuration with the placements of these members alone: each refuses those of strangers."""
    placements = {name: placement for name, placement in config.members.items() if name in members}
    return config.model_copy(update={"members": placements})


def _ask_active(cluster: PostgreSQLCluster, queries: Mapping[str, Any]) -> pulumi.Output[Any]:
    """Send a query to the active member."""
    if not isinstance(cluster, PostgreSQLPair):
        msg = f"{cluster.name!r} was not deployed by a failover topology; ask the topology that deployed it"
        raise TypeError(msg)
    answers = {role: queries[role](member) for role, member in cluster.members.items()}
    return _of_active(cluster.serving, answers)


def _of_active(active: pulumi.Output[str], values: Mapping[str, pulumi.Output[Any]]) -> pulumi.Output[Any]:
    """Return the value of the member whose role is `active`: `serving` is always one, also while none is active."""
    return pulumi.Output.all(active, dict(values)).apply(lambda known: known[1][known[0]])


def _servers(cluster: PostgreSQLCluster) -> list[PostgreSQLCluster]:
    """Return the servers of a cluster, of a pair of pairs all four."""
    if not isinstance(cluster, PostgreSQLPair):
        return [cluster]
    return [server for member in cluster.members.values() for server in _servers(member)]


def _pair(
    name: str,
    config: PostgreSQLConfig,
    members: Mapping[str, PostgreSQLCluster],
    resource: PostgreSQLPairResource,
    *,
    active: str,
    endpoints: Sequence[DeployedEndpoint],
) -> PostgreSQLPair:
    """Return the pair as a cluster: what a client needs spans both members, the rest is the active one's."""
    first = config.declared_databases[0]
    servers = [server for member in members.values() for server in _servers(member)]
    addresses = [part.endpoint for part in endpoints or servers]
    authorities = [*(e.ca_certificate for e in endpoints), *(m.ca_certificate for m in members.values())]

    def joined_uri(known: Sequence[Any]) -> str:
        return uri(known[0], first.name, first.owner_role, known[1][first.owner_role], alike=bool(endpoints))

    of_active = {
        field.name: _of_active(resource.serving, {role: getattr(m, field.name) for role, m in members.items()})
        for field in fields(PostgreSQLCluster)
        if field.name not in {"name", "uri", "ca_certificate", "identity", "site", "resource", "sensitive"}
    }
    return PostgreSQLPair(
        **cast("Any", of_active),
        name=name,
        uri=pulumi.Output.all(addresses, members["primary"].credentials).apply(joined_uri),
        ca_certificate=pulumi.Output.all(*authorities).apply("".join),
        identity=pulumi.Output.all(*(m.identity for m in members.values())).apply(" | ".join),
        site=resource.site,
        resource=resource,
        sensitive=any(member.sensitive for member in members.values()),
        members=members,
        active=active,
        observed_active=resource.observed_active,
        serving=resource.serving,
        lag_bytes=resource.lag_bytes,
    )
