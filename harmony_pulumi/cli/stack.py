"""Reading a stack's state through Pulumi's Automation API. Thin.

Nothing is decrypted where no handle is secret, so no passphrase is needed then; and nothing is selected, so the user's
current stack stays current.
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

from harmony_pulumi.cli.background import run_all
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
        NothingToShowError: there is no such stack, or it cannot be read within a minute.
    """
    (answer,) = run_all([lambda: _export(cwd, stack)], seconds=_SECONDS)
    if not answer.done():
        msg = (
            f"Pulumi's backend did not answer within {_SECONDS} s. Try `pulumi stack ls` in {cwd}; if the backend is "
            f"down, `harmony status --site FILE` looks at sites without it"
        )
        raise NothingToShowError(msg)
    resources = Resources.of(answer.result().get("resources") or ())
    of_project = next((urn.split(":")[2:5:2] for urn in resources.by_urn), ["", ""])
    return StackState(project=of_project[1], stack=stack or of_project[0] or _selected(cwd), resources=resources)


def _selected(cwd: Path) -> str:
    """Return the name of the selected stack: one without resources does not say it."""
    from pulumi.automation import CommandError, PulumiCommand

    with suppress(CommandError):
        return PulumiCommand(skip_version_check=True).run(["stack", "--show-name"], str(cwd), {}).stdout.strip()
    return "that is selected"


def _export(cwd: Path, stack: str | None) -> Mapping[str, Any]:
    """Return a stack's deployment, as `pulumi stack export` has it.

    `Stack.export_stack` decrypts every secret, and `select_stack` changes what the user's next `pulumi up` deploys; so
    the command below them is used.
    """
    from pulumi.automation import CommandError, PulumiCommand, StackNotFoundError

    try:
        pulumi = PulumiCommand(skip_version_check=True)
        export = ["stack", "export", *(["--stack", stack] if stack else [])]
        found = loads(pulumi.run(export, str(cwd), {}).stdout).get("deployment") or {}
        if hides_handles(found.get("resources") or ()):
            found = loads(pulumi.run([*export, "--show-secrets"], str(cwd), {}).stdout)["deployment"]
    except FileNotFoundError:
        msg = "the `pulumi` command is not on PATH; `harmony doctor` says what to install"
        raise NothingToShowError(msg) from None
    except StackNotFoundError:
        msg = f"there is no stack {stack!r} in the backend of {cwd}; `pulumi stack ls` shows those that there are"
        raise NothingToShowError(msg) from None
    except CommandError as error:
        raise NothingToShowError(explained(str(error), cwd)) from None
    return found


def run_pulumi(arguments: list[str], cwd: Path, *, seconds: float = TELL_SECONDS) -> str:
    """Run a command of Pulumi's on a stack; return why it failed, or nothing.

    At its deadline, and where it is interrupted, it is asked to end as by Ctrl-C, and later made to: it must not go on,
    unseen, with the stack locked. What it runs, a program and its plugins, ends with it.
    """
    argv = ["pulumi", "--non-interactive", *arguments]
    env = {**os.environ, "PULUMI_AUTOMATION_API": "true"}
    pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(argv, cwd=cwd, env=env, text=True, start_new_session=True, **pipes)
    except FileNotFoundError:
        return "the `pulumi` command is not on PATH"
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return (
                f"`pulumi {arguments[0]}` did not end within {seconds:g} s, and was stopped; if it has left the stack "
                f"locked, `pulumi cancel` in {cwd} unlocks it"
            )
        except BaseException:
            _end(process)
            raise
    return explained(f"code: {process.returncode}\n stdout: {out}\n stderr: {err}", cwd) if process.returncode else ""


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started: politely first."""
    try:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=_END_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def explained(error: str, cwd: Path) -> str:
    """Return why Pulumi failed on a stack, in plain words. Pure."""
    said = error.partition("stderr:")[2].strip().removeprefix("error: ") or error
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
