"""The sessions of the documentation, run: every command does what its page says, on a real stack."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT, Block, blocks_of, changed
from tests.e2e.conftest import Stack, base_folder, free_port, needs_root, stop_postmaster, with_machine
from tests.e2e.sampling import sampled

pytestmark = pytest.mark.e2e
SITE_PAGES = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]
SESSIONS = [page for page in SITE_PAGES if any(b.language == "console" and b.is_run for b in blocks_of(page))]
DEADLINE = 300
OLD_PORT = "54329"
COUNTS = re.compile(r"([+~-]+ ?)?\d+ (to \w+|created|updated|replaced|deleted|unchanged|changes?)(\. \d+ unchanged)?")
"""A line of the summary with which Pulumi ends."""


@dataclass
class Session:
    """A reader who does what a page says, in a shell in the stack's folder."""

    stack: Stack
    free_port: int
    """Where the page has the port of a server that was there before."""

    def names(self, text: str) -> str:
        """Put this run's project and folder where the page has its own."""
        text = text.replace("/var/lib/harmony/", f"{base_folder()}/").replace("/srv/", f"{self.stack.folder}/srv/")
        return re.sub(r"\bshop\b", self.stack.project, text)

    def ports(self, command: str) -> str:
        """Put the ports that the servers got where the page has those of an empty machine."""
        got = {
            port: str(marker["port"])
            for folder, marker in self.stack.markers()
            for name, port in {"montreal": "5432", "toronto": "5433"}.items()
            if folder.name.startswith(name)
        }
        got[OLD_PORT] = str(self.free_port)
        # In one pass: with 5432 taken, one server gets what the page has as the other's port.
        return re.sub(rf"\b(5432|5433|{OLD_PORT})\b", lambda port: got.get(port[0], port[0]), command)

    def take(self, block: Block) -> None:
        if block.language == "console":
            if block.is_run:
                for command, expected in block.commands():
                    self.run(block, self.ports(self.names(command)), self.names(expected))
        elif block.title:
            path = self.stack.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            text = self.names(block.text)
            path.write_text(changed(path.read_text(), text) if block.language == "diff" else text)

    def run(self, block: Block, command: str, expected: str) -> None:
        """Run a command; what it exports is there for those that follow."""
        wrapper: list[str] = []
        if block.how == "on another machine":
            wrapper = with_machine("f" * 32, self.stack.folder, hide_postgresql=True)
        environment = self.stack.folder / "environment"
        script = f'{command}\nstatus=$?\nexport -p > "{environment}"\nexit $status\n'
        if environment.exists():
            script = f". {shlex.quote(str(environment))}\n{script}"
        done = subprocess.run(
            [*wrapper, "bash", "-c", script],
            cwd=self.stack.folder,
            env={**self.stack.env, "PULUMI_SKIP_CONFIRMATIONS": "true", "NO_COLOR": "1", "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        fails = re.search(r"^\s*((psql: )?error\b|✗ )", expected, re.MULTILINE) is not None
        assert (done.returncode != 0) == fails, f"{block.place}: {command}\n{done.stdout}"
        assert_shown(expected, done.stdout, f"{block.place}: {command}")


def assert_shown(expected: str, found: str, place: str) -> None:
    """Check that the expected lines are there in their order. Numbers differ from run to run, and so does space."""
    lines = [flat(line) for line in found.splitlines()]
    at = 0
    for line in expected.splitlines():
        wanted = flat(line)
        if not wanted or wanted == "…":
            continue
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in wanted.split("…")))
        there = (i for i in range(at, len(lines)) if pattern.fullmatch(lines[i]))
        at = next(there, -1) + 1
        assert at > 0, f"{place}\nexpected: {line}\nafter those before it, in:\n{found}"


def flat(line: str) -> str:
    """Return a line without what differs from run to run. Pulumi's counts of resources do not."""
    text = " ".join(line.split())
    return text if COUNTS.fullmatch(text) else re.sub(r"\d+", "0", text)


@pytest.mark.parametrize(
    "line",
    ["    + 7 to create", "    ~ 2 updated", "    5 unchanged", "    +-1 replaced", "    ~ 3 updated. 4 unchanged",
     "    - 7 deleted", "    4 changes. 3 unchanged", "    +-1 to replace", "    ~ 1 to update"],
)  # fmt: skip
def test_a_count_of_resources_must_be_that_of_the_page(line: str) -> None:
    assert_shown(f"Resources:\n{line}", f"Resources:\n{line}\n\nDuration: 3s", "here")
    number = re.search(r"\d", line)
    assert number
    with pytest.raises(AssertionError, match="expected: .*" + re.escape(line.strip())):
        assert_shown(line, line.replace(number[0], str(int(number[0]) + 1)), "here")


def test_other_numbers_may_differ() -> None:
    assert_shown("copying 12 MB from port 5432", "copying 13 MB  from port 40111", "here")


@pytest.mark.parametrize("page", sampled(SESSIONS, 5), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: Path, stack: Stack) -> None:
    blocks = blocks_of(page)
    if any(command.startswith("runuser ") for b in blocks if b.is_run for command, _ in b.commands()):
        needs_root(f"{page.name} has commands that are root's")
    session = Session(stack, free_port())
    try:
        for block in blocks:
            session.take(block)
    finally:
        for file in stack.folder.rglob("postmaster.pid"):  # A server that the page made without harmony.
            stop_postmaster(file.parent, signal.SIGINT)
