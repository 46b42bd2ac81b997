"""`pulumi up` ends once what is declared of a cluster is in effect, and early where that cannot come."""

from __future__ import annotations

import psycopg
import pytest

from tests.e2e.conftest import Stack
from tests.e2e.kubernetes.conftest import Cluster
from tests.e2e.kubernetes.pairs import EXAMPLE

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]

DECLARED = 'databases=["orders"]'
EARLY = 300
"""Seconds. The least that a cluster is waited for is longer."""


@pytest.fixture(scope="module")
def stack(declared: Stack, our_clusters: tuple[Cluster, Cluster]) -> Stack:
    """Return a stack that is not up yet, on clusters whose link can be cut."""
    return declared


def declare(stack: Stack, config: str) -> None:
    """Declare the pair with other arguments of `PostgreSQLConfig`."""
    program = stack.folder / "__main__.py"
    text = EXAMPLE.read_text()
    assert DECLARED in text
    exported = program.read_text().partition('pulumi.export("replica_uri"')[2].partition("\n")[2]
    program.write_text(text.replace(DECLARED, config) + exported)


def early(stack: Stack) -> str:
    """Return what an `up` says that fails, and ends before it must."""
    said = stack.run("up", "--yes", "--skip-preview", expect=1, deadline=EARLY)
    assert "does not become what is declared: " in said, said
    return said


def ask(stack: Stack, member: str, query: str) -> str:
    """Return the one value of a query's answer by the `primary` or the `replica`."""
    outputs = stack.outputs()
    ca = stack.folder / "ca.crt"
    ca.write_text(outputs["ca_certificate"])
    with psycopg.connect(outputs[f"{member}_uri"], sslrootcert=str(ca)) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])


def test_a_copy_that_cannot_reach_its_source_is_told_and_made_once_it_can(
    stack: Stack, our_clusters: tuple[Cluster, Cluster]
) -> None:
    our_clusters[0].cut_from_peer()
    try:
        said = early(stack)
    finally:
        our_clusters[0].mend()
    assert "toronto: the cluster" in said
    assert "pgbasebackup" in said
    assert "no route to host" in said
    stack.up()
    assert ask(stack, "replica", "SELECT pg_is_in_recovery()") == "True"


def test_settings_networks_and_databases_are_in_effect_once_up_has_ended(stack: Stack) -> None:
    settings = 'settings={"max_connections": 130, "work_mem": "8MB"}'
    declare(stack, f'databases=["orders", "stock"], {settings}')
    stack.up()
    for member in ("primary", "replica"):
        assert ask(stack, member, "SHOW max_connections") == "130"
        assert ask(stack, member, "SHOW work_mem") == "8MB"
    assert ask(stack, "primary", "SELECT count(*) FROM pg_database WHERE datname = 'stock'") == "1"
    stack.up("--expect-no-changes")


def test_what_a_cluster_would_not_take_is_refused_at_preview_and_nothing_is_changed(stack: Stack) -> None:
    program = stack.folder / "__main__.py"
    before = program.read_text()
    larger = before.replace('storage=config.get("storage") or "20Gi"', 'storage="30Gi"')
    assert larger != before
    program.write_text(larger.replace('"work_mem": "8MB"', '"work_mem": "4MB", "TimeZone": "Mars/Olympus"'))
    for said in (stack.preview(expect=1), stack.up(expect=1)):
        assert 'is refused by PostgreSQL: invalid value for parameter "TimeZone": "Mars/Olympus"' in said
        assert "cannot be raised from 20Gi to 30Gi: " in said
        assert "does not become" not in said
    assert ask(stack, "primary", "SHOW work_mem") == "8MB"
    program.write_text(before)
    stack.up("--expect-no-changes")


def test_what_is_declared_and_cannot_be_ends_up_early_with_the_reason(stack: Stack) -> None:
    before = (stack.folder / "__main__.py").read_text()
    program = before.replace('["orders", "stock"]', '["orders", Database(name="stock", extensions=("nowhere",))]')
    program = program.replace("import FailoverTopology", "import Database, FailoverTopology")
    assert "Database(" in program
    (stack.folder / "__main__.py").write_text(program)
    said = early(stack)
    assert "the database stock: " in said
    assert 'extension "nowhere" is not available' in said
    (stack.folder / "__main__.py").write_text(before)
    stack.up()
