"""`harmony status`: looks at every deployed server and endpoint now. Thin: what it means is decided in `report`."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony_pulumi.cli.subject import SiteFile, Subject, read_subject
from harmony_pulumi.cli.terminal import Cwd, Json, Stack, console, print_json, progress, refuse

if TYPE_CHECKING:
    from harmony_pulumi.cli.deployed import Handle
    from harmony_pulumi.cli.report import Report, Seen

_SECONDS = 20
"""For one server to answer; more than it takes a server that is slow and less than patience lasts."""

EPILOG = (
    "Exit status: 0, every database is healthy. 1, one is not: what is wrong is listed, with what to do. 2, there is "
    "nothing to look at: wrong usage, no such stack, nothing deployed. Warnings (yellow, !) leave it at 0.\n\n"
    "It only looks, changes nothing and needs no passphrase. If the backend is down, use --site with a file that was "
    "saved before: pulumi stack output --json > sites.json"
)


def status(
    seconds: Annotated[
        float | None,
        typer.Argument(metavar="SECONDS", min=0.1, help="With --watch: the time between two looks. Default: 2."),
    ] = None,
    *,
    stack: Stack = None,
    cwd: Cwd = Path(),
    site: SiteFile = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
) -> None:
    """Show how every database is right now: who is active, how far replicas are behind, what is wrong.

    Asks each server and each endpoint itself, all at once, and waits for none longer than 20 seconds.
    """
    if seconds is not None and not watch:
        refuse(f"{seconds:g} goes with --watch; to name a stack, use --stack")
    if watch and as_json:
        refuse("--watch is for people and --json for scripts; use one, and call `harmony status --json` repeatedly")
    subject = read_subject(site, cwd, stack)
    if watch:
        _watch(subject, seconds or 2)
        return
    count = sum(len(database.members) + len(database.endpoints) for database in subject.databases)
    with progress(f"asking {count} servers"):
        report = look(subject)
    if as_json:
        print_json(asdict(report))
    else:
        from harmony_pulumi.cli.status_view import view

        console().print(view(report))
    raise typer.Exit(0 if report.healthy else 1)


def look(subject: Subject) -> Report:
    """Observe every server, all at once, and judge what was seen."""
    from harmony_pulumi.cli.background import run_all
    from harmony_pulumi.cli.report import report

    members = [[member.handle for member in database.members] for database in subject.databases]
    endpoints = [database.endpoints for database in subject.databases]
    calls = [_observation_of(handle) for group in members for handle in group]
    calls += [_endpoint_of(handle) for group in endpoints for handle in group]
    answers = iter(run_all(calls, seconds=_SECONDS))
    seen, of_endpoints = (
        [[_seen(next(answers), handle) for handle in group] for group in groups] for groups in (members, endpoints)
    )
    pairs = list(zip(subject.databases, seen, strict=True))
    now = datetime.now(UTC)
    return report(pairs, now=now, endpoints=of_endpoints, project=subject.project, stack=subject.stack)


def _observation_of(handle: Handle) -> Callable[[], Seen]:
    from harmony_pulumi.capabilities.site import load_site

    return lambda: load_site(handle).observe()


def _endpoint_of(handle: Handle) -> Callable[[], Seen]:
    from harmony_pulumi.capabilities.endpoint_site import load_endpoint

    return lambda: load_endpoint(handle).observe()


def _seen(answer: Future[Seen], handle: Handle) -> Seen:
    """Return what was observed, or why nothing was: a status must survive any site, also one of another package."""
    from harmony_pulumi.cli.report import unseen

    if not answer.done():
        return unseen(handle, "unreachable", f"it did not answer within {_SECONDS} s")
    error = answer.exception()
    return answer.result() if error is None else unseen(handle, "unknown", str(error) or type(error).__name__)


def _watch(subject: Subject, seconds: float) -> None:
    """Show what is seen, again and again; Ctrl-C is the way out and no failure."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from harmony_pulumi.cli.status_view import view

    try:
        with Live(console=console(), auto_refresh=False) as live:
            while True:
                report = look(subject)
                title = f"{report.time[11:19]} UTC, every {seconds:g} s; Ctrl-C ends"
                live.update(Group(Text(title, "dim"), view(report, verdict_first=True)), refresh=True)
                time.sleep(seconds)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
