"""A distribution of somebody else's extends harmony, with no edit to it: see tests/extension."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Stack, connection, eventually, let_through
from tests.e2e.secret_values import watched_arguments

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "tests" / "extension"
HEAD = "from pathlib import Path\nfrom acme_harmony import *\nhere = str(Path.cwd())\n"
STORES = """
for role, store in {"whole": stores, **stores.members}.items():
    pulumi.export(role, {"port": store.endpoint["port"], "password": store.password})
"""


def pip(*args: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def acme() -> Generator[None]:
    """Install the extension as anyone would, and remove it again."""
    # Built by what is installed here: no network is needed.
    pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--force-reinstall", str(EXTENSION))
    try:
        yield
    finally:
        pip("uninstall", "--quiet", "--yes", "acme-harmony")


@pytest.fixture
def extended(acme: None, make_stack: Callable[[], Stack]) -> Generator[Stack]:
    """Return a stack whose programs may use the extension; end the Redis servers that it leaves."""
    stack = make_stack()
    try:
        yield stack
    finally:
        for file in stack.folder.glob("**/redis.pid"):
            pid = int(file.read_text())
            if Path(f"/proc/{pid}/comm").exists() and "-server" in Path(f"/proc/{pid}/comm").read_text():
                os.kill(pid, signal.SIGKILL)


def python(program: str, deadline: float = 300) -> str:
    """Run Python in a process of its own, as the extension's authors would."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=deadline, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- a topology --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "replica", ['AcmeCloudTopology("toronto", account=here + "/cloud")', 'LinuxHostTopology("toronto")']
)
def test_a_new_topology_fails_over_at_once_with_its_own_kind_and_with_others(extended: Stack, replica: str) -> None:
    extended.program(
        HEAD
        + f"""
primary = AcmeCloudTopology("montreal", account=here + "/cloud")
site: FailoverTopology[PostgreSQL] = FailoverTopology("orders", primary=primary, replica={replica})
database = site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))
pulumi.export("uri", database.uri)
pulumi.export("ca", database.ca_certificate)
pulumi.export("data", database.data_directory)
pulumi.export("replica_uri", database.members["replica"].uri)
"""
    )
    extended.up()
    outputs = extended.outputs()
    assert outputs["data"] == f"{extended.folder}/cloud/north-1/montreal/orders/data"
    with connection(extended, outputs["uri"], outputs["ca"]) as client:
        client.execute("CREATE TABLE kept AS SELECT generate_series(1, 100) AS value")
    with connection(extended, outputs["replica_uri"], outputs["ca"]) as reader:
        eventually(
            lambda: (
                reader.execute("SELECT to_regclass('kept')").fetchone() != (None,)
                and reader.execute("SELECT count(*) FROM kept").fetchone() == (100,)
            ),
            "the rows on the replica",
        )
    extended.preview("--expect-no-changes")
    kinds = {r["type"] for r in extended.resources()}
    assert {"acme_harmony:index:AcmeCloudTopology", "pulumi-python:dynamic/acme:Instance"} <= kinds
    extended.destroy()
    assert Path(outputs["data"]).is_dir(), "a volume with data outlives its machine"


def test_a_new_topology_passes_the_conformance_kit(acme: None, tmp_path: Path) -> None:
    let_through(tmp_path)
    said = python(
        "from acme_harmony import *\nfrom harmony_pulumi.testing import check_postgresql, check_topology\n"
        "for topology in (AcmeCloudTopology, RedisHostTopology, FailoverTopology, MirroredTopology):\n"
        "    check_topology(topology)\n"
        f"print(check_postgresql(lambda name: AcmeCloudTopology(name, account={str(tmp_path)!r})))"
    )
    assert "17 checks passed" in said
    assert not list(tmp_path.glob("*/*")), "with the data deleted, the cloud has taken every volume back"


# -- a capability, and a higher-order topology -------------------------------------------------------------------------


