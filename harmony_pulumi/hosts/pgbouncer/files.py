"""Where the parts of an endpoint are, and the texts of its files. Pure: values in, text out, everything quoted here."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.capabilities.addresses import address

HEADER = ";; Written by harmony; edits are overwritten. Change the Pulumi program instead.\n"

PREPARED_STATEMENTS_SINCE = (1, 21)
"""The first version that has prepared statements of the protocol work with transaction pooling."""


@dataclass(frozen=True)
class Layout:
    """The paths of one endpoint."""

    root: str
    """The endpoint's folder."""

    @property
    def marker(self) -> str:
        """Whose folder this is, its port, and the server that it forwards to: JSON, a `Marker`."""
        return f"{self.root}/endpoint.json"

    @property
    def sites(self) -> str:
        """What it must know of its pair without the program: JSON, `boot.Sites`."""
        return f"{self.root}/sites.json"

    @property
    def config(self) -> str:
        """PgBouncer's configuration."""
        return f"{self.root}/config/pgbouncer.ini"

    @property
    def databases(self) -> str:
        """The part of it that says where to forward to."""
        return f"{self.root}/config/databases.ini"

    @property
    def users(self) -> str:
        """The passwords by role, mode 0600."""
        return f"{self.root}/config/userlist.txt"

    @property
    def tls(self) -> str:
        """The folder of keys and certificates."""
        return f"{self.root}/tls"

    @property
    def server_authority(self) -> str:
        """The authority of the server that it forwards to."""
        return f"{self.tls}/server-ca.crt"

    @property
    def socket(self) -> str:
        """The folder of the Unix socket, by which it is administered."""
        return f"{self.root}/run"

    @property
    def pidfile(self) -> str:
        """The file with the process."""
        return f"{self.socket}/pgbouncer.pid"

    @property
    def paused(self) -> str:
        """There while it is paused, and which process is: PgBouncer before 1.19 does not tell."""
        return f"{self.socket}/paused"

    @property
    def log(self) -> str:
        """PgBouncer's log."""
        return f"{self.root}/log/pgbouncer.log"

    @property
    def events(self) -> str:
        """The log of every step of a deployment, one JSON object a line."""
        return f"{self.root}/log/events.jsonl"

    @property
    def lock(self) -> str:
        """The file that an operation holds a lock on while it is at work."""
        return f"{self.root}/lock"

    def folders(self) -> tuple[str, ...]:
        """Return the folders to make, the first first."""
        return (self.root, f"{self.root}/config", self.tls, self.socket, f"{self.root}/log")


def main_config(props: Mapping[str, Any], layout: Layout, *, port: int, version: str) -> str:
    """Return pgbouncer.ini: pgbouncer(5).

    Args:
        props: what is declared.
        layout: where things are.
        port: the TCP port.
        version: of PgBouncer.
    """
    settings: dict[str, object] = {
        "listen_addr": props["host"]["address"],
        "listen_port": port,
        "unix_socket_dir": layout.socket,
        "unix_socket_mode": "0700",
        "logfile": layout.log,
        "pidfile": layout.pidfile,
        # A client's each connection would be two lines in a log that nobody rotates.
        "log_connections": 0,
        "log_disconnections": 0,
        "log_stats": 0,
        "auth_type": "scram-sha-256",
        "auth_file": layout.users,
        "pool_mode": "transaction",
        "default_pool_size": props["pool_size"],
        "max_client_conn": props["max_clients"],
        # JDBC sends it always; in one pool it cannot differ from client to client.
        "ignore_startup_parameters": "extra_float_digits",
        # Clients wait for 15 s by default once a server has refused a connection, and that may be over at once.
        "server_login_retry": 1,
        "client_tls_sslmode": "require",
        "client_tls_cert_file": f"{layout.tls}/server.crt",
        "client_tls_key_file": f"{layout.tls}/server.key",
        "server_tls_sslmode": "verify-full",
        "server_tls_ca_file": layout.server_authority,
    }
    if has_prepared_statements(version):
        settings["max_prepared_statements"] = 200
    lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
    return f"{HEADER}%include {layout.databases}\n\n[pgbouncer]\n{lines}"


