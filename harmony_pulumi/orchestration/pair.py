"""A pair as a site: it offers what a server offers, through its active member, so that pairs nest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.capabilities.endpoint import load_endpoint
from harmony_pulumi.capabilities.site import Observation, PostgreSQLSite, load_site
from harmony_pulumi.orchestration.members import Pair
from harmony_pulumi.orchestration.replication import members_of

KIND = "harmony_pulumi.orchestration.pair:PairSite"


def pair_of(handle: Mapping[str, Any]) -> Pair:
    """Return the pair of a handle, for the runner."""
    return Pair(
        id=str(handle["pair"]),
        name=str(handle["name"]),
        members=members_of(handle["members"]),
        synchronous=bool(handle["synchronous"]),
        deadline=float(handle["deadline"]),
        fence_commands=handle.get("fence_commands") or {},
        endpoints={str(endpoint["name"]): load_endpoint(endpoint) for endpoint in handle.get("endpoints") or ()},
    )


def has_roles(handle: Mapping[str, Any]) -> bool:
    """Tell whether roles can move in a pair: it is one of servers, and follows no other cluster."""
    return (
        "pair" in handle
        and not handle.get("follows")
        and all("members" not in member for member in handle["members"].values())
    )


@dataclass(frozen=True)
class PairSite:
    """A pair of PostgreSQL clusters, by its handle: `members` by role, and the `active` role."""

    handle: Mapping[str, Any]

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> PairSite:
        """Make the site."""
        return cls(handle)

    @property
    def _leader(self) -> PostgreSQLSite:
        return load_site(self.handle["members"][self.handle["active"]])

    def observe(self) -> Observation:
        """Look at the active member."""
        return self._leader.observe()

    def record(self, lines: str) -> None:
        """Append lines to the active member's log of events."""
        self._leader.record(lines)

    def require_synchronous(self, replicas: list[str]) -> None:
        """Have commits on the active member wait for one of these replicas."""
        self._leader.require_synchronous(replicas)
