"""A site that says what its handle tells it to, for what no real server can be brought to say at will."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from harmony_pulumi.errors import SiteError


class ScriptedSite:
    def __init__(self, handle: Mapping[str, Any]) -> None:
        self.handle = handle

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> ScriptedSite:
        return cls(handle)

    def observe(self) -> Any:
        if "raises" in self.handle:
            raise SiteError(self.handle["raises"])
        if self.handle.get("hangs"):
            threading.Event().wait(60)
        return self.handle["seen"]


def seen(name: str, role: str = "primary", **changes: Any) -> dict[str, Any]:
    """Return the observation of a running server."""
    return {
        "name": name,
        "state": "running",
        "detail": "",
        "role": role,
        "endpoint": f"{name}.example:5432",
        "version": "17.2",
        "system_identifier": "7000000000000000001",
        "timeline": 1,
        "lsn": "0/3000148",
        "receiver": "streaming" if role == "standby" else "",
        "replayed_at": "2030-01-01T11:59:30+00:00" if role == "standby" else "",
        "waits_for": "",
        "replicas": [],
        "slots": [],
        "certificates": {"server": "2030-12-01T12:00:00+00:00"},
        **changes,
    }


class ScriptedEndpoint(ScriptedSite):
    def pause(self, deadline: float) -> None: ...
    def point(self, server: Mapping[str, Any]) -> None: ...
    def resume(self) -> None: ...


def endpoint(name: str, **changes: Any) -> dict[str, Any]:
    """Return the observation of a running endpoint that leads to montreal."""
    return {
        "name": name,
        "state": "running",
        "detail": "",
        "address": f"{name}.example:6432",
        "points_to": "montreal.example:5432",
        "paused": False,
        "clients": 3,
        "waiting": 1,
        "certificates": {"ca": "2039-01-01T12:00:00+00:00", "server": "2030-12-01T12:00:00+00:00"},
        "version": "1.25.0",
        **changes,
    }


def replica(name: str, **changes: Any) -> dict[str, Any]:
    """Return a replica as its source sees it."""
    lag = {"lag_bytes": 2048, "lag_seconds": 0.25}
    secured = {"tls": "TLSv1.3", "client": "/CN=harmony_replication"}
    return {"name": name, "state": "streaming", "sync_state": "async", **lag, **secured, **changes}


def slot(name: str, **changes: Any) -> dict[str, Any]:
    """Return a slot that is in use."""
    kept = {"retained_bytes": 0, "bound_bytes": 10 * 2**30}
    return {"name": name, "active": True, **kept, "wal_status": "reserved", **changes}
