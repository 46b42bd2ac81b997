"""What every system is to the benchmark: two servers, a client's way in, and the acts that are timed."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import psycopg

from benchmarks import common
from benchmarks.writer import TABLE
from harmony_pulumi.hosts.postgresql.server import Binaries

MEMBERS = ("primary", "replica")
SHOWN = (
    "fsync",
    "data_checksums",
    "full_page_writes",
    "ssl",
    "shared_buffers",
    "max_wal_size",
    "wal_level",
    "synchronous_commit",
    "synchronous_standby_names",
    "wal_log_hints",
    "wal_retrieve_retry_interval",
)
SAFE = {"fsync": "on", "data_checksums": "on", "full_page_writes": "on", "ssl": "on"}


FAILURES = (SystemExit, psycopg.Error, subprocess.SubprocessError, OSError, ValueError)
"""What it may be when one system fails; the others are measured nevertheless."""


class Switched(ABC):
    """Two servers whose roles are moved while a client writes, the first of `members` leading at first."""

    name: ClassVar[str]
    how: ClassVar[str]
    """How it is set up and told, and what is not equal to the others."""
    members: ClassVar[tuple[str, str]] = MEMBERS
    leader: str
    password: str
    """Of the client."""

    @abstractmethod
    def version(self) -> str:
        """Return which version of it is measured."""

    @abstractmethod
    def start(self) -> None:
        """Deploy it, up to a standby that streams."""

    @abstractmethod
    def stop(self) -> None:
        """End everything that was started."""

    @abstractmethod
    def conninfo(self, *members: str) -> dict[str, str]:
        """Return how a client connects: to whichever member takes writes, unless members are given."""

    @abstractmethod
    def switch_over(self) -> None:
        """Make the other member the leader, and have the old one follow."""

    @abstractmethod
    def sql(self, text: str) -> str:
        """Run SQL as the superuser, in the leader."""

    def make_client(self) -> None:
        """Make the role and the table of the client."""
        self.sql(
            f"CREATE ROLE client LOGIN PASSWORD '{self.password}' IN ROLE pg_monitor;"
            f"CREATE TABLE {TABLE} (value text PRIMARY KEY);"
            f"ALTER TABLE {TABLE} OWNER TO client;"
        )

    @property
    def follower(self) -> str:
        """The member that does not lead."""
        return self.members[1 - self.members.index(self.leader)]

    def connect(self, member: str, **overrides: str) -> psycopg.Connection[tuple[Any, ...]]:
        """Connect to one member."""
        return psycopg.connect(**{**self.conninfo(member), **overrides}, autocommit=True)  # type: ignore[arg-type]

    def leads(self, member: str) -> bool:
        """Tell whether a member takes writes."""
        try:
            with self.connect(member) as connection:
                return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        except psycopg.Error:
            return False

    def is_followed(self, member: str) -> bool:
        """Tell whether a member takes writes and the other one streams from it."""
        query = "SELECT NOT pg_is_in_recovery() AND EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')"
        try:
            with self.connect(member) as connection:
                return connection.execute(query).fetchone() == (True,)
        except psycopg.Error:
            return False

    def settings(self) -> dict[str, str]:
        """Return settings of the leader that a comparison depends on.

        Raises:
            SystemExit: the server is not safe, so there is nothing to compare.
        """
        with self.connect(self.leader) as connection:
            query = "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY (%s)"
            found: dict[str, str] = dict(connection.execute(query, (list(SHOWN),)).fetchall())  # type: ignore[arg-type]
        if unsafe := {name: found[name] for name, value in SAFE.items() if found[name] != value}:
            raise SystemExit(f"{self.name}: expected {SAFE}, found {unsafe}")
        return {name: found[name] for name in SHOWN}


class Pair(Switched):
    """One system: a pair of servers on this machine."""

    is_automatic: ClassVar[bool] = False
    """Whether it promotes by itself once the leader is dead."""

    def __init__(self, folder: Path, binaries: Binaries) -> None:
        """Plan it in a folder of its own, which is made."""
        self.folder, self.binaries = folder, binaries
        self.ports: dict[str, int] = dict(zip(MEMBERS, common.free_ports(len(MEMBERS)), strict=True))
        self.leader = MEMBERS[0]
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        """What it runs beside the servers, by name; that of a member has the member's name."""
        self.password = secrets.token_hex(16)
        account = common.owner()
        folder.mkdir(mode=0o700)
        os.chown(folder, account.pw_uid, account.pw_gid)

    @classmethod
    @abstractmethod
    def lacking(cls) -> str:
        """Return what is to be installed and how, or nothing."""

    def cannot_fail_over(self) -> str:
        """Return why it cannot be told to promote once the leader is dead, or nothing."""
        return ""

    @abstractmethod
    def fail_over(self) -> None:
        """Tell it to promote the other member, as the leader is dead; nothing if it is automatic."""

    @abstractmethod
    def rejoin(self, member: str) -> None:
        """Have a dead member come back as a standby."""

    @property
    def authority(self) -> Path:
        """The certificate of the authority that clients trust."""
        return self.folder / "ca.crt"

    def data(self, member: str) -> Path:
        """Return a member's data directory."""
        return self.folder / member / "data"

    def socket(self, member: str) -> Path:
        """Return the folder of a member's Unix socket."""
        return self.folder / member / "run"

    # -- clients -------------------------------------------------------------------------------------------------------

    def conninfo(self, *members: str) -> dict[str, str]:
        """Return how a client connects: to whichever member takes writes, unless members are given."""
        chosen = members or MEMBERS
        found = {
            "host": ",".join("localhost" for _ in chosen),
            "hostaddr": ",".join("127.0.0.1" for _ in chosen),
            "port": ",".join(str(self.ports[member]) for member in chosen),
            "user": "client",
            "password": self.password,
            "dbname": "postgres",
            "sslmode": "verify-full",
            "sslrootcert": str(self.authority),
            "connect_timeout": "5",
        }
        return found if members else {**found, "target_session_attrs": "read-write"}

    def sql(self, text: str, member: str | None = None, *, timeout: float = 60) -> str:
        """Run SQL as the superuser over the Unix socket, of the leader unless a member is named."""
        member = member or self.leader
        command = [self.program("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        command += ["-h", str(self.socket(member)), "-p", str(self.ports[member]), "-U", "postgres", "-d", "postgres"]
        return common.as_owner(command, stdin=text, timeout=timeout).strip()

    # -- processes -----------------------------------------------------------------------------------------------------

    def program(self, name: str) -> str:
        """Return the path of one of PostgreSQL's programs."""
        return f"{self.binaries.path}/{name}"

    def environment(self) -> dict[str, str]:
        """Return the variables of what it runs: nothing of the user's own, and its folder as home."""
        path = f"{self.binaries.path}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        return {"PATH": path, "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}

    def run(self, *command: str, stdin: str = "", timeout: float = 120) -> str:
        """Run a command of its that must succeed, as the owner of the servers."""
        return common.as_owner(command, stdin=stdin, timeout=timeout, env=self.environment())

    def launch(self, name: str, *command: str) -> None:
        """Start what runs beside the servers. It ends when the benchmark does."""
        become = [*common.become_owner()[:-1], "--pdeathsig", "TERM", "--"]
        if become[0] != "setpriv":
            become.insert(0, "setpriv")
        with (self.folder / f"{name}.out").open("ab") as out:
            self.agents[name] = subprocess.Popen(
                [*become, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd="/",
                env=self.environment(),
                start_new_session=True,
            )

    def write(self, path: Path, text: str) -> None:
        """Write a file that belongs to the owner of the servers, and only to them."""
        account = common.owner()
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        os.chown(path, account.pw_uid, account.pw_gid)

    def postmaster(self, member: str) -> int | None:
        """Return the process of a member's server, if it runs."""
        with suppress(OSError, ValueError):
            pid = int((self.data(member) / "postmaster.pid").read_text().partition("\n")[0])
            if Path(f"/proc/{pid}/cwd").resolve() == self.data(member).resolve():
                return pid
        return None

    def kill(self) -> list[int]:
        """Kill the leader, with all that runs on its site, as a loss of power does; return its processes."""
        agent = self.agents.pop(self.leader, None)
        roots = [agent.pid] if agent else []
        postmaster = self.postmaster(self.leader)
        if postmaster is None:
            raise SystemExit(f"{self.name}: no server of the {self.leader} is there to be killed")
        killed = _kill([*roots, postmaster])
        if agent:
            agent.wait(30)
        return killed

    def stop(self) -> None:
        """End everything that was started."""
        for agent in reversed(self.agents.values()):
            agent.terminate()
        for agent in self.agents.values():
            try:
                agent.wait(15)
            except subprocess.TimeoutExpired:
                _kill([agent.pid])
                agent.wait(15)
        self.agents.clear()
        servers = [pid for member in MEMBERS if (pid := self.postmaster(member))]
        for pid in servers:
            os.kill(pid, signal.SIGQUIT)  # It leaves no shared memory behind, as a killed one does.
        with suppress(SystemExit):
            wait_for(f"{self.name}: the end of its servers", lambda: not running(servers), deadline=10)
        _kill(_working_below(self.folder))
        wait_for(f"{self.name}: the end of its processes", lambda: not _working_below(self.folder), deadline=30)


def wait_for(what: str, holds: Callable[[], bool], *, deadline: float, interval: float = 0.1) -> None:
    """Wait until something holds, at most so many seconds."""
    end = time.monotonic() + deadline
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {deadline:g} s")
        time.sleep(interval)


def running(pids: Sequence[int]) -> list[int]:
    """Return which processes are still there: PostgreSQL does not start while one of a dead server is."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def _working_below(folder: Path) -> list[int]:
    """Return the processes that work in a folder or below: servers, and what they have started."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.joinpath("cwd").resolve().is_relative_to(folder):
                found.append(int(process.name))
    return found


def _kill(roots: Sequence[int]) -> list[int]:
    """Kill processes and all their descendants, the ancestors first; return them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    doomed = list(roots)
    for pid in doomed:
        doomed += children.get(pid, [])
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return doomed


def install(packages: str, *, programs: Mapping[str, bool]) -> str:
    """Return how to install what is not there, or nothing."""
    lacking = [name for name, is_there in programs.items() if not is_there]
    return f"not installed: {', '.join(lacking)}; {packages}" if lacking else ""
