"""`harmony plan`, `switchover` and `events`: the roles of a pair, moved from its sites alone.

Thin: what is next is decided in `orchestration`. It needs neither the stack's lock nor its backend; the stack is told
afterwards, that one resource alone, when it can be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harmony_pulumi.cli.operating import Name, To, Yes, acting, ask, pair_in, show_checks, target_of, tell_stack
from harmony_pulumi.cli.subject import SiteFile, read_subject
from harmony_pulumi.cli.terminal import Cwd, Json, Stack, console, print_json, progress, refuse

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.site import Observation, Roles
    from harmony_pulumi.cli.deployed import Database
    from harmony_pulumi.orchestration.members import Pair
    from harmony_pulumi.orchestration.preflight import Check

EPILOG = (
    "Exit status: 0, done, or it would be; also where the stack could not be told, and then what to run is shown. 1, "
    "refused, not done, or taken back: the message says how the pair was left. 2, wrong usage, or there is nothing to "
    "act on. 130, interrupted.\n\n"
    "Safe to interrupt, and to run again: Ctrl-C before the promotion puts the old primary back; what was begun and "
    "cut off is finished by the next run."
)


@dataclass(frozen=True)
class Plan:
    """What would be found and done."""

    database: str
    operation: str
    """`switchover`; where the active member does not run, `failover`; where one was left behind by that, `rejoin`."""
    active: str
    """The name of the member that is active now."""
    target: str
    """The one that is to be."""
    epoch: int
    """That it would establish."""
    unfinished: str
    """Who began an operation that has not ended; this run finishes it. Empty if there is none."""
    checks: list[Check]
    steps: list[str]

    @property
    def is_possible(self) -> bool:
        """Whether nothing stands in the way."""
        return all(check.verdict != "problem" for check in self.checks)

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.unfinished) or self.active != self.target or self.operation == "rejoin"


def plan(
    database: Name = None,
    *,
    to: To = None,
    stack: Stack = None,
    cwd: Cwd = Path(),
    site: SiteFile = None,
    as_json: Json = False,
) -> None:
    """Say what a role change would do, and whether it can be done now. Looks at the live sites; changes nothing.

    To see that the link between them works, the primary writes one record into its WAL.

    Where the active member does not run, that is a failover, and what would be lost; where a failover has left a member
    behind, how that one comes back.
    """
    chosen = pair_in(read_subject(site, cwd, stack), database)
    _, _, found = _planned(chosen, to, "")
    if as_json:
        print_json({**asdict(found), "possible": found.is_possible})
    else:
        _show(found)
    raise typer.Exit(0 if found.is_possible else 1)


def switchover(
    database: Name = None,
    *,
    to: To = None,
    stack: Stack = None,
    cwd: Cwd = Path(),
    site: SiteFile = None,
    yes: Yes = False,
) -> None:
    """Make the other member of a pair active, losing nothing; the old one follows it.

    If anything fails before the promotion, the old primary is put back. Afterwards the stack is told: its
    configuration, and the pair's resource alone. If that cannot be, the command says what to run.
    """
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.orchestration.roles import Desired
    from harmony_pulumi.orchestration.runner import active_now, reach

    if yes and to is None:
        refuse("--yes needs --to NAME: run once more by a script, `the other member` would be the old one again")
    chosen = pair_in(read_subject(site, cwd, stack), database)
    pair, role, found = _planned(chosen, to, "switchover")
    _show(found)
    if not (found.is_possible or found.unfinished):  # What is unfinished may have been seen in the middle of an act.
        raise typer.Exit(1)
    if found.is_needed and not yes:
        ask(f"Switch {pair.name} over to {found.target} now?")
    # Also where it is active already: a run before this one may have been cut off after the roles were moved.
    with acting(pair, "switchover", role, again=f"harmony switchover --to {found.target}") as (journal, by):
        try:
            reach(pair, Desired(role, found.epoch), journal, by=by)
        except SiteError:
            if active_now(pair) == role:  # The roles are moved; what failed came after.
                tell_stack(chosen, role, found.epoch, cwd, stack)
            raise
    if found.is_needed or chosen.handle["active"] != role:
        tell_stack(chosen, role, found.epoch, cwd, stack)


def events(
    database: Name = None,
    *,
    stack: Stack = None,
    cwd: Cwd = Path(),
    site: SiteFile = None,
    last: Annotated[
        int | None, typer.Option("--last", metavar="N", min=1, help="Only the newest N events; else all of them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what was done to a pair and its members, as their sites have recorded it, the oldest first."""
    from rich.table import Table

    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.orchestration.journal import in_order
    from harmony_pulumi.orchestration.pair import pair_of

    pair = pair_of(pair_in(read_subject(site, cwd, stack), database).handle)
    records: list[list[str]] = []  # What concerns both members is recorded by both.
    for member in pair.members.values():
        try:
            records.append(member.movable.events().splitlines())
        except SiteError as error:
            sys.stderr.write(f"warning: the record of {member.name} is not shown: {error}\n")
    found = [*_events(in_order(records))][-(last or 0) :]
    if as_json:
        print_json(found)
        return
    table = Table.grid(padding=(0, 2))
    for event in found:
        end = f"{event['seconds']:.1f} s" if "seconds" in event else ""
        text = f"{event['text']}: {event['error']}" if "error" in event else event["text"]
        table.add_row(event["time"][:23], event["subject"], event["operation"], event["state"], end, text)
    console().print(table)


