"""How the end of a server in a pod is waited for, by the real script, here."""

from __future__ import annotations

import threading
from collections.abc import Sequence
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
    program.write_text(
        "#!/bin/sh\n[ ! -e \"$2/postmaster.pid\" ] || exit 1\necho 'Database cluster state:  shut down'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(pods, "DATA", str(tmp_path))
    here = Here(Api.__new__(Api), "shop", "orders-1")
    object.__setattr__(here, "commands", [])
    return PodInstance(here)


def test_the_end_of_a_server_is_waited_for_by_one_command_that_returns_what_it_left(server: PodInstance) -> None:
    running = Path(server.data, "postmaster.pid")
    running.touch()
    end = threading.Timer(0.3, running.unlink)
    end.start()
    assert server.left_at_its_end() == {"Database cluster state": "shut down"}
    end.join()
    assert getattr(server.connection, "commands") == ["sh"]  # noqa: B009


def test_of_a_server_that_goes_on_nothing_is_returned(server: PodInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pods, "_END", getattr(pods, "_END").replace("left=250", "left=3"))  # noqa: B009
    Path(server.data, "postmaster.pid").touch()
    assert server.left_at_its_end() == {}
