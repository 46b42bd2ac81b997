"""Failover: a primary and a replica. Knows no capability and no topology: derivations do."""

from __future__ import annotations

import pulumi

from harmony_pulumi.topologies.base import HigherOrderTopology, T


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
