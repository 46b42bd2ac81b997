"""`harmony start`: starts servers without Pulumi, after a reboot say. Thin: `hosts.postgresql.boot` decides as what."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harmony_pulumi.cli.terminal import console, refuse

EPILOG = (
    "Exit status: 0, every server runs as what it is to be. 1, one is not started, or must not run: the message says "
    "why. 2, wrong usage, or there is no server. 3, one waits: it runs as a standby, which accepts no writes, since "
    "its peer did not answer.\n\n"
    "Safe to interrupt, and to run again. A server that runs is left as it is, unless it waits and its peer answers."
)


def start(
    roots: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER]...",
            help="Folders of servers. Default: all below the folder where this host keeps them, /var/lib/harmony.",
            show_default=False,
        ),
    ] = None,
    *,
    wait: Annotated[
        float,
        typer.Option("--wait", metavar="SECONDS", min=0, help="Go on asking peers that do not answer for so long."),
    ] = 0,
) -> None:
    """Start the servers of this host, for instance after a reboot. Needs neither Pulumi nor a stack.

    A member of a pair asks its peer first: what it was told is to be the primary starts as that, and everything else as
    a standby. Without an answer it starts as a standby, too, and waits.
    """
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.hosts.postgresql.boot import Start, roots_below_base, start_all

    try:
        named = [str(root.resolve()) for root in roots or ()]
        found = start_all(named or roots_below_base(), _show, wait=wait)
    except SiteError as error:
        refuse(str(error), status=1)
    if not found:
        refuse("there is no server to start below the folder where this host keeps them: name the server's folder")
    for root, outcome in found.items():
        if isinstance(outcome, SiteError):
            sys.stderr.write(f"error: {root}: {outcome}\n")
        else:
            console().print(f"{root}: runs as a {outcome}", markup=False, soft_wrap=True)
    outcomes = found.values()
    failed = any(isinstance(outcome, SiteError) for outcome in outcomes)
    raise typer.Exit(1 if failed else 3 if Start.WAIT in outcomes else 0)


def _show(line: str) -> None:
    console().print(line, markup=False, soft_wrap=True)
