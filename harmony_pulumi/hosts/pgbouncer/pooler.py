"""One PgBouncer on a host: the acts that run it and talk to it. Thin: what to write is decided in `files`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harmony_pulumi.capabilities.addresses import address
from harmony_pulumi.errors import SiteError, counted
from harmony_pulumi.hosts.commands import Completed
from harmony_pulumi.hosts.connection import Connection
from harmony_pulumi.hosts.logs import set_aside_if_large
from harmony_pulumi.hosts.pgbouncer import files
from harmony_pulumi.hosts.pgbouncer.files import Layout
from harmony_pulumi.hosts.postgresql.home import listening_ports
from harmony_pulumi.orchestration.wait import wait_for

IN_USE = "Address already in use"
_START_DEADLINE = _STOP_DEADLINE = 10
_CONSOLE_DEADLINE = 10
_FORMER_DEADLINE = 2
# Any version will do. Where distributions put it comes before PATH, where Debian has a slow wrapper: clients wait.
_PSQL = """
for psql in /usr/lib/postgresql/*/bin/psql /usr/pgsql-*/bin/psql "$(command -v psql)"; do
  [ -x "$psql" ] && exec "$psql" "$@"
done
exit 127
"""
_FIND = """
for pgbouncer in "$(command -v pgbouncer)" /usr/sbin/pgbouncer /usr/bin/pgbouncer /usr/local/bin/pgbouncer; do
  [ -x "$pgbouncer" ] && echo "$pgbouncer $("$pgbouncer" --version)" && exit
