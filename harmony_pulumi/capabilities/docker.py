"""The Docker capability: runs a container as a service. Knows no topology."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import pulumi

from harmony_pulumi.capabilities.base import Capability

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.docker_config import DockerConfig


@dataclass(frozen=True)
class DockerService:
    """What a deployment returns."""

    name: str
    container_id: pulumi.Output[str]
    resource: pulumi.Resource
    """What to depend on."""


@runtime_checkable
class Docker(Capability, Protocol):
    """Runs containers."""

    @abstractmethod
    def deploy_docker(self, name: str, config: DockerConfig) -> DockerService:
        """Deploy a service. Must raise `InputError` before it registers anything."""
