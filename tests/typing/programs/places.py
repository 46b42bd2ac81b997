# pyright: strict
"""Topologies that the other programs use: as a user would write them."""

import pulumi

from harmony_pulumi import Docker, DockerConfig, DockerService, LinuxHostTopology, Topology


class Workshop(Topology, Docker):
    """Provides Docker."""

    def deploy_docker(self, name: str, config: DockerConfig) -> DockerService:
        return DockerService(name, pulumi.Output.from_input(config.image), self)


class Host(LinuxHostTopology, Docker):
    """Provides PostgreSQL and Docker."""

    def deploy_docker(self, name: str, config: DockerConfig) -> DockerService:
        return DockerService(name, pulumi.Output.from_input(config.image), self)


class Bare(Topology):
    """Provides nothing."""
