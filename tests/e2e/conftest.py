"""Real stacks: the real Pulumi CLI and engine, real PostgreSQL servers, and nothing left behind."""

from __future__ import annotations

import json
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

import harmony_pulumi
from harmony_pulumi.hosts.connection import LocalConnection
from harmony_pulumi.hosts.postgresql.server import Binaries, choose_binaries, installed

DEADLINE = 180

PAIR = """
primary = LinuxHostTopology("montreal")
replica = LinuxHostTopology("toronto")
site = FailoverTopology("orders", primary=primary, replica=replica)
database = site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"], {config}), active={active})
pulumi.export("uri", database.uri)
pulumi.export("ca_certificate", database.ca_certificate)
pulumi.export("site", database.site)
pulumi.export("primary_uri", database.members["primary"].uri)
pulumi.export("replica_uri", database.members["replica"].uri)
pulumi.export("site", database.site)
pulumi.export("primary_site", database.members["primary"].site)
pulumi.export("replica_site", database.members["replica"].site)
pulumi.export("certs", site.get_replication_certs(database))
pulumi.export("endpoint", site.get_endpoint(database))
pulumi.export("event_log", database.event_log)
pulumi.export("active", database.observed_active)
pulumi.export("lag", database.lag_bytes)
"""


def base_folder() -> Path:
    """Return where servers are by default."""
    if os.geteuid() == 0:
        return Path("/var/lib/harmony")
    return Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "harmony"


