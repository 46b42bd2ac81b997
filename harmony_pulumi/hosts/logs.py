"""Logs of the processes that we start. They are opened for append, and nothing else bounds them."""

from __future__ import annotations

from harmony_pulumi.hosts.connection import Connection

LARGE = 64 * 2**20
"""Bytes."""
_SET_ASIDE = '[ "$(stat -c %s -- "$1" 2>&1)" -gt "$2" ] 2>/dev/null && exec mv -f -- "$1" "$1.1"'


def set_aside_if_large(connection: Connection, path: str, user: str) -> None:
    """Move a log that is large aside, to the same name with `.1`; the one that is there is replaced.

    To be called while nothing writes it. Where that cannot be, it grows on: no reason not to start.
    """
    connection.run(["sh", "-c", _SET_ASIDE, "sh", path, str(LARGE)], user=user)
