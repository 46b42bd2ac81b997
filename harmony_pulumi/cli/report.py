"""What was seen of the databases, judged. Pure: observations in, a report out.

`harmony status --json` prints a `Report` as one JSON document; its fields are the fields here, under the same names.
Times are ISO 8601 in UTC, sizes are bytes, durations are seconds. Fields may be added; none changes its meaning while
`schema` stays the same. What is not known is null, or empty text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from harmony_pulumi.capabilities.addresses import is_same
from harmony_pulumi.cli.deployed import Database, Handle, Member
from harmony_pulumi.errors import counted
from harmony_pulumi.orchestration.roles import command

SCHEMA = 1

CERTIFICATE_WARNING_DAYS = 30
CERTIFICATE_PROBLEM_DAYS = 7
SLOT_WARNING = 0.8
"""The part of its bound from which on a slot is worth a warning."""

Severity = Literal["problem", "warning"]
Code = Literal[
    "absent",
    "active_differs",
    "certificate",
    "commits_wait",
    "different_database",
    "endpoint",
    "left_behind",
    "no_pair",
    "no_primary",
    "not_encrypted",
    "not_streaming",
    "not_synchronous",
    "slot",
    "stopped",
    "two_primaries",
    "unfinished",
    "unknown",
    "unreachable",
]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    severity: Severity
    """`problem`: the database is not healthy. `warning`: it is, and will not be if nothing is done."""
    code: Code
    database: str
    member: str
    """Empty if it is about the database as a whole."""
    message: str
    """What was found, and what to do."""
    endpoint: str = ""
    """The name of the endpoint that it is about, if it is."""


@dataclass(frozen=True)
class ReplicationStatus:
    """A standby, as the member that it streams from sees it."""

    source: str
    """The name of that member."""
    state: str
    """`streaming` once it has caught up: PostgreSQL, "pg_stat_replication"."""
    sync_state: str
    """`async`, `sync`, `potential` or `quorum`."""
    lag_bytes: int
    """WAL that it has not replayed yet."""
    lag_seconds: float
    """How old the last commit was when it replayed it."""
    tls: str
    """For instance `TLSv1.3`; empty without TLS."""
    client: str
    """The subject of its certificate."""


@dataclass(frozen=True)
class SlotStatus:
    """A physical replication slot."""

    name: str
    active: bool
    retained_bytes: int
    bound_bytes: int | None
    """How much it may keep; null without a bound."""
    wal_status: str
    """`reserved`, `extended`, `unreserved` or `lost`: PostgreSQL, "pg_replication_slots"."""


@dataclass(frozen=True)
class CertificateStatus:
    """A certificate at the member's site."""

    name: str
    """`ca`, `server`, `replication` (what replicas show to it) or `source-client` (what it shows to its source)."""
    expires: str
    days_left: int
    """Whole days; negative once it has expired."""


@dataclass(frozen=True)
class MemberStatus:
    """One server."""

    name: str
    position: str
    """`primary` or `replica` as declared, with `/` between levels; empty for a server that stands alone."""
    state: str
    """`running`, `stopped`, `absent`, `unreachable`; or `unknown`, if it answers and could not be looked at."""
    detail: str
    """Why, if it is not running."""
    active: bool
    """Whether it is a running primary."""
    role: str
    """`primary` or `standby`; empty if it does not run."""
    endpoint: str
    version: str
    system_identifier: str
    timeline: int | None
    lsn: str
    """Written, on a primary; replayed, on a standby."""
    receiver: str
    """On a standby: the state of its connection to its source; empty without one."""
    replayed_at: str
    """On a standby: when the last transaction that it replayed was committed."""
    waits_for: str
    """On a primary: the replicas that commits wait for (`synchronous_standby_names`)."""
    replication: ReplicationStatus | None
    """Null if no member sees it stream: its lag is unknown then."""
    slots: list[SlotStatus]
    certificates: list[CertificateStatus]
    flaws: dict[str, str]
    """Of the certificates that nobody trusts, whenever they expire: what is wrong with each, by its name."""


