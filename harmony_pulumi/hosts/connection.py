"""Hosts: commands and files there, and what only a host offers: locks that end with us, and processes."""

from __future__ import annotations

import os
import pwd
import re
import selectors
import signal
import subprocess
import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from harmony_pulumi.errors import SiteError, UnlockableError, UnreachableError
from harmony_pulumi.hosts.commands import Commands, Completed
from harmony_pulumi.loading import load_class

# A long command's children must die with us, too (pg_basebackup has one, which would hold its slot for good): when our
# end of its standard input closes, however we end, the whole process group is killed.
_LIFELINE = """
exec 3<&0
"$@" </dev/null 3<&- & command=$!
{ cat <&3; kill -KILL 0; } >/dev/null 2>&1 &
exec 3<&-
wait "$command"
"""
# What a command is given of our environment. A server keeps its own for as long as it lives, and others can read it: no
# passphrase, token or key of whoever runs Pulumi may be in it.
_KEPT_VARIABLES = ("HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "XDG_STATE_HOME")
_APPEND_SECONDS = 30
_HELD_ELSEWHERE = 75
"""With what flock ends where somebody else holds the lock: EX_TEMPFAIL. It has other statuses for what it cannot do."""
_MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")  # machine-id(5)


class Connection(Commands):
    """A way to run commands on one host, as the login user or as another."""

    @abstractmethod
    def holding(self, path: str, *, who: str, user: str | None = None, deadline: float) -> AbstractContextManager[None]:
        """Hold an exclusive lock on a file, until the block ends or this process dies, however it dies.

        Args:
            path: of the file; made if it is not there.
            who: holds it, for others to read.
            user: the OS user that the file belongs to.
            deadline: seconds to wait for somebody else.

        Raises:
            UnlockableError: nobody holds it, and it cannot be locked: its file system is read-only, say.
            SiteError: somebody else held it for `deadline` seconds; the message says who.
        """

    @abstractmethod
    def appending(self, path: str, *, user: str | None = None) -> AbstractContextManager[Callable[[str], None]]:
        """Append texts to a file, by one process for as long as the block lasts; give what to call with each.

        What it was called with is written, even if this process dies right after.

        Raises:
            SiteError: the file cannot be written.
        """

    @abstractmethod
    def is_root(self) -> bool:
        """Tell whether the login user is root."""

    def working_below(self, folder: str) -> list[str]:
        """Return the processes whose working directory is a folder or below it, as far as the login user sees them.

        That of one whose folder was removed is still called after it: proc(5).
        """
        find = ["find", "/proc", "-maxdepth", "2", "-path", "/proc/[0-9]*/cwd"]
        name = re.sub(r"[][*?\\]", r"\\\g<0>", folder)
        names = ["(", "-lname", name, "-o", "-lname", f"{name} *", "-o", "-lname", f"{name}/*", ")"]
        said = self.run([*find, *names, "-printf", "%h\n"]).stdout  # Processes end meanwhile: its status says nothing.
        return sorted((line.rpartition("/")[2] for line in said.splitlines()), key=int)


class LocalConnection(Connection):
    """This machine."""

    def __init__(self) -> None:
        """Make the connection: nothing is opened."""
        self.name = "this machine"

    def is_root(self) -> bool:
        """Tell whether this process is root's."""
        return os.geteuid() == 0

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        stdin: str = "",
        timeout: float = 60,
        on_stderr: Callable[[str], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command here; it dies with this process, unless it makes itself a daemon."""
        process = self._start(["sh", "-c", _LIFELINE, "sh", *argv] if on_stderr else argv, user, env)
        return _Conversation(self.name, argv, process, on_stderr).finish(stdin, timeout)

    @contextmanager
    def holding(self, path: str, *, who: str, user: str | None = None, deadline: float) -> Generator[None]:
        """Hold an exclusive lock on a file, until the block ends or this process dies, however it dies."""
        # The lock is held by a process that ends with its standard input, which is ours.
        script = 'printf "%s\\n" "$2" > "$1" && echo held && exec cat'
        wait = ["--wait", str(deadline), "--conflict-exit-code", str(_HELD_ELSEWHERE)]
        argv = ["flock", "--exclusive", *wait, "--", path, "sh", "-c", script, "sh", path, who]
        with self._start(argv, user, None) as process:
            stdin, stdout, stderr = (cast("IO[bytes]", p) for p in (process.stdin, process.stdout, process.stderr))
            if stdout.readline() != b"held\n":
                said, status = stderr.read().decode(errors="replace").strip(), process.wait()
                if status != _HELD_ELSEWHERE:
                    msg = f"{self.name}: cannot lock {path}: {said or f'status {status}'}"
                    raise UnlockableError(msg)
                holder = (self.read_file(path, user) or "").strip() or "another operation"
                found = f"{holder} has held it for the last {deadline:g} s"
                msg = f"{self.name}: cannot lock {path}: {found}; let it end, or see who it is: fuser -v {path}"
                raise SiteError(msg)
            try:
                yield
            finally:
                stdin.close()

    @contextmanager
    def appending(self, path: str, *, user: str | None = None) -> Generator[Callable[[str], None]]:
        """Append texts to a file, by one process for as long as the block lasts; give what to call with each."""
        argv = ["sh", "-c", 'umask 077 && exec cat >> "$1"', "sh", path]
        with self._start(argv, user, None, outlives_us=True) as process:
            stdin, stderr = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stderr)

            def fail() -> NoReturn:
                msg = f"{self.name}: cannot append to {path}: {stderr.read().decode(errors='replace').strip()}"
                raise SiteError(msg)

            def append(text: str) -> None:
                try:
                    stdin.write(text.encode())
                    stdin.flush()
                except BrokenPipeError:
                    fail()

            try:
                yield append
            finally:
                with suppress(BrokenPipeError):  # Then its status tells.
                    stdin.close()
            if process.wait(_APPEND_SECONDS):
                fail()

    @contextmanager
    def conversing(
        self, argv: Sequence[str], *, user: str | None = None, env: Mapping[str, str] | None = None
    ) -> Generator[Callable[[str, str, float], str]]:
        """Keep a command running for as long as the block lasts; give what to ask it with."""
        with self._start(argv, user, env) as process, selectors.DefaultSelector() as selector:
            stdin, stdout, stderr = (cast("IO[bytes]", p) for p in (process.stdin, process.stdout, process.stderr))
            selector.register(stdout, selectors.EVENT_READ)

            def ask(text: str, end: str, timeout: float) -> str:
                deadline, said = time.monotonic() + timeout, b""
                with suppress(BrokenPipeError):  # Then it has ended, which is seen below.
                    stdin.write(text.encode())
                    stdin.flush()
                while not said.endswith(f"{end}\n".encode()):
                    if not selector.select(max(0.0, deadline - time.monotonic())):
                        msg = f"{self.name}: `{argv[0]}` did not answer within {timeout:g} s"
                        raise SiteError(msg)
                    if not (chunk := os.read(stdout.fileno(), 65536)):
                        why = stderr.read().decode(errors="replace").strip()[-2000:] or "it said nothing"
                        msg = f"{self.name}: `{argv[0]}` has ended: {why}"
                        raise SiteError(msg)
                    said += chunk
                return said.decode(errors="replace").removesuffix(f"{end}\n")

            try:
                yield ask
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # It may be at work on what was not waited for.

    def _start(
        self,
        argv: Sequence[str],
        user: str | None,
        env: Mapping[str, str] | None,
        *,
        outlives_us: bool = False,
    ) -> subprocess.Popen[bytes]:
        # A base backup must not go on into a directory that the next run has taken over.
        command = ["setpriv", *([] if outlives_us else ["--pdeathsig", "KILL"])]
        home = None
        if user and user != _login_name():
            account = _account(user)
            command += [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups"]
            home = account.pw_dir
        environment = {
            **{k: v for k, v in os.environ.items() if k in _KEPT_VARIABLES or k.startswith("LC_")},
            **({"HOME": home} if home else {}),
            **(env or {}),
        }
        try:
            return subprocess.Popen(
                [*command, "--", *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except FileNotFoundError as error:
            msg = f"{self.name}: {error.filename} is not installed; on Debian it is in the package util-linux"
            raise SiteError(msg) from error
        except OSError as error:
            msg = f"{self.name}: cannot start `{argv[0]}`: {error.strerror}; the machine is out of something"
            raise SiteError(msg) from error


class _Conversation:
    """Feeds a process and reads it, with a deadline. Knows when a daemon has kept its pipes open."""

    def __init__(
        self,
        host: str,
        argv: Sequence[str],
        process: subprocess.Popen[bytes],
        on_stderr: Callable[[str], None] | None,
    ) -> None:
        self.host, self.argv, self.process, self.on_stderr = host, argv, process, on_stderr
        self.seen: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self.begun = b""

    def finish(self, stdin: str, timeout: float) -> Completed:
        end = time.monotonic() + timeout
        try:
            self._talk(stdin.encode(), end)
            self.process.wait(max(0.0, end - time.monotonic()))
        except (subprocess.TimeoutExpired, TimeoutError):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            said = self.seen["stderr"].decode(errors="replace").strip()[-500:] or "nothing"
            msg = f"{self.host}: `{self.argv[0]}` did not end within {timeout:g} s and was killed; it said: {said}"
            raise SiteError(msg) from None
        finally:
            for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
        out, err = (self.seen[key].decode(errors="replace") for key in ("stdout", "stderr"))
        return Completed(self.process.returncode, out, err)

    def _talk(self, data: bytes, end: float) -> None:
        process = self.process
        with selectors.DefaultSelector() as selector:
            for key in ("stdout", "stderr"):
                pipe = getattr(process, key)
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, key)
            stdin = cast("IO[bytes]", process.stdin)
            if not self.on_stderr:  # Of a long command, it is the lifeline, and stays open.
                os.set_blocking(stdin.fileno(), False)
                selector.register(stdin, selectors.EVENT_WRITE, "stdin")
            while selector.get_map():
                if (left := end - time.monotonic()) <= 0:
                    raise TimeoutError
                # A daemon that the command started may hold its pipes: once it has ended, what is there is all.
                ended = process.poll() is not None
                ready = selector.select(0 if ended else min(left, 0.2))
                if ended and not ready:
                    return
                for event, _ in ready:
                    if event.data == "stdin":
                        data = self._feed(data)
                        if not data:
                            selector.unregister(stdin)
                            stdin.close()
                    elif not self._read(event.fd, event.data):
                        selector.unregister(event.fileobj)

    def _feed(self, data: bytes) -> bytes:
        try:
            written = os.write(cast("Any", self.process.stdin).fileno(), data[:65536]) if data else 0
        except BrokenPipeError:
            return b""
        return data[written:]

    def _read(self, fd: int, key: str) -> bool:
        chunk = os.read(fd, 65536)
        self.seen[key] += chunk
        if key == "stderr" and self.on_stderr:
            *lines, self.begun = (self.begun + chunk).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                if text := line.decode(errors="replace").strip():
                    self.on_stderr(text)
        return bool(chunk)


def machine_id() -> str:
    """Return this machine's identity (machine-id(5)).

    Raises:
        UnreachableError: it has none, so it cannot be proven to be any host. An image has an empty file, or the word
            `uninitialized`, until it is booted; a container often has no file.
    """
    for file in map(Path, _MACHINE_ID_FILES):
        if file.is_file() and re.fullmatch(r"[0-9a-f]{32}", text := file.read_text().strip()):
            return text
    msg = (
        "this machine has no machine-id, so it cannot be told from another; expected 32 hexadecimal digits in "
        f"{' or '.join(_MACHINE_ID_FILES)}: on the host of the servers, run `systemd-machine-id-setup`; elsewhere, "
        "name that host with LinuxHostTopology(machine_id=...)"
    )
    raise UnreachableError(msg)


def connect(host: Mapping[str, Any]) -> Connection:
    """Return a connection to a host, proven to be the one that was bound.

    Args:
        host: `name`; `connection`, which is `local`, or `module:class` of a `Connection` that is made of the host; and
            `machine_id` unless the host was never bound.

    Raises:
        SiteError: there is no such class here.
        UnreachableError: this machine is not that host, or has no machine-id to tell.
    """
    if (kind := str(host.get("connection", "local"))) != "local":
        by: Callable[[Mapping[str, Any]], Connection] = load_class(kind, f"{host['name']} is reached by")
        return by(host)
    bound = host.get("machine_id")
    try:
        here = machine_id()
    except UnreachableError:
        if not bound:
            raise
        here = "none"
    if bound and bound != here:
        msg = (
            f"{host['name']} is the machine with machine-id {bound}, and this one has {here}: it cannot be reached "
            f"from here; run this on that machine"
        )
        raise UnreachableError(msg)
    connection = LocalConnection()
    connection.name = str(host["name"])
    return connection


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        msg = f"this machine has no OS user {user!r}"
        raise SiteError(msg) from None


def _login_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name
