"""What comes of a command in a pod, by what its connection brings. The command itself runs here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.kubernetes.api import Api
from harmony_pulumi.kubernetes.pods import Pod


class Session:
    """The connection to a command, as the official client has it: it brings so many bytes of its output at most."""

    def __init__(self, command: Sequence[str], most: int | None, *, ends: bool) -> None:
        self._command, self._most, self._ends = command, most, ends
        self._stdin, self._said, self._result = b"", {"stdout": b"", "stderr": b""}, ""
        self._open = True
        self.sock = SimpleNamespace(shutdown=lambda: None)

    def write_stdin(self, data: bytes) -> None:
        self._stdin += data

    def is_open(self) -> bool:
        return self._open

    def update(self, timeout: float) -> None:
        done = subprocess.run(self._command, input=self._stdin, capture_output=True, timeout=timeout, check=False)
        self._said = {"stdout": done.stdout[: self._most], "stderr": done.stderr}
        causes = [{"reason": "ExitCode", "message": str(done.returncode)}]
        failed = {"status": "Failure", "details": {"causes": causes}}
        self._result = json.dumps(failed if done.returncode else {"status": "Success"}) if self._ends else ""
        self._open = False

    def peek_stdout(self) -> bool:
        return bool(self._said["stdout"])

    def peek_stderr(self) -> bool:
        return bool(self._said["stderr"])

    def read_stdout(self) -> bytes:
        return self._said["stdout"]

    def read_stderr(self) -> bytes:
        return self._said["stderr"]

    def read_channel(self, channel: int) -> str:
        del channel
        return self._result


class Here(Pod):
    """A pod whose commands run here."""

    most: int | None = None
    ends = True

    def _open(self, program: str, command: Sequence[str], **how: Any) -> Any:
        del program, how
        return Session(command, self.most, ends=self.ends)


@pytest.fixture
def pod() -> Here:
    api = Api.__new__(Api)
    api.name = "montreal"
    return Here(api, "shop", "orders-1")


def test_what_a_command_says_and_how_it_ends_is_returned_as_it_is(pod: Here) -> None:
    done = pod.run(["sh", "-c", 'cat; printf "%s" "$1 $2"; echo oh >&2; exit 3', "sh", "a  b", "'"], stdin="fed\n")
    assert (done.status, done.stdout, done.stderr) == (3, "fed\na  b '", "oh\n")
    assert pod.check(["sh", "-c", 'echo "$WORD"'], env={"WORD": "it's"}) == "it's\n"
    assert pod.check(["true"]) == ""


def test_a_program_that_is_not_there_is_named(pod: Here) -> None:
    with pytest.raises(SiteError, match=r"pod shop/orders-1: `nowhere` ended with status 127: .*nowhere"):
        pod.check(["nowhere"])


@pytest.mark.parametrize("most", [0, 3, 6, 7])
def test_success_without_the_rest_of_what_was_said_is_no_success(pod: Here, most: int) -> None:
    """As when the pod is killed: its API server says so of what had ended, and the kubelet sends no more of it."""
    object.__setattr__(pod, "most", most)
    with pytest.raises(UnreachableError, match="the connection ended before all that `echo` said had come"):
        pod.check(["echo", "sacred"])


def test_a_connection_that_ends_before_its_command_is_no_answer(pod: Here) -> None:
    object.__setattr__(pod, "ends", False)
    with pytest.raises(UnreachableError, match="the connection ended before `echo` did"):
        pod.check(["echo", "sacred"])
