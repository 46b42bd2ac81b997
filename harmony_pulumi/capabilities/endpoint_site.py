"""What orchestration can do with a deployed endpoint, beside `endpoint`, which deploys it. Knows no topology."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypedDict, runtime_checkable

from harmony_pulumi.capabilities.site import load_site
from harmony_pulumi.errors import SiteError


class EndpointObservation(TypedDict):
    """What was seen of one endpoint."""

    name: str
    state: str
    """`running`, `stopped`, `absent` or `unreachable`."""
    detail: str
    """Why, if it does not run."""
    address: str
    """Where clients connect, `host:port`; empty if that is not known."""
    points_to: str
    """The server that it forwards to, or would once it is started, `host:port`; empty if that is not known."""
    paused: bool
    """Whether it was told to hold statements back, and not yet to let them go on."""
    clients: int
    """How many are connected."""
    waiting: int
    """How many of them wait for a statement to be forwarded."""
    certificates: Mapping[str, str]
    """When `ca` and `server` expire, ISO 8601."""
    version: str
    """Of what forwards, for instance `1.18.0`."""


@runtime_checkable
class EndpointSite(Protocol):
    """What orchestration can do with one deployed endpoint. Each act may be cut off anywhere and called again.

    One that is stopped lets nobody through, so it counts as paused; it can be pointed, and `resume` starts it.
    """

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> EndpointSite:
        """Make the site from its handle."""
        ...

    def observe(self) -> EndpointObservation:
        """Look at the endpoint. Must not raise for one that is stopped, absent or unreachable, but say so."""
        ...

    def pause(self, deadline: float) -> None:
        """Hold new statements back, and return once no transaction is at work: it then has no server connection left.

        Clients stay connected and wait.

        Args:
            deadline: seconds to wait for transactions that are at work.

        Raises:
            SiteError: some were still at work after that, and the endpoint was resumed, whoever paused it; or it
                cannot be asked, and nothing is known.
        """
        ...

    def point(self, server: Mapping[str, Any]) -> None:
        """Forward to another server from now on, also after a restart. Does not resume.

        No connection to a server before remains: clients with a transaction at work on one are disconnected.

        Args:
            server: what `RoleSite.offer` of that server returns; only its `endpoint` and `certs.ca_certificate` are
                used.

        Raises:
            SiteError: it cannot be told; what it forwards to is then not known.
        """
        ...

    def resume(self) -> None:
        """Let statements go on. One that was not paused stays as it is.

        Raises:
            SiteError: it cannot be told, or does not start.
        """
        ...


def load_endpoint(handle: Mapping[str, Any]) -> EndpointSite:
    """Return the endpoint of a handle.

    Raises:
        SiteError: its class is not installed here, or is not an endpoint's.
    """
    site: object = load_site(handle)
    if not isinstance(site, EndpointSite):
        msg = f"{handle.get('name', '?')!r} is a {type(site).__name__}, and was to be an endpoint"
        raise SiteError(msg)
    return site
