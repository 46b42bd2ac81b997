"""Making, changing and removing one endpoint on a host. Every act may be cut off and run again.

A deployment moves no role: a new endpoint forwards to the member that is active, and from then on only `point` changes
to which.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.capabilities.site import load_site
from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.hosts.connection import Connection, connect
from harmony_pulumi.hosts.logs import recording
from harmony_pulumi.hosts.pgbouncer import files
from harmony_pulumi.hosts.pgbouncer.boot import Sites, sites_json
from harmony_pulumi.hosts.pgbouncer.files import Layout
from harmony_pulumi.hosts.pgbouncer.pooler import IN_USE, Marker, Pooler, find_program, find_psql
from harmony_pulumi.hosts.pgbouncer.site import site_of
from harmony_pulumi.hosts.postgresql import certificates
from harmony_pulumi.hosts.postgresql.home import base_folder, listening_ports, make_root, os_user, root_of
from harmony_pulumi.hosts.postgresql.inspection import Finding, room_problems
from harmony_pulumi.hosts.postgresql.layout import socket_problem
from harmony_pulumi.orchestration.journal import Journal, operator

_FIRST_PORT, _PORT_TRIES = 6432, 10
_LOCK_DEADLINE = 60
_OURS = {"config", "tls", "run", "log", "lock", "lost+found"}
"""What is in a folder of ours before the marker is."""


@dataclass(frozen=True)
class Deployment:
    """One endpoint as it is declared, on the host where it is to be."""

    pooler: Pooler
    props: Mapping[str, Any]
    journal: Journal

    @property
    def connection(self) -> Connection:
        """The connection to the host."""
        return self.pooler.connection

    @property
    def layout(self) -> Layout:
        """Where things are."""
        return self.pooler.layout

    def marker(self) -> Marker | None:
        """Return the marker of the folder."""
        return Marker.read(self.connection, self.layout.root, self.pooler.user)

    def deploy(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Bring the endpoint to what is declared, whatever is there of it; return its outputs.

        Args:
            before: the inputs that were deployed before, if any were.

        Raises:
            SiteError: it cannot be; the message says why.
        """
        program = find_program(self.connection)
        self._refuse_foreign()
        self._make_folders()
        with self._alone():
            self._refuse_foreign()  # Again: whoever held the lock may have made something here.
            there = self.marker()
            marker = there or Marker(self.props["owner"], self.props["host"]["machine_id"], 0, {})
            if not files.has_prepared_statements(program.version):
                text = (
                    f"PgBouncer {program.version} has no prepared statements of the protocol, as 1.21 and newer have: "
                    f"turn them off in clients that use them (psycopg: prepare_threshold=None)"
                )
                self.journal.note(text, step="prepared-statements", state="warning")
            self._write(marker, before or {}, program.version)
            if self.pooler.running_pid() is None:
                self._start(marker, program.version)
            else:
                self.pooler.tell("RELOAD", marker.port)
            marker.revision = secrets.token_hex(8)
            site = site_of(self.props["host"], self.props["owner"], self.layout.root)
            sites = sites_json(Sites(site=site, members=self.props["sites"]))
            self.pooler.write({self.layout.sites: sites, self.layout.marker: marker.text()})
        return self._outputs(marker, program.version)

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Keep every other operation on this endpoint out: that of a run which was killed may still be at work."""
        who, user = operator(f"`pulumi` ({self.journal.operation})"), self.pooler.user
        with (
            self.connection.holding(self.layout.lock, who=who, user=user, deadline=_LOCK_DEADLINE),
            recording(self.connection, self.layout.events, user) as append,
        ):
            self.journal.write_to(append)
            yield

    def _write(self, marker: Marker, before: Mapping[str, Any], version: str) -> None:
        """Write all files. What cannot take them over while it runs is stopped before."""
        self._certificates(renew=before.get("certificate_lifetime_days") not in {None, self._lifetime})
        config = self.connection.read_file(self.layout.config, self.pooler.user)
        # Once it was reached by a port, it keeps that: its address is what clients know.
        marker.port = int(self.props.get("port") or marker.port or self._free_port())
        texts = {
            self.layout.users: files.users(self.props["passwords"]),
            self.layout.config: files.main_config(self.props, self.layout, port=marker.port, version=version),
        }
        active = self.props["active"] if marker.server else self._active()
        server = files.forwarded(marker.server or None, before.get("servers") or {}, self.props["servers"], active)
        if server is not None:
            marker.server = {key: server[key] for key in ("host", "port")}
            texts[self.layout.server_authority] = server["ca_certificate"]
            texts[self.layout.databases] = files.databases_config(marker.server)
        if files.needs_restart(config, texts[self.layout.config]):
            self.pooler.stop()
        self.pooler.write({**texts, self.layout.marker: marker.text()})

    def _active(self) -> str:
        """Return the role of the member that is active, as the members were told; else as it is declared."""
        seen = [load_site(site).observe()["roles"] for site in self.props["sites"].values()]
        told = [roles for roles in seen if roles is not None]
        return max(told, key=lambda roles: roles["epoch"])["active"] if told else self.props["active"]

    def _start(self, marker: Marker, version: str) -> None:
        """Start it; a port just chosen is chosen again if somebody was faster."""
        settled = self.props.get("port") or marker.revision
        for left in reversed(range(_PORT_TRIES)):
            try:
                with self.journal.step("start", f"starting PgBouncer {version} on port {marker.port}"):
                    self.pooler.start(marker.port)
                break
            except SiteError as error:
                if settled or IN_USE not in str(error) or not left:
                    raise
            self.journal.note(f"port {marker.port} was taken meanwhile: choosing another", step="port")
            marker.port = self._free_port()
            config = files.main_config(self.props, self.layout, port=marker.port, version=version)
            self.pooler.write({self.layout.config: config, self.layout.marker: marker.text()})

    def _free_port(self) -> int:
        """Return the first port that no process and no other endpoint of ours has, also one that is stopped."""
        find = ["find", base_folder(self.connection), "-maxdepth", "5", "-name", "endpoint.json"]
        others = [path for path in self.connection.run(find).stdout.splitlines() if path != self.layout.marker]
        texts = self.connection.read_files(others)
        kept = {int(port) for text in texts.values() for port in re.findall(r'"port": (\d+)', text or "")}
        taken = listening_ports(self.connection) | kept
        return next(port for port in range(_FIRST_PORT, 65536) if port not in taken)

    def _certificates(self, *, renew: bool) -> None:
        """Make what is missing: the endpoint's own authority, and its certificate."""
        names = [f"{self.layout.tls}/{name}.{suffix}" for name in ("ca", "server") for suffix in ("key", "crt")]
        ca_key, ca, key, crt = self.connection.read_files(names, self.pooler.user).values()
        address = self.props["host"]["address"]
        authority = certificates.KeyPair(ca, ca_key) if ca and ca_key else None
        pair = certificates.KeyPair(crt, key) if crt and key else None
        if renew or authority is None or not certificates.serves(pair, address):
            authority = authority or certificates.make_authority(f"harmony {self.props['owner']}"[:64])
            pair = certificates.make_server(authority, address, self._lifetime)
            # The certificate last: without one that serves, a pair that was cut off is made anew.
            texts = (authority.key, authority.certificate, pair.key, pair.certificate)
            self.pooler.write(dict(zip(names, texts, strict=True)))

    @property
    def _lifetime(self) -> int:
        return int(self.props["certificate_lifetime_days"])

    def _make_folders(self) -> None:
        """Make the endpoint's folder, and those in it, for the OS user that is to own them."""
        if self.connection.is_root():
            make_root(self.connection, self.layout.root, self.pooler.user)
        self.connection.check(["mkdir", "-p", "-m", "700", "--", *self.layout.folders()], user=self.pooler.user)

    def _refuse_foreign(self) -> None:
        if problem := foreign(self.pooler, self.props["owner"]):
            msg = f"{self.connection.name}: {problem}"
            raise SiteError(msg)

    def _outputs(self, marker: Marker, version: str) -> dict[str, Any]:
        host = self.props["host"]
        return {
            "status": "running",
            "endpoint": {"host": host["address"], "port": marker.port},
            "ca_certificate": self.connection.read_file(f"{self.layout.tls}/ca.crt", self.pooler.user),
            "root": self.layout.root,
            "pgbouncer_version": version,
            "prepared_statements": files.has_prepared_statements(version),
            "revision": marker.revision,
            "handle": site_of(host, self.props["owner"], self.layout.root),
        }

    def destroy(self) -> None:
        """Stop it and delete its folder: it holds no data."""
        marker, root = self.marker(), self.layout.root
        if marker is None or marker.owner != self.props["owner"]:
            self.journal.note(f"{root} holds nothing of {self.props['owner']}: nothing to do", step="destroy")
            return
        with self._alone(), self.journal.step("destroy", f"stopping PgBouncer, and deleting {root}"):
            self.pooler.stop()
        self.connection.check(["rm", "-rf", "--one-file-system", "--", root])


