"""What `harmony doctor` thinks of what it found. Pure: facts in, findings out; `doctor` gathers the facts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harmony_pulumi.capabilities.postgresql_facts import SUPPORTED_MAJORS
from harmony_pulumi.errors import counted

LEAST_PYTHON = (3, 11)
LEAST_PULUMI = (3, 259, 0)
LEAST_LIBPQ = 10
"""The first that takes several hosts and `target_session_attrs`: PostgreSQL 10, release notes."""
FIRST_PORT = 5432

Status = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Check:
    """One prerequisite."""

    name: str
    status: Status
    """`missing`: nothing can be deployed without it. `warning`: something else will not work."""
    found: str
    remedy: str = ""
    """What to do; empty if it is as it should be."""


def python(version: Sequence[int]) -> Check:
    """Judge the Python that runs this."""
    found = ".".join(map(str, version[:3]))
    if tuple(version[:2]) >= LEAST_PYTHON:
        return Check("Python", "ok", found)
    remedy = "install Python 3.11 or newer with its venv module (Debian: apt-get install python3 python3-venv)"
    return Check("Python", "missing", found, remedy)


def pulumi(path: str | None, version: str) -> Check:
    """Judge the Pulumi command: where it is, and what `pulumi version` says."""
    install = "curl -fsSL https://get.pulumi.com | sh, then put ~/.pulumi/bin on PATH"
    if path is None:
        return Check("Pulumi", "missing", "no pulumi on PATH", install)
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    if len(numbers) < 3:
        said = version or "nothing"
        return Check("Pulumi", "missing", f"{path}, but `pulumi version` says {said}", f"install it anew: {install}")
    if numbers < LEAST_PULUMI:
        least = ".".join(map(str, LEAST_PULUMI))
        return Check("Pulumi", "missing", f"{version} in {path}", f"at least {least} is needed: {install}")
    return Check("Pulumi", "ok", f"{version} in {path}")


def language_plugin(programs: Mapping[str, str | None]) -> Check:
    """Judge Pulumi's Python plugins: where each program is."""
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        remedy = "they come with Pulumi's own installation; install that, or put their folder on PATH"
        return Check("Pulumi's Python plugins", "missing", f"no {', no '.join(missing)}", remedy)
    folders = sorted({str(path).rpartition("/")[0] for path in programs.values()})
    return Check("Pulumi's Python plugins", "ok", f"in {', '.join(folders)}")


def backend(url: str | None) -> Check:
    """Judge where Pulumi keeps its states."""
    if url:
        return Check("Pulumi's backend", "ok", re.sub(r"//[^/@]*@", "//", url))  # A url may hold a password.
    remedy = "`pulumi login --local` keeps states on this machine, `pulumi login` in Pulumi Cloud"
    return Check("Pulumi's backend", "warning", "not logged in", remedy)


def runner(path: str | None) -> Check:
    """Judge setpriv, by which programs are run as another user and end with their parent."""
    if path:
        return Check("setpriv", "ok", path)
    return Check("setpriv", "missing", "not on PATH", "install util-linux (Debian: apt-get install util-linux)")


def postgresql(installed: Sequence[tuple[str, str]]) -> Check:
    """Judge the installed servers: the folder and the version of each."""
    first, last = min(SUPPORTED_MAJORS), max(SUPPORTED_MAJORS)
    texts = [
        f"{version} in {folder}" + ("" if _major(version) in SUPPORTED_MAJORS else " (not supported)")
        for folder, version in installed
    ]
    if any(_major(version) in SUPPORTED_MAJORS for _, version in installed):
        return Check("PostgreSQL", "ok", "\n".join(texts))
    remedy = (
        f"install a PostgreSQL server from {first} to {last} (Debian: apt-get install postgresql), or put its bin "
        f"folder on PATH"
    )
    return Check("PostgreSQL", "missing", "\n".join(texts) or "no server with all its programs", remedy)


def os_user(user: str, *, exists: bool, is_root: bool) -> Check:
    """Judge the OS user that runs servers."""
    if not is_root:
        return Check("OS user", "ok", f"{user}: servers run as you")
    if exists:
        return Check("OS user", "ok", f"{user}: servers run as it, since you are root")
    remedy = (
        f"PostgreSQL refuses to run as root: useradd --system {user}, or name another with LinuxHostTopology(user=...)"
    )
    return Check("OS user", "missing", f"no user {user}", remedy)


def machine_id(identifier: str, problem: str) -> Check:
    """Judge this machine's identity: what it is, or why it has none."""
    if identifier:
        return Check("machine-id", "ok", identifier)
    return Check("machine-id", "missing", problem, "systemd-machine-id-setup")


def base_folder(path: str, free_bytes: int, problems: Sequence[str]) -> Check:
    """Judge the folder below which servers keep their data: the room there, and what is wrong with it."""
    if problems:
        remedy = "make it writable and roomy, or give PostgreSQLConfig(directory=...) for each member"
        return Check("data folder", "missing", "; ".join(problems), remedy)
    return Check("data folder", "ok", f"{path}, {free_bytes / 2**30:.1f} GB free")


def client(path: str | None, version: str) -> Check:
    """Judge psql, and with it libpq: where it is, and what `psql --version` says."""
    remedy = "only to connect by hand: install a PostgreSQL client (Debian: apt-get install postgresql-client)"
    if path is None:
        return Check("psql and libpq", "warning", "no psql on PATH", remedy)
    number = re.search(r"\d+[\w.]*", version)
    if number is None or _major(number[0]) < LEAST_LIBPQ:
        remedy += f", {LEAST_LIBPQ} or newer, which finds the active member among several hosts"
        return Check("psql and libpq", "warning", f"{path}, which says {version or 'nothing'}", remedy)
    return Check("psql and libpq", "ok", f"{number[0]} in {path}")


def tls(cryptography: str, openssl: str, *, tls13: bool) -> Check:
    """Judge what makes certificates, and whether it is of an age that knows TLS 1.3."""
    found = f"cryptography {cryptography}, {openssl}"
    if tls13:
        return Check("TLS", "ok", found)
    remedy = "OpenSSL 1.1.1 or newer is needed for TLS 1.3: update this system, or this Python"
    return Check("TLS", "warning", found, remedy)


def ports(listening: Collection[int]) -> Check:
    """Judge the TCP ports: which one the next server gets, and which are taken before it."""
    free = next((port for port in range(FIRST_PORT, 65536) if port not in listening), None)
    if free is None:
        return Check("ports", "missing", f"all from {FIRST_PORT} on are taken", "end what listens there")
    taken = f"; {FIRST_PORT} to {free - 1} taken" if free - FIRST_PORT > 1 else f"; {FIRST_PORT} taken"
    return Check("ports", "ok", f"{free} is free" + (taken if free > FIRST_PORT else ""))


def certificates(servers: Mapping[str, Sequence[str]]) -> Check:
    """Judge the certificates of the servers that were deployed on this host: what is wrong, by their folders."""
    found = [f"{root}: {words}" for root, problems in servers.items() for words in problems]
    if found:
        remedy = "run what is said there in the folder of the program that deployed the server"
        return Check("certificates", "warning", "; ".join(found), remedy)
    return Check("certificates", "ok", f"of {counted(len(servers), 'server')} on this host: good")


def unchecked(name: str, why: str) -> Check:
    """Return a check that could not be made."""
    return Check(name, "warning", f"not checked: {why}", "repair what is missing above, then run this again")


def _major(version: str) -> int:
    return int(re.split(r"\D", version, maxsplit=1)[0])
