"""What `stub` deploys, written with Pulumi alone: the same components, dynamic resources, properties and edges.

Its provider is in a module, thus in the state by reference, and in the clear, as this package's are: what is measured
is what the package adds, not what these two choices save.
"""

from __future__ import annotations

import os
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, Resource, ResourceProvider


class PlainProvider(ResourceProvider):
    """Makes nothing."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(props["name"], {**props, "endpoint": f"{props['name']}:{props['size']:g}"})


class PlainServer(Resource, module="plain", name="Server"):
    endpoint: pulumi.Output[str]

    def __init__(self, name: str, props: dict[str, Any], opts: pulumi.ResourceOptions) -> None:
        super().__init__(PlainProvider(), name, {"endpoint": None, **props}, opts)


class PlainPair(Resource, module="plain", name="Pair"):
    endpoint: pulumi.Output[str]

    def __init__(self, name: str, props: dict[str, Any], opts: pulumi.ResourceOptions) -> None:
        super().__init__(PlainProvider(), name, {"endpoint": None, **props}, opts)


class PlainHost(pulumi.ComponentResource):
    def __init__(self, name: str) -> None:
        super().__init__("plain:index:PlainHost", name)
        self.register_outputs({})


class PlainFailover(pulumi.ComponentResource):
    def __init__(self, name: str) -> None:
        super().__init__("plain:index:PlainFailover", name)
        self.register_outputs({})


def deploy() -> None:
    """Declare as many pairs as `BENCHMARK_PAIRS` says."""
    for number in range(int(os.environ["BENCHMARK_PAIRS"])):
        hosts = PlainHost(f"primary-{number}"), PlainHost(f"replica-{number}")
        failover = PlainFailover(f"pair-{number}")
        primary = PlainServer(
            f"primary-{number}-stub",
            {"name": "stub", "size": number, "source": None},
            pulumi.ResourceOptions(parent=hosts[0]),
        )
        replica = PlainServer(
            f"replica-{number}-stub",
            {"name": "stub", "size": number, "source": primary.endpoint},
            pulumi.ResourceOptions(parent=hosts[1]),
        )
        PlainPair(
            f"pair-{number}-stub",
            {
                "name": "stub",
                "size": number,
                "members": {"primary": primary.endpoint, "replica": replica.endpoint},
                "active": "primary",
            },
            pulumi.ResourceOptions(parent=failover, depends_on=[primary, replica]),
        )
