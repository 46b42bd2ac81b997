"""How a server that ran by itself becomes a standby again: what it alone has is put aside; it is rewound, or copied.

Users' data: what is overwritten was archived before, and a data directory is moved aside, not deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from harmony_pulumi.capabilities.site import Fork, Rejoining
from harmony_pulumi.errors import PassingError, SiteError
from harmony_pulumi.hosts.postgresql import files
from harmony_pulumi.hosts.postgresql.following import Following, leave_a_standby
from harmony_pulumi.hosts.postgresql.home import Marker
from harmony_pulumi.hosts.postgresql.past import CANNOT_BE_REWOUND, CANNOT_CONNECT, Past
from harmony_pulumi.hosts.postgresql.server import Server
from harmony_pulumi.orchestration.journal import Journal

_STOP_DEADLINE = _START_DEADLINE = 120
_COPY_DEADLINE = 24 * 3600
"""Seconds for a rewind or a copy, which says how far it is, and ends with the process that wants it."""


@dataclass(frozen=True)
class Comeback:
    """A server that is stopped, on its way back to being a standby."""

    server: Server
    marker: Marker
    handle: Mapping[str, Any]

    @property
    def is_whole(self) -> bool:
        """Whether there is a data directory that is not half-made."""
        there = self.server.connection.exists(f"{self.marker.data}/PG_VERSION", self.server.user)
        return there and self.marker.state != "making"

    @property
    def past(self) -> Past:
        """What it wrote."""
        return Past(self.server, self.server.layout.root, self.server.layout.kept)

    def rejoining(self) -> Rejoining:
        """Look at what it takes to have the server follow another."""
        return {"size_bytes": self.past.size(), "no_rewind": self._no_rewind()}

    def _no_rewind(self) -> str:
        return self.past.no_rewind() if self.is_whole else f"{self.marker.data} is not whole"

    def archive(self, fork: Fork) -> str:
        """Put aside the WAL past a fork, and a list of its transactions."""
        return self.past.archive(fork) if self.is_whole else ""

    def retire(self) -> None:
        """Stop the server; one that crashed, or was stopped in a hurry, recovers first.

        One that cannot recover, its WAL or data being damaged, is left as it is: it can be copied, not rewound.
        """
        if not self.is_whole:
            return
        stop(self.server)
        match self.server.control_data()["Database cluster state"]:
            case "shut down" | "shut down in recovery":
                self.server.write({self.server.layout.standby_signal: ""})
            case "in archive recovery" | "starting up" if self._has_signal():
                self.server.start(_START_DEADLINE)
                self.server.stop(_STOP_DEADLINE)
            case _:
                self.past.recover(self.server.layout.config, self.server.once_nothing_is_left)

    def _has_signal(self) -> bool:
        return self.server.connection.exists(self.server.layout.standby_signal, self.server.user)

    def rewind(self, source: Mapping[str, Any]) -> str:
        """Take back what the server wrote by itself; return why that cannot be, or nothing.

        Raises:
            PassingError: the source cannot be reached from here, there is no room, or the like; nothing was touched.
            SiteError: it failed half-way.
        """
        server, before = self.server, self.marker.state
        options: dict[str, Any] = {"user": server.user, "env": {"LC_ALL": "C"}, "timeout": _COPY_DEADLINE}
        with self.past.may_pass("be rewound"):
            if why := self._no_rewind():
                return why
            server.write(files.source_certificates(source["certs"], server.layout))
            conninfo = files.source_conninfo(source, server.layout, str(self.handle["name"]))
            argv = [server.program("pg_rewind"), "-D", self.marker.data, "--source-server", conninfo]
            argv.append("--no-ensure-shutdown")
            dry = server.connection.run([*argv, "--dry-run"], **options)
            said = dry.said[-500:]
            if dry.status and (CANNOT_CONNECT.search(said) or not CANNOT_BE_REWOUND.search(said)):
                raise SiteError(said)
        if dry.status:
            return said
        with self._being_made():
            done = server.connection.run([*argv, "--write-recovery-conf"], **options, on_stderr=lambda _: None)
            if done.status:
                said = done.said[-500:]
                if not CANNOT_CONNECT.search(said):
                    msg = f"{server.connection.name}: pg_rewind ended with status {done.status}: {said}"
                    raise SiteError(msg)
                with self.past.may_pass("be rewound"):  # It connects before it writes anything.
                    self._mark(before)
                    raise SiteError(said)
            leave_a_standby(server, self._declared())
        return ""

    def clone(self, source: Mapping[str, Any], show: Callable[[str], None]) -> None:
        """Copy the data of another site, and keep the old data directory aside."""
        server = self.server
        if not self.marker.data.startswith(f"{server.layout.root}/"):
            msg = (
                f"{server.connection.name}: {self.marker.data} was taken over, so it is not moved aside by harmony: "
                f"move it away yourself, then run this again"
            )
            if server.connection.exists(self.marker.data, server.user):
                raise SiteError(msg)
        stop(server)
        server.write(files.source_certificates(source["certs"], server.layout))
        with self._being_made():
            if server.connection.exists(self.marker.data, server.user):
                server.move(self.marker.data, f"{server.layout.kept}/data-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
            props = {**self.handle, "source": source, "settings": self._declared()}
            try:
                Following(server, props, Journal(str(self.handle["name"]), "rejoin", show)).clone(_COPY_DEADLINE)
            except SiteError:
                # A part of a copy, nobody's only data: kept, each try would leave a full disk fuller.
                with suppress(SiteError):
                    server.connection.check(["rm", "-rf", "--", self.marker.data], user=server.user)
                raise
            self.marker.system_identifier = server.control_data()["Database system identifier"]

    @contextmanager
    def _being_made(self) -> Generator[None]:
        """Have whoever comes after a run that is cut off here know that the data directory is not whole."""
        before = self.marker.state
        try:
            self._mark("making")
        except SiteError as error:  # Nothing was changed yet.
            raise PassingError(str(error)) from error
        yield
        # One that has served before is to be started again, after a reboot, too.
        done = "ready" if self.marker.incarnation else "whole"
        self._mark(done if before == "making" else before)

    def _mark(self, state: str) -> None:
        self.marker.state = state
        self.server.write({self.server.layout.marker: self.marker.text})

    def _declared(self) -> Mapping[str, str]:
        """Return the settings of the program, as they were written for this server."""
        text = self.server.read(self.server.layout.config, ["settings.conf"])["settings.conf"]
        return files.settings_in(text or "")


def stop(server: Server) -> str:
    """Stop a server, cleanly if it can be in time, else by force; return how.

    Raises:
        SiteError: its process lives on.
    """
    pid = server.running_pid()
    if pid is None:
        return "it does not run"
    try:
        server.stop(_STOP_DEADLINE)
    except SiteError:
        server.kill(pid)
        return "its process was killed: it did not end by itself"
    return "it was stopped"
