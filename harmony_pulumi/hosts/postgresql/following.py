"""How one replica follows its source: it copies it, streams from it, and leaves it without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.capabilities.postgresql_facts import MANAGED
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import files
from harmony_pulumi.hosts.postgresql.layout import slot_name
from harmony_pulumi.hosts.postgresql.server import Server
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.wait import wait_for

_WAL_GONE = "has already been removed"
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
                if percent >= shown["percent"] + 10:
                    shown["percent"] = percent
                    text = f"copied {done // 1024} of about {total // 1024} MB ({percent} %)"
                    self.journal.progress("clone", text, copied_kb=done, total_kb=total)

        where = f"{self._source['endpoint']['host']}:{int(self._source['endpoint']['port'])}"
        with self.journal.step("clone", f"copying the data from {where} over TLS", slot=self._slot):
            self.server.base_backup(self._conninfo, self._slot, deadline=deadline, on_progress=progress)
            self.server.write({f"{self.server.layout.data}/standby.signal": ""})
            self._forget_foreign_settings()

    def _forget_foreign_settings(self) -> None:
        """Drop the source's ALTER SYSTEM settings that are a member's own, such as its port, or that are declared."""
        path = self.server.layout.altered
        text = self.server.connection.read_file(path, self.server.user) or ""
        names = {*MANAGED, *(name.lower() for name in self.props["settings"])}
        self.server.write({path: files.without_settings(text, names)})

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
        command = f"CREATE_REPLICATION_SLOT {self._slot} PHYSICAL RESERVE_WAL"
        took, said = self.server.replication_command(self._conninfo, command)
        if not took and "already exists" not in said:
            msg = f"{self._host}: cannot make the replication slot {self._slot} at the source: {said}"
            raise SiteError(msg)

    def streams(self, port: int, deadline: float) -> bool:
        """Wait until the replica streams; return False if it never can, for want of WAL at the source."""
        size = self.server.log_size()

        def look() -> str:
            status = self.server.look(
                "SELECT to_json(coalesce((SELECT status FROM pg_stat_wal_receiver), 'no receiver'))", port=port
            )
            return "WAL gone" if status != "streaming" and _WAL_GONE in self.server.log_since(size) else str(status)

        with self.journal.step("stream", "waiting until it streams"):
            seen = wait_for(
                f"{self._host}: streaming from the source",
                look,
                lambda status: status in {"streaming", "WAL gone"},
                deadline=deadline,
                advice=f"Look at the end of {self.server.layout.log}.",
            )
        return seen == "streaming"

    def leave(self) -> None:
        """Drop the slot, which would keep WAL for a replica that is gone. The server is stopped."""
        if why := self._ask_to_drop():
            text = (
                f"the replication slot {self._slot} could not be dropped at the source ({why}); if the source lives "
                f"on, drop it there: SELECT pg_drop_replication_slot('{self._slot}')"
            )
            self.journal.note(text, step="leave", state="warning")
