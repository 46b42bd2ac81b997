"""What an instance that ran by itself wrote: read, put aside, and what decides whether it can be taken back.

Wherever the instance runs. Users' data: what is overwritten was archived before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from harmony_pulumi.capabilities.site import Beyond, Fork
from harmony_pulumi.errors import PassingError, SiteError, UnreachableError, counted
from harmony_pulumi.hosts.postgresql import wal
from harmony_pulumi.hosts.postgresql.instance import Instance

READ_DEADLINE = 1800
"""Seconds to read, or to copy, what a server wrote by itself."""
_CHECKSUMS, _HINTS = "Data page checksum version", "wal_log_hints setting"
_SPARE_KB = 64 * 1024
CURABLE = re.compile(
    "No space left on device|Permission denied|Too many open files|annot allocate memory|out of memory"
)
"""Why a server does not recover now, and may once that is mended. It is asked in English (LC_ALL)."""
CANNOT_CONNECT = re.compile("connection to server .* failed: |could not connect to server")
"""What pg_rewind of PostgreSQL 13 to 18 says where its source does not answer."""
CANNOT_BE_REWOUND = re.compile(
    "could not find common ancestor|could not find previous WAL record|could not read WAL record|"
    "No such file or directory|has already been removed|needs to use either data checksums|are from different systems|"
    "not compatible with this version|must be shut down cleanly|unexpected control file|invalid control file|"
    "invalid data in history file|syntax error in history file"
)
"""What pg_rewind of PostgreSQL 13 to 18 says where it never can. Whatever else it says may pass, or be mended."""

# Without standby.signal for no longer than the recovery takes: a start by hand must not make a primary of it.
_RECOVER = """
set -e
signal=$1
shift
trap ': > "$signal"; sync -- "$signal" "${signal%/*}"' EXIT
rm -f -- "$signal"
"$@" </dev/null
"""
_CANNOT_RECOVER = re.compile("PANIC: |FATAL: ")


@dataclass(frozen=True)
class Past:
    """What an instance, which writes no more, wrote."""

    server: Instance[Any]
    place: str
    """Where it is, for messages."""
    kept: str
    """The folder for what is put aside."""

    def history(self) -> list[Fork]:
        """Return the timelines that the server went through, its own last."""
        control = self.server.control_data()
        labels = ("Latest checkpoint's TimeLineID", "Min recovery ending loc's timeline")
        timeline = max(int(control[label]) for label in labels)
        text = self.server.read(f"{self.server.data}/pg_wal", [wal.history_file(timeline)])
        return wal.history(timeline, next(iter(text.values())) or "")

    def beyond(self, fork: Fork) -> Beyond:
        """Return what the server wrote past a fork, on this timeline and those that it began itself."""
        found: Beyond = {"bytes": 0, "transactions": []}
        for begin in wal.past(fork, self.history()):
            with self.may_pass("read its WAL", only=CURABLE):
                argv = self.server.waldump(begin)
            script = 'digest=$1; shift; { "$@" 2>&1; echo "ended $?"; } | awk "$digest"'
            with self.may_pass("read its WAL"):
                digest = self.server.connection.check(
                    ["sh", "-c", script, "sh", wal.DIGEST, *argv],
                    user=self.server.user,
                    env={"LC_ALL": "C"},
                    timeout=READ_DEADLINE,
                )
            with self.may_pass("read its WAL", only=CURABLE):
                part = wal.beyond(begin["lsn"], digest)
            found["bytes"] += part["bytes"]
            found["transactions"] += part["transactions"]
        return found

    def recover(self, config: str, once: Callable[[Callable[[], str]], str]) -> None:
        """Have an instance that crashed recover, end cleanly, and be left a standby.

        One that cannot, its WAL or data being damaged, is left as it is: it can be copied, not rewound.

        Args:
            config: the folder of its postgresql.conf.
            once: runs it, as soon as nothing is left of what crashed.

        Raises:
            SiteError: it does not recover now, and may once that is mended.
        """
        # As pg_rewind does, which may find no postgresql.conf.
        single = [self.server.program("postgres"), "--single", "-D", config, "template1"]
        argv = ["sh", "-c", _RECOVER, "sh", self.server.standby_signal, *single]

        def recovers() -> str:
            options: dict[str, Any] = {"env": {"LC_ALL": "C"}, "timeout": READ_DEADLINE}
            done = self.server.connection.run(argv, user=self.server.user, **options)
            return done.stderr.strip()[-1500:] or f"it ended with status {done.status}" if done.status else ""

        said = once(recovers)
        if said and (CURABLE.search(said) or not _CANNOT_RECOVER.search(said)):
            where = f"{self.server.connection.name}: the server in {self.place}"
            msg = f"{where} does not recover: {said}. Mend that, then run this again"
            raise SiteError(msg)

    def size(self) -> int:
        """Return the size of the data directory in bytes."""
        server = self.server
        # After a copy that failed there is none: what was moved aside is about as big.
        where = server.data if server.connection.exists(server.data, server.user) else self.kept
        return int(server.connection.check(["du", "-s", "-B1", "--", where], user=server.user).split()[0])

    def no_rewind(self) -> str:
        """Return why the instance cannot be rewound, as far as it tells; or nothing."""
        control = self.server.control_data()
        # Without either, a page whose hint bits alone were changed is not known to differ: PostgreSQL, "pg_rewind".
        if control[_CHECKSUMS] == "0" and control[_HINTS] != "on":
            return "it has neither data checksums nor wal_log_hints"
        return ""

    def archive(self, fork: Fork) -> str:
        """Put aside the WAL past a fork, and a list of its transactions; return where, and how much, or nothing."""
        found = self.beyond(fork)
        if not found["bytes"]:
            return ""
        with self.may_pass("put aside what it alone has"):
            return self._put_aside(fork, found)

    def _put_aside(self, fork: Fork, found: Beyond) -> str:
        server, control = self.server, self.server.control_data()
        folder = f"{self.server.data}/pg_wal"
        names = server.connection.check(["ls", "-A", "--", folder], user=server.user).split()
        begins = wal.past(fork, self.history())
        wanted = wal.segments(names, begins, int(control["Bytes per WAL segment"]))
        server.connection.check(["mkdir", "-m", "700", "-p", "--", self.kept], user=server.user)
        self._insist_on_room(folder, wanted)
        place = f"{self.kept}/diverged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        server.connection.check(["mkdir", "-m", "700", "-p", "--", f"{place}/pg_wal"], user=server.user)
        paths = [f"{folder}/{name}" for name in wanted]
        server.connection.check(["cp", "-p", "--", *paths, f"{place}/pg_wal/"], user=server.user, timeout=READ_DEADLINE)
        copies = [f"{place}/pg_wal/{name}" for name in wanted]
        server.connection.check(["sync", "--", *copies, f"{place}/pg_wal"], user=server.user, timeout=READ_DEADLINE)
        # The list last: where it is, everything is.
        text = json.dumps({"fork": fork, **found}, indent=1) + "\n"
        server.write({f"{place}/transactions.json": text})
        return f"{place} ({counted(len(found['transactions']), 'transaction')}, {found['bytes']} bytes of WAL)"

    def _insist_on_room(self, folder: str, names: list[str]) -> None:
        server = self.server
        sizes = server.connection.check(["stat", "-c", "%s", "--", *(f"{folder}/{n}" for n in names)], user=server.user)
        needed = sum(map(int, sizes.split())) // 1024 + _SPARE_KB
        kept = self.kept
        free = int(server.connection.check(["df", "--output=avail", "-B1K", "--", kept]).splitlines()[-1])
        if free < needed:
            msg = (
                f"{server.connection.name}: {kept} has {free // 1024} MB free, and {needed // 1024} MB are needed to "
                f"put aside what this server alone has"
            )
            raise SiteError(msg)

    @contextmanager
    def may_pass(self, what: str, *, only: re.Pattern[str] | None = None) -> Generator[None]:
        """Take what goes wrong here for something that may pass: nothing is to be decided by it.

        Args:
            what: is being tried, as in: it cannot do that now.
            only: of errors, those whose text this finds.
        """
        try:
            yield
        except UnreachableError:
            raise
        except SiteError as error:
            if only and not only.search(str(error)):
                raise
            msg = (
                f"{self.server.connection.name}: the server in {self.place} cannot {what} now: {error}. "
                f"Mend that, then run this again; if it cannot be mended, move {self.server.data} away, and it is "
                f"copied anew"
            )
            raise PassingError(msg) from error
