"""How the API server of a cluster is called, by a real small server; and how a kubeconfig's program logs in there."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.kubernetes import api as module
from harmony_pulumi.kubernetes import login
from harmony_pulumi.kubernetes.api import Api, ConflictError

FORBIDDEN = 'nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the cluster scope'
CUT_OFF = 0


class Server(ThreadingHTTPServer):
    """Answers with what it is told to, one after the other, then that all is well. 0: the connection ends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], str]] = []
        self.asked: list[tuple[str, str, str | None]] = []

    def will_answer(self, *statuses: int, said: str = "not now", headers: Mapping[str, str] | None = None) -> None:
        self.answers += [(status, dict(headers or {}), said) for status in statuses]


class Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, self.headers.get("authorization")))
        status, headers, said = self.server.answers.pop(0) if self.server.answers else (200, {}, "")
        self.close_connection = True
        if status == CUT_OFF:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(json.dumps({"message": said} if status >= 400 else {"kind": "Thing"}).encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Generator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def kubeconfig(port: int, user: Mapping[str, Any] | None = None) -> str:
    text: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "east", "user": "jane"}}],
        "clusters": [{"name": "east", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "jane", "user": dict(user or {"token": "of-jane"})}],
    }
    return yaml.safe_dump(text)


def api(server: Server, user: Mapping[str, Any] | None = None) -> Api:
    return Api("east", kubeconfig(server.server_port, user))


# -- what passes, and what does not -----------------------------------------------------------------------------


@pytest.mark.parametrize("passing", [429, 502, 503, 504, CUT_OFF])
def test_what_the_server_cannot_do_just_then_is_asked_again(
    server: Server, passing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_AFTER", 0.01)
    east = api(server)
    for call, method in (
        (lambda: east.get("/a"), "GET"),
        (lambda: east.patch("/a", {}), "PATCH"),
        (lambda: east.replace("/a", {}), "PUT"),
        (lambda: east.create("/a", {}), "POST"),
        (lambda: east.delete("/a"), "DELETE"),
    ):
        server.asked.clear()
        server.will_answer(passing, passing)
        call()
        assert [asked[0] for asked in server.asked] == [method] * 3


def test_what_lasts_is_told_once_its_time_is_over(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.6)
    server.will_answer(*[503] * 50)
    began = time.monotonic()
    with pytest.raises(SiteError, match=r"east: GET /a: the API server at \S+ answered 503: not now$"):
        api(server).get("/a")
    assert 2 <= len(server.asked) <= 4
    assert time.monotonic() - began < 2
    server.answers.clear()
    server.will_answer(*[CUT_OFF] * 50)
    with pytest.raises(UnreachableError, match="does not answer"):
        api(server).get("/a")


def test_the_server_says_how_long_to_wait_unless_that_is_too_long(server: Server) -> None:
    server.will_answer(429, headers={"Retry-After": "1"})
    began = time.monotonic()
    api(server).get("/a")
    assert 1 <= time.monotonic() - began < 3
    server.will_answer(429, headers={"Retry-After": "60"})
    server.asked.clear()
    began = time.monotonic()
    with pytest.raises(SiteError, match="answered 429"):
        api(server).get("/a")
    assert time.monotonic() - began < 1
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500])
def test_an_answer_that_is_one_is_not_asked_for_again(server: Server, status: int) -> None:
    server.will_answer(status)
    east = api(server)
    if status == 404:
        assert east.get("/a") is None
    elif status == 409:
        with pytest.raises(ConflictError):
            east.get("/a")
    else:
        with pytest.raises(SiteError):
            east.get("/a")
    assert len(server.asked) == 1


def test_an_operator_that_is_down_is_told_at_once(server: Server) -> None:
    server.will_answer(500, said='failed calling webhook "mcluster.cnpg.io": connect: connection refused')
    with pytest.raises(SiteError, match="while its operator does not answer"):
        api(server).patch("/a", {})
    assert len(server.asked) == 1


def test_what_balances_to_no_server_just_then_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 3)  # Of a busy machine, each try may take a second.
    accepted: list[object] = []

    def hang_up(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                accepted.append(connection)
                connection.recv(4096)  # The beginning of TLS.
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=hang_up, args=(listening,), daemon=True).start()
        text = kubeconfig(listening.getsockname()[1]).replace("http:", "https:")
        with pytest.raises(UnreachableError, match="does not answer"):
            Api("east", text).get("/a")
        listening.shutdown(socket.SHUT_RDWR)
    assert len(accepted) > 1


def test_a_server_that_is_not_there_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="does not answer"):
        Api("east", kubeconfig(port)).get("/a")
    assert time.monotonic() - began < 1


# -- who may do what --------------------------------------------------------------------------------------------


