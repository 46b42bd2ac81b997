"""States as `pulumi stack export` prints them, put together from a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Resource = dict[str, Any]
PREFIX = "urn:pulumi:dev::shop::"


def stack(outputs: Mapping[str, Any] | None = None) -> Resource:
    return {"urn": f"{PREFIX}pulumi:pulumi:Stack::shop-dev", "type": "pulumi:pulumi:Stack", "outputs": outputs or {}}


def topology(name: str, kind: str = "LinuxHostTopology", members: Mapping[str, str] | None = None) -> Resource:
    described = {"topology": name, "kind": kind, "capabilities": ["PostgreSQL"]}
    return {
        "urn": f"{PREFIX}harmony:index:{kind}::{name}",
        "type": f"harmony:index:{kind}",
        "parent": f"{PREFIX}pulumi:pulumi:Stack::shop-dev",
        "outputs": {"harmony": {**described, **({"members": members} if members else {})}},
    }


def handle(host: str, database: str = "orders") -> dict[str, Any]:
    return {
        "kind": "tests.cli.sites:ScriptedSite",
        "name": host,
        "root": f"/srv/{host}-{database}",
        "slot": f"harmony_{host}_{database}",
    }


def pair_handle(name: str, primary: Mapping[str, Any], replica: Mapping[str, Any], active: str = "primary") -> Resource:
    return {
        "kind": "harmony_pulumi.orchestration.pair:PairSite",
        "name": name,
        "active": active,
        "members": {"primary": primary, "replica": replica},
    }


def server(host: str, database: str = "orders", port: int = 5432) -> Resource:
    return {
        "urn": f"{PREFIX}harmony:index:LinuxHostTopology$harmony:PostgreSQLServer::{host}-{database}",
        "type": "pulumi-python:dynamic/harmony:PostgreSQLServer",
        "custom": True,
        "parent": topology(host)["urn"],
        "outputs": {
            "name": database,
            "site": handle(host, database),
            "endpoint": {"host": f"{host}.example", "port": port},
            "postgresql_version": "17.2",
        },
    }


def pair(site: Mapping[str, Any], on: Resource, observed_active: str = "primary") -> Resource:
    name = f"{on['outputs']['harmony']['topology']}-{site['name']}"
    return {
        "urn": f"{PREFIX}harmony:index:FailoverTopology$harmony:PostgreSQLPair::{name}",
        "type": "pulumi-python:dynamic/harmony:PostgreSQLPair",
        "custom": True,
        "parent": on["urn"],
        "outputs": {"name": site["name"], "site": site, "observed_active": observed_active},
    }


def failover(name: str, primary: str, replica: str) -> Resource:
    return topology(name, "FailoverTopology", {"primary": primary, "replica": replica})


def one_pair(active: str = "primary", observed_active: str = "") -> list[Resource]:
    """Return a stack with the pair `orders` of montreal and toronto."""
    on = failover("orders", "montreal", "toronto")
    site = pair_handle("orders", handle("montreal"), handle("toronto"), active)
    hosts = [topology("montreal"), topology("toronto")]
    servers = [server("montreal"), server("toronto", port=5433)]
    return [stack(), *hosts, on, *servers, pair(site, on, observed_active or active)]


def pair_of_pairs() -> list[Resource]:
    """Return a stack whose pair `orders` has a pair as its primary and one host as its replica."""
    inner, outer = failover("east", "montreal", "toronto"), failover("world", "east", "dublin")
    inside = pair_handle("orders", handle("montreal"), handle("toronto"))
    site = pair_handle("orders", inside, handle("dublin"))
    hosts = [topology(host) for host in ("montreal", "toronto", "dublin")]
    servers = [server("montreal"), server("toronto", port=5433), server("dublin", port=5434)]
    return [stack(), *hosts, inner, outer, *servers, pair(inside, inner), pair(site, outer)]