def _events(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the events of lines; one that was cut off as its writer died is left out, and said so."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            sys.stderr.write(f"warning: a line of the record is not whole: {line[:80]}\n")


def _planned(chosen: Database, to: str | None, operation: str) -> tuple[Pair, str, Plan]:
    """Look at a pair's sites; return it, the role of the member that is to be active, and the plan.

    `operation` is which one is planned; empty for the one that is due.
    """
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.orchestration.members import look, told
    from harmony_pulumi.orchestration.pair import pair_of

    pair = pair_of(chosen.handle)
    with progress(f"asking {' and '.join(pair.names.values())}"):
        try:
            seen = look(pair)
            known = told(seen)
            return pair, *_plan(pair, known, seen, to, operation or _due(known, seen))
        except SiteError as error:
            refuse(str(error), status=1)


def _due(known: Roles | None, seen: Mapping[str, Observation]) -> str:
    """Return which operation is due, as far as that can be told from the sites."""
    if known and known["operation"]:
        return known["operation"]["kind"]
    if known and known["away"]:
        return "rejoin"
    active = seen[known["active"] if known else "primary"]
    return "switchover" if active["role"] == "primary" else "failover"


def _plan(
    pair: Pair, known: Roles | None, seen: Mapping[str, Observation], to: str | None, operation: str
) -> tuple[str, Plan]:
    from harmony_pulumi.orchestration import runner

    active, epoch = (known["active"], known["epoch"]) if known else ("primary", 0)
    role = active if operation == "rejoin" else target_of(pair, known, to)
    under_way = known["operation"] if known else None
    checks: list[Check] = []
    if operation == "rejoin":
        checks = runner.rejoin_preflight(pair, active, seen)
    elif under_way:  # What was begun is finished; it was checked as it began.
        checks, epoch = [runner.resumption(under_way, seen)], under_way["epoch"]
    elif operation == "failover":
        checks = runner.failover_preflight(pair, role, seen, runner.ANY_LOSS)
        epoch = runner.next_failover_epoch(pair, role, seen)
    elif active != role:
        checks, epoch = runner.preflight(pair, role, seen), epoch + 1
    return role, Plan(
        database=pair.name,
        operation=operation,
        active=pair.names[active],
        target=pair.names[role],
        epoch=epoch,
        unfinished=under_way["operator"] if under_way else "",
        checks=checks,
        steps=runner.steps_in_words(pair.names, role, operation),
    )


def _show(found: Plan) -> None:
    show_checks(found.checks)
    out = console()
    if found.unfinished:
        what = f"the {found.operation} to {found.target}, begun by {found.unfinished}"
        text = f"going on with {what}" if found.is_possible else f"{what}, has not ended"
        out.print(text, markup=False)
    elif not found.is_possible:
        out.print(f"refused; nothing was touched. {found.active} stays active")
    elif not found.is_needed:
        out.print(f"{found.target} is active already", markup=False)
    else:
        for number, step in enumerate(found.steps):
            out.print(f"{'  ' if number else ''}{step}", markup=False)
