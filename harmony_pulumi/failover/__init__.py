"""FailoverTopology: two topologies, one of which takes over from the other.

It provides every capability that both members provide and for which there is a derivation, in this folder or in any
other package. One line per derivation tells the type checkers; at run time the class is composed, so there is no list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harmony_pulumi.failover.base import Active, Failover
from harmony_pulumi.failover.docker import FailoverDocker
from harmony_pulumi.failover.postgresql import FailoverPostgreSQL
from harmony_pulumi.topologies.base import T

if TYPE_CHECKING:

    class FailoverTopology(FailoverPostgreSQL[T], FailoverDocker[T]):
        """A primary and a replica."""

else:

    class FailoverTopology(Failover[T]):
        """A primary and a replica: provides every capability that both provide and that has a derivation."""


__all__ = ["Active", "Failover", "FailoverDocker", "FailoverPostgreSQL", "FailoverTopology"]
