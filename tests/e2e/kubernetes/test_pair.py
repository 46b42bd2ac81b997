"""A failover pair of two Kubernetes clusters, by the real engine, operator and commands, and clients that write."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

import psycopg
import pytest

from harmony_pulumi.capabilities.site import Certificates
from harmony_pulumi.kubernetes.facts import api_of
from harmony_pulumi.kubernetes.objects import SERVED, path_of
from harmony_pulumi.orchestration.pair import pair_of
from tests.e2e.conftest import Stack, eventually
from tests.e2e.kubernetes.conftest import Cluster
from tests.e2e.kubernetes.pairs import NAMES, clients, insist, status
from tests.e2e.kubernetes.test_faults import deployed_on
from tests.e2e.test_roles_cli import harmony

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]


def changes(stack: Stack) -> Counter[tuple[str, str]]:
    """Return how many resources of each type a preview says that an `up` would create, change, and so on."""
    steps = json.loads(stack.run("preview", "--json"))["steps"]
    kinds = [(step["op"], step["urn"].split("::")[2].split("$")[-1].split(":")[-1]) for step in steps]
    return Counter((op, kind) for op, kind in kinds if op != "same")


def test_a_preview_from_nothing_says_what_would_be_made_and_makes_nothing(
    declared: Stack, clusters: tuple[Cluster, Cluster]
) -> None:
    """The first of all, which find the pair up."""
    had = [cluster.has_operator() for cluster in clusters]
    found = changes(declared)
    assert {op for op, _ in found} == {"create"}
    of_each = (
        "KubernetesCluster",
        "Namespace",
        "Service",
        "ClusterSecrets",
        "Cluster",
        "Database",
        "PostgreSQLCluster",
    )
    assert [found["create", kind] for kind in of_each] == [2] * len(of_each)
    # Four of certificates and one of a password in each, and what the replica connects with.
    assert (found["create", "Secret"], found["create", "PostgreSQLPair"]) == (11, 1)
    assert not declared.resources()
    for name, cluster in zip(NAMES.values(), clusters, strict=True):
        assert not cluster.namespaces(declared.run("config", "get", f"{name}:namespace").strip())
    assert [cluster.has_operator() for cluster in clusters] == had


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


def test_a_preview_of_another_setting_shows_that_alone(stack: Stack) -> None:
    program = stack.folder / "__main__.py"
    before = program.read_text()
    declared = 'PostgreSQLConfig(databases=["orders"]'
    assert declared in before
    program.write_text(before.replace(declared, f'{declared}, settings={{"work_mem": "8MB"}}'))
    assert stack.preview().count("8MB") == 4
    assert changes(stack) == {("update", "Cluster"): 2, ("update", "PostgreSQLCluster"): 2}
    program.write_text(before)
    stack.preview("--expect-no-changes")


def test_certificates_are_rotated_by_command_and_by_input_while_clients_write(stack: Stack) -> None:
    handle = stack.outputs()["site"]

    def seen() -> dict[str, Certificates]:
        return {role: member.movable.certificates() for role, member in pair_of(handle).members.items()}

    def rotated(before: Mapping[str, Certificates]) -> dict[str, Certificates]:
        """Return what is seen, once it is all new, and used."""
        found = seen()
        issued = found["primary"]["issued"]
        assert not {issued} & {certificates["issued"] for certificates in before.values()}
        assert (found["primary"]["used"]["toronto"], found["replica"]["held"]) == (issued, issued)
        for certificates in found.values():
            assert certificates["rotation"]
            assert certificates["rotation"]["ended"]
            assert certificates["in_use"]
        return found

    before = stack.outputs()["ca_certificate"]
    with clients(stack) as running:
        found = seen()
        harmony(stack, "rotate-certificates", "--yes")
        found = rotated(found)
        harmony(stack, "rotate-certificates", "--authority", "--yes")
        found = rotated(found)
        program = stack.folder / "__main__.py"
        declared = 'PostgreSQLConfig(databases=["orders"]'
        assert declared in program.read_text()
        program.write_text(program.read_text().replace(declared, f"{declared}, certificate_generation=1"))
        stack.up()
        rotated(found)
        running.wait_until_served()
        running.stop()
        assert not running.errors
    insist(stack, running, "primary")
    assert stack.outputs()["ca_certificate"] != before
    stack.up("--expect-no-changes")
    stack.refresh()
    stack.up("--expect-no-changes")


def test_roles_move_there_and_back_and_nothing_is_lost(stack: Stack) -> None:
    with clients(stack) as running:
        harmony(stack, "switchover", "--to", "toronto", "--yes")
        running.wait_until_served()
        stack.preview("--expect-no-changes")
        stack.up("--expect-no-changes")
        harmony(stack, "switchover", "--to", "montreal", "--yes")
        running.wait_until_served()
    insist(stack, running, "primary")


def test_a_cluster_that_is_cut_off_is_failed_over_from_and_comes_back_by_a_rewind(
    stack: Stack, our_clusters: tuple[Cluster, Cluster]
) -> None:
    """What is lost by that was announced, and what a rewind takes back is what clients miss, exactly."""
    lost = our_clusters[0]
    with deployed_on(our_clusters, stack) as pair, pair.clients() as running:
        lost.cut_from_peer()
        running.wait_until_served()  # Only montreal has this.
        lost.cut()
        try:
            said = harmony(stack, "failover", "--to", "toronto", "--yes", "--max-data-loss", "0", expect=1)
            assert "--fenced-by-me" in said
            asked = time.monotonic()
            said = harmony(
                stack,
                *("failover", "--to", "toronto", "--yes", "--max-data-loss", "1000000", "--accept-unknown-loss"),
                *("--fenced-by-me", "montreal"),
            )
            running.wait_until_served()  # By toronto, before montreal is a primary again that can be reached.
        finally:
            lost.mend()
        announced = re.search(r"lost: (\d+) bytes .* montreal committed in the (\d+) s since", said)
        assert announced, said
        eventually(lambda: status(stack)["montreal"]["state"] == "running", "montreal to answer", 60)
        said = harmony(stack, "rejoin", "--yes")
        assert "montreal is rewound" in said
        seen = status(stack)
        assert {name: member["role"] for name, member in seen.items()} == {"montreal": "standby", "toronto": "primary"}
        place = re.search(r"what montreal alone has is in (\S+) \((\d+) transactions?, (\d+) bytes of WAL\)", said)
        assert place, said
        listed = json.loads(pair.execute("primary", "cat", f"{place[1]}/transactions.json"))
        assert (len(listed["transactions"]), listed["bytes"]) == (int(place[2]), int(place[3]))
        assert int(announced[1]) <= listed["bytes"]
        found = pair.account(running, "replica")
    lost_commits = [attempt for attempt in found.missing if attempt.outcome == "acknowledged"]
    assert lost_commits
    assert min(attempt.ended for attempt in lost_commits) > asked - int(announced[2]) - 1
    with clients(stack) as running:
        harmony(stack, "revert", "--yes")
        running.wait_until_served()
    insist(stack, running, "primary")


def test_a_replica_that_is_lost_is_made_anew_only_if_that_is_asked_for(stack: Stack) -> None:
    site = stack.outputs()["site"]["members"]["replica"]
    api, path = api_of(site), path_of(site["namespace"], site["cluster"])
    before = api.get(path)
    assert before
    api.delete(path)
    eventually(lambda: api.get(path) is None, "the cluster to be gone", 60)
    said = stack.up("--refresh", expect=1)
    assert "has served, and is gone" in said
    assert api.get(path) is None
    secret = f"/api/v1/namespaces/{site['namespace']}/secrets/{site['cluster']}-authority"
    api.patch(secret, {"metadata": {"annotations": {SERVED: None}}})
    stack.up("--refresh")
    after = api.get(path)
    assert after
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    with clients(stack) as running:
        for target in ("toronto", "montreal"):
            harmony(stack, "switchover", "--to", target, "--yes")
            running.wait_until_served()
    insist(stack, running, "primary")
    stack.up("--expect-no-changes")


def test_a_cluster_that_moves_its_own_leader_meanwhile_loses_nothing(stack: Stack) -> None:
    program = stack.folder / "__main__.py"
    assert "        address=config" in program.read_text()
    two = '        instances=2 if name == "montreal" else 1,\n        address=config'
    program.write_text(program.read_text().replace("        address=config", two))
    stack.up()
    site = stack.outputs()["site"]["members"]["primary"]
    path = path_of(site["namespace"], site["cluster"])

    def leading() -> tuple[str, str]:
        there = api_of(site).get(path) or {}
        return there["status"]["currentPrimary"], there["status"]["targetPrimary"]

    tries: list[str] = []

    def moved() -> bool:
        tries.append(harmony(stack, "switchover", "--to", "toronto", "--yes", expect=None))
        return bool(status(stack)["toronto"]["role"] == "primary")

    first = leading()[0]
    (second,) = {f"{site['cluster']}-1", f"{site['cluster']}-2"} - {first}
    with clients(stack) as running:
        # As `kubectl cnpg promote` does.
        moving = {"targetPrimary": second, "phase": "Switchover in progress", "phaseReason": "a test asked for it"}
        moving["targetPrimaryTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        api_of(site).patch(f"{path}/status", {"status": moving})
        # It is refused as long as that lasts, for one reason or another; then it is done.
        eventually(moved, "the roles to move", 180)
        print(*tries, sep="\n")
        assert len(tries) > 1, "the cluster had moved its leader before it was asked to step down"
        running.wait_until_served()
        harmony(stack, "switchover", "--to", "montreal", "--yes")
        running.wait_until_served()
    insist(stack, running, "primary")
    assert leading() == (second, second)


def test_what_a_rewind_takes_back_is_in_no_instance_any_more(
    stack: Stack, our_clusters: tuple[Cluster, Cluster]
) -> None:
    """As the test before left it, montreal has two instances."""
    lost, (site, _) = our_clusters[0], stack.outputs()["site"]["members"].values()
    api, path = api_of(site), path_of(site["namespace"], site["cluster"])

    def instances() -> set[str]:
        there = api.get(path) or {}
        return {*there["status"]["instanceNames"]} if there["status"]["readyInstances"] == 2 else set()

    def streaming() -> int:
        there = api.get(path) or {}
        argv = ["psql", "-XAtc", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"]
        status, said = lost.execute(site["namespace"], there["status"]["currentPrimary"], *argv)
        return int(said) if status == 0 else 0

    before = instances()
    assert len(before) == 2
    with clients(stack) as running:
        lost.cut_from_peer()
        running.wait_until_served()  # Only montreal, and both of its instances, have this.
        running.stop()
    lost.cut()
    harmony(
        stack,
        *("failover", "--to", "toronto", "--yes", "--max-data-loss", "1000000", "--accept-unknown-loss"),
        *("--fenced-by-me", "montreal"),
    )
    lost.mend()
    eventually(lambda: status(stack)["montreal"]["state"] == "running", "montreal to answer", 60)
    assert "montreal is rewound" in harmony(stack, "rejoin", "--yes")
    eventually(lambda: len(instances() - before) == 1, "another instance of montreal to be ready", 180)
    eventually(lambda: streaming() == 1, "it to stream from the one that leads in montreal", 60)
    taken_back = {attempt.value for attempt in running.check(stack.outputs()["replica_uri"]).missing}
    assert taken_back
    for pod in instances():
        code, said = lost.execute(site["namespace"], pod, "psql", "-XAtd", "orders", "-c", "SELECT value FROM history")
        assert code == 0, said
        assert not taken_back & {*said.split()}, pod
    with clients(stack) as running:
        harmony(stack, "revert", "--yes")
        running.wait_until_served()
    insist(stack, running, "primary")
    eventually(lambda: streaming() == 2, "toronto and the other instance to stream", 60)


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