def open_deployment(props: Mapping[str, Any], operation: str, show: Any) -> Deployment:
    """Connect to the host of an endpoint and return its deployment.

    Raises:
        UnreachableError: the host does not answer, or is another machine.
    """
    journal = Journal(f"{props['host']['name']}/{props['name']} endpoint", operation, show)
    return Deployment(_pooler(props), props, journal)


def _pooler(props: Mapping[str, Any]) -> Pooler:
    connection = connect(props["host"])
    return Pooler(connection, Layout(root_of(connection, props)), os_user(connection, props["host"]))


# -- what can be told before anything is done ------------------------------------------------------------------------


def foreign(pooler: Pooler, owner: str) -> str | None:
    """Return why a folder is no place for an endpoint, or None if it is ours, empty or not there."""
    root = pooler.layout.root
    marker = Marker.read(pooler.connection, root, pooler.user)
    if marker is not None:
        return None if marker.owner == owner else f"{root} belongs to {marker.owner}; choose another directory"
    content = pooler.connection.run(["ls", "-A", "--", root], user=pooler.user).stdout.split()
    if set(content) <= _OURS:
        return None
    return f"{root} is not empty and is not an endpoint's ({', '.join(content[:5])}); choose another directory"


def site_problems(new: Mapping[str, Any]) -> list[Finding]:
    """Return what is wrong at the site.

    Raises:
        UnreachableError: the site cannot be asked.
    """
    connection = connect(new["host"])
    user = os_user(connection, new["host"])
    if connection.run(["id", "-u", user]).status:
        message = f"{connection.name} has no OS user {user!r}; name another with LinuxHostTopology(user=...)"
        return [("host.user", message)]
    findings: list[Finding] = []
    for find in (find_program, find_psql):
        try:
            find(connection)
        except SiteError as error:
            findings.append(("host", str(error)))
    try:
        pooler = _pooler(new)
        problem = socket_problem(pooler.layout.root) or foreign(pooler, new["owner"])
        marker = None if problem else Marker.read(connection, pooler.layout.root, user)
    except UnreachableError:
        raise
    except SiteError as error:
        return [*findings, ("directory", str(error))]
    if problem:
        return [*findings, ("directory", f"{connection.name}: {problem}")]
    if marker is None:
        findings += room_problems(connection, pooler.layout.root, user)
    kept = marker.port if marker and marker.revision else None
    port = new.get("port") or kept
    ours = port == kept and pooler.running_pid() is not None
    if port and not ours and port in listening_ports(connection):
        message = f"{connection.name}: something listens on {port} already; choose another, or leave it out"
        if port == kept:
            message = (
                f"{connection.name}: something else listens on {port}, by which clients know the endpoint; end that"
            )
        findings.append(("port", message))
    return findings


