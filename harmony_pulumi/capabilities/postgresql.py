"""The PostgreSQL capability: its verbs, what a deployment returns, and what a site must be able to do.

Knows no topology: where a server runs, and how, is a topology's matter.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, runtime_checkable
from urllib.parse import quote, urlencode

import pulumi

from harmony_pulumi.capabilities.addresses import address, negotiation
from harmony_pulumi.capabilities.base import Capability
from harmony_pulumi.input_errors import InputError, Problem

if TYPE_CHECKING:
    from harmony_pulumi.capabilities.postgresql_config import PostgreSQLConfig


class Endpoint(TypedDict):
    """Where a server answers."""

    host: str
    port: int
    direct: NotRequired[bool]
    """Whether only TLS from the first byte gets there, as past a router that goes by names (SNI): PostgreSQL 17 on."""


class ReplicationCerts(TypedDict):
    """What a replica needs to connect to a server: PEM texts."""

    ca_certificate: str
    """The authority that signed the server's certificate, for `sslmode=verify-full`."""
    client_certificate: str
    """Of the replication role, signed by an authority that the server trusts."""
    client_key: str
    """The key of the client certificate. Secret."""


@dataclass(frozen=True)
class PostgreSQLCluster:
    """What a deployment returns. Every value is an Output, to be wired on."""

    name: str
    endpoint: pulumi.Output[Endpoint]
    """Where the active server answers."""
    uri: pulumi.Output[str]
    """A libpq uri for the first database, as its owner. Secret. It names no file: give `sslrootcert` yourself.

    With a member that is reached by a route it says `sslnegotiation`, which libpq knows from 17 on.
    """
    ca_certificate: pulumi.Output[str]
    """PEM of the authorities that signed the servers' certificates."""
    data_directory: pulumi.Output[str]
    """The data directory (PGDATA) of the active server."""
    version: pulumi.Output[str]
    """For instance `15.8`."""
    site: pulumi.Output[Mapping[str, Any]]
    """The serialisable handle by which orchestration observes the deployment and acts on it."""
    replication_certs: pulumi.Output[ReplicationCerts]
    """Secret."""
    credentials: pulumi.Output[Mapping[str, str]]
    """Passwords by role. Secret."""
    identity: pulumi.Output[str]
    """What makes it this database and no other; known at preview; another one means another database."""
    system_identifier: pulumi.Output[str]
    """PostgreSQL's own identifier, equal in every copy of one database."""
    event_log: pulumi.Output[str]
    """The path, at the site, of the log of every step, one JSON object a line."""
    resource: pulumi.Resource
    """What to depend on."""
    sensitive: bool = False
    """Whether `site` holds what must be kept secret, to log in with."""


@dataclass(frozen=True, kw_only=True)
class PostgreSQLPair(PostgreSQLCluster):
    """A failover pair. As a cluster, it is its active member."""

    members: Mapping[str, PostgreSQLCluster]
    """The clusters of the members, by role: `primary` and `replica`."""
    active: str
    """The desired active member's role."""
    observed_active: pulumi.Output[str]
    """The role of the member that was seen to be active; `none`, or both, is trouble."""
    lag_bytes: pulumi.Output[Mapping[str, int]]
    """By member: the WAL in bytes that it had not replayed as the last run ended; `harmony status` has more."""
    serving: pulumi.Output[str]
    """The role of the member that was last seen to be active alone: where queries go."""


@dataclass(frozen=True)
class Claim:
    """Something that one deployment takes for itself at a place: no two members may claim the same.

    Nor may a directory be inside one that another member claims.
    """

    place: str
    """Names the host, equal for members on one host."""
    kind: str
    """`port` or `directory`."""
    value: str
    path: str
    """The property that asked for it."""
    certain: bool = True
    """False: the place is not known for certain, and may be any other's, too."""


@dataclass(frozen=True)
class PostgreSQLPlan:
    """What a deployment would be: its problems and claims, found without registering or touching anything."""

    problems: tuple[Problem, ...] = ()
    claims: tuple[Claim, ...] = ()
    members: tuple[str, ...] = ()
    """The names of the topologies that would run servers."""
    homes: tuple[Mapping[str, Any], ...] = ()
    """Where servers would keep their data, as each topology writes it; for its own providers to look at."""
    direct: tuple[str, ...] = ()
    """The names of those topologies whose servers only direct TLS would get to (`Endpoint.direct`)."""

    @classmethod
    def joined(cls, plans: Sequence[PostgreSQLPlan]) -> PostgreSQLPlan:
        """Return one plan of several that are to stand side by side: claims that clash become problems."""
        problems = [problem for plan in plans for problem in plan.problems]
        claims: list[Claim] = []
        for plan in plans:
            for claim in plan.claims:
                clashes = (_clash(earlier, claim) for earlier in claims)
                problems += [clash for clash in clashes if clash][:1]
            claims += plan.claims
        return cls(
            tuple(dict.fromkeys(problems)),
            tuple(claims),
            tuple(member for plan in plans for member in plan.members),
            tuple(home for plan in plans for home in plan.homes),
            tuple(name for plan in plans for name in plan.direct),
        )


