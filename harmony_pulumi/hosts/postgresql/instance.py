"""One instance of PostgreSQL, wherever it runs: its data directory and its SQL, by its programs run where it is."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

from harmony_pulumi.capabilities.site import Fork, Survey, Token
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.commands import Commands
from harmony_pulumi.hosts.postgresql import files, queries, wal
from harmony_pulumi.orchestration.wait import wait_for

C = TypeVar("C", bound=Commands)

_LIMITS = """
SELECT json_object_agg(name, setting::bigint) FROM pg_settings WHERE name IN ('max_connections',
  'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction')
"""
_SURVEY = queries.together(
    major="SELECT current_setting('server_version_num')::int / 10000",
    databases=queries.DATABASES,
    available=queries.AVAILABLE,
    limits=_LIMITS,
    logical_slots=queries.LOGICAL_SLOTS,
    replay=queries.REPLAY,
)
_CHECKPOINT_DEADLINE = 600
_ANSWERED = "harmony: answered"

_BUILD = (
    "pg_control version number",
    "Catalog version number",
    "Maximum data alignment",
    "Database block size",
    "WAL block size",
    "Bytes per WAL segment",
    "Data page checksum version",
)


class Instance(ABC, Generic[C]):
    """One instance. What starts and stops it is another matter."""

    connection: C
    user: str
    """The OS user that owns and runs it."""

    @property
    @abstractmethod
    def data(self) -> str:
        """The data directory (PGDATA)."""

    @property
    @abstractmethod
    def socket(self) -> str:
        """The folder of the Unix socket."""

    @abstractmethod
    def program(self, name: str) -> str:
        """Return the path of one of PostgreSQL's programs."""

    @property
    def standby_signal(self) -> str:
        """The file that makes the instance start as a standby: PostgreSQL, "Standby Server Operation"."""
        return f"{self.data}/standby.signal"

    def write(self, texts: Mapping[str, str]) -> bool:
        """Write the files whose texts differ, by their paths; tell whether any did."""
        return bool(self.connection.write_files(texts, user=self.user))

    def read(self, folder: str, names: Sequence[str]) -> dict[str, str | None]:
        """Return the texts of files in a folder, by their names; None for those that are not there."""
        texts = self.connection.read_files([f"{folder}/{name}" for name in names], self.user)
        return dict(zip(names, texts.values(), strict=True))

    def limits(self, port: int) -> dict[str, int]:
        """Return the settings that its standbys must have at least as high, as they are in effect."""
        found: dict[str, int] = self.look(_LIMITS, port=port)
        return found

    def checkpoint(self, port: int) -> None:
        """Write what is in memory, so that a stop, for which clients wait, has little left to write."""
        self.sql("CHECKPOINT", port=port, timeout=_CHECKPOINT_DEADLINE)

    def sql(
        self, text: str, *, port: int, database: str = "postgres", timeout: float = 60, socket: str | None = None
    ) -> str:
        """Run SQL as the superuser over the Unix socket, and return unaligned rows.

        Args:
            text: one statement or more.
            port: of the server.
            database: to run it in.
            timeout: seconds.
            socket: the folder of the Unix socket, if it is not where harmony has it.

        Raises:
            SiteError: PostgreSQL refused it.
        """
        env = self._psql_env(port, database, socket or self.socket)
        return self.connection.check(self._psql(), user=self.user, stdin=text, env=env, timeout=timeout).strip()

    def _psql(self) -> list[str]:
        return [self.program("psql"), "-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-f", "-"]

    def _psql_env(self, port: int, database: str, socket: str) -> dict[str, str]:
        return {
            "PGHOST": socket,
            "PGPORT": str(port),
            "PGUSER": "postgres",
            "PGDATABASE": database,
            "PGOPTIONS": "-c client_min_messages=warning -c synchronous_commit=local",
            "PGCONNECT_TIMEOUT": "10",
        }

    def look(self, query: str, *, port: int, database: str = "postgres", socket: str | None = None) -> Any:
        """Run a query that returns one JSON value, and return that."""
        return json.loads(self.sql(query, port=port, database=database, socket=socket) or "null")

    @contextmanager
    def session(self, port: int) -> Generator[Callable[[str, float], str]]:
        """Connect as `sql` does, for as long as the block lasts; give what to run SQL with, and seconds to wait for it.

        To connect takes longer than what clients should wait for. After an error, the session is over.
        """
        env = self._psql_env(port, "postgres", self.socket)
        with self.connection.conversing(self._psql(), user=self.user, env=env) as ask:
            yield lambda text, timeout: ask(f"{text}\n;\n\\echo {_ANSWERED}\n", _ANSWERED, timeout).strip()

    def wal_record(self, timeline: int, lsn: str) -> str:
        """Return the WAL record at an LSN, as pg_waldump shows it: type, length, links and content.

        Raises:
            SiteError: there is none.
        """
        argv = self.waldump(Fork(timeline=timeline, lsn=lsn), "-n", "1")
        return self.connection.check(argv, user=self.user, env={"LC_ALL": "C"}).strip()

    def waldump(self, begin: Fork, *options: str) -> list[str]:
        """Return how to call pg_waldump on the WAL from an LSN on, on its timeline.

        It is told the segments. Else it takes their size from any file in the folder, and one that a checkpoint made
        in advance is empty: PostgreSQL 13 to 18, pg_waldump.c.

        Raises:
            SiteError: none of that WAL is there.
        """
        folder = f"{self.data}/pg_wal"
        # The folder may be a link: initdb, --waldir. A running standby recycles segments meanwhile.
        find = ["find", "-H", folder, "-ignore_readdir_race", "-maxdepth", "1", "-name", wal.of_timeline(begin)]
        listed = self.connection.check([*find, "-printf", "%s %f\\n"], user=self.user)
        try:
            segments = wal.span(begin, listed)
        except ValueError as error:
            msg = f"{self.connection.name}: {folder} {error}"
            raise SiteError(msg) from error
        return [self.program("pg_waldump"), "-p", folder, "-s", begin["lsn"], *options, *segments]

    def replication_command(self, conninfo: str, command: str) -> tuple[bool, str]:
        """Send a replication command to the source; return whether it took it, and what it said.

        PostgreSQL, "Streaming Replication Protocol".
        """
        argv = [self.program("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d"]
        argv += [f"{conninfo} replication=true", "-c", command]
        done = self.connection.run(argv, user=self.user, env={"LC_ALL": "C"})
        return done.status == 0, (done.stderr or done.stdout).strip()

    def make_slot_at(self, conninfo: str, slot: str) -> None:
        """Have the source keep WAL from here on, by a slot that is made unless it is there.

        Raises:
            SiteError: the source does not make it.
        """
        took, said = self.replication_command(conninfo, f"CREATE_REPLICATION_SLOT {slot} PHYSICAL RESERVE_WAL")
        if not took and "already exists" not in said:
            msg = f"{self.connection.name}: cannot make the replication slot {slot} at the source: {said}"
            raise SiteError(msg)

    def control_data(self) -> Mapping[str, str]:
        """Return what pg_controldata prints, by its labels."""
        argv = [self.program("pg_controldata"), "-D", self.data]
        return labelled(self.connection.check(argv, user=self.user, env={"LC_ALL": "C"}))

    def remove(self, path: str) -> None:
        """Remove a file, on disk, too: after a loss of power it is not there again."""
        self.connection.check(["sh", "-c", 'rm -f -- "$1" && sync -- "${1%/*}"', "sh", path], user=self.user)

    def move(self, path: str, to: str) -> None:
        """Move a file or folder."""
        self.connection.check(["mv", "-T", "--", path, to], user=self.user)


def labelled(text: str) -> dict[str, str]:
    """Return what pg_controldata has printed, by its labels."""
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def survey(server: Instance[Any], port: int) -> Survey:
    """Look at what decides whether this running server can take another's place, or follow it."""
    control = server.control_data()
    found = server.look(_SURVEY, port=port)
    inside = {name: server.look(queries.IN_DATABASE, port=port, database=name) for name in found["databases"]}
    collations = server.look(queries.COLLATIONS, port=port) if found["major"] >= 15 else {}
    for each in inside.values():
        collations |= each["collations"]
    free = server.connection.check(["df", "--output=avail", "-B1", "--", server.data]).split()[-1]
    return {
        "major": found["major"],
        "build": {label: control[label] for label in _BUILD},
        "extensions": {name: each["extensions"] for name, each in inside.items()},
        "available": found["available"],
        "collations": collations,
        "limits": found["limits"],
        "logical_slots": found["logical_slots"],
        "replay_paused": found["replay"]["paused"],
        "apply_delay_ms": found["replay"]["delay"],
        "free_bytes": int(free),
    }


class Session:
    """A connection to one server that is opened before clients wait, and used while they do."""

    def __init__(self) -> None:
        """Be closed."""
        self._stack = ExitStack()
        self._ask: Callable[[str, float], str] | None = None

    def open(self, server: Instance[Any], port: int) -> None:
        """Connect, unless that was done."""
        self._ask = self._ask or self._stack.enter_context(server.session(port))

    def sql(self, server: Instance[Any], text: str, *, port: int, timeout: float) -> str:
        """Run SQL by the connection, or by another one if it is not there any more."""
        if self._ask is not None:
            try:
                return self._ask(text, timeout)
            except SiteError:  # The server was restarted, say: what is wrong with it, if anything, is said below.
                self._ask = None
        return server.sql(text, port=port, timeout=timeout)

    def close(self) -> None:
        """Disconnect."""
        self._ask = None
        self._stack.close()


def insist_on_token(server: Instance[Any], system_identifier: str, token: Token) -> None:
    """Refuse a server whose database, or whose record where its primary stepped down, is not that of a token."""
    found = (system_identifier, server.wal_record(token["timeline"], token["lsn"]))
    expected = (token["system_identifier"], token["record"])
    if found != expected:
        msg = (
            f"{server.connection.name}: another history: expected database {expected[0]} with `{expected[1]}`, found "
            f"{found[0]} with `{found[1]}`; this copy is not one of the member that stepped down: clone it anew"
        )
        raise SiteError(msg)


def echo(server: Instance[Any], follower: str, port: int, *, deadline: float) -> str:
    """Write a restore point, in a transaction that has an id, since only the end of one is put on disk at once.

    Returns the LSN at its end once a standby, by its name, has said that it has it on disk.
    """
    lsn: str = server.look(queries.MARK, port=port)
    wait_for(
        f"{server.connection.name}: a word of {follower} that it has what was written for this",
        lambda: server.look(files.has_flushed_sql(follower, lsn), port=port),
        bool,
        deadline=deadline,
        advice="Is the network between them cut? That is noticed only after wal_sender_timeout",
    )
    return lsn
