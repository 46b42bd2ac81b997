"""What holds for every PostgreSQL that harmony deploys. Known without pydantic, which only programs need."""

from __future__ import annotations

from collections.abc import Mapping

SUPPORTED_MAJORS = range(13, 19)
"""The major versions of PostgreSQL that are supported: 13 to 18."""

FIRST_WITH_FAILOVER_SLOTS = 17
"""The first major version whose standbys copy logical slots: PostgreSQL 17, "Replication Slot Synchronization"."""

REPLICATION_ROLE = "harmony_replication"
"""The role that replicas connect as, by certificate alone."""

OPERATOR_ROLE = "streaming_replica"
"""The role that replicas of a cluster on Kubernetes connect as, likewise: CloudNativePG, "Replication"."""

MANAGED: Mapping[str, str] = {
    "allow_alter_system": "leave it to PostgreSQL's default",
    "cluster_name": "it is the member's name, which replication uses",
    "config_file": "it is inside the server's directory",
    "data_directory": "use the field `directory`",
    "external_pid_file": "it is not used",
    "hba_file": "use the field `authentication`",
    "hot_standby": "a replica answers queries",
    "ident_file": "it is inside the server's directory",
    "listen_addresses": "use the topology's `address`",
    "max_slot_wal_keep_size": "use the field `slot_size_bound`",
    "password_encryption": "it is scram-sha-256",
    "port": "use the field `port`",
    "primary_conninfo": "replication is wired by the topology",
    "primary_slot_name": "replication is wired by the topology",
    "promote_trigger_file": "promotion is an act of orchestration",
    "ssl": "it is on",
    "ssl_ca_file": "certificates are made by the topology",
    "ssl_cert_file": "certificates are made by the topology",
    "ssl_key_file": "certificates are made by the topology",
    "synchronized_standby_slots": "use `replication='synchronous'`",
    "synchronous_standby_names": "use `replication='synchronous'`",
    "unix_socket_directories": "it is inside the server's directory",
}
"""Settings that harmony sets itself, and what to use instead."""


def password_problem(password: object) -> str | None:
    """Return why a password is not taken, without showing it, or None."""
    if isinstance(password, str) and len(password) >= 8 and password.isascii() and password.isprintable():
        return None
    found = f"has {len(password)} characters" if isinstance(password, str) else "is no text"
    return f"{found}; expected at least 8 printable ASCII characters, or leave it out: a strong one is generated"
