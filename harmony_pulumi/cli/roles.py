"""`harmony plan`, `harmony switchover` and `harmony events`: the roles of a pair, moved from its sites alone.

Thin: what is next is decided in `orchestration`. It needs neither the stack's lock nor its backend; the stack is told
afterwards, that one resource alone, when it can be.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harmony_pulumi.cli.subject import SiteFile, Subject, read_subject
from harmony_pulumi.cli.terminal import Cwd, Json, Stack, console, print_json, progress, refuse

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.site import Roles
    from harmony_pulumi.cli.deployed import Database
    from harmony_pulumi.orchestration.preflight import Check
    from harmony_pulumi.orchestration.members import Pair

EPILOG = (
    "Exit status: 0, done, or it would be. 1, refused or not done: the message says how the pair was left. 2, wrong "
    "usage, or there is nothing to act on. 130, interrupted.\n\n"
    "Safe to interrupt, and to run again with the same --to: Ctrl-C before the promotion puts the old primary back; "
    "what was begun and cut off is finished by the next run."
)

Name = Annotated[str | None, typer.Argument(metavar="DATABASE", help="Which pair; needed if there are several.")]
To = Annotated[
    str | None,
    typer.Option("--to", metavar="NAME", help="The member that is to be active. Default: the one that is not."),
]


@dataclass(frozen=True)
class Plan:
    """What a switchover would find and do."""

    database: str
    active: str
    """The name of the member that is active now."""
    target: str
    epoch: int
    """That it would establish."""
    unfinished: str
    """Who began a switchover that has not ended; this run finishes it. Empty if there is none."""
    checks: list[Check]
    steps: list[str]

    @property
    def is_possible(self) -> bool:
        """Whether nothing stands in the way."""
        return all(check.verdict != "problem" for check in self.checks)

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.unfinished) or self.active != self.target


def plan(
    database: Name = None,
    *,
    to: To = None,
    stack: Stack = None,
    cwd: Cwd = Path(),
    site: SiteFile = None,
    as_json: Json = False,
) -> None:
    """Say what a switchover would do, and whether it can be done now. Looks at the live sites; changes nothing."""
    chosen = _pair_in(read_subject(site, cwd, stack), database)
    _, _, found = _planned(chosen, to)
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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Make the other member of a pair active, losing nothing; the old one follows it.

    If anything fails before the promotion, the old primary is put back. Afterwards the stack is told: its
    configuration, and the pair's resource alone. If that cannot be, the command says what to run.
    """
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.orchestration.journal import Journal, operator
    from harmony_pulumi.orchestration.roles import Desired
    from harmony_pulumi.orchestration.runner import active_now, reach

    if yes and to is None:
        refuse("--yes needs --to NAME: run once more by a script, `the other member` would be the old one again")
    chosen = _pair_in(read_subject(site, cwd, stack), database)
    pair, role, found = _planned(chosen, to)
    _show(found)
    if not found.is_possible:
        raise typer.Exit(1)
    if not found.is_needed:  # But a run before this one may have been cut off after the roles were moved.
        console().print(f"{found.target} is active already")
    elif not yes:
        _ask(f"Switch {pair.name} over to {found.target} now?")
    journal = Journal(pair.name, "switchover", lambda line: console().print(line, markup=False, soft_wrap=True))
    journal.write_to(pair.members[role].site.record)
    _end_like_ctrl_c(signal.SIGTERM, signal.SIGHUP)
    try:
        reach(pair, Desired(role, found.epoch), journal, by=operator("`harmony switchover`"))
    except SiteError as error:
        if active_now(pair) == role:  # The roles are moved; what failed came after.
            _tell_stack(chosen, role, found.epoch, cwd, stack)
        refuse(str(error), status=1)
    except KeyboardInterrupt:
        again = f"run `harmony switchover --to {found.target}` to finish it"
        refuse(f"interrupted: the switchover may be left open; {again}, `harmony status` to see how it is", status=130)
    if found.is_needed or chosen.handle["active"] != role:
        _tell_stack(chosen, role, found.epoch, cwd, stack)


def events(
    database: Name = None,
    *,
    stack: Stack = None,
    cwd: Cwd = Path(),
    site: SiteFile = None,
    as_json: Json = False,
) -> None:
    """Show what was done to a pair and its members, as their sites have recorded it, the oldest first."""
    from rich.table import Table

    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.orchestration.pair import pair_of

    pair = pair_of(_pair_in(read_subject(site, cwd, stack), database).handle)
    lines: dict[str, None] = {}  # What concerns both members is recorded by both.
    for member in pair.members.values():
        try:
            lines |= dict.fromkeys(member.movable.events().splitlines())
        except SiteError as error:
            sys.stderr.write(f"warning: the record of {member.name} is not shown: {error}\n")
    found: list[dict[str, Any]] = sorted((json.loads(line) for line in lines), key=lambda event: event["time"])
    if as_json:
        print_json(found)
        return
    table = Table.grid(padding=(0, 2))
    for event in found:
        end = f"{event['seconds']:.1f} s" if "seconds" in event else ""
        text = f"{event['text']}: {event['error']}" if "error" in event else event["text"]
        table.add_row(event["time"][:23], event["subject"], event["operation"], event["state"], end, text)
    console().print(table)


