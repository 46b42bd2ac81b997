"""A PostgreSQL server on a host as orchestration sees it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from harmony_pulumi.capabilities.addresses import address
from harmony_pulumi.capabilities.postgresql_facts import FIRST_WITH_FAILOVER_SLOTS, REPLICATION_ROLE
from harmony_pulumi.capabilities.site import (
    Beyond,
    Certificates,
    Fork,
    Observation,
    Rejoining,
    Roles,
    Rotation,
    Survey,
    Token,
    load_site,
    unseen,
)
from harmony_pulumi.errors import SiteError, UnlockableError, UnreachableError
from harmony_pulumi.hosts.connection import Connection, connect
from harmony_pulumi.hosts.logs import recorded, recording
from harmony_pulumi.hosts.postgresql import certificates, files, queries, renewal, wal
from harmony_pulumi.hosts.postgresql.following import why_it_cannot_follow
from harmony_pulumi.hosts.postgresql.home import Marker, os_user
from harmony_pulumi.hosts.postgresql.instance import Session, echo, insist_on_token, survey
from harmony_pulumi.hosts.postgresql.layout import Layout, slot_name
from harmony_pulumi.hosts.postgresql.rejoining import Comeback, stop
from harmony_pulumi.hosts.postgresql.roles import read_roles, refusal
from harmony_pulumi.hosts.postgresql.server import Binaries, Server, choose_binaries
from harmony_pulumi.orchestration.roles import leads, levels
from harmony_pulumi.orchestration.wait import wait_for

_CERTIFICATES = ("ca", "server", "replication", "source-client")
_ISSUED = ("server", "replication")
"""Those that a server's own authority has signed."""
_STATE, _ENDED_CLEANLY = "Database cluster state", "shut down"
_LOCK_DEADLINE = 5
"""Seconds. Who waits longer than this is told who is at work."""
_STOP_DEADLINE = _START_DEADLINE = 120
_PROMOTE_DEADLINE = 60


def site_of(host: Mapping[str, Any], owner: str, root: str) -> dict[str, Any]:
    """Return the handle of a server by its host, owner and folder."""
    return {
        "kind": "harmony_pulumi.hosts.postgresql.site:HostPostgreSQL",
        "name": host["name"],
        "host": dict(host),
        "owner": owner,
        "root": root,
        "slot": slot_name(owner),
    }


@dataclass
class _Held:
    """What is known of a server while it is locked."""

    server: Server
    marker: Marker
    roles: Roles | None
    """What its site was told."""
    session: Session
    """With a member that is about to take over: no time is lost by connecting."""


def _refuse_if_it_runs(server: Server, error: SiteError) -> None:
    """Refuse to have a server count as one that cannot be locked, which may be passed by, while it runs."""
    if pid := server.running_pid():
        msg = f"{error}. Its server runs, as process {pid}, and may take writes: stop that one first"
        raise SiteError(msg) from error


