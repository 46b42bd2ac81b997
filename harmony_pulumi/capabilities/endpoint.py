"""Endpoints: the stable address of a pair, what a topology must do to run one, and what its deployment returns.

An endpoint forwards clients to the active member of a pair, and holds their statements back while roles move. It is
part of a pair, so it is no capability that a higher-order topology could derive. Knows no topology.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pulumi

from harmony_pulumi.capabilities.postgresql import Endpoint, PostgreSQLCluster, PostgreSQLPlan

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.endpoint_config import EndpointConfig


@dataclass(frozen=True)
class DeployedEndpoint:
    """What a deployment of an endpoint returns. Every value is an Output, to be wired on."""

    endpoint: pulumi.Output[Endpoint]
    """Where clients connect."""
    ca_certificate: pulumi.Output[str]
    """PEM of the authority that signed its certificate."""
    site: pulumi.Output[Mapping[str, Any]]
    """The serialisable handle by which orchestration observes it and acts on it."""
    resource: pulumi.Resource
    """What to depend on."""


@runtime_checkable
class EndpointHost(Protocol):
    """A topology that can run endpoints."""

    name: str

    @abstractmethod
    def plan_endpoint(self, name: str, config: EndpointConfig) -> PostgreSQLPlan:
        """Return the problems and claims of an endpoint here. Must be pure: no registration, no site is touched."""

    @abstractmethod
    def deploy_endpoint(
        self,
        name: str,
        config: EndpointConfig,
        *,
        members: Mapping[str, PostgreSQLCluster],
        active: str,
        parent: pulumi.Resource,
    ) -> DeployedEndpoint:
        """Deploy an endpoint of a pair here.

        Args:
            name: of the database, for people.
            config: what the endpoint is to be.
            members: the clusters of the pair, by role.
            active: the role that the program wants active. A new endpoint forwards to that member, unless the members
                were told of a later role change; after that, only `EndpointSite.point` changes it.
            parent: the component that it belongs to.
        """
