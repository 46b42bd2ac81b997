"""Real stacks: the real Pulumi CLI and engine, real PostgreSQL servers, and nothing left behind."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

DEADLINE = 180
HEAD = "import pulumi\nfrom harmony_pulumi import *\n"

PAIR = """
primary = LinuxHostTopology("montreal")
replica = LinuxHostTopology("toronto")
site = FailoverTopology("orders", primary=primary, replica=replica)
database = site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"], {config}))
pulumi.export("uri", database.uri)
pulumi.export("ca_certificate", database.ca_certificate)
pulumi.export("primary_uri", database.members["primary"].uri)
pulumi.export("replica_uri", database.members["replica"].uri)
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

    def program(self, text: str) -> None:
        """Set the program."""
        (self.folder / "__main__.py").write_text(HEAD + text)

    def pair(self, config: str = "") -> None:
        """Set the program to a failover pair with these arguments of `PostgreSQLConfig`."""
        self.program(PAIR.format(config=config))

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
        """Return the stack's outputs, secrets too."""
        return json.loads(self.run("stack", "output", "--json", "--show-secrets"))

    def resources(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the resources in the state whose type ends so."""
        state = json.loads(self.run("stack", "export"))
        return [r for r in state["deployment"].get("resources", []) if r["type"].endswith(kind)]

    def server(self, name: str) -> dict[str, Any]:
        """Return the outputs of a member's server."""
        found = [r for r in self.resources("PostgreSQLServer") if r["urn"].endswith(f"::{name}-orders")]
        assert len(found) == 1, found
        return found[0]["outputs"]

    def markers(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Iterate over the folders of this stack's servers and their markers."""
        for folder in (base_folder() / self.project, self.folder):
            for path in folder.glob("**/harmony.json"):
                yield path.parent, json.loads(path.read_text())

    def close(self) -> None:
        """Stop every server of this stack and remove what they left, whatever the test did."""
        for pid in started_by(self).values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for _, marker in list(self.markers()):
            stop_postmaster(Path(marker["data"]), signal.SIGINT)
        shutil.rmtree(base_folder() / self.project, ignore_errors=True)


def postmaster(data: Path) -> int | None:
    """Return the pid of the live postmaster of a data directory."""
    try:
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        return pid if Path(f"/proc/{pid}/cwd").resolve() == data.resolve() else None
    except (OSError, ValueError, IndexError):
        return None


def started_by(stack: Stack) -> dict[str, int]:
    """Return the processes of a stack that are not servers, by name: its passphrase is in their environment."""
    found: dict[str, int] = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if stack.env["PULUMI_CONFIG_PASSPHRASE"].encode() in (folder / "environ").read_bytes():
                found[f"{(folder / 'comm').read_text().strip()} {folder.name}"] = int(folder.name)
    return {name: pid for name, pid in found.items() if not name.startswith("postgres ")}


def stop_postmaster(data: Path, how: signal.Signals) -> None:
    """Signal a postmaster and wait until it is gone."""
    pid = postmaster(data)
    if pid is not None:
        os.kill(pid, how)
        eventually(lambda: postmaster(data) is None, f"the postmaster of {data} to end")


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
    """Return a command prefix under which this machine has another machine-id, and perhaps no PostgreSQL.

    A mount namespace of its own: the rest of the machine does not see it.
    """
    fake = folder / f"machine-id-{identifier[:4]}"
    fake.write_text(identifier + "\n")
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    mounts = [f"mount --bind {fake} /etc/machine-id"]
    if hide_postgresql:
        mounts.append(f"mount --bind {empty} /usr/lib/postgresql")
    return ["unshare", "--mount", "sh", "-ec", "; ".join([*mounts, 'exec "$@"']), "sh"]


def os_user() -> str:
    """Return the OS user that servers run as here."""
    return "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def make_stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[[], Stack]]:
    """Make stacks; at the end stop and remove all that they made."""
    made: list[Stack] = []

    def make() -> Stack:
        folder = tmp_path_factory.mktemp("s")
        for part in (folder, *folder.parents[:2]):
            part.chmod(part.stat().st_mode | 0o055)  # The servers' OS user must get through. It may be /tmp itself.
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
def stack(make_stack: Callable[[], Stack]) -> Stack:
    """Return one new stack."""
    return make_stack()