def databases_config(server: Mapping[str, Any]) -> str:
    """Return the file that forwards every database to a server, of `host` and `port`."""
    return f"{HEADER}[databases]\n* = host={server['host']} port={server['port']}\n"


def users(passwords: Mapping[str, str]) -> str:
    """Return the roles that may log in, with their passwords.

    Not their SCRAM verifiers, with which PgBouncer can log in to a server only by what it saw of a client's login: once
    a password, or only its salt, had changed, those who are connected would be refused at the next switchover.
    """
    return "".join(f"{_quoted(role)} {_quoted(password)}\n" for role, password in sorted(passwords.items()))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def password_problem(password: str) -> str | None:
    """Return why PgBouncer would take a password for something else, without showing it, or None."""
    if password.startswith("SCRAM-SHA-256$") or re.fullmatch("md5[0-9a-f]{32}", password):
        return "looks like a stored secret, as which PgBouncer would read it; expected another password"
    return None


def needs_restart(before: str | None, after: str) -> bool:
    """Tell whether PgBouncer takes a new configuration over only when it is started: pgbouncer(5)."""
    return before is None or _fixed(before) != _fixed(after)


def _fixed(text: str) -> list[str]:
    return re.findall(r"^(?:listen_addr|listen_port|unix_socket_dir|pidfile) = .*$", text, re.MULTILINE)


def has_prepared_statements(version: str) -> bool:
    """Tell whether a version has prepared statements of the protocol work with transaction pooling."""
    major, minor = re.findall(r"\d+", version)[:2]
    return (int(major), int(minor)) >= PREPARED_STATEMENTS_SINCE


def rows(text: str) -> list[dict[str, str]]:
    """Return the rows of an answer of the admin console, as psql prints them with `--csv`."""
    return list(csv.DictReader(text.splitlines()))


def at_work(pools: Sequence[Mapping[str, str]]) -> int:
    """Return how many connections to servers are in use, of `SHOW POOLS`: of transactions, and of logins and checks."""
    used = ("sv_active", "sv_active_cancel", "sv_being_canceled", "sv_tested", "sv_login")
    return sum(int(pool.get(column) or 0) for pool in pools if pool["database"] != "pgbouncer" for column in used)


def clients_of(pools: Sequence[Mapping[str, str]]) -> int:
    """Return how many clients are connected, of `SHOW POOLS`."""
    there = ("cl_active", "cl_waiting")
    return sum(int(pool[column]) for pool in pools if pool["database"] != "pgbouncer" for column in there)


def waiting_of(pools: Sequence[Mapping[str, str]]) -> int:
    """Return how many clients wait for a server, of `SHOW POOLS`."""
    return sum(int(pool["cl_waiting"]) for pool in pools if pool["database"] != "pgbouncer")


def address_of(server: Mapping[str, Any]) -> str:
    """Return the address of a server of `host` and `port`."""
    return address(server["host"], server["port"])


def forwarded(
    now: Mapping[str, Any] | None,
    before: Mapping[str, Mapping[str, Any]],
    declared: Mapping[str, Mapping[str, Any]],
    active: str,
) -> Mapping[str, Any] | None:
    """Return the member to forward to, as it is declared now; None to leave what is there.

    A deployment moves no role: only the address of the member that is forwarded to may have changed.

    Args:
        now: the `host` and `port` that are forwarded to; None for a new endpoint.
        before: the members as they were declared before, by role, each with `host`, `port` and `ca_certificate`.
        declared: the members as they are declared now.
        active: the role of the member that a new endpoint forwards to.
    """
    if now is None:
        return declared[active]
    for known in (before, declared):
        for role, server in known.items():
            if role in declared and address_of(server) == address_of(now):
                return declared[role]
    return None
