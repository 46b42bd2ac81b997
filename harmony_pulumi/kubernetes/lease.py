"""A lock on a cluster that outlives no process for long: a Lease that is renewed as long as somebody is at work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from harmony_pulumi.errors import SiteError
from harmony_pulumi.kubernetes import objects
from harmony_pulumi.kubernetes.api import Api, ConflictError

SECONDS = 12
"""For which a lease is held after it was last renewed."""
_RENEW_SECONDS = 3
_LOOK_SECONDS = 0.25
# On Linux the other one stands still while the machine sleeps, and the lease does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Return seconds by a clock that goes on while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


@dataclass
class Held:
    """A lease that is held. It is lost where the API server cannot be reached for as long as it lasts."""

    where: str
    renewed: float = field(default_factory=now)
    taken: bool = False
    """Whether somebody else was seen to have it."""

    def insist(self) -> None:
        """Refuse to act once somebody else may have taken the lease.

        Raises:
            SiteError: it could not be renewed for too long, or somebody else has taken it.
        """
        left = SECONDS - _RENEW_SECONDS - (now() - self.renewed)
        if self.taken or left < 0:
            msg = (
                f"{self.where}: the lock could not be renewed in time, and somebody else may be at work; run this again"
            )
            raise SiteError(msg)


def expired(before: Mapping[str, Any] | None, now: Mapping[str, Any], since: float) -> bool:
    """Tell whether a lease is nobody's any more, by our clock alone: it has not changed for as long as it lasts.

    Args:
        before: its `spec` as it was when `since` began; None if it was not looked at before.
        now: its `spec`.
        since: for how many seconds it has been so.
    """
    if not now.get("holderIdentity"):
        return True
    return before == now and since > float(now.get("leaseDurationSeconds") or SECONDS)


@contextmanager
def held(api: Api, namespace: str, cluster: str, owner: str, who: str, *, deadline: float) -> Generator[Held]:
    """Hold the lease of a PostgreSQL cluster until the block ends, or this process dies and it expires.

    Args:
        api: of the cluster.
        namespace: where the lease is; it is made if it is not there.
        cluster: whose one operation at a time it is for.
        owner: whose it is.
        who: holds it, for others to read.
        deadline: seconds to wait for somebody else who renews it.

    Raises:
        SiteError: somebody else holds it; the message says who.
        UnreachableError: the API server does not answer.
    """
    name = f"{cluster}-operation"
    folder = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    token = f"{who} #{time.monotonic_ns():x}"
    _take(api, folder, objects.metadata(name, namespace, owner), token, deadline)
    lock, ended = Held(f"{api.name}: {namespace}/{name}"), threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_SECONDS):
            began = now()
            with suppress(SiteError):  # Whoever acts is told by `insist`.
                if not _write(
                    api, folder, name, lambda spec: _spec(token) if spec.get("holderIdentity") == token else None
                ):
                    lock.taken = True
                    return
                lock.renewed = began

    thread = threading.Thread(target=renew, name=f"renew {name}", daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        ended.set()
        thread.join()
        with suppress(SiteError):  # It expires by itself.
            _write(
                api, folder, name, lambda spec: {"holderIdentity": ""} if spec.get("holderIdentity") == token else None
            )


def _take(api: Api, folder: str, about: Mapping[str, Any], token: str, deadline: float) -> None:
    began = changed = time.monotonic()
    before: Mapping[str, Any] | None = None
    path = f"{folder}/{about['name']}"
    while True:
        found = api.get(path)
        try:
            if found is None:
                lease = {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": about,
                    "spec": _spec(token),
                }
                api.create(folder, lease)
                return
            spec = found.get("spec") or {}
            if before != spec:
                before, changed = spec, time.monotonic()
            # Our own, if what answered our first try was lost on its way.
            if spec.get("holderIdentity") == token or expired(before, spec, time.monotonic() - changed):
                api.replace(path, {**found, "spec": _spec(token)})
                return
        except ConflictError:
            continue
        renewing = changed > began + _LOOK_SECONDS
        if time.monotonic() > began + (deadline if renewing else max(deadline, SECONDS + 2 * _RENEW_SECONDS)):
            holder = str(spec.get("holderIdentity")).rpartition(" #")[0]
            where = f"{about['namespace']}/{about['name']}"
            msg = f"{api.name}: {holder} is at work on {where}; try again once that has ended"
            raise SiteError(msg)
        time.sleep(_LOOK_SECONDS)


def _write(api: Api, folder: str, name: str, changed: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]) -> bool:
    """Change a lease as long as it is ours; return whether it is."""
    path = f"{folder}/{name}"
    while True:
        found = api.get(path)
        spec = None if found is None else changed(found.get("spec") or {})
        if found is None or spec is None:
            return False
        try:
            api.replace(path, {**found, "spec": spec})
        except ConflictError:
            continue
        return True


def _spec(token: str) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"holderIdentity": token, "leaseDurationSeconds": SECONDS, "acquireTime": now, "renewTime": now}
