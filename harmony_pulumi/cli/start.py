"""`harmony start`: starts servers and endpoints without Pulumi, after a reboot say.

Thin: `hosts.postgresql.boot` decides as what servers start, and `hosts.pgbouncer.boot` where endpoints lead.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony_pulumi.cli.terminal import console, refuse

if TYPE_CHECKING:
    from harmony_pulumi.hosts.pgbouncer.boot import Outcome

EPILOG = (
    "Exit status: 0, every server runs as what it is to be. 1, one is not started, or must not run: the message says "
    "why. 2, wrong usage, or there is no server. 3, one waits: a server runs as a standby, which accepts no "
    "writes, since its peer did not answer; an endpoint serves nobody, since it cannot be told who is active.\n\n"
    "Safe to interrupt, and to run again. A server that runs is left as it is, unless it waits and its peer answers. "
    "So is an endpoint, unless it leads to another member than the active one."
)


def start(
    roots: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER]...",
            help="Folders of servers and endpoints. Default: all below the folder where this host keeps them, "
            "/var/lib/harmony.",
            show_default=False,
        ),
    ] = None,
    *,
    wait: Annotated[
        float,
        typer.Option("--wait", metavar="SECONDS", min=0, help="Go on asking peers that do not answer for so long."),
    ] = 0,
) -> None:
    """Start the servers and endpoints of this host, for instance after a reboot. Needs neither Pulumi nor a stack.

    A member of a pair asks its peer first: what it was told is to be the primary starts as that, and everything else as
    a standby. Without an answer it starts as a standby, too, and waits.
    An endpoint asks the members of its pair, and is led to the active one.
    """
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.hosts.pgbouncer import boot as endpoints
    from harmony_pulumi.hosts.postgresql.boot import Start, roots_below_base, start_all

    began = time.monotonic()
    try:
        named = [str(root.resolve()) for root in roots or ()]
        forwarding = [root for root in named if endpoints.is_endpoint(root)]
        serving = [root for root in named if root not in forwarding]
        if not named:
            serving, forwarding = roots_below_base(), endpoints.roots_below_base()
        # Servers first: an endpoint may lead to one of them.
        servers = start_all(serving, _show, wait=wait)
        led = endpoints.start_all(forwarding, _show, wait=max(wait - (time.monotonic() - began), 0))
    except SiteError as error:
        refuse(str(error), status=1)
    found = {**servers, **led}
    if not found:
        refuse("there is no server to start below the folder where this host keeps them: name the server's folder")
    waits = False
    for root, outcome in found.items():
        if isinstance(outcome, SiteError):
            sys.stderr.write(f"error: {root}: {outcome}\n")
            continue
        if isinstance(outcome, Start):
            waits, state = waits or outcome is Start.WAIT, f"runs as a {outcome}"
        else:
            waits, state = waits or not outcome.leads_to, _words(outcome)
        console().print(f"{root}: {state}", markup=False, soft_wrap=True)
    failed = any(isinstance(outcome, SiteError) for outcome in found.values())
    raise typer.Exit(1 if failed else 3 if waits else 0)


def _words(outcome: Outcome) -> str:
    if outcome.leads_to:
        return f"leads to {outcome.leads_to}"
    return f"{'leads to where it did' if outcome.runs else 'serves nobody'}: it cannot be told who is active"


def _show(line: str) -> None:
    console().print(line, markup=False, soft_wrap=True)
