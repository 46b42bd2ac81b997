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

import grpc
from google.protobuf.empty_pb2 import Empty
from pulumi.runtime.proto.provider_pb2_grpc import ResourceProviderStub

PLUGIN = "pulumi-resource-kubernetes"
STAND_IN = Path(__file__).parent / PLUGIN
WANTED = version("pulumi_kubernetes")


def add_kubernetes_plugin(env: dict[str, str], plugin: Path | None = None) -> None:
    """Have a Pulumi that is run with an environment find the plugin, by PATH; say which it is.

    Args:
        env: of Pulumi.
        plugin: which one; by default the official one, if it is there.
    """
    plugin = plugin or official_plugin() or STAND_IN
    print(f"Kubernetes plugin: {plugin}", file=sys.stderr, flush=True)
    # What is found by PATH is left where it is: the language host takes the first python3.
    if shutil.which(PLUGIN, path=env["PATH"]) != str(plugin):
        env["PATH"] = f"{plugin.parent}:{env['PATH']}"


def official_plugin(env: Mapping[str, str] = os.environ) -> Path | None:
    """Return the official plugin, if it is there: on PATH, which Pulumi asks first, or installed by Pulumi."""
    found = shutil.which(PLUGIN, path=env["PATH"])
    if found and Path(found) != STAND_IN:
        return Path(found)
    argv = ["pulumi", "plugin", "ls", "--json"]
    said = subprocess.run(argv, env=dict(env), capture_output=True, text=True, check=True, timeout=60).stdout
    if not any((p["kind"], p["name"], p["version"]) == ("resource", "kubernetes", WANTED) for p in json.loads(said)):
        return None
    home = Path(env.get("PULUMI_HOME") or Path.home() / ".pulumi")
    return home / "plugins" / f"resource-kubernetes-v{WANTED}" / PLUGIN


def version_of(plugin: Path) -> str:
    """Ask a plugin for its version. What was built, where none can be downloaded, is older than `WANTED`."""
    with subprocess.Popen([plugin], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            with grpc.insecure_channel(f"127.0.0.1:{process.stdout.readline().strip()}") as channel:
                return str(ResourceProviderStub(channel).GetPluginInfo(Empty(), timeout=30).version)
        finally:
            process.terminate()
