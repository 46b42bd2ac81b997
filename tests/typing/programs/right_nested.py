# pyright: strict
"""Pairs of pairs."""

from typing import assert_type

from places import Host

from harmony_pulumi import DockerConfig, FailoverTopology, LinuxHostTopology, PostgreSQL, PostgreSQLConfig
from harmony_pulumi import PostgreSQLPair

CONFIG = PostgreSQLConfig(databases=["orders"])

east = FailoverTopology("east", primary=LinuxHostTopology("a"), replica=LinuxHostTopology("b"))
west = FailoverTopology("west", primary=LinuxHostTopology("c"), replica=LinuxHostTopology("d"))
whole = FailoverTopology("whole", primary=east, replica=west)
assert_type(whole, FailoverTopology[FailoverTopology[LinuxHostTopology]])
assert_type(whole.deploy_postgresql("orders", CONFIG), PostgreSQLPair)
assert_type(whole.primary.replica, LinuxHostTopology)

hosts = FailoverTopology("hosts", primary=Host("e"), replica=Host("f"))
deeper: FailoverTopology[PostgreSQL] = FailoverTopology("deeper", primary=whole, replica=hosts)
assert_type(deeper.deploy_postgresql("orders", CONFIG), PostgreSQLPair)

twice = FailoverTopology("twice", primary=hosts, replica=FailoverTopology("g", primary=Host("h"), replica=Host("i")))
twice.deploy_docker("web", DockerConfig(image="nginx:1.27"))
