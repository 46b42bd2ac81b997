"""The conformance kit passes every implementation here, finds those that break the contract, and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pulumi
import pytest

from harmony_pulumi import (
    FailoverTopology,
    LinuxHostTopology,
    PostgreSQL,
    PostgreSQLCluster,
    PostgreSQLConfig,
    PostgreSQLPlan,
    Replication,
)
from harmony_pulumi.capabilities.postgresql import ReplicationCerts
from harmony_pulumi.orchestration.pair import pair_of
from harmony_pulumi.orchestration.replication import Member
from harmony_pulumi.testing import ConformanceError, check_postgresql, check_sites
from harmony_pulumi.testing.sandbox import Sandbox
from tests.e2e.conftest import base_folder, eventually, processes_about, superuser
from tests.e2e.sampling import sampled

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Assert that the kit leaves no folder, no server, and the process as it was.

    Others may run the kit meanwhile, so only the sandboxes made here are looked at.
    """
    made: list[Sandbox] = []
    make = Sandbox.__init__

    def make_and_remember(sandbox: Sandbox) -> None:
        make(sandbox)
        made.append(sandbox)

    monkeypatch.setattr(Sandbox, "__init__", make_and_remember)

    def seen() -> dict[str, object]:
        return {
            "environment": {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"},
            "working directory": Path.cwd(),
        }

    before = seen()
    yield
    assert seen() == before
    assert made
    for sandbox in made:
        assert not sandbox.folder.exists()
        assert not list((base_folder() / sandbox.project).glob("*/*"))
        words = (str(sandbox.folder), str(base_folder() / sandbox.project))
        eventually(partial(_none_about, *words), "all of its processes to end")


def _none_about(*words: str) -> bool:
    return not processes_about(*words)


def pair(name: str) -> PostgreSQL:
    return FailoverTopology(name, primary=LinuxHostTopology(f"{name}-a"), replica=LinuxHostTopology(f"{name}-b"))


@pytest.mark.parametrize("implementation", [LinuxHostTopology, pair])
def test_every_implementation_here_keeps_the_contract(implementation: Callable[[str], PostgreSQL]) -> None:
    report = check_postgresql(implementation)
    assert report.subject == implementation.__qualname__
    assert len(report.passed) == 17


def test_the_sites_of_a_deployed_pair_keep_the_contract_by_which_roles_move() -> None:
    def program() -> None:
        site = FailoverTopology("kit", primary=LinuxHostTopology("kit-one"), replica=LinuxHostTopology("kit-two"))
        database = site.deploy_postgresql("kit", PostgreSQLConfig(databases=["kit"], on_destroy="delete"))
        pulumi.export("site", database.site)

    with Sandbox() as sandbox:
        sandbox.before_removal = program
        outputs, _ = sandbox.up(program)
        handle = json.loads(json.dumps(outputs["site"].value))

        def ask(member: Member, sql: str) -> str:
            root = Path(member.handle["root"])
            return superuser(root, sql, json.loads((root / "harmony.json").read_text())["port"], "kit")

        def commit(member: Member) -> None:
            ask(member, "CREATE TABLE IF NOT EXISTS commits (); INSERT INTO commits DEFAULT VALUES")

        def count(member: Member) -> int:
            there = ask(member, "SELECT to_regclass('commits')")
            return int(ask(member, "SELECT count(*) FROM commits")) if there else 0

        report = check_sites(lambda: pair_of(handle), commit, count)
        assert (report.subject, len(report.passed)) == ("HostPostgreSQL", 13)
        for aside in (base_folder() / sandbox.project).glob("*/*/kept/*"):
            shutil.rmtree(aside)


class Careless(LinuxHostTopology):
    """Plans without looking."""

    def plan_postgresql(self, name: str, config: PostgreSQLConfig) -> PostgreSQLPlan:
        return replace(super().plan_postgresql(name, config), problems=())


class Hasty(LinuxHostTopology):
    """Registers before it has looked."""

    def plan_postgresql(self, name: str, config: PostgreSQLConfig) -> PostgreSQLPlan:
        pulumi.ComponentResource("hasty:index:Thing", f"{self.name}-{name.partition('/')[0]}")
        return super().plan_postgresql(name, config)


class Talkative(LinuxHostTopology):
    """Says a password in the clear."""

    def deploy_postgresql(
        self, name: str, config: PostgreSQLConfig, *, replication: Replication | None = None
    ) -> PostgreSQLCluster:
        cluster = super().deploy_postgresql(name, config, replication=replication)
        return replace(cluster, uri=pulumi.Output.unsecret(cluster.uri))


class Stranger(LinuxHostTopology):
    """Gives certificates of somebody else."""

    def get_replication_certs(self, cluster: PostgreSQLCluster) -> pulumi.Output[ReplicationCerts]:
        def forge(certs: ReplicationCerts) -> ReplicationCerts:
            from harmony_pulumi.hosts.postgresql.certificates import make_authority, make_client

            forged = make_client(make_authority("stranger"), "harmony_replication", 1)
            return {**certs, "client_certificate": forged.certificate, "client_key": forged.key}

        return super().get_replication_certs(cluster).apply(forge)


class Detached(LinuxHostTopology):
    """Deploys a primary where a replica is asked for."""

    def deploy_postgresql(
        self, name: str, config: PostgreSQLConfig, *, replication: Replication | None = None
    ) -> PostgreSQLCluster:
        return super().deploy_postgresql(name, config)


class Restless(LinuxHostTopology):
    """Finds something to change every time."""

    runs = 0

    def deploy_postgresql(
        self, name: str, config: PostgreSQLConfig, *, replication: Replication | None = None
    ) -> PostgreSQLCluster:
        type(self).runs += 1
        settings: Mapping[str, Any] = {"max_connections": 100 + self.runs}
        return super().deploy_postgresql(
            name, config.model_copy(update={"settings": settings}), replication=replication
        )


class Forgetful(LinuxHostTopology):
    """Deletes the data, whatever is configured."""

    def deploy_postgresql(
        self, name: str, config: PostgreSQLConfig, *, replication: Replication | None = None
    ) -> PostgreSQLCluster:
        return super().deploy_postgresql(
            name, config.model_copy(update={"on_destroy": "delete"}), replication=replication
        )


@pytest.mark.parametrize(
    ("implementation", "sentence", "found"),
    sampled(
        [
            (Careless, "plan_postgresql lists the problems of a bad name", "found: no problem"),
            (Hasty, "plan_postgresql registers nothing", "hasty:index:Thing"),
            (Talkative, "What holds a password or a key is a secret", "in the clear: uri"),
            (Stranger, "Replication with the certificates of get_replication_certs is accepted", "unknown ca"),
            (Detached, "A deployment with Replication(source=...) streams", "'role': 'primary'"),
            (Restless, "A second up of the same program changes nothing", "harmony:PostgreSQLServer kit-one-kit"),
            (
                Forgetful,
                "destroy stops the servers and keeps the data",
                'on the primary: relation "kit" does not exist',
            ),
        ],
        4,
    ),
)
def test_what_breaks_the_contract_is_found_and_removed(
    implementation: type[LinuxHostTopology], sentence: str, found: str
) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_postgresql(implementation)
    assert str(caught.value).startswith(f"{implementation.__name__}: this does not hold: {sentence}")
    assert found in str(caught.value)
    assert not getattr(caught.value, "__notes__", []), "what was deployed could be removed"


def test_a_failing_deployment_is_told_as_the_engine_told_it() -> None:
    def nobody(name: str) -> PostgreSQL:
        return LinuxHostTopology(name, user="nobody-of-that-name")

    with pytest.raises(ConformanceError, match="has no OS user 'nobody-of-that-name'"):
        check_postgresql(nobody)
