"""The demo of the README, as a newcomer runs it: in a fresh checkout, again, and away."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import (
    base_folder,
    eventually,
    markers_below,
    parent_of,
    postmaster,
    processes_about,
    stop_servers_below,
)

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
DEADLINE = 900
"""In seconds: the virtual environment is made anew."""


@dataclass
class Checkout:
    """A fresh checkout, whose servers are its own: the project's name decides where they are."""

    folder: Path
    project: str

    def demo(self, *args: str, expect: int = 0) -> str:
        """Run the demo to its end and return what it shows."""
        # A group of its own: if it hangs, all that it started can be ended.
        with subprocess.Popen(
            [self.folder / "scripts/demo", *args],
            cwd="/",
            env={k: v for k, v in os.environ.items() if not k.startswith(("PG", "PULUMI_", "VIRTUAL_ENV"))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                shown, _ = process.communicate(timeout=DEADLINE)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        assert process.returncode == expect, shown
        return shown

    def postmasters(self) -> list[int]:
        """Return the processes of the primary and the replica, both of which must be alive."""
        markers = sorted(markers_below(base_folder() / self.project), key=lambda found: found[0].name)
        assert [root.name for root, _ in markers] == ["montreal-orders", "toronto-orders"]
        pids = [postmaster(Path(marker["data"])) for _, marker in markers]
        alive = [pid for pid in pids if pid is not None]
        assert len(alive) == 2, pids
        return alive

    def files(self) -> set[str]:
        """Return the files, but for those that Python and its tools keep for next time."""
        kept = re.compile(r"^\.venv/|(^|/)__pycache__/|\.egg-info/")
        found = (str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir())
        return {path for path in found if not kept.search(path)}

    def close(self) -> None:
        """Stop and remove what is left, whatever the test did."""
        stop_servers_below(base_folder() / self.project)
        shutil.rmtree(base_folder() / self.project, ignore_errors=True)


@pytest.fixture
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Generator[Checkout]:
    folder = tmp_path_factory.mktemp("d") / "checkout"
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", *ignored))
    project = f"demo{secrets.token_hex(4)}"
    text = (folder / "Pulumi.yaml").read_text()
    (folder / "Pulumi.yaml").write_text(text.replace("name: harmony-demo\n", f"name: {project}\n"))
    assert project in (folder / "Pulumi.yaml").read_text()
    made = Checkout(folder, project)
    try:
        yield made
    finally:
        made.close()


def test_the_demo_deploys_a_pair_that_stays_and_is_removed_without_a_trace(checkout: Checkout) -> None:
    before = checkout.files()
    assert "There is no demo to destroy." in checkout.demo("--destroy")
    assert "usage: scripts/demo [--destroy]" in checkout.demo("--remove", expect=1)
    assert checkout.files() == before

    shown = checkout.demo()
    assert "7 created" in shown
    ports = assert_rows_were_read(shown)
    assert_healthy(shown)
    assert_moved_and_lost_nothing_unsaid(shown)
    pids = checkout.postmasters()
    assert [parent_of(pid) for pid in pids] == [1, 1], "they outlive the demo"
    assert (checkout.folder / ".demo/passphrase").stat().st_mode & 0o077 == 0
    assert (checkout.folder / ".demo/pg_service.conf").stat().st_mode & 0o077 == 0

    shown = checkout.demo()
    assert "7 unchanged" in shown
    assert assert_rows_were_read(shown) == ports
    assert_healthy(shown)
    assert_moved_and_lost_nothing_unsaid(shown)

    folders = [str(root) for root, _ in markers_below(base_folder() / checkout.project)]
    shown = checkout.demo("--destroy")
    assert "7 deleted" in shown
    for folder in folders:
        assert f"removed {folder}" in shown
    assert not (base_folder() / checkout.project).exists()
    assert checkout.files() == before
    eventually(lambda: not processes_about(str(checkout.folder), checkout.project), "all of its processes to end")
    assert "There is no demo to destroy." in checkout.demo("--destroy")


def assert_rows_were_read(shown: str) -> list[str]:
    """Check that rows were written on a primary and read on a standby; return both ports."""
    ports: list[str] = []
    for what, recovery in {"wrote": "f", "read": "t"}.items():
        found = re.search(rf"^ +{what} 100 rows on port (\d+), in recovery: {recovery}$", shown, re.MULTILINE)
        assert found, shown
        ports.append(found[1])
    assert len(set(ports)) == 2
    return ports


def assert_moved_and_lost_nothing_unsaid(shown: str) -> None:
    """Check that roles moved, that a server was killed, and that what clients lost is no more than what was said."""
    assert "toronto becomes the primary" in shown
    assert "toronto is killed, and montreal takes over" in shown
    assert "toronto is rewound to where montreal took over" in shown
    assert "differs" not in shown
    said = re.search(r"lost: (\d+) bytes of WAL, (\d+) transactions?", shown)
    found = re.search(r"rows acknowledged: (\d+), lost: (\d+); longest gap: \d+ ms", shown)
    assert said, shown
    assert found, shown
    assert int(found[1]) > 100
    assert int(found[2]) <= int(said[2])


def assert_healthy(shown: str) -> None:
    """Check that `harmony status` was shown, and found nothing."""
    status = shown.partition("== harmony status\n")[2]
    assert re.search(r"montreal +● active", status), shown
    assert "streaming, async" in status
    assert re.search(r"\bhealthy\b", status)
    assert "unhealthy" not in status
