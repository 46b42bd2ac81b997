"""Commands in a pod, through the Kubernetes API."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import urllib3
import websocket
from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream
from kubernetes.stream.ws_client import ERROR_CHANNEL

from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.hosts.commands import Commands, Completed
from harmony_pulumi.hosts.postgresql.instance import Instance, labelled
from harmony_pulumi.kubernetes.api import Api

DATA = "/var/lib/postgresql/data/pgdata"
"""The data directory in a pod: CloudNativePG, "Storage"."""
PORT = 5432
_CONTAINER = "postgres"
_CONNECT_SECONDS = 30
# The command's standard input comes through the connection, and there is no way to close that alone: how long it is
# comes first. Its standard error goes to a channel of its own.
_FED = 'head -c "$1" | { shift; exec "$@"; }'
# As a pod ends, the rest of what a command said may be lost, and its success be told nevertheless.
_WHOLE = '"$@"; status=$?; printf %s "$0"; exit "$status"'
# What the client makes of an answer that is no connection: the status, the headers, and what was said.
_ANSWERED = re.compile(r"Handshake status (\d+ .*?) -\+-\+- .*? -\+-\+- (.*)", re.DOTALL)
# Connections to a cluster that was cut off would else be tried for minutes. Nothing else here uses this library.
websocket.setdefaulttimeout(10)

# Clients wait meanwhile, and a command in a pod takes as long to begin as the whole stop does. The file is the last
# thing that a server removes; of one that was killed, another process may have its number by now.
_END = """
left=250
while [ -e "$1/postmaster.pid" ] && [ "/proc/$(head -n 1 "$1/postmaster.pid")/cwd" -ef "$1" ]; do
  [ "$left" -gt 0 ] || exit 0
  left=$((left - 1))
  sleep 0.02
done
exec pg_controldata -D "$1"
"""


@dataclass(frozen=True)
class Pod(Commands):
    """The PostgreSQL container of one pod. Whatever user is asked for, its own runs everything."""

    api: Api
    namespace: str
    pod: str

    @property
    def name(self) -> str:  # type: ignore[override]
        """What messages call it."""
        return f"{self.api.name}: pod {self.namespace}/{self.pod}"

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
        """Run a command to its end; one that takes longer than its timeout is waited for no longer."""
        del user
        mark, data = secrets.token_hex(16), stdin.encode()  # No output can end with it: it is made up now.
        command = _with(env, ["sh", "-c", _WHOLE, mark, *argv])
        if data:
            command = ["sh", "-c", _FED, "sh", str(len(data)), *command]
        where = self.name
        session = self._open(argv[0], command, reads=bool(data), timeout=timeout)
        try:
            if data:
                session.write_stdin(data)
            texts, result = _talk(session, time.monotonic() + timeout, on_stderr)
        except TimeoutError:
            raise SiteError(f"{where}: `{argv[0]}` took longer than {timeout:g} s") from None
        except (websocket.WebSocketException, OSError) as error:
            raise UnreachableError(f"{where}: the connection broke while `{argv[0]}` ran: {error}") from error
        finally:
            session.sock.shutdown()  # `session.close` leaves a socket open that the other end has closed
        status, said = _status(where, argv[0], result), texts["stdout"]
        if status == 0 and not said.endswith(mark):
            raise UnreachableError(f"{where}: the connection ended before all that `{argv[0]}` said had come")
        return Completed(status, said.removesuffix(mark), texts["stderr"])

    @contextmanager
    def conversing(
        self, argv: Sequence[str], *, user: str | None = None, env: Mapping[str, str] | None = None
    ) -> Generator[Callable[[str, str, float], str]]:
        """Keep a command running for as long as the block lasts; its standard input ends with that."""
        del user
        session = self._open(argv[0], _with(env, argv), reads=True, timeout=_CONNECT_SECONDS)

        def ask(text: str, end: str, timeout: float) -> str:
            deadline, said = time.monotonic() + timeout, b""
            try:
                session.write_stdin(text.encode())
                while not said.endswith(f"{end}\n".encode()):
                    if (left := deadline - time.monotonic()) <= 0:
                        raise SiteError(f"{self.name}: `{argv[0]}` did not answer within {timeout:g} s")
                    session.update(timeout=min(left, 1))
                    said += session.read_stdout() if session.peek_stdout() else b""
                    if not session.is_open():
                        why = session.read_stderr().decode(errors="replace").strip()[-2000:] or "it said nothing"
                        raise SiteError(f"{self.name}: `{argv[0]}` has ended: {why}")
            except (websocket.WebSocketException, OSError) as error:
                raise UnreachableError(f"{self.name}: the connection to `{argv[0]}` broke: {error}") from error
            return said.decode(errors="replace").removesuffix(f"{end}\n")

        try:
            yield ask
        finally:
            session.sock.shutdown()

    def _open(self, program: str, command: Sequence[str], *, reads: bool, timeout: float) -> Any:
        """Begin a command; return what to talk to it by."""
        # `stream` replaces a method of its client while it connects, and more than one thread may be at it.
        client = ApiClient(self.api.client.configuration)
        where = self.name
        try:
            return stream(
                CoreV1Api(client).connect_get_namespaced_pod_exec,
                self.pod,
                self.namespace,
                container=_CONTAINER,
                command=command,
                stdin=reads,
                stdout=True,
                stderr=True,
                tty=False,
                binary=True,
                _preload_content=False,
                _request_timeout=min(timeout, _CONNECT_SECONDS),
            )
        except ApiException as error:
            # It carries what the server answered to the request for a connection, as far as there was any.
            if answered := _ANSWERED.match(str(error.reason)):
                raise SiteError(f"{where}: {program} cannot be run there: {_said(answered)}") from None
            raise UnreachableError(
                f"{self.api.name}: the API server at {self.api.address} does not answer: {error.reason}"
            ) from None
        except (urllib3.exceptions.HTTPError, websocket.WebSocketException, OSError) as error:
            raise UnreachableError(
                f"{self.api.name}: the API server at {self.api.address} does not answer: {error}"
            ) from error


@dataclass(frozen=True)
class PodInstance(Instance[Pod]):
    """The instance in a pod: CloudNativePG, "Container Images"."""

    connection: Pod
    user: str = "postgres"

    @property
    def data(self) -> str:
        """The data directory."""
        return DATA

    @property
    def socket(self) -> str:
        """The folder of the Unix socket."""
        return "/controller/run"

    def program(self, name: str) -> str:
        """Return one of PostgreSQL's programs: all are on PATH."""
        return name

    def left_at_its_end(self) -> Mapping[str, str]:
        """Wait a few seconds for the end of the server; return its control data then, or nothing if it still runs."""
        return labelled(self.connection.check(["sh", "-c", _END, "sh", self.data], env={"LC_ALL": "C"}))


