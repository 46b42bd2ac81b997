"""The endpoints of a pair as a program declares them: what is registered, and what is refused before that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pulumi
import pytest

from harmony_pulumi import EndpointConfig, FailoverTopology, InputError, LinuxHostTopology, PostgreSQLConfig
from harmony_pulumi.capabilities.postgresql import uri

CONFIG = PostgreSQLConfig(databases=["orders"])


class Mocks(pulumi.runtime.Mocks):
    """Remembers what is registered."""

    def __init__(self) -> None:
        self.registered: dict[str, Any] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        self.registered[args.name] = args.inputs
        return args.name, {**args.inputs, "endpoint": {"host": args.name, "port": 1}, "ca_certificate": args.name}

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], None]:
        return {}, None


@pytest.fixture
def mocks() -> Mocks:
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="shop", stack="dev", preview=False)
    return mocks


def pair(**options: Any) -> FailoverTopology[LinuxHostTopology]:
    first, second = LinuxHostTopology("montreal", **options), LinuxHostTopology("toronto", **options)
    return FailoverTopology("orders", primary=first, replica=second)


def refused(program: Callable[[], object]) -> list[str]:
    with pytest.raises(InputError) as caught:
        program()
    return [str(problem) for problem in caught.value.problems]


def test_problems_of_endpoints_are_found_together_and_nothing_is_registered(mocks: Mocks) -> None:
    def program() -> None:
        kingston = LinuxHostTopology("kingston")
        pair().deploy_postgresql(
            "orders",
            PostgreSQLConfig(databases=["orders"], members={"montreal": {"port": 6000}}),  # type: ignore[dict-item]
            endpoints=[EndpointConfig(on=kingston, port=6432), EndpointConfig(on=kingston, port=6000)],
        )

    found = refused(program)
    assert "endpoints.1.on: 'kingston' has endpoints.0 already; give each endpoint a topology of its own" in found
    assert [line for line in found if line.startswith("endpoints.1.port: two members")]
    assert not [name for name in mocks.registered if "orders" in name and name != "orders"]


@pytest.mark.parametrize(
    ("field", "value"), [("port", 80), ("pool_size", 0), ("max_clients", 0), ("directory", "here"), ("color", "red")]
)
def test_values_that_cannot_be_right_are_refused(mocks: Mocks, field: str, value: object) -> None:
    (problem,) = refused(lambda: EndpointConfig(on=LinuxHostTopology("kingston"), **cast("Any", {field: value})))
    assert problem.startswith(f"{field}: ")


def test_only_a_topology_that_can_run_an_endpoint_is_taken(mocks: Mocks) -> None:
    for other in (pair(), "kingston"):
        (problem,) = refused(lambda other=other: EndpointConfig(on=cast("Any", other)))  # type: ignore[misc]
        assert problem.startswith("on: ")
        assert problem.endswith("cannot run an endpoint; expected a topology that can, such as LinuxHostTopology")


def test_any_of_several_endpoints_will_do() -> None:
    both: Any = [{"host": "a", "port": 1}, {"host": "::1", "port": 2}]
    assert uri(both, "orders", "o", "p", alike=True) == "postgresql://o:p@a:1,[::1]:2/orders?sslmode=verify-full"
    assert uri(both, "orders", "o", "p").endswith("&target_session_attrs=read-write")
    both[1]["direct"] = True
    assert uri(both, "orders", "o", "p").endswith("&sslnegotiation=direct&target_session_attrs=read-write")
