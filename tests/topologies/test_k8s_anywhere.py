"""What K8sAnywhereTopology declares: objects, names, secrets, and what it refuses before it declares anything."""

from __future__ import annotations

from typing import Any

import pulumi
import pytest

from harmony_pulumi import (
    CapabilityError,
    Database,
    Docker,
    DockerConfig,
    FailoverTopology,
    InputError,
    K8sAnywhereTopology,
    LinuxHostTopology,
    PostgreSQL,
    PostgreSQLConfig,
)
from harmony_pulumi.hosts.postgresql import certificates

CONFIG = PostgreSQLConfig(
    databases=[Database(name="orders", extensions=("pg_trgm",)), Database(name="Stock", owner="orders")],
    settings={"work_mem": "8MB", "jit": False},
    version=16,
)
SECRET = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270"}
REPLICAS = certificates.make_client(certificates.make_authority("test"), "streaming_replica", 30)
OF_HOST = certificates.make_client(certificates.make_authority("test"), "harmony_replication", 30)
MADE = {
    "ca": "the authority",
    "trusted": "the authority",
    "server_certificate": "of the server",
    "server_key": "key of the server",
    "replication_certificate": REPLICAS.certificate,
    "replication_key": "key of replicas",
    "passwords": {"orders": "correct horse", "Stock": "battery staple"},
}


def plain(value: Any) -> Any:
    """Return inputs without the marks of what is secret."""
    if isinstance(value, dict):
        return plain(value["value"]) if SECRET.items() <= value.items() else {k: plain(v) for k, v in value.items()}
    return value


class Mocks(pulumi.runtime.Mocks):
    """Remembers what is registered, and makes what the real providers would."""

    def __init__(self) -> None:
        self.registered: dict[tuple[str, str], Any] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        assert args.name is not None
        self.registered[args.typ.rpartition(":")[2], args.name] = args
        made = {
            "found": {"service_type": "NodePort", "uid": "a-b-c"},
            "endpoint": {"host": "10.0.0.1", "port": 30432},
            "made": MADE,
            "postgresql_version": "16.4",
            "system_identifier": "7",
            "serving": "primary",
            "replication_certs": {
                "ca_certificate": "the host's authority",
                "client_certificate": OF_HOST.certificate,
                "client_key": "key of the host's replicas",
            },
            "ca_certificate": "the host's authority",
            "identity": "the host's",
            "credentials": {"orders": "correct horse"},
        }
        return args.name, {**args.inputs, **{key: value for key, value in made.items() if not args.inputs.get(key)}}

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], None]:
        return {}, None

    def __getitem__(self, key: tuple[str, str]) -> Any:
        return plain(self.registered[key].inputs)


def site(name: str = "east", **options: Any) -> K8sAnywhereTopology:
    return K8sAnywhereTopology(name, kubeconfig="apiVersion: v1", address="10.0.0.1", **options)


def declared(**options: Any) -> tuple[Mocks, dict[str, Any]]:
    """Return what a program with one cluster registers, and the cluster's values."""
    mocks, known = Mocks(), dict[str, Any]()
    pulumi.runtime.set_mocks(mocks, project="shop", stack="dev", preview=False)

    def program() -> pulumi.Output[None]:
        database = site(**options).deploy_postgresql("orders", CONFIG)
        values = {"uri": database.uri, "site": database.site, "certs": database.replication_certs}
        return pulumi.Output.all(**values).apply(known.update)

    pulumi.runtime.test(program)()
    return mocks, known


