"""The declared intent of a PostgreSQL database: what it holds, how it is reached, how it is replicated.

Values are checked here, with no site in reach. What only a site can tell is checked by its topology.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, cast

import pulumi
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationInfo,
)

from harmony_pulumi.capabilities.config import Config
from harmony_pulumi.capabilities.postgresql import overlap
from harmony_pulumi.capabilities.postgresql_facts import (
    MANAGED,
    REPLICATION_ROLE,
    SUPPORTED_MAJORS,
    password_problem,
)
from harmony_pulumi.capabilities.postgresql_settings import meaning, problem_with, quantity, setting
from harmony_pulumi.input_errors import Problem

_RESERVED_DATABASES = frozenset({"postgres", "template0", "template1"})
_LONGEST_IDENTIFIER = 63  # NAMEDATALEN - 1 bytes: PostgreSQL, "Identifiers and Key Words".

_READS_LOG = "harmony reads the server's log file, which is its standard error"
_RESTORE = "belongs to a restore from a backup, which is not what this deploys"
_SHELL = "PostgreSQL has a shell run it, and nothing that is declared here reaches a shell"
_TLS = "TLS below 1.2 is broken; use 'TLSv1.2' or 'TLSv1.3'"

REFUSED: Mapping[str, str] = {
    "archive_cleanup_command": f"{_RESTORE}; leave it out",
    "archive_command": f"{_SHELL}; use archive_library, which PostgreSQL 15 and newer have",
    "recovery_end_command": f"{_RESTORE}; leave it out",
    "restore_command": f"{_RESTORE}; leave it out",
    "ssl_passphrase_command": f"{_SHELL}; keys are made by the topology, without a passphrase",
}
"""Settings that are refused whatever their value, and why. Those of `recovery_target` are, too."""

DANGEROUS: Mapping[tuple[str, str], str] = {
    ("allow_in_place_tablespaces", "on"): "it is for PostgreSQL's own developers",
    ("allow_system_table_mods", "on"): "it lets a slip destroy the catalogue",
    ("data_sync_retry", "on"): "after a failed write it trusts what may never have reached the disk",
    ("fsync", "off"): "a crash of the host would corrupt the data",
    ("full_page_writes", "off"): "a crash of the host would corrupt the data",
    ("ignore_checksum_failure", "on"): "it spreads damaged pages",
    ("ignore_invalid_pages", "on"): "it hides damage while it recovers",
    ("ignore_system_indexes", "on"): "it is for repairs in single-user mode",
    ("logging_collector", "on"): f"it takes the log elsewhere, and {_READS_LOG}",
    ("ssl_max_protocol_version", "tlsv1"): _TLS,
    ("ssl_max_protocol_version", "tlsv1.1"): _TLS,
    ("ssl_min_protocol_version", "tlsv1"): _TLS,
    ("ssl_min_protocol_version", "tlsv1.1"): _TLS,
    ("wal_level", "minimal"): "no replica can be made from it; use 'replica' or 'logical'",
    ("zero_damaged_pages", "on"): "it destroys what it cannot read",
}
"""Values of settings that are refused, in lower case, and why."""

_AT_LEAST: Mapping[str, tuple[int, str]] = {
    "max_connections": (5, "replication and orchestration need some of them"),
    "max_replication_slots": (3, "each replica holds one, and a new copy of it another"),
    "max_wal_senders": (4, "each replica holds one, and a base backup two"),
}

V = TypeVar("V")
SettingValue = StrictBool | StrictInt | StrictFloat | StrictStr


def _identifier(value: str) -> str:
    if not value:
        raise ValueError("is empty; expected a name of 1 to 63 bytes")
    if (size := len(value.encode())) > _LONGEST_IDENTIFIER:
        raise ValueError(f"{value!r} has {size} bytes; PostgreSQL takes at most {_LONGEST_IDENTIFIER}")
    if not value.isprintable():
        raise ValueError(f"{value!r} has a control character; expected printable characters")
    return value


def _role(value: str) -> str:
    if value.startswith("pg_") or value in {"postgres", "public", "none", REPLICATION_ROLE}:
        raise ValueError(
            f"{value!r} is a reserved role (postgres, public, none, {REPLICATION_ROLE}, pg_*); choose another"
        )
    return _identifier(value)


def _database(value: str) -> str:
    if value in _RESERVED_DATABASES:
        raise ValueError(f"{value!r} is PostgreSQL's own (postgres, template0, template1); choose another")
    return _identifier(value)


def _directory(value: str) -> str:
    # pg_ctl hands the path to a shell inside double quotes, so nothing that a shell reads may be in it.
    if not re.fullmatch(r"(/[A-Za-z0-9._+@=,-]+)+", value) or re.search(r"/\.\.?(/|$)", value):
        raise ValueError(
            f"{value!r} is not taken; expected an absolute path of letters, digits and ._+@=,- without a "
            f"trailing slash, '.' or '..', for instance /srv/postgresql/orders"
        )
    return value


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise ValueError(f"{value!r} is not a network ({error}); expected for instance 10.0.0.0/8 or ::1/128") from None


def _size(value: str) -> str:
    if problem_with("max_slot_wal_keep_size", value, None) or (quantity("max_slot_wal_keep_size", value) or 0) < 64:
        raise ValueError(f"{value!r} is not a size of at least 64MB; expected for instance '10GB'")
    return value


def _locale(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.@-]{1,63}", value):
        raise ValueError(f"{value!r} is not a locale's name; expected for instance 'C.UTF-8' or 'en_US.UTF-8'")
    return value


Identifier = Annotated[str, AfterValidator(_identifier)]
Role = Annotated[str, AfterValidator(_role)]
DatabaseName = Annotated[str, AfterValidator(_database)]
Directory = Annotated[str, AfterValidator(_directory)]
Network = Annotated[str, AfterValidator(_network)]
Port = Annotated[int, Field(ge=1024, le=65535)]


class Database(Config):
    """A database, its owner and its extensions."""

    name: DatabaseName
    owner: Role | None = None
    """The role that owns it and that the uri logs in as; by default one of the database's name."""
    extensions: tuple[Identifier, ...] = ()
    """Extensions to create in it, for instance `pg_stat_statements`. Left out later, they stay."""

    @property
    def owner_role(self) -> str:
        """The name of the owning role."""
        return self.owner or self.name