def _pair_in(subject: Subject, name: str | None) -> Database:
    """Return the pair to act on, or end with a plain message."""
    from harmony_pulumi.orchestration.pair import has_roles

    pairs = [d for d in subject.databases if d.is_group and has_roles(d.handle)]
    wanted = [d for d in pairs if name in (None, d.name)]
    known = ", ".join(d.name for d in pairs) or "none"
    if not wanted:
        refuse(f"there is no pair {name or ''} whose roles could be moved; there are: {known}".replace("  ", " "))
    if len(wanted) > 1:
        refuse(f"there are several pairs; name one: {known}")
    return wanted[0]


def _planned(chosen: Database, to: str | None) -> tuple[Pair, str, Plan]:
    """Look at a pair's sites; return it, the role of the member that is to be active, and the plan."""
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.orchestration.members import look, told
    from harmony_pulumi.orchestration.pair import pair_of
    from harmony_pulumi.orchestration.runner import preflight, steps_in_words

    pair = pair_of(chosen.handle)
    with progress(f"asking {' and '.join(pair.names.values())}"):
        try:
            seen = look(pair)
            known = told(seen)
            role = _target(pair, known, to)
            under_way = known["operation"] if known else None
            # What was begun is finished; it was checked as it began.
            checks = [] if under_way else preflight(pair, role, seen)
        except SiteError as error:
            refuse(str(error), status=1)
    active = known["active"] if known else "primary"
    epoch = (known["epoch"] if known else 0) + 1
    if not under_way and active == role:
        checks, epoch = [], epoch - 1
    return (
        pair,
        role,
        Plan(
            database=pair.name,
            active=pair.names[active],
            target=pair.names[role],
            epoch=under_way["epoch"] if under_way else epoch,
            unfinished=under_way["operator"] if under_way else "",
            checks=checks,
            steps=steps_in_words(pair.names, role),
        ),
    )


def _target(pair: Pair, known: Roles | None, to: str | None) -> str:
    by_name = {name: role for role, name in pair.names.items()}
    if to is not None:
        if to not in by_name:
            refuse(f"{pair.name} has no member {to!r}; its members are {', '.join(by_name)}")
        return by_name[to]
    if known and known["operation"]:
        return known["operation"]["target"]
    active = known["active"] if known else "primary"
    return next(role for role in pair.members if role != active)


def _show(found: Plan) -> None:
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}
    out = console()
    grid = Table.grid(padding=(0, 1))
    for check in found.checks:
        grid.add_row(Text(*marks[check.verdict]), Text(check.name, "bold"), Text(check.found))
    out.print(grid)
    if found.unfinished:
        out.print(f"going on with the switchover to {found.target}, begun by {found.unfinished}", markup=False)
    elif not found.is_possible:
        out.print(f"refused; nothing was touched. {found.active} stays active")
    elif found.is_needed:
        for number, step in enumerate(found.steps):
            out.print(f"{'  ' if number else ''}{step}", markup=False)


def _end_like_ctrl_c(*signals: signal.Signals) -> None:
    """Have these signals interrupt as Ctrl-C does, so that the old primary is put back then, too."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, interrupt)


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        refuse("nobody is there to be asked: add --yes")
    if not typer.confirm(question):
        refuse("not confirmed: nothing was done", status=1)


def _tell_stack(chosen: Database, role: str, epoch: int, cwd: Path, stack: str | None) -> None:
    """Have the stack know what was done: its configuration, then the pair's resource alone."""
    from harmony_pulumi.cli.stack import run_pulumi

    if not chosen.urn:
        text = f"The stack was not told. In its folder:{_by_hand('PAIR', role, epoch)}"
        console().print(text, markup=False, soft_wrap=True)
        return
    if chosen.handle.get("active_from") == "program":
        text = f'The program says who is active: write active=Active("{role}", epoch={epoch}) there, then `pulumi up`'
        console().print(text, markup=False)
        return
    resource = chosen.urn.rpartition("::")[2]
    key = f'harmony:active["{resource}"]'
    values = [f"{key}.member={role}", f"{key}.epoch={epoch}"]
    commands = (
        ["config", "set-all", "--path", *(word for value in values for word in ("--plaintext", value))],
        ["up", "--yes", "--skip-preview", "--non-interactive", "--target", chosen.urn],
    )
    with progress("telling the stack"):
        for command in commands:
            if problem := run_pulumi([*command, *(["--stack", stack] if stack else [])], cwd.resolve()):
                break
        else:
            problem = ""
    if problem:
        text = f"The roles are moved, and the stack was not told: {problem}\nRun, in its folder:"
        console().print(text + _by_hand(resource, role, epoch), markup=False, soft_wrap=True)
    else:
        console().print(f"The stack knows: {key} is {role} at epoch {epoch}", markup=False)


def _by_hand(resource: str, role: str, epoch: int) -> str:
    key = f'harmony:active["{resource}"]'
    commands = (f"config set --path '{key}.member' {role}", f"config set --path '{key}.epoch' {epoch}", "up")
    return "".join(f"\n  pulumi {command}" for command in commands)