def test_a_cluster_and_everything_that_it_needs_are_declared_by_the_kubernetes_provider() -> None:
    resources = {"requests": {"memory": "2Gi", "cpu": "500m"}}
    mocks, known = declared(
        storage="50Gi",
        storage_class="fast",
        instances=3,
        synchronous_instances=1,
        resources=resources,
        service_annotations={"networking.gke.io/load-balancer-type": "Internal"},
    )
    cluster = mocks["Cluster", "east-orders"]
    assert cluster["metadata"] == {
        "name": "east-orders",
        "namespace": "postgresql",
        "annotations": {
            "harmony-pulumi.dev/owner": "shop/dev/east-orders",
            "pulumi.com/patchForce": "true",
            "cnpg.io/skipWalArchiving": "enabled",
        },
    }
    spec = cluster["spec"]
    assert spec["instances"] == 3
    assert spec["resources"] == resources
    assert spec["postgresql"]["synchronous"] == {"method": "any", "number": 1}
    assert spec["imageName"] == "ghcr.io/cloudnative-pg/postgresql:16"
    assert spec["storage"] == {"size": "50Gi", "storageClass": "fast"}
    assert spec["bootstrap"]["initdb"]["database"] == "orders"
    assert spec["postgresql"]["parameters"]["work_mem"] == "8MB"
    assert spec["postgresql"]["parameters"]["jit"] == "off"
    assert spec["postgresql"]["pg_hba"][-1] == "host all all all reject"
    assert "replica" not in spec
    assert mocks["Database", "east-orders-orders"]["spec"]["extensions"] == [{"name": "pg_trgm", "ensure": "present"}]
    [stock] = [name for kind, name in mocks.registered if kind == "Database" and name.startswith("east-orders-stock-")]
    assert mocks["Database", stock]["spec"]["owner"] == "orders"
    service = mocks["Service", "east-orders-outside"]
    assert service["spec"]["type"] == "NodePort"
    assert service["metadata"]["annotations"] == {
        "networking.gke.io/load-balancer-type": "Internal",
        "harmony-pulumi.dev/owner": "shop/dev/east-orders",
        "pulumi.com/patchForce": "true",
        "pulumi.com/skipAwait": "true",
    }
    assert mocks["Namespace", "east-postgresql"]["metadata"]["name"] == "postgresql"
    of_kubernetes = [args for args in mocks.registered.values() if args.typ.startswith("kubernetes:")]
    assert {args.provider.rpartition("::")[0].rpartition("::")[2] for args in of_kubernetes} == {"east"}
    options = mocks["kubernetes", "east"]
    assert {key for key, value in options.items() if value == "true"} == {
        "enableSecretMutable",
        "skipUpdateUnreachable",
        "upsertExistingObjects",
    }
    assert options["clusterIdentifier"] == "a-b-c"
    assert known["uri"] == "postgresql://orders:correct%20horse@10.0.0.1:30432/orders?sslmode=verify-full"
    assert known["certs"]["client_key"] == "key of replicas"
    assert known["site"]["cluster"] == "east-orders"


def test_whatever_is_secret_is_declared_so() -> None:
    mocks = declared()[0]
    for name in ("east-orders-server", "east-orders-replication", "east-orders-login-orders"):
        assert SECRET.items() <= mocks.registered["Secret", name].inputs["stringData"].items()
    assert SECRET.items() <= mocks.registered["KubernetesCluster", "east"].inputs["kubeconfig"].items()
    secret: dict[str, bool] = {}
    pulumi.runtime.set_mocks(Mocks(), project="shop", stack="dev", preview=False)

    async def look(database: Any) -> None:
        for name in ("uri", "site", "replication_certs", "credentials"):
            secret[name] = await getattr(database, name).is_secret()

    def program() -> Any:
        return pulumi.Output.from_input(look(site().deploy_postgresql("orders", CONFIG)))

    pulumi.runtime.test(program)()
    assert secret == dict.fromkeys(secret, True)
    assert len(secret) == 4


def test_the_replica_of_a_pair_is_declared_as_one_that_follows_its_source() -> None:
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="shop", stack="dev", preview=False)

    def program() -> None:
        FailoverTopology("orders", primary=site("east"), replica=site("west")).deploy_postgresql("orders", CONFIG)

    pulumi.runtime.test(program)()
    spec = mocks["Cluster", "west-orders"]["spec"]
    assert spec["replica"] == {"self": "west-orders", "primary": "peer", "source": "peer"}
    assert spec["bootstrap"]["pg_basebackup"]["source"] == "peer"
    peer = next(each for each in spec["externalClusters"] if each["name"] == "peer")["connectionParameters"]
    assert (peer["host"], peer["port"], peer["sslmode"]) == ("10.0.0.1", "30432", "verify-full")
    assert peer["application_name"] == "west"
    assert peer["user"] == "streaming_replica"
    assert mocks["Secret", "west-orders-peer"]["stringData"]["tls.key"] == "key of replicas"
    assert mocks["PostgreSQLPair", "orders-orders"]["members"]["replica"]["name"] == "west"


