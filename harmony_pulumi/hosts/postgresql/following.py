"""How one replica follows its source: it copies it, streams from it, and leaves it without a trace."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.capabilities.addresses import address
from harmony_pulumi.capabilities.postgresql_facts import MANAGED
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import files
from harmony_pulumi.hosts.postgresql.layout import slot_name
from harmony_pulumi.hosts.postgresql.server import Server
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.wait import wait_for

_WAL_GONE = re.compile(
    "has already been removed|can no longer (access|get changes from) replication slot|slot has been invalidated"
)
"""What a standby logs, in PostgreSQL 13 to 18, when its source has given up the WAL that it needs."""
_DIVERGED = re.compile(
    "forked off current database system timeline|is not in this server's history|is not a child of|"
    "database system identifier differs|is ahead of the WAL flush position"
)
"""What a standby logs, in PostgreSQL 13 to 18, that has another history than its source, or more of it."""
_START = "starting PostgreSQL"
"""With what a server's log of each start begins."""
_LOG_END = 65536
"""Bytes at the end of a log; a standby tries, and logs why it fails, every 5 seconds."""
_SPARE_KB = 256 * 1024
_RECEIVER = "SELECT to_json(coalesce((SELECT status FROM pg_stat_wal_receiver), 'no receiver'))"
_REPLAY_DEADLINE = 10
_SLOT_DEADLINE = 90
"""Seconds. A copy that was killed holds its slot until the source notices: `wal_sender_timeout`, 60 s by default."""


@dataclass(frozen=True)
class Following:
    """A replica, as it follows."""

    server: Server
    props: Mapping[str, Any]
    journal: Journal

    @property
    def _source(self) -> Mapping[str, Any]:
        source: Mapping[str, Any] = self.props["source"]
        return source

    @property
    def _slot(self) -> str:
        return slot_name(self.props["owner"])

    @property
    def _conninfo(self) -> str:
        return files.source_conninfo(self._source, self.server.layout, str(self.props["host"]["name"]))

    @property
    def _host(self) -> str:
        return self.server.connection.name

    def clone(self, deadline: float) -> None:
        """Copy the source's data directory, as that of a standby."""
        self._drop_slot()
        shown = {"percent": -10}

        def progress(line: str) -> None:
            # `23456/34567 kB (67%), 0/1 tablespace`
            words = line.replace("/", " ").replace("(", " ").replace("%", " ").split()
            if "kB" in words and words[0].isdigit() and words[3].isdigit():
                done, total, percent = int(words[0]), int(words[1]), int(words[3])
                if shown["percent"] < 0:
                    self._insist_on_room(total - done)
                if percent >= shown["percent"] + 10:
                    shown["percent"] = percent
                    text = f"copied {done // 1024} of about {total // 1024} MB ({percent} %)"
                    self.journal.progress("clone", text, copied_kb=done, total_kb=total)

        where = address(self._source["endpoint"]["host"], self._source["endpoint"]["port"])
        with self.journal.step("clone", f"copying the data from {where} over TLS", slot=self._slot):
            self.server.base_backup(self._conninfo, self._slot, deadline=deadline, on_progress=progress)
            leave_a_standby(self.server, self.props["settings"])

    def _insist_on_room(self, kilobytes: int) -> None:
        """Refuse a copy that would fill the disk, which may be the source's, too."""
        folder = self.server.layout.root
        free = int(self.server.connection.check(["df", "--output=avail", "-B1K", "--", folder]).splitlines()[-1])
        if free < kilobytes + _SPARE_KB:
            msg = (
                f"{self._host}: the copy needs {kilobytes // 1024} MB more, and the disk of {folder} has "
                f"{free // 1024} MB free; expected that and {_SPARE_KB // 1024} MB for WAL: make room, or choose "
                f"another directory"
            )
            raise SiteError(msg)

    def _drop_slot(self) -> None:
        """Drop the slot that an earlier run left at the source; one that stays in use is somebody's, and refused."""
        wait_for(
            f"{self._host}: dropping the old replication slot {self._slot} at the source",
            self._ask_to_drop,
            lambda answer: not answer,
            deadline=_SLOT_DEADLINE,
            advice="See what uses it, and end that: SELECT * FROM pg_replication_slots JOIN pg_stat_activity "
            "ON pid = active_pid.",
        )

    def _ask_to_drop(self) -> str:
        """Ask the source to drop the slot; return why it does not, or nothing once the slot is gone."""
        took, said = self.server.replication_command(self._conninfo, f"DROP_REPLICATION_SLOT {self._slot}")
        return "" if took or "does not exist" in said else said

    def make_slot(self) -> None:
        """Have the source keep WAL from here on."""
        self.server.make_slot_at(self._conninfo, self._slot)

    def streams(self, port: int, deadline: float) -> bool:
        """Wait until the replica streams; return False if it never can, for want of WAL at the source."""
        size = self.server.log_size()

        def look() -> str:
            status = self.server.look(_RECEIVER, port=port)
            gone = status != "streaming" and _WAL_GONE.search(self.server.log_since(size))
            return "WAL gone" if gone else str(status)

        with self.journal.step("stream", "waiting until it streams"):
            seen = wait_for(
                f"{self._host}: streaming from the source",
                look,
                lambda status: status in {"streaming", "WAL gone"},
                deadline=deadline,
                advice=f"Look at the end of {self.server.layout.log}.",
            )
        return seen == "streaming"

    def has_caught_up(self, port: int) -> bool:
        """Wait, not for long, until it has replayed what its source had written; tell whether it has."""
        sent = self.server.look("SELECT to_json(latest_end_lsn) FROM pg_stat_wal_receiver", port=port)
        if sent is None:
            return False
        look = files.replayed_sql(sent)
        try:
            wait_for(
                f"{self._host}: replaying up to {sent}",
                lambda: self.server.look(look, port=port),
                bool,
                deadline=_REPLAY_DEADLINE,
                advice="",
            )
        except SiteError as error:
            self.journal.note(str(error), step="stream", state="warning")
            return False
        return True

    def leave(self) -> None:
        """Drop the slot, which would keep WAL for a replica that is gone. The server is stopped."""
        if why := self._ask_to_drop():
            text = (
                f"the replication slot {self._slot} could not be dropped at the source ({why}); if the source lives "
                f"on, drop it there: SELECT pg_drop_replication_slot('{self._slot}')"
            )
            self.journal.note(text, step="leave", state="warning")