def value_problems(new: Mapping[str, Any]) -> list[Finding]:
    """Return what is wrong with passwords that are known: those that are outputs may not be, at preview."""
    passwords: Any = new["passwords"] if isinstance(new["passwords"], Mapping) else {}
    known = {role: value for role, value in passwords.items() if isinstance(value, str)}
    problems = {role: files.password_problem(value) for role, value in sorted(known.items())}
    return [(f"passwords.{role}", message) for role, message in problems.items() if message]


def status(state: Mapping[str, Any]) -> str:
    """Return `running`, or `stopped`, `half-changed`, `unreachable` or `absent`; and why, after a colon."""
    try:
        pooler = _pooler(state)
        root = pooler.layout.root
        if not pooler.connection.exists(root, pooler.user):
            return "absent"
        marker = Marker.read(pooler.connection, root, pooler.user)
        if marker is None or marker.owner != state["owner"]:
            return f"stopped: {root} is not {state['owner']}'s"
        if pooler.running_pid() is None:
            return f"stopped: no PgBouncer runs in {root}; `pulumi up` starts it"
        if marker.revision != state.get("revision"):
            return "half-changed: a change was cut off; `pulumi up` brings it to what is declared"
    except SiteError as error:
        return f"unreachable: {error}"
    return "running"
