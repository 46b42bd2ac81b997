# pyright: strict
"""A pair of hosts, a pair of clusters: what is deployed on one, its members and its queries."""

from typing import assert_type

import pulumi

from harmony_pulumi import Database, FailoverTopology, K8sAnywhereTopology, LinuxHostTopology, MemberPlacement
from harmony_pulumi import PostgreSQLCluster, PostgreSQLConfig, PostgreSQLPair
from harmony_pulumi.capabilities.postgresql import Endpoint, ReplicationCerts

site = FailoverTopology("orders", primary=LinuxHostTopology("a"), replica=LinuxHostTopology("b"))
assert_type(site, FailoverTopology[LinuxHostTopology])
assert_type(site.primary, LinuxHostTopology)
assert_type(site.members["replica"], LinuxHostTopology)

config = PostgreSQLConfig(
    databases=(Database(name="orders", extensions=("pg_trgm",)),),
    settings={"work_mem": "16MB", "max_connections": 200, "jit": False},
    members={"b": MemberPlacement(port=5433)},
)
database = site.deploy_postgresql("orders", config)
assert_type(database, PostgreSQLPair)
assert_type(database.uri, pulumi.Output[str])
assert_type(database.members["replica"], PostgreSQLCluster)
assert_type(database.members["replica"].uri, pulumi.Output[str])
assert_type(site.get_endpoint(database), pulumi.Output[Endpoint])
assert_type(site.get_replication_certs(database), pulumi.Output[ReplicationCerts])
assert_type(site.get_ca_certificate(database), pulumi.Output[str])
pulumi.export("port", database.endpoint["port"])
pulumi.export("message", pulumi.Output.concat("connect to ", database.uri))

alone = LinuxHostTopology("c").deploy_postgresql("orders", config)
assert_type(alone, PostgreSQLCluster)

east = K8sAnywhereTopology("east", kubeconfig=pulumi.Output.secret(""), service_type="NodePort", address="east.example")
north = K8sAnywhereTopology("north", kubeconfig="", service_type="Route", address="north.example")
west = K8sAnywhereTopology("west", kubeconfig="", instances=3, resources={"requests": {"memory": "2Gi"}})
clusters = FailoverTopology("clusters", primary=east, replica=west)
assert_type(clusters, FailoverTopology[K8sAnywhereTopology])
assert_type(clusters.primary, K8sAnywhereTopology)
assert_type(clusters.deploy_postgresql("orders", config), PostgreSQLPair)
assert_type(west.deploy_postgresql("stock", config), PostgreSQLCluster)
