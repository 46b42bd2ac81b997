"""Making, changing and removing one PostgreSQL server on a host: what is done, in which order.

Every act may be cut off and run again: the marker in the server's folder says whose it is and how far it came.
No data directory is ever deleted here but by `destroy`, when the configuration says so: it is moved aside.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from harmony_pulumi.capabilities.postgresql_facts import OPERATOR_ROLE, REPLICATION_ROLE
from harmony_pulumi.capabilities.site import Rotation
from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.hosts.connection import Connection, connect
from harmony_pulumi.hosts.logs import recording
from harmony_pulumi.hosts.postgresql import adoption, certificates, files, queries, renewal
from harmony_pulumi.hosts.postgresql.boot import Sites, guard, sites_json
from harmony_pulumi.hosts.postgresql.elsewhere import handle_of_elsewhere
from harmony_pulumi.hosts.postgresql.following import Following, is_streaming
from harmony_pulumi.hosts.postgresql.home import (
    Marker,
    is_on_host,
    is_on_machine,
    listening_ports,
    make_root,
    markers_below,
    mount_of,
    os_user,
    ownership_problems,
    role_problem,
    root_of,
    unfit,
)
from harmony_pulumi.hosts.postgresql.layout import Layout, slot_name
from harmony_pulumi.hosts.postgresql.roles import is_to_lead, read_roles
from harmony_pulumi.hosts.postgresql.server import Binaries, Server, choose_binaries, major_of
from harmony_pulumi.hosts.postgresql.site import HostPostgreSQL, site_of
from harmony_pulumi.orchestration.journal import Journal, operator
from harmony_pulumi.orchestration.roles import last_epoch, leads
from harmony_pulumi.orchestration.wait import wait_for

_FIRST_PORT = 5432
_LOCK_DEADLINE = 60
_END_DEADLINE = 30
_CHANGED = ("postgresql.conf", "settings.conf", "limits.conf", "pg_hba.conf", "pg_ident.conf", "replication.conf")
# What only a restart can change is no refusal. One that was removed from the files is told without a name.
_REFUSED = """
SELECT json_agg(concat_ws(': ', coalesce(f.name, sourcefile || ' line ' || sourceline), error))
FROM pg_file_settings f WHERE error IS NOT NULL AND error NOT LIKE '%cannot be changed without restarting the server'
  AND NOT (error = 'setting could not be applied' AND EXISTS (
    SELECT FROM pg_settings s WHERE lower(s.name) = lower(f.name) AND pending_restart))
