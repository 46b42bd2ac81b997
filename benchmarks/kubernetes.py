"""A pair on two Kubernetes clusters: this package, side by side with the flow that CloudNativePG documents, by hand.

Told are: from nothing to a replica that streams; and for switchovers, and for the way back to the roles of the
beginning, the longest gap between the acknowledged commits of one client that commits each 2 ms, and how long it takes
until the old primary streams again. Both use the same two clusters, which are made for this or given, as in
tests/e2e/kubernetes, and the same operator; so the operator's own work is the same.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks import common
from benchmarks.pairs.base import wait_for
from benchmarks.pairs.clusters import ByHand, OnClusters, OursOnClusters
from benchmarks.switchover import WARM_UP, Leg, common_settings, finish, in_turn, in_words, milliseconds, told
from benchmarks.writer import Writer
from tests.e2e.kubernetes.conftest import two_clusters

RUNS = 10
SYSTEMS: tuple[type[OnClusters], ...] = (ByHand, OursOnClusters)
KINDS: Mapping[str, Callable[[OnClusters], None]] = {
    "switchover": lambda pair: pair.switch_over(),
    "revert": lambda pair: pair.revert(),
}
_LIMIT_GAP, _LIMIT_WORST = 1.1, 2.0


def lacking() -> str:
    """Return what this needs and is not there, or nothing."""
    if not shutil.which("pulumi"):
        return "the pulumi command is not on PATH; `scripts/demo` installs it and says where"
    if os.geteuid() != 0 and not os.environ.get("HARMONY_E2E_KUBECONFIGS"):
        return "only root can make two clusters; or give two: HARMONY_E2E_KUBECONFIGS=ONE:OTHER, paths of kubeconfigs"
    return ""


def measure(runs: int = RUNS) -> dict[str, Any]:
    """Measure both, in turn: what else the machine does meets them alike."""
    if reason := lacking():
        return {"left out": {"kubernetes": reason}, "systems": {}, "ratios": {}, "aims": []}
    left_out: dict[str, str] = {}
    rows: dict[str, dict[str, Any]] = {}
    legs: dict[str, dict[str, list[Leg]]] = {kind: {system.name: [] for system in SYSTEMS} for kind in KINDS}
    with common.workspace() as folder, two_clusters() as clusters, ExitStack() as stack:
        for cluster in clusters:
            if not cluster.has_operator():
                cluster.site("operator", deadline=300)
        pairs: dict[str, OnClusters] = {}
        for system in SYSTEMS:
            pair = system(folder / system.name, clusters)
            stack.callback(pair.stop)
            with told(left_out, pair.name, pair):
                began = time.monotonic()
                pair.start()
                taken = time.monotonic() - began
                print(f"deploy: {pair.name}: {taken:.1f} s", file=sys.stderr, flush=True)
                pair.make_client()
                rows[pair.name] = {
                    "version": pair.version(),
                    "how": pair.how,
                    "settings": pair.settings(),
                    "deploy": round(taken, 2),
                }
                pairs[pair.name] = pair
        for number in range(runs):
            for kind, act in KINDS.items():
                words = f"{kind} {number + 1} of {runs}"
                for name, leg in in_turn(words, pairs, partial(_moved, act), left_out).items():
                    legs[kind][name].append(leg)
    for name, row in rows.items():
        row |= {kind: summary(found[name]) for kind, found in legs.items()}
    return {
        "aims": aims(rows),
        "left out": left_out,
        "systems": rows,
        "ratios": {what: ratio(rows, what) for what in ("deploy", *KINDS)},
    }


def _moved(act: Callable[[OnClusters], None], pair: OnClusters) -> Leg:
    with Writer(pair.conninfo()) as writer:
        time.sleep(WARM_UP)
        began, clock = time.monotonic(), time.time()
        act(pair)
        wait_for(f"{pair.name}: the old primary streaming", lambda: pair.is_followed(pair.leader), deadline=120)
        since = pair.streams_since() - clock
        leg = finish(pair, writer, began, began)
        # By hand, it follows a standby at first, which then is promoted: until then it does not stream again.
        return leg._replace(streams_again=max(since, leg.promotion))


def summary(legs: Sequence[Leg]) -> dict[str, Any]:
    """Return what role changes of one kind cost; nothing if there was none. Times are in seconds."""
    if not legs:
        return {}
    times = {
        "gap": [leg.gap for leg in legs],
        "reattached": [leg.streams_again - leg.promotion for leg in legs],
        "streams_again": [leg.streams_again for leg in legs],
    }
    counts = {what: [getattr(leg, what) for leg in legs] for what in ("failed", "lost", "acknowledged")}
    gaps = [round(leg.gap, 3) for leg in legs]
    return {**{what: common.summary(found) for what, found in times.items()}, **counts, "gaps": gaps}


def ratio(rows: Mapping[str, Mapping[str, Any]], what: str) -> float | None:
    """Return how this package compares with the flow by hand; of gaps, its median with the other's least."""
    ours, by_hand = (rows.get(system.name, {}).get(what) for system in (OursOnClusters, ByHand))
    if not ours or not by_hand:
        return None
    if what == "deploy":
        return round(ours / by_hand, 3)
    return round(ours["gap"]["median"] / by_hand["gap"]["min"], 3)


