"""The replication slot by which another site keeps WAL for a cluster that follows it.

The operator has no setting for that, and takes it out of postgresql.auto.conf at each start. So it is in
postgresql.conf, before the operator's own files are included: there, each local replica has its own slot.
"""

from __future__ import annotations

import re

from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import files
from harmony_pulumi.kubernetes.pods import PORT, PodInstance

_NAME = "postgresql.conf"
_FIRST = re.compile(r"\Aprimary_slot_name = .*\n")
_CONNINFO = "SELECT to_json(setting) FROM pg_settings WHERE name = 'primary_conninfo'"


def with_slot(config: str, slot: str) -> str:
    """Return a configuration file that has the slot in its first line, instead of the one that it had there."""
    return f"primary_slot_name = {files.quote_setting(slot)}\n" + _FIRST.sub("", config)


def use(server: PodInstance, slot: str) -> bool:
    """Have the instance stream by this slot from its next start, or reload, on; tell whether it did not before.

    A rewind and a copy bring the file of the source, with the source's own slot.
    """
    config = server.read(server.data, [_NAME])[_NAME]
    if config is None:
        msg = f"{server.connection.name}: {server.data}/{_NAME} is not there; see the log of the pod"
        raise SiteError(msg)
    return server.write({f"{server.data}/{_NAME}": with_slot(config, slot)})


def make(server: PodInstance, slot: str) -> None:
    """Make the slot at the source that a running standby follows, unless it is there.

    Raises:
        SiteError: the source does not make it.
    """
    server.make_slot_at(server.look(_CONNINFO, port=PORT), slot)