def _clash(first: Claim, claim: Claim) -> Problem | None:
    """Return why a claim cannot stand beside another member's."""
    one_host = first.place == claim.place
    if first.kind != claim.kind or not (one_host or not first.certain or not claim.certain):
        return None
    if first.value == claim.value:
        other = "" if first.path == claim.path else f", which {first.path} asks for, too"
    elif claim.kind == "directory" and overlap(first.value, claim.value):
        other = f", which overlaps {first.value} of {first.path}"
    else:
        return None
    if claim.kind not in {"port", "directory"}:
        return Problem(claim.path, f"two members cannot both have {claim.kind} {claim.value}{other}; give each its own")
    where = "on one host" if one_host else "that may be on one host"
    told_apart = "" if one_host else ", or say which machine each is on (LinuxHostTopology: `machine_id`)"
    message = (
        f"two members {where} cannot both have {claim.kind} {claim.value}{other}; give each its own with "
        f"`members={{NAME: {{'{claim.kind}': ...}}}}`, or leave it out{told_apart}"
    )
    return Problem(claim.path, message)


def overlap(one: str, other: str) -> bool:
    """Tell whether two directories are the same, or one is inside the other, as far as their paths say."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


@dataclass(frozen=True)
class Replication:
    """What a member is told when it is deployed as part of a higher-order topology."""

    source: PostgreSQLCluster | None = None
    """The cluster to copy and follow; None for the member that begins as primary."""
    certs: pulumi.Output[ReplicationCerts] | None = None
    """How to connect to the source."""
    peers: tuple[Mapping[str, Any], ...] = ()
    """The homes of the other members (`PostgreSQLPlan.homes`): a new database is never made if one has it."""


@runtime_checkable
class PostgreSQL(Capability, Protocol):
    """Runs PostgreSQL databases."""

    def plan_postgresql(self, name: str, config: PostgreSQLConfig) -> PostgreSQLPlan:
        """Return the problems and claims of a deployment. Must be pure: no registration, no site is touched."""
        del name, config
        return PostgreSQLPlan()

    @abstractmethod
    def deploy_postgresql(
        self, name: str, config: PostgreSQLConfig, *, replication: Replication | None = None
    ) -> PostgreSQLCluster:
        """Deploy a database, or with `replication.source` a replica of one.

        Must raise `InputError` with every problem of `plan_postgresql` before it registers anything.
        """

    @abstractmethod
    def get_replication_certs(self, cluster: PostgreSQLCluster) -> pulumi.Output[ReplicationCerts]:
        """Return what a replica of the cluster's active member needs to connect. Secret."""

    @abstractmethod
    def get_endpoint(self, cluster: PostgreSQLCluster) -> pulumi.Output[Endpoint]:
        """Return where the cluster's active member answers."""

    @abstractmethod
    def get_ca_certificate(self, cluster: PostgreSQLCluster) -> pulumi.Output[str]:
        """Return the authority, as PEM, that signed the certificate of the cluster's active member."""


def insist(subject: str, plan: PostgreSQLPlan, config: PostgreSQLConfig) -> None:
    """Refuse a plan with problems.

    Raises:
        InputError: every problem of the plan, and members that are configured but not there.
    """
    problems = list(plan.problems)
    for member in sorted(set(config.members) - set(plan.members)):
        known = ", ".join(plan.members) or "none"
        problems.append(Problem(f"members.{member}", f"no topology of that name runs this database; known: {known}"))
    if problems:
        raise InputError(subject, problems)


def uri(endpoints: Sequence[Endpoint], database: str, role: str, password: str, *, alike: bool = False) -> str:
    """Return a libpq uri: libpq, "Connection URIs".

    With several hosts, a client finds the one that takes writes, unless they are `alike` and any will do.
    """
    hosts = ",".join(address(e["host"], e["port"]) for e in endpoints)
    words = {"sslmode": "verify-full", **negotiation(*endpoints)}
    if len(endpoints) > 1 and not alike:
        words["target_session_attrs"] = "read-write"
    login = f"{quote(role, safe='')}:{quote(password, safe='')}"
    return f"postgresql://{login}@{hosts}/{quote(database, safe='')}?{urlencode(words)}"