def ask(outputs: dict[str, Any], role: str, *command: str, password: str | None = None) -> str:
    """Ask a store as its clients do."""
    store = outputs[role]
    client = shutil.which("valkey-cli") or shutil.which("redis-cli") or "redis-cli"
    done = subprocess.run(
        [client, "-h", "127.0.0.1", "-p", str(int(store["port"])), "--no-auth-warning", *command],
        env={**os.environ, "REDISCLI_AUTH": store["password"] if password is None else password},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return (done.stdout + done.stderr).strip()


def assert_mirrors(outputs: dict[str, Any], primary: str, copies: list[str]) -> None:
    assert ask(outputs, "whole", "SET", "greeting", "bonjour") == "OK"
    assert "role:master" in ask(outputs, primary, "INFO", "replication")
    for copy in copies:
        eventually(lambda copy=copy: ask(outputs, copy, "GET", "greeting") == "bonjour", f"the value on {copy}")
        assert ask(outputs, copy, "SET", "greeting", "hello").startswith("READONLY")
    assert "WRONGPASS" in ask(outputs, "whole", "GET", "greeting", password="wrong")
    assert "NOAUTH" in ask(outputs, "whole", "GET", "greeting", password="")


def test_a_new_capability_with_its_derivation_fails_over(extended: Stack) -> None:
    program = (
        HEAD
        + """
site = FailoverTopology("cache", primary=RedisHostTopology("montreal"), replica=RedisHostTopology("toronto"))
stores = site.deploy_key_value("sessions", KeyValueConfig(directory=here + "/stores", max_memory_mb={memory}))
"""
        + STORES
    )
    extended.program(program.replace("{memory}", "64"))
    with watched_arguments() as arguments:
        extended.up()
    outputs = extended.outputs()
    assert_mirrors(outputs, "primary", ["replica"])
    extended.preview("--expect-no-changes")
    password = outputs["whole"]["password"]
    assert password not in extended.run("stack", "export")
    assert [line for line in arguments if re.search(r"(redis|valkey)-server", line)]
    assert password not in "\n".join(arguments)

    extended.program(program.replace("{memory}", "96"))
    extended.up()
    assert ask(outputs, "primary", "CONFIG", "GET", "maxmemory").split() == ["maxmemory", str(96 * 1024 * 1024)]
    assert ask(outputs, "replica", "GET", "greeting") == "bonjour", "changed in place"

    extended.destroy()
    assert not list((extended.folder / "stores").iterdir())
    assert "refused" in ask(outputs, "whole", "PING")


def test_a_new_higher_order_topology_takes_any_number_of_members_and_nests(extended: Stack) -> None:
    extended.program(
        HEAD
        + """
pair = FailoverTopology("pair", primary=RedisHostTopology("a"), replica=RedisHostTopology("b"))
mirror = MirroredTopology[KeyValue]("mirror", [RedisHostTopology("c"), RedisHostTopology("d"), pair])
stores = mirror.deploy_key_value("sessions", KeyValueConfig(directory=here + "/stores"))
"""
        + STORES
    )
    extended.up()
    outputs = extended.outputs()
    assert_mirrors(outputs, "members.0", ["members.1", "members.2"])
    assert len(extended.resources("acme:RedisServer")) == 4
    extended.destroy()


def test_a_capability_added_to_what_is_deployed_changes_nothing(extended: Stack) -> None:
    program = """
site = FailoverTopology("orders", primary=Host("montreal"), replica=Host("toronto"))
database = site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))
pulumi.export("capabilities", sorted(c.__name__ for c in site.capabilities()))
"""
    extended.program("class Host(LinuxHostTopology): ...\n" + program)
    extended.up()
    assert extended.outputs()["capabilities"] == ["PostgreSQL"]
    before = {r["urn"] for r in extended.resources()}

    extended.program(HEAD + "class Host(LinuxHostTopology, RedisKeyValue): ...\n" + program)
    assert "7 unchanged" in extended.preview("--expect-no-changes")
    extended.up("--expect-no-changes")
    assert extended.outputs()["capabilities"] == ["KeyValue", "PostgreSQL"]
    assert {r["urn"] for r in extended.resources()} == before


# -- what it costs -----------------------------------------------------------------------------------------------------


def lines_of(module: str) -> list[str]:
    text = (EXTENSION / "acme_harmony" / f"{module}.py").read_text()
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_each_extension_costs_its_own_lines_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    costs = {
        "a topology that provides PostgreSQL (cloud.py)": "cloud",
        "a capability (key_value.py)": "key_value",
        "its derivation for failover (failover.py)": "failover",
        "a higher-order topology with a derivation (mirrored.py)": "mirrored",
        "a topology with a provider of its own (redis_host.py)": "redis_host",
    }
    with capsys.disabled():
        print("\n\nlines  for, with docstrings")
        for what, module in costs.items():
            print(f"{len(lines_of(module)):5}  {what}")
    assert set(costs.values()) | {"__init__"} == {p.stem for p in (EXTENSION / "acme_harmony").glob("*.py")}
    assert not [line for line in lines_of("cloud") if "failover" in line.lower()]
    assert not [line for line in lines_of("key_value") if "topology" in line.lower().replace("knows no topology", "")]
    ours = [path for path in (ROOT / "harmony_pulumi").rglob("*.py") if "acme" in path.read_text().lower()]
    assert not ours, "harmony knows nothing of its extensions"
