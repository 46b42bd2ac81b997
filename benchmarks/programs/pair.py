"""A failover pair of PostgreSQL servers on this machine."""

from __future__ import annotations

import os

import pulumi

from harmony_pulumi import Database, FailoverTopology, LinuxHostTopology, MemberPlacement, PostgreSQLConfig


def deploy() -> None:
    """Declare the pair, with its servers in the folder `BENCHMARK_FOLDER`."""
    folder = os.environ["BENCHMARK_FOLDER"]
    site = FailoverTopology("pair", primary=LinuxHostTopology("primary"), replica=LinuxHostTopology("replica"))
    database = site.deploy_postgresql(
        "orders",
        PostgreSQLConfig(
            databases=(Database(name="orders"),),
            on_destroy="delete",
            members={name: MemberPlacement(directory=f"{folder}/{name}") for name in ("primary", "replica")},
        ),
    )
    pulumi.export("ports", {role: member.endpoint["port"] for role, member in database.members.items()})
    pulumi.export("site", database.site)
    pulumi.export("ca_certificate", database.ca_certificate)
