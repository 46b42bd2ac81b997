"""Logs of the processes that we start. They are opened for append, and nothing else bounds them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from harmony_pulumi.hosts.connection import Connection

LARGE = 64 * 2**20
"""Bytes."""
_SET_ASIDE = '[ "$(stat -c %s -- "$1" 2>&1)" -gt "$2" ] 2>/dev/null && exec mv -f -- "$1" "$1.1"'


def set_aside_if_large(connection: Connection, path: str, user: str) -> None:
    """Move a log that is large aside, to the same name with `.1`; the one that is there is replaced.

    To be called while nothing writes it. Where that cannot be, it grows on: no reason not to start.
    """
    connection.run(["sh", "-c", _SET_ASIDE, "sh", path, str(LARGE)], user=user)


def recording(connection: Connection, path: str, user: str) -> AbstractContextManager[Callable[[str], None]]:
    """Append to a log of events for as long as the block lasts, as `appending`; one that is large is set aside."""
    set_aside_if_large(connection, path, user)  # Who appends to it meanwhile goes on in the one that is set aside.
    return connection.appending(path, user=user)


def recorded(connection: Connection, path: str, user: str) -> str:
    """Return a log of events, with the one that was set aside before it."""
    return "".join(text or "" for text in connection.read_files([f"{path}.1", path], user).values())
