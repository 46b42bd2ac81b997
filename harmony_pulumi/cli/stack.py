"""Reading a stack's state, and telling it, by Pulumi's command. Thin.

Nothing is decrypted where no handle is secret, so no passphrase is needed then; and nothing is selected, so the user's
current stack stays current. Pulumi's Automation API does both, and to load it takes longer than to look.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any

from harmony_pulumi.cli.deployed import Resources, hides_handles

_SECONDS = 60
TELL_SECONDS = 300
"""For each command by which a stack is told of a role change: its program is run, and one resource is looked at."""
_END_SECONDS = 10


class NothingToShowError(Exception):
    """There is nothing to look at; the message says why, and what to do. Ends a command with status 2."""


@dataclass(frozen=True)
class StackState:
    """A stack as it was last recorded."""

    project: str
    """Empty if the stack was never deployed to."""
    stack: str
    resources: Resources


def read_stack(cwd: Path, stack: str | None) -> StackState:
    """Read the state of a stack from its backend.

    Args:
        cwd: the folder of the project, which has the Pulumi.yaml.
        stack: its name; None for the one that is selected.

    Raises:
        NothingToShowError: there is no such stack, or Pulumi does not show it, within a minute for each look.
    """
    export = ["stack", "export", *(["--stack", stack] if stack else [])]
    found = _exported(export, cwd, stack)
    if hides_handles(found.get("resources") or ()):
        found = _exported([*export, "--show-secrets"], cwd, stack)
    resources = Resources.of(found.get("resources") or ())
    of_project = next((urn.split(":")[2:5:2] for urn in resources.by_urn), ["", ""])
    return StackState(project=of_project[1], stack=stack or of_project[0] or _selected(cwd), resources=resources)


def _exported(export: list[str], cwd: Path, stack: str | None) -> Mapping[str, Any]:
    """Return a stack's deployment, as this command shows it."""
    try:
        done = _run(export, cwd, _SECONDS)
    except FileNotFoundError:
        msg = "the `pulumi` command is not on PATH; `harmony doctor` says what to install"
        raise NothingToShowError(msg) from None
    except subprocess.TimeoutExpired:
        msg = (
            f"Pulumi's backend did not answer within {_SECONDS} s. Try `pulumi stack ls` in {cwd}; if the backend is "
            f"down, `harmony status --site FILE` looks at sites without it"
        )
        raise NothingToShowError(msg) from None
    if done.returncode and stack and "no stack named" in done.stderr:
        msg = f"there is no stack {stack!r} in the backend of {cwd}; `pulumi stack ls` shows those that there are"
        raise NothingToShowError(msg)
    if done.returncode:
        raise NothingToShowError(explained(_said(done), cwd))
    return loads(done.stdout).get("deployment") or {}


def _selected(cwd: Path) -> str:
    """Return the name of the selected stack: one without resources does not say it."""
    with suppress(subprocess.TimeoutExpired):
        return _run(["stack", "--show-name"], cwd, _SECONDS).stdout.strip() or "that is selected"
    return "that is selected"


def run_pulumi(arguments: list[str], cwd: Path, *, seconds: float = TELL_SECONDS) -> str:
    """Run a command of Pulumi's on a stack; return why it failed, or nothing."""
    try:
        done = _run(arguments, cwd, seconds)
    except FileNotFoundError:
        return "the `pulumi` command is not on PATH"
    except subprocess.TimeoutExpired:
        return (
            f"`pulumi {arguments[0]}` did not end within {seconds:g} s, and was stopped; if it has left the stack "
            f"locked, `pulumi cancel` in {cwd} unlocks it"
        )
    return explained(_said(done), cwd) if done.returncode else ""


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}"


def _run(arguments: list[str], cwd: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command of Pulumi's.

    At its deadline, and where it is interrupted, it is asked to end as by Ctrl-C, and later made to: it must not go on,
    unseen, with the stack locked. What it runs, a program and its plugins, ends with it.

    Raises:
        FileNotFoundError: there is no such command.
        subprocess.TimeoutExpired: it took longer, and was ended.
    """
    argv = ["pulumi", "--non-interactive", *arguments]
    env = {**os.environ, "PULUMI_AUTOMATION_API": "true"}
    pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, cwd=cwd, env=env, encoding="utf-8", start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            _end(process)
            raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started: politely first."""
    try:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=_END_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def explained(said: str, cwd: Path) -> str:
    """Return why Pulumi failed on a stack, in plain words. Pure."""
    said = said.removeprefix("error: ")
    if "no stack selected" in said:
        return f"no stack is selected in {cwd}; name one with --stack, or run `pulumi stack select` there first"
    if "no Pulumi.yaml" in said or "no Pulumi project" in said or "fully qualified name" in said:
        return (
            f"there is no Pulumi project in {cwd}; run this in the folder that has the Pulumi.yaml, or name that "
            f"folder with --cwd"
        )
    if "PULUMI_ACCESS_TOKEN" in said or "pulumi login" in said:
        return (
            "Pulumi is not logged in to a backend, so it knows no stack; set PULUMI_BACKEND_URL, or run "
            "`pulumi login --local` for state on this machine, or `pulumi login` for Pulumi Cloud"
        )
    if "passphrase" in said.lower():
        return f"Pulumi wants the stack's passphrase: set PULUMI_CONFIG_PASSPHRASE_FILE. It said: {said}"
    return f"Pulumi failed on the stack: {said}"
