"""Every supported major version of PostgreSQL, as real servers: `scripts/postgresql-versions` brings them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harmony_pulumi.capabilities.postgresql_facts import SUPPORTED_MAJORS
from tests.e2e.conftest import Stack, connection, eventually, found_postgresql
from tests.e2e.sampling import sampled

pytestmark = pytest.mark.e2e
MAJORS = [str(major) for major in SUPPORTED_MAJORS]
SCRIPT = Path(__file__).parents[2] / "scripts/postgresql-versions"
# Not below a home: the servers' OS user must reach it.
KEPT = Path(os.environ.get("HARMONY_POSTGRESQL_VERSIONS", "/var/tmp/harmony-postgresql"))


def others() -> list[str]:
    """Return the supported versions but that of the machine."""
    return [str(major) for major in SUPPORTED_MAJORS if major != found_postgresql().major]


@pytest.fixture(scope="session")
def versions() -> Path:
    """Return a folder with `<major>/bin` of every version that the machine does not have itself."""
    done = subprocess.run([SCRIPT, KEPT, *others()], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return KEPT


@pytest.mark.parametrize("major", [MAJORS[0], *sampled(MAJORS[1:-1], 0), MAJORS[-1]])
def test_a_pair_of_any_supported_version_deploys_changes_and_comes_back(
    stack: Stack, request: pytest.FixtureRequest, major: str
) -> None:
    if major in others():
        versions: Path = request.getfixturevalue("versions")
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
    stack.env["PATH"] = f"{versions}/{others()[-1]}/bin:{stack.env['PATH']}"
    major = found_postgresql().major
    stack.pair(f"version={major}")
    stack.up()
    assert stack.server("toronto")["postgresql_version"].startswith(f"{major}.")
