"""`harmony doctor`: gathers facts about this machine, and has `checks` judge them. Thin."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from harmony_pulumi.cli.terminal import Json, console, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from harmony_pulumi.cli.checks import Check
    from harmony_pulumi.hosts.connection import Connection

EPILOG = (
    "Exit status: 0, a database can be deployed on this machine. 1, something that is needed is missing (✗). 2, wrong "
    "usage. Warnings (!) leave it at 0.\n\n"
    'With --json: {"schema": 1, "ok": true, "checks": [{"name", "status", "found", "remedy"}, ...]}, where status is '
    '"ok", "warning" or "missing".'
)

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "missing": ("✗", "red")}
_USER = "postgres"
"""What `LinuxHostTopology` takes unless told otherwise."""
_PLUGINS = ("pulumi-language-python", "pulumi-language-python-exec", "pulumi-resource-pulumi-python")


def doctor(*, as_json: Json = False) -> None:
    """Check what a deployment on this machine needs, and say what to do about what is missing.

    Changes nothing.
    """
    found = list(examine())
    ok = all(check.status != "missing" for check in found)
    if as_json:
        print_json({"schema": 1, "ok": ok, "checks": [asdict(check) for check in found]})
    else:
        console().print(_table(found))
    raise typer.Exit(0 if ok else 1)


def examine() -> Iterator[Check]:
    """Iterate over the checks of this machine."""
    from harmony_pulumi.cli import checks

    yield checks.python(sys.version_info[:3])
    pulumi = shutil.which("pulumi")
    yield checks.pulumi(pulumi, _first_line([pulumi, "version"]) if pulumi else "")
    yield checks.language_plugin({name: _plugin(name, pulumi) for name in _PLUGINS})
    yield checks.backend(_backend())
    setpriv = shutil.which("setpriv")
    yield checks.runner(setpriv)
    yield from _of_host(runs=setpriv is not None)
    psql = shutil.which("psql")
    yield checks.client(psql, _first_line([psql, "--version"]) if psql else "")
    yield _tls()


def _of_host(*, runs: bool) -> Iterator[Check]:
    """Iterate over the checks that ask the host as a deployment does: with its own commands."""
    from harmony_pulumi.cli import checks
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.hosts.connection import LocalConnection, machine_id

    connection = LocalConnection()
    asked: dict[str, Callable[[Connection], Check]] = {
        "PostgreSQL": _postgresql,
        "OS user": _os_user,
        "data folder": _base_folder,
        "ports": _ports,
        "certificates": _certificates,
    }
    for name, ask in asked.items():
        try:
            yield ask(connection) if runs else checks.unchecked(name, "there is no setpriv")
        except SiteError as error:
            yield checks.unchecked(name, str(error))
    try:
        yield checks.machine_id(machine_id(), "")
    except SiteError as error:
        yield checks.machine_id("", str(error))


def _postgresql(connection: Connection) -> Check:
    from harmony_pulumi.cli import checks
    from harmony_pulumi.hosts.postgresql.server import installed

    return checks.postgresql([(binaries.path, binaries.version) for binaries in installed(connection)])


def _os_user(connection: Connection) -> Check:
    from harmony_pulumi.cli import checks
    from harmony_pulumi.hosts.postgresql.home import os_user

    user = os_user(connection, {"user": _USER})
    exists = connection.run(["id", "-u", user]).status == 0
    return checks.os_user(user, exists=exists, is_root=connection.is_root())


def _base_folder(connection: Connection) -> Check:
    from harmony_pulumi.cli import checks
    from harmony_pulumi.hosts.postgresql.home import base_folder, os_user
    from harmony_pulumi.hosts.postgresql.inspection import room_problems

    # What a new server's folder would meet: the folders above it are made as the login user.
    folder = base_folder(connection)
    problems = room_problems(connection, f"{folder}/project", os_user(connection, {"user": _USER}))
    there = next(parent for parent in (Path(folder), *Path(folder).parents) if parent.exists())
    return checks.base_folder(folder, shutil.disk_usage(there).free, [message for _, message in problems])


def _ports(connection: Connection) -> Check:
    from harmony_pulumi.cli import checks
    from harmony_pulumi.hosts.postgresql.home import listening_ports

    return checks.ports(listening_ports(connection))


def _certificates(_connection: Connection) -> Check:
    from harmony_pulumi.cli import checks
    from harmony_pulumi.hosts.postgresql.boot import roots_below_base

    return checks.certificates({root: [*_certificate_problems(root)] for root in roots_below_base()})


def _certificate_problems(root: str) -> Iterator[str]:
    """Iterate over what is wrong with the certificates of a server; of one that cannot be looked at, why not."""
    from harmony_pulumi.cli.report import certificate_problems, certificates_of
    from harmony_pulumi.errors import SiteError
    from harmony_pulumi.hosts.postgresql.boot import Home
    from harmony_pulumi.hosts.postgresql.site import HostPostgreSQL

    try:
        seen = HostPostgreSQL.from_handle(Home.at(root).sites["site"]).observe()
    except SiteError as error:
        yield f"not checked: {error}"
        return
    for _, words in certificate_problems(certificates_of(seen, datetime.now(UTC)), seen["flaws"]):
        yield words


def _tls() -> Check:
    import cryptography
    from cryptography.hazmat.backends.openssl.backend import backend

    from harmony_pulumi.cli import checks

    return checks.tls(cryptography.__version__, backend.openssl_version_text(), tls13=ssl.HAS_TLSv1_3)


def _first_line(argv: list[str]) -> str:
    """Return the first line that a program says, or nothing if it fails."""
    environment = {**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().partition("\n")[0] if done.returncode == 0 else ""


def _plugin(name: str, pulumi: str | None) -> str | None:
    """Return where Pulumi finds one of its programs: on PATH, or beside itself."""
    beside = str(Path(pulumi).resolve().parent) if pulumi else None
    return shutil.which(name) or (shutil.which(name, path=beside) if beside else None)


def _backend() -> str | None:
    """Return the url of the backend: as Pulumi looks for it, but for a project's own."""
    if url := os.environ.get("PULUMI_BACKEND_URL"):
        return url
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    try:
        current = json.loads((home / "credentials.json").read_text()).get("current")
    except (OSError, ValueError, AttributeError):
        current = None
    return current or ("https://api.pulumi.com" if os.environ.get("PULUMI_ACCESS_TOKEN") else None)


def _table(found: list[Check]) -> Table:
    from rich.table import Table
    from rich.text import Text

    # A remedy has a line of its own: it is there to be copied, and a narrow column would cut it up.
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in ("mark", "name", "found"):
        table.add_column(overflow="fold")
    for check in found:
        mark, style = _MARKS[check.status]
        table.add_row(Text(mark, style), Text(check.name, "bold"), Text(check.found))
        if check.remedy:
            table.add_row("", "", Text(f"-> {check.remedy}", style))
    return table
