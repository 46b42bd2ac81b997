"""A peer of a server that is on no host, as that server knows it: it cannot be asked from there.

To ask it takes what a host is not given: the login of a Kubernetes cluster, say. Orchestration has its own site for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.capabilities.site import Observation, unseen
from harmony_pulumi.errors import UnreachableError
from harmony_pulumi.hosts.postgresql.layout import slot_name


def handle_of_elsewhere(home: Mapping[str, Any]) -> dict[str, Any]:
    """Return the handle of a peer by its home."""
    return {
        "kind": "harmony_pulumi.hosts.postgresql.elsewhere:Elsewhere",
        "name": home["name"],
        "owner": home["owner"],
        "slot": slot_name(home["owner"]),
    }


@dataclass(frozen=True)
class Elsewhere:
    """A peer that is silent: whoever starts by itself counts it as one that may have been made active."""

    handle: Mapping[str, Any]

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> Elsewhere:
        """Make the site."""
        return cls(handle)

    def observe(self) -> Observation:
        """Say that it cannot be asked."""
        return unseen(str(self.handle["name"]), "unreachable", self._why)

    def record(self, lines: str) -> None:
        """Refuse."""
        raise UnreachableError(f"{self.handle['name']}: {self._why}: {len(lines)} characters of events are not kept")

    def require_synchronous(self, replicas: list[str]) -> None:
        """Refuse."""
        raise UnreachableError(f"{self.handle['name']}: {self._why}: it is not told of {', '.join(replicas)}")

    @property
    def _why(self) -> str:
        return "it is on no host, and this host has no login to where it is"
