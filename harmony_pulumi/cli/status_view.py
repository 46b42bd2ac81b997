"""A report, drawn for people: a table for each database, then what is not as it should be. Pure.

Members are columns, so that a pair fits 80 characters and two members can be compared line by line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harmony_pulumi.cli.report import (
    DatabaseStatus,
    EndpointStatus,
    MemberStatus,
    Report,
    SlotStatus,
    days,
    severity_of,
    size,
)

T = TypeVar("T")
_STATE_STYLES = {"running": "green", "stopped": "red", "absent": "red"}
_MARKS = {"problem": ("✗", "red"), "warning": ("!", "yellow")}
_NONE = Text("-", "dim")


def view(report: Report, *, verdict_first: bool = False) -> RenderableType:
    """Return everything that a report says.

    Args:
        report: what to show.
        verdict_first: for a display that may be cut off at its end.
    """
    now = datetime.fromisoformat(report.time)
    tables: list[RenderableType] = []
    for database in report.databases:
        tables += [_title(database), *_tables(database, now)]
    return Group(_verdict(report), Text(), *tables) if verdict_first else Group(*tables, _verdict(report))


def _verdict(report: Report) -> Table:
    grid = Table.grid(padding=(0, 1))
    for finding in report.findings:
        mark, style = _MARKS[finding.severity]
        subject = f"{finding.database}/{finding.member}" if finding.member else f"{finding.database}:"
        grid.add_row(Text(mark, style), Text.assemble((subject, "bold"), " ", finding.message))
    grid.add_row(*_summary([database.healthy for database in report.databases]))
    return grid


def _summary(healthy: list[bool]) -> tuple[Text, str]:
    count, ill = len(healthy), healthy.count(False)
    if ill:
        return Text("✗", "red"), f"{ill} of {count} database{'' if count == 1 else 's'} not healthy"
    return Text("✓", "green"), "the database is healthy" if count == 1 else f"all {count} databases are healthy"


def _title(database: DatabaseStatus) -> Text:
    on = f" on {database.topology}" if database.topology else ""
    return Text.assemble(("✓ ", "green") if database.healthy else ("✗ ", "red"), (database.name, "bold"), on)


def _tables(database: DatabaseStatus, now: datetime) -> Iterator[Table]:
    yield _table("", [_heading(member) for member in database.members], database.members, _rows(now))
    if database.endpoints:
        names = [Text(endpoint.name, "bold") for endpoint in database.endpoints]
        yield _table("endpoints", names, database.endpoints, _rows_of_endpoints())


def _table(
    title: str, headings: Sequence[Text], columns: Sequence[T], rows: Sequence[tuple[str, Callable[[T], Text]]]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(Text(title, "dim"))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for label, cell in rows:
        cells = [cell(column) for column in columns]
        if any(c.plain for c in cells):
            table.add_row(Text(label, "dim"), *(c if c.plain else _NONE for c in cells))
    return table


def _heading(member: MemberStatus) -> Text:
    return Text.assemble((member.name, "bold"), *([("  ● active", "green")] if member.active else []))


def _rows(now: datetime) -> list[tuple[str, Callable[[MemberStatus], Text]]]:
    return [
        ("deployed as", lambda m: Text(m.position)),
        ("role", lambda m: Text(m.role)),
        ("state", lambda m: Text(m.state, _STATE_STYLES.get(m.state, "yellow"))),
        ("endpoint", lambda m: Text(m.endpoint)),
        ("version", lambda m: Text(m.version)),
        ("timeline", lambda m: Text(str(m.timeline or ""))),
        ("LSN", _lsn),
        ("source", lambda m: Text(m.replication.source if m.replication else "")),
        ("replication", _replication),
        ("lag", lambda m: _lag(m, now)),
        ("TLS", lambda m: Text(m.replication.tls if m.replication else "")),
        ("waits for", lambda m: Text(m.waits_for)),
        ("slots", lambda m: Text("\n").join(_slot(slot) for slot in m.slots)),
        ("certificates", _certificates),
    ]


def _rows_of_endpoints() -> list[tuple[str, Callable[[EndpointStatus], Text]]]:
    return [
        ("state", _state_of_endpoint),
        ("address", lambda e: Text(e.address)),
        ("leads to", lambda e: Text(e.leads_to or e.points_to)),
        ("clients", lambda e: Text(f"{e.clients}, {e.waiting} waiting" if e.state == "running" else "")),
        ("PgBouncer", lambda e: Text(e.version)),
        ("certificates", _certificates),
    ]


def _state_of_endpoint(endpoint: EndpointStatus) -> Text:
    if endpoint.paused:
        return Text(f"{endpoint.state}, paused", "yellow")
    return Text(endpoint.state, _STATE_STYLES.get(endpoint.state, "yellow"))


def _lsn(member: MemberStatus) -> Text:
    return Text(f"{member.lsn} {'written' if member.active else 'replayed'}" if member.lsn else "")


def _replication(member: MemberStatus) -> Text:
    if member.role != "standby":
        return Text()
    if member.replication is None:
        return Text(member.receiver or "not connected", "" if member.receiver == "streaming" else "red")
    style = "" if member.replication.state == "streaming" else "yellow"
    return Text(f"{member.replication.state}, {member.replication.sync_state}", style)


def _lag(member: MemberStatus, now: datetime) -> Text:
    if member.active:
        return Text()
    if member.state != "running":
        return Text(f"unknown: {member.state or 'not seen'}", "yellow")
    if member.replication is not None:
        return Text(f"{size(member.replication.lag_bytes)}, {member.replication.lag_seconds:.1f} s")
    if not member.replayed_at:
        return Text("unknown", "yellow")
    ago = (now - datetime.fromisoformat(member.replayed_at)).total_seconds()
    return Text(f"unknown; last commit {max(ago, 0):.0f} s ago", "yellow")


def _slot(slot: SlotStatus) -> Text:
    kept = f"{size(slot.retained_bytes)}" + (f" of {size(slot.bound_bytes)}" if slot.bound_bytes is not None else "")
    bad = slot.wal_status in {"lost", "unreserved"}
    style = "red" if bad else "" if slot.active else "yellow"
    return Text(f"{slot.name}\n  {kept}, {slot.wal_status}{'' if slot.active else ', not in use'}", style)


def _certificates(member: MemberStatus | EndpointStatus) -> Text:
    lines: list[Text] = []
    for certificate in sorted(member.certificates, key=lambda c: c.days_left):
        severity = severity_of(certificate.days_left)
        left = days(certificate.days_left) if certificate.days_left >= 0 else "expired"
        lines.append(Text(f"{certificate.name} {left}", _MARKS[severity][1] if severity else ""))
    return Text("\n").join(lines)
