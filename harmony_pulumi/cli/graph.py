"""`harmony graph`: draws a stack from its state. Thin: what to draw is in `picture`, how in `mermaid` and `svg`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from harmony_pulumi.cli.terminal import Cwd, Stack, plainly, progress, refuse

EPILOG = (
    "Exit status: 0, drawn. 2, there is nothing to draw: wrong usage, no such stack, nothing deployed.\n\n"
    "It shows what the stack last recorded, and asks no server: for how things are now, use harmony status. Mermaid "
    "text can be put into Markdown between ```mermaid and ```, where GitHub and GitLab show it as a picture."
)


class Format(StrEnum):
    """How a picture is written."""

    MERMAID = "mermaid"
    SVG = "svg"


def graph(
    *,
    stack: Stack = None,
    cwd: Cwd = Path(),
    form: Annotated[
        Format | None,
        typer.Option("--format", "-f", help="Default: as --output ends, .svg or anything else; mermaid without it."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", dir_okay=False, help="Where to write. Default: standard output."
        ),
    ] = None,
) -> None:
    """Draw a stack: its topologies, which database runs on which, and how data flows from clients to replicas."""
    from harmony_pulumi.cli.mermaid import mermaid
    from harmony_pulumi.cli.picture import picture
    from harmony_pulumi.cli.stack import NothingToShowError, read_stack
    from harmony_pulumi.cli.svg import svg

    with plainly(), progress("reading what is deployed"):
        state = read_stack(cwd.resolve(), stack)
        if not state.resources.topologies():
            msg = f"stack {state.stack} has no topology; `pulumi up` deploys what the program says"
            raise NothingToShowError(msg)
    drawn = picture(state.resources, f"{state.project}, stack {state.stack}")
    if form is None:
        form = Format.SVG if output is not None and output.suffix == ".svg" else Format.MERMAID
    text = svg(drawn) if form is Format.SVG else mermaid(drawn)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        refuse(f"cannot write {output}: {error.strerror}")
