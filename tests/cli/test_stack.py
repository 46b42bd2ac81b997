"""Telling the stack: it has an end, and nothing is left of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from harmony_pulumi.cli.stack import read_stack, run_pulumi

# What a CLI does that waits for a backend: it ends on SIGINT, or does not; a plugin of it lives as long.
POLITE = "trap 'kill $plugin; exit 130' INT; sleep 600 & plugin=$!; echo $$ $plugin > pids; wait"
STUBBORN = "trap '' INT; sleep 600 & plugin=$!; echo $$ $plugin > pids; wait"
FAILING = "echo 'error: the stack is currently locked by ada' >&2; exit 255"


@pytest.fixture
def pulumi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the place of a CLI that is the first on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("harmony_pulumi.cli.stack._END_SECONDS", 0.5)
    return tmp_path / "pulumi"


def write(pulumi: Path, script: str) -> None:
    pulumi.write_text(f"#!/bin/sh\n{script}\n")
    pulumi.chmod(0o755)


def is_gone(pid: str) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.mark.parametrize("script", [POLITE, STUBBORN])
def test_a_stack_that_does_not_answer_is_not_waited_for_and_nothing_goes_on(pulumi: Path, script: str) -> None:
    write(pulumi, script)
    began = time.monotonic()
    said = run_pulumi(["up", "--yes"], pulumi.parent, seconds=0.5)
    assert time.monotonic() - began < 20
    assert said == (
        f"`pulumi up` did not end within 0.5 s, and was stopped; if it has left the stack locked, `pulumi cancel` in "
        f"{pulumi.parent} unlocks it"
    )
    pids = (pulumi.parent / "pids").read_text().split()
    assert len(pids) == 2
    end = time.monotonic() + 10
    while not all(map(is_gone, pids)):
        assert time.monotonic() < end, "something of it lives on"


def test_why_a_stack_could_not_be_told_is_told(pulumi: Path) -> None:
    write(pulumi, FAILING)
    assert "the stack is currently locked by ada" in run_pulumi(["up"], pulumi.parent)
    write(pulumi, 'test "$1" = --non-interactive && test "$PULUMI_AUTOMATION_API" = true')
    assert run_pulumi(["up"], pulumi.parent) == ""


def test_a_selected_stack_without_resources_is_named(pulumi: Path) -> None:
    write(pulumi, 'case "$*" in *export*) echo "{}" ;; *"stack --show-name"*) echo dev ;; esac')
    assert read_stack(pulumi.parent, None).stack == "dev"
    write(pulumi, 'case "$*" in *export*) echo "{}" ;; version) ;; *) exit 255 ;; esac')
    assert read_stack(pulumi.parent, None).stack == "that is selected"
