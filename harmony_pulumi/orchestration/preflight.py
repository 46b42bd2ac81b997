"""Whether a planned role change would go well, told before anything is touched. Pure. Knows no topology, no Pulumi."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from harmony_pulumi.capabilities.addresses import is_same
from harmony_pulumi.capabilities.endpoint_site import EndpointObservation
from harmony_pulumi.capabilities.postgresql_facts import FIRST_WITH_FAILOVER_SLOTS
from harmony_pulumi.capabilities.site import LogicalSlot, Observation, Survey
from harmony_pulumi.errors import counted

_MOST_LAG_BYTES = 64 * 1024 * 1024
"""More than this takes a replica seconds to replay, and clients would wait for it."""
_LEAST_FREE_BYTES = 256 * 1024 * 1024
_MOST_CLOCK_SKEW = 60
"""Seconds. Members are looked at one after the other, which may take some."""
_NEEDED = ("server", "replication")
"""The certificates without which clients, or the member that follows, could not connect to the new primary."""

_ECHO = 5.0
"""Seconds for a record to be sent, written and replayed; no client waits for that, as nothing is stopped yet."""

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    """`problem`: roles are not moved. `warning`: they are, and something else will not be as it was."""
    found: str
    """What was found; of a problem also what to do."""


def echo_deadline(source: Observation, target: Observation, surveys: tuple[Survey, Survey] | None) -> float:
    """Return within how many seconds a standby is to replay what its primary writes now; 0 if that is not to be tried.

    Where something else is known to stand in the way, that is said, and not waited for.
    """
    replica = next((r for r in source["replicas"] if r["name"] == target["name"] and r["state"] == "streaming"), None)
    if surveys is None or source["role"] != "primary" or replica is None or replica["lag_bytes"] > _MOST_LAG_BYTES:
        return 0
    if surveys[1]["replay_paused"] or surveys[1]["apply_delay_ms"]:
        return 0
    return _ECHO + 2 * min(replica["lag_seconds"], _ECHO)


def checks(
    source: Observation,
    target: Observation,
    surveys: tuple[Survey, Survey] | None,
    *,
    now: datetime,
    no_echo: str | None = None,
) -> list[Check]:
    """Return everything that was looked at.

    Args:
        source: of the member that is to step down.
        target: of the member that is to take over.
        surveys: of both, in this order; None where one does not run, which is a problem of its own.
        now: aware, for certificates of one that does not say what its clock says.
        no_echo: why what the primary wrote did not come to the standby, empty if it did; None if that was not tried.
    """
    found = [*_states(source, target), *_history(source, target), *_streaming(source, target)]
    if no_echo is not None:
        found.append(_link(no_echo, source["name"], target["name"]))
    found += [*_restart(source), *certificates(target, now), *_clocks(source, target)]
    if surveys is not None:
        found += [
            *_replay(surveys[1], target["name"]),
            *_likeness(*surveys, source["name"], target["name"]),
            *_logical_slots(*surveys, target["name"]),
        ]
    return found


def endpoint_checks(seen: Mapping[str, EndpointObservation], source: Observation) -> Iterator[Check]:
    """Return of each endpoint whether its clients can be held back, and led from one member to the other.

    Args:
        seen: of every endpoint, by its name.
        source: of the member that is to step down, to which they are to lead.
    """
    for name, endpoint in seen.items():
        verdict, found = _endpoint(endpoint, source)
        yield Check("endpoint", verdict, f"{name} {found}")


def _endpoint(seen: EndpointObservation, source: Observation) -> tuple[Verdict, str]:
    leader = source["name"]
    if seen["state"] == "stopped":
        return "problem", (
            f"is stopped, so nobody gets through: {seen['detail']}; `harmony start` on its host starts it, or "
            f"`pulumi up --refresh`"
        )
    if seen["state"] == "absent":
        return "problem", f"is gone: {seen['detail']}; `pulumi up --refresh` makes it anew"
    if seen["state"] != "running":
        return "problem", (
            f"does not answer, so its clients can be neither held back nor led on: {seen['detail']}; have it answer, "
            f"or take it out of the program"
        )
    # Where the member itself does not answer, that is a problem of its own.
    if source["endpoint"] and not is_same(seen["points_to"], source["endpoint"]):
        return "problem", (
            f"leads to {seen['points_to'] or 'no server that is known'}, and {leader}, at {source['endpoint']}, is "
            f"active; `harmony switchover --to {leader}`, which moves no role, leads it there"
        )
    clients = counted(seen["clients"], "client")
    if seen["paused"]:
        return "warning", f"is paused, and has {clients} wait until the switchover is over"
    return "ok", f"leads to {leader}; {clients}"


def _link(why_not: str, old: str, new: str) -> Check:
    if not why_not:
        return Check("link", "ok", f"{new} has replayed a record that {old} wrote for this, and said that it has it")
    return Check("link", "problem", f"{why_not}, though {new} is taken to be connected")


def problems(found: list[Check]) -> list[str]:
    """Return the problems in words."""
    return [f"{check.name}: {check.found}" for check in found if check.verdict == "problem"]


def _states(source: Observation, target: Observation) -> Iterator[Check]:
    dead = f"if it is dead, `harmony failover --to {target['name']} --max-data-loss BYTES`"
    back = (
        f"somebody promoted it: stop the one that is not to stay, then `harmony accept` if {target['name']} stays, and "
        f"`harmony rejoin`"
        if target["role"] == "primary"
        else "start it, or run `harmony rejoin`"
    )
    for seen, wanted, way in ((source, "primary", dead), (target, "standby", back)):
        state = f"a running {seen['role']}" if seen["state"] == "running" else f"{seen['state']}: {seen['detail']}"
        if seen["role"] == wanted:
            yield Check(seen["name"], "ok", state)
        else:
            advice = f"a {wanted} that runs is needed; {way}"
            yield Check(seen["name"], "problem", f"{state}; {advice}")


def _history(source: Observation, target: Observation) -> Iterator[Check]:
    if source["system_identifier"] != target["system_identifier"]:
        what = f"{source['name']} is database {source['system_identifier']}, {target['name']} is another one"
        yield Check("database", "problem", f"{what}, {target['system_identifier']}; clone it anew")
    elif "running" == source["state"] == target["state"]:
        same = source["timeline"] == target["timeline"]
        found = f"both are on {source['timeline']}" if same else f"{source['timeline']} and {target['timeline']} differ"
        advice = "" if same else f"; let {target['name']} catch up, or run `harmony rejoin`"
        yield Check("timeline", "ok" if same else "problem", found + advice)


def _streaming(source: Observation, target: Observation) -> Iterator[Check]:
    replica = next((r for r in source["replicas"] if r["name"] == target["name"]), None)
    if replica is None or replica["state"] != "streaming":
        state = f"is {replica['state']}" if replica else "is not connected"
        yield Check("streaming", "problem", f"{target['name']} {state}; its log says why")
        return
    yield Check("streaming", "ok", f"{target['name']} streams from {source['name']}, {replica['sync_state']}")
    lag = replica["lag_bytes"]
    if lag > _MOST_LAG_BYTES:
        found = f"{target['name']} is {lag} bytes behind, more than {_MOST_LAG_BYTES}; wait until it has caught up"
        yield Check("lag", "problem", found)
    else:
        yield Check("lag", "ok", f"{lag} bytes, {replica['lag_seconds']:.1f} s")
    yield from _slots(source)


def _slots(source: Observation) -> Iterator[Check]:
    for slot in source["slots"]:
        if slot["wal_status"] in {"lost", "unreserved"}:
            found = f"{slot['name']} is {slot['wal_status']}; `harmony rejoin` copies its replica anew"
            yield Check("slot", "problem", found)


def certificates(target: Observation, now: datetime) -> Iterator[Check]:
    """Return whether clients, and the member that follows, could connect to a member.

    By its own clock: it judges those who connect by that, and whoever looks may have a wrong one.
    """
    now = datetime.fromisoformat(target["clock"]) if target["clock"] else now
    for name in _NEEDED:
        text = target["certificates"].get(name)
        if flaw := target["flaws"].get(name):
            found = f"{name!r} of {target['name']} {flaw}; `harmony rotate-certificates` makes a new one"
            yield Check("certificate", "problem", found)
        elif text is None:
            yield Check("certificate", "problem", f"{target['name']} has no certificate {name!r}; run `pulumi up`")
        elif datetime.fromisoformat(text) <= now.astimezone(UTC):
            found = f"{name!r} of {target['name']} expired {text}; `harmony rotate-certificates` makes a new one"
            yield Check("certificate", "problem", found)
        else:
            yield Check("certificate", "ok", f"{name!r} of {target['name']} is valid until {text[:10]}")


def certificate_advice(seen: Observation) -> str:
    """Return why nobody may be able to connect to a member, and what to do; empty if its certificates are good."""
    return "; ".join(problems([*certificates(seen, datetime.now(UTC))]))


def _restart(source: Observation) -> Iterator[Check]:
    """Tell whether the member that steps down would start again: with some certificates, PostgreSQL only goes on."""
    if flaw := source["flaws"].get("server"):
        found = (
            f"'server' of {source['name']} {flaw}, so it may not start again; `harmony rotate-certificates` makes a "
            f"new one"
        )
        yield Check("certificate", "problem", found)


def _clocks(source: Observation, target: Observation) -> Iterator[Check]:
    """Tell whether the members' clocks agree, by which each judges the other's certificates."""
    if not source["clock"] or not target["clock"]:
        return
    ahead = (datetime.fromisoformat(target["clock"]) - datetime.fromisoformat(source["clock"])).total_seconds()
    if abs(ahead) > _MOST_CLOCK_SKEW:
        first, second = (target, source) if ahead > 0 else (source, target)
        found = (
            f"that of {first['name']} is {abs(ahead):.0f} s ahead of that of {second['name']}: one may take the "
            f"other's certificates for expired, or for not valid yet; set them right"
        )
        yield Check("clocks", "warning", found)


def _replay(target: Survey, new: str) -> Iterator[Check]:
    """Tell whether the standby would replay the last record of the primary at once."""
    if target["replay_paused"]:
        found = (
            f"paused on {new}: its log says so if a setting is lower than the primary's; else run SELECT "
            f"pg_wal_replay_resume() there"
        )
        yield Check("replay", "problem", found)
    elif delay := target["apply_delay_ms"]:
        found = f"{new} delays it by {delay} ms, and clients would wait for that; set recovery_min_apply_delay to 0"
        yield Check("replay", "problem", found)
    else:
        yield Check("replay", "ok", f"neither paused nor delayed on {new}")


def _likeness(source: Survey, target: Survey, old: str, new: str) -> Iterator[Check]:
    """Compare what a data directory, its indexes and its functions depend on."""
    yield _equal("major version", {"": str(source["major"])}, {"": str(target["major"])}, old, new)
    yield _equal("build", source["build"], target["build"], old, new)
    lacking = {
        f"{name} (in {database})"
        for database, names in source["extensions"].items()
        for name in names
        if name not in target["available"]
    }
    found = f"{new} lacks the files of {', '.join(sorted(lacking))}; install them" if lacking else "all are installed"
    yield Check("extensions", "problem" if lacking else "ok", found)
    yield from _collations(source, target, old, new)
    # The one that follows must have at least what the one that leads has.
    low = {
        name: (value, source["limits"][name])
        for name, value in target["limits"].items()
        if source["limits"][name] < value
    }
    words = ", ".join(f"{name} {there} on {new}, {here} on {old}" for name, (there, here) in low.items())
    found = f"{words}: {old} gets those of {new}, since a standby needs no less" if low else "alike"
    yield Check("settings", "warning" if low else "ok", found)
    for survey, name in ((source, old), (target, new)):
        free = survey["free_bytes"]
        enough = free >= _LEAST_FREE_BYTES
        advice = "" if enough else f"; expected at least {_LEAST_FREE_BYTES}"
        yield Check("disk", "ok" if enough else "problem", f"{name} has {free} bytes free{advice}")


def _collations(source: Survey, target: Survey, old: str, new: str) -> Iterator[Check]:
    """Compare how both members sort text: an index that was made by one order is wrong in another."""
    here, there = source["collations"], target["collations"]
    differ = [name for name in here if name not in there or here[name][1] != there[name][1]]
    outdated = [name for name in here if here[name][0] != here[name][1]]
    if differ:
        words = ", ".join(
            f"{name} {here[name][1]} on {old}, {there.get(name, ['', 'none'])[1]} on {new}" for name in differ
        )
        found = f"{words}: indexes on text would be wrong there; install the same libc or ICU"
        yield Check("collations", "problem", found)
    elif outdated:
        words = ", ".join(f"{name} was made with {here[name][0]} and is {here[name][1]}" for name in outdated)
        found = f"{words}, alike on both: REINDEX what depends on it, then ALTER … REFRESH VERSION"
        yield Check("collations", "warning", found)
    else:
        yield Check("collations", "ok", "alike" if here else "no version is recorded, so none was compared")


def _logical_slots(source: Survey, target: Survey, new: str) -> Iterator[Check]:
    """Tell whether every subscriber could go on where it was: one that could not would miss changes unawares."""
    copies = {slot["name"]: slot for slot in target["logical_slots"]}
    # What a session has for itself, or nobody can go on with, needs no place to go to.
    needed = [slot for slot in source["logical_slots"] if not (slot["temporary"] or slot["lost"])]
    for slot in needed:
        if why := _unsafe(slot, copies.get(slot["name"]), source["major"], new):
            yield Check("logical slot", "problem", f"{slot['name']} {why}")
        else:
            yield Check("logical slot", "ok", f"{slot['name']} is on {new}, too")


def _unsafe(slot: LogicalSlot, copy: LogicalSlot | None, major: int, new: str) -> str:
    """Return why a subscriber could not go on after the switchover, and what to do; or nothing."""
    without = "or have its subscriber catch up, drop the slot, and make both anew after the switchover"
    if major < FIRST_WITH_FAILOVER_SLOTS:
        return f"would not be on {new}, as only PostgreSQL 17 and newer copy slots: upgrade, {without}"
    if not slot["failover"]:
        return f"would not be on {new}: ALTER SUBSCRIPTION … SET (failover = true) while it is disabled, {without}"
    if copy is None or not copy["synced"] or copy["temporary"] or copy["lost"]:
        return (
            f"has no copy on {new} that would outlive the promotion yet: have its subscriber be active and wait; if "
            f"that takes long, the log of {new} says why"
        )
    return ""


def _equal(name: str, one: Mapping[str, str], other: Mapping[str, str], old: str, new: str) -> Check:
    differ = [key for key in one if one[key] != other.get(key)]
    words = ", ".join(f"{key} {one[key]} on {old}, {other.get(key)} on {new}".strip() for key in differ)
    return Check(name, "problem" if differ else "ok", f"{words}: they must be equal" if differ else "alike")
