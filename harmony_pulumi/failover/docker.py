"""How failover gets Docker from its members: the service on both, started on one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harmony_pulumi.capabilities.docker import Docker, DockerService
from harmony_pulumi.failover.base import Failover
from harmony_pulumi.topologies.base import T

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.docker_config import DockerConfig


@Failover.derive(Docker)
class FailoverDocker(Failover[T]):
    """Derives Docker."""

    def deploy_docker(self: Failover[Docker], name: str, config: DockerConfig) -> DockerService:
        """Deploy the service on both members: running on the primary, a cold standby on the replica."""
        active = self.primary.deploy_docker(name, config)
        self.replica.deploy_docker(name, config.model_copy(update={"running": False}))
        return active
