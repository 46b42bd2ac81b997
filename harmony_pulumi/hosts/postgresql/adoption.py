"""Taking over an existing server in place: what it is, and what would change on it.

The data directory stays where it is, and the server's own configuration file stays in force where harmony is silent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harmony_pulumi.capabilities.postgresql_facts import SUPPORTED_MAJORS
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.connection import Connection
from harmony_pulumi.hosts.postgresql.layout import Layout
from harmony_pulumi.hosts.postgresql.server import Binaries, Server, choose_binaries


@dataclass(frozen=True)
class Existing:
    """A server as it was found, before it was taken over."""

    data: str
    major: int
    config_file: str
    hba_rules: str
    """The text of its pg_hba.conf."""
    port: int
    settings: Mapping[str, str]
    """Its values of the settings that were asked for."""
    running: bool
    command: Sequence[str]
    """How it was started, if that is known."""


def find(connection: Connection, data: str, user: str, names: Sequence[str]) -> Existing:
    """Look at the server of a data directory, without changing anything.

    Args:
        connection: to the host.
        data: the data directory (PGDATA).
        user: the OS user that is to run it.
        names: of the settings to read.

    Raises:
        SiteError: there is none that can be taken over; the message says why.
    """
    version = connection.read_file(f"{data}/PG_VERSION", user)
    if version is None or not version.strip().isdigit():
        msg = f"{connection.name}: {data} is not a data directory of PostgreSQL: it has no PG_VERSION"
        raise SiteError(msg)
    if (major := int(version)) not in SUPPORTED_MAJORS:
        supported = f"{SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]}"
        msg = f"{connection.name}: {data} is of PostgreSQL {major}; supported are {supported}"
        raise SiteError(msg)
    owner = connection.check(["stat", "-c", "%U", "--", data]).strip()
    if owner != user:
        advice = f"LinuxHostTopology(user={owner!r}) runs them as {owner}"
        msg = f"{connection.name}: {data} belongs to {owner}, and servers run as {user}; {advice}"
        raise SiteError(msg)
    if connection.exists(f"{data}/standby.signal", user):
        msg = f"{connection.name}: {data} is that of a standby; take over its primary, and let harmony make the replica"
        raise SiteError(msg)
    binaries = choose_binaries(connection, major)
    server = Server(connection, Layout("", data), binaries, user)
    config_file = _config_file(connection, data, user, major)
    read = _Reader(connection, binaries, config_file, data, user)
    return Existing(
        data=data,
        major=major,
        config_file=config_file,
        hba_rules=connection.read_file(read("hba_file"), user) or "",
        port=int(read("port")),
        settings={name: read(name) for name in names},
        running=server.running_pid() is not None,
        command=_command(connection, data, user),
    )


@dataclass(frozen=True)
class _Reader:
    """Asks `postgres -C` for the value of a setting, as its configuration files have it."""

    connection: Connection
    binaries: Binaries
    config_file: str
    data: str
    user: str

    def __call__(self, name: str) -> str:
        argv = [f"{self.binaries.path}/postgres", "-D", self.data, "-c", f"config_file={self.config_file}", "-C", name]
        return self.connection.check(argv, user=self.user).strip()


def _config_file(connection: Connection, data: str, user: str, major: int) -> str:
    """Return the configuration file: named on the command line, beside the data, or where Debian has it."""
    words = " ".join(_command(connection, data, user))
    named = re.search(r"config_file=(\S+)", words)
    candidates = [named[1]] if named else []
    candidates.append(f"{data}/postgresql.conf")
    candidates += connection.run(
        ["find", f"/etc/postgresql/{major}", "-maxdepth", "2", "-name", "postgresql.conf"]
    ).stdout.splitlines()
    for path in candidates:
        text = connection.read_file(path, user)
        if text is not None and (path.startswith(f"{data}/") or named or f"'{data}'" in text):
            return path
    msg = f"{connection.name}: found no configuration file of {data}; looked at {', '.join(candidates)}"
    raise SiteError(msg)


def _command(connection: Connection, data: str, user: str) -> list[str]:
    """Return the command line that the server was last started with: PostgreSQL writes it to postmaster.opts."""
    text = connection.read_file(f"{data}/postmaster.opts", user) or ""
    return [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', text)]


def changes(existing: Existing, wanted: Mapping[str, str]) -> list[str]:
    """Return, in words, what taking the server over would change on it."""
    found = existing.settings
    changed = [
        f"{name}: {found[name] or 'empty'} becomes {value}" for name, value in wanted.items() if found[name] != value
    ]
    rules = sum(1 for line in existing.hba_rules.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return [
        f"take over PostgreSQL {existing.major} in {existing.data}"
        + (": a restart" if existing.running else ": a start"),
        *changed,
        f"pg_hba.conf: replication by certificate alone, then its {rules} rules, then clients by SCRAM over TLS",
        "roles: harmony_replication and the owners that are missing",
    ]


def give_back(server: Server, existing: Existing, deadline: float) -> None:
    """Start a server again as it was found, because it could not be taken over."""
    server.stop(deadline)
    options = [word for word in existing.command[1:] if word not in {"-D", existing.data}]
    # pg_ctl hands the options to a shell: what PostgreSQL itself wrote is passed only if no shell would read it.
    if any(not re.fullmatch(r"[A-Za-z0-9_./=,:@+-]+", word) for word in options):
        options = ["-c", f"config_file={existing.config_file}"]
    argv = [server.program("pg_ctl"), "start", "-D", existing.data, "-l", server.layout.log, "-s", "-w"]
    argv += ["-t", str(int(deadline)), "-o", " ".join(options)]
    server.connection.check(argv, user=server.user, timeout=deadline + 15)