class Authentication(Config):
    """Who may connect. Always over TLS, always with a password (SCRAM); replication by certificate alone."""

    networks: tuple[Network, ...] = ("0.0.0.0/0", "::/0")
    """Where clients may connect from, as CIDR."""


class Deadlines(Config):
    """How long each long step may take, in seconds."""

    start: Annotated[int, Field(ge=1)] = 120
    """For a server to accept connections, crash recovery included."""
    clone: Annotated[int, Field(ge=1)] = 24 * 3600
    """For a whole base backup."""
    stream: Annotated[int, Field(ge=1)] = 300
    """For a replica to catch up and stream."""


class MemberPlacement(Config):
    """What differs from member to member of a higher-order topology."""

    port: Port | None = None
    directory: Directory | None = None
    fence_command: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """What a failover runs, where it runs itself, if the member cannot be asked: a program and its arguments, no shell.
    It must end with status 0 only once the member certainly accepts no writes: its machine is off, say."""


def _as_database(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _without(problems: list[Problem], value: V) -> V:
    if problems:
        raise ValueError(problems)
    return value


# A field that depends on others comes after them, and is checked with those of them that are good (`info.data`). A
# validator of the whole model would be left out as soon as one field is bad: its problems would come in a message of
# their own, once all others are mended.


def _passwords(
    passwords: Mapping[str, str | pulumi.Output[str]], info: ValidationInfo
) -> Mapping[str, str | pulumi.Output[str]]:
    databases: tuple[Database, ...] = info.data.get("databases", ())
    found = {
        role: _owner_problem(role, {database.owner_role for database in databases})
        or (password_problem(value) if isinstance(value, str) else None)  # An output is checked once it is known.
        for role, value in passwords.items()
    }
    return _without([Problem(role, message) for role, message in found.items() if message], passwords)


def _apart_from_adopted(directory: str, info: ValidationInfo) -> str:
    adopt = info.data.get("adopt")
    if adopt and overlap(adopt, directory):
        raise ValueError(f"{directory} and adopt={adopt} overlap; keep them apart")
    return directory


def _settings(settings: Mapping[str, SettingValue], info: ValidationInfo) -> Mapping[str, SettingValue]:
    version, replication = info.data.get("version"), info.data.get("replication")
    found = {
        name: _setting_problem(name, value, version) or _durability_problem(name, value, replication)
        for name, value in settings.items()
    }
    bad = {name for name, message in found.items() if message}
    found |= _problems_between(settings, bad, adopted=info.data.get("adopt") is not None)
    return _without([Problem(name, message) for name, message in found.items() if message], settings)


if TYPE_CHECKING:  # What may be written. A text is a sequence of texts, too, and must not pass for a list of names.
    Databases = list[str] | list[Database] | list[str | Database] | tuple[str | Database, ...]
else:
    Databases = Annotated[
        tuple[Annotated[Database, BeforeValidator(_as_database)], ...],
        AfterValidator(lambda databases: _without(_database_problems(databases), databases)),
    ]


class PostgreSQLConfig(Config):
    """What a PostgreSQL database is to be.

    Example:
        `PostgreSQLConfig(databases=["orders"], settings={"work_mem": "16MB"}, replication="synchronous")`
    """

    databases: Databases
    """The databases, at least one; a name alone is `Database(name=...)`. Databases left out later are kept."""
    passwords: Annotated[Mapping[str, str | pulumi.Output[str]], AfterValidator(_passwords)] = Field(
        default_factory=dict[str, str | pulumi.Output[str]], repr=False
    )
    """Passwords of owners, by role; by default strong ones are generated and kept as secrets."""
    version: Annotated[int, Field(ge=SUPPORTED_MAJORS[0], le=SUPPORTED_MAJORS[-1])] | None = None
    """The major version; by default the newest one that the site has. Changing it replaces the server."""
    port: Port | None = None
    """The TCP port; by default the site chooses a free one, once."""
    adopt: Directory | None = None
    """The data directory (PGDATA) of an existing server to take over as primary, in place, without initdb."""
    directory: Annotated[Directory, AfterValidator(_apart_from_adopted)] | None = None
    """The folder of the server, which holds its data directory, certificates and log; by default the site chooses."""
    replication: Literal["asynchronous", "synchronous"] = "asynchronous"
    """Synchronous: a commit is acknowledged once a replica has it on disk too."""
    settings: Annotated[Mapping[str, SettingValue], AfterValidator(_settings)] = Field(
        default_factory=dict[str, SettingValue]
    )
    """Server settings, as in postgresql.conf, for instance `{"work_mem": "16MB", "max_connections": 200}`."""
    authentication: Authentication = Authentication()
    slot_size_bound: Annotated[str, AfterValidator(_size)] = "10GB"
    """How much WAL is kept for a replica that is away (`max_slot_wal_keep_size`); beyond it, it is cloned again."""
    certificate_lifetime_days: Annotated[int, Field(ge=1, le=3650)] = 365
    """How long the server's and the replicas' certificates are valid; the site's CA lives ten years."""
    certificate_generation: Annotated[int, Field(ge=0)] = 0
    """Raise it to renew the server's and the replicas' certificates; the authorities stay."""
    authority_generation: Annotated[int, Field(ge=0)] = 0
    """Raise it to replace the authority (CA) of each server, and with it all certificates."""
    on_destroy: Literal["keep", "delete"] = "keep"
    """What `destroy` does with the data: `delete` must have been deployed by an `up` before it counts."""
    locale: Annotated[str, AfterValidator(_locale)] = "C.UTF-8"
    """The locale that initdb is given. Changing it replaces the server."""
    deadlines: Deadlines = Deadlines()
    members: Mapping[str, MemberPlacement] = Field(default_factory=dict[str, MemberPlacement])
    """What differs from member to member, by the name of the topology that runs it."""

    @property
    def declared_databases(self) -> tuple[Database, ...]:
        """The databases, those given by name alone, too."""
        return cast("tuple[Database, ...]", self.databases)

    def for_member(self, name: str) -> PostgreSQLConfig:
        """Return the configuration as it is for one member, by the name of its topology."""
        placement = self.members.get(name)
        if placement is None:
            return self
        return self.model_copy(update=placement.model_dump(exclude_none=True, exclude={"fence_command"}))


def _database_problems(databases: tuple[Database, ...]) -> list[Problem]:
    problems: list[Problem] = []
    if not databases:
        problems.append(Problem("", "there are none; name at least one, for instance ['orders']"))
    seen: dict[str, int] = {}
    for index, database in enumerate(databases):
        if (first := seen.setdefault(database.name, index)) != index:
            message = f"{database.name!r} is databases.{first} already; name each once"
            problems.append(Problem(f"{index}.name", message))
        if database.owner is None:
            try:
                _role(database.name)
            except ValueError as error:
                problems.append(Problem(f"{index}.owner", f"by default the database's name: {error}"))
    return problems


def _owner_problem(role: str, owners: Collection[str]) -> str | None:
    """Return why a password is nobody's, as far as the owners are known."""
    if owners and role not in owners:
        return f"{role!r} owns no database; the owners are {', '.join(sorted(owners))}"
    return None


def _durability_problem(name: str, value: SettingValue, replication: str | None) -> str | None:
    if name.lower() != "synchronous_commit" or replication != "synchronous":
        return None
    found = meaning(name, value)
    if found in {"on", "remote_apply"}:
        return None
    return f"is {found!r}, which acknowledges a commit before the replica has it; use 'on' or 'remote_apply'"


def _setting_problem(name: str, value: SettingValue, major: int | None) -> str | None:
    if instead := MANAGED.get(name.lower()):
        return f"is set by harmony: {instead}"
    if why := REFUSED.get(name.lower()):
        return why
    if name.lower().startswith("recovery_target"):
        return f"{_RESTORE}; leave it out"
    if isinstance(value, str) and not value.isprintable():
        return "has a control character; expected printable characters"
    if problem := problem_with(name, value, major):
        return problem
    if why := DANGEROUS.get((name.lower(), meaning(name, value))):
        return f"{value!r} is refused: {why}"
    if problem := _log_problem(name.lower(), str(value)):
        return problem
    if name.lower() in _AT_LEAST:
        least, why = _AT_LEAST[name.lower()]
        if (quantity(name, value) or 0) < least:
            return f"is {value}; expected at least {least}: {why}"
    return None


def _log_problem(name: str, value: str) -> str | None:
    """Return why harmony could not read what the server logs: it looks there for the reason of a failure."""
    if name == "log_destination" and "stderr" not in {word.strip(' "').lower() for word in value.split(",")}:
        return f"is {value!r}; expected stderr, alone or among others: {_READS_LOG}"
    if name == "lc_messages" and not re.fullmatch(r"(C|POSIX)(\.[\w-]+)?|en_[\w.@-]+", value):
        return f"is {value!r}; expected C, POSIX or an English one such as 'en_US.UTF-8': {_READS_LOG}"
    return None


def _problems_between(settings: Mapping[str, SettingValue], bad: Collection[str], *, adopted: bool) -> dict[str, str]:
    """Return, by their names, what is wrong with settings beside each other, as far as each is good by itself."""
    found: dict[str, str] = {}
    good: dict[str, str] = {}
    for name in settings:
        if name not in bad and (first := good.setdefault(name.lower(), name)) != name:
            found[name] = f"is {first} again, since upper and lower case are alike; give it once"
    # A server that is taken over may have set what is not declared here.
    unknown = {name.lower() for name in bad} | {name for name in _CONNECTIONS if adopted and name not in good}
    return found | _reserve_problem(settings, good, unknown) | _tls_problem(settings, good)


_CONNECTIONS = ("max_connections", "superuser_reserved_connections", "reserved_connections")


def _reserve_problem(
    settings: Mapping[str, SettingValue], names: Mapping[str, str], unknown: Collection[str]
) -> dict[str, str]:
    """Return what is wrong if no connection is left to clients: PostgreSQL does not start then."""
    counts = {
        name: int(quantity(name, settings[names[name]] if name in names else _default(name)) or 0)
        for name in _CONNECTIONS
        if name not in unknown
    }
    total = counts.pop("max_connections", None)
    reserves = [names[name] for name in counts if name in names]
    if total is None or not reserves or sum(counts.values()) < total:
        return {}
    message = f"leaves no connection to clients: {sum(counts.values())} are reserved, and max_connections is {total}"
    return {reserves[0]: f"{message}; reserve fewer"}


def _default(name: str) -> str | float:
    found = setting(name)
    return 0 if found is None or found.default is None else found.default


def _tls_problem(settings: Mapping[str, SettingValue], names: Mapping[str, str]) -> dict[str, str]:
    """Return what is wrong if no version of TLS is left: PostgreSQL does not start then."""
    least, most = (
        meaning(name, settings[names[name]]) if name in names else ""
        for name in ("ssl_min_protocol_version", "ssl_max_protocol_version")
    )
    if not most or least <= most:
        return {}
    message = f"leaves no version of TLS: it is {most}, below ssl_min_protocol_version, which is {least}; raise it"
    return {names["ssl_max_protocol_version"]: message}
