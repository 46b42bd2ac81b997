"""The Kubernetes plugin that Pulumi runs with in tests: the official one where it is there, else the stand-in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

PLUGIN = "pulumi-resource-kubernetes"
STAND_IN = Path(__file__).parent / PLUGIN


def add_kubernetes_plugin(env: dict[str, str]) -> None:
    """Have a Pulumi that is run with an environment find the plugin, by PATH; say which it is."""
    official = official_plugin()
    print(f"Kubernetes plugin: {official or f'the stand-in {STAND_IN}'}", file=sys.stderr, flush=True)
    # At the end: the language host takes the first python3 on PATH.
    env["PATH"] = f"{env['PATH']}:{(official or STAND_IN).parent}"


def official_plugin(env: Mapping[str, str] = os.environ) -> Path | None:
    """Return the official plugin, if it is there: on PATH, which Pulumi asks first, or installed by Pulumi."""
    found = shutil.which(PLUGIN, path=env["PATH"])
    if found and Path(found) != STAND_IN:
        return Path(found)
    wanted = version("pulumi_kubernetes")
    argv = ["pulumi", "plugin", "ls", "--json"]
    said = subprocess.run(argv, env=dict(env), capture_output=True, text=True, check=True, timeout=60).stdout
    if not any((p["kind"], p["name"], p["version"]) == ("resource", "kubernetes", wanted) for p in json.loads(said)):
        return None
    home = Path(env.get("PULUMI_HOME") or Path.home() / ".pulumi")
    return home / "plugins" / f"resource-kubernetes-v{wanted}" / PLUGIN
