"""Tests run with the official Kubernetes plugin where it is there; the stand-in takes its options as documented.

What it does on a cluster, tests/e2e/kubernetes/test_plugin.py has.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import yaml
from google.protobuf import json_format, struct_pb2
from pulumi.runtime.proto import provider_pb2

from tests.plugins.found import PLUGIN, STAND_IN, WANTED, add_kubernetes_plugin, official_plugin, version_of
from tests.plugins.kubernetes_stand_in import UNKNOWN, Kubernetes

BEFORE = {"metadata": {"name": "orders"}, "spec": {"instances": 1}}
CONTEXT = cast("grpc.ServicerContext", None)
"""Of calls that do not fail."""


def message(value: Any) -> struct_pb2.Struct:
    return json_format.ParseDict(value, struct_pb2.Struct())


def kubeconfig(server: str) -> str:
    return yaml.safe_dump(
        {
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "east", "user": "jane"}}],
            "clusters": [{"name": "east", "cluster": {"server": server}}],
            "users": [{"name": "jane", "user": {"token": "of-jane"}}],
        }
    )


def provider(**options: str) -> Kubernetes:
    """Return the plugin, configured for a cluster that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = f"http://127.0.0.1:{bound.getsockname()[1]}"
    made = Kubernetes()
    made.Configure(provider_pb2.ConfigureRequest(args=message({"kubeconfig": kubeconfig(server), **options})), CONTEXT)
    return made


def test_what_is_on_a_cluster_that_is_gone_stays_as_it_was() -> None:
    gone = provider(skipUpdateUnreachable="true")
    id_ = "/api/v1/namespaces/shop/secrets/orders"
    read = provider_pb2.ReadRequest(id=id_, properties=message(BEFORE), inputs=message(BEFORE))
    seen = gone.Read(read, CONTEXT)
    assert (seen.id, seen.properties, seen.inputs) == (id_, message(BEFORE), message(BEFORE))
    changed = provider_pb2.CheckRequest(olds=message(BEFORE), news=message({**BEFORE, "spec": {"instances": 3}}))
    assert gone.Check(changed, CONTEXT).inputs == message(BEFORE)
    first = provider_pb2.CheckRequest(news=message(BEFORE))
    assert gone.Check(first, CONTEXT).inputs == message({})


SECRET = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": {"name": "orders"}, "data": {"a": "YQ=="}}
OTHER_DATA = {"data": {"a": "Yg=="}}


@pytest.mark.parametrize(
    ("change", "options", "replaces"),
    [
        ({}, {}, []),
        (OTHER_DATA, {}, ["data"]),
        (OTHER_DATA, {"enableSecretMutable": "true"}, []),
        ({**OTHER_DATA, "immutable": True}, {"enableSecretMutable": "true"}, ["data"]),
        ({"kind": "ConfigMap"}, {}, ["kind"]),
        ({"metadata": {"name": "orders", "labels": {"a": "b"}}}, {}, []),
    ],
)
def test_data_of_a_secret_is_changed_in_place_only_if_that_is_enabled(
    change: dict[str, Any], options: dict[str, str], replaces: list[str]
) -> None:
    asked = provider_pb2.DiffRequest(old_inputs=message(SECRET), news=message({**SECRET, **change}))
    found = provider(**options).Diff(asked, CONTEXT)
    assert ([*found.replaces], found.deleteBeforeReplace) == (replaces, bool(replaces))
    assert (found.changes == found.DIFF_NONE) == (not change)


def test_an_object_of_another_name_is_made_before_the_old_one_is_deleted() -> None:
    asked = provider_pb2.DiffRequest(
        old_inputs=message(SECRET), news=message({**SECRET, "metadata": {"name": "invoices"}})
    )
    found = provider().Diff(asked, CONTEXT)
    assert ([*found.replaces], found.deleteBeforeReplace) == (["metadata"], False)


ONE, OTHER = ({"kubeconfig": kubeconfig(f"https://{host}:6443")} for host in ("montreal", "toronto"))
OF_ONE, OF_OTHER = {"clusterIdentifier": "one"}, {"clusterIdentifier": "other"}


@pytest.mark.parametrize(
    ("old", "new", "replaces"),
    [
        (ONE, ONE, []),
        (ONE, {**ONE, "upsertExistingObjects": "true"}, []),
        (ONE, OTHER, ["kubeconfig"]),
        (ONE, {"kubeconfig": UNKNOWN}, ["kubeconfig"]),
        (ONE | OF_ONE, OTHER | OF_ONE, []),
        (ONE | OF_ONE, {"kubeconfig": UNKNOWN} | OF_ONE, []),
        (ONE | OF_ONE, ONE | OF_OTHER, ["clusterIdentifier"]),
        (ONE, ONE | OF_ONE, []),
    ],
)
def test_everything_is_replaced_with_its_cluster(old: dict[str, str], new: dict[str, str], replaces: list[str]) -> None:
    asked = provider_pb2.DiffRequest(olds=message(old), news=message(new))
    found = Kubernetes().DiffConfig(asked, CONTEXT)
    assert [*found.replaces] == replaces
    assert (found.changes == found.DIFF_NONE) == (old == new)


def test_an_option_that_is_not_honoured_is_refused() -> None:
    given = message({**ONE, "skipUpdateUnreachable": "true", "deleteUnreachable": "true"})
    (failure,) = Kubernetes().CheckConfig(provider_pb2.CheckRequest(news=given), CONTEXT).failures
    assert failure.property == "deleteUnreachable"


def made(folder: Path) -> Path:
    """Make a plugin in a folder."""
    folder.mkdir(parents=True)
    plugin = folder / PLUGIN
    plugin.write_text("#!/bin/sh")
    plugin.chmod(0o755)
    return plugin


@pytest.mark.e2e  # Pulumi itself says what is installed.
def test_the_official_plugin_is_taken_where_it_is_there(tmp_path: Path) -> None:
    env = {**os.environ, "PULUMI_HOME": str(tmp_path / "home"), "PATH": f"{STAND_IN.parent}:{os.environ['PATH']}"}
    assert official_plugin(env) is None
    made(tmp_path / "home/plugins/resource-kubernetes-v4.0.0")
    assert official_plugin(env) is None
    installed = made(tmp_path / f"home/plugins/resource-kubernetes-v{WANTED}")
    assert official_plugin(env) == installed
    on_path = made(tmp_path / "bin")
    assert official_plugin({**env, "PATH": f"{on_path.parent}:{env['PATH']}"}) == on_path


def test_one_that_is_chosen_is_found_before_others(tmp_path: Path) -> None:
    env = {"PATH": f"{made(tmp_path / 'bin').parent}:{os.environ['PATH']}"}
    add_kubernetes_plugin(env, STAND_IN)
    assert shutil.which(PLUGIN, path=env["PATH"]) == str(STAND_IN)


def test_the_stand_in_says_that_it_is_what_it_stands_in_for() -> None:
    assert version_of(STAND_IN) == WANTED
