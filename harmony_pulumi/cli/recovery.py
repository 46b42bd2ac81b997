"""`harmony failover`, `rejoin`, `revert` and `accept`: a pair after its primary was lost. Thin, as `cli.roles`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harmony_pulumi.cli.operating import Name, To, Yes, acting, ask, pair_in, show_checks, target_of, tell_stack
from harmony_pulumi.cli.subject import SiteFile, read_subject
from harmony_pulumi.cli.terminal import Cwd, Stack, console, progress, refuse


def failover(
    database: Name = None,
    *,
    max_data_loss: Annotated[
        int,
        typer.Option(
            "--max-data-loss",
            metavar="BYTES",
            min=0,
            help="How much of the old primary's WAL may be lost, as far as it is known.",
        ),
    ],
    accept_unknown_loss: Annotated[
        bool,
        typer.Option(
            "--accept-unknown-loss",
            help="Go on although commits may be lost that nobody knows of. Not needed if the pair is synchronous, or "
            "if the old primary's WAL can be read.",
        ),
    ] = False,
    fenced_by_me: Annotated[
        list[str] | None,
        typer.Option(
            "--fenced-by-me",
            metavar="NAME",
            help="The old primary, if it cannot be asked: you have made certain that it accepts no writes. In a pair "
            "of pairs, also those of the other pair; once for each.",
        ),
    ] = None,
    to: To = None,
    stack: Stack = None,
    cwd: Cwd = Path(),
    site: SiteFile = None,
    yes: Yes = False,
) -> None:
    """Make the other member active because the active one is dead or cannot be reached. May lose commits.

    Refused where more may be lost than you accept, and where the old primary may still accept writes. The old primary
    stays marked until `harmony rejoin`.
    """
    from harmony_pulumi.capabilities.site import Terms
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.orchestration.members import follows, look, other_than, told
    from harmony_pulumi.orchestration.pair import followed_by, pair_of
    from harmony_pulumi.orchestration.runner import (
        fail_over,
        failover_preflight,
        steps_in_words,
        succession_checks,
        take_the_lead,
    )

    chosen = pair_in(read_subject(site, cwd, stack), database)
    pair = pair_of(chosen.handle)
    with progress(f"asking {' and '.join(pair.names.values())}"):
        seen = look(pair)
        known = told(seen)
        # Run once more, it finishes what it began, rather than to begin with the one that was left behind.
        done = pair.names[known["active"]] if known and known["away"] else None
        role = target_of(pair, known, to or done)
        source, name = pair.names[other_than(pair, role)], pair.names[role]
        vouched = fenced_by_me or []
        others = [name for name in vouched if name != source]
        if others and not (known and known["outer"]):
            names = " and ".join(others)
            refuse(f"--fenced-by-me {names}: the member to be fenced is {source}; nothing was touched")
        fenced = f"--fenced-by-me {source}: an operator vouches for it" if source in vouched else ""
        terms = Terms(max_data_loss=max_data_loss, accept_unknown_loss=accept_unknown_loss, fenced=fenced)
        is_done = known and known["active"] == role and not known["operation"] and seen[role]["role"] == "primary"
        leader = followed_by(known, chosen.outermost) if chosen.outermost and follows(pair, known) else None
        try:
            if leader:
                checks = succession_checks(pair, leader, role, seen, terms)
            else:
                checks = [] if is_done else failover_preflight(pair, role, seen, terms, vouched)
        except SiteError as error:
            refuse(str(error), status=1)
    show_checks(checks)
    if not (yes or is_done) and all(check.verdict != "problem" for check in checks):
        steps = [f"{name} is to follow {leader.name} directly"] if leader else []
        for number, step in enumerate(steps or steps_in_words(pair.names, role, "failover")[1:]):
            console().print(f"{'  ' if number else ''}{step}", markup=False)
        ask(f"Fail {pair.name} over to {name} now?")
    which = f" {chosen.name}" if chosen.around else ""
    again = f"harmony failover{which} --to {name} --max-data-loss {max_data_loss}"
    again += " --accept-unknown-loss" if accept_unknown_loss else ""
    again += "".join(f" --fenced-by-me {name}" for name in vouched)
    if is_done and not pair.endpoints:  # Nothing is to be locked for that: the stack may be to be told.
        assert known is not None, "it knows who is active"
        console().print(f"{name} is active already")
        epoch = known["epoch"]
    else:
        with acting(pair, "failover", role, again=again) as (journal, by):
            epoch = (
                take_the_lead(pair, leader, role, terms, journal, by=by)
                if leader
                else fail_over(pair, role, terms, journal, by=by, vouched=vouched)
            )
    if not is_done or chosen.handle["active"] != role:  # A run before this one may not have come to say so.
        tell_stack(chosen, role, epoch, cwd, stack)


def rejoin(
    database: Name = None,
    *,
    stack: Stack = None,
    cwd: Cwd = Path(),
    site: SiteFile = None,
    yes: Yes = False,
) -> None:
    """Have the member that a failover left behind, or that cannot follow any more, follow the active one again.

    What it alone has is put aside, and its transactions are listed; then it is rewound, or else copied anew and its old
    data kept. Moves no role.
    """
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.orchestration.members import look, told
    from harmony_pulumi.orchestration.pair import pair_of
    from harmony_pulumi.orchestration.runner import bring_back, rejoin_preflight, settle

    chosen = pair_in(read_subject(site, cwd, stack), database)
    pair = pair_of(chosen.handle)
    with progress(f"asking {' and '.join(pair.names.values())}"):
        seen = look(pair)
        known = told(seen)
        active = known["active"] if known else "primary"
        try:
            checks = rejoin_preflight(pair, active, seen)
        except SiteError as error:
            refuse(str(error), status=1)
    show_checks(checks)
    if any(check.verdict == "problem" for check in checks):
        raise typer.Exit(1)
    if not yes:
        ask(f"Have the other member of {pair.name} follow {pair.names[active]} now?")
    with acting(pair, "rejoin", active, again="harmony rejoin") as (journal, by):
        bring_back(pair, journal, by=by)
        settle(pair, active, journal, by=by)
    tell_stack(chosen, active, known["epoch"] if known else 0, cwd, stack)


def revert(
    database: Name = None,
    *,
    stack: Stack = None,
    cwd: Cwd = Path(),
    site: SiteFile = None,
    yes: Yes = False,
) -> None:
    """Bring back the roles that a pair was deployed with: a rejoin if one is due, then a switchover.

    Afterwards every field of the pair is compared with what it was before, and what differs is shown.
    """
    from rich.table import Table

    from harmony_pulumi.orchestration.pair import pair_of
    from harmony_pulumi.orchestration.runner import ORIGINAL
    from harmony_pulumi.orchestration.runner import revert as bring_back_the_roles

    chosen = pair_in(read_subject(site, cwd, stack), database)
    pair = pair_of(chosen.handle)
    if not yes:
        ask(f"Bring {pair.name} back to {pair.names[ORIGINAL]} as its active member now?")
    with acting(pair, "revert", ORIGINAL, again="harmony revert") as (journal, by):
        desired, found = bring_back_the_roles(pair, journal, by=by)
    table = Table.grid(padding=(0, 2))
    changed = [field for field in found if not field.is_equal]
    for field in changed:
        mark = "moves on" if field.is_expected else "differs"
        table.add_row(field.field, mark, field.before, field.after)
    console().print(table)
    console().print(f"{len(found) - len(changed)} of {len(found)} fields are as they were")
    tell_stack(chosen, desired.active, desired.epoch, cwd, stack)
    if not all(field.is_expected for field in found):
        raise typer.Exit(1)


def accept(
    database: Name = None,
    *,
    stack: Stack = None,
    cwd: Cwd = Path(),
    site: SiteFile = None,
    yes: Yes = False,
) -> None:
    """Take the member that accepts writes as the active one, after somebody promoted it by hand. Moves no role.

    Every member must answer, and exactly one accept writes.
    """
    from harmony_pulumi.orchestration.members import look
    from harmony_pulumi.orchestration.pair import pair_of
    from harmony_pulumi.orchestration.runner import take_as_it_is

    chosen = pair_in(read_subject(site, cwd, stack), database)
    pair = pair_of(chosen.handle)
    with progress(f"asking {' and '.join(pair.names.values())}"):
        leaders = [role for role, seen in look(pair).items() if seen["role"] == "primary"]
    if not yes and len(leaders) == 1:
        ask(f"Take {pair.names[leaders[0]]} as the active member of {pair.name}?")
    at = leaders[0] if leaders else "primary"
    with acting(pair, "accept", at, again="harmony accept") as (journal, by):
        desired = take_as_it_is(pair, journal, by=by)
    tell_stack(chosen, desired.active, desired.epoch, cwd, stack)
