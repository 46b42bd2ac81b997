"""A PgBouncer on a host as orchestration sees it: the endpoint of a pair."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.capabilities.endpoint_site import EndpointObservation
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.connection import connect
from harmony_pulumi.hosts.pgbouncer import files
from harmony_pulumi.hosts.pgbouncer.files import Layout
from harmony_pulumi.hosts.pgbouncer.pooler import Marker, Pooler
from harmony_pulumi.hosts.postgresql import certificates
from harmony_pulumi.hosts.postgresql.home import os_user
from harmony_pulumi.orchestration.journal import operator

_LOCK_DEADLINE = 15
"""Seconds. A deployment holds the lock while it restarts PgBouncer."""


def site_of(host: Mapping[str, Any], owner: str, root: str) -> dict[str, Any]:
    """Return the handle of an endpoint by its host, owner and folder."""
    return {
        "kind": "harmony_pulumi.hosts.pgbouncer.site:HostPgBouncer",
        "name": host["name"],
        "host": dict(host),
        "owner": owner,
        "root": root,
    }


def forward(pooler: Pooler, marker: Marker, server: Mapping[str, Any]) -> bool:
    """Write where to forward to from the next start or reload on, and tell whether that differs.

    Args:
        pooler: locked.
        marker: of it, which is changed.
        server: what `RoleSite.offer` of that server returns.
    """
    marker.server = {key: server["endpoint"][key] for key in ("host", "port")}
    return pooler.write(
        {
            pooler.layout.server_authority: server["certs"]["ca_certificate"],
            pooler.layout.databases: files.databases_config(marker.server),
            pooler.layout.marker: marker.text(),
        }
    )


@dataclass(frozen=True)
class HostPgBouncer:
    """One PgBouncer on a host, by its handle."""

    handle: Mapping[str, Any]

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> HostPgBouncer:
        """Make the site."""
        return cls(handle)

    def observe(self) -> EndpointObservation:
        """Look at the endpoint."""
        seen: EndpointObservation = {
            "name": str(self.handle["name"]),
            "state": "unreachable",
            "detail": "",
            "address": "",
            "points_to": "",
            "paused": False,
            "clients": 0,
            "waiting": 0,
            "certificates": {},
            "version": "",
        }
        try:
            self._look(seen)
        except SiteError as error:
            seen["state"], seen["detail"] = "unreachable", str(error)
        return seen

    def _look(self, seen: EndpointObservation) -> None:
        pooler, marker = self._found()
        if marker is None:
            seen["state"], seen["detail"] = "absent", self._absence(pooler)
            return
        kept = files.address_of(marker.server)
        seen["address"] = files.address_of({"host": self.handle["host"]["address"], "port": marker.port})
        seen["points_to"] = kept
        seen["certificates"] = self._expiries(pooler)
        if pooler.running_pid() is None:
            seen["state"], seen["detail"] = "stopped", f"no PgBouncer runs in {pooler.layout.root}"
            return
        seen["version"] = pooler.show("VERSION", marker.port)[0]["version"].removeprefix("PgBouncer ")
        databases = pooler.show("DATABASES", marker.port)
        # As it has it now: a run may have been cut off between writing its files and having it read them.
        forwards = {files.address_of(database) for database in databases if database["name"] != "pgbouncer"}
        seen["points_to"] = next(iter(sorted(forwards - {kept})), kept)
        pools = pooler.show("POOLS", marker.port)
        seen["clients"], seen["waiting"] = files.clients_of(pools), files.waiting_of(pools)
        seen["paused"] = pooler.is_paused()
        seen["state"] = "running"

    def _expiries(self, pooler: Pooler) -> dict[str, str]:
        paths = {name: f"{pooler.layout.tls}/{name}.crt" for name in ("ca", "server")}
        texts = pooler.connection.read_files([*paths.values()], pooler.user)
        there = {name: text for name, path in paths.items() if (text := texts[path]) and certificates.serial(text)}
        return {name: certificates.expires(text).isoformat() for name, text in there.items()}

    def pause(self, deadline: float) -> None:
        """Hold statements back: PgBouncer's PAUSE."""
        pooler, marker = self.existing()
        pooler.pause(marker.port, deadline)

    def point(self, server: Mapping[str, Any]) -> None:
        """Forward to another server from now on."""
        with self.alone(operator("an operation on roles")) as (pooler, marker):
            forward(pooler, marker, server)
            pooler.reload(marker)

    def resume(self) -> None:
        """Let statements go on: PgBouncer's RESUME. One that is stopped is started."""
        pooler, marker = self.existing()
        try:
            pooler.resume(marker.port)
        except SiteError:
            if pooler.running_pid() is not None:
                raise
            with self.alone(operator("an operation on roles")) as (pooler, marker):
                if pooler.running_pid() is None:  # Whoever held the lock may have started it.
                    pooler.start(marker.port)

    @contextmanager
    def alone(self, who: str) -> Generator[tuple[Pooler, Marker]]:
        """Keep every other operation on this endpoint out.

        Raises:
            SiteError: somebody else is at work on it, or it is not there.
        """
        pooler = self._pooler()
        with pooler.connection.holding(pooler.layout.lock, who=who, user=pooler.user, deadline=_LOCK_DEADLINE):
            yield self.existing()

    def existing(self) -> tuple[Pooler, Marker]:
        """Return the endpoint's PgBouncer and its marker.

        Raises:
            SiteError: it is not there.
        """
        pooler, marker = self._found()
        if marker is None:
            raise SiteError(self._absence(pooler))
        return pooler, marker

    def _pooler(self) -> Pooler:
        connection = connect(self.handle["host"])
        return Pooler(connection, Layout(str(self.handle["root"])), os_user(connection, self.handle["host"]))

    def _found(self) -> tuple[Pooler, Marker | None]:
        pooler = self._pooler()
        marker = Marker.read(pooler.connection, pooler.layout.root, pooler.user)
        return pooler, marker if marker and marker.owner == self.handle["owner"] else None

    def _absence(self, pooler: Pooler) -> str:
        return f"{pooler.connection.name} has no endpoint of {self.handle['owner']} in {pooler.layout.root}"
