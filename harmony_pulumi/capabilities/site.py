"""Sites: one deployed instance as orchestration sees it, made from a serialisable handle."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, TypedDict

from harmony_pulumi.errors import SiteError


class Replica(TypedDict):
    """A replica, as its source sees it."""

    name: str
    state: str
    """`streaming` once it has caught up."""
    sync_state: str
    """`sync` if commits wait for it."""
    lag_bytes: int
    """WAL that it has not replayed yet."""
    lag_seconds: float
    """How old the last commit was when it replayed it."""
    tls: str
    """For instance `TLSv1.3`."""
    client: str
    """The subject of its certificate."""


class Slot(TypedDict):
    """A physical replication slot."""

    name: str
    active: bool
    retained_bytes: int
    """WAL that it keeps."""
    bound_bytes: int | None
    """How much it may keep (`max_slot_wal_keep_size`); beyond it, its replica must be cloned again. None: no bound."""
    wal_status: str
    """`reserved`, `extended`, `unreserved` or `lost`: PostgreSQL, "pg_replication_slots"."""


class Observation(TypedDict):
    """What was seen of one server."""

    name: str
    state: str
    """`running`, `stopped`, `absent` or `unreachable`."""
    detail: str
    """Why, if it does not run."""
    role: str
    """`primary` or `standby`; empty if it does not run."""
    endpoint: str
    version: str
    system_identifier: str
    timeline: int
    lsn: str
    """Written, on a primary; replayed, on a standby."""
    receiver: str
    """On a standby: the state of its connection to the source."""
    replayed_at: str
    """On a standby: when the last transaction that it replayed was committed, ISO 8601; empty if it replayed none."""
    waits_for: str
    """On a primary: the replicas that commits wait for (`synchronous_standby_names`); empty if for nobody."""
    replicas: list[Replica]
    slots: list[Slot]
    certificates: dict[str, str]
    """When each expires, ISO 8601, by the name of its file."""


class PostgreSQLSite(Protocol):
    """What orchestration can do with one deployed server."""

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> PostgreSQLSite:
        """Make the site from its handle."""
        ...

    def observe(self) -> Observation:
        """Look at the server. Must not raise for one that is stopped, absent or unreachable, but say so."""
        ...

    def record(self, lines: str) -> None:
        """Append whole lines to the site's log of events."""
        ...

    def require_synchronous(self, replicas: list[str]) -> None:
        """Have commits on this primary wait for one of these replicas; with none, for nobody."""
        ...


def load_site(handle: Mapping[str, Any]) -> PostgreSQLSite:
    """Return the site of a handle, whose `kind` is `module:class` of a `PostgreSQLSite`.

    Raises:
        SiteError: there is no such class here.
    """
    module, _, name = str(handle["kind"]).partition(":")
    try:
        site: type[PostgreSQLSite] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        msg = (
            f"the site {handle.get('name', '?')!r} is a {handle['kind']}, which is not installed here ({error}); "
            f"install the package that deployed it"
        )
        raise SiteError(msg) from error
    return site.from_handle(handle)