"""
_PORT_TAKEN, _PORT_TRIES = "Address already in use", 10


@dataclass(frozen=True)
class Deployment:
    """One server as it is declared, on the host where it is to be."""

    connection: Connection
    props: Mapping[str, Any]
    journal: Journal
    user: str
    """The OS user that owns and runs the server."""
    root: str
    """The folder of the server."""

    # -- what is there -------------------------------------------------------------------------------------------

    def choices(self) -> dict[str, Any]:
        """Return what the site chooses where the program is silent, once: the server's folder and major version.

        Raises:
            SiteError: no PostgreSQL fits.
        """
        marker = self.marker() if self.connection.exists(self.root, self.user) else None
        if marker is not None and marker.owner == self.props["owner"]:
            return {"directory": self.root, "version": marker.major}
        source = self.props.get("source")
        if source:
            version = source.get("version")
            return {"directory": self.root, **({"version": major_of(version)} if isinstance(version, str) else {})}
        if data := self.props.get("adopt"):
            return {"directory": self.root, "version": adoption.find(self.connection, data, self.user, ()).major}
        return {"directory": self.root, "version": choose_binaries(self.connection, None).major}

    def marker(self) -> Marker | None:
        """Return the marker of the folder."""
        return Marker.read(self.connection, self.root, self.user)

    def layout(self, marker: Marker | None = None) -> Layout:
        """Return where things are. The data directory is where it was made, or taken over, once."""
        adopt = self.props.get("adopt") if not self.props.get("source") else None
        return Layout(self.root, marker.data if marker else adopt or f"{self.root}/data")

    def server(self, binaries: Binaries, marker: Marker | None = None) -> Server:
        """Return the server, run by an installed PostgreSQL."""
        return Server(self.connection, self.layout(marker), binaries, self.user)

    def existing(self) -> tuple[Marker, Server]:
        """Return the marker and server of a folder that is there.

        Raises:
            SiteError: there is none, or it belongs to something else.
        """
        marker = self.marker()
        if marker is None or marker.owner != self.props["owner"]:
            found = f"one of {marker.owner}" if marker else "none"
            msg = f"{self.connection.name}: expected a server of {self.props['owner']} in {self.root}, found {found}"
            raise SiteError(msg)
        return marker, self.server(choose_binaries(self.connection, marker.major), marker)

    # -- create --------------------------------------------------------------------------------------------------

    def create(self) -> Mapping[str, Any]:
        """Make the server, or take over what an interrupted run or `destroy` left; return its outputs.

        One that is declared as a primary, and has nothing, is made as a copy of the member that leads since.
        """
        if not self.props.get("source") and (leader := self._leader_here()):
            return replace(self, props={**self.props, "source": leader, "adopt": None}).create()
        self._refuse_foreign(self.marker())
        self._make_folders()
        with self._alone():
            marker = self.marker()
            self._refuse_foreign(marker)  # Again: whoever held the lock may have made a server here.
            if marker is not None:
                marker = self._set_aside_if_unfit(marker)
            existing = self._to_adopt(marker)
            major = marker.major if marker else existing.major if existing else self.props.get("version")
            server = self.server(choose_binaries(self.connection, major), marker)
            if marker is None:
                marker = self._begin(server, existing)
            else:
                self._settle_port(server, marker)
            return self._make(server, marker, existing)

    @property
    def _operator(self) -> str:
        return operator(f"`pulumi` ({self.journal.operation})")

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Keep every other operation on this server out: that of a run which was killed may still be at work."""
        layout = self.layout()
        with (
            self.connection.holding(layout.lock, who=self._operator, user=self.user, deadline=_LOCK_DEADLINE),
            recording(self.connection, layout.events, self.user) as append,
        ):
            self.journal.write_to(append)
            yield

    def _make(self, server: Server, marker: Marker, existing: adoption.Existing | None) -> Mapping[str, Any]:
        self._certificates(server)
        self._source_certificates(server, keep_newer=False)
        fresh = marker.state == "making"
        if existing:
            self._take_over(server, marker, existing)
        elif fresh:
            self._fill(server, marker)
        else:
            self._refuse_other_role(server, marker)
            self._refuse_altered(server, marker)
            self.journal.note(f"found its data in {server.layout.data}, made before: taken over", step="adopt")
        self.configure(server, marker)
        self._start(server, marker)
        self._use_certificates(server, marker, renewed=False)
        credentials = self._credentials(server, marker)
        if self._is_to_lead(server):
            self._populate(server, marker, credentials)
            if self._is_beside_a_cluster():
                # CloudNativePG's copy waits for a checkpoint that takes its time: up to minutes, with much to write.
                server.checkpoint(marker.port)
        elif self._source(server):
            self._follow(server, marker, fresh=fresh)
        else:
            self.journal.note("is a standby, as its pair's roles have it: they are left alone", step="roles")
        marker.state, marker.incarnation = "ready", secrets.token_hex(8)
        marker.revision = marker.incarnation
        self._write_marker(server, marker)
        return self.outputs(server, marker, credentials)

    def _refuse_foreign(self, marker: Marker | None) -> None:
        for problem in ownership_problems(self.connection, self.props, self.root, self.user, marker):
            msg = f"{self.connection.name}: {problem}"
            raise SiteError(msg)
        if marker is None and not self.props.get("source"):
            self._refuse_beside()

    def _refuse_beside(self) -> None:
        """Refuse to make a new database while a peer holds this one."""
        for site, held in self._peers_here():
            if held.state != "making":
                peer, root = site.handle["name"], site.handle["root"]
                msg = (
                    f"{self.connection.name}: a new, empty database was about to be made in {self.root}, but "
                    f"{peer} holds this database in {root} (system identifier {held.system_identifier}). Is a disk not "
                    f"mounted? If what was in {self.root} is gone for good, fail over to {peer} (`harmony failover`), "
                    f"and `pulumi up --refresh` makes a copy of it here; a new database needs another name."
                )
                raise SiteError(msg)

    def _sites(self) -> Sites:
        """Return what the server is to know of itself and its peers when it is started without this program."""
        host, source = self.props["host"], self.props.get("source")
        peers = [self._site_of_peer(peer) for peer in self.props.get("peers") or ()]
        follows = {"host": source["endpoint"]["host"], "port": int(source["endpoint"]["port"])} if source else None
        return {"site": site_of(host, self.props["owner"], self.root), "peers": peers, "source": follows}

    def _site_of_peer(self, peer: Mapping[str, Any]) -> dict[str, Any]:
        if not is_on_host(peer):
            return handle_of_elsewhere(peer)
        machine = peer["host"].get("machine_id", self.props["host"]["machine_id"])
        # Where the folder of one elsewhere is, is not asked: by default it is below the same base folder.
        return site_of({**peer["host"], "machine_id": machine}, peer["owner"], root_of(self.connection, peer))

    def _is_beside_a_cluster(self) -> bool:
        return not all(map(is_on_host, self.props.get("peers") or ()))

    def _peers_here(self) -> Generator[tuple[HostPostgreSQL, Marker]]:
        """Iterate over the sites and markers of the other members that are on this machine."""
        here = self.props["host"]["machine_id"]
        for peer in self.props.get("peers") or ():
            if is_on_machine(peer, here):  # Another machine this connection does not reach.
                root = root_of(self.connection, peer)
                marker = Marker.read(self.connection, root, self.user)
                if marker is not None and marker.owner == peer["owner"]:
                    yield HostPostgreSQL(site_of({**peer["host"], "machine_id": here}, marker.owner, root)), marker

    def _leader_here(self) -> Mapping[str, Any] | None:
        """Return what to copy, where there is nothing, and a role change has made another member here lead."""
        marker = self.marker() if self.connection.exists(self.root, self.user) else None
        if marker is not None and marker.state != "making":
            return None
        for site, held in self._peers_here():
            seen = site.observe()
            roles = seen["roles"]
            if roles and (epoch := last_epoch(roles)) and leads(roles) and seen["role"] == "primary":
                text = f"{site.handle['name']} is active at epoch {epoch}: this is made as a copy of it"
                self.journal.note(text, step="roles")
                credentials = self.connection.read_file(Layout(site.handle["root"], held.data).credentials, self.user)
                return {**site.offer(), "version": seen["version"], "credentials": json.loads(credentials or "{}")}
        return None

    def _refuse_other_role(self, server: Server, marker: Marker) -> None:
        problem = role_problem(self.connection, self.props, self.root, self.user, marker)
        if problem and server.running_pid() is None:
            msg = f"{self.connection.name}: {problem}"
            raise SiteError(msg)

    def _set_aside_if_unfit(self, marker: Marker) -> Marker | None:
        """Keep a whole data directory that fits; move another aside, and begin anew, as after a making cut off."""
        if marker.state == "making":
            return None
        if not self.connection.exists(f"{marker.data}/PG_VERSION", self.user):
            msg = (
                f"{self.connection.name}: {self.root}/harmony.json says that {marker.data} holds database "
                f"{marker.system_identifier}, but there is none. Is a disk not mounted? If the data is really gone, "
                f"move {self.root} away, and it is made anew"
            )
            raise SiteError(msg)
        reason = unfit(marker, self.props)
        if reason is None:
            return marker
        if not marker.data.startswith(f"{self.root}/"):
            msg = f"{self.connection.name}: {marker.data} was taken over, so it is not moved aside, but {reason}"
            raise SiteError(msg)
        server = self.server(choose_binaries(self.connection, marker.major), marker)
        roles = read_roles(self.connection, server.layout.roles, self.user)
        if roles and (epoch := last_epoch(roles)) and leads(roles):
            msg = (
                f"{self.connection.name}: {reason}, and {marker.data} is that of the active member of {roles['pair']} "
                f"at epoch {epoch}: it is not moved aside. Make another member active first"
            )
            raise SiteError(msg)
        with self.journal.step("set-aside", f"moving {marker.data} aside: {reason}"):
            server.stop(self._deadline("start"))
            self._move_aside(server, marker)
        return None

    def _move_aside(self, server: Server, marker: Marker) -> None:
        # First the marker: whatever is there is then known not to be whole, wherever this is cut off.
        marker.state = "making"
        self._write_marker(server, marker)
        server.move(server.layout.data, f"{server.layout.kept}/data-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")

    def _to_adopt(self, marker: Marker | None) -> adoption.Existing | None:
        """Return the existing server that is still to be taken over."""
        data = self.props.get("adopt")
        if not data or self.props.get("source") or (marker is not None and marker.state != "making"):
            return None
        return adoption.find(self.connection, data, self.user, adoption.COMPARED)

    def _take_over(self, server: Server, marker: Marker, existing: adoption.Existing) -> None:
        """Restart an existing server under harmony's configuration; if it cannot be taken over, as it was."""
        marker.port = int(self.props.get("port") or existing.port)
        required, sockets = adoption.required(existing), files.folder_list(existing.sockets)
        # A run that was cut off may have started it under ours: what it was started with before is known no more.
        if existing.config_file != f"{server.layout.config}/postgresql.conf":
            server.write(
                {
                    f"{server.layout.config}/adopted_hba.conf": existing.hba_rules,
                    f"{server.layout.config}/adopted_ident.conf": existing.ident_maps,
                    f"{server.layout.config}/adopted.conf": files.adopted_config(
                        existing.own_config, {**required, "unix_socket_directories": sockets}
                    ),
                }
            )
        self.configure(server, marker)
        with self.journal.step("take-over", f"restarting the server in {existing.data} under harmony"):
            server.stop(self._deadline("start"))
            try:
                adoption.clear_altered(server, existing, {*required, *self.props["settings"]})
                server.start(self._deadline("start"))
                self._refuse_unknown_passwords(server, marker, self.props.get("passwords") or {})
            except SiteError:
                how = "starting it again as it was" if existing.running else "leaving it stopped, as it was"
                self.journal.note(f"it is not taken over: {how}", step="give-back")
                adoption.give_back(server, existing, self._deadline("start"))
                raise
        marker.system_identifier = server.control_data()["Database system identifier"]
        marker.state = "whole"
        self._write_marker(server, marker)

    def _begin(self, server: Server, existing: adoption.Existing | None) -> Marker:
        with self.journal.step("prepare", f"preparing {self.root} for PostgreSQL {server.binaries.version}"):
            marker = Marker(
                owner=self.props["owner"],
                state="making",
                port=0,
                data=server.layout.data,
                version=server.binaries.version,
                locale=self.props["locale"],
                machine_id=self.props["host"]["machine_id"],
            )
            marker.port = existing.port if existing else self._choose_port(server)
            self._write_marker(server, marker)
        return marker

    def _make_folders(self) -> None:
        """Make the server's folder, and those in it, for the OS user that is to own them."""
        if self.connection.is_root():
            make_root(self.connection, self.root, self.user)
        self.connection.check(["mkdir", "-p", "-m", "700", "--", *self.layout().folders()], user=self.user)

    def _choose_port(self, server: Server) -> int:
        """Return the declared port, or the first one that no process and no other server of ours has."""
        if port := self.props.get("port"):
            return int(port)
        taken = listening_ports(self.connection) | self._ports_of_neighbours(server)
        return next(port for port in range(_FIRST_PORT, 65536) if port not in taken)

    def _settle_port(self, server: Server, marker: Marker) -> None:
        """Keep the port of before, unless another is declared or somebody took it while the server was down."""
        taken = server.running_pid() is None and marker.port in listening_ports(self.connection)
        if (self.props.get("port") or marker.port) != marker.port or (taken and not self.props.get("port")):
            before, marker.port = marker.port, self._choose_port(server)
            self.journal.note(f"port {before} becomes {marker.port}", step="port")
            self._write_marker(server, marker)

    def _ports_of_neighbours(self, server: Server) -> set[int]:
        """Return the ports of servers that are stopped, or still being made, below the host's folder for servers."""
        markers = [path for path in markers_below(self.connection) if path != server.layout.marker]
        texts = self.connection.read_files(markers)
        return {int(port) for text in texts.values() for port in re.findall(r'"port": (\d+)', text or "")}

    def _write_marker(self, server: Server, marker: Marker) -> None:
        server.write({server.layout.marker: marker.text})

    # -- certificates and credentials ----------------------------------------------------------------------------

    def _certificates(self, server: Server) -> None:
        """Make what is missing: the site's authority, the server's certificate, the replicas' certificate."""
        renewal.write_begun(renewal.FilesOnHost(server))
        days, address = int(self.props["certificate_lifetime_days"]), self.props["host"]["address"]
        there = self._key_pairs(server)
        shown = there["server"].certificate if "server" in there else ""
        authority = there.get("ca") or certificates.make_authority(f"harmony {self.props['owner']}"[:64])
        pairs = {"ca": authority, **there}
        if "ca" not in there or not certificates.serves(there.get("server"), address):
            made = certificates.make_server(authority, address, days)
            pairs["server"] = made._replace(certificate=certificates.with_crosses(made.certificate, shown))
        if "ca" not in there or not certificates.serves(there.get("replication")):
            pairs["replication"] = certificates.make_client(authority, REPLICATION_ROLE, days)
        texts: dict[str, str] = {}
        for name, pair in pairs.items():  # The key last: a pair that was cut off has no key and is made anew.
            texts |= {f"{name}.crt": pair.certificate, f"{name}.key": pair.key}
        # While a rotation is under way, the authority of before is trusted, too.
        trusted = server.read(server.layout.tls, ["trusted.crt"])["trusted.crt"] or ""
        texts["trusted.crt"] = trusted if authority.certificate in trusted else authority.certificate
        server.write({f"{server.layout.tls}/{name}": text for name, text in texts.items()})

    def _source_certificates(self, server: Server, *, keep_newer: bool) -> None:
        """Write the files by which a replica connects to its source.

        A rotation by command may have given it newer ones than a stack that was not refreshed knows of.
        """
        source = self.props.get("source")
        if not source:
            return
        held = server.read(server.layout.tls, ["source-client.crt"])["source-client.crt"]
        if not (keep_newer and held and certificates.is_newer(held, source["certs"]["client_certificate"])):
            server.write(files.source_certificates(source["certs"], server.layout))

    def _renew(self, server: Server, before: Mapping[str, Any]) -> bool:
        """Write new certificates if what is declared of them has changed, once, also where a run was cut off."""
        changed = renewal.changed_inputs(before, self.props)
        if not changed:
            return False
        rotation = Rotation(
            id=renewal.id_by_input(self.props),
            authority="authority_generation" in changed,
            operator=self._operator,
            ended=False,
        )
        what = "a new authority and new certificates" if rotation["authority"] else "new certificates"
        with self.journal.step("renew", f"making {what}"):
            address, days = str(self.props["host"]["address"]), int(self.props["certificate_lifetime_days"])
            renewal.renew(renewal.FilesOnHost(server), rotation, address, days)
        return True

    def _use_certificates(self, server: Server, marker: Marker, *, renewed: bool) -> None:
        """Have new certificates count, now that the server, which runs, is certain to use them."""
        rotation, in_use = renewal.last_rotation(renewal.FilesOnHost(server))
        if rotation and not in_use:  # They may have been written by a run that was cut off before.
            renewal.use(server, str(self.props["host"]["address"]), marker.port)
        if renewed and not self.props.get("peers") and not self.props.get("source"):
            # No other member has a certificate of the authority of before.
            renewal.distrust(renewal.FilesOnHost(server))
            server.take_over_files(marker.port)

    def _key_pairs(self, server: Server) -> dict[str, certificates.KeyPair]:
        """Return the key pairs that are there, of `ca`, `server` and `replication`."""
        names = ("ca", "server", "replication")
        texts = server.read(server.layout.tls, [f"{name}.{suffix}" for name in names for suffix in ("crt", "key")])
        found = {name: (texts[f"{name}.crt"], texts[f"{name}.key"]) for name in names}
        return {name: certificates.KeyPair(crt, key) for name, (crt, key) in found.items() if crt and key}

    def _credentials(self, server: Server, marker: Marker) -> dict[str, str]:
        """Return the passwords by role: declared, else those of before, else new ones. The server runs."""
        source = self.props.get("source")
        if source:
            credentials = dict(source["credentials"])
        else:
            before = json.loads(self.connection.read_file(server.layout.credentials, self.user) or "{}")
            declared = self.props.get("passwords") or {}
            self._refuse_unknown_passwords(server, marker, {**before, **declared})
            owners = sorted({database["owner"] for database in self.props["databases"]})
            credentials = {
                **before,
                **{o: declared.get(o) or before.get(o) or secrets.token_urlsafe(24) for o in owners},
            }
        server.write({server.layout.credentials: json.dumps(credentials, sort_keys=True)})
        return credentials

    def _refuse_unknown_passwords(self, server: Server, marker: Marker, known: Collection[str]) -> None:
        """Refuse to replace the password of a role that is there: who uses it would be locked out."""
        content = adoption.look_inside(server, self.props["databases"], port=marker.port)
        if problems := adoption.unknown_passwords(content, known):
            msg = f"{self.connection.name}: {'; '.join(problems.values())}"
            raise SiteError(msg)

    # -- the data directory --------------------------------------------------------------------------------------

    def _fill(self, server: Server, marker: Marker) -> None:
        """Make the data directory: initdb, or a base backup of the source."""
        if self.connection.exists(server.layout.data, self.user):
            with self.journal.step("set-aside", "moving aside what an interrupted run left unfinished"):
                self._move_aside(server, marker)
        if self.props.get("source") is None:
            with self.journal.step("initdb", f"making an empty database in {server.layout.data}"):
                server.initdb(self.props["locale"])
        else:
            self._following(server).clone(self._deadline("clone"))
        marker.system_identifier = server.control_data()["Database system identifier"]
        marker.state = "whole"
        self._write_marker(server, marker)

    # -- configuration, start, content ---------------------------------------------------------------------------

    def configure(self, server: Server, marker: Marker) -> bool:
        """Write the configuration files; tell whether any changed."""
        layout, source, settings = server.layout, self._source(server), self.props["settings"]
        names = ("adopted.conf", "adopted_hba.conf", "adopted_ident.conf", "limits.conf", "replication.conf")
        there = server.read(layout.config, names)
        if not self._is_to_lead(server):
            limits = files.settings_config(files.limits(server.control_data(), settings))
        else:  # One that was promoted keeps what it had as a standby, where the program is silent.
            limits = files.without_settings(there["limits.conf"] or files.HEADER, {name.lower() for name in settings})
        texts = {
            "postgresql.conf": files.main_config(
                self._managed(layout, marker, there["adopted.conf"]),
                adopted=there["adopted.conf"] is not None,
                beside_cluster=self._is_beside_a_cluster(),
            ),
            "settings.conf": files.settings_config(settings),
            "limits.conf": limits,
            "pg_hba.conf": files.hba(
                self.props["authentication"]["networks"],
                there["adopted_hba.conf"] or "",
            ),
            "pg_ident.conf": files.ident(self.user, there["adopted_ident.conf"] or ""),
        }
        own = f"{layout.data}/postgresql.conf"
        if self._is_beside_a_cluster() and not self.connection.exists(own, self.user):
            server.write({own: files.FOR_A_CLUSTER})
        if source or there["replication.conf"] is None:
            declared = {name.lower(): value for name, value in settings.items()}
            slot_sync = files.slot_sync(server.binaries.major, declared, files.settings_in(limits))
            texts["replication.conf"] = files.replication_config(
                source, slot_name(self.props["owner"]), layout, self._member(), slot_sync
            )
        return server.write({f"{layout.config}/{name}": text for name, text in texts.items()})

    def _managed(self, layout: Layout, marker: Marker, adopted: str | None) -> dict[str, object]:
        """Return the settings that harmony sets itself; `adopted` is the configuration that was taken over, if any."""
        sockets = files.folders_in(files.settings_in(adopted or "").get("unix_socket_directories", ""))
        return files.managed_settings(
            layout,
            name=self._member(),
            address=self.props["host"]["address"],
            port=marker.port,
            slot_size_bound=self.props["slot_size_bound"],
            sockets=adoption.usable(self.connection, sockets, self.user),
        )

    def _refuse_altered(self, server: Server, marker: Marker) -> None:
        """Refuse to go on while ALTER SYSTEM beats what is declared: it would be written, and never hold."""
        altered = self.connection.read_file(server.layout.altered, self.user) or ""
        there = server.read(server.layout.config, ("adopted.conf", "synchronous.conf"))
        wanted = {
            **self.props["settings"],
            **self._managed(server.layout, marker, there["adopted.conf"]),
            "synchronous_standby_names": "",
            **files.settings_in(there["synchronous.conf"] or ""),
        }
        if names := files.overriding(altered, wanted):
            msg = (
                f"{self.connection.name}: ALTER SYSTEM has set {', '.join(names)} in {server.layout.altered}, which "
                f"beats what is declared; expected nothing there that harmony sets. As a superuser, run "
                f"{' '.join(f'ALTER SYSTEM RESET {name};' for name in names)} or, while the server is stopped, remove "
                f"the lines"
            )
            raise SiteError(msg)

    def _start(self, server: Server, marker: Marker) -> None:
        """Have the server run under its configuration; a port chosen here is chosen anew if somebody was faster."""
        sites = self._sites()
        server.write({server.layout.peers: sites_json(sites)})
        # `destroy` has stopped all members: of these, one whose folder was removed since is copied anew.
        guard(server, sites, self.journal, made_again=marker.state in {"kept", "whole"})
        port = server.running_port()
        if port is not None:
            try:
                self._apply(server, port)
            except SiteError:
                # A standby of PostgreSQL 13 ends when it replays that its primary's limits (max_connections, say) were
                # raised over its own: PostgreSQL 13, "Hot Standby", "Administrator's Overview". Ours are written now.
                if self._is_to_lead(server) or not server.ended_within(_END_DEADLINE):
                    raise
            else:
                return
        for left in reversed(range(_PORT_TRIES)):
            try:
                with self.journal.step("start", f"starting PostgreSQL {server.binaries.version} on port {marker.port}"):
                    server.start(self._deadline("start"))
                break
            except SiteError as error:
                if self.props.get("port") or _PORT_TAKEN not in str(error) or not left:
                    raise
            self.journal.note(f"port {marker.port} was taken meanwhile: choosing another", step="port")
            marker.port = self._choose_port(server)
            self._write_marker(server, marker)
            self.configure(server, marker)

    def _populate(self, server: Server, marker: Marker, credentials: Mapping[str, str]) -> None:
        names = ", ".join(database["name"] for database in self.props["databases"])
        if server.look(queries.IN_RECOVERY, port=marker.port):
            msg = (
                f"{self.connection.name}: the server in {self.root} is a standby, and is to be the primary; roles are "
                f"moved by orchestration, not by deployment: see `harmony status`"
            )
            raise SiteError(msg)
        content = adoption.look_inside(server, self.props["databases"], port=marker.port)
        for change in adoption.owner_changes(content, self.props["databases"]):
            self.journal.note(change, step="populate")
        with self.journal.step("populate", f"roles and databases: {names}"):
            server.sql(files.roles_sql(credentials), port=marker.port)
            if self._is_beside_a_cluster():  # Which tries new certificates by it, while it has no role to make it in.
                server.sql(files.follower_role_sql(OPERATOR_ROLE), port=marker.port)
            server.sql(files.databases_sql(self.props["databases"]), port=marker.port)
            for database in self.props["databases"]:
                if database["extensions"]:
                    sql = files.extensions_sql(database["extensions"])
                    server.sql(sql, port=marker.port, database=database["name"])

    def _following(self, server: Server) -> Following:
        return Following(server, self.props, self.journal)

    def _follow(self, server: Server, marker: Marker, *, fresh: bool) -> None:
        """Wait until the replica streams; clone anew if the source no longer has the WAL that it needs."""
        following = self._following(server)
        if not fresh:
            following.make_slot()
        if following.streams(marker.port, self._deadline("stream")):
            return
        with self.journal.step("set-aside", "the source no longer has the WAL that this copy needs: copying anew"):
            server.stop(self._deadline("start"))
            self._move_aside(server, marker)
        self._fill(server, marker)
        self._start(server, marker)
        if not following.streams(marker.port, self._deadline("stream")):
            msg = f"{self.connection.name}: a fresh copy could not follow its source either; see {server.layout.log}"
            raise SiteError(msg)

    # -- update, destroy -----------------------------------------------------------------------------------------

    def update(self, before: Mapping[str, Any]) -> Mapping[str, Any]:
        """Bring a server to what is declared now; restart it only if PostgreSQL says that it must."""
        self.existing()
        with self._alone():
            marker, server = self.existing()
            if marker.state == "making" and not self.props.get("source"):
                msg = f"{self.connection.name}: {marker.data} is half-made: `harmony rejoin` makes it whole, or anew"
                raise SiteError(msg)
            self._certificates(server)
            self._source_certificates(server, keep_newer=True)
            if marker.state == "making":
                self._fill(server, marker)
            self._refuse_altered(server, marker)
            renewed = self._renew(server, before)
            self._change(server, marker)
            self._use_certificates(server, marker, renewed=renewed)
            credentials = self._credentials(server, marker)
            if self._is_to_lead(server):
                self._populate(server, marker, credentials)
                self._tell_followers(server)
            elif self._source(server):
                self._follow(server, marker, fresh=False)
                if self._following(server).has_caught_up(marker.port) and self.configure(server, marker):
                    self._start(server, marker)  # The primary's limits were lowered, and that is known here by now.
            return self.outputs(server, marker, credentials)

    def _tell_followers(self, server: Server) -> None:
        """Have the members that follow this one since a role change know its port and certificates of now.

        Before the first role change, the program wires them.
        """
        roles = read_roles(self.connection, server.layout.roles, self.user)
        if not roles or not last_epoch(roles):
            return
        offer = HostPostgreSQL(site_of(self.props["host"], self.props["owner"], self.root)).offer()
        for site, _ in self._peers_here():
            seen = site.observe()
            if seen["role"] == "standby" and seen["roles"] and seen["roles"]["pair"] == roles["pair"]:
                with site.alone(self._operator):
                    site.follow(offer)
        # Limits are lowered on the primary first, and on a standby once it knows.
        port = int(offer["endpoint"]["port"])
        for site, name in self._standbys(server, port):
            self._await_standby(server, port, name)
            with site.alone(self._operator):
                site.take_settings(self._settings_now(server), offer["limits"])

    def _is_to_lead(self, server: Server) -> bool:
        """Tell whether the server is to be a primary: roles may have moved since it was deployed."""
        return is_to_lead(read_roles(self.connection, server.layout.roles, self.user), self.props.get("source"))

    def _source(self, server: Server) -> Mapping[str, Any] | None:
        """Return what the program has the server follow; None if nothing, or if that is no longer the program's matter.

        Of a pair of pairs, the program knows the members of before a role change: the leader of one follows that of the
        other then, and not the other way round.
        """
        roles = read_roles(self.connection, server.layout.roles, self.user)
        if roles and roles["outer"] and last_epoch(roles):
            return None
        source: Mapping[str, Any] | None = self.props.get("source")
        return source

    def _change(self, server: Server, marker: Marker) -> None:
        """Write the configuration and have it take effect; if it cannot, put back the one that did."""
        settled = Marker(**marker.__dict__)
        texts = server.read(server.layout.config, _CHANGED)
        if self.props.get("port"):
            marker.port = int(self.props["port"])
        # Whoever comes after a run that is cut off from here on can see it, and finishes: see `inspection.status`.
        self._write_marker(server, replace(settled, state="changing"))
        self.configure(server, marker)
        try:
            self._start(server, marker)
        except SiteError as error:
            self.journal.note(f"taking the change back: {error}", step="give-back", state="warning")
            there = {f"{server.layout.config}/{name}": text for name, text in texts.items() if text is not None}
            server.write(there)
            self._start(server, settled)
            self._write_marker(server, settled)
            raise
        marker.state, marker.revision = "ready", secrets.token_hex(8)
        self._write_marker(server, marker)

    def _apply(self, server: Server, port: int) -> None:
        """Have a running server, which listens on `port`, take over its files: a reload, and a restart if it must."""
        with self.journal.step("reload", "reloading the configuration"):
            server.take_over_files(port)
            errors = server.look(_REFUSED, port=port)
            if errors:
                msg = f"{self.connection.name}: PostgreSQL refuses settings: {'; '.join(errors)}"
                raise SiteError(msg)
        pending = server.waits_for_restart(port)
        if not pending:
            return
        leads = self._is_to_lead(server)
        # One that the program has as a primary: the member that leads is changed after it, and waits for those it has.
        streamed = not leads and not self.props.get("source") and is_streaming(server, port)
        standbys = self._standbys_first(server, port, pending) if leads else []
        with self.journal.step("restart", f"restarting, as PostgreSQL requires for {', '.join(pending)}"):
            if leads:
                server.checkpoint(port)
            server.stop(self._deadline("start"))
            server.start(self._deadline("start"))
        now = server.running_port() or port
        if streamed:
            self._following(server).streams(now, self._deadline("stream"))
        if now == port:  # Else they are yet to learn of the new one: from the program, or as `_tell_followers` does it.
            for name in standbys:
                self._await_standby(server, port, name)

    def _standbys_first(self, server: Server, port: int, pending: Collection[str]) -> list[str]:
        """Have the standbys run with the new settings, and stream, before the primary is restarted for them.

        A setting with which PostgreSQL does not start is found out there, and the primary goes on as it is. Limits are
        raised on a standby before they are on its primary: PostgreSQL, "Hot Standby", "Administrator's Overview".

        Returns their names.
        """
        limits = server.limits(port)
        standbys = list(self._standbys(server, port))
        for site, name in standbys:
            with (
                self.journal.step("standby-first", f"{name} comes first, for {', '.join(pending)}"),
                site.alone(self._operator),
            ):
                site.take_settings(self._settings_now(server), limits)
                self._await_standby(server, port, name)
        return [name for _, name in standbys]

    def _standbys(self, server: Server, port: int) -> Generator[tuple[HostPostgreSQL, str]]:
        """Iterate over the standbys on this machine that stream from this server, and their names."""
        streaming = (
            "SELECT coalesce(json_agg(application_name), '[]') FROM pg_stat_replication WHERE state = 'streaming'"
        )
        names = server.look(streaming, port=port)
        for site, _ in self._peers_here():
            if site.handle["name"] in names:
                yield site, str(site.handle["name"])

    def _settings_now(self, server: Server) -> str:
        """Return the file of the program's settings: those of before, where a change is taken back."""
        return server.read(server.layout.config, ["settings.conf"])["settings.conf"] or ""

    def _await_standby(self, server: Server, port: int, name: str) -> None:
        """Wait until a standby streams, and has replayed what this server has written so far."""
        lsn = server.look("SELECT to_json(pg_current_wal_lsn())", port=port)
        wait_for(
            f"{self.connection.name}: {name} streaming up to {lsn}",
            lambda: server.look(files.replica_has_sql(name, lsn), port=port),
            bool,
            deadline=self._deadline("stream"),
            advice=f"Look at the log of {name}.",
        )

    def destroy(self) -> None:
        """Stop the server. Its data is kept, unless the configuration that was deployed says to delete it.

        What cannot be read is nobody's to delete, and hinders nothing: it is left as it is, and that is said.
        """
        try:
            marker = self.marker()
        except UnreachableError:
            raise
        except SiteError as error:
            self._insist_that_nothing_runs(self.root, error)
            text = f"whose {self.root} is cannot be told, so it is left as it is, its data too: {error}"
            self.journal.note(text, step="keep", state="warning")
            return
        if marker is None or marker.owner != self.props["owner"]:
            self.journal.note(f"{self.root} holds nothing of {self.props['owner']}: nothing to do", step="destroy")
            return
        if marker.incarnation != self.props.get("incarnation", ""):
            # The engine deletes what it has replaced after it has made the replacement, which may be in the same place.
            self.journal.note(f"{self.root} serves a later deployment: left as it is", step="destroy")
            return
        with self._alone():
            server = self._stopped(marker)
            if self.props["on_destroy"] == "delete":
                self._delete(server)
            else:
                marker.state = "kept"
                self._write_marker(server, marker)
                self.journal.note(f"its data is kept in {server.layout.data}", step="keep")

    def _stopped(self, marker: Marker) -> Server:
        """Stop the server, and take leave of its source. One that is stopped needs no PostgreSQL to be destroyed."""
        server = self.server(Binaries("", marker.version), marker)
        try:
            server.running_pid()
        except UnreachableError:
            raise
        except SiteError as error:
            self._insist_that_nothing_runs(marker.data, error)
            text = f"{marker.data} cannot be read, and no process works in it: {error}"
            self.journal.note(text, step="stop", state="warning")
            return server
        try:
            server = self.existing()[1]
        except SiteError as error:
            if server.running_pid() is not None:
                raise
            self.journal.note(f"it does not run, and its source is not told: {error}", step="leave", state="warning")
            return server
        with self.journal.step("stop", "stopping PostgreSQL"):
            server.stop(self._deadline("start"))
        if self.props.get("source") and not self._is_to_lead(server):
            self._following(server).leave()
        return server

    def _insist_that_nothing_runs(self, folder: str, error: SiteError) -> None:
        """Refuse to leave a server behind that runs in a folder which cannot be read."""
        if pids := self.connection.working_below(folder):
            msg = f"{error}. A server may run there (process {', '.join(pids)}): stop it, then run this again"
            raise SiteError(msg) from error

    def _delete(self, server: Server) -> None:
        """Delete everything of the server, but data directories that were moved aside."""
        layout = server.layout
        self.journal.note(f"deleting {self.root}, as on_destroy='delete' says", step="delete")
        kept = self.connection.run(["ls", "-A", "--", layout.kept], user=self.user).stdout.split()
        doomed = [self.root]
        if kept:
            text = f"{layout.kept} stays: it has {len(kept)} that were moved aside; look at them, then remove it"
            self.journal.note(text, step="delete", state="warning")
            names = self.connection.check(["ls", "-A", "--", self.root], user=self.user).split()
            doomed = [f"{self.root}/{name}" for name in names if name != "kept"]
        self.connection.check(["rm", "-rf", "--one-file-system", "--", *doomed], timeout=600)

    # -- outputs -------------------------------------------------------------------------------------------------

    def outputs(self, server: Server, marker: Marker, credentials: Mapping[str, str]) -> Mapping[str, Any]:
        """Return what the resource outputs beside its inputs."""
        host = self.props["host"]
        return {
            "status": "running",
            "endpoint": {"host": host["address"], "port": marker.port},
            "root": self.root,
            "incarnation": marker.incarnation,
            "revision": marker.revision,
            "mount": mount_of(self.connection, self.root),
            "data_directory": server.layout.data,
            "event_log": server.layout.events,
            "postgresql_version": server.binaries.version,
            "system_identifier": marker.system_identifier,
            **self.certificate_outputs(server),
            "credentials": dict(credentials),
            "site": {**site_of(host, self.props["owner"], self.root), "data": server.layout.data},
        }

    def certificate_outputs(self, server: Server) -> Mapping[str, Any]:
        """Return the outputs that a rotation by command changes, too.

        Raises:
            SiteError: certificates are missing.
        """
        pairs = self._key_pairs(server)
        if not {"ca", "replication"} <= set(pairs):
            msg = f"{self.connection.name}: certificates are missing in {server.layout.tls}"
            raise SiteError(msg)
        authority, replication = pairs["ca"].certificate, pairs["replication"]
        return {
            "ca_certificate": authority,
            "replication_certs": {
                "ca_certificate": authority,
                "client_certificate": replication.certificate,
                "client_key": replication.key,
            },
        }

    def _member(self) -> str:
        return str(self.props["host"]["name"])

    def _deadline(self, step: str) -> float:
        return float(self.props["deadlines"][step])


def open_deployment(props: Mapping[str, Any], operation: str, show: Any) -> Deployment:
    """Connect to the host of a server and return its deployment.

    Raises:
        UnreachableError: the host does not answer, or is another machine.
    """
    journal = Journal(f"{props['host']['name']}/{props['name']}", operation, show)
    connection = connect(props["host"])
    user = os_user(connection, props["host"])
    return Deployment(connection, props, journal, user, root_of(connection, props))
