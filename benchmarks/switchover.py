"""Role changes of a pair, side by side: this package, the least that can be done by hand, and other systems.

One client commits each 2 ms to whichever server takes writes, and reconnects at once. Told are the longest gap between
its acknowledged commits, the statements that failed, the acknowledged rows that are lost, and how long it takes until
the old primary streams again: for planned switchovers, and for the death of the primary. Then: how long a dead primary
takes to come back by pg_rewind, beside a full copy, by the size of the database.

A system that is not installed is left out, and the result says how to install it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

from benchmarks import common, rejoin
from benchmarks.pairs.base import FAILURES, Pair, Switched, running, wait_for
from benchmarks.pairs.by_hand import Floor
from benchmarks.pairs.ours import Ours
from benchmarks.pairs.patroni import Patroni, PatroniTuned
from benchmarks.pairs.pg_auto_failover import PgAutoFailover
from benchmarks.pairs.repmgr import Repmgr
from benchmarks.writer import TABLE, Writer, longest_gap, missing, served_again
from harmony_pulumi.hosts.connection import LocalConnection
from harmony_pulumi.hosts.postgresql.server import choose_binaries

RUNS, DEATHS = 5, 3
SIZES = (0.1, 1.0, 4.0)
SYSTEMS: dict[str, type[Pair]] = {
    system.name: system for system in (Floor, Ours, Patroni, PatroniTuned, PgAutoFailover, Repmgr)
}
_LIMIT_FLOOR, _LIMIT_PEERS, _LIMIT_PROMOTION = 1.3, 6.0, 1.5
WARM_UP = 1.0
"""Seconds for which the client writes before each role change, and after it."""


P = TypeVar("P", bound=Switched)


class Leg(NamedTuple):
    """What one role change cost. Times are in seconds."""

    gap: float
    """The longest between two acknowledged commits."""
    promotion: float
    """From the command, or the death where none is needed, until the client whose connection broke is served again."""
    streams_again: float
    """Until the old primary streams: from the command of the switchover, or from when the dead one is brought back."""
    failed: int
    lost: int
    acknowledged: int


_TIMES = ("gap", "promotion", "streams_again")


def measure(
    runs: int = RUNS,
    *,
    deaths: int = DEATHS,
    sizes: Sequence[float] = SIZES,
    systems: Sequence[str] = tuple(SYSTEMS),
) -> dict[str, Any]:
    """Measure these systems, in turn: what else the machine does meets them alike."""
    binaries = choose_binaries(LocalConnection(), None)
    left_out = {name: reason for name in systems if (reason := SYSTEMS[name].lacking())}
    rows: dict[str, dict[str, Any]] = {}
    with common.workspace() as folder, ExitStack() as stack:
        pairs: dict[str, Pair] = {}
        for name in systems:
            if name in left_out:
                continue
            pair = SYSTEMS[name](folder / name, binaries)
            stack.callback(pair.stop)
            with told(left_out, name, pair):
                pair.start()
                settings = pair.settings()
                rows[name] = {"version": pair.version(), "how": pair.how, "settings": settings}
                pairs[name] = pair
        planned = _rounds("planned", pairs, runs, _planned, left_out)
        unable = {name: reason for name, pair in pairs.items() if (reason := pair.cannot_fail_over())}
        mortal = {name: pair for name, pair in pairs.items() if name not in unable}
        died = _rounds("death", mortal, deaths, _death, left_out)
    for name, row in rows.items():
        row["planned"], row["death"] = summary(planned[name]), summary(died.get(name, []))
    gaps, promotions = (
        {name: row[kind][what]["median"] for name, row in rows.items() if row[kind]}
        for kind, what in (("planned", "gap"), ("death", "promotion"))
    )
    found = {"planned gap": ratios(gaps), "promotion after the death": ratios(promotions)}
    return {
        "aims": aims(found, {name: row for name, row in rows.items() if name == Ours.name}),
        "left out": left_out,
        "cannot fail over": unable,
        "systems": rows,
        "ratios": found,
        "rejoin": {f"{size:g}": rejoin.measure(size, binaries) for size in sizes},
    }


def _rounds(
    kind: str, pairs: Mapping[str, P], count: int, act: Callable[[P], Leg], left_out: dict[str, str]
) -> dict[str, list[Leg]]:
    legs: dict[str, list[Leg]] = {name: [] for name in pairs}
    for number in range(count):
        for name, leg in in_turn(f"{kind} {number + 1} of {count}", pairs, act, left_out).items():
            legs[name].append(leg)
    return legs


def in_turn(words: str, pairs: Mapping[str, P], act: Callable[[P], Leg], left_out: dict[str, str]) -> dict[str, Leg]:
    """Take one leg of each pair. One that fails is left out from then on."""
    legs: dict[str, Leg] = {}
    for name, pair in pairs.items():
        if name in left_out:
            continue
        with told(left_out, name, pair):
            legs[name] = leg = act(pair)
            text = f"gap {leg.gap * 1000:.0f} ms, promotion {leg.promotion * 1000:.0f} ms, streams again after "
            text += f"{leg.streams_again:.1f} s, {leg.failed} failed, {leg.lost} lost of {leg.acknowledged}"
            print(f"{words}: {name}: {text}", file=sys.stderr, flush=True)
    return legs


@contextmanager
def told(left_out: dict[str, str], name: str, pair: Switched) -> Generator[None]:
    """Note that a system failed, and stop it, rather than the benchmark."""
    try:
        yield
    except FAILURES as error:
        left_out[name] = f"failed: {error}"[:2000]
        print(f"{name} is left out: {error}", file=sys.stderr, flush=True)
        pair.stop()


def _planned(pair: Pair) -> Leg:
    with Writer(pair.conninfo()) as writer:
        time.sleep(WARM_UP)
        began = time.monotonic()
        pair.switch_over()
        wait_for(f"{pair.name}: the old primary streaming", lambda: pair.is_followed(pair.leader), deadline=120)
        return finish(pair, writer, began, began)


def _death(pair: Pair) -> Leg:
    dead = pair.leader
    with Writer(pair.conninfo()) as writer:
        time.sleep(WARM_UP)
        processes = pair.kill()
        killed = time.monotonic()
        pair.fail_over()
        if pair.leader == dead:
            raise SystemExit(f"{pair.name}: the dead primary still counts as the leader")
        time.sleep(WARM_UP)
        wait_for(f"{pair.name}: the end of what was killed", lambda: not running(processes), deadline=60)
        back = time.monotonic()
        pair.rejoin(dead)
        wait_for(f"{pair.name}: the dead primary streaming", lambda: pair.is_followed(pair.leader), deadline=180)
        return finish(pair, writer, killed, back)


def finish(pair: Switched, writer: Writer, began: float, back: float) -> Leg:
    """Stop the client, and compare what it remembers with what is there."""
    streams = time.monotonic()
    time.sleep(WARM_UP)
    written = writer.stop()
    moments = list(written.acknowledged.values())
    if moments[0] > began or moments[-1] < streams:
        raise SystemExit(f"{pair.name}: the client was not served all the while; it was told {dict(written.errors)}")
    with pair.connect(pair.leader) as connection:
        query = f"SELECT value FROM {TABLE} WHERE value LIKE %s"
        found = [row[0] for row in connection.execute(query, (f"{writer.prefix}%",))]  # type: ignore[arg-type]
    return Leg(
        gap=longest_gap(moments, began),
        promotion=served_again(moments, written.failed) - began,
        streams_again=streams - back,
        failed=len(written.failed),
        lost=len(missing(written.acknowledged, found)),
        acknowledged=len(moments),
    )


def summary(legs: Sequence[Leg]) -> dict[str, Any]:
    if not legs:
        return {}
    times = {what: common.summary([getattr(leg, what) for leg in legs]) for what in _TIMES}
    counts = {what: [getattr(leg, what) for leg in legs] for what in ("failed", "lost", "acknowledged")}
    return {**times, **counts, "gaps": [round(leg.gap, 4) for leg in legs]}


def ratios(found: Mapping[str, float]) -> dict[str, Any]:
    """Return how this package compares: with the floor, and the best peer with it. None where one is missing."""
    ours, floor = found.get(Ours.name), found.get(Floor.name)
    peers = {name: value for name, value in found.items() if name not in {Ours.name, Floor.name}}
    best = min(peers, key=lambda name: peers[name], default=None)
    return {
        "ours to floor": round(ours / floor, 3) if ours and floor else None,
        "best peer": best,
        "best peer to ours": round(peers[best] / ours, 3) if best and ours else None,
        "best peer to floor": round(peers[best] / floor, 3) if best and floor else None,
    }


def aims(found: Mapping[str, Mapping[str, Any]], ours: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the aims with what was found of each: `met` is None where it could not be told."""
    gap, promotion = found["planned gap"], found["promotion after the death"]
    lost = [count for row in ours.values() for count in row["planned"].get("lost", [])]

    def aim(what: str, value: float | None, *, met: bool, unit: str = " times") -> dict[str, Any]:
        if value is None:
            return {"what": what, "found": "not measured", "met": None}
        return {"what": what, "found": f"{value:g}{unit}", "met": met}

    over_floor, under_peer = gap["ours to floor"], gap["best peer to ours"]
    promoted = promotion["ours to floor"]
    return [
        aim(
            f"the planned gap is at most {_LIMIT_FLOOR:g} times the floor's median",
            over_floor,
            met=(over_floor or 0) <= _LIMIT_FLOOR,
        ),
        aim(
            f"the planned gap is at least {_LIMIT_PEERS:g} times shorter than the best peer's",
            under_peer,
            met=(under_peer or 0) >= _LIMIT_PEERS,
            unit=f" times ({gap['best peer']})",
        ),
        aim(
            f"promotion after the command takes at most {_LIMIT_PROMOTION:g} times the floor's",
            promoted,
            met=(promoted or 0) <= _LIMIT_PROMOTION,
        ),
        aim(
            "no acknowledged row is lost in a planned switchover",
            sum(lost) if lost else None,
            met=not sum(lost),
            unit=f" lost in {len(lost)}",
        ),
    ]


