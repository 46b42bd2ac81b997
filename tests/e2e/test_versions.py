"""Every supported major version of PostgreSQL, as real servers: `scripts/postgresql-versions` brings them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Stack, connection, eventually

pytestmark = pytest.mark.e2e
SCRIPT = Path(__file__).parents[2] / "scripts/postgresql-versions"
# Not below a home: the servers' OS user must reach it.
KEPT = Path(os.environ.get("HARMONY_POSTGRESQL_VERSIONS", "/var/tmp/harmony-postgresql"))
OTHERS = ("13", "14", "16", "17", "18")


@pytest.fixture(scope="session")
def versions() -> Path:
    """Return a folder with `<major>/bin` of every version that the machine does not have itself."""
    done = subprocess.run([SCRIPT, KEPT, *OTHERS], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return KEPT


@pytest.mark.parametrize("major", OTHERS)
def test_a_pair_of_any_supported_version_deploys_changes_and_comes_back(
    stack: Stack, versions: Path, major: str
) -> None:
    stack.env["PATH"] = f"{versions}/{major}/bin:{stack.env['PATH']}"
    stack.pair()
    stack.up()
    outputs = stack.outputs()
    assert stack.server("montreal")["postgresql_version"].split(".")[0] == major
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        assert client.info.server_version // 10000 == int(major)
        assert client.execute("SHOW data_checksums").fetchone() == ("on",)
        client.execute("CREATE TABLE kept AS SELECT generate_series(1, 100) AS value")
    stack.pair('replication="synchronous", settings={"work_mem": "8MB", "max_connections": 150}')
    stack.up()
    stack.up("--expect-no-changes")
    stack.destroy()
    stack.up()
    outputs = stack.outputs()
    with connection(stack, outputs["replica_uri"], outputs["ca_certificate"]) as reader:
        assert reader.execute("SHOW max_connections").fetchone() == ("150",)
        eventually(lambda: reader.execute("SELECT count(*) FROM kept").fetchone() == (100,), "100 rows on the replica")


def test_the_declared_version_is_taken_where_several_are_there(stack: Stack, versions: Path) -> None:
    stack.env["PATH"] = f"{versions}/17/bin:{stack.env['PATH']}"
    stack.pair("version=15")
    stack.up()
    assert stack.server("toronto")["postgresql_version"].startswith("15.")
