"""Clocks of chosen processes that are wrong, by libfaketime: an operator's, or those of all that runs on a host.

The machine's clock is never touched. CLOCK_MONOTONIC is shifted as well, always by as much, so that what takes how long
is right: without that, libfaketime has sleeps of Python fail.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harmony_pulumi.hosts.connection import LocalConnection


def library() -> str:
    """Return the path of libfaketime for processes with threads; fail the test if there is none."""
    faketime = shutil.which("faketime")
    found = sorted(Path("/usr").glob("lib*/**/faketime/libfaketimeMT.so.1"))
    if faketime is None or not found:
        pytest.fail("without libfaketime no clock can be wrong: apt-get install faketime")
    return str(found[0])


def shifted(hours: float) -> dict[str, str]:
    """Return the environment of a process whose clock is ahead by so many hours, or behind by as many."""
    return {
        "LD_PRELOAD": library(),
        "FAKETIME": f"{hours * 3600:+.0f}s",
    }


def with_environment(variables: Mapping[str, str]) -> list[str]:
    """Return a command prefix that sets these, once the user is another one: libfaketime keeps files of its user's."""
    return ["env", *(f"{name}={value}" for name, value in variables.items())]


def forget_the_dead() -> None:
    """Remove what libfaketime keeps for processes that were killed."""
    for path in Path("/dev/shm").glob("*faketime_s*_*"):
        if not Path(f"/proc/{path.name.rpartition('_')[2]}").exists():
            path.unlink(missing_ok=True)


class ShiftedConnection(LocalConnection):
    """A host whose clock is wrong: that of every command and server that is started on it."""

    def __init__(self, host: Mapping[str, Any]) -> None:
        """Make the connection: nothing is opened."""
        super().__init__()
        self.name = str(host["name"])
        self._shift = dict(host["shift"])

    def _start(
        self, argv: Any, user: str | None, env: Mapping[str, str] | None, **options: Any
    ) -> subprocess.Popen[bytes]:
        return super()._start([*with_environment(self._shift), *argv], user, env, **options)


def on_shifted_host(handle: Mapping[str, Any], role: str, hours: float) -> dict[str, Any]:
    """Return the handle of a pair of which one member is on a host whose clock is wrong."""
    member = handle["members"][role]
    host = {**member["host"], "connection": "tests.e2e.clocks:ShiftedConnection", "shift": shifted(hours)}
    return {**handle, "members": {**handle["members"], role: {**member, "host": host}}}
