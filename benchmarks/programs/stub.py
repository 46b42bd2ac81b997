"""Pairs of a stub capability, made the way that this package's own are: topology, capability, failover derivation."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource

from harmony_pulumi import Capability, FailoverTopology, Topology
from harmony_pulumi.failover import Failover
from harmony_pulumi.providers.base import Provider, clean_errors, plain
from harmony_pulumi.topologies.base import T


class StubProvider(Provider):
    """Makes nothing."""

    @clean_errors
    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        old, new = plain(_olds), plain(_news)
        return DiffResult(changes=any(old.get(key) != value for key, value in new.items()))

    @clean_errors
    def create(self, props: dict[str, Any]) -> CreateResult:
        props = plain(props)
        return CreateResult(props["name"], {**props, "endpoint": f"{props['name']}:{props['size']}"})


class StubServer(Resource, module="stub", name="Server"):
    endpoint: pulumi.Output[str]

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(StubProvider(), name, {"endpoint": None, **props}, opts)


class StubPair(Resource, module="stub", name="Pair"):
    endpoint: pulumi.Output[str]

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(StubProvider(), name, {"endpoint": None, **props}, opts)


@runtime_checkable
class Stub(Capability, Protocol):
    """Deploys stubs."""

    @abstractmethod
    def deploy_stub(self, name: str, size: int, source: StubServer | None = None) -> StubServer:
        """Deploy a stub, or a copy of one."""


class StubTopology(Topology, Stub):
    """Where stubs run."""

    def deploy_stub(self, name: str, size: int, source: StubServer | None = None) -> StubServer:
        return StubServer(
            f"{self.name}-{name}",
            {"name": name, "size": size, "source": source.endpoint if source else None},
            pulumi.ResourceOptions(parent=self),
        )


@Failover.derive(Stub)
class FailoverStub(Failover[T]):
    """Derives stubs."""

    def deploy_stub(self: Failover[Stub], name: str, size: int) -> StubPair:
        primary = self.primary.deploy_stub(name, size)
        replica = self.replica.deploy_stub(name, size, primary)
        return StubPair(
            f"{self.name}-{name}",
            {
                "name": name,
                "size": size,
                "members": {"primary": primary.endpoint, "replica": replica.endpoint},
                "active": "primary",
            },
            pulumi.ResourceOptions(parent=self, depends_on=[primary, replica]),
        )


if TYPE_CHECKING:

    class StubFailoverTopology(FailoverStub[T]):
        """What a checker sees of `FailoverTopology`, with this derivation."""

else:
    StubFailoverTopology = FailoverTopology


def deploy() -> None:
    """Declare as many pairs as `BENCHMARK_PAIRS` says."""
    for number in range(int(os.environ["BENCHMARK_PAIRS"])):
        primary, replica = StubTopology(f"primary-{number}"), StubTopology(f"replica-{number}")
        pair = StubFailoverTopology(f"pair-{number}", primary=primary, replica=replica)
        pair.deploy_stub("stub", number)
