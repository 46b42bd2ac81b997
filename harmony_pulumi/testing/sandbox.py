"""A Pulumi stack for one trial: real engine, local backend, inline program, and nothing left behind.

The process's own environment and working directory are not touched: what the engine needs is given to the engine.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pulumi import automation
from pulumi.automation import errors

from harmony_pulumi.testing.report import ConformanceError

Program = Callable[[], None]


class Sandbox:
    """A stack with its state in a temporary folder, whose path is short, and which other OS users may pass through."""

    def __init__(self) -> None:
        """Make the folder and the stack.

        Raises:
            RuntimeError: the Pulumi CLI is missing or too old.
        """
        # A server's Unix socket is in its folder, and its path may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="kit-", dir="/tmp"))
        self.before_removal: Program | None = None
        """What to deploy before everything is destroyed at the end."""
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir(mode=0o700)
        self.project = f"kit-{secrets.token_hex(4)}"
        try:
            self._stack = self._new_stack()
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def _new_stack(self) -> automation.Stack:
        settings = automation.ProjectSettings(name=self.project, runtime="python")
        passphrase = secrets.token_hex(32)
        kept = self.folder / "state" / "passphrase"  # Where somebody finds it who has to clean up by hand.
        kept.touch(mode=0o600)
        kept.write_text(passphrase)
        environment = {
            "PULUMI_BACKEND_URL": f"file://{self.folder}/state",
            "PULUMI_CONFIG_PASSPHRASE": passphrase,
            "PULUMI_PYTHON_CMD": sys.executable,  # Dynamic providers run in the same environment as the program.
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        }
        try:
            return automation.create_stack(
                "trial",
                project_name=self.project,
                program=_nothing,
                opts=automation.LocalWorkspaceOptions(
                    work_dir=str(self.folder), env_vars=environment, project_settings=settings
                ),
            )
        except FileNotFoundError as error:
            msg = "the Pulumi CLI is not on PATH; install it: https://www.pulumi.com/docs/install/"
            raise RuntimeError(msg) from error

    def __enter__(self) -> Self:
        """Return the sandbox."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Remove what is deployed, and the folder. A failure to do so is told, and hides no other."""
        failures: list[str] = []
        if self.before_removal:
            self._attempt(partial(self.up, self.before_removal), failures)
        if self._attempt(self.destroy, failures):
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            failures.append(f"What was deployed could not be removed; its stack is in {self.folder}.")
        if failures and error is None:
            raise ConformanceError("\n".join(failures))
        if failures and error is not None:
            error.add_note("\n".join(("While removing what was deployed:", *failures)))

    def _attempt(self, act: Callable[[], object], failures: list[str]) -> bool:
        try:
            act()
        except ConformanceError as failure:
            failures.append(str(failure))
            return False
        return True

    def preview(self, program: Program) -> list[str]:
        """Run a program without deploying it; return what would change, one `<operation> <type> <name>` a resource."""
        steps, run = _Steps(), _Run(program)
        self._do("preview", lambda: self._stack.preview(program=run, on_event=steps), run)
        return steps.seen

    def up(self, program: Program) -> tuple[Mapping[str, automation.OutputValue], list[str]]:
        """Deploy a program; return its outputs, and what changed as `preview` does."""
        steps, run = _Steps(), _Run(program)
        result = self._do("up", lambda: self._stack.up(program=run, on_event=steps), run)
        return result.outputs, steps.seen

    def destroy(self) -> None:
        """Destroy what is deployed."""
        run = _Run(_nothing)
        self._do("destroy", lambda: self._stack.destroy(program=run), run)

    def _do(self, operation: str, act: Callable[[], Any], run: _Run) -> Any:
        # Where the engine ends early, the server of the program logs that with all its frames, which would keep them.
        server_log = logging.getLogger("grpc._server")
        muted, server_log.disabled = server_log.disabled, True
        try:
            return act()
        except errors.CommandError as error:
            run.clear_away()
            msg = f"  found: `pulumi {operation}` failed:\n{error}\n  expected: it succeeds"
            raise ConformanceError(msg) from None
        finally:
            server_log.disabled = muted


class _Run:
    """One run of a program, in this process. Where the engine has ended before it, something is left to clear away."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.loop: asyncio.AbstractEventLoop | None = None

    def __call__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.program()

    def clear_away(self) -> None:
        """Let the run end, and collect what waits in vain for the engine.

        Python would do so at any other time, and what is raised then ends up in whatever happens to run: seen in
        pytest, as it was about to show why a check had failed.
        """
        deadline = time.monotonic() + 5
        while self.loop is not None and self.loop.is_running() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.loop = None
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with warnings.catch_warnings(action="ignore"):
                gc.collect()
        finally:
            sys.unraisablehook = hook


class _Steps:
    """Notes what the engine does to resources, other than leaving them as they are."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, event: automation.EngineEvent) -> None:
        if event.resource_pre_event is not None and (step := event.resource_pre_event.metadata).op != "same":
            kind, name = step.urn.split("::")[-2:]
            self.seen.append(f"{step.op.value} {kind.rpartition('$')[2]} {name}")


def _nothing() -> None:
    """Declare nothing."""
