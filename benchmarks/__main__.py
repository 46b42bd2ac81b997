"""All benchmarks: `python -m benchmarks [--json] [--runs N] [--save]`; or one: `python -m benchmarks NAME ...`."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from datetime import UTC, datetime
from typing import Any

from benchmarks import common

_NAMES = ("import", "deploy", "overhead", "switchover", "kubernetes")


def main() -> None:
    """Run all, print them, and with `--save` keep them in `benchmarks/results/`; or be the one that is named."""
    if sys.argv[1:] and sys.argv[1] in _NAMES:
        name = sys.argv.pop(1)
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=f"One alone, with options of its own: {', '.join(_NAMES)}."
    )
    parser.add_argument("--runs", type=int, help="samples of each side (default: each benchmark's own number)")
    common.add_output_options(parser)
    options = parser.parse_args()
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in _NAMES}
    began = datetime.now(UTC)
    result: dict[str, Any] = {"machine": common.machine()}
    for name, module in modules.items():
        result[name] = module.measure(options.runs or module.RUNS)
    common.publish(result, {name: module.report for name, module in modules.items()}, began, options)


if __name__ == "__main__":
    main()