done
"""
_PROCESS = """
read -r pid <"$1" && echo "$pid" && exec tr '\\0' '\\n' <"/proc/$pid/cmdline"
"""
# A pid may be another process's after a crash or reboot, and PgBouncer would not start beside it; nor was a new one
# paused that happens to have the number of one that was.
_START = """
rm -f -- "$2" "$4"
ulimit -n "$(ulimit -Hn)" 2>/dev/null || :
exec "$1" -d -q "$3"
"""


@dataclass(frozen=True)
class Program:
    """An installed PgBouncer."""

    path: str
    version: str
    """For instance `1.18.0`."""


def find_program(connection: Connection) -> Program:
    """Return the installed PgBouncer.

    Raises:
        SiteError: there is none; the message says what to do.
    """
    path, _, said = connection.run(["sh", "-c", _FIND]).stdout.partition(" ")
    if match := re.search(r"PgBouncer (\d+\.\d+\S*)", said):
        return Program(path, match[1])
    msg = (
        f"{connection.name}: PgBouncer is needed for an endpoint, and is not installed. Install it, for instance on "
        f"Debian: apt-get install pgbouncer"
    )
    raise SiteError(msg)


def find_psql(connection: Connection) -> None:
    """Insist that there is a psql, by which PgBouncer is told what to do.

    Raises:
        SiteError: there is none; the message says what to do.
    """
    if connection.run(["sh", "-c", _PSQL, "sh", "--version"]).status:
        msg = (
            f"{connection.name}: psql is needed for an endpoint, and is not installed. Install it, for instance on "
            f"Debian: apt-get install postgresql-client"
        )
        raise SiteError(msg)


@dataclass
class Marker:
    """Whose folder it is, its port, and the server that it forwards to."""

    owner: str
    """`<project>/<stack>/<resource>`."""
    machine_id: str
    port: int
    server: Mapping[str, Any]
    """`host` and `port`."""
    revision: str = ""
    """Of its last deployment, to tell one that the engine did not live to record."""
    format: int = 1

    @classmethod
    def read(cls, connection: Connection, root: str, user: str) -> Marker | None:
        """Return the marker of a folder, or None if it has none."""
        text = connection.read_file(Layout(root).marker, user)
        if text is None:
            return None
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            msg = (
                f"{connection.name}: {Layout(root).marker} is not a marker of this version of harmony ({error}); look "
                f"at what the folder holds, and move it away if it is not needed"
            )
            raise SiteError(msg) from error

    def text(self) -> str:
        """Return what is kept of it."""
        return json.dumps(asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Pooler:
    """One PgBouncer, by where it is."""

    connection: Connection
    layout: Layout
    user: str
    """The OS user that owns and runs it."""

    def write(self, texts: Mapping[str, str]) -> bool:
        """Write the files whose texts differ, by their paths; tell whether any did."""
        return bool(self.connection.write_files(texts, user=self.user))

    def running_pid(self) -> int | None:
        """Return its process, if it is alive and really this PgBouncer: it has our configuration as an argument."""
        done = self.connection.run(["sh", "-c", _PROCESS, "sh", self.layout.pidfile], user=self.user)
        pid, *arguments = [*done.stdout.split("\n"), ""]
        ours = arguments[0].rpartition("/")[2] == "pgbouncer" and self.layout.config in arguments
        return int(pid) if ours else None

    def start(self, port: int) -> None:
        """Start it as a daemon and wait until it answers.

        Raises:
            SiteError: it did not start, or could not listen on its port; the message holds the end of its log.
        """
        program = find_program(self.connection)
        set_aside_if_large(self.connection, self.layout.log, self.user)
        size = self._log_size()
        argv = ["sh", "-c", _START, "sh", program.path, self.layout.pidfile, self.layout.config, self.layout.paused]
        done = self.connection.run(argv, user=self.user)
        said = f"{done.stdout.strip()} {done.stderr.strip()}".strip()
        if not done.status:
            _, said = wait_for(
                f"{self.connection.name}: the start of PgBouncer in {self.layout.root}",
                lambda: (self._answers(port), self._log_since(size)),
                lambda seen: seen[0] or " FATAL " in seen[1],
                deadline=_START_DEADLINE,
                advice=f"Look at the end of {self.layout.log}.",
            )
        # One that cannot have its port runs on without it, reached by its Unix socket alone.
        if self._answers(port) and IN_USE not in said and port in listening_ports(self.connection):
            return
        self.stop()
        msg = f"{self.connection.name}: PgBouncer in {self.layout.root} did not start: {said.strip()[-1500:]}"
        raise SiteError(msg)

    def stop(self) -> None:
        """Stop it at once, if it runs. Its clients are disconnected. It keeps nothing that could be lost."""
        if (pid := self.running_pid()) is None:
            return
        self.connection.run(["kill", "-KILL", str(pid)], user=self.user)
        wait_for(
            f"{self.connection.name}: the end of PgBouncer in {self.layout.root}, process {pid}",
            self.running_pid,
            lambda pid: pid is None,
            deadline=_STOP_DEADLINE,
            advice="See what keeps it.",
        )

    def _answers(self, port: int) -> bool:
        return self._psql(["-c", "SHOW VERSION"], port).status == 0

    def _log_size(self) -> int:
        done = self.connection.run(["stat", "-c", "%s", "--", self.layout.log], user=self.user)
        return int(done.stdout) if done.status == 0 else 0

    def _log_since(self, size: int) -> str:
        return self.connection.run(["tail", "-c", f"+{size + 1}", "--", self.layout.log], user=self.user).stdout

    # -- the admin console: pgbouncer(1) -------------------------------------------------------------------------

    def tell(self, command: str, port: int, *, unless: str = "\0", timeout: float = _CONSOLE_DEADLINE) -> bool:
        """Give a command, and tell whether it was taken; False if the answer was that of `unless`.

        Raises:
            SiteError: it was refused otherwise, or not answered within `timeout` seconds.
        """
        done = self._psql(["-c", command], port, timeout)
        if done.status and unless not in done.stderr:
            msg = (
                f"{self.connection.name}: PgBouncer in {self.layout.root} did not take {command}: {done.stderr.strip()}"
            )
            raise SiteError(msg)
        return done.status == 0

    def show(self, what: str, port: int, *first: str) -> Sequence[Mapping[str, str]]:
        """Return the rows of a SHOW command, given after some others that have none.

        Raises:
            SiteError: it does not answer.
        """
        commands = [word for command in (*first, f"SHOW {what}") for word in ("-c", command)]
        done = self._psql(["--csv", "-P", "tuples_only=off", *commands], port)
        if done.status:
            msg = f"{self.connection.name}: PgBouncer in {self.layout.root} does not answer: {done.stderr.strip()}"
            raise SiteError(msg)
        return files.rows(done.stdout)

    def _psql(self, arguments: Sequence[str], port: int, timeout: float = _CONSOLE_DEADLINE) -> Completed:
        # The user that runs it is let in as `pgbouncer`, by its Unix socket, without a password.
        env = {
            "PGHOST": self.layout.socket,
            "PGPORT": str(port),
            "PGUSER": "pgbouncer",
            "PGDATABASE": "pgbouncer",
            "PGCONNECT_TIMEOUT": "5",
        }
        argv = ["sh", "-c", _PSQL, "sh", "-X", "-q", "-A", "-t", "-w", *arguments]
        return self.connection.run(argv, user=self.user, env=env, timeout=timeout)

    # -- pause, point, resume ------------------------------------------------------------------------------------

    def is_paused(self) -> bool:
        """Tell whether the process that runs now was paused."""
        pid = self.running_pid()
        return pid is not None and (self.connection.read_file(self.layout.paused, self.user) or "").strip() == str(pid)

    def pause(self, port: int, deadline: float) -> None:
        """Hold statements back, and wait until no transaction is at work. One that does not run lets nobody through.

        Raises:
            SiteError: some were still at work after `deadline` seconds; statements go on.
        """
        # First, so that it is never paused unmarked.
        self.connection.run(["cp", "--", self.layout.pidfile, self.layout.paused], user=self.user)
        try:
            if not self.tell("PAUSE", port, unless="already suspended/paused", timeout=deadline):
                # Whoever paused it may have been cut off while transactions were still at work.
                self._wait_until_idle(port, deadline)
        except SiteError as error:
            if self.running_pid() is None:
                return
            try:
                pools = self.show("POOLS", port)
            finally:
                self.resume(port)
            msg = (
                f"{self.connection.name}: the endpoint in {self.layout.root} could not be paused: after "
                f"{deadline:g} s, of {counted(files.clients_of(pools), 'client')}, "
                f"{counted(files.at_work(pools), 'transaction')} had not ended, so all go on. End what is at "
                f"work, or wait for it, and run this again"
            )
            raise SiteError(msg) from error

    def _wait_until_idle(self, port: int, deadline: float) -> None:
        wait_for(
            f"{self.connection.name}: the end of transactions at work",
            lambda: files.at_work(self.show("POOLS", port)),
            lambda count: count == 0,
            deadline=deadline,
            advice="",
        )

    def resume(self, port: int) -> None:
        """Let statements go on."""
        self.tell("RESUME", port, unless="not paused/suspended")
        self.connection.check(["rm", "-f", "--", self.layout.paused], user=self.user)

    def reload(self, marker: Marker) -> None:
        """Have it read its files again; then no connection is left to a server that it forwarded to before.

        Those to the same server go on, until they are released, with what they were made with.

        Raises:
            SiteError: it does not answer. One that does not run has read them once it is started.
        """
        try:
            left = self._former(marker, "RELOAD")
        except SiteError:
            if self.running_pid() is None:
                return
            raise
        if left:
            self._drop_former(marker)

    def _drop_former(self, marker: Marker) -> None:
        try:
            wait_for(
                f"{self.connection.name}: the end of connections to another server",
                lambda: self._former(marker),
                lambda left: not left,
                deadline=_FORMER_DEADLINE,
                advice="",
            )
        except SiteError:
            # PgBouncer ends a connection once it is released, and before 1.24 cannot be told to end it now.
            paused = self.is_paused()
            self.stop()
            self.start(marker.port)
            if paused:
                self.pause(marker.port, _CONSOLE_DEADLINE)

    def _former(self, marker: Marker, *first: str) -> set[str]:
        """Return the addresses of other servers to which there are connections, after some commands.

        PgBouncer is to end all that have parameters of before: where an authority is new, also those to the same one.
        """
        servers = self.show("SERVERS", marker.port, *first)
        former = {address(server["addr"], server["port"]) for server in servers if server["close_needed"] == "1"}
        return former - self._addresses(marker.server) if former else former

    def _addresses(self, server: Mapping[str, Any]) -> set[str]:
        """Return the addresses of a server, whose name is resolved as PgBouncer does it."""
        found = self.connection.run(["getent", "ahosts", str(server["host"])]).stdout
        hosts = {line.split()[0] for line in found.splitlines() if line.split()}
        return {address(host, server["port"]) for host in hosts | {server["host"]}}
