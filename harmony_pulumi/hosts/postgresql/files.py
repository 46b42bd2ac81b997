"""The texts of a server's configuration files and SQL. Pure: values in, text out, everything quoted here."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from harmony_pulumi.capabilities.addresses import negotiation
from harmony_pulumi.capabilities.postgresql_facts import FIRST_WITH_FAILOVER_SLOTS, REPLICATION_ROLE
from harmony_pulumi.capabilities.postgresql_settings import quantity, setting
from harmony_pulumi.hosts.postgresql import certificates
from harmony_pulumi.hosts.postgresql.layout import Layout

HEADER = "# Written by harmony; edits are overwritten. Change the Pulumi program instead.\n"
_ADOPTED_HEADER = (
    "# Written by harmony as it took this server over, and not again. What the Pulumi program sets beats it.\n"
)


def setting_text(value: object) -> str:
    """Return a setting's value as PostgreSQL has it, without quotes."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Pulumi hands integers back as floats.
    return str(value)


def quote_setting(value: object) -> str:
    """Quote a value for postgresql.conf: PostgreSQL, "Setting Parameters"."""
    text = setting_text(value)
    if isinstance(value, bool):
        return text
    if not text.isprintable():
        msg = f"{text!r} has a control character and cannot stand in a configuration file"
        raise ValueError(msg)
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


_SETTING_LINE = re.compile(r"\s*([A-Za-z_][\w.$]*)\s*(?:=\s*|\s)('(?:[^'\\]|''|\\.)*'|[^\s#']+)")


def settings_in(text: str) -> dict[str, str]:
    """Return the settings of a configuration file, by their names in lower case; what it includes is not read."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _SETTING_LINE.match(line):
            value = match[2]
            if value.startswith("'"):
                value = re.sub(r"''|\\(.)", lambda pair: pair[1] or "'", value[1:-1])
            found[match[1].lower()] = value
    return found


def without_settings(text: str, names: Collection[str]) -> str:
    """Return a configuration file without the lines of some settings, named in lower case."""
    return "".join(f"{line}\n" for line in text.splitlines() if not settings_in(line).keys() & set(names))


def same_value(name: str, one: object, other: object) -> bool:
    """Tell whether PostgreSQL reads two values of a setting as the same one, however they are written."""
    texts = [setting_text(one), setting_text(other)]
    numbers = [quantity(name, text) for text in texts]
    known = setting(name)
    if known is not None and known.kind in {"bool", "enum"}:
        words = {"true": "on", "yes": "on", "1": "on", "false": "off", "no": "off", "0": "off"}
        texts = [words.get(text.lower(), text.lower()) for text in texts]
    return texts[0] == texts[1] or (numbers[0] is not None and numbers[0] == numbers[1])


def overriding(auto: str, wanted: Mapping[str, object]) -> list[str]:
    """Return the settings of postgresql.auto.conf that beat wanted ones: it is read last, whatever else is written.

    Args:
        auto: the text of postgresql.auto.conf, where ALTER SYSTEM writes.
        wanted: values by name.
    """
    there, names = settings_in(auto), {name.lower(): name for name in wanted}
    return sorted(
        name for name in there.keys() & names.keys() if not same_value(name, there[name], wanted[names[name]])
    )


def quote_identifier(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + _without_nul(name).replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Quote a text for SQL, whatever `standard_conforming_strings` says."""
    return "E'" + _without_nul(text).replace("\\", "\\\\").replace("'", "''") + "'"


def _without_nul(text: str) -> str:
    if "\0" in text:
        msg = f"{text!r} has a NUL character, which PostgreSQL takes nowhere"
        raise ValueError(msg)
    return text


