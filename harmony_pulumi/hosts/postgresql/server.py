"""One PostgreSQL server on a host: the acts that make it, run it and look at it.

Thin: what to write is decided in `files`, what to do when in `deployment`. Knows no Pulumi.

The configuration is outside the data directory, which has no postgresql.conf, or one with which nothing starts: a bare
`pg_ctl -D <data> start`, which would go past harmony, is refused by PostgreSQL itself; a base backup and a rewind
copy no configuration from one member to another.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from harmony_pulumi.capabilities.postgresql_facts import SUPPORTED_MAJORS
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.connection import Connection
from harmony_pulumi.hosts.logs import set_aside_if_large
from harmony_pulumi.hosts.postgresql.instance import Instance
from harmony_pulumi.hosts.postgresql.layout import Layout
from harmony_pulumi.orchestration.wait import wait_for

# `postgres` on PATH first, then where Debian, Red Hat's PGDG, source builds and others put it.
_FIND = """
for postgres in "$(command -v postgres)" /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres \
    /usr/local/pgsql/bin/postgres /opt/postgresql/*/bin/postgres; do
  [ -x "$postgres" ] || continue
  postgres=$(readlink -f "$postgres")
  bin=${postgres%/*}
  for tool in initdb pg_ctl pg_basebackup pg_controldata pg_waldump psql; do [ -x "$bin/$tool" ] || continue 2; done
  echo "$bin $("$bin/pg_ctl" --version)" # postgres says the same, and takes ten times as long
done
"""

# One that was in the files for a moment only stays marked, though it is as it was.
_WAIT_FOR_RESTART = """
SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM pg_settings s WHERE pending_restart
  AND (source = 'configuration file' OR EXISTS (SELECT FROM pg_file_settings f WHERE lower(f.name) = lower(s.name)))
"""
_LEFT_BEHIND = re.compile('lock file "([^"]+)" (?:already exists|is empty)|pre-existing shared memory block')
"""What PostgreSQL says, untranslated, while there is something left of a server that was killed: its children, say."""
_LEFT_BEHIND_DEADLINE = 30
_OWN_CONFIG = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf", "custom.conf", "override.conf")
"""What a data directory has beside its data: by initdb; the last two by CloudNativePG."""
# Of a process that had the pid a moment ago, and may have ended since.
_SIGNAL = '[ "/proc/$1/cwd" -ef "$2" ] && kill -s "$3" "$1"'
_NOBODY = 2**31 - 1
"""No process has this pid: the greatest of Linux is 2**22."""
# To PostgreSQL, every process of its OS user that has the pid in a lock file of a killed server is that server, for as
# long as it lives. Only the pid is taken out, and only where nothing of this user works in the data directory. Some
# hide where they work (ssh-agent, say: PR_SET_DUMPABLE); what has not the name of a server, which all can see, is none.
# PostgreSQL still looks whether anything is attached to the shared memory of before, which the file names.
_TAKE_OUT_PID = """
data=$1 lock=$2 nobody=$3
uid=$(id -u)
for process in /proc/[0-9]*; do
  state= owner=
  while read -r key value _; do
    case $key in State:) state=$value ;; Uid:) owner=$value; break ;; esac
  done 2>/dev/null <"$process/status"
  [ "$owner" = "$uid" ] && [ "$state" != Z ] || continue
  if [ "$process/cwd" -ef "$data" ]; then
    echo "process ${process#/proc/} works in the data directory"; exit 1
  fi
  if ! readlink "$process/cwd" >/dev/null; then
    name=
    read -r name 2>/dev/null <"$process/comm"
    [ -d "$process" ] || continue
    case $name in postgres | postmaster | "")
      echo "it cannot be told where process ${process#/proc/} works"; exit 1 ;;
    esac
  fi
done
pid= place=
{ read -r pid; read -r place; } <"$lock"
case $lock in
  "$data/postmaster.pid") ;;
  *) [ "$place" -ef "$data" ] || { echo "$lock is of another server, in $place"; exit 1; } ;;
esac
umask 077
{ echo "$nobody"; tail -n +2 "$lock"; } >"$lock.new" || exit 1
now=
read -r now <"$lock"
[ "$now" = "$pid" ] || { rm -f "$lock.new"; echo "somebody has written $lock just now"; exit 1; }
mv -fT -- "$lock.new" "$lock" && echo "${pid:-none}"
"""
_STOP = """
[ "/proc/$1/cwd" -ef "$4" ] && kill -INT "$1" || exit 0
left=$3
while [ -e "$2" ] && kill -0 "$1" 2>/dev/null; do
  [ "$left" -gt 0 ] || { echo "the server (process $1) has not ended" >&2; exit 1; }
  left=$((left - 1))
  sleep 0.01
done
"""


@dataclass(frozen=True)
class Binaries:
    """An installed PostgreSQL."""

    path: str
    """The folder of its programs."""
    version: str
    """For instance `15.8`."""

    @property
    def major(self) -> int:
        """The major version."""
        return major_of(self.version)


def major_of(version: str) -> int:
    """Return the major of a version such as `15.8` or `18beta1`."""
    return int(re.split(r"\D", version, maxsplit=1)[0])


def installed(connection: Connection) -> list[Binaries]:
    """Return the installed PostgreSQL servers, the one on PATH first, then the newest."""
    found: dict[str, Binaries] = {}
    for line in connection.check(["sh", "-c", _FIND]).splitlines():
        path, _, rest = line.partition(" ")
        if match := re.search(r"\) (\d+[^ ]*)", rest):
            found.setdefault(path, Binaries(path, match[1]))
    first, *others = found.values() or [None]
    return [
        *([first] if first else []),
        *sorted((b for b in others if b), key=lambda b: b.major, reverse=True),
    ]


def choose_binaries(connection: Connection, version: int | None) -> Binaries:
    """Return the PostgreSQL to use.

    Args:
        connection: to the host.
        version: the major version that is wanted, if one is.

    Raises:
        SiteError: there is none that fits; the message says what there is and what to do.
    """
    candidates = installed(connection)
    for binaries in candidates:
        if binaries.major == version or (version is None and binaries.major in SUPPORTED_MAJORS):
            return binaries
    wanted = str(version) if version else f"{SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]}"
    there = ", ".join(f"{b.version} in {b.path}" for b in candidates) or "none"
    msg = (
        f"{connection.name}: PostgreSQL {wanted} is needed, found {there}; looked on PATH and where distributions put "
        f"it. Install it, for instance on Debian: apt-get install postgresql{f'-{version}' if version else ''}"
    )
    raise SiteError(msg)


@dataclass(frozen=True)
class Server(Instance[Connection]):
    """One server, by where it is and what runs it."""

    connection: Connection
    layout: Layout
    binaries: Binaries
    user: str
    """The OS user that owns and runs it."""

    @property
    def data(self) -> str:
        """The data directory."""
        return self.layout.data

    @property
    def socket(self) -> str:
        """The folder of the Unix socket."""
        return self.layout.socket

    def program(self, name: str) -> str:
        """Return the path of one of PostgreSQL's programs."""
        return f"{self.binaries.path}/{name}"

    def running_pid(self) -> int | None:
        """Return the postmaster's process, if it is alive and this server's.

        The pid in postmaster.pid may be another process's after a crash or reboot, so the process is asked where it
        is: a postmaster works in its data directory.
        """
        text = self.connection.read_file(f"{self.layout.data}/postmaster.pid", self.user)
        pid = (text or "").partition("\n")[0].strip()
        if not pid.isdigit():
            return None
        places = ["readlink", "-f", "--", f"/proc/{pid}/cwd", self.layout.data]
        match self.connection.run(places, user=self.user).stdout.splitlines():
            case [cwd, data] if cwd == data:
                return int(pid)
            case _:
                return None

    def running_port(self) -> int | None:
        """Return the port that the server, if it runs, was started with: PostgreSQL, "postmaster.pid"."""
        if self.running_pid() is None:
            return None
        text = self.connection.read_file(f"{self.layout.data}/postmaster.pid", self.user) or ""
        lines = text.splitlines()
        return int(lines[3]) if len(lines) > 3 else None

    def ended_within(self, deadline: float) -> bool:
        """Tell whether the server ends, or has ended, within so many seconds."""
        try:
            wait_for("the server's end", self.running_pid, lambda pid: pid is None, deadline=deadline, advice="")
        except SiteError:
            return False
        return True

    def start(self, deadline: float) -> None:
        """Start the server as a daemon and wait until it accepts connections.

        Raises:
            SiteError: it did not start; the message holds the end of its log.
        """
        if refused := self.once_nothing_is_left(lambda: self._try_to_start(deadline)):
            raise SiteError(refused)

    def once_nothing_is_left(self, start: Callable[[], str]) -> str:
        """Start a process of the server's, and wait while there is something left of one that was killed a moment ago.

        That may be its children, or its own entry, which whoever started it has not collected yet.

        Args:
            start: returns why it did not start, or nothing.

        Raises:
            SiteError: something is left for longer.
        """

        def start_without_strangers() -> str:
            said = start()
            match = _LEFT_BEHIND.search(said)
            if match and match[1]:
                said += f" ({self._take_out_pid(match[1])})"
            return said

        return wait_for(
            f"{self.connection.name}: the end of what is left of the server in {self.layout.root}",
            start_without_strangers,
            lambda said: not _LEFT_BEHIND.search(said),
            deadline=_LEFT_BEHIND_DEADLINE,
            advice="Something still uses its data directory: see what, and end that.",
        )

    def _take_out_pid(self, lock: str) -> str:
        """Have a lock file name no process, if that is certainly another's than this server's; return what was done.

        Args:
            lock: as PostgreSQL names it, which works in the data directory.
        """
        path = lock if lock.startswith("/") else f"{self.layout.data}/{lock}"
        argv = ["sh", "-c", _TAKE_OUT_PID, "sh", self.layout.data, path, str(_NOBODY)]
        done = self.connection.run(argv, user=self.user)
        if done.status:
            return (done.stdout + done.stderr).strip()
        return f"process {done.stdout.strip()} is no server of this data directory, so {path} names it no longer"

    def _try_to_start(self, deadline: float) -> str:
        """Start the server; return why it did not start, or nothing."""
        set_aside_if_large(self.connection, self.layout.log, self.user)
        size = self.log_size()
        argv = [self.program("pg_ctl"), "start", "-D", self.layout.config, "-l", self.layout.log, "-s", "-w"]
        done = self.connection.run([*argv, "-t", str(int(deadline))], user=self.user, timeout=deadline + 15)
        if not done.status:
            return ""
        said = f"{done.stderr.strip()} {self.log_since(size).strip()[-1500:]}"
        return f"{self.connection.name}: the server in {self.layout.root} did not start: {said}"

    def stop(self, deadline: float) -> None:
        """Stop the server cleanly: clients are disconnected, everything is on disk, replicas have it."""
        pid = self.running_pid()
        if pid is not None:
            # As `pg_ctl stop -m fast` does, which looks ten times a second: clients may wait for this.
            file = f"{self.layout.data}/postmaster.pid"
            argv = ["sh", "-c", _STOP, "sh", str(pid), file, str(int(deadline * 100)), self.layout.data]
            self.connection.check(argv, user=self.user, timeout=deadline + 15)

    def kill(self, pid: int) -> None:
        """Kill the server, which does not end otherwise, as `pg_ctl kill` may: PostgreSQL, "Shutting Down the Server".

        Args:
            pid: of its postmaster. Its children end by themselves once it is gone.

        Raises:
            SiteError: it lives on.
        """
        self._signal(pid, "KILL")
        if not self.ended_within(_LEFT_BEHIND_DEADLINE):
            msg = f"{self.connection.name}: the server in {self.layout.root} (process {pid}) cannot be killed"
            raise SiteError(msg)

    def reload(self) -> None:
        """Have the server read its files again.

        Raises:
            SiteError: it does not run. `pg_ctl reload` would signal whatever has the pid of one that was killed.
        """
        pid = self.running_pid()
        if pid is None or not self._signal(pid, "HUP"):
            msg = f"{self.connection.name}: the server in {self.layout.root} does not run, so it cannot reload"
            raise SiteError(msg)

    def _signal(self, pid: int, name: str) -> bool:
        """Send a signal to the server, and to no process that has its pid meanwhile; tell whether it was there."""
        argv = ["sh", "-c", _SIGNAL, "sh", str(pid), self.layout.data, name]
        return self.connection.run(argv, user=self.user).status == 0

    def take_over_files(self, port: int) -> None:
        """Have the server, which listens on `port`, read its files again, and wait until it has.

        Raises:
            SiteError: it has not in time. What it refuses of them is in its log alone.
        """
        before = self.look("SELECT to_json(pg_conf_load_time())", port=port)
        self.reload()
        wait_for(
            f"{self.connection.name}: the reload",
            lambda: self.look("SELECT to_json(pg_conf_load_time())", port=port),
            lambda now: now != before,
            deadline=30,
            advice=f"Look at the end of {self.layout.log}.",
        )

    def waits_for_restart(self, port: int) -> list[str]:
        """Return the settings of its files that the running server takes only once it is restarted."""
        found: list[str] = self.look(_WAIT_FOR_RESTART, port=port)
        return found

    def log_size(self) -> int:
        """Return the size of the server's log in bytes."""
        done = self.connection.run(["stat", "-c", "%s", "--", self.layout.log], user=self.user)
        return int(done.stdout) if done.status == 0 else 0

    def log_since(self, size: int) -> str:
        """Return what the server logged after its log had a size in bytes."""
        return self.connection.run(["tail", "-c", f"+{size + 1}", "--", self.layout.log], user=self.user).stdout

    def initdb(self, locale: str) -> None:
        """Make an empty database cluster with checksums."""
        argv = [self.program("initdb"), "-D", self.layout.data, "-U", "postgres", "--data-checksums"]
        argv += ["--encoding=UTF8", f"--locale={locale}", "--auth-local=peer", "--auth-host=scram-sha-256"]
        self.connection.check(argv, user=self.user, timeout=300)
        self.remove_own_config()

    def remove_own_config(self) -> None:
        """Remove the configuration files in the data directory, those of initdb or of a source; ours are elsewhere."""
        files = [f"{self.layout.data}/{name}" for name in _OWN_CONFIG]
        self.connection.check(["rm", "-f", "--", *files], user=self.user)

    def base_backup(self, conninfo: str, slot: str, *, deadline: float, on_progress: Callable[[str], None]) -> None:
        """Copy the source's data directory, with a new slot that keeps the WAL from the copy's beginning on.

        Raises:
            SiteError: it failed; the message is pg_basebackup's.
        """
        argv = [self.program("pg_basebackup"), "-D", self.layout.data, "-d", conninfo, "-X", "stream"]
        argv += ["-C", "-S", slot, "-c", "fast", "-P", "-w"]
        self.connection.check(argv, user=self.user, timeout=deadline, on_stderr=on_progress, env={"LC_ALL": "C"})