@dataclass(frozen=True)
class HostPostgreSQL:
    """One server on a host, by its handle."""

    handle: Mapping[str, Any]
    _held: list[_Held] = field(default_factory=list["_Held"], repr=False)
    """What was found as the lock was taken, which nobody else changes until it is let go: clients wait meanwhile."""
    _chosen: dict[int, Binaries] = field(default_factory=dict[int, Binaries], repr=False)
    """The PostgreSQL that was found, by major: to look for it starts every one that is installed."""

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
            return unseen(name, "unreachable", str(error))
        if marker is None:
            return unseen(name, "absent", f"{connection.name} has no server of {self.handle['owner']} in {self._root}")
        seen = unseen(name, "stopped", f"no server process in {marker.data}")
        seen["endpoint"] = address(self.handle["host"]["address"], marker.port)
        seen["system_identifier"] = marker.system_identifier
        try:
            self._look(connection, marker, seen)
        except SiteError as error:
            seen["state"], seen["detail"] = "unreachable", str(error)
        return seen

    def _look(self, connection: Connection, marker: Marker, seen: Observation) -> None:
        """Fill in what is to be seen of a server that is there."""
        user = os_user(connection, self.handle["host"])
        layout = Layout(self._root, marker.data)
        seen["roles"] = read_roles(connection, layout.roles, user)
        running = self._bare(connection, marker).running_pid() is not None
        try:
            server = self._server(connection, marker)
        except SiteError as error:
            # Whether one that runs accepts writes is not known, and one that is stopped cannot be started here.
            seen["state"], seen["detail"] = "unreachable" if running else "stopped", str(error)
            return
        seen["version"] = server.binaries.version
        seen["certificates"], seen["flaws"] = self._own_certificates(server)
        if running:
            try:
                seen.update(server.look(queries.LOOK, port=marker.port))
                seen["state"], seen["detail"] = "running", ""
            except SiteError as error:  # It recovers from a crash, is out of connections, hangs: nothing is known.
                seen["state"], seen["detail"] = "unreachable", f"its process runs and does not answer: {error}"
        elif marker.state != "making" and connection.exists(f"{marker.data}/PG_VERSION", user):
            signal = connection.exists(layout.standby_signal, user)
            seen["left_as"] = "standby" if signal else "primary"
            seen["ended_cleanly"] = server.control_data()[_STATE] == _ENDED_CLEANLY

    def record(self, lines: str) -> None:
        """Append whole lines to the server's log of events."""
        server = self._existing()
        server.connection.append_file(server.layout.events, lines, user=server.user)

    def require_synchronous(self, replicas: list[str]) -> None:
        """Have commits wait for one of these replicas; with none, for nobody."""
        server = self._existing()
        peers = server.connection.read_file(server.layout.peers, server.user) if replicas else None
        known = json.loads(peers or "{}")
        slots = [str(peer["slot"]) for peer in known.get("peers", []) if peer["name"] in replicas]
        text = files.synchronous_config(replicas, slots, server.binaries.major)
        if server.write({f"{server.layout.config}/synchronous.conf": text}):
            server.reload()

    # -- moving roles --------------------------------------------------------------------------------------------

    @contextmanager
    def alone(self, operator: str) -> Generator[Callable[[str], None]]:
        """Keep every other operation on this server out, deployments too."""
        connection, marker = self._there()
        user, layout = os_user(connection, self.handle["host"]), Layout(self._root, marker.data)
        with ExitStack() as stack:
            try:
                stack.enter_context(connection.holding(layout.lock, who=operator, user=user, deadline=_LOCK_DEADLINE))
            except UnlockableError as error:
                _refuse_if_it_runs(self._bare(connection, marker), error)
                raise
            append = stack.enter_context(recording(connection, layout.events, user))
            # Only now: whoever held the lock may have changed it, and is told of before what cannot be read.
            try:
                server, marker = self._both()
                roles = read_roles(connection, layout.roles, user)
            except UnreachableError:
                raise
            except SiteError as error:
                _refuse_if_it_runs(self._bare(connection, marker), error)
                raise UnlockableError(str(error)) from error
            session = Session()
            stack.callback(session.close)
            self._held.append(_Held(server, marker, roles, session))
            try:
                yield append
            finally:
                self._held.clear()

    def survey(self) -> Survey:
        """Look at what decides whether this server can take another's place, or follow it."""
        server, marker = self._both()
        return survey(server, marker.port)

    def echo(self, follower: str, *, deadline: float) -> str:
        """Write a restore point, in a transaction that has an id, since only the end of one is put on disk at once."""
        server, marker = self._both()
        return echo(server, follower, marker.port, deadline=deadline)

    def events(self) -> str:
        """Return the log of events."""
        server = self._existing()
        return recorded(server.connection, server.layout.events, server.user)

    def peers(self) -> list[Observation]:
        """Look at the other servers, as this one is to ask them before it starts by itself."""
        server = self._existing()
        text = server.connection.read_file(server.layout.peers, server.user)
        return [load_site(peer).observe() for peer in json.loads(text or "{}").get("peers", [])]

    def tell(self, roles: Roles) -> None:
        """Keep what the pair's roles are."""
        server = self._existing()
        if reason := refusal(self._told(server), roles):
            msg = f"{server.connection.name}: {self._root} does not take these roles: {reason}"
            raise SiteError(msg)
        server.write({server.layout.roles: json.dumps(roles, indent=1) + "\n"})
        for held in self._held:
            held.roles = roles

    def _told(self, server: Server) -> Roles | None:
        """Return what the site was told."""
        return self._held[0].roles if self._held else read_roles(server.connection, server.layout.roles, server.user)

    def prepare(self, follower: str) -> None:
        """Keep WAL from here on, by the follower's slot: a standby may have slots, too."""
        server, marker = self._both()
        said = server.sql(f"{files.make_slot_sql(follower)}SELECT pg_is_in_recovery()", port=marker.port)
        if said.splitlines()[-1] == "t":  # One that leads already is to be asked for nothing that clients wait for.
            for held in self._held:
                held.session.open(server, marker.port)

    def ease(self) -> None:
        """Write a checkpoint, so that the one of the stop has little left to write."""
        server, marker = self._both()
        server.checkpoint(marker.port)

    def demote(self) -> Token:
        """Stop cleanly, and leave a standby. A clean stop waits until connected standbys have every record."""
        server, marker = self._both()
        if server.running_pid() is not None:
            if server.look(queries.IN_RECOVERY, port=marker.port):
                msg = f"{server.connection.name}: the server in {self._root} is a standby, and cannot step down"
                raise SiteError(msg)
            server.stop(_STOP_DEADLINE)
        control = server.control_data()
        if control[_STATE] != _ENDED_CLEANLY:
            msg = (
                f"{server.connection.name}: the server in {self._root} did not end cleanly (`{control[_STATE]}`), so "
                f"what it acknowledged may not be in its last checkpoint"
            )
            raise SiteError(msg)
        # Only now: a running primary with this file would come back from a crash as a standby.
        server.write({server.layout.standby_signal: ""})
        lsn, timeline = control["Latest checkpoint location"], int(control["Latest checkpoint's TimeLineID"])
        return {
            "system_identifier": control["Database system identifier"],
            "timeline": timeline,
            "lsn": lsn,
            "record": server.wal_record(timeline, lsn),
        }

    def reinstate(self) -> None:
        """Be the primary again, after a demotion that nobody has taken over from."""
        server, marker = self._to_lead("reinstated")
        signal = server.layout.standby_signal
        if not server.connection.exists(signal, server.user) and self._is_primary(server, marker):
            return
        # One that was asked to stop and has not ended yet is waited for: it is as good as stopped.
        server.stop(_STOP_DEADLINE)
        # On disk before it starts: after a loss of power it must not come back as a standby that nobody follows.
        server.remove(signal)
        server.start(_START_DEADLINE)

    def _is_primary(self, server: Server, marker: Marker) -> bool:
        """Tell whether the server accepts writes now. One that is stopping does not answer."""
        if server.running_pid() is None:
            return False
        try:
            return server.look(queries.IN_RECOVERY, port=marker.port) is False
        except SiteError:
            return False

    def verify(self, token: Token, *, deadline: float) -> None:
        """Wait until the token's record is replayed, and compare it byte by byte, as pg_waldump shows it."""
        server, marker = self._both()
        look = files.replayed_sql(token["lsn"], record=True)
        wait_for(
            f"{server.connection.name}: everything up to {token['lsn']}",
            lambda: json.loads(self._ask(look, 60)),
            bool,
            deadline=deadline,
            advice=f"Look at the end of {server.layout.log}.",
            interval=0.01,
        )
        insist_on_token(server, marker.system_identifier, token)

    def promote(self) -> None:
        """Become the primary, and return once writes are accepted."""
        server = self._to_lead("promoted")[0]
        # pg_promote(wait => true) looks ten times a second; clients wait meanwhile.
        promote = queries.PROMOTE.format(tries=_PROMOTE_DEADLINE * 200)
        try:
            said = self._ask(promote, _PROMOTE_DEADLINE + 15)
        except SiteError:
            if server.running_pid() is not None:
                raise
            server.start(_START_DEADLINE)
            said = self._ask(promote, _PROMOTE_DEADLINE + 15)
        if said.splitlines()[-1] != "f":
            msg = (
                f"{server.connection.name}: the server in {self._root} is not a primary {_PROMOTE_DEADLINE} s after "
                f"its promotion; look at the end of {server.layout.log}"
            )
            raise SiteError(msg)

    def _ask(self, text: str, timeout: float) -> str:
        """Run SQL while clients wait: by the session that was opened before, if it is still there."""
        server, marker = self._both()
        session = self._held[0].session if self._held else Session()
        return session.sql(server, text, port=marker.port, timeout=timeout)

    def offer(self) -> Mapping[str, Any]:
        """Return what a standby needs to connect here. Secret."""
        server, marker = self._both()
        names = ("ca.crt", "replication.crt", "replication.key")
        texts = server.read(server.layout.tls, names)
        if missing := [name for name in names if not texts[name]]:
            msg = f"{server.connection.name}: {server.layout.tls} lacks {', '.join(missing)}; run `pulumi up`"
            raise SiteError(msg)
        server.sql(files.follower_role_sql(REPLICATION_ROLE), port=marker.port)
        keys = ("ca_certificate", "client_certificate", "client_key")
        return {
            "endpoint": {"host": self.handle["host"]["address"], "port": marker.port},
            "system_identifier": marker.system_identifier,
            "limits": server.limits(marker.port),
            "certs": dict(zip(keys, (texts[name] for name in names), strict=True)),
        }

    def follow(self, source: Mapping[str, Any]) -> None:
        """Be a standby of what another site offers, and start."""
        server, marker = self._both()
        if marker.system_identifier != source["system_identifier"]:
            msg = (
                f"{server.connection.name}: {self._root} holds database {marker.system_identifier}, and is to follow "
                f"{source['system_identifier']}; clone it anew"
            )
            raise SiteError(msg)
        layout = server.layout
        there = server.read(layout.config, ("settings.conf", "limits.conf"))
        declared = files.settings_in(there["settings.conf"] or "")
        limits = files.limits_below(source["limits"], declared, there["limits.conf"] or "")
        slot_sync = files.slot_sync(server.binaries.major, declared, limits)
        config = files.replication_config(source, self.handle["slot"], layout, str(self.handle["name"]), slot_sync)
        # Nobody replicates from a standby here: commits that waited for its peer wait no longer when it leads again.
        server.write(
            {
                **files.source_certificates(source["certs"], layout),
                layout.standby_signal: "",
                f"{layout.config}/limits.conf": files.settings_config(limits),
                f"{layout.config}/replication.conf": config,
                f"{layout.config}/synchronous.conf": files.settings_config({}),
            }
        )
        if server.running_pid() is None:
            server.start(_START_DEADLINE)
        else:
            server.reload()
        if server.binaries.major >= FIRST_WITH_FAILOVER_SLOTS:
            server.sql(files.drop_left_slots_sql(), port=marker.port)

    def take_settings(self, settings: str, limits: Mapping[str, int]) -> None:
        """Have this running standby take over its primary's settings, and be restarted if it must.

        Args:
            settings: the text of the file in which its primary has those of the program.
            limits: those that its source has now; none becomes lower than that.

        Raises:
            SiteError: it does not start with them; it has been put back, and runs as before.
        """
        server, marker = self._both()
        folder = server.layout.config
        before = server.read(folder, ("settings.conf", "limits.conf"))
        needed = files.limits_below(limits, files.settings_in(settings), before["limits.conf"] or "")
        texts = {"settings.conf": settings, "limits.conf": files.settings_config(needed)}
        server.write({f"{folder}/{name}": text for name, text in texts.items()})
        try:
            server.take_over_files(marker.port)
            if server.waits_for_restart(marker.port):
                server.stop(_STOP_DEADLINE)
                server.start(_START_DEADLINE)
        except SiteError:
            server.write({f"{folder}/{name}": text for name, text in before.items() if text is not None})
            if server.running_pid() is None:
                server.start(_START_DEADLINE)
            else:
                server.reload()
            raise

    def forget(self, follower: str) -> None:
        """Drop the slot of a member that leads now; as long as it is in use, wait."""
        server, marker = self._both()
        server.sql(files.drop_slot_sql(follower), port=marker.port)

    def remember(self, text: str) -> None:
        """Keep what the pair looked like."""
        server = self._existing()
        server.write({server.layout.original: text})

    def remembered(self) -> str:
        """Return what the pair looked like."""
        server = self._existing()
        return server.connection.read_file(server.layout.original, server.user) or ""

    def fence(self) -> str:
        """Stop whatever runs here, and leave a standby."""
        server, marker = self._both()
        how = stop(server)
        if Comeback(server, marker, self.handle).is_whole:
            server.write({server.layout.standby_signal: ""})
        return how

    def history(self) -> list[Fork]:
        """Return the timelines that this server went through."""
        server, marker = self._both()
        if server.running_pid() is None:
            return Comeback(server, marker, self.handle).past.history()
        found = server.look(queries.HISTORY, port=marker.port)
        return wal.history(found["timeline"], found["text"] or "")

    def beyond(self, fork: Fork) -> Beyond:
        """Return what this server wrote past a fork."""
        return self._comeback().past.beyond(fork)

    def rejoining(self) -> Rejoining:
        """Look at what it takes to have this server follow another one."""
        return self._comeback().rejoining()

    def retire(self) -> None:
        """Stop, cleanly, so that a rewind can start from here."""
        self._comeback().retire()

    def archive(self, fork: Fork) -> str:
        """Put aside what this server wrote past a fork."""
        return self._comeback().archive(fork)

    def rewind(self, source: Mapping[str, Any]) -> str:
        """Take back what this server wrote by itself."""
        return self._comeback().rewind(source)

    def cannot_follow(self) -> str:
        """Return why this standby can never stream from its source."""
        server, _ = self._both()
        return why_it_cannot_follow(server)

    def clone(self, source: Mapping[str, Any], show: Callable[[str], None]) -> None:
        """Copy the data of another site."""
        self._comeback().clone(source, show)

    def _comeback(self) -> Comeback:
        return Comeback(*self._both(), self.handle)

    def _to_lead(self, what: str) -> tuple[Server, Marker]:
        """Return the server, if its site was told that it is to be active."""
        server, marker = self._both()
        roles = self._told(server)
        if roles is None or not leads(roles):
            others = (level for level in levels(roles) if level["active"] != level["me"])
            known = [f"{other['active']} is active at epoch {other['epoch']} in {other['pair']}" for other in others]
            told = known[0] if known else "nothing of its pair"
            msg = f"{server.connection.name}: {self._root} is not {what}: it was told that {told}"
            raise SiteError(msg)
        return server, marker

    def _existing(self) -> Server:
        return self._both()[0]

    def _both(self) -> tuple[Server, Marker]:
        if self._held:
            return self._held[0].server, self._held[0].marker
        connection, marker = self._there()
        return self._server(connection, marker), marker

    def _there(self) -> tuple[Connection, Marker]:
        connection = connect(self.handle["host"])
        marker = self._marker(connection)
        if marker is None:
            msg = f"{connection.name} has no server of {self.handle['owner']} in {self._root}"
            raise SiteError(msg)
        return connection, marker

    @property
    def _root(self) -> str:
        return str(self.handle["root"])

    def _marker(self, connection: Connection) -> Marker | None:
        marker = Marker.read(connection, self._root, os_user(connection, self.handle["host"]))
        return marker if marker and marker.owner == self.handle["owner"] else None

    def _bare(self, connection: Connection, marker: Marker) -> Server:
        """Return the server without its programs, which may not be there: enough to tell whether it runs."""
        user = os_user(connection, self.handle["host"])
        return Server(connection, Layout(self._root, marker.data), Binaries("", marker.version), user)

    def _server(self, connection: Connection, marker: Marker) -> Server:
        user = os_user(connection, self.handle["host"])
        if marker.major not in self._chosen:
            self._chosen[marker.major] = choose_binaries(connection, marker.major)
        return Server(connection, Layout(self._root, marker.data), self._chosen[marker.major], user)

    def _own_certificates(self, server: Server) -> tuple[dict[str, str], dict[str, str]]:
        """Return when each certificate expires, and what else is wrong with those that others are to trust."""
        names = [f"{name}.{suffix}" for name in _CERTIFICATES for suffix in ("crt", "key") if name != "ca"]
        texts = server.read(server.layout.tls, ["ca.crt", "trusted.crt", *names])
        there = {name: text for name in _CERTIFICATES if (text := texts[f"{name}.crt"])}
        trusted = texts["trusted.crt"] or ""
        flaws = {
            name: certificates.flaw(certificates.KeyPair(there[name], texts[f"{name}.key"] or ""), trusted)
            for name in _ISSUED
            if name in there
        }
        readable = {name: text for name, text in there.items() if certificates.serial(text)}
        expiries = {name: certificates.expires(text).isoformat() for name, text in readable.items()}
        return expiries, {name: flaw for name, flaw in flaws.items() if flaw}

    # -- certificates --------------------------------------------------------------------------------------------

    def certificates(self) -> Certificates:
        """Look at what a rotation of certificates depends on."""
        server, marker = self._both()
        texts = server.read(server.layout.tls, ("replication.crt", "source-client.crt"))
        issued, held = (certificates.serial(text) if text else "" for text in texts.values())
        used: dict[str, str] = server.look(queries.USED, port=marker.port)
        rotation, in_use = renewal.last_rotation(renewal.FilesOnHost(server))
        return {"rotation": rotation, "in_use": in_use, "issued": issued, "held": held, "used": used}

    def renew(self, rotation: Rotation) -> None:
        """Have new certificates, and use them."""
        server, marker = self._both()
        address = str(self.handle["host"]["address"])
        renewal.renew(renewal.FilesOnHost(server), rotation, address)
        renewal.use(server, address, marker.port)

    def reconnect(self, follower: str) -> None:
        """End the connection of a member that replicates from here."""
        server, marker = self._both()
        server.sql(files.end_replication_sql(follower), port=marker.port)

    def distrust(self) -> None:
        """Trust the authority of now alone."""
        server, marker = self._both()
        renewal.distrust(renewal.FilesOnHost(server))
        server.take_over_files(marker.port)