def quote_conninfo(value: object) -> str:
    """Quote a value for a libpq connection string: libpq, "Keyword/Value Connection Strings"."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


# The defaults that initdb would have written, fixed so that two members are alike. And one of our own: a standby that
# finds its primary gone, as at each restart of it, looks again after this time, and commits may wait for it.
_DEFAULTS: Mapping[str, object] = {
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_timezone": "Etc/UTC",
    "lc_messages": "C",
    "max_wal_size": "1GB",
    "shared_buffers": "128MB",
    "timezone": "Etc/UTC",
    "wal_retrieve_retry_interval": "500ms",
}


# Its clusters have no slot where they follow; and who follows one needs as many workers.
_BESIDE_CLUSTER: Mapping[str, object] = {"max_worker_processes": 32, "wal_keep_size": "512MB"}
"""What CloudNativePG has by default: CloudNativePG, "PostgreSQL Configuration"."""


def managed_settings(
    layout: Layout, *, name: str, address: str, port: int, slot_size_bound: str, sockets: Sequence[str] = ()
) -> dict[str, object]:
    """Return the settings that harmony sets itself.

    Args:
        layout: where the server is.
        name: the member's name, which the log and replication show.
        address: the host name or IP to listen on, beside the Unix socket.
        port: the TCP port.
        slot_size_bound: of WAL kept for replicas, for instance `10GB`.
        sockets: the folders of Unix sockets that the clients of a server that was taken over know.
    """
    return {
        "cluster_name": name,
        "data_directory": layout.data,
        "hba_file": f"{layout.config}/pg_hba.conf",
        "ident_file": f"{layout.config}/pg_ident.conf",
        "listen_addresses": address,
        "port": port,
        "unix_socket_directories": folder_list((layout.socket, *sockets)),
        "hot_standby": True,
        "max_slot_wal_keep_size": slot_size_bound,
        "password_encryption": "scram-sha-256",
        "ssl": True,
        "ssl_ca_file": f"{layout.tls}/trusted.crt",
        "ssl_cert_file": f"{layout.tls}/server.crt",
        "ssl_key_file": f"{layout.tls}/server.key",
    }


def main_config(managed: Mapping[str, object], *, adopted: bool, beside_cluster: bool = False) -> str:
    """Return postgresql.conf: defaults, then what the user set, then what harmony sets and what replication sets.

    Args:
        managed: what `managed_settings` returns.
        adopted: whether the server was taken over; its own configuration then applies where ours is silent.
        beside_cluster: whether a peer is a cluster of CloudNativePG, which follows it, or may.
    """
    return "".join(
        (
            HEADER,
            "include 'adopted.conf'\n" if adopted else _lines(_DEFAULTS),
            _lines(_BESIDE_CLUSTER) if beside_cluster else "",
            "include 'settings.conf'\n",
            "include 'limits.conf'\n",
            _lines(managed),
            "include 'replication.conf'\n",
            "include_if_exists 'synchronous.conf'\n",
        )
    )


FOR_A_CLUSTER = """# For a copy on Kubernetes, whose operator writes these. This server has its own elsewhere.
include 'custom.conf'
include 'override.conf'
"""
"""What is in the data directory of a server that a cluster of CloudNativePG copies: it takes what it finds there.

