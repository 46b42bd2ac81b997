"""Taking over an existing server in place: what it is, and what would change on it.

The data directory stays where it is, and the server's own configuration file stays in force where harmony is silent.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from harmony_pulumi.capabilities.postgresql_facts import MANAGED, REPLICATION_ROLE, SUPPORTED_MAJORS
from harmony_pulumi.capabilities.postgresql_settings import setting
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.connection import Connection
from harmony_pulumi.hosts.postgresql import files
from harmony_pulumi.hosts.postgresql.layout import Layout
from harmony_pulumi.hosts.postgresql.server import Binaries, Server, choose_binaries

COMPARED = (
    "ssl",
    "ssl_cert_file",
    "ssl_ca_file",
    "wal_level",
    "wal_log_hints",
    "max_wal_senders",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "listen_addresses",
    "port",
    "unix_socket_directories",
    "password_encryption",
    "cluster_name",
    "hot_standby",
)
"""What harmony sets itself, and so is compared, and shown, before an existing server is taken over."""
_TLS_FILES = ("ssl_cert_file", "ssl_ca_file")
_LEAST: Mapping[str, int] = {"max_wal_senders": 4, "max_replication_slots": 3}
"""What a replica needs: it holds one of each, a base backup two senders, and a new copy of it another slot."""
_ENOUGH = 10
"""PostgreSQL's own default of both."""
_LONGEST_LIST = 60
# pg_ctl hands the options to a shell: what PostgreSQL itself wrote is passed only if no shell would read it.
_UNREAD_BY_SHELL = re.compile(r"[A-Za-z0-9_./=,:@+-]+")


@dataclass(frozen=True)
class Existing:
    """A server as it was found, before it was taken over."""

    data: str
    major: int
    config_file: str
    own_config: str
    """What stands for that file in another one: an `include`, or its text if it is in the data directory."""
    hba_rules: str
    """The text of its pg_hba.conf."""
    ident_maps: str
    """The text of its pg_ident.conf."""
    altered: str
    """The text of its postgresql.auto.conf, where ALTER SYSTEM writes."""
    port: int
    sockets: Sequence[str]
    """The folders of its Unix sockets, as far as they are there."""
    tablespaces: Sequence[str]
    """Where its tablespaces are, beside those in its data directory."""
    settings: Mapping[str, str]
    """Its values of the settings that were asked for; empty for what it does not know."""
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
    command = _command(connection, data, user)
    config_file = _config_file(connection, data, user, major, command)
    read = _Reader(connection, binaries, config_file, data, user, command)
    texts = connection.read_files([read.known("hba_file"), read.known("ident_file"), server.layout.altered], user)
    hba_rules, ident_maps, altered = (text or "" for text in texts.values())
    sockets = files.folders_in(read("unix_socket_directories"))
    links = ["find", f"{data}/pg_tblspc", "-mindepth", "1", "-maxdepth", "1", "-type", "l", "-printf", "%l\\n"]
    return Existing(
        data=data,
        major=major,
        config_file=config_file,
        own_config=_own_config(connection, config_file, data, user),
        hba_rules=hba_rules,
        ident_maps=ident_maps,
        altered=altered,
        port=int(read.known("port")),
        sockets=usable(connection, sockets, user),
        tablespaces=connection.run(links, user=user).stdout.splitlines(),
        settings={name: read(name) for name in names},
        running=server.running_pid() is not None,
        command=command,
    )


def usable(connection: Connection, folders: Sequence[str], user: str) -> list[str]:
    """Return the folders where Unix sockets can be made: a server does not start where one of them cannot."""
    # An abstract socket (`@name`) has no folder.
    return [
        folder
        for folder in folders
        if folder.startswith("@") or connection.run(["test", "-w", folder], user=user).status == 0
    ]


