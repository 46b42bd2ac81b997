"""What mypy --strict, pyright and ty say about small programs, line by line.

A line that ends in `# expect: pyright ty` must be rejected by these, one that ends in `# expect: all` by all three; a
line without a mark must be accepted by all three.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("programs")
EXTENSION = Path(__file__).parents[1] / "extension"
CACHE = Path(__file__).parents[2] / ".mypy_cache"
Lines = frozenset[tuple[str, int]]
"""Names of files, and numbers of lines."""


def run(folder: Path, *command: str, **environment: str) -> str:
    """Run a checker over a folder and return its report. 0: nothing found; 1: something; others: it failed."""
    done = subprocess.run(
        command,
        cwd=folder,
        # What is on PYTHONPATH is not part of a project: with it, ty takes some classes for two.
        env={**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout


def on_lines(report: str) -> Lines:
    found = re.findall(r"^(?:[\w/]*/)?(\w+\.py):(\d+):(?:\d+:)? error\b", report, re.MULTILINE)
    return frozenset((name, int(line)) for name, line in found)


def mypy(folder: Path) -> Lines:
    command = (sys.executable, "-m", "mypy", "--strict", "--explicit-package-bases", "--python-version=3.11")
    options = ("--config-file=", f"--cache-dir={CACHE / folder.name}", "--no-error-summary")
    # The folder is the root of its modules: they import one another as those of one project do.
    return on_lines(run(folder, *command, *options, ".", MYPYPATH="."))


def pyright(folder: Path) -> Lines:
    report = run(folder, sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson")
    return frozenset(
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1)
        for found in json.loads(report)["generalDiagnostics"]
    )


def ty(folder: Path) -> Lines:
    command = (sys.executable, "-m", "ty", "check", "--python", sys.prefix, "--python-version", "3.11")
    return on_lines(run(folder, *command, "--output-format", "concise", "--no-progress", "."))


CHECKERS: Mapping[str, Callable[[Path], Lines]] = {"mypy": mypy, "pyright": pyright, "ty": ty}


def marked() -> dict[tuple[str, int], frozenset[str]]:
    """Return which checkers must reject which line."""
    marks: dict[tuple[str, int], frozenset[str]] = {}
    for file in sorted(PROGRAMS.glob("*.py")):
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            if mark := re.search(r"# expect: (.+)$", line):
                names = frozenset(CHECKERS) if mark[1] == "all" else frozenset(mark[1].split())
                assert names <= frozenset(CHECKERS), f"{file.name}:{number}: {mark[1]}"
                marks[file.name, number] = names
    return marks


def shown(lines: Lines) -> str:
    return "".join(
        f"\n  {name}:{line}: {(PROGRAMS / name).read_text().splitlines()[line - 1].strip()}"
        for name, line in sorted(lines)
    )


@pytest.mark.parametrize("checker", CHECKERS)
def test_every_misuse_is_rejected_and_every_right_use_is_accepted(checker: str) -> None:
    rejected = CHECKERS[checker](PROGRAMS)
    marks = marked()
    missed = frozenset(line for line, names in marks.items() if checker in names) - rejected
    wrongly = rejected - marks.keys()
    assert not missed, f"{checker} accepts misuse:{shown(missed)}"
    assert not wrongly, f"{checker} rejects right use:{shown(wrongly)}"


def test_every_misuse_is_marked_for_pyright_and_ty_and_all_but_those_through_a_protocol_for_mypy() -> None:
    marks = marked()
    assert all({"pyright", "ty"} <= names for names in marks.values())
    assert len([line for line, names in marks.items() if "mypy" in names]) >= 40
    assert {name for name, _ in marks} == {"right_extension.py", "wrong.py"}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_distribution_that_extends_harmony_is_accepted(checker: str) -> None:
    assert CHECKERS[checker](EXTENSION) == frozenset()
