"""What every command needs to speak: where to, and how to end with a plain message. Thin."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

Stack = Annotated[
    str | None,
    typer.Option(
        "--stack", "-s", metavar="NAME", help="The stack. Without it: the one that is selected in the project."
    ),
]
Cwd = Annotated[
    Path,
    typer.Option(
        "--cwd",
        "-C",
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="The folder of the Pulumi project, which has the Pulumi.yaml.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead, for scripts.")]


def console() -> Console:
    """Return the standard output."""
    return _console(sys.stdout, stderr=False)


def _console(stream: Any, *, stderr: bool) -> Console:
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # A terminal that cannot show ✓ shows ? and no traceback.
    return Console(stderr=stderr, highlight=False, soft_wrap=False)


@contextmanager
def progress(text: str) -> Generator[None]:
    """Say on standard error what is being waited for, while it is; nothing where that is no terminal."""
    with _console(sys.stderr, stderr=True).status(text):
        yield


def print_json(document: Any) -> None:
    """Print a JSON document on the standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=True) + "\n")


def refuse(message: str, *, status: int = 2) -> NoReturn:
    """End with a message on standard error."""
    _console(sys.stderr, stderr=True).print(Text.assemble(("error: ", "red"), message))
    raise typer.Exit(status)


@contextmanager
def plainly() -> Generator[None]:
    """End with status 2 and a plain message where there is nothing to show."""
    from harmony_pulumi.cli.stack import NothingToShowError

    try:
        yield
    except NothingToShowError as error:
        refuse(str(error))
