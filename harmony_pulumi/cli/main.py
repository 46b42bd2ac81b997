"""The `harmony` command. Knows its commands and nothing else: each loads what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from harmony_pulumi.cli import certificates, doctor, graph, recovery, roles, start, status

app = typer.Typer(
    name="harmony",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # Locals may hold secrets.
    add_completion=True,
)


def _version(wanted: bool) -> None:  # noqa: FBT001 -- as Typer calls it.
    if wanted:
        from importlib.metadata import version

        typer.echo(version("harmony-pulumi"))
        raise typer.Exit


@app.callback()
def harmony(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Look at what harmony_pulumi has deployed, move the roles of pairs, renew certificates, start servers at boot.

    The commands `status`, `doctor`, `graph`, `plan` and `events` change nothing.

    Something is wrong? Start with `harmony status`. Nothing works? Start with `harmony doctor`.
    """


app.command(epilog=status.EPILOG)(status.status)
app.command(epilog=doctor.EPILOG)(doctor.doctor)
app.command(epilog=graph.EPILOG)(graph.graph)
app.command(epilog=roles.EPILOG)(roles.plan)
app.command(epilog=roles.EPILOG)(roles.switchover)
app.command(epilog=roles.EPILOG)(recovery.failover)
app.command(epilog=roles.EPILOG)(recovery.rejoin)
app.command(epilog=roles.EPILOG)(recovery.revert)
app.command(epilog=roles.EPILOG)(recovery.accept)
app.command(epilog=roles.EPILOG)(roles.events)
app.command(epilog=certificates.EPILOG)(certificates.rotate_certificates)
app.command(epilog=start.EPILOG)(start.start)
