"""What a command looks at or acts on: the databases of a stack, or those whose sites a file has. Thin."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harmony_pulumi.cli.terminal import plainly, progress, refuse

if TYPE_CHECKING:
    from harmony_pulumi.cli.deployed import Database

SiteFile = Annotated[
    str | None,
    typer.Option(
        "--site",
        metavar="FILE",
        help="Take the sites from a JSON file instead of a stack: a `site` output, or all outputs. - is standard "
        "input. Needs neither Pulumi nor a backend.",
    ),
]


@dataclass(frozen=True)
class Subject:
    """What was found."""

    databases: Sequence[Database]
    project: str = ""
    stack: str = ""


def read_subject(site: str | None, cwd: Path, stack: str | None) -> Subject:
    """Return the databases of a file of sites if one is named, else of a stack; or end with a plain message."""
    if site is not None and (stack is not None or cwd != Path()):
        refuse("--site needs no stack; leave out --stack and --cwd")
    with plainly(), progress("reading what is deployed"):
        return _from_file(site) if site is not None else _from_stack(cwd, stack)


def _from_stack(cwd: Path, stack: str | None) -> Subject:
    from harmony_pulumi.cli.stack import NothingToShowError, read_stack

    state = read_stack(cwd.resolve(), stack)
    databases = state.resources.databases()
    if not databases:
        msg = f"stack {state.stack} has no database that could be observed; `pulumi up` deploys what the program says"
        raise NothingToShowError(msg)
    return Subject(databases, state.project, state.stack)


def _from_file(file: str) -> Subject:
    from harmony_pulumi.cli.deployed import databases_in
    from harmony_pulumi.cli.stack import NothingToShowError

    name = "standard input" if file == "-" else file
    try:
        document: Any = json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
    except OSError as error:
        msg = f"cannot read {file}: {error.strerror}"
        raise NothingToShowError(msg) from None
    except ValueError as error:
        msg = f"{name} is not JSON ({error}); expected what `pulumi stack output --json` prints"
        raise NothingToShowError(msg) from None
    databases = databases_in(document)
    if not databases:
        msg = f"{name} has no site in it: expected a `site` output of a database, with `kind` and `name`"
        raise NothingToShowError(msg)
    return Subject(databases)
