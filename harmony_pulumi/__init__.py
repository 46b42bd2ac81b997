"""Harmony: topologies, capabilities and safe failover for Pulumi.

Names are loaded when they are used, so that importing the package costs little more than importing pulumi.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.base import Capability
    from harmony_pulumi.capabilities.docker import Docker, DockerService
    from harmony_pulumi.capabilities.docker_config import DockerConfig
    from harmony_pulumi.capabilities.endpoint_config import EndpointConfig
    from harmony_pulumi.capabilities.postgresql import (
        PostgreSQL,
        PostgreSQLCluster,
        PostgreSQLPair,
        PostgreSQLPlan,
        Replication,
    )
    from harmony_pulumi.capabilities.postgresql_config import (
        Authentication,
        Database,
        Deadlines,
        MemberPlacement,
        PostgreSQLConfig,
    )
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.failover import Active, FailoverTopology
    from harmony_pulumi.input_errors import CapabilityError, InputError, Problem
    from harmony_pulumi.topologies.base import HigherOrderTopology, Topology
    from harmony_pulumi.topologies.k8s_anywhere import K8sAnywhereTopology
    from harmony_pulumi.topologies.linux_host import LinuxHostTopology

_HOMES = {
    "capabilities.base": ("Capability",),
    "capabilities.docker": ("Docker", "DockerService"),
    "capabilities.docker_config": ("DockerConfig",),
    "capabilities.endpoint_config": ("EndpointConfig",),
    "capabilities.postgresql": (
        "PostgreSQL",
        "PostgreSQLCluster",
        "PostgreSQLPair",
        "PostgreSQLPlan",
        "Replication",
    ),
    "capabilities.postgresql_config": (
        "Authentication",
        "Database",
        "Deadlines",
        "MemberPlacement",
        "PostgreSQLConfig",
    ),
    "errors": ("SiteError",),
    "failover": ("Active", "FailoverTopology"),
    "input_errors": ("CapabilityError", "InputError", "Problem"),
    "topologies.base": ("HigherOrderTopology", "Topology"),
    "topologies.k8s_anywhere": ("K8sAnywhereTopology",),
    "topologies.linux_host": ("LinuxHostTopology",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Active",
    "Authentication",
    "Capability",
    "CapabilityError",
    "Database",
    "Deadlines",
    "Docker",
    "DockerConfig",
    "DockerService",
    "EndpointConfig",
    "FailoverTopology",
    "HigherOrderTopology",
    "InputError",
    "K8sAnywhereTopology",
    "LinuxHostTopology",
    "MemberPlacement",
    "PostgreSQL",
    "PostgreSQLCluster",
    "PostgreSQLConfig",
    "PostgreSQLPair",
    "PostgreSQLPlan",
    "Problem",
    "Replication",
    "SiteError",
    "Topology",
]


if not TYPE_CHECKING:  # A checker that saw this would accept every name.

    def __getattr__(name: str) -> Any:
        """Load a public name when it is first used."""
        if name not in _HOME_OF:
            msg = f"module 'harmony_pulumi' has no attribute '{name}'"
            raise AttributeError(msg)
        return getattr(importlib.import_module(f"harmony_pulumi.{_HOME_OF[name]}"), name)

    def __dir__() -> list[str]:
        """Return the public names."""
        return list(__all__)
