"""How long `import harmony_pulumi` takes beside `import pulumi`, each in a new interpreter."""

# ruff: noqa: N999 -- nothing imports it by name: it is run as `python -m benchmarks.import`

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import common

STATEMENTS = {
    "nothing": "pass",
    "import pulumi": "import pulumi",
    "import harmony_pulumi": "import harmony_pulumi",
    "what a program imports": (
        "import pulumi; from harmony_pulumi import FailoverTopology, LinuxHostTopology, PostgreSQLConfig; "
        "from harmony_pulumi.providers import postgresql_pair, postgresql_server"
    ),
    "what the provider process imports": (
        "import pulumi.dynamic; from harmony_pulumi.providers import postgresql_pair, postgresql_server; "
        "from harmony_pulumi.hosts.postgresql import deployment, inspection, site"
    ),
}
RUNS = 15
_LIMIT = 1.2


def measure(runs: int) -> dict[str, Any]:
    """Measure each statement."""
    for statement in STATEMENTS.values():  # Compiles what is not compiled yet.
        _execute(statement)
    sides: dict[str, Callable[[], common.Sample]] = {
        name: partial(common.timed, partial(_execute, statement)) for name, statement in STATEMENTS.items()
    }
    samples = common.in_turn(sides, runs, what="import")
    rows = {name: common.summaries(found) for name, found in samples.items()}
    base = rows["import pulumi"]
    for row in rows.values():
        row["ratio"] = {key: round(row[key]["median"] / base[key]["median"], 3) for key in common.Sample._fields}
    found = rows["import harmony_pulumi"]["ratio"]["seconds"]
    aim = {"what": f"import harmony_pulumi takes at most {_LIMIT} times import pulumi", "found": f"{found:.2f} times"}
    return {"aim": {**aim, "met": found <= _LIMIT}, "statements": STATEMENTS, "rows": rows}


def report(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    rows = [
        [
            name,
            common.cell(row["seconds"], "s", 3),
            common.cell(row["cpu_seconds"], "s", 3),
            f"{row['ratio']['seconds']:.2f}",
        ]
        for name, row in result["rows"].items()
    ]
    head = ["a new interpreter that runs", "wall clock", "CPU time", "times import pulumi"]
    return f"## import\n\n{common.table(head, rows)}\n{common.verdict(result['aim'])}"


def _execute(statement: str) -> None:
    subprocess.run([sys.executable, "-c", statement], cwd=common.REPOSITORY, check=True, timeout=60)


if __name__ == "__main__":
    common.run_times("import", measure, report, runs=RUNS)
