"""What K8sAnywhereTopology declares: objects, names, secrets, and what it refuses before it declares anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pulumi
import pytest
from pulumi.runtime.mocks import MockMonitor

from harmony_pulumi import (
    CapabilityError,
    Database,
    Docker,
    DockerConfig,
    EndpointConfig,
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
AT_17 = CONFIG.model_copy(update={"version": 17})
SECRET = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270"}
REPLICAS = certificates.make_client(certificates.make_authority("test"), "streaming_replica", 30)
OF_HOST = certificates.make_client(certificates.make_authority("test"), "harmony_replication", 30)
KEYS = ("key of the server", "key of replicas", "key of the host's replicas")
BY_ROUTE = {"host": "db.example", "port": 443, "direct": True}
PASSWORDS = {"orders": "correct horse", "Stock": "battery staple"}
MADE = {
    "ca": "the authority",
    "trusted": "the authority",
    "server_certificate": "of the server",
    "server_key": KEYS[0],
    "replication_certificate": REPLICAS.certificate,
    "replication_key": KEYS[1],
    "passwords": PASSWORDS,
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
            "endpoint": BY_ROUTE if args.inputs.get("service_type") == "Route" else {"host": "10.0.0.1", "port": 30432},
            "made": MADE,
            "postgresql_version": "16.4",
            "system_identifier": "7",
            "serving": "primary",
            "replication_certs": {
                "ca_certificate": "the host's authority",
                "client_certificate": OF_HOST.certificate,
                "client_key": KEYS[2],
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


class Monitor(MockMonitor):
    """Remembers what Pulumi is told beside the inputs: parents, and outputs that are to be kept as secrets."""

    def __init__(self, mocks: Mocks) -> None:
        super().__init__(mocks)
        self.parents: dict[tuple[str, str], str] = {}
        self.secret_outputs: dict[str, set[str]] = {}

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802
        kind = request.type.rpartition(":")[2]
        self.parents[kind, request.name] = request.parent.rpartition("::")[2]
        self.secret_outputs.setdefault(kind, set()).update(request.additionalSecretOutputs)
        return super().RegisterResource(request)


def site(name: str = "east", *, address: str = "10.0.0.1", **options: Any) -> K8sAnywhereTopology:
    return K8sAnywhereTopology(name, kubeconfig="apiVersion: v1", address=address, **options)


def pair(*members: Callable[[], PostgreSQL], config: PostgreSQLConfig = CONFIG) -> tuple[Mocks, Monitor]:
    """Return what a program with a pair registers."""
    mocks = Mocks()
    monitor = Monitor(mocks)
    pulumi.runtime.set_mocks(mocks, project="shop", stack="dev", preview=False, monitor=monitor)

    def program() -> None:
        primary, replica = (make() for make in members)
        FailoverTopology[PostgreSQL]("orders", primary=primary, replica=replica).deploy_postgresql("orders", config)

    pulumi.runtime.test(program)()
    return mocks, monitor


def declared(*, config: PostgreSQLConfig = CONFIG, **options: Any) -> tuple[Mocks, dict[str, Any]]:
    """Return what a program with one cluster registers, and the cluster's values."""
    mocks, known = Mocks(), dict[str, Any]()
    pulumi.runtime.set_mocks(mocks, project="shop", stack="dev", preview=False)

    def program() -> pulumi.Output[None]:
        database = site(**options).deploy_postgresql("orders", config)
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


def in_the_open(value: Any) -> Iterator[str]:
    """Iterate over the texts of inputs that are in nothing secret."""
    if isinstance(value, dict) and not SECRET.items() <= value.items():
        for each in value.values():
            yield from in_the_open(each)
    elif isinstance(value, list):
        for each in value:
            yield from in_the_open(each)
    elif not isinstance(value, dict):
        yield str(value)


def host() -> LinuxHostTopology:
    return LinuxHostTopology("west", address="10.0.0.2")