@dataclass(frozen=True)
class _Reader:
    """Asks `postgres -C` for the value of a setting, as its configuration files and its command line have it."""

    connection: Connection
    binaries: Binaries
    config_file: str
    data: str
    user: str
    command: Sequence[str]

    def __call__(self, name: str) -> str:
        """Return a value, in the setting's own unit; nothing for what this PostgreSQL does not know."""
        done = self.connection.run(self._argv(name), user=self.user)
        return done.stdout.strip() if done.status == 0 else ""

    def known(self, name: str) -> str:
        """Return a value of a setting that every PostgreSQL has."""
        return self.connection.check(self._argv(name), user=self.user).strip()

    def _argv(self, name: str) -> list[str]:
        argv = [f"{self.binaries.path}/postgres", *self.command[1:], "-D", self.data]
        return [*argv, "-c", f"config_file={self.config_file}", "-C", name]


def _config_file(connection: Connection, data: str, user: str, major: int, command: Sequence[str]) -> str:
    """Return the configuration file: named on the command line, beside the data, or where Debian has it."""
    named = re.search(r"config_file=(\S+)", " ".join(command))
    candidates = [named[1]] if named else []
    # PostgreSQL, "File Locations": with -D, the folder of the configuration file may be named, which names the data's.
    candidates += [f"{folder}/postgresql.conf" for option, folder in pairwise(command) if option == "-D"]
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


def _own_config(connection: Connection, config_file: str, data: str, user: str) -> str:
    if not config_file.startswith(f"{data}/"):
        return f"include {files.quote_setting(config_file)}\n"
    # A rewind, or a copy of another member, replaces what is there, and no other member has that file.
    return files.moved_config(connection.read_file(config_file, user) or "", config_file.rpartition("/")[0])