def _with(env: Mapping[str, str] | None, argv: Sequence[str]) -> list[str]:
    """Return a command that has these variables, too."""
    return ["env", *(f"{name}={value}" for name, value in (env or {}).items()), *argv]


def _talk(session: Any, end: float, on_stderr: Callable[[str], None] | None) -> tuple[dict[str, str], str | bytes]:
    """Take what a command says until it ends; return that, and how it ended.

    Raises:
        TimeoutError: it has not, by `end`.
    """
    parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    while session.is_open():
        if (left := end - time.monotonic()) <= 0:
            raise TimeoutError
        session.update(timeout=min(left, 1))
        for kind, found in parts.items():
            if getattr(session, f"peek_{kind}")():
                found.append(getattr(session, f"read_{kind}")())
                if kind == "stderr" and on_stderr:
                    for line in re.split(r"[\r\n]+", found[-1].decode(errors="replace")):
                        if line.strip():
                            on_stderr(line)
    return {kind: b"".join(p).decode(errors="replace") for kind, p in parts.items()}, session.read_channel(
        ERROR_CHANNEL
    )


def _said(answered: re.Match[str]) -> str:
    """Return why the API server made no connection: its message, or its status."""
    try:
        return str(json.loads(answered[2])["message"])
    except (ValueError, KeyError, TypeError):
        return answered[1]


def _status(where: str, program: str, result: bytes | str) -> int:
    """Return the exit status, of what the API server says at the end: Kubernetes, "v4.channel.k8s.io"."""
    text = result.decode() if isinstance(result, bytes) else result
    if not text:
        raise UnreachableError(f"{where}: the connection ended before `{program}` did")
    said = json.loads(text)
    if said["status"] == "Success":
        return 0
    for cause in (said.get("details") or {}).get("causes", ()):
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise SiteError(f"{where}: `{program}` cannot be run there: {said.get('message', text)}")