PostgreSQL does not start with it where these files are not: `pg_ctl -D` the data directory is refused as before.
"""


def adopted_config(own: str, settings: Mapping[str, object]) -> str:
    """Return the configuration of a server that was taken over: its own, and what must be otherwise for replication."""
    return f"{_ADOPTED_HEADER}{own.rstrip()}\n{_lines(settings)}"


def moved_config(text: str, folder: str) -> str:
    """Return the text of a configuration file of this folder as it is to be in another: it includes the same files."""
    there = folder.replace("'", "''")
    return _RELATIVE_INCLUDE.sub(lambda found: f"{found[1]}'{there}/{found[2] or found[3]}'", text)


# PostgreSQL, "Configuration File Includes": a path that is not absolute is taken from the file that has it.
_RELATIVE_INCLUDE = re.compile(
    r"^([ \t]*include(?:_if_exists|_dir)?(?:[ \t]*=[ \t]*|[ \t]+))(?:'((?!/)(?:[^'\n]|'')+)'|([a-z][\w.:/-]*))",
    re.MULTILINE | re.IGNORECASE,
)


def folder_list(folders: Sequence[str]) -> str:
    """Return a list of folders as PostgreSQL takes it, each quoted where it must be."""
    return ", ".join(
        folder if re.fullmatch(r"[\w./@+=-]+", folder) else '"' + folder.replace('"', '""') + '"' for folder in folders
    )


def folders_in(text: str) -> list[str]:
    """Return the folders of such a list."""
    found = re.findall(r'"((?:[^"]|"")*)"|([^,"\s][^,"]*)', text)
    return [quoted.replace('""', '"') or bare.strip() for quoted, bare in found]


# PostgreSQL, "Hot Standby", "Administrator's Overview": the labels of pg_controldata, by the settings.
_LIMITS: Mapping[str, str] = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}


def limits(control: Mapping[str, str], settings: Mapping[str, object]) -> dict[str, object]:
    """Return what a standby needs beyond its settings: it does not start with less than its primary has.

    Args:
        control: of the standby's data directory, as pg_controldata prints it: there is what its primary had.
        settings: those of the program.
    """
    declared = {name.lower(): value for name, value in settings.items()}
    needed = raised({name: int(control[label]) for name, label in _LIMITS.items()}, declared)
    # It would start with less, but once promoted it could no longer serve the logical subscribers of its primary.
    if control["wal_level setting"] == "logical" and declared.get("wal_level") != "logical":
        needed["wal_level"] = "logical"
    return needed


def raised(least: Mapping[str, int], declared: Mapping[str, object]) -> dict[str, object]:
    """Return the limits that are configured lower than they must be, as they must be.

    Args:
        least: by the setting's name.
        declared: the settings of the program, by their names in lower case.
    """
    needed: dict[str, object] = {}
    for name, value in least.items():
        known = setting(name)
        default = known.default if known else None
        if value > (quantity(name, setting_text(declared.get(name, default))) or 0):
            needed[name] = value
    return needed


def limits_below(least: Mapping[str, int], declared: Mapping[str, object], there: str) -> dict[str, object]:
    """Return what a running standby needs beyond its settings: it does not start with less than its primary has.

    Args:
        least: what its primary has, by the setting's name.
        declared: the settings of the program, by their names in lower case.
        there: the text of its limits of before, of which `wal_level` is kept.
    """
    kept = {name: value for name, value in settings_in(there).items() if name == "wal_level"}
    return {**raised(least, declared), **kept}


def settings_config(settings: Mapping[str, object]) -> str:
    """Return a file of settings, sorted by name."""
    return HEADER + _lines(dict(sorted(settings.items())))


def _lines(settings: Mapping[str, object]) -> str:
    return "".join(f"{key} = {quote_setting(value)}\n" for key, value in settings.items())


def replication_config(
    source: Mapping[str, Any] | None, slot: str, layout: Layout, name: str, slot_sync: Mapping[str, object]
) -> str:
    """Return what makes a server follow its source; for a server with none, nothing."""
    if source is None:
        return HEADER
    conninfo = source_conninfo(source, layout, name)
    return settings_config({"primary_conninfo": conninfo, "primary_slot_name": slot, **slot_sync})


def slot_sync(major: int, declared: Mapping[str, object], limits: Mapping[str, object]) -> dict[str, object]:
    """Return what has a standby copy its source's logical failover slots, where the program is silent.

    PostgreSQL 17, "Replication Slot Synchronization".

    Args:
        major: the version.
        declared: the settings of the program, by their names in lower case.
        limits: what the standby needs beyond them.
    """
    if major < FIRST_WITH_FAILOVER_SLOTS or "logical" not in {declared.get("wal_level"), limits.get("wal_level")}:
        return {}
    return {name: True for name in ("hot_standby_feedback", "sync_replication_slots") if name not in declared}


def synchronous_config(replicas: Sequence[str], slots: Sequence[str], major: int) -> str:
    """Return what has commits wait for one of these replicas; with none, for nobody.

    Nor do subscribers get, by a failover slot, what a replica has not: after a failover they would be ahead of it.

    Args:
        replicas: their names.
        slots: by which WAL is kept for them.
        major: the version.
    """
    settings: dict[str, object] = {}
    if replicas:
        names = ", ".join(quote_identifier(name) for name in replicas)
        settings["synchronous_standby_names"] = f"FIRST 1 ({names})"
    if slots and major >= FIRST_WITH_FAILOVER_SLOTS:
        settings["synchronized_standby_slots"] = ", ".join(slots)
    return settings_config(settings)


# A copy or a rewind has no timeout of PostgreSQL's: over a link that is cut, it would wait for hours.
KEEPALIVE: Mapping[str, int] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25000,
}
"""Of libpq: how soon a connection is given up."""


def source_conninfo(source: Mapping[str, Any], layout: Layout, name: str) -> str:
    """Return how a replica connects to its source. Holds no secret: the key is a file."""
    words = {
        "host": source["endpoint"]["host"],
        "port": int(source["endpoint"]["port"]),
        "user": certificates.role(source["certs"]["client_certificate"]),
        "dbname": "postgres",  # For pg_rewind, and for whoever copies slots.
        "sslmode": "verify-full",
        **negotiation(source["endpoint"]),
        "sslrootcert": f"{layout.tls}/source-ca.crt",
        "sslcert": f"{layout.tls}/source-client.crt",
        "sslkey": f"{layout.tls}/source-client.key",
        "application_name": name,
        **KEEPALIVE,
    }
    return " ".join(f"{key}={quote_conninfo(value)}" for key, value in words.items())


def source_certificates(certs: Mapping[str, str], layout: Layout) -> dict[str, str]:
    """Return the files by which a replica connects to its source, by their paths."""
    return {
        f"{layout.tls}/source-ca.crt": certs["ca_certificate"],
        f"{layout.tls}/source-client.crt": certs["client_certificate"],
        f"{layout.tls}/source-client.key": certs["client_key"],
    }


def hba(networks: Sequence[str], adopted: str) -> str:
    """Return pg_hba.conf: replication by certificate alone, clients by SCRAM over TLS.

    Args:
        networks: where clients may connect from, CIDR.
        adopted: the rules of a server that was taken over. They come after those for replication, so none of them can
            let it in by other means, and before ours for clients, so that its clients log in as before.
    """
    rules = [
        "local all postgres peer map=harmony",
        f"hostssl replication {REPLICATION_ROLE} all cert",
        f"hostssl postgres {REPLICATION_ROLE} all cert",  # For pg_rewind.
        "local replication all reject",
        "host replication all all reject",
        f"host all {REPLICATION_ROLE} all reject",
    ]
    clients = [f"hostssl all all {network} scram-sha-256" for network in networks]
    return HEADER + "\n".join([*rules, *adopted.splitlines(), *clients]) + "\n"


def ident(os_user: str, adopted: str) -> str:
    """Return pg_ident.conf: the OS user that runs the server is its superuser, over the Unix socket.

    Args:
        os_user: that user.
        adopted: the maps of a server that was taken over, which its rules may name.
    """
    return "\n".join([f'{HEADER}harmony "{os_user}" postgres', *adopted.splitlines()]) + "\n"


def scram_verifier(password: str) -> str:
    """Return what PostgreSQL stores of a password, so that the password itself is not sent or logged.

    RFC 5802 and PostgreSQL's "pg_authid". The password is printable ASCII, which SASLprep leaves as it is.
    """
    salt, iterations = secrets.token_bytes(16), 4096
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    words = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{words[0]}${words[1]}:{words[2]}"


def roles_sql(passwords: Mapping[str, str]) -> str:
    """Return SQL that makes the replication role, and owners with their passwords. May be run again."""
    statements = [_role_if_missing(REPLICATION_ROLE, "LOGIN REPLICATION"), *_for_rewinds(REPLICATION_ROLE)]
    for role, password in sorted(passwords.items()):
        statements.append(_role_if_missing(role, "LOGIN"))
        verifier = quote_literal(scram_verifier(password))
        statements.append(f"ALTER ROLE {quote_identifier(role)} LOGIN PASSWORD {verifier};")
    return "\n".join(statements) + "\n"


def follower_role_sql(role: str) -> str:
    """Return SQL that makes the role that replicas connect as, on a primary that has it not.

    The database may have come from a member of another kind, whose replicas connect as another role.
    """
    commands = [f"CREATE ROLE {quote_identifier(role)} LOGIN REPLICATION", *_for_rewinds(role)]
    missing = f"NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {quote_literal(role)})"
    # All on one line, each in a column: psql runs them one after another, and asks once.
    columns = ", ".join(map(quote_literal, commands))
    return f"SELECT {columns} WHERE NOT pg_is_in_recovery() AND {missing} \\gexec\n"


def _for_rewinds(role: str) -> list[str]:
    """Return what lets replicas be rewound from here: PostgreSQL, "pg_rewind". They may copy all of it anyway."""
    functions = (
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    )
    return [f"GRANT EXECUTE ON FUNCTION pg_catalog.{name} TO {quote_identifier(role)};" for name in functions]


def _role_if_missing(role: str, options: str) -> str:
    create = quote_literal(f"CREATE ROLE {quote_identifier(role)} {options}")
    missing = f"NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {quote_literal(role)})"
    return f"SELECT {create} WHERE {missing} \\gexec"


def databases_sql(databases: Sequence[Mapping[str, Any]]) -> str:
    """Return SQL that makes the databases that are missing. May be run again; drops nothing."""
    statements: list[str] = []
    for database in databases:
        name, owner = database["name"], database["owner"]
        create = quote_literal(f"CREATE DATABASE {quote_identifier(name)} OWNER {quote_identifier(owner)}")
        missing = f"NOT EXISTS (SELECT FROM pg_database WHERE datname = {quote_literal(name)})"
        statements += [
            f"SELECT {create} WHERE {missing} \\gexec",
            f"ALTER DATABASE {quote_identifier(name)} OWNER TO {quote_identifier(owner)};",
        ]
    return "\n".join(statements) + "\n"


def extensions_sql(extensions: Sequence[str]) -> str:
    """Return SQL, to be run in a database, that makes its missing extensions."""
    return "".join(f"CREATE EXTENSION IF NOT EXISTS {quote_identifier(name)};\n" for name in extensions)


def make_slot_sql(name: str) -> str:
    """Return SQL that makes a physical slot, which keeps WAL from here on, unless it is there."""
    slot = quote_literal(name)
    missing = f"NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {slot})"
    return f"SELECT pg_create_physical_replication_slot({slot}, true) WHERE {missing};\n"


def drop_slot_sql(name: str) -> str:
    """Return SQL that drops a slot, if it is there."""
    there = f"FROM pg_replication_slots WHERE slot_name = {quote_literal(name)}"
    return f"SELECT pg_drop_replication_slot(slot_name) {there};\n"


def drop_left_slots_sql() -> str:
    """Return SQL that drops the failover slots that a standby has from when it was the primary, for copies to come."""
    slots = "FROM pg_replication_slots WHERE failover AND NOT synced AND NOT active AND pg_is_in_recovery()"
    return f"SELECT pg_drop_replication_slot(slot_name) {slots};\n"


def end_replication_sql(name: str) -> str:
    """Return SQL that ends the connections of a replica, by its name; it connects anew by itself."""
    there = f"FROM pg_stat_replication WHERE application_name = {quote_literal(name)}"
    return f"SELECT pg_terminate_backend(pid) {there};\n"


def replica_has_sql(name: str, lsn: str) -> str:
    """Return SQL that tells, as JSON, whether a replica streams and has replayed everything before an LSN."""
    there = f"state = 'streaming' AND replay_lsn >= {quote_literal(lsn)}::pg_lsn"
    replica = f"FROM pg_stat_replication WHERE application_name = {quote_literal(name)}"
    return f"SELECT to_json(coalesce(bool_or({there}), false)) {replica}"


def has_flushed_sql(name: str, lsn: str) -> str:
    """Return SQL that tells, as JSON, whether a standby has said that it has everything before an LSN on disk.

    It says what it has on disk at once, and what it has replayed only with that.
    """
    has = f"coalesce(bool_or(flush_lsn >= {quote_literal(lsn)}::pg_lsn), false)"
    of_standby = f"FROM pg_stat_replication WHERE application_name = {quote_literal(name)}"
    return f"SELECT to_json({has}) {of_standby}"


def replayed_sql(lsn: str, *, record: bool = False) -> str:
    """Return SQL that tells, as JSON, whether a standby has replayed everything before an LSN.

    Args:
        lsn: where.
        record: whether it must have replayed the record that begins there, too.
    """
    operator = ">" if record else ">="
    return f"SELECT to_json(coalesce(pg_last_wal_replay_lsn() {operator} {quote_literal(lsn)}::pg_lsn, false))"
