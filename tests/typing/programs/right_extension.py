# pyright: strict
"""A third party: a capability, its derivations, a topology, and a higher-order topology of any number of members."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, assert_type, runtime_checkable

from places import Host

from harmony_pulumi import Capability, FailoverTopology, HigherOrderTopology, PostgreSQLConfig, PostgreSQLPair, Topology
from harmony_pulumi.failover import Failover

T = TypeVar("T", bound=Capability, covariant=True)


@runtime_checkable
class Mailbox(Capability, Protocol):
    """Keeps mail."""

    @abstractmethod
    def deploy_mailbox(self, name: str) -> str:
        """Deploy a mailbox and return its address."""


class Post(Topology, Mailbox):
    """Provides mailboxes."""

    def deploy_mailbox(self, name: str) -> str:
        return f"{name}@{self.name}"


class HostWithPost(Host, Mailbox):
    """Provides all there is."""

    def deploy_mailbox(self, name: str) -> str:
        return f"{name}@{self.name}"


@FailoverTopology.derive(Mailbox)
class FailoverMailbox(Failover[T]):
    """Derives mailboxes."""

    def deploy_mailbox(self: Failover[Mailbox], name: str) -> str:
        self.replica.deploy_mailbox(name)
        return self.primary.deploy_mailbox(name)


if TYPE_CHECKING:

    class AcmeFailover(FailoverTopology[T], FailoverMailbox[T]):
        """Failover that can do mailboxes, too."""

else:
    AcmeFailover = FailoverTopology


class Ring(HigherOrderTopology[T]):
    """Any number of members."""

    def __init__(self, name: str, stations: Sequence[T]) -> None:
        super().__init__(name, {str(index): station for index, station in enumerate(stations)})


@Ring.derive(Mailbox)
class RingMailbox(Ring[T]):
    """Derives mailboxes."""

    def deploy_mailbox(self: Ring[Mailbox], name: str) -> str:
        return " ".join(member.deploy_mailbox(name) for member in self.members.values())


if TYPE_CHECKING:

    class RingTopology(RingMailbox[T]):
        """Any number of members."""

else:
    RingTopology = Ring


pair = AcmeFailover("pair", primary=HostWithPost("a"), replica=HostWithPost("b"))
assert_type(pair.deploy_mailbox("m"), str)
assert_type(pair.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"])), PostgreSQLPair)
mixed: AcmeFailover[Mailbox] = AcmeFailover("mixed", primary=HostWithPost("c"), replica=Post("d"))
assert_type(mixed.deploy_mailbox("m"), str)

ring = RingTopology("ring", [Post("e"), Post("f"), Post("g")])
assert_type(ring, RingTopology[Post])
assert_type(ring.deploy_mailbox("m"), str)
varied: RingTopology[Mailbox] = RingTopology("varied", [Post("h"), HostWithPost("i"), ring])
assert_type(varied.deploy_mailbox("m"), str)


def needs_mailbox(topology: Mailbox) -> None:
    topology.deploy_mailbox("m")


needs_mailbox(ring)
needs_mailbox(varied)
needs_mailbox(AcmeFailover("nested", primary=ring, replica=varied))

ring.deploy_docker("web")  # expect: all
RingTopology("wrong", ["h", "i"])  # expect: all
pair_of_posts = AcmeFailover("posts", primary=Post("j"), replica=Post("k"))
pair_of_posts.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))  # expect: all
mixed.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))  # expect: all
FailoverTopology("plain", primary=Post("l"), replica=Post("n")).deploy_mailbox("m")  # expect: all
