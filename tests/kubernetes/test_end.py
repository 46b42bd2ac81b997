"""How the end of a server in a pod is waited for, by the real script, here."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harmony_pulumi.hosts.commands import Completed
from harmony_pulumi.hosts.connection import LocalConnection
from harmony_pulumi.kubernetes import pods
from harmony_pulumi.kubernetes.api import Api
from harmony_pulumi.kubernetes.pods import Pod, PodInstance


class Here(Pod):
    """A pod whose commands run here, and are counted."""

    commands: list[str]

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        self.commands.append(argv[0])
        return LocalConnection().run(argv, **options)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PodInstance:
    program = tmp_path / "pg_controldata"
    program.write_text("#!/bin/sh\necho 'Database cluster state:  shut down'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(pods, "DATA", str(tmp_path))
    here = Here(Api.__new__(Api), "shop", "orders-1")
    object.__setattr__(here, "commands", [])
    return PodInstance(here)


@pytest.fixture
def running(server: PodInstance) -> Generator[subprocess.Popen[bytes]]:
    """Return a process that runs in the data directory, as a server does, with its file."""
    process = subprocess.Popen(["sleep", "60"], cwd=server.data)
    Path(server.data, "postmaster.pid").write_text(f"{process.pid}\n{server.data}\n")
    with process:
        yield process
        process.kill()


def test_the_end_of_a_server_is_waited_for_by_one_command_that_returns_what_it_left(
    server: PodInstance, running: subprocess.Popen[bytes]
) -> None:
    end = threading.Timer(0.3, running.terminate)
    end.start()
    assert server.left_at_its_end() == {"Database cluster state": "shut down"}
    assert running.wait(10)
    end.join()
    assert getattr(server.connection, "commands") == ["sh"]  # noqa: B009


def test_of_a_server_that_goes_on_nothing_is_returned(
    server: PodInstance, running: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods, "_END", getattr(pods, "_END").replace("left=250", "left=3"))  # noqa: B009
    assert server.left_at_its_end() == {}
    assert running.poll() is None


def test_a_process_elsewhere_with_the_number_of_a_killed_server_is_not_waited_for(server: PodInstance) -> None:
    Path(server.data, "postmaster.pid").write_text(f"{os.getpid()}\n")
    assert server.left_at_its_end() == {"Database cluster state": "shut down"}
