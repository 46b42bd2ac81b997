"""MirroredTopology: any number of members, the first of which is copied by all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pulumi

from acme_harmony.key_value import KeyValue, KeyValueConfig, KeyValueGroup, KeyValueStore, replicated
from harmony_pulumi import HigherOrderTopology
from harmony_pulumi.topologies.base import T


class Mirrored(HigherOrderTopology[T]):
    """What every derivation of a mirrored topology builds on."""

    def __init__(self, name: str, members: Sequence[T], opts: pulumi.ResourceOptions | None = None) -> None:
        """Compose a topology of one or more members."""
        super().__init__(name, {f"members.{index}": member for index, member in enumerate(members)}, opts)


@Mirrored.derive(KeyValue)
class MirroredKeyValue(Mirrored[T]):
    """Derives KeyValue."""

    def deploy_key_value(
        self: Mirrored[KeyValue], name: str, config: KeyValueConfig, *, source: KeyValueStore | None = None
    ) -> KeyValueGroup:
        """Deploy a store on the first member, and replicas of it on all others."""
        return replicated(name, config, self.members, source)


if TYPE_CHECKING:

    class MirroredTopology(MirroredKeyValue[T]):
        """One store that takes writes, and any number of copies."""

else:

    class MirroredTopology(Mirrored[T]):
        """One that takes writes, and any number of copies, of all that the members have in common."""