@pytest.mark.parametrize(
    ("members", "follower"),
    [([site, partial(site, "west")], "west-orders"), ([host, site], "east-orders"), ([site, host], "")],
    ids=["clusters", "a cluster follows a host", "a host follows a cluster"],
)
def test_whatever_is_secret_is_declared_so(members: Sequence[Callable[[], PostgreSQL]], follower: str) -> None:
    mocks, monitor = pair(*members)
    texts = [*KEYS, *PASSWORDS.values(), "apiVersion: v1"]
    for name, args in mocks.registered.items():
        # The code of a dynamic provider is no input of anybody's.
        shown = " ".join(in_the_open({key: value for key, value in args.inputs.items() if key != "__provider"}))
        assert [text for text in texts if text in shown] == [], name
    secrets = {name: args.inputs["stringData"] for (kind, name), args in mocks.registered.items() if kind == "Secret"}
    assert all(SECRET.items() <= data.items() for data in secrets.values())
    clusters = [name for kind, name in mocks.registered if kind == "Cluster"]
    kept = {f"{cluster}-{what}" for cluster in clusters for what in ("server", "replication", "login-orders")}
    assert kept | ({f"{follower}-peer"} if follower else set()) <= secrets.keys()
    for cluster in clusters:
        assert SECRET.items() <= mocks.registered["ClusterSecrets", f"{cluster}-secrets"].inputs["passwords"].items()
        assert SECRET.items() <= mocks.registered["PostgreSQLCluster", cluster].inputs["site"].items()
    assert monitor.secret_outputs["ClusterSecrets"] == {"made", "passwords"}


def test_what_a_program_is_given_is_secret_where_it_logs_in() -> None:
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


def test_everything_is_a_child_of_the_topology_that_it_is_on() -> None:
    mocks, monitor = pair(site, partial(site, "west"))
    declared = {kind for kind, _ in mocks.registered} - {"K8sAnywhereTopology", "FailoverTopology", "PostgreSQLPair"}
    assert declared == {
        "KubernetesCluster", "kubernetes", "Namespace", "Service", "ClusterSecrets", "Secret", "Cluster", "Database",
        "PostgreSQLCluster",
    }  # fmt: skip
    for (kind, name), parent in monitor.parents.items():
        if kind in declared:
            assert parent == name.partition("-")[0], (kind, name)
    assert monitor.parents["PostgreSQLPair", "orders-orders"] == "orders"


def test_the_replica_of_a_pair_is_declared_as_one_that_follows_its_source() -> None:
    mocks = pair(site, partial(site, "west"))[0]
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
    mocks = pair(partial(LinuxHostTopology, "east", address="10.0.0.1"), partial(site, "west"))[0]
    clusters = mocks["Cluster", "west-orders"]["spec"]["externalClusters"]
    peer = next(each for each in clusters if each["name"] == "peer")["connectionParameters"]
    assert (peer["host"], peer["user"]) == ("10.0.0.1", "harmony_replication")
    assert mocks["Secret", "west-orders-peer"]["stringData"]["tls.key"] == "key of the host's replicas"
    assert [home["name"] for home in mocks["PostgreSQLServer", "east-orders"]["peers"]] == ["west"]


def test_every_problem_of_the_arguments_is_told_at_once() -> None:
    ingress: Any = "Ingress"
    with pytest.raises(InputError) as caught:
        K8sAnywhereTopology(
            "East", kubeconfig="", namespace="a.b", address="a b", service_type=ingress, instances=0, storage="ten"
        )
    paths = [str(problem).partition(":")[0] for problem in caught.value.problems]
    assert sorted(paths) == ["address", "instances", "name", "namespace", "service_type", "storage"]


def test_a_route_is_declared_beside_a_service_of_the_cluster_s_own() -> None:
    annotation = "haproxy.router.openshift.io/ip_allowlist"
    mocks, known = declared(
        config=AT_17, service_type="Route", address="db.example", service_annotations={annotation: "192.0.2.0/24"}
    )
    route, service = mocks["Route", "east-orders-outside"], mocks["Service", "east-orders-outside"]
    assert route["spec"] == {
        "host": "db.example",
        "to": {"kind": "Service", "name": "east-orders-outside"},
        "port": {"targetPort": "postgresql"},
        "tls": {"termination": "passthrough"},
    }
    assert route["metadata"]["annotations"][annotation] == "192.0.2.0/24"
    assert route["metadata"]["annotations"]["harmony-pulumi.dev/owner"] == "shop/dev/east-orders"
    assert "::east::" in mocks.registered["Route", "east-orders-outside"].provider
    assert service["spec"]["type"] == "ClusterIP"
    assert annotation not in service["metadata"]["annotations"]
    assert mocks["ClusterSecrets", "east-orders-secrets"]["service_type"] == "Route"
    assert known["uri"].endswith("@db.example:443/orders?sslmode=verify-full&sslnegotiation=direct")


def by_route() -> K8sAnywhereTopology:
    return site(service_type="Route", address="db.example")


