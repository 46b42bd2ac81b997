"""Commands in a pod, through the Kubernetes API."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import urllib3
import websocket
from kubernetes.client import CoreV1Api
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream
from kubernetes.stream.ws_client import ERROR_CHANNEL

from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.hosts.connection import Completed
from harmony_pulumi.kubernetes.api import Api

_CONTAINER = "postgres"
# The command's standard input comes through the connection, and there is no way to close that alone: how long it is
# comes first. Its standard error goes to a channel of its own.
_FED = 'head -c "$1" | { shift; exec "$@"; }'


def run(
    api: Api,
    namespace: str,
    pod: str,
    argv: Sequence[str],
    *,
    stdin: str = "",
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    on_stderr: Callable[[str], None] | None = None,
) -> Completed:
    """Run a command in a pod's PostgreSQL container to its end.

    Args:
        api: the cluster's.
        namespace: of the pod.
        pod: its name.
        argv: the command and its arguments; no shell reads them. Never a secret: give that by `stdin`.
        stdin: what the command reads.
        timeout: seconds; the connection is closed after it, and nobody waits for the command any longer.
        env: variables to add.
        on_stderr: given standard error as it comes.

    Raises:
        SiteError: there is no such pod or command, or it took longer than `timeout`.
        UnreachableError: the API server does not answer.
    """
    command = ["env", *(f"{name}={value}" for name, value in (env or {}).items()), *argv]
    data = stdin.encode()
    if data:
        command = ["sh", "-c", _FED, "sh", str(len(data)), *command]
    where = f"{api.name}: pod {namespace}/{pod}"
    try:
        session: Any = stream(
            CoreV1Api(api.client).connect_get_namespaced_pod_exec,
            pod,
            namespace,
            container=_CONTAINER,
            command=command,
            stdin=bool(data),
            stdout=True,
            stderr=True,
            tty=False,
            binary=True,
            _preload_content=False,
            _request_timeout=min(timeout, 30),
        )
    except ApiException as error:
        # It carries what the server answered to the request for a connection, as far as there was any.
        if error.status:
            raise SiteError(f"{where}: {argv[0]} cannot be run there: {error.reason}") from None
        raise UnreachableError(f"{api.name}: the API server at {api.address} does not answer: {error.reason}") from None
    except (urllib3.exceptions.HTTPError, websocket.WebSocketException, OSError) as error:
        raise UnreachableError(f"{api.name}: the API server at {api.address} does not answer: {error}") from error
    try:
        if data:
            session.write_stdin(data)
        texts, result = _talk(session, time.monotonic() + timeout, on_stderr)
    except TimeoutError:
        raise SiteError(f"{where}: `{argv[0]}` took longer than {timeout:g} s") from None
    except (websocket.WebSocketException, OSError) as error:
        raise UnreachableError(f"{where}: the connection broke while `{argv[0]}` ran: {error}") from error
    finally:
        session.close()
    return Completed(_status(where, argv[0], result), texts["stdout"], texts["stderr"])


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