def leave_a_standby(server: Server, declared: Collection[str]) -> None:
    """Have a data directory that came from another member start as a standby.

    The source's ALTER SYSTEM settings are dropped that are a member's own, such as its port, or that are declared.

    Args:
        server: whose data directory it is.
        declared: the names of the settings of the program.
    """
    server.write({server.layout.standby_signal: ""})
    server.remove_own_config()
    altered = server.connection.read_file(server.layout.altered, server.user) or ""
    names = {*MANAGED, *(name.lower() for name in declared)}
    server.write({server.layout.altered: files.without_settings(altered, names)})
    # CloudNativePG leaves it unwritable, and pg_rewind opens every file for writing.
    server.connection.check(["chmod", "u+w", "--", server.layout.altered], user=server.user)


def is_streaming(server: Server, port: int) -> bool:
    """Tell whether a running standby is connected to its source.

    Raises:
        SiteError: the server does not answer.
    """
    return bool(server.look(_RECEIVER, port=port) == "streaming")


def has_lost_its_source(server: Server, port: int) -> bool:
    """Tell whether a running standby cannot stream any more, as its source has given up the WAL that it needs.

    Raises:
        SiteError: the server does not answer.
    """
    if is_streaming(server, port):
        return False
    return _WAL_GONE.search(server.log_since(max(0, server.log_size() - _LOG_END))) is not None


def why_it_cannot_follow(server: Server) -> str:
    """Return the last line with which a standby, since it was started last, has said that it never can; else nothing.

    What it says of connections and the like may pass, and what it said before it was started is of other data, perhaps.
    """
    logged = server.log_since(max(0, server.log_size() - _LOG_END)).rpartition(_START)[2]
    return next(
        (line for line in reversed(logged.splitlines()) if _WAL_GONE.search(line) or _DIVERGED.search(line)), ""
    )