@dataclass
class Stack:
    """One Pulumi stack with its own project, backend and servers."""

    folder: Path
    project: str
    env: dict[str, str]
    wrapper: list[str] = field(default_factory=list[str])
    _shown: tuple[bytes, str] = (b"", "")
    """A state, and the outputs of it."""

    def program(self, text: str) -> None:
        """Set the program. It imports what it uses, as one would: the rest takes a while to load at each command."""
        used = [name for name in harmony_pulumi.__all__ if re.search(rf"\b{name}\b", text)]
        head = f"import pulumi\nfrom harmony_pulumi import {', '.join(used)}\n" if used else "import pulumi\n"
        (self.folder / "__main__.py").write_text(head + text)

    def pair(self, config: str = "", *, active: str = "None") -> None:
        """Set the program to a failover pair with these arguments of `PostgreSQLConfig`, and this `Active`."""
        self.program(PAIR.format(config=config, active=active))

    def run(self, *args: str, expect: int | None = 0, deadline: float = DEADLINE) -> str:
        """Run the CLI and return what it shows."""
        done = subprocess.run(
            [*self.wrapper, "pulumi", *args, "--non-interactive", "--color", "never"],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=deadline,
            check=False,
        )
        if expect is not None:
            assert (done.returncode == 0) == (expect == 0), done.stdout
        return done.stdout

    def up(self, *args: str, expect: int | None = 0) -> str:
        """Deploy."""
        return self.run("up", "--yes", "--skip-preview", *args, expect=expect)

    def preview(self, *args: str, expect: int | None = 0) -> str:
        """Return the diff that a PR check shows."""
        return self.run("preview", "--diff", *args, expect=expect)

    def refresh(self, expect: int | None = 0) -> str:
        """Read the truth."""
        return self.run("refresh", "--yes", "--skip-preview", expect=expect)

    def destroy(self, expect: int | None = 0) -> str:
        """Remove everything."""
        return self.run("destroy", "--yes", "--skip-preview", expect=expect)

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """Start the CLI, in a group of its own."""
        return subprocess.Popen(
            ["pulumi", *args, "--non-interactive", "--color", "never"],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def outputs(self) -> dict[str, Any]:
        """Return the stack's outputs, secrets too. Of one state, the CLI is asked once: to decrypt takes a second."""
        state = self.state.read_bytes()
        if self._shown[0] != state:
            self._shown = state, self.run("stack", "output", "--json", "--show-secrets")
        return json.loads(self._shown[1])

    def resources(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the resources in the state whose type ends so."""
        found = json.loads(self.state.read_bytes())["checkpoint"].get("latest") or {}
        return [r for r in found.get("resources", []) if r["type"].endswith(kind)]

    @property
    def state(self) -> Path:
        """Return the file that the backend keeps the state in."""
        return self.folder / f"state/.pulumi/stacks/{self.project}/dev.json"

    def server(self, name: str) -> dict[str, Any]:
        """Return the outputs of a member's server."""
        found = [r for r in self.resources("PostgreSQLServer") if r["urn"].endswith(f"::{name}-orders")]
        assert len(found) == 1, found
        return found[0]["outputs"]

    def markers(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Iterate over the folders of this stack's servers and their markers."""
        yield from markers_below(base_folder() / self.project, self.folder)

    def close(self) -> None:
        """Stop every server of this stack and remove what they left, whatever the test did."""
        for pid in started_by(self).values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        stop_servers_below(base_folder() / self.project, self.folder)
        shutil.rmtree(base_folder() / self.project, ignore_errors=True)


def free_port() -> int:
    """Return a port on which nothing listens. None that connections are given: whoever is about to listen has it."""
    for port in random.sample(range(15_000, 30_000), 100):
        with suppress(OSError), closing(socket.create_server(("127.0.0.1", port))):
            return port
    raise AssertionError("of 100 ports none is free")


def markers_below(*folders: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Iterate over the folders of servers below these, and their markers."""
    for folder in folders:
        for path in folder.glob("**/harmony.json"):
            yield path.parent, json.loads(path.read_text())


def stop_servers_below(*folders: Path) -> None:
    """Stop every server whose folder is below one of these."""
    for _, marker in list(markers_below(*folders)):
        stop_postmaster(Path(marker["data"]), signal.SIGINT)


def postmaster(data: Path) -> int | None:
    """Return the pid of the live postmaster of a data directory."""
    try:
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        return pid if Path(f"/proc/{pid}/cwd").resolve() == data.resolve() else None
    except (OSError, ValueError, IndexError):
        return None


def parent_of(pid: int) -> int:
    """Return the parent of a live process: proc(5). Its name, which is in parentheses, may hold anything."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def processes_about(*words: str) -> list[str]:
    """Return the processes that have one of these words in their arguments, environment or working directory."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            told = command + (process / "environ").read_bytes() + bytes((process / "cwd").readlink())
            if any(word.encode() in told for word in words):
                found.append(f"{process.name} {command.replace(bytes(1), b' ').decode(errors='replace')}")
    return found


def started_by(stack: Stack) -> dict[str, int]:
    """Return the processes of a stack that are not servers, by name.

    Its passphrase is in the environment of Pulumi's, and its project in the arguments of those that work on a server.
    """
    found: dict[str, int] = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            known = stack.env["PULUMI_CONFIG_PASSPHRASE"].encode() in (folder / "environ").read_bytes()
            if known or f"/{stack.project}/".encode() in (folder / "cmdline").read_bytes():
                found[f"{(folder / 'comm').read_text().strip()} {folder.name}"] = int(folder.name)
    return {name: pid for name, pid in found.items() if not name.startswith("postgres ")}


def stop_postmaster(data: Path, how: signal.Signals) -> None:
    """Signal a postmaster and wait until it is gone."""
    pid = postmaster(data)
    if pid is not None:
        os.kill(pid, how)
        eventually(lambda: postmaster(data) is None, f"the postmaster of {data} to end")


def make_wal_in_advance(data: Path) -> None:
    """Have empty segments in pg_wal, as a checkpoint makes them, until a reader of the folder meets one first."""
    folder = data / "pg_wal"

    def segments() -> list[Path]:
        return [path for path in folder.iterdir() if re.fullmatch("[0-9A-F]{24}", path.name)]

    number = int(max(path.name for path in segments()), 16)
    for one in range(number + 1, number + 128):
        if segments()[0].stat().st_blocks == 0:
            return
        path = folder / f"{one:024X}"
        with path.open("xb") as file:
            file.truncate(16 * 1024 * 1024)
        path.chmod(0o600)
        shutil.chown(path, folder.owner())
    pytest.fail(f"of {segments()} none that is empty is met first")


def eventually(look: Callable[[], object], what: str, deadline: float = 60) -> None:
    """Wait until something is true, and fail with what was seen."""
    end = time.monotonic() + deadline
    while not (seen := look()):
        assert time.monotonic() < end, f"waited {deadline} s for {what}; last seen: {seen!r}"
        time.sleep(0.05)


@contextmanager
def connection(stack: Stack, uri: str, ca: str) -> Generator[psycopg.Connection[tuple[Any, ...]]]:
    """Connect as a user would: verify-full, with the exported CA certificate."""
    path = stack.folder / "ca.crt"
    path.write_text(ca)
    with psycopg.connect(uri, sslrootcert=str(path), connect_timeout=10, autocommit=True) as client:
        yield client


def port_of(uri: str) -> int:
    """Return the port of a single-host uri."""
    port = urlsplit(uri).port
    assert port is not None
    return port


def with_machine(identifier: str, folder: Path, *, hide_postgresql: bool) -> list[str]:
    """Return a command prefix under which this machine has another machine-id, or none, and perhaps no PostgreSQL.

    A mount namespace of its own: the rest of the machine does not see it.
    """
    needs_root("what a machine has is hidden in a mount namespace")
    fake = folder / f"machine-id-{identifier[:4]}"
    fake.write_text(identifier + "\n")
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    files = [file for file in ("/etc/machine-id", "/var/lib/dbus/machine-id") if Path(file).is_file()]
    mounts = [f"mount --bind {fake} {file}" for file in files]
    if hide_postgresql:
        mounts += [f"mount --bind {empty} {binaries.path}" for binaries in installed(LocalConnection())]
    return with_mounts(*mounts)


def let_through(folder: Path) -> None:
    """Let the servers' OS user through pytest's folders to this one.

    No permission is taken away: with a short --basetemp, what is above is no folder of pytest's, but /tmp.
    """
    for part in (folder, *folder.parents[:2]):
        mode = part.stat().st_mode & 0o7777
        if mode & 0o055 != 0o055:
            part.chmod(mode | 0o055)


def with_mounts(*commands: str) -> list[str]:
    """Return a command prefix that runs these commands of a shell first, in a mount namespace of its own."""
    needs_root("a mount namespace is needed")
    return ["unshare", "--mount", "sh", "-ec", "; ".join([*commands, 'exec "$@"']), "sh"]


def needs_root(why: str) -> None:
    """Skip the test if it is not root's."""
    if os.geteuid() != 0:
        pytest.skip(f"only root can do this: {why}")


def found_postgresql() -> Binaries:
    """Return the PostgreSQL that is taken where none is asked for."""
    return choose_binaries(LocalConnection(), None)


def os_user() -> str:
    """Return the OS user that servers run as here."""
    return "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def as_os_user(*argv: str) -> list[str]:
    """Return a command as run by the OS user of servers."""
    if os.geteuid() != 0:
        return [*argv]
    account = pwd.getpwnam(os_user())
    return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups", "--", *argv]


def superuser(root: Path, sql: str, port: int, database: str = "postgres") -> str:
    """Run SQL on a server as its administrator would; return what it answers."""
    argv = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", f"{root}/run", "-p", str(port), "-U", "postgres"]
    argv += ["-d", database, "-f", "-"]
    return subprocess.run(
        as_os_user(*argv), input=sql, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


@contextmanager
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[[], Stack]]:
    """Make stacks; at the end stop and remove all that they made."""
    made: list[Stack] = []

    def make() -> Stack:
        folder = tmp_path_factory.mktemp("s")
        let_through(folder)
        project = f"t{secrets.token_hex(4)}"
        (folder / "Pulumi.yaml").write_text(f"name: {project}\nruntime: python\n")
        (folder / "state").mkdir()
        env: Mapping[str, str] = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "PULUMI_"))}
        stack = Stack(
            folder,
            project,
            {
                **env,
                "PULUMI_BACKEND_URL": f"file://{folder}/state",
                "PULUMI_CONFIG_PASSPHRASE": secrets.token_hex(16),
                "PULUMI_SKIP_UPDATE_CHECK": "1",
                "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
                # What runs for seconds spends a good part of them on collecting garbage that there is room for.
                "GOGC": "off",
                "GOMEMLIMIT": "512MiB",
            },
        )
        made.append(stack)
        stack.run("stack", "init", "dev")
        return stack

    try:
        yield make
    finally:
        for stack in made:
            stack.close()


@pytest.fixture
def make_stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[[], Stack]]:
    """Make stacks; at the end stop and remove all that they made."""
    with stacks(tmp_path_factory) as make:
        yield make


@pytest.fixture
def stack(make_stack: Callable[[], Stack]) -> Stack:
    """Return one new stack."""
    return make_stack()
