"""Tests run with the official Kubernetes plugin where it is there; a stand-in takes a cluster that is gone as that does."""

from __future__ import annotations

import os
import socket
from importlib.machinery import SourceFileLoader
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format, struct_pb2
from pulumi.runtime.proto import provider_pb2

from tests.plugins.found import PLUGIN, STAND_IN, official_plugin

BEFORE = {"metadata": {"name": "orders"}, "spec": {"instances": 1}}


def message(value: Any) -> struct_pb2.Struct:
    return json_format.ParseDict(value, struct_pb2.Struct())


def provider(**options: str) -> Any:
    """Return the plugin, configured for a cluster that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = f"http://127.0.0.1:{bound.getsockname()[1]}"
    kubeconfig = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "east", "user": "jane"}}],
        "clusters": [{"name": "east", "cluster": {"server": server}}],
        "users": [{"name": "jane", "user": {"token": "of-jane"}}],
    }
    loader = SourceFileLoader("plugin", str(STAND_IN))
    spec = spec_from_loader("plugin", loader)
    assert spec
    plugin: Any = module_from_spec(spec)
    loader.exec_module(plugin)
    made = plugin.Kubernetes()
    made.Configure(
        provider_pb2.ConfigureRequest(args=message({"kubeconfig": yaml.safe_dump(kubeconfig), **options})), None
    )
    return made


def test_what_is_on_a_cluster_that_is_gone_stays_as_it_was() -> None:
    gone = provider(skipUpdateUnreachable="true")
    id_ = "/api/v1/namespaces/shop/secrets/orders"
    read = provider_pb2.ReadRequest(id=id_, properties=message(BEFORE), inputs=message(BEFORE))
    seen = gone.Read(read, None)
    assert (seen.id, seen.properties, seen.inputs) == (id_, message(BEFORE), message(BEFORE))
    changed = provider_pb2.CheckRequest(olds=message(BEFORE), news=message({**BEFORE, "spec": {"instances": 3}}))
    assert gone.Check(changed, None).inputs == message(BEFORE)
    first = provider_pb2.CheckRequest(news=message(BEFORE))
    assert gone.Check(first, None).inputs == message(BEFORE)


def made(folder: Path) -> Path:
    """Make a plugin in a folder."""
    folder.mkdir(parents=True)
    plugin = folder / PLUGIN
    plugin.write_text("#!/bin/sh")
    plugin.chmod(0o755)
    return plugin


@pytest.mark.e2e  # Pulumi itself says what is installed.
def test_the_official_plugin_is_taken_where_it_is_there(tmp_path: Path) -> None:
    wanted = version("pulumi_kubernetes")
    env = {**os.environ, "PULUMI_HOME": str(tmp_path / "home"), "PATH": f"{STAND_IN.parent}:{os.environ['PATH']}"}
    assert official_plugin(env) is None
    made(tmp_path / "home/plugins/resource-kubernetes-v4.0.0")
    assert official_plugin(env) is None
    installed = made(tmp_path / f"home/plugins/resource-kubernetes-v{wanted}")
    assert official_plugin(env) == installed
    on_path = made(tmp_path / "bin")
    assert official_plugin({**env, "PATH": f"{on_path.parent}:{env['PATH']}"}) == on_path