def test_a_right_that_the_login_has_not_is_named_with_what_to_do(server: Server) -> None:
    server.will_answer(403, said=FORBIDDEN)
    with pytest.raises(SiteError) as caught:
        api(server).get("/api/v1/nodes")
    assert 'cannot list resource "nodes"' in str(caught.value)
    assert 'Give its login that right; "Rights" in' in str(caught.value)
    server.will_answer(403, said='secrets "a" is forbidden: exceeded quota')
    with pytest.raises(SiteError) as caught:
        api(server).get("/a")
    assert "Rights" not in str(caught.value)
    server.will_answer(401, said="Unauthorized")
    with pytest.raises(SiteError, match="does not take the login of its kubeconfig"):
        api(server).get("/a")


# -- logging in by a program ------------------------------------------------------------------------------------


def program(folder: Path, script: str, **more: Any) -> dict[str, Any]:
    file = folder / "log-in"
    file.write_text(f"#!/bin/sh\necho >> '{folder}/runs'\n{script}\n")
    file.chmod(0o755)
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": version, "command": str(file), "args": ["--secret", "hush"], **more}}


def gives(status: Mapping[str, Any]) -> str:
    given = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": dict(status)}
    return f"cat <<'END'\n{json.dumps(given)}\nEND"


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


def test_a_program_s_token_is_used_until_it_expires_then_another(server: Server, tmp_path: Path) -> None:
    def token(name: str, seconds: float) -> str:
        return gives({"token": name, "expirationTimestamp": f"{datetime.now(UTC) + timedelta(seconds=seconds):%FT%TZ}"})

    east = api(server, program(tmp_path, token("first", 3600)))
    east.get("/a")
    east.get("/b")
    assert [asked[2] for asked in server.asked] == ["Bearer first"] * 2
    assert runs(tmp_path) == 1
    east = api(server, program(tmp_path, token("old", 5)))
    program(tmp_path, token("new", 3600))
    east.get("/a")
    east.get("/b")
    assert [asked[2] for asked in server.asked[2:]] == ["Bearer new"] * 2
    assert runs(tmp_path) == 3
    east = api(server, program(tmp_path, token("old", 5)))
    program(tmp_path, "echo 'the SSO session has expired' >&2; exit 1")
    with pytest.raises(SiteError, match="the SSO session has expired"):
        east.get("/a")
    assert east.address.startswith("http://127.0.0.1:"), "a message that names it does not log in"


def test_a_program_s_certificate_is_used(server: Server, tmp_path: Path) -> None:
    given = {"clientCertificateData": "the certificate", "clientKeyData": "the key"}
    text = kubeconfig(server.server_port, program(tmp_path, gives(given))).replace("http:", "https:")
    configuration = Api("east", text).client.configuration
    assert Path(configuration.cert_file).read_text() == "the certificate"
    assert Path(configuration.key_file).read_text() == "the key"


def test_a_program_is_told_what_it_asks_for(server: Server, tmp_path: Path) -> None:
    script = f'printf %s "$KUBERNETES_EXEC_INFO" > "{tmp_path}/told"; {gives({"token": "$PROFILE"})}'.replace(
        "'END'", "END"
    )
    named = {"provideClusterInfo": True, "env": [{"name": "PROFILE", "value": "of-shop"}]}
    api(server, program(tmp_path, script, **named)).get("/a")
    assert server.asked[0][2] == "Bearer of-shop"
    told = json.loads((tmp_path / "told").read_text())
    assert told["spec"]["cluster"]["server"] == f"http://127.0.0.1:{server.server_port}"
    assert told["spec"]["interactive"] is False


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'no credentials were found' >&2; exit 255", r"failed \(255\): no credentials were found"),
        ("echo nonsense", "gave no credential"),
        (gives({}), "gave no credential"),
        (gives({"clientCertificateData": "half"}), "gave no credential"),
        ("exec sleep 60", "did not end within 1 s and was killed; it said: nothing"),
        ("echo 'open a browser' >&2; sleep 60", "did not end within 1 s and was killed; it said: open a browser"),
    ],
)
def test_a_program_that_gives_nothing_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    monkeypatch.setattr(login, "SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(SiteError, match=rf"^east: its kubeconfig logs in by `\S+/log-in`, which {why}") as caught:
        api(server, program(tmp_path, script))
    assert time.monotonic() - began < 10
    assert "hush" not in str(caught.value)
    assert server.asked == [], "nobody goes on as nobody"


def test_a_program_that_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
    user = program(tmp_path, "")
    Path(user["exec"]["command"]).unlink()
    with pytest.raises(SiteError, match=r"log-in`, which cannot be run: No such file or directory\. Have that log in"):
        api(server, user)


def test_a_user_with_a_token_runs_no_program(server: Server, tmp_path: Path) -> None:
    api(server, {**program(tmp_path, "exit 1"), "token": "of-jane"}).get("/a")
    assert server.asked[0][2] == "Bearer of-jane"


@pytest.mark.parametrize("text", ["/root/.kube/config", "a: {", "{}", "contexts: here", ""])
def test_what_is_no_kubeconfig_is_told_and_how_to_print_one(text: str) -> None:
    with pytest.raises(
        SiteError, match=r"^east: its kubeconfig cannot be used: .*--raw --minify --flatten` prints one"
    ):
        Api("east", text)
