"""The floor: two bare servers, and the least that moves their roles without losing anything. Nothing of harmony's."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.pairs.base import MEMBERS, Pair

_TICK = 0.001
_DEADLINE = 60.0


class BarePair(Pair):
    """A pair that a shell script makes, with the settings, certificates and access rules that harmony's have."""

    @classmethod
    def lacking(cls) -> str:
        return ""

    def version(self) -> str:
        return f"PostgreSQL {self.binaries.version}"

    def start(self) -> None:
        script = Path(__file__).parent.with_name("bare_pair.sh").read_text(encoding="utf-8")
        ports = [str(port) for port in self.ports.values()]
        self.run("bash", "-s", "--", self.binaries.path, str(self.folder), *ports, stdin=script, timeout=300)
        self.sql(f"ALTER ROLE postgres PASSWORD '{self.password}'")
        self.make_client()

    def replication_conninfo(self, member: str) -> str:
        """Return how a standby connects to a member."""
        tls = f"sslmode=verify-full sslrootcert={self.folder}/ca.crt"
        certificate = f"sslcert={self.folder}/client.crt sslkey={self.folder}/client.key"
        return f"host=localhost port={self.ports[member]} user=replicator {tls} {certificate} connect_timeout=10"

    def admin(self, member: str) -> psycopg.Connection[tuple[Any, ...]]:
        """Connect as the superuser."""
        return self.connect(member, user="postgres")

    def start_server(self, member: str) -> None:
        """Start a member's server."""
        log = str(self.folder / member / "log")
        self.run(self.program("pg_ctl"), "start", "-D", str(self.data(member)), "-l", log, "-s", "-w")

    def stop_servers(self) -> None:
        """Stop the servers cleanly, the follower last."""
        for member in (self.leader, self.follower):
            self.run(self.program("pg_ctl"), "stop", "-D", str(self.data(member)), "-m", "fast", "-s", "-w")


class Floor(BarePair):
    """Each act in one process, over connections that are open before it begins, looking each millisecond."""

    name = "floor"
    how = (
        "by hand: checkpoint, fast stop, the standby has the shutdown checkpoint, pg_promote; looks each millisecond. "
        "With wal_retrieve_retry_interval at its default, many a promotion right after a death waits for 5 s"
    )

    def start(self) -> None:
        super().start()
        for member in MEMBERS:
            config = self.data(member) / "postgresql.conf"
            self.write(config, f"{config.read_text()}wal_retrieve_retry_interval = '100ms'\n")
            self.sql("SELECT pg_reload_conf()", member)

    def switch_over(self) -> None:
        old, new = self.leader, self.follower
        with self.admin(old) as leader, self.admin(new) as standby:
            standby.execute(
                "SELECT pg_create_physical_replication_slot(%s, true) WHERE NOT EXISTS "
                "(SELECT FROM pg_replication_slots WHERE slot_name = %s)",
                (old, old),
            )
            leader.execute("CHECKPOINT")
            pid = self.postmaster(old)
            assert pid is not None
            os.kill(pid, signal.SIGINT)
            _look("the end of the old primary", lambda: self.postmaster(old) is None)
            end = self._shutdown_checkpoint(old)
            _look("the shutdown checkpoint on the standby", lambda: _ask(standby, _HAS, end))
            standby.execute("SELECT pg_promote(false)")
            self.leader = new
            _look("the promotion", lambda: not _ask(standby, "SELECT pg_is_in_recovery()"))
        self.follow(old)

    def kill(self) -> list[int]:
        self._survivor = self.admin(self.follower)
        return super().kill()

    def fail_over(self) -> None:
        with self._survivor as standby:
            standby.execute("SELECT pg_promote(false)")
            self.leader = self.follower
            _look("the promotion", lambda: not _ask(standby, "SELECT pg_is_in_recovery()"))
            standby.execute("CHECKPOINT")  # pg_rewind goes by the timeline of the last one.
            standby.execute("SELECT pg_create_physical_replication_slot(%s, true)", (self.follower,))

    def rejoin(self, member: str) -> None:
        self.rewind(member)
        self.follow(member)

    def rewind(self, member: str) -> None:
        """Make a dead member a copy of the leader, by what differs."""
        config = self.data(member) / "postgresql.conf"  # pg_rewind copies the leader's.
        text = config.read_text()
        source = f"host={self.socket(self.leader)} port={self.ports[self.leader]} user=postgres dbname=postgres"
        data = ["-D", str(self.data(member))]
        self.run(self.program("pg_rewind"), *data, "--source-server", source, timeout=900)
        self.write(config, text)

    def copy(self, member: str) -> None:
        """Make a member a copy of the leader, whole."""
        config = (self.data(member) / "postgresql.conf").read_text()
        self.run("mv", str(self.data(member)), str(self.data(member).with_name("kept")))
        source = self.replication_conninfo(self.leader)
        backup = ["-D", str(self.data(member)), "-d", source, "-X", "stream", "-S", member, "-c", "fast", "-w"]
        self.run(self.program("pg_basebackup"), *backup, timeout=900)
        self.write(self.data(member) / "postgresql.conf", config)

    def follow(self, member: str) -> None:
        """Start a member that was stopped, as a standby of the leader."""
        conninfo = f"{self.replication_conninfo(self.leader)} application_name={member}"
        text = f"primary_conninfo = '{conninfo}'\nprimary_slot_name = '{member}'\n"
        self.write(self.data(member) / "postgresql.auto.conf", text)
        self.write(self.data(member) / "standby.signal", "")
        self.start_server(member)
        other = MEMBERS[1 - MEMBERS.index(member)]
        slot = f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{other}'"
        self.sql(slot, member)

    def _shutdown_checkpoint(self, member: str) -> str:
        said = self.run(self.program("pg_controldata"), "-D", str(self.data(member)))
        found = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
        if found["Database cluster state"].strip() != "shut down":
            raise SystemExit(f"floor: the {member} did not end cleanly: {found['Database cluster state'].strip()}")
        return found["Latest checkpoint location"].strip()


_HAS = "SELECT pg_last_wal_replay_lsn() > %s::pg_lsn"


def _ask(connection: psycopg.Connection[tuple[Any, ...]], query: str, *values: str) -> bool:
    row = connection.execute(query, values).fetchone()  # type: ignore[arg-type]
    return bool(row and row[0])


def _look(what: str, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + _DEADLINE
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"floor: {what}: not within {_DEADLINE:g} s")
        time.sleep(_TICK)
