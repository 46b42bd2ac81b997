"""AcmeCloudTopology: Acme's cloud rents machines with volumes, and PostgreSQL runs on them.

The cloud is a folder here: the volume of a machine is a folder in that of its account and region.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, Resource

from harmony_pulumi import (
    PostgreSQL,
    PostgreSQLCluster,
    PostgreSQLConfig,
    PostgreSQLPlan,
    Problem,
    Replication,
    Topology,
)
from harmony_pulumi.capabilities.postgresql import Endpoint, ReplicationCerts, insist
from harmony_pulumi.providers.base import Provider
from harmony_pulumi.providers.postgresql_server import deploy_server


class AcmeInstanceProvider(Provider):
    """Rents machines."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Rent a machine; a volume that is there already is attached to it."""
        Path(props["volume"]).mkdir(mode=0o755, parents=True, exist_ok=True)
        return CreateResult(f"i-{Path(props['volume']).name}", props)

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Give a machine back; a volume that holds data outlives it."""
        with contextlib.suppress(OSError):
            Path(_props["volume"]).rmdir()


class AcmeInstance(Resource, module="acme", name="Instance"):
    """A rented machine."""

    def __init__(self, name: str, volume: str, opts: pulumi.ResourceOptions) -> None:
        """Declare the machine by its volume."""
        super().__init__(AcmeInstanceProvider(), name, {"volume": volume}, opts)


class AcmeCloudTopology(Topology, PostgreSQL):
    """A machine in Acme's cloud."""

    def __init__(
        self, name: str, *, account: str, region: str = "north-1", opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Rent the machine `name` in a region; `account` is the folder that stands for the cloud."""
        super().__init__(name, opts)
        self._volume = f"{account}/{region}/{name}"
        self._host = {"connection": "local", "name": name, "address": "localhost", "user": "postgres"}
        self._instance = AcmeInstance(f"{name}-instance", self._volume, pulumi.ResourceOptions(parent=self))

    def plan_postgresql(self, name: str, config: PostgreSQLConfig) -> PostgreSQLPlan:
        """Return the problems of a server in the cloud; each has a machine of its own, so there are no claims."""
        problems: list[Problem] = []
        if not name.isidentifier():
            problems.append(Problem("name", f"{name!r} is not a name in Acme's cloud; expected letters, digits and _"))
        if config.for_member(self.name).directory:
            problems.append(Problem("directory", "is on the volume, which the cloud chooses; leave it out"))
        home = {"host": self._host, "owner": self._owner(name), "directory": f"{self._volume}/{name}"}
        return PostgreSQLPlan(tuple(problems), members=(self.name,), homes=(home,))

    def deploy_postgresql(
        self, name: str, config: PostgreSQLConfig, *, replication: Replication | None = None
    ) -> PostgreSQLCluster:
        """Deploy a server on the machine's volume."""
        insist(f"PostgreSQL {name!r} in Acme's cloud", self.plan_postgresql(name, config), config)
        return deploy_server(
            name,
            config.for_member(self.name).model_copy(update={"directory": f"{self._volume}/{name}"}),
            host=self._host,
            owner=self._owner(name),
            replication=replication,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[self._instance]),
        )

    def get_replication_certs(self, cluster: PostgreSQLCluster) -> pulumi.Output[ReplicationCerts]:
        """Return what a replica needs to connect. Secret."""
        return cluster.replication_certs

    def get_endpoint(self, cluster: PostgreSQLCluster) -> pulumi.Output[Endpoint]:
        """Return where the server answers."""
        return cluster.endpoint

    def get_ca_certificate(self, cluster: PostgreSQLCluster) -> pulumi.Output[str]:
        """Return the authority of the server, PEM."""
        return cluster.ca_certificate

    def _owner(self, name: str) -> str:
        return f"{pulumi.get_project()}/{pulumi.get_stack()}/{self.name}-{name}"
