"""All benchmarks: `python -m benchmarks [--json] [--runs N] [--save]`."""

from __future__ import annotations

import argparse
import importlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import common

_NAMES = ("import", "deploy", "overhead")


def main() -> None:
    """Run all, print them, and with `--save` keep them in `benchmarks/results/`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--runs", type=int, help="samples of each side (default: each benchmark's own number)")
    parser.add_argument(
        "--save",
        action="store_true",
        help="keep both forms in benchmarks/results/, by date and time; no run replaces another",
    )
    options = parser.parse_args()
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in _NAMES}
    began = datetime.now(UTC)
    result: dict[str, Any] = {"machine": common.machine()}
    for name, module in modules.items():
        result[name] = module.measure(options.runs or module.RUNS)
    result["machine"]["load average at the end"] = common.machine()["load average"]
    texts = {
        "json": json.dumps(result, indent=1) + "\n",
        "md": "\n".join(
            [
                "# Benchmarks\n",
                common.describe(result["machine"]),
                *(module.report(result[name]) for name, module in modules.items()),
            ]
        ),
    }
    if options.save:
        for suffix, text in texts.items():
            place = Path(__file__).parent / "results" / f"{began:%Y-%m-%dT%H%MZ}.{suffix}"
            place.parent.mkdir(exist_ok=True)
            place.write_text(text, encoding="utf-8")
    print(texts["json" if options.json else "md"], end="")


if __name__ == "__main__":
    main()
