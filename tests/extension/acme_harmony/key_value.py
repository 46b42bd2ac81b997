"""The KeyValue capability: runs key-value stores that speak Redis's protocol. Knows no topology."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import pulumi
from pydantic import Field

from harmony_pulumi import Capability
from harmony_pulumi.capabilities.config import Config
from harmony_pulumi.capabilities.postgresql import Endpoint


class KeyValueConfig(Config):
    """What a key-value store is to be."""

    directory: str
    """The folder in which each member keeps its data, in a folder of its own."""
    max_memory_mb: Annotated[int, Field(ge=1)] = 64


@dataclass(frozen=True)
class KeyValueStore:
    """What a deployment returns."""

    name: str
    endpoint: pulumi.Output[Endpoint]
    password: pulumi.Output[str]
    """Secret; the same for a store and its replicas."""
    resource: pulumi.Resource
    """What to depend on."""


@dataclass(frozen=True)
class KeyValueGroup(KeyValueStore):
    """A store and its replicas; as a store, it is the one that takes writes."""

    members: Mapping[str, KeyValueStore]


@runtime_checkable
class KeyValue(Capability, Protocol):
    """Runs key-value stores."""

    @abstractmethod
    def deploy_key_value(
        self, name: str, config: KeyValueConfig, *, source: KeyValueStore | None = None
    ) -> KeyValueStore:
        """Deploy a store, or a replica of `source`."""


def replicated(
    name: str, config: KeyValueConfig, members: Mapping[str, KeyValue], source: KeyValueStore | None
) -> KeyValueGroup:
    """Deploy a store on the first member, and replicas of it on the others."""
    (role, first), *others = members.items()
    stores = {role: first.deploy_key_value(name, config, source=source)}
    primary = stores[role]
    stores.update({other: member.deploy_key_value(name, config, source=primary) for other, member in others})
    return KeyValueGroup(name, primary.endpoint, primary.password, primary.resource, stores)
