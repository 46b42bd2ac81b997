"""`harmony rotate-certificates`: new certificates for a database's servers, from their sites alone.

Thin: what is next is decided in `orchestration`. It needs neither the stack's lock nor its backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harmony_pulumi.cli.operating import Yes, acting, ask
from harmony_pulumi.cli.subject import SiteFile, Subject, read_subject
from harmony_pulumi.cli.terminal import Cwd, Stack, console, refuse

if TYPE_CHECKING:
    from harmony_pulumi.orchestration.members import Pair

EPILOG = (
    "Exit status: 0, done. 1, refused or not ended: the message says why; what is old is then still trusted. 2, wrong "
    "usage, or there is nothing to act on. 130, interrupted.\n\n"
    "Safe to interrupt, and to run again: what was begun and cut off is finished by the next run."
)
_DEADLINE = 60.0


def rotate_certificates(
    database: Annotated[
        str | None, typer.Argument(metavar="DATABASE", help="Which one; needed if there are several.")
    ] = None,
    *,
    authority: Annotated[
        bool,
        typer.Option(
            "--authority",
            help="Replace the authority (CA) of each server, too. Clients that have the old one are still served, and "
            "need the new one before the old one expires.",
        ),
    ] = False,
    stack: Stack = None,
    cwd: Cwd = Path(),
    site: SiteFile = None,
    yes: Yes = False,
) -> None:
    """Renew the certificates of every server of a database, while clients and replication go on.

    Servers reload; the standby connects anew once. Clients need to do nothing. Afterwards the command says what to run
    so that the stack knows.
    """
    from harmony_pulumi.orchestration.rotation import new_rotation, rotate, rotation_in_words

    pair = _chosen(read_subject(site, cwd, stack), database)
    if not yes:
        for line in rotation_in_words(pair.names, authority=authority):
            console().print(line, markup=False)
        ask(f"Rotate the certificates of {pair.name} now?")
    again = f"harmony rotate-certificates{' --authority' if authority else ''}"
    with acting(pair, "rotate-certificates", next(iter(pair.members)), again=again) as (journal, by):
        ended = rotate(pair, new_rotation(by, authority=authority), journal, by=by)
    console().print("Now have the stack know, in its folder:\n  pulumi refresh\n  pulumi up", markup=False)
    raise typer.Exit(0 if ended else 1)


def _chosen(subject: Subject, name: str | None) -> Pair:
    """Return the database to act on, a lone server as a pair of one; or end with a plain message."""
    from harmony_pulumi.orchestration.members import Pair
    from harmony_pulumi.orchestration.pair import pair_of, rotates
    from harmony_pulumi.orchestration.replication import members_of

    known = [d for d in subject.databases if not d.is_group or rotates(d.handle)]
    wanted = [d for d in known if name in (None, d.name)]
    names = ", ".join(d.name for d in known) or "none"
    if not wanted:
        refuse(f"there is no database {name or ''} whose certificates could be rotated; there are: {names}")
    if len(wanted) > 1:
        refuse(f"there are several databases; name one: {names}")
    handle = wanted[0].handle
    if wanted[0].is_group:
        return pair_of(handle)
    return Pair("", wanted[0].name, members_of({"server": handle}), synchronous=False, deadline=_DEADLINE)