def report(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    intro = (
        "One client, a commit each 2 ms, which reconnects at once. Median (least to most). Until the old primary "
        "streams again, time runs from the command, which for some includes a long start.\n"
    )
    parts = ["## switchover\n", intro]
    parts.append(_table(result, "planned", "planned switchover", "longest gap", "gap"))
    parts.append(
        _table(result, "death", "death of the primary", "from command or death to the next commit", "promotion")
    )
    parts.append(
        "After a death: a loss of rows is what asynchronous replication had not sent. The old primary is brought back "
        "a second after the promotion; from then on it is timed. The systems that promote by themselves are timed "
        "from the death, the others from their command, right after it.\n"
    )
    if result["rejoin"]:
        parts.append(rejoin.report(result["rejoin"]))
    for what, found in result["ratios"].items():
        shown = ", ".join(f"{name}: {value}" for name, value in found.items() if value is not None)
        parts.append(f"Ratios, {what}: {shown or 'none'}.\n")
    alike = common_settings([row["settings"] for row in result["systems"].values()])
    parts.append(
        f"Settings of all: {in_words(alike)}. All clients connect over TLS (verify-full) by password (SCRAM).\n"
    )
    for name, row in result["systems"].items():
        own = {key: value for key, value in row["settings"].items() if key not in alike}
        parts.append(f"- {name}: {row['version']}; {row['how']}." + (f" Settings: {in_words(own)}." if own else ""))
    for name, reason in (*result["left out"].items(), *result["cannot fail over"].items()):
        parts.append(f"- {name}: {reason}")
    parts.append("")
    parts += [verdict(aim) for aim in result["aims"]]
    return "\n".join(parts)


def common_settings(systems: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the settings that are equal on all systems."""
    first, *others = systems or [{}]
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def in_words(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value or 'none'}" for name, value in settings.items())


def verdict(aim: Mapping[str, Any]) -> str:
    return f"Aim: {aim['what']}. Not measured.\n" if aim["met"] is None else common.verdict(aim)


def _table(result: Mapping[str, Any], kind: str, title: str, column: str, what: str) -> str:
    rows = [
        [
            name,
            milliseconds(row[kind][what]),
            *([milliseconds(row[kind]["gap"])] if what != "gap" else []),
            " ".join(map(str, row[kind]["failed"])),
            " ".join(map(str, row[kind]["lost"])),
            common.cell(row[kind]["streams_again"], digits=1),
            str(row[kind]["gap"]["runs"]),
        ]
        for name, row in result["systems"].items()
        if row[kind]
    ]
    more = ["longest gap"] if what != "gap" else []
    head = [title, column, *more, "failed statements", "lost rows", "old primary streams again after", "runs"]
    return common.table(head, rows)


def milliseconds(found: Mapping[str, float]) -> str:
    return common.cell({key: value * 1000 for key, value in found.items()}, "ms", 0)


def main() -> None:
    """Be the command line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # So that nothing is left then, either.
    parser = argparse.ArgumentParser(prog="python -m benchmarks.switchover")
    parser.add_argument("--runs", type=int, default=RUNS, help="planned switchovers of each (default: %(default)s)")
    parser.add_argument("--deaths", type=int, default=DEATHS, help="deaths of each (default: %(default)s)")
    parser.add_argument(
        "--sizes", type=float, nargs="*", default=SIZES, help="databases that rejoin, in GB (default: %(default)s)"
    )
    parser.add_argument(
        "--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="which to measure (default: all)"
    )
    common.run(
        "switchover",
        lambda options: measure(options.runs, deaths=options.deaths, sizes=options.sizes, systems=options.systems),
        report,
        parser=parser,
    )


if __name__ == "__main__":
    main()