def aims(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the aims with what was found of each; those that could not be told are left out."""
    ours = rows.get(OursOnClusters.name, {})
    found: list[dict[str, Any]] = []
    for kind in KINDS:
        if not (moved := ours.get(kind)):
            continue
        gap = moved["gap"]
        worst = round(gap["max"] / gap["median"], 3)
        if compared := ratio(rows, kind):
            what = f"{kind}: the median gap is at most {_LIMIT_GAP:g} times the least by hand"
            found.append({"what": what, "found": f"{compared:g} times", "met": compared <= _LIMIT_GAP})
        what = f"{kind}: the longest gap is at most {_LIMIT_WORST:g} times the median"
        found.append({"what": what, "found": f"{worst:g} times", "met": worst <= _LIMIT_WORST})
        lost = sum(moved["lost"])
        what = f"{kind}: no acknowledged row is lost, and nobody has to help"
        found.append({"what": what, "found": f"{lost} lost in {len(moved['lost'])}", "met": not lost})
    return found


def report(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    intro = (
        "One client, a commit each 2 ms, which reconnects at once. Median (least to most). The old primary streams "
        "again: from the command, and from the next commit that was acknowledged. A deployment is from nothing to a "
        "replica that streams, on clusters with the operator.\n"
    )
    systems = result["systems"]
    parts = ["## kubernetes\n", intro]
    if systems:
        rows = [[name, f"{row['deploy']:.1f} s"] for name, row in systems.items()]
        parts.append(common.table(["deploy", "until the replica streams"], rows))
    for kind in KINDS:
        rows = [[name, *_cells(row[kind])] for name, row in systems.items() if row[kind]]
        if rows:
            head = [kind, "longest gap", "failed statements", "lost rows", "streams again", "after the commit", "runs"]
            parts.append(common.table(head, rows))
    shown = ", ".join(f"{what}: {value}" for what, value in result["ratios"].items() if value is not None)
    parts.append(f"Ratios, ours to by hand (gaps: our median to its least): {shown or 'none'}.\n")
    if systems:
        alike = in_words(common_settings([row["settings"] for row in systems.values()]))
        parts.append(f"Settings of both: {alike}. Clients connect over TLS (verify-full) by password (SCRAM).\n")
    parts += [f"- {name}: {row['version']}; {row['how']}." for name, row in systems.items()]
    parts += [f"- {name}: {reason}" for name, reason in result["left out"].items()]
    parts.append("")
    parts += [common.verdict(aim) for aim in result["aims"]]
    return "\n".join(parts)


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        milliseconds(row["gap"]),
        " ".join(map(str, row["failed"])),
        " ".join(map(str, row["lost"])),
        *(common.cell(row[what], digits=1) for what in ("streams_again", "reattached")),
        str(row["gap"]["runs"]),
    ]


def main() -> None:
    """Be the command line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # So that nothing is left then, either.
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kubernetes")
    parser.add_argument("--runs", type=int, default=RUNS, help="switchovers and reverts of each (default: %(default)s)")
    common.run("kubernetes", lambda options: measure(options.runs), report, parser=parser)


if __name__ == "__main__":
    main()
