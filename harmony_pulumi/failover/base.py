"""Failover: a primary and a replica. Knows no capability and no topology: derivations do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pulumi

from harmony_pulumi.topologies.base import HigherOrderTopology, T


@dataclass(frozen=True)
class Active:
    """Which member is to be active, and the number of the change that makes it so.

    Roles move only if the epoch is raised by one together with them, so that an old program moves nothing back.
    """

    member: Literal["primary", "replica"]
    epoch: int
    """0 for the roles that the members are deployed with; each role change raises it by one."""


class Failover(HigherOrderTopology[T]):
    """What every derivation of a failover topology builds on: its two members."""

    primary: T
    """The member that is active at first."""
    replica: T
    """The member that follows, and can take over."""

    def __init__(self, name: str, *, primary: T, replica: T, opts: pulumi.ResourceOptions | None = None) -> None:
        """Compose a failover topology of two topologies, which may differ in kind and be composed themselves.

        Raises:
            InputError: a member is not a topology, or both are the same.
        """
        super().__init__(name, {"primary": primary, "replica": replica}, opts)
        self.primary, self.replica = primary, replica