@dataclass(frozen=True)
class EndpointStatus:
    """What forwards clients to the active member of a pair."""

    name: str
    """Of the topology that it is on."""
    state: str
    """As of a member."""
    detail: str
    """Why, if it is not running."""
    address: str
    """Where clients connect, `host:port`."""
    points_to: str
    """The server that it leads to, or would once it is started, `host:port`."""
    leads_to: str
    """The name of the member that has this address; empty if none is known to."""
    paused: bool
    """Whether it holds statements back, as it does while roles move."""
    clients: int
    """How many are connected."""
    waiting: int
    """How many of them wait for a statement to be forwarded."""
    version: str
    """Of its PgBouncer."""
    certificates: list[CertificateStatus]
    """`ca` and `server`."""


@dataclass(frozen=True)
class DatabaseStatus:
    """A pair, another group, or a server that stands alone."""

    name: str
    urn: str
    """Of its resource; empty if its handle came from a file."""
    topology: str
    """The kind and name of the topology that deployed it, for instance `FailoverTopology orders`; or empty."""
    declared_active: str
    """The position that is to be active; empty for a server that stands alone."""
    observed_active: str
    """The position of the running primary; empty if there is none, or more than one."""
    healthy: bool
    members: list[MemberStatus]
    endpoints: list[EndpointStatus]


@dataclass(frozen=True)
class Report:
    """Everything that was seen, at one time."""

    schema: int
    time: str
    project: str
    """Empty if handles came from a file."""
    stack: str
    healthy: bool
    """False if there is a finding of severity `problem`."""
    findings: list[Finding]
    databases: list[DatabaseStatus]


Seen = Mapping[str, Any]
"""An `Observation`; what a site of another package leaves out counts as not known."""


def unseen(handle: Handle, state: str, detail: str) -> dict[str, Any]:
    """Return the observation of a server that could not be observed."""
    return {"name": handle["name"], "state": state, "detail": detail}


def report(
    databases: Sequence[tuple[Database, Sequence[Seen]]],
    *,
    now: datetime,
    endpoints: Sequence[Sequence[Seen]] = (),
    project: str = "",
    stack: str = "",
) -> Report:
    """Judge what was seen.

    Args:
        databases: each with the observations of its members, in their order.
        now: aware.
        endpoints: the observations of the endpoints of each database, in their order; none if left out.
        project: of the stack, if the handles came from one.
        stack: its name.
    """
    findings: list[Finding] = []
    statuses: list[DatabaseStatus] = []
    for (database, seen), seen_endpoints in zip(databases, endpoints or [()] * len(databases), strict=True):
        members = [_member(m, o, database.members, seen, now) for m, o in zip(database.members, seen, strict=True)]
        forwarding = [_endpoint(o, members, now) for o in seen_endpoints]
        found = [*_unfinished(database, seen), *_findings(database, members, forwarding, seen)]
        findings += found
        healthy = all(f.severity != "problem" for f in found)
        statuses.append(_database(database, members, forwarding, healthy=healthy))
    return Report(
        schema=SCHEMA,
        time=now.astimezone(UTC).isoformat(timespec="milliseconds"),
        project=project,
        stack=stack,
        healthy=all(database.healthy for database in statuses),
        findings=findings,
        databases=statuses,
    )


def _database(
    database: Database, members: Sequence[MemberStatus], endpoints: Sequence[EndpointStatus], *, healthy: bool
) -> DatabaseStatus:
    active = [m.position for m in members if m.active]
    declared = [m.position for m in database.members if m.declared_active]
    return DatabaseStatus(
        name=database.name,
        urn=database.urn,
        topology=f"{database.topology.kind} {database.topology.name}" if database.topology else "",
        declared_active=declared[0] if declared else "",
        observed_active=active[0] if len(active) == 1 else "",
        healthy=healthy,
        members=list(members),
        endpoints=list(endpoints),
    )


def _endpoint(seen: Seen, members: Sequence[MemberStatus], now: datetime) -> EndpointStatus:
    def text(key: str) -> str:
        return str(seen.get(key) or "")

    to = text("points_to")
    return EndpointStatus(
        name=text("name"),
        state=text("state"),
        detail=text("detail"),
        address=text("address"),
        points_to=to,
        leads_to=next((m.name for m in members if to and is_same(m.endpoint, to)), ""),
        paused=bool(seen.get("paused")),
        clients=int(seen.get("clients") or 0),
        waiting=int(seen.get("waiting") or 0),
        version=text("version"),
        certificates=certificates_of(seen, now),
    )


