"""Write down what a whole run of the tests came to: `python -m tests.record JUNIT...`, on standard output as Markdown.

`scripts/test --all` calls it; what it wrote is committed in `tests/results`, by the time of the run.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Case(NamedTuple):
    """One test that ran."""

    file: str
    name: str
    seconds: float
    end: str
    """`passed`, `failed`, `error` or `skipped`."""


def cases(junit: Path) -> list[Case]:
    """Read what pytest has written with `--junitxml`."""
    return [
        Case(
            str(case.get("classname")).replace(".", "/") + ".py",
            str(case.get("name")),
            float(case.get("time", 0)),
            next(({"failure": "failed"}.get(child.tag, child.tag) for child in case if child.tag in _ENDS), "passed"),
        )
        for case in ElementTree.parse(junit).iter("testcase")
        if case.get("classname")  # One that was cut off has only a name.
    ]


_ENDS = ("failure", "error", "skipped")


def report(found: Iterable[Case], facts: Iterable[str]) -> str:
    """Return the facts of a run, a line for each file, and each test that did not pass."""
    by_file: dict[str, list[Case]] = defaultdict(list)
    for case in found:
        by_file[case.file].append(case)
    lines = [f"# Whole run of the tests, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "", *(f"- {fact}" for fact in facts)]
    every = [case for file in by_file.values() for case in file]
    lines += [f"- tests: {_counts(every)}", "", "| file | tests | seconds |", "| --- | --- | ---: |"]
    for file, ran in sorted(by_file.items()):
        lines.append(f"| {file} | {_counts(ran)} | {sum(case.seconds for case in ran):.0f} |")
    bad = [case for case in every if case.end != "passed"]
    if bad:
        lines += ["", *(f"- {case.end}: {case.file}::{case.name}" for case in bad)]
    return "\n".join(lines) + "\n"


def _counts(ran: list[Case]) -> str:
    ends = [case.end for case in ran]
    return ", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(sorted(ends, key=lambda e: e != "passed")))


def _facts() -> list[str]:
    def said(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    versions = {"pulumi": "version", "psql": "--version", "pgbouncer": "--version"}
    installed = {name: path for name in versions if (path := shutil.which(name))}
    return [
        f"commit: {said('git', 'rev-parse', '--short', 'HEAD')}{' and changes' if said('git', 'status', '-s') else ''}",
        f"seed: {os.environ['HARMONY_TEST_SEED']}",
        f"arguments: {os.environ.get('HARMONY_TEST_ARGUMENTS') or 'none'}",
        f"cores: {os.cpu_count()}, kernel {platform.release()}, Python {platform.python_version()}",
        *(f"{name}: {said(path, versions[name]).splitlines()[0]}" for name, path in installed.items()),
    ]


if __name__ == "__main__":
    sys.stdout.write(report([case for path in sys.argv[1:] for case in cases(Path(path))], _facts()))
