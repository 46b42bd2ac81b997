# pyright: strict
"""Members of different kinds, with what they share written out."""

from typing import assert_type

from places import Host, Workshop

from harmony_pulumi import Docker, DockerConfig, DockerService, FailoverTopology, K8sAnywhereTopology
from harmony_pulumi import LinuxHostTopology, PostgreSQL, PostgreSQLConfig, PostgreSQLPair

CONFIG = PostgreSQLConfig(databases=["orders"])


def needs_postgresql(topology: PostgreSQL) -> None:
    topology.deploy_postgresql("orders", CONFIG)


def needs_docker(topology: Docker) -> None:
    topology.deploy_docker("web", DockerConfig(image="nginx:1.27"))


mixed: FailoverTopology[PostgreSQL] = FailoverTopology("m", primary=LinuxHostTopology("a"), replica=Host("b"))
assert_type(mixed.deploy_postgresql("orders", CONFIG), PostgreSQLPair)
needs_postgresql(mixed)

cluster = K8sAnywhereTopology("k", kubeconfig="")
beside: FailoverTopology[PostgreSQL] = FailoverTopology("n", primary=cluster, replica=LinuxHostTopology("o"))
assert_type(beside.deploy_postgresql("orders", CONFIG), PostgreSQLPair)
needs_postgresql(beside)

docker: FailoverTopology[Docker] = FailoverTopology("d", primary=Workshop("c"), replica=Host("d"))
assert_type(docker.deploy_docker("web", DockerConfig(image="nginx:1.27")), DockerService)
needs_docker(docker)

both = FailoverTopology("b", primary=Host("e"), replica=Host("f"))
needs_postgresql(both)
needs_docker(both)

widened: FailoverTopology[PostgreSQL] = both
needs_postgresql(widened)
