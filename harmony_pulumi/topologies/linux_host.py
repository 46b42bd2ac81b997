"""LinuxHostTopology: a Linux machine that runs PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pulumi

from harmony_pulumi.capabilities.addresses import is_host
from harmony_pulumi.capabilities.endpoint import DeployedEndpoint, EndpointHost
from harmony_pulumi.capabilities.postgresql import (
    Claim,
    Endpoint,
    PostgreSQL,
    PostgreSQLCluster,
    PostgreSQLPlan,
    Replication,
    ReplicationCerts,
    insist,
    overlap,
)
from harmony_pulumi.input_errors import InputError, Problem
from harmony_pulumi.topologies.base import Topology

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.endpoint_config import EndpointConfig
    from harmony_pulumi.capabilities.postgresql_config import PostgreSQLConfig


class LinuxHostTopology(Topology, PostgreSQL, EndpointHost):
    """A Linux machine: this one.

    The first `up` binds the topology to the machine that it runs on, by its machine-id. From then on, another machine
    (a CI runner, say) knows that it is not the host: there, preview warns that the site cannot be checked, and `up`
    refuses to touch it.
    """

    def __init__(
        self,
        name: str,
        *,
        address: str = "localhost",
        user: str = "postgres",
        machine_id: str | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare the host.

        Args:
            name: of the topology, and of its member in replication.
            address: the host name or IP that servers listen on and that clients and members connect to.
            user: the OS user that runs servers, where Pulumi runs as root.
            machine_id: the machine that this is (`cat /etc/machine-id`), to bind it before the first `up`.
            opts: for the component; what is deployed on the host inherits them.

        Raises:
            InputError: every problem of the arguments.
        """
        problems = _problems(name, address, user, machine_id)
        if problems:
            raise InputError(f"LinuxHostTopology {name!r}", problems)
        self._host = {"connection": "local", "name": name, "address": address, "user": user}
        if machine_id:
            self._host["machine_id"] = machine_id
        super().__init__(name, opts)

    def plan_postgresql(self, name: str, config: PostgreSQLConfig) -> PostgreSQLPlan:
        """Return the problems and claims of a server here."""
        placement = config.for_member(self.name)
        problems: list[Problem] = []
        if problem := _name_problem(name):
            problems.append(problem)
        if config.adopt and placement.directory and overlap(config.adopt, placement.directory):
            message = f"{placement.directory} and adopt={config.adopt} overlap; keep them apart"
            problems.append(Problem(_path(self.name, "directory", config), message))
        wanted = (
            ("port", placement.port, _path(self.name, "port", config)),
            ("directory", placement.directory, _path(self.name, "directory", config)),
            ("directory", config.adopt, "adopt"),
        )
        home = {
            "host": self._host,
            "owner": self._owner(name),
            "directory": placement.directory,
        }
        return PostgreSQLPlan(tuple(problems), self._claims(*wanted), (self.name,), (home,))

    def deploy_postgresql(
        self, name: str, config: PostgreSQLConfig, *, replication: Replication | None = None
    ) -> PostgreSQLCluster:
        """Deploy a server here: a new primary, or a replica of `replication.source`."""
        from harmony_pulumi.providers.postgresql_server import deploy_server

        insist(f"PostgreSQL {name!r} on {self.name!r}", self.plan_postgresql(name, config), config)
        return deploy_server(
            name,
            config.for_member(self.name),
            host=self._host,
            owner=self._owner(name),
            replication=replication,
            opts=pulumi.ResourceOptions(parent=self),
        )

    def get_replication_certs(self, cluster: PostgreSQLCluster) -> pulumi.Output[ReplicationCerts]:
        """Return what a replica of the cluster needs to connect. Secret."""
        return cluster.replication_certs

    def get_endpoint(self, cluster: PostgreSQLCluster) -> pulumi.Output[Endpoint]:
        """Return where the cluster answers."""
        return cluster.endpoint

    def get_ca_certificate(self, cluster: PostgreSQLCluster) -> pulumi.Output[str]:
        """Return the authority of the cluster's server, PEM."""
        return cluster.ca_certificate

    def plan_endpoint(self, name: str, config: EndpointConfig) -> PostgreSQLPlan:
        """Return the problems and claims of an endpoint here."""
        problem = _name_problem(name)
        wanted = (("port", config.port, "port"), ("directory", config.directory, "directory"))
        return PostgreSQLPlan((problem,) if problem else (), self._claims(*wanted))

    def deploy_endpoint(
        self,
        name: str,
        config: EndpointConfig,
        *,
        members: Mapping[str, PostgreSQLCluster],
        active: str,
        parent: pulumi.Resource,
    ) -> DeployedEndpoint:
        """Deploy an endpoint of a pair here."""
        from harmony_pulumi.providers.pgbouncer import deploy_endpoint

        return deploy_endpoint(
            name,
            config,
            host=self._host,
            owner=self._owner(f"{name}-endpoint"),
            members=members,
            active=active,
            opts=pulumi.ResourceOptions(parent=parent),
        )

    def _owner(self, name: str) -> str:
        return f"{pulumi.get_project()}/{pulumi.get_stack()}/{self.name}-{name}"

    def _claims(self, *wanted: tuple[str, object, str]) -> tuple[Claim, ...]:
        """Return what is taken here, of kinds, values and the properties that ask for them."""
        # A host that is not named is this machine, and may well be one that another topology names.
        machine = self._host.get("machine_id")
        place, certain = machine or "this machine", machine is not None
        return tuple(Claim(place, kind, str(value), path, certain) for kind, value, path in wanted if value is not None)


def _path(member: str, kind: str, config: PostgreSQLConfig) -> str:
    """Return the property that a member has its port or directory from."""
    of_member = getattr(config.members.get(member), kind, None) is not None
    return f"members.{member}.{kind}" if of_member else kind


def _name_problem(name: str) -> Problem | None:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
        return None
    return Problem("name", f"{name!r} is not taken as a name; expected up to 63 letters, digits and _.-")


def _problems(name: object, address: str, user: str, machine_id: str | None) -> list[Problem]:
    problems: list[Problem] = []
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name)):
        problems.append(Problem("name", f"{name!r} is not taken; expected up to 63 letters, digits and _.-"))
    if not is_host(address):
        problems.append(Problem("address", f"{address!r} is neither a host name nor an IP address"))
    if user == "root":
        problems.append(Problem("user", "PostgreSQL refuses to run as root; name another, for instance 'postgres'"))
    elif not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
        problems.append(Problem("user", f"{user!r} is not an OS user's name: useradd(8)"))
    if machine_id is not None and not re.fullmatch(r"[0-9a-f]{32}", machine_id):
        message = f"{machine_id!r} is not a machine-id; expected 32 hexadecimal digits, as in /etc/machine-id"
        problems.append(Problem("machine_id", message))
    return problems