def test_a_cluster_follows_a_host_as_the_role_of_the_host_s_certificate() -> None:
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="shop", stack="dev", preview=False)

    def program() -> None:
        host = LinuxHostTopology("east", address="10.0.0.1")
        FailoverTopology[PostgreSQL]("orders", primary=host, replica=site("west")).deploy_postgresql("orders", CONFIG)

    pulumi.runtime.test(program)()
    clusters = mocks["Cluster", "west-orders"]["spec"]["externalClusters"]
    peer = next(each for each in clusters if each["name"] == "peer")["connectionParameters"]
    assert (peer["host"], peer["user"]) == ("10.0.0.1", "harmony_replication")
    assert mocks["Secret", "west-orders-peer"]["stringData"]["tls.key"] == "key of the host's replicas"
    assert [home["name"] for home in mocks["PostgreSQLServer", "east-orders"]["peers"]] == ["west"]


def test_every_problem_of_the_arguments_is_told_at_once() -> None:
    route: Any = "Route"
    with pytest.raises(InputError) as caught:
        K8sAnywhereTopology(
            "East", kubeconfig="", namespace="a.b", address="a b", service_type=route, instances=0, storage="ten"
        )
    paths = [str(problem).partition(":")[0] for problem in caught.value.problems]
    assert sorted(paths) == ["address", "instances", "name", "namespace", "service_type", "storage"]


def test_what_instances_cannot_be_is_told_by_its_path() -> None:
    resources = {"requests": {"memory": "much", "cpu": "1.5"}, "guesses": {"memory": "1Gi"}}
    with pytest.raises(InputError) as caught:
        K8sAnywhereTopology("east", kubeconfig="", instances=2, synchronous_instances=2, resources=resources)
    assert [str(problem) for problem in caught.value.problems] == [
        "synchronous_instances: 2 of 1 local replicas; expected from 0 to that",
        "resources.guesses: no such kind; there are requests and limits",
        "resources.requests.memory: 'much' is not an amount; expected for instance '2Gi', '500m' or '1'",
    ]


def test_what_has_no_meaning_on_kubernetes_is_refused_before_anything_is_declared() -> None:
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="shop", stack="dev", preview=False)
    config = PostgreSQLConfig(databases=["orders"], port=5433, directory="/srv/orders", replication="synchronous")
    with pytest.raises(InputError) as caught:
        site().deploy_postgresql("orders_1", config)
    problems = [str(problem) for problem in caught.value.problems]
    assert [problem.partition(":")[0] for problem in problems] == ["name", "port", "directory", "replication"]
    assert not [kind for kind, _ in mocks.registered if kind != "K8sAnywhereTopology"]


def test_docker_is_no_capability_of_a_pair_of_them() -> None:
    pulumi.runtime.set_mocks(Mocks(), project="shop", stack="dev", preview=False)
    pair = FailoverTopology("orders", primary=site("east"), replica=site("west"))
    assert not isinstance(pair, Docker)
    with pytest.raises(CapabilityError) as caught:
        pair.deploy_docker("web", DockerConfig(image="nginx:1.27"))  # pyright: ignore[reportAttributeAccessIssue]
    assert str(caught.value) == (
        "FailoverTopology 'orders' does not provide Docker, so it has no deploy_docker(). It provides what all its "
        "members provide, and 'east' lacks Docker and 'west' lacks Docker: primary 'east' (K8sAnywhereTopology) "
        "provides PostgreSQL; replica 'west' (K8sAnywhereTopology) provides PostgreSQL; together PostgreSQL. Use "
        "members that provide Docker, or do not ask for it here."
    )


def test_a_pair_may_be_of_different_places() -> None:
    pulumi.runtime.set_mocks(Mocks(), project="shop", stack="dev", preview=False)
    pair = FailoverTopology("orders", primary=site("east"), replica=LinuxHostTopology("west"))
    assert pair.plan_postgresql("orders", PostgreSQLConfig(databases=["orders"])).problems == ()
