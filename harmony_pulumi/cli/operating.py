"""What the commands that move roles share: which pair, what was found, asking, running, telling the stack. Thin."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony_pulumi.cli.subject import Subject
from harmony_pulumi.cli.terminal import console, progress, refuse

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.site import Roles
    from harmony_pulumi.cli.deployed import Database
    from harmony_pulumi.orchestration.journal import Journal
    from harmony_pulumi.orchestration.members import Pair
    from harmony_pulumi.orchestration.preflight import Check

Name = Annotated[str | None, typer.Argument(metavar="DATABASE", help="Which pair; needed if there are several.")]
To = Annotated[
    str | None,
    typer.Option("--to", metavar="NAME", help="The member that is to be active. Default: the one that is not."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def pair_in(subject: Subject, name: str | None) -> Database:
    """Return the pair to act on, or end with a plain message."""
    from harmony_pulumi.orchestration.pair import has_roles

    pairs = [d for d in subject.databases if d.is_group and has_roles(d.handle)]
    inside = [inner for d in pairs for inner in d.inside]
    wanted = [d for d in pairs if name in (None, d.name)] or [d for d in inside if name == d.name]
    known = ", ".join(d.name for d in (*pairs, *inside)) or "none"
    if not wanted:
        refuse(f"there is no pair {name or ''} whose roles could be moved; there are: {known}".replace("  ", " "))
    if len(wanted) > 1:
        refuse(f"there are several pairs; name one: {known}")
    return wanted[0]


def target_of(pair: Pair, known: Roles | None, to: str | None) -> str:
    """Return the role of the member that is to be active: the one that is named, else the one that is not active."""
    by_name = {name: role for role, name in pair.names.items()}
    if to is not None:
        if to not in by_name:
            members = ", ".join(f"{name} (the {role})" for name, role in by_name.items())
            refuse(f"{pair.name} has no member {to!r}; its members are {members}")
        return by_name[to]
    if known and known["operation"]:
        return known["operation"]["target"]
    active = known["active"] if known else "primary"
    return next(role for role in pair.members if role != active)


def show_checks(found: Sequence[Check]) -> None:
    """Show what was looked at."""
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}
    grid = Table.grid(padding=(0, 1))
    for check in found:
        grid.add_row(Text(*marks[check.verdict]), Text(check.name, "bold"), Text(check.found))
    console().print(grid)


@contextmanager
def acting(pair: Pair, operation: str, at: str, *, again: str) -> Generator[tuple[Journal, str]]:
    """Give the journal of an operation and who does it; end with a plain message if it is refused or interrupted.

    Args:
        pair: that it acts on.
        operation: its name.
        at: the role of the member whose site keeps the record.
        again: the command that finishes what is left open.
    """
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.orchestration.journal import Journal, operator

    journal = Journal(pair.name, operation, lambda line: console().print(line, markup=False, soft_wrap=True))
    journal.write_to(pair.members[at].site.record)
    _end_like_ctrl_c(signal.SIGTERM, signal.SIGHUP)
    try:
        yield journal, operator(f"`harmony {operation}`")
    except SiteError as error:
        refuse(str(error), status=1)
    except KeyboardInterrupt:
        text = f"interrupted: the {operation} may be left open; run `{again}` to finish it, `harmony status` to see how"
        refuse(f"{text} it is", status=130)


def _end_like_ctrl_c(*signals: signal.Signals) -> None:
    """Have these signals interrupt as Ctrl-C does, so that the old primary is put back then, too."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, interrupt)


def ask(question: str) -> None:
    """Ask before data is put at risk, or end."""
    if not sys.stdin.isatty():
        refuse("nobody is there to be asked: add --yes")
    if not typer.confirm(question):
        refuse("not confirmed: nothing was done", status=1)


def tell_stack(chosen: Database, role: str, epoch: int, cwd: Path, stack: str | None) -> None:
    """Have the stack know what was done: its configuration, then the pair's resource alone."""
    from harmony_pulumi.cli.stack import run_pulumi

    if not epoch:  # Nothing was ever moved: without a word, the stack says so, too.
        return
    if not chosen.urn:
        resource = str(chosen.handle["pair"]).rpartition("/")[2]
        text = f"The stack was not told. In its folder:{_by_hand(resource, role, epoch)}"
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
        [
            *("up", "--yes", "--skip-preview", "--non-interactive", "--target", chosen.urn),
            # The pair around it follows its new leader. Nothing else of the stack is changed.
            *(word for urn in chosen.around for word in ("--target", urn)),
        ],
    )
    problem, interrupted = "", False
    with progress("telling the stack"):
        try:
            for command in commands:
                if problem := run_pulumi([*command, *(["--stack", stack] if stack else [])], cwd.resolve()):
                    break
        except KeyboardInterrupt:
            problem, interrupted = "interrupted", True
    if problem:
        text = f"The roles are moved, and the stack was not told: {problem}\nRun, in its folder:"
        console().print(text + _by_hand(resource, role, epoch), markup=False, soft_wrap=True)
        if interrupted:
            raise typer.Exit(130)
    else:
        console().print(f"The stack knows: {key} is {role} at epoch {epoch}", markup=False)


def _by_hand(resource: str, role: str, epoch: int) -> str:
    key = f'harmony:active["{resource}"]'
    commands = (f"config set --path '{key}.member' {role}", f"config set --path '{key}.epoch' {epoch}", "up")
    return "".join(f"\n  pulumi {command}" for command in commands)
