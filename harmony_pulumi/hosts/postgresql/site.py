"""A PostgreSQL server on a host as orchestration sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.capabilities.site import Observation
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.connection import Connection, connect
from harmony_pulumi.hosts.postgresql import certificates, files
from harmony_pulumi.hosts.postgresql.home import Marker, os_user
from harmony_pulumi.hosts.postgresql.layout import Layout
from harmony_pulumi.hosts.postgresql.server import Server, choose_binaries

_CERTIFICATES = ("ca", "server", "replication", "source-client")
_LOOK = """
SELECT json_build_object(
  'role', CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE 'primary' END,
  'timeline', CASE WHEN pg_is_in_recovery()
    THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT timeline_id FROM pg_control_checkpoint()))
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
  'lsn', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
  'receiver', coalesce((SELECT status FROM pg_stat_wal_receiver), ''),
  'replayed_at', CASE WHEN pg_is_in_recovery()
    THEN coalesce(to_json(pg_last_xact_replay_timestamp())#>>'{}', '') ELSE '' END,
  'waits_for', CASE WHEN pg_is_in_recovery() THEN '' ELSE current_setting('synchronous_standby_names') END,
  'replicas', coalesce((SELECT json_agg(json_build_object(
      'name', application_name, 'state', state, 'sync_state', sync_state,
      'lag_bytes', coalesce(pg_wal_lsn_diff(sent.lsn, replay_lsn), 0)::bigint,
      'lag_seconds', coalesce(extract(epoch FROM replay_lag), 0),
      'tls', coalesce(ssl.version, ''), 'client', coalesce(ssl.client_dn, '')) ORDER BY application_name)
    FROM pg_stat_replication LEFT JOIN pg_stat_ssl ssl USING (pid)
    WHERE application_name <> 'pg_basebackup'), '[]'),
  'slots', coalesce((SELECT json_agg(json_build_object(
      'name', slot_name, 'active', active,
      'retained_bytes', coalesce(pg_wal_lsn_diff(sent.lsn, restart_lsn), 0)::bigint,
      'bound_bytes', (SELECT nullif(setting, '-1')::bigint * 1048576 FROM pg_settings
        WHERE name = 'max_slot_wal_keep_size'),
      'wal_status', coalesce(wal_status, '')) ORDER BY slot_name)
    FROM pg_replication_slots WHERE slot_type = 'physical'), '[]'))
FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END AS lsn) sent
"""


@dataclass(frozen=True)
class HostPostgreSQL:
    """One server on a host, by its handle."""

    handle: Mapping[str, Any]

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> HostPostgreSQL:
        """Make the site."""
        return cls(handle)

    def observe(self) -> Observation:
        """Look at the server."""
        name = str(self.handle["name"])
        try:
            connection = connect(self.handle["host"])
            marker = self._marker(connection)
        except SiteError as error:
            return _unseen(name, "unreachable", str(error))
        if marker is None:
            return _unseen(name, "absent", f"{connection.name} has no server of {self.handle['owner']} in {self._root}")
        try:
            server = self._server(connection, marker)
        except SiteError as error:
            return _unseen(name, "stopped", str(error))
        seen = _unseen(name, "stopped", f"no server process in {marker.data}")
        seen["endpoint"] = f"{self.handle['host']['address']}:{marker.port}"
        seen["version"] = server.binaries.version
        seen["system_identifier"] = marker.system_identifier
        seen["certificates"] = self._expiries(server)
        if server.running_pid() is not None:
            try:
                seen.update(server.look(_LOOK, port=marker.port))
                seen["state"], seen["detail"] = "running", ""
            except SiteError as error:  # It recovers from a crash, is out of connections, hangs: nothing is known.
                seen["state"], seen["detail"] = "unreachable", f"its process runs and does not answer: {error}"
        return seen

    def record(self, lines: str) -> None:
        """Append whole lines to the server's log of events."""
        server = self._existing()
        server.connection.append_file(server.layout.events, lines, user=server.user)

    def require_synchronous(self, replicas: list[str]) -> None:
        """Have commits wait for one of these replicas; with none, for nobody."""
        server = self._existing()
        names = ", ".join(files.quote_identifier(name) for name in replicas)
        settings = {"synchronous_standby_names": f"FIRST 1 ({names})"} if replicas else {}
        if server.write({f"{server.layout.config}/synchronous.conf": files.settings_config(settings)}):
            server.reload()

    def _existing(self) -> Server:
        connection = connect(self.handle["host"])
        marker = self._marker(connection)
        if marker is None:
            msg = f"{connection.name} has no server of {self.handle['owner']} in {self._root}"
            raise SiteError(msg)
        return self._server(connection, marker)

    @property
    def _root(self) -> str:
        return str(self.handle["root"])

    def _marker(self, connection: Connection) -> Marker | None:
        marker = Marker.read(connection, self._root, os_user(connection, self.handle["host"]))
        return marker if marker and marker.owner == self.handle["owner"] else None

    def _server(self, connection: Connection, marker: Marker) -> Server:
        user = os_user(connection, self.handle["host"])
        return Server(connection, Layout(self._root, marker.data), choose_binaries(connection, marker.major), user)

    def _expiries(self, server: Server) -> dict[str, str]:
        texts = server.read(server.layout.tls, [f"{name}.crt" for name in _CERTIFICATES])
        there = {name.removesuffix(".crt"): text for name, text in texts.items() if text}
        return {name: certificates.expires(text).isoformat() for name, text in there.items()}


def _unseen(name: str, state: str, detail: str) -> Observation:
    return {
        "name": name,
        "state": state,
        "detail": detail,
        "role": "",
        "endpoint": "",
        "version": "",
        "system_identifier": "",
        "timeline": 0,
        "lsn": "",
        "receiver": "",
        "replayed_at": "",
        "waits_for": "",
        "replicas": [],
        "slots": [],
        "certificates": {},
    }
