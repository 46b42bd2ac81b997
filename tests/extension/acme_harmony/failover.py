"""How failover gets KeyValue from its members."""

from __future__ import annotations

from typing import TYPE_CHECKING

import harmony_pulumi
from acme_harmony.key_value import KeyValue, KeyValueConfig, KeyValueGroup, KeyValueStore, replicated
from harmony_pulumi.failover import Failover
from harmony_pulumi.topologies.base import T


@harmony_pulumi.FailoverTopology.derive(KeyValue)
class FailoverKeyValue(Failover[T]):
    """Derives KeyValue."""

    def deploy_key_value(
        self: Failover[KeyValue], name: str, config: KeyValueConfig, *, source: KeyValueStore | None = None
    ) -> KeyValueGroup:
        """Deploy a store on the primary, and a replica of it on the replica."""
        return replicated(name, config, self.members, source)


if TYPE_CHECKING:

    class FailoverTopology(harmony_pulumi.FailoverTopology[T], FailoverKeyValue[T]):
        """harmony's own, for type checkers: they are told of KeyValue, too."""

else:
    FailoverTopology = harmony_pulumi.FailoverTopology