def _member(
    member: Member, seen: Seen, members: Sequence[Member], all_seen: Sequence[Seen], now: datetime
) -> MemberStatus:
    def text(key: str) -> str:
        return str(seen.get(key) or "")

    sources = ((source.name, o) for source, o in zip(members, all_seen, strict=True) if source is not member)
    running = text("state") == "running"
    return MemberStatus(
        name=member.name,
        position=member.position,
        state=text("state"),
        detail=text("detail"),
        active=running and seen.get("role") == "primary",
        role=text("role"),
        endpoint=text("endpoint"),
        version=text("version"),
        system_identifier=text("system_identifier"),
        timeline=seen.get("timeline") or None,
        lsn=text("lsn"),
        receiver=text("receiver"),
        replayed_at=_in_utc(text("replayed_at")),
        waits_for=text("waits_for"),
        replication=_replication(member.name, sources) if running else None,
        slots=[_slot(slot) for slot in seen.get("slots") or ()],
        certificates=certificates_of(seen, now),
        flaws=dict(seen.get("flaws") or {}),
    )


def _replication(name: str, sources: Iterator[tuple[str, Seen]]) -> ReplicationStatus | None:
    for source, seen in sources:
        for replica in seen.get("replicas") or ():
            if replica["name"] == name:
                return ReplicationStatus(
                    source=source,
                    state=replica["state"],
                    sync_state=replica["sync_state"],
                    lag_bytes=int(replica["lag_bytes"]),
                    lag_seconds=float(replica["lag_seconds"]),
                    tls=replica["tls"],
                    client=replica["client"],
                )
    return None


def _slot(slot: Mapping[str, Any]) -> SlotStatus:
    bound = slot.get("bound_bytes")
    return SlotStatus(
        name=slot["name"],
        active=bool(slot["active"]),
        # Where a standby is asked, its slot may be ahead of what it has replayed.
        retained_bytes=max(int(slot["retained_bytes"]), 0),
        bound_bytes=None if bound is None else int(bound),
        wal_status=slot["wal_status"],
    )


