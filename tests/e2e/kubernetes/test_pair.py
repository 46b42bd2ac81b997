"""A failover pair of two Kubernetes clusters, by the real engine, operator and commands, and clients that write."""

from __future__ import annotations

import psycopg
import pytest

from tests.e2e.conftest import Stack, eventually
from tests.e2e.kubernetes.conftest import Cluster
from tests.e2e.kubernetes.pairs import clients, insist, status
from tests.e2e.test_roles_cli import harmony

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]


def test_the_operator_is_installed_and_the_pair_settles(stack: Stack) -> None:
    outputs = stack.outputs()
    ca = stack.folder / "ca.crt"
    ca.write_text(outputs["ca_certificate"])
    with psycopg.connect(outputs["uri"], sslrootcert=str(ca)) as connection:
        found = connection.execute("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert found == ("TLSv1.3",)
    seen = status(stack)
    assert {name: member["role"] for name, member in seen.items()} == {"montreal": "primary", "toronto": "standby"}
    stack.up("--expect-no-changes")
    stack.refresh()
    stack.up("--expect-no-changes")


def test_a_replica_that_connects_anew_does_so_by_the_certificates_that_were_made_meanwhile(
    stack: Stack, our_clusters: tuple[Cluster, Cluster]
) -> None:
    program, before = stack.folder / "__main__.py", stack.outputs()
    declared = 'PostgreSQLConfig(databases=["orders"]'
    assert declared in program.read_text()
    program.write_text(program.read_text().replace(declared, f"{declared}, certificate_generation=1"))
    stack.up()
    outputs = stack.outputs()
    assert outputs["ca_certificate"] != before["ca_certificate"]
    leader = outputs["site"]["members"]["primary"]
    where = leader["namespace"], f"{leader['cluster']}-1"

    def ask(sql: str) -> str:
        status, said = our_clusters[0].execute(*where, "psql", "-XAtqc", sql)
        assert status == 0, said
        return said.strip()

    assert ask("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_replication WHERE application_name = 'toronto'")
    streaming = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'toronto' AND state = 'streaming'"
    eventually(lambda: ask(streaming) == "1", "the replica to stream by its new certificate", 90)


def test_roles_move_there_and_back_and_nothing_is_lost(stack: Stack) -> None:
    with clients(stack) as running:
        harmony(stack, "switchover", "--to", "toronto", "--yes")
        running.wait_until_served()
        stack.up("--expect-no-changes")
        harmony(stack, "switchover", "--to", "montreal", "--yes")
        running.wait_until_served()
    insist(stack, running, "primary")


def test_a_cluster_that_is_cut_off_is_failed_over_from_and_comes_back_by_a_rewind(
    stack: Stack, our_clusters: tuple[Cluster, Cluster]
) -> None:
    lost = our_clusters[0]
    lost.cut()
    try:
        said = harmony(stack, "failover", "--to", "toronto", "--yes", "--max-data-loss", "0", expect=1)
        assert "--fenced-by-me" in said
        harmony(
            stack,
            *("failover", "--to", "toronto", "--yes", "--max-data-loss", "1000000", "--accept-unknown-loss"),
            *("--fenced-by-me", "montreal"),
        )
    finally:
        lost.mend()
    eventually(lambda: status(stack)["montreal"]["state"] == "running", "montreal to answer", 60)
    said = harmony(stack, "rejoin", "--yes")
    assert "montreal is rewound" in said
    seen = status(stack)
    assert {name: member["role"] for name, member in seen.items()} == {"montreal": "standby", "toronto": "primary"}
    with clients(stack) as running:
        harmony(stack, "revert", "--yes")
        running.wait_until_served()
    insist(stack, running, "primary")


def test_destroy_keeps_the_data_and_the_next_up_takes_it_over(stack: Stack) -> None:
    def rows() -> int:
        outputs = stack.outputs()
        ca = stack.folder / "ca.crt"
        ca.write_text(outputs["ca_certificate"])
        with psycopg.connect(outputs["uri"], sslrootcert=str(ca)) as connection:
            found = connection.execute("SELECT count(*) FROM history").fetchone()
        assert found is not None
        return int(found[0])

    before = rows()
    assert before
    said = stack.destroy()
    assert "is stopped; its data is kept" in said
    stack.up()
    assert rows() == before
