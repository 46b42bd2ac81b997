"""What the package adds to Pulumi, without any database: pairs of a stub beside the same resources made by hand.

Each sample begins with a new backend and a new stack. Timed are the first preview, the first `up`, and an `up` that
finds nothing to do; the size of the state is that of the file backend's file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import common

SIDES = {"plain": "benchmarks.programs.plain", "harmony": "benchmarks.programs.stub"}
PAIRS = (1, 10, 100)
RUNS = 5
_BUDGET = 400.0
"""Seconds for each number of pairs; the round that is under way is finished."""
_LIMIT = 1.15
_PER_PAIR = "3 components and 3 dynamic resources"


class Costs(NamedTuple):
    """What one sample found."""

    preview: common.Sample
    up: common.Sample
    no_op_up: common.Sample
    state_bytes: int


_TIMED = ("preview", "up", "no_op_up")


def measure(runs: int) -> dict[str, Any]:
    """Measure both sides with each number of pairs."""
    sizes: dict[str, Any] = {}
    for pairs in PAIRS:
        sides: dict[str, Callable[[], Costs]] = {
            side: partial(_sample, program, pairs) for side, program in SIDES.items()
        }
        samples = common.in_turn(sides, runs, budget=_BUDGET, what=f"overhead: {pairs} pairs")
        found = {side: _summaries(costs) for side, costs in samples.items()}
        size = round(found["harmony"]["state_bytes"] / found["plain"]["state_bytes"], 3)
        sizes[str(pairs)] = {**found, "ratio": ratios(found["plain"], found["harmony"]), "state_ratio": size}
    worst = max(
        max(size["state_ratio"], *(ratio["seconds"] for ratio in size["ratio"].values())) for size in sizes.values()
    )
    growth = {side: growths({pairs: sizes[pairs][side] for pairs in sizes}) for side in SIDES}
    return {
        "aim": {
            "what": f"preview, up, no-op up and state are each at most {_LIMIT} times those of plain Pulumi",
            "found": f"at most {worst:.3f} times",
            "met": worst <= _LIMIT,
        },
        "a pair is": _PER_PAIR,
        "pairs": sizes,
        "growth from 10 to 100 pairs": growth,
    }


def report(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    rows: list[list[str]] = []
    keys = common.Sample._fields
    for pairs, size in result["pairs"].items():
        for what in _TIMED:
            cells = [common.cell(size[side][what]["seconds"]) for side in SIDES]
            rows.append([pairs, what.replace("_", " "), *cells, *(f"{size['ratio'][what][key]:.2f}" for key in keys)])
        cells = [f"{size[side]['state_bytes'] / 1000:.1f} kB" for side in SIDES]
        rows.append([pairs, "state", *cells, f"{size['state_ratio']:.2f}", ""])
    growth = result["growth from 10 to 100 pairs"]
    head = ["pairs", "", *SIDES, "ratio", "ratio of CPU time"]
    grown = [[what.replace("_", " "), *(_times(growth[side][what]) for side in SIDES)] for what in growth["plain"]]
    return (
        f"## overhead\n\nA pair is {result['a pair is']}.\n\n{common.table(head, rows)}\n"
        f"Cost of a further pair between 10 and 100, times that of one between 1 and 10. 1 is linear growth; Pulumi "
        f"itself writes the whole state at every step, so its `up` grows faster than that:\n\n"
        f"{common.table(['', *SIDES], grown)}\n{common.verdict(result['aim'])}"
    )


def ratios(plain: Mapping[str, Any], harmony: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return how many times the cost of plain Pulumi the package's is, by medians."""
    return {
        what: {
            key: round(harmony[what][key]["median"] / plain[what][key]["median"], 3) for key in common.Sample._fields
        }
        for what in _TIMED
    }


def growths(costs: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the cost of a further pair between the two greater numbers, times that between the two smaller ones.

    None where the smaller numbers differ too little to be told apart.
    """
    numbers = [int(pairs) for pairs in costs]

    def growth(values: Sequence[float]) -> float | None:
        early, late = ((values[i + 1] - values[i]) / (numbers[i + 1] - numbers[i]) for i in (0, 1))
        return round(late / early, 3) if early > 0 else None

    found = {what: growth([cost[what]["seconds"]["median"] for cost in costs.values()]) for what in _TIMED}
    return {**found, "state_bytes": growth([cost["state_bytes"] for cost in costs.values()])}


def _times(factor: float | None) -> str:
    return "too little to tell" if factor is None else f"{factor:.2f}"


def _summaries(costs: Sequence[Costs]) -> dict[str, Any]:
    timed = {what: common.summaries([getattr(cost, what) for cost in costs]) for what in _TIMED}
    return {**timed, "state_bytes": costs[-1].state_bytes}


def _sample(program: str, pairs: int) -> Costs:
    with tempfile.TemporaryDirectory(prefix="hb-") as folder:
        project = common.Project(Path(folder) / "project", program, {"BENCHMARK_PAIRS": str(pairs)})
        preview = common.timed(lambda: project.pulumi("preview"))
        up = common.timed(project.up)
        size = project.state().stat().st_size
        return Costs(preview, up, common.timed(project.up), size)


if __name__ == "__main__":
    common.run_times("overhead", measure, report, runs=RUNS)