def _certificate(name: str, expires: str, now: datetime) -> CertificateStatus:
    left = datetime.fromisoformat(expires) - now
    return CertificateStatus(name, _in_utc(expires), left // timedelta(days=1))


def _in_utc(time: str) -> str:
    return datetime.fromisoformat(time).astimezone(UTC).isoformat() if time else ""


# -- judging -----------------------------------------------------------------------------------------------------------


def _findings(
    database: Database, members: Sequence[MemberStatus], endpoints: Sequence[EndpointStatus], seen: Sequence[Seen]
) -> list[Finding]:
    found = list(_role_findings(database, members, seen))
    if database.lacks_its_pair:
        message = (
            "was deployed as a member of a pair, and the stack has no such pair: an `up` failed, or is under way. Run "
            "`pulumi up` again"
        )
        found.append(Finding("problem", "no_pair", database.name, members[0].name, message))
    for member, declared in zip(members, database.members, strict=True):
        if member.state != "running":
            found.append(_not_running(database.name, member, declared.handle))
        elif member.role == "standby":
            found += _standby_findings(database.name, member, declared.handle, members)
        found += _slot_findings(database.name, member)
        found += [
            Finding(severity, "certificate", database.name, member.name, f"has the certificate {words}")
            for severity, words in certificate_problems(member.certificates, member.flaws)
        ]
    active = [member for member in members if member.active]
    for endpoint in endpoints:
        found += _endpoint_findings(database.name, endpoint, active[0] if len(active) == 1 else None)
    return sorted(found, key=lambda f: f.severity != "problem")


def _unfinished(database: Database, seen: Sequence[Seen]) -> Iterator[Finding]:
    """Find a role change that is under way, or was cut off, and a member that one has left behind."""
    for told in _told_by_pair(database, seen):
        names = {member.position: member.name for member in database.members} | {
            level["me"]: name for name, level in told if "me" in level
        }
        # A pair inside another one is to be named: it is not what a command acts on by itself.
        which = f" {told[0][1]['pair'].rpartition('/')[2]}" if any(level.get("outer") for _, level in told) else ""
        for operation in [level["operation"] for _, level in told if level.get("operation")][:1]:
            called = {role: names.get(role) or role for role in (operation["source"], operation["target"])}
            kind, _, options = command(operation, called).partition(" ")
            again = f"harmony {kind}{which} {options}".strip()
            message = (
                f"a {operation['kind']} to {called[operation['target']]} is under way, or was cut off: "
                f"{operation['operator']}. If that has ended, run `{again}` to finish it"
            )
            yield Finding("problem", "unfinished", database.name, "", message)
        if left := max((level for _, level in told), key=lambda level: int(level["epoch"]))["away"]:
            message = (
                f"was left behind by the failover of {left['since']} ({left['fenced']}); what it wrote from "
                f"{left['fork']} on is not in this database. Run `harmony rejoin{which}` once it is back: it puts that "
                f"aside, and has it follow"
            )
            outer = next((level["outer"] for _, level in told if level.get("outer")), None)
            if outer and outer["active"] != outer["me"]:  # It was a standby itself.
                around = f" {outer['pair'].rpartition('/')[2]}" if outer.get("outer") else ""
                message = (
                    f"was left behind by the failover of {left['since']} ({left['fenced']}), in a pair that follows. "
                    f"Run `harmony rejoin{around}` once it is back: it has it follow"
                )
            yield Finding("problem", "left_behind", database.name, names.get(left["member"]) or left["member"], message)


def _told_by_pair(database: Database, seen: Sequence[Seen]) -> list[list[tuple[str, Mapping[str, Any]]]]:
    """Return what servers were told of each pair, with their names; last of each member of it the one that leads there.

    A server in a pair of pairs was told of its own, and of the one around that.
    """
    found: dict[str, list[tuple[bool, str, Mapping[str, Any]]]] = {}
    for member, observation in zip(database.members, seen, strict=True):
        level: Mapping[str, Any] | None = observation.get("roles")
        leads = True
        while level:
            found.setdefault(level.get("pair", ""), []).append((leads, member.name, level))
            leads = leads and level.get("active") == level.get("me")
            level = level.get("outer")
    return [[(name, level) for _, name, level in sorted(told, key=lambda one: one[0])] for told in found.values()]


def _role_findings(database: Database, members: Sequence[MemberStatus], seen: Sequence[Seen]) -> Iterator[Finding]:
    if not database.is_group:
        return
    primaries = [m for m in members if m.active]
    meant = next((m.name for m in database.members if m.declared_active), "none")
    if len(primaries) > 1:
        message = (
            f"{' and '.join(m.name for m in primaries)} take writes, each its own, so their data grows apart; {meant} "
            f"is declared to be active. Keep clients away from the other now; then find out which has the writes that "
            f"you need"
        )
        yield Finding("problem", "two_primaries", database.name, "", message)
    elif not primaries:
        asked = all(m.state in {"running", "stopped", "absent"} for m in members)
        what = "no member takes writes" if asked else "no member is known to take writes: not all could be asked"
        yield Finding("problem", "no_primary", database.name, "", f"{what}; {meant} is declared to be active")
    elif meant != primaries[0].name:
        observation = next(o for m, o in zip(members, seen, strict=True) if m.active)
        ways = f"somebody promoted it by hand. If it is to stay, run `harmony accept`; if {meant} is, stop it first"
        if _is_known_to_lead(observation, seen):
            again = _switchover_to(database, primaries[0])
            ways = f"its site knows of that, and the stack does not. `{again}`, which moves nothing, tells it"
        message = f"{primaries[0].name} takes the writes, but {meant} is declared to be active: {ways}"
        yield Finding("problem", "active_differs", database.name, "", message)
    if len(identifiers := {m.system_identifier for m in members if m.system_identifier}) > 1:
        message = (
            f"its members are not copies of one database: their system identifiers differ "
            f"({', '.join(sorted(identifiers))}). Keep both until you know which holds your data"
        )
        yield Finding("problem", "different_database", database.name, "", message)
    for primary in primaries:
        if database.handle.get("synchronous") and not primary.waits_for:
            ways = f"`harmony switchover --to {primary.name}`, which moves nothing, or `pulumi up --refresh` mends that"
            if any(level.get("away") for observation in seen for level in _levels(observation)):
                ways = "`harmony rejoin` restores that"  # Until then, nothing else does.
            message = f"is declared synchronous, and its commits wait for nobody. {ways}"
            yield Finding("problem", "not_synchronous", database.name, primary.name, message)
        streams = [m.replication for m in members if m.replication and m.replication.source == primary.name]
        if primary.waits_for and not any(stream.sync_state in {"sync", "quorum"} for stream in streams):
            message = (
                f"has every commit wait for a replica ({primary.waits_for}), and none streams: writes hang until one "
                f"does"
            )
            yield Finding("problem", "commits_wait", database.name, primary.name, message)


def _levels(seen: Seen) -> Iterator[Mapping[str, Any]]:
    """Iterate over what a server was told of its pair, of the one around that, and so on."""
    level: Mapping[str, Any] | None = seen.get("roles")
    while level:
        yield level
        level = level.get("outer")


def _is_known_to_lead(leader: Seen, all_seen: Sequence[Seen]) -> bool:
    """Tell whether, by the newest that the sites were told of each of its pairs, this server is to be active."""
    told = sorted((level for o in all_seen for level in _levels(o)), key=lambda level: int(level["epoch"]))
    active = {level.get("pair"): level.get("active") for level in told}
    own = list(_levels(leader))
    return bool(own) and all(active[level.get("pair")] == level.get("me") for level in own)


def _switchover_to(database: Database, leader: MemberStatus) -> str:
    """Return the command that has a member be active, in the outermost pair that is declared otherwise."""
    group, path, which = database.handle, leader.position.split("/"), ""
    while group.get("active") == path[0]:
        group = group["members"][path.pop(0)]
        which = f" {group.get('pair', '').rpartition('/')[2]}"
    return f"harmony switchover{which} --to {leader.name}"


def _not_running(database: str, member: MemberStatus, handle: Handle) -> Finding:
    detail = member.detail or "no reason was given"
    start = "`pulumi up --refresh` starts it"
    if handle.get("root"):
        start = f"`harmony start {handle['root']}` on its host starts it, or `pulumi up --refresh`"
    known: dict[str, tuple[Code, str]] = {
        "stopped": (
            "stopped",
            f"is stopped: {detail}. {start}; read its log{_place(handle)} first",
        ),
        "absent": (
            "absent",
            f"is gone: {detail}. `pulumi up --refresh` makes it anew; look for its data first",
        ),
        "unreachable": ("unreachable", f"is unreachable, so it may run or not: {detail}"),
    }
    code, message = known.get(member.state, ("unknown", f"could not be looked at: {detail}"))
    return Finding("problem", code, database, member.name, message)


def _standby_findings(
    database: str, member: MemberStatus, handle: Handle, members: Sequence[MemberStatus]
) -> Iterator[Finding]:
    replication = member.replication
    # The source of a server that stands alone is not in view, so its own word must do.
    alone = len(members) == 1 and member.receiver == "streaming"
    if not alone and (replication is None or replication.state != "streaming"):
        state = replication.state if replication else "no connection"
        source = replication.source if replication else " or ".join(m.name for m in members if m.active)
        timelines = sorted({m.timeline for m in members if m.timeline})
        message = f"does not stream from {source or 'any member'} ({state}), so it falls behind"
        if len(timelines) > 1:
            message += (
                f"; the timelines differ: {' and '.join(map(str, timelines))}. If it does not catch up, `harmony "
                f"rejoin` has it follow, and puts aside what it alone has"
            )
        message += f". Its log{_place(handle)} says why"
        yield Finding("problem", "not_streaming", database, member.name, message)
    if replication and not replication.tls:
        message = f"streams from {replication.source} without TLS; look at pg_hba.conf of {replication.source}"
        yield Finding("problem", "not_encrypted", database, member.name, message)


def _place(handle: Handle) -> str:
    """Return where a server's files are, if its handle says so."""
    return f" below {handle['root']}" if handle.get("root") else ""


def _slot_findings(database: str, member: MemberStatus) -> Iterator[Finding]:
    for slot in member.slots:
        bound = "without a bound" if slot.bound_bytes is None else f"of at most {size(slot.bound_bytes)}"
        kept = f"keeps {size(slot.retained_bytes)} of WAL, {bound}, in slot {slot.name}"
        if slot.wal_status in {"lost", "unreserved"}:
            gone = "has given up" if slot.wal_status == "lost" else "is about to give up"
            message = f"{gone} WAL of slot {slot.name}; a replica that lacks it must be cloned again"
            yield Finding("problem", "slot", database, member.name, message)
        elif slot.bound_bytes is not None and slot.retained_bytes >= SLOT_WARNING * slot.bound_bytes:
            message = (
                f"{kept}; beyond that, the replica must be cloned again. Bring it back soon, or raise slot_size_bound"
            )
            yield Finding("warning", "slot", database, member.name, message)
        elif not slot.active and slot.retained_bytes:
            yield Finding("warning", "slot", database, member.name, f"{kept}, for a replica that is not connected")


def certificate_problems(
    certificates: Sequence[CertificateStatus], flaws: Mapping[str, str]
) -> Iterator[tuple[Severity, str]]:
    """Find what is wrong with the certificates of a server: how bad it is; and which one, why, and what to do."""
    for name, flaw in flaws.items():
        yield "problem", f"{name!r}, which {flaw}; `harmony rotate-certificates` makes a new one"
    for certificate in certificates:
        severity = severity_of(certificate.days_left)
        if severity is None or certificate.name in flaws:
            continue
        command = "harmony rotate-certificates" + (" --authority" if certificate.name == "ca" else "")
        yield severity, f"{_expiry(certificate)}; `{command}` makes a new one"


def certificates_of(seen: Seen, now: datetime) -> list[CertificateStatus]:
    """Return the certificates that were seen of a server or an endpoint."""
    return [_certificate(name, when, now) for name, when in (seen.get("certificates") or {}).items()]


def _expiry(certificate: CertificateStatus) -> str:
    left = certificate.days_left
    when = f"expires in {days(left)}" if left >= 0 else "has expired"
    return f"{certificate.name!r}, which {when} ({certificate.expires[:10]})"


def _endpoint_findings(database: str, endpoint: EndpointStatus, active: MemberStatus | None) -> Iterator[Finding]:
    def finding(severity: Severity, code: Code, message: str) -> Finding:
        return Finding(severity, code, database, "", f"the endpoint on {endpoint.name} {message}", endpoint.name)

    detail = endpoint.detail or "no reason was given"
    states = {
        "stopped": f"is stopped: {detail}. `harmony start` on its host starts it, or `pulumi up --refresh`",
        "absent": f"is gone: {detail}. `pulumi up --refresh` makes it anew",
        "unreachable": f"is unreachable, so it may lead clients anywhere or nowhere: {detail}",
    }
    again = f"`harmony switchover --to {active.name if active else 'the active member'}`, which moves no role,"
    if endpoint.state != "running":
        yield finding("problem", "endpoint", states.get(endpoint.state, f"could not be looked at: {detail}"))
    elif active and active.endpoint and endpoint.leads_to != active.name:
        to = endpoint.leads_to or endpoint.points_to or "no server that is known"
        yield finding("problem", "endpoint", f"leads to {to}, and {active.name} is active; {again} leads it there")
    if endpoint.paused:
        message = (
            f"is paused, and has {endpoint.waiting} of {counted(endpoint.clients, 'client')} wait. That lasts as long "
            f"as roles move; if they do not, {again} has them go on"
        )
        yield finding("problem", "endpoint", message)
    for certificate in endpoint.certificates:
        if severity := severity_of(certificate.days_left):
            what = {"server": "changed `certificate_lifetime_days`", "ca": "changed `directory`"}
            advice = f"a {what.get(certificate.name, 'change')} of the endpoint makes a new one at `pulumi up`"
            yield finding(severity, "certificate", f"has the certificate {_expiry(certificate)}; {advice}")


def severity_of(days_left: int) -> Severity | None:
    """Return how bad it is that a certificate has so many days left."""
    if days_left < CERTIFICATE_PROBLEM_DAYS:
        return "problem"
    return "warning" if days_left < CERTIFICATE_WARNING_DAYS else None


# -- words -------------------------------------------------------------------------------------------------------------


def size(count: int) -> str:
    """Return bytes as PostgreSQL writes them: `24 MB` is 24 times 1024 times 1024."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1024 or unit == "TB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 10 or value.is_integer() else f"{value:.1f} {unit}"


def days(count: int) -> str:
    """Return a number of days as words."""
    return "less than a day" if count == 0 else f"{count} day{'' if count == 1 else 's'}"