def test_those_alone_who_connect_to_a_member_by_a_route_begin_with_tls() -> None:
    west = partial(site, "west")
    for members, name, parameters in (
        ((by_route, west), "west-orders", {"host": "db.example", "port": "443", "sslnegotiation": "direct"}),
        ((west, by_route), "east-orders", {"host": "10.0.0.1", "port": "30432"}),
    ):
        mocks = pair(*members, config=AT_17)[0]
        clusters = mocks["Cluster", name]["spec"]["externalClusters"]
        peer = next(each for each in clusters if each["name"] == "peer")["connectionParameters"]
        assert {key: peer[key] for key in ("host", "port", "sslnegotiation") if key in peer} == parameters
    source = pair(by_route, host, config=AT_17)[0]["PostgreSQLServer", "west-orders"]["source"]
    assert source["endpoint"] == BY_ROUTE


def test_what_a_route_cannot_have_is_refused_together_before_anything_is_declared() -> None:
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="shop", stack="dev", preview=False)
    with pytest.raises(InputError) as caught:
        K8sAnywhereTopology("east", kubeconfig="", service_type="Route")
    assert [problem.path for problem in caught.value.problems] == ["address"]
    for member in (host(), site("west")):
        pair = FailoverTopology("orders", primary=member, replica=by_route())
        with pytest.raises(InputError) as caught:
            pair.deploy_postgresql("orders", CONFIG, endpoints=[EndpointConfig(on=LinuxHostTopology("kingston"))])
        assert [problem.path for problem in caught.value.problems] == ["version", "endpoints"]
        assert "endpoints: cannot lead to east: a route takes direct TLS alone" in str(caught.value)
    old = site("west", image="registry.example/postgresql:16")
    with pytest.raises(InputError, match=r"version: 17, and `image` of 'west' is of 16"):
        FailoverTopology("orders", primary=by_route(), replica=old).deploy_postgresql("orders", AT_17)
    assert not [kind for kind, _ in mocks.registered if not kind.endswith("Topology")]


def test_one_route_leads_to_one_database() -> None:
    pulumi.runtime.set_mocks(Mocks(), project="shop", stack="dev", preview=False)

    def program() -> None:
        east = by_route()
        east.deploy_postgresql("orders", AT_17)
        assert not east.plan_postgresql("orders", AT_17).problems
        with pytest.raises(InputError, match=r"name: db\.example leads to 'orders' already"):
            east.deploy_postgresql("stock", AT_17)

    pulumi.runtime.test(program)()


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


@pytest.mark.parametrize(
    ("version", "image", "expected"),
    [
        (16, None, ["ghcr.io/cloudnative-pg/postgresql:16"] * 2),
        # An operator's own default would change as that is upgraded; a copy runs what its source does ("16.4" here).
        (None, None, ["ghcr.io/cloudnative-pg/postgresql:17", "ghcr.io/cloudnative-pg/postgresql:16"]),
        (None, "registry.example/postgresql:15.8", ["registry.example/postgresql:15.8"] * 2),
    ],
)
def test_which_postgresql_runs_is_always_declared(version: int | None, image: str | None, expected: list[str]) -> None:
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="shop", stack="dev", preview=False)
    config = PostgreSQLConfig(databases=["orders"], version=version)

    def program() -> None:
        pair = FailoverTopology("orders", primary=site("east", image=image), replica=site("west", image=image))
        pair.deploy_postgresql("orders", config)

    pulumi.runtime.test(program)()
    assert [mocks["Cluster", name]["spec"]["imageName"] for name in ("east-orders", "west-orders")] == expected
    assert [mocks["ClusterSecrets", f"{n}-orders-secrets"]["image"] for n in ("east", "west")] == expected


def test_a_version_that_is_not_the_image_s_is_refused() -> None:
    pulumi.runtime.set_mocks(Mocks(), project="shop", stack="dev", preview=False)
    image = "registry.example:5000/shop/postgresql:15.8-bookworm@sha256:0123"
    for version, problems in ((15, 0), (16, 1)):
        config = PostgreSQLConfig(databases=["orders"], version=version)
        assert len(site(image=image).plan_postgresql("orders", config).problems) == problems
        assert not site(image="registry.example/shop/ours").plan_postgresql("orders", config).problems


def test_a_pair_may_be_of_different_places() -> None:
    pulumi.runtime.set_mocks(Mocks(), project="shop", stack="dev", preview=False)
    pair = FailoverTopology("orders", primary=site("east"), replica=LinuxHostTopology("west"))
    assert pair.plan_postgresql("orders", PostgreSQLConfig(databases=["orders"])).problems == ()


def test_one_host_name_leads_to_one_member() -> None:
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="shop", stack="dev", preview=False)
    east, west = by_route(), site("west", service_type="Route", address="db.example")
    with pytest.raises(InputError, match=r"two members cannot both have host name db\.example; give each its own"):
        FailoverTopology("orders", primary=east, replica=west).deploy_postgresql("orders", AT_17)
    assert not mocks.registered.keys() & {("Route", "east-orders-outside")}
