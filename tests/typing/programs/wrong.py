"""Misuses, each marked with the checkers that must reject it.

mypy does not look at `self: Failover[Docker]` where it compares a class with a protocol, so it lets a pair pass for what
its members are not as soon as a protocol stands between.
"""

import pulumi
from places import Bare, Host, Workshop

from harmony_pulumi import Database, Docker, DockerConfig, FailoverTopology, K8sAnywhereTopology, LinuxHostTopology
from harmony_pulumi import MemberPlacement, PostgreSQL, PostgreSQLCluster, PostgreSQLConfig

CONFIG = PostgreSQLConfig(databases=["orders"])
NGINX = DockerConfig(image="nginx:1.27")


def needs_docker(topology: Docker) -> None:
    topology.deploy_docker("web", NGINX)


def needs_postgresql(topology: PostgreSQL) -> None:
    topology.deploy_postgresql("orders", CONFIG)


# A capability that is missing.
hosts = FailoverTopology("hosts", primary=LinuxHostTopology("a"), replica=LinuxHostTopology("b"))
hosts.deploy_docker("web", NGINX)  # expect: all
needs_docker(hosts)  # expect: pyright ty
LinuxHostTopology("c").deploy_docker("web", NGINX)  # expect: all
needs_docker(LinuxHostTopology("d"))  # expect: all
workshops = FailoverTopology("workshops", primary=Workshop("e"), replica=Workshop("f"))
workshops.deploy_postgresql("orders", CONFIG)  # expect: all
needs_postgresql(workshops)  # expect: pyright ty

east, west = K8sAnywhereTopology("east", kubeconfig=""), K8sAnywhereTopology("west", kubeconfig="")
clusters = FailoverTopology("clusters", primary=east, replica=west)
clusters.deploy_docker("web", NGINX)  # expect: all
needs_docker(clusters)  # expect: pyright ty
east.deploy_docker("web", NGINX)  # expect: all
needs_docker(east)  # expect: all

nested = FailoverTopology("nested", primary=hosts, replica=hosts)
nested.deploy_docker("web", NGINX)  # expect: pyright ty
needs_docker(nested)  # expect: pyright ty

mixed: FailoverTopology[PostgreSQL] = FailoverTopology("mixed", primary=LinuxHostTopology("g"), replica=Host("h"))
mixed.deploy_docker("web", NGINX)  # expect: all
needs_docker(mixed)  # expect: pyright ty

lacking: FailoverTopology[PostgreSQL] = FailoverTopology("lacking", primary=Host("i"), replica=Workshop("j"))  # expect: all
bare = FailoverTopology("bare", primary=Host("k"), replica=Bare("l"))
bare.deploy_postgresql("orders", CONFIG)  # expect: all
needs_postgresql(FailoverTopology("bare", primary=Bare("m"), replica=Bare("n")))  # expect: pyright ty
narrowed: FailoverTopology[Host] = hosts  # expect: all

# Members.
FailoverTopology("names", primary="montreal", replica="toronto")  # expect: all
FailoverTopology("none", primary=LinuxHostTopology("o"), replica=None)  # expect: all
FailoverTopology("class", primary=LinuxHostTopology, replica=LinuxHostTopology)  # expect: all
FailoverTopology("positional", LinuxHostTopology("p"), LinuxHostTopology("q"))  # expect: all
FailoverTopology("alone", primary=LinuxHostTopology("r"))  # expect: all
FailoverTopology("typo", primary=LinuxHostTopology("s"), secondary=LinuxHostTopology("t"))  # expect: all
hosts.standby  # expect: all

# Places.
K8sAnywhereTopology("nowhere")  # expect: all
K8sAnywhereTopology("ingress", kubeconfig="", service_type="Ingress")  # expect: all
K8sAnywhereTopology("many", kubeconfig="", instances="3")  # expect: all

# Configurations.
hosts.deploy_postgresql("orders", NGINX)  # expect: all
hosts.deploy_postgresql("orders")  # expect: all
hosts.deploy_postgresql(CONFIG)  # expect: all
hosts.deploy_postgresql("orders", {"databases": ["orders"]})  # expect: all
PostgreSQLConfig(databases=["orders"], setings={"work_mem": "16MB"})  # expect: all
PostgreSQLConfig(databases=["orders"], replication="eventual")  # expect: all
PostgreSQLConfig(databases=["orders"], port=(5432,))  # expect: all
PostgreSQLConfig()  # expect: all
PostgreSQLConfig(databases=[5])  # expect: all
PostgreSQLConfig(databases=(Database("orders"),))  # expect: all
MemberPlacement(prot=5433)  # expect: all
DockerConfig(image=5)  # expect: all

# Outputs.
database = hosts.deploy_postgresql("orders", CONFIG)
uri: str = database.uri  # expect: all
database.uri.upper()  # expect: all
port: int = database.endpoint["port"]  # expect: all
database.members.primary  # expect: all
database.urn  # expect: all
alone: PostgreSQLCluster = LinuxHostTopology("u").deploy_postgresql("orders", CONFIG)
alone.members  # expect: all
hosts.get_endpoint("orders")  # expect: all
pulumi.export("uri", database.url)  # expect: all


# Topologies.
class Unfinished(LinuxHostTopology, Docker):
    """Says that it provides Docker, and does not."""


class Different(Workshop):
    """Takes another configuration than the capability says."""

    def deploy_docker(self, name: str, config: PostgreSQLConfig) -> None: ...  # expect: all


needs_docker(Unfinished("v"))  # expect: all