def _command(connection: Connection, data: str, user: str) -> list[str]:
    """Return the command line that the server was last started with: PostgreSQL writes it to postmaster.opts."""
    text = connection.read_file(f"{data}/postmaster.opts", user) or ""
    return [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', text)]


_INSIDE = """
SELECT json_build_object(
  'roles', coalesce((SELECT json_object_agg(rolname, json_build_object(
      'login', rolcanlogin, 'password', rolpassword IS NOT NULL))
    FROM pg_authid WHERE rolname IN ({roles})), '{{}}'),
  'owners', coalesce((SELECT json_object_agg(datname, pg_get_userbyid(datdba))
    FROM pg_database WHERE datname IN ({names})), '{{}}'))
"""


# -- what is in it -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What is in a server already, of the owners and databases that are declared."""

    roles: Mapping[str, Mapping[str, bool]]
    """By name: whether it may log in (`login`), and whether it has a password (`password`)."""
    owners: Mapping[str, str]
    """The owners of databases, by the database."""


def look_inside(server: Server, databases: Sequence[Mapping[str, Any]], *, port: int, socket: str = "") -> Content:
    """Look which of the declared owners and databases, and of harmony's own role, are in a running server.

    Raises:
        SiteError: it does not let its superuser in.
    """
    names = ", ".join(files.quote_literal(database["name"]) for database in databases)
    roles = ", ".join(
        files.quote_literal(role) for role in (REPLICATION_ROLE, *(database["owner"] for database in databases))
    )
    query = _INSIDE.format(roles=roles, names=names)
    return Content(**server.look(query, port=port, socket=socket or None))


def look_inside_before(
    connection: Connection, existing: Existing, user: str, databases: Sequence[Mapping[str, Any]]
) -> Content:
    """Look the same of a server that is not taken over yet, over its own Unix socket.

    Raises:
        SiteError: it does not run, or does not let the OS user in as its superuser.
    """
    # Its process, the data directory, when it started, its port, the first folder of its Unix sockets.
    lines = (connection.read_file(f"{existing.data}/postmaster.pid", user) or "").splitlines()
    if not existing.running or len(lines) < 5 or not lines[4].strip():
        msg = f"{connection.name}: the server in {existing.data} does not run, or has no Unix socket"
        raise SiteError(msg)
    server = Server(connection, Layout("", existing.data), choose_binaries(connection, existing.major), user)
    return look_inside(server, databases, port=int(lines[3]), socket=lines[4].strip())


def unknown_passwords(content: Content, known: Collection[str]) -> dict[str, str]:
    """Return, by role, what is wrong with owners that have a password which nobody told harmony.

    It would not be in the uri, and a new one in its place would lock out the clients that use it.

    Args:
        content: what is in the server.
        known: the roles whose passwords are declared, or were made by harmony.
    """
    return {
        role: (
            f"the role {role} is in the server already and has a password, which harmony does not know and does not "
            f"replace unasked; declare it in `passwords`, or declare another one there to change it"
        )
        for role, has in sorted(content.roles.items())
        if has["password"] and role not in {*known, REPLICATION_ROLE}
    }


def owner_changes(content: Content, databases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return, in words, which existing databases get another owner."""
    return [
        f"database {name}: owner {found} becomes {owner}"
        for name, owner in ((database["name"], database["owner"]) for database in databases)
        if (found := content.owners.get(name, owner)) != owner
    ]


def content_changes(content: Content, databases: Sequence[Mapping[str, Any]], declared: Collection[str]) -> list[str]:
    """Return, in words, what taking the server over would change of its roles and databases.

    Args:
        content: what is in the server.
        databases: those that are declared.
        declared: the roles whose passwords are declared.
    """
    made = [REPLICATION_ROLE] if REPLICATION_ROLE not in content.roles else []
    changed: list[str] = []
    for role in sorted({database["owner"] for database in databases}):
        if (has := content.roles.get(role)) is None:
            made.append(role)
            continue
        if not has["login"]:
            changed.append(f"role {role}: NOLOGIN becomes LOGIN")
        if role in declared:
            changed.append(f"role {role}: its password becomes the one in `passwords`")
        elif not has["password"]:
            changed.append(f"role {role}: it has no password, and gets one")
    missing = [database["name"] for database in databases if database["name"] not in content.owners]
    return [
        *([f"make roles {', '.join(made)}"] if made else []),
        *changed,
        *([f"make databases {', '.join(missing)}"] if missing else []),
        *owner_changes(content, databases),
        *(
            f"database {database['name']}: extensions {', '.join(database['extensions'])}, if they are missing"
            for database in databases
            if database["extensions"]
        ),
    ]


# -- what changes on it ------------------------------------------------------------------------------------------


def required(existing: Existing) -> dict[str, object]:
    """Return what replication needs of an existing server and its own configuration does not give.

    What the command line gave it is lost with that, so it is here too. Its values must be those of `COMPARED`.
    """
    found = existing.settings
    # A server that was not made by us may have no checksums, and then pg_rewind needs the hints in the WAL.
    needed: dict[str, object] = {**_options(existing.command), "wal_log_hints": True}
    if found["wal_level"] == "minimal":
        needed["wal_level"] = "replica"
    return needed | {name: _ENOUGH for name, least in _LEAST.items() if int(found[name]) < least}


def _options(command: Sequence[str]) -> dict[str, str]:
    """Return the settings of a command line (`-c name=value`, `--name=value`) that harmony does not set itself."""
    texts = [value for option, value in pairwise(command) if option == "-c"]
    texts += [word[2:] for word in command if word.startswith("--")]
    pairs = [text.partition("=") for text in texts]
    options = {name.replace("-", "_").lower(): value for name, equals, value in pairs if equals}
    return {name: value for name, value in options.items() if name not in MANAGED}


def overriding(existing: Existing, names: Collection[str]) -> list[str]:
    """Return the ALTER SYSTEM settings that would beat what is declared, managed or required by these names."""
    beaten = {*MANAGED, *(name.lower() for name in names)}
    return sorted(beaten & files.settings_in(existing.altered).keys())


def changes(existing: Existing, wanted: Mapping[str, object], kept: str) -> list[str]:
    """Return, in words, what taking the server over would change on it, beside its roles and databases.

    Args:
        existing: the server.
        wanted: the settings that are managed, required and declared.
        kept: where its postgresql.auto.conf is kept.
    """
    rules = sum(1 for line in existing.hba_rules.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    had_tls = files.same_value("ssl", existing.settings["ssl"], "on")
    altered = overriding(existing, wanted)
    return [
        f"take over PostgreSQL {existing.major} in {existing.data}"
        + (": a restart" if existing.running else ": a start"),
        *(
            _change(name, existing.settings[name], value)
            for name, value in wanted.items()
            if name in existing.settings
            and not files.same_value(name, existing.settings[name], value)
            and (had_tls or name not in _TLS_FILES)
        ),
        *(["certificate: of a new authority; clients that verify it need `ca_certificate`"] if had_tls else []),
        *(f"postgresql.auto.conf: without {names}, which would beat the above" for names in _in_lines(altered)),
        *([f"postgresql.auto.conf: as it was, it is kept in {kept}"] if altered else []),
        f"pg_hba.conf: postgres by peer, replication by certificate, then its {rules} rules, then SCRAM over TLS",
    ]


def _in_lines(names: Sequence[str]) -> list[str]:
    """Return a list of names as texts that Pulumi does not cut short."""
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + len(name) < _LONGEST_LIST:
            lines[-1] += f", {name}"
        else:
            lines.append(name)
    return lines


def _change(name: str, found: str, value: object) -> str:
    if name == "unix_socket_directories":
        before, after = files.folders_in(found), files.folders_in(files.setting_text(value))
        if set(before) < set(after):  # Said in full, it would be too long for Pulumi to show.
            return (
                f"{name}: {', '.join(folder for folder in after if folder not in before)} comes first, the rest stays"
            )
    return f"{name}: {_spoken(name, found)} becomes {_spoken(name, files.setting_text(value))}"


def _spoken(name: str, text: str) -> str:
    """Return a value for people: a bare number with its unit, as `postgres -C` does not print it."""
    known = setting(name)
    if known is None or not known.unit or not re.fullmatch(r"[1-9]\d*", text):
        return text or "empty"
    unit = known.unit.lstrip("0123456789")
    amount = int(text) * int(known.unit.removesuffix(unit) or 1)
    for larger, smaller, factor in (("MB", "kB", 1024), ("GB", "MB", 1024), ("s", "ms", 1000), ("min", "s", 60)):
        if unit == smaller and amount % factor == 0:
            amount, unit = amount // factor, larger
    return f"{amount}{unit}"


# -- taking over, and giving back --------------------------------------------------------------------------------


def clear_altered(server: Server, existing: Existing, names: Collection[str]) -> None:
    """Remove the ALTER SYSTEM settings that would beat ours, and keep the file as it was. The server is stopped."""
    removed = overriding(existing, names)
    if not removed:
        return
    if server.connection.read_file(server.layout.altered_before, server.user) is None:
        # If there is one, an earlier take-over was cut off, and that is how the file was.
        server.write({server.layout.altered_before: existing.altered})
    server.write({server.layout.altered: files.without_settings(existing.altered, removed)})


def give_back(server: Server, existing: Existing, deadline: float) -> None:
    """Start a server again as it was found, because it could not be taken over."""
    server.stop(deadline)
    before = server.connection.read_file(server.layout.altered_before, server.user)
    if before is not None:
        server.write({server.layout.altered: before})
        server.connection.check(["rm", "--", server.layout.altered_before], user=server.user)
    if not existing.running:
        return
    argv = [server.program("pg_ctl"), "start", "-D", existing.data, "-l", server.layout.log, "-s", "-w"]
    argv += ["-t", str(int(deadline)), "-o", " ".join(start_options(existing))]
    server.connection.check(argv, user=server.user, timeout=deadline + 15)


def start_options(existing: Existing) -> list[str]:
    """Return the options to start a server with as it was started, if no shell would read what is in them."""
    options = [word for before, word in pairwise(existing.command) if "-D" not in {before, word}]
    if all(_UNREAD_BY_SHELL.fullmatch(word) for word in options):
        return options
    if existing.config_file == f"{existing.data}/postgresql.conf":
        return []  # Where PostgreSQL looks by itself.
    if _UNREAD_BY_SHELL.fullmatch(existing.config_file):
        return ["-c", f"config_file={existing.config_file}"]
    msg = (
        f"the server in {existing.data} is stopped: its configuration file {existing.config_file} has characters that "
        f"a shell reads, so it is not started from here; start it as it was started before"
    )
    raise SiteError(msg)
