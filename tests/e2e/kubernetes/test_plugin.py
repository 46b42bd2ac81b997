"""What the Kubernetes plugin does with objects, as this package's declarations rely on it.

The official plugin and the stand-in are held to the same, so that other tests may run with either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Stack
from tests.e2e.kubernetes.conftest import Cluster
from tests.e2e.kubernetes.pairs import configure, with_plugin
from tests.plugins.found import STAND_IN, official_plugin, version_of

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]

PROGRAM = """
import pulumi
import pulumi_kubernetes as kubernetes

config = pulumi.Config()
there = kubernetes.Provider(
    "there", kubeconfig=config.require_secret("kubeconfig"), **config.require_object("options")
)
kubernetes.core.v1.Secret(
    "orders",
    metadata={"name": "orders", "namespace": config.require("namespace")},
    string_data={"word": config.require("word")},
    opts=pulumi.ResourceOptions(provider=there),
)
"""
ABOUT = {"metadata": {"name": "orders"}}


@dataclass(frozen=True)
class Declared:
    """A stack that declares a secret in a cluster."""

    stack: Stack
    cluster: Cluster
    namespace: str

    def say(self, word: str, **options: object) -> None:
        """Declare its word, by a provider with options."""
        configure(self.stack, "word", word)
        configure(self.stack, "options", json.dumps(options))

    def there(self) -> Any:
        """Return the secret as it is, or None."""
        listed = self.cluster.api("CoreV1Api").list_namespaced_secret(self.namespace, _request_timeout=30).items
        return next((each for each in listed if each.metadata.name == "orders"), None)

    def uid(self) -> str:
        return str(self.there().metadata.uid)


@pytest.fixture(params=["official", "stand-in"])
def plugin(request: pytest.FixtureRequest) -> Path:
    """Return the one plugin, then the other."""
    found = STAND_IN if request.param == "stand-in" else official_plugin()
    if found is None:
        pytest.skip("the official plugin is not there")
    return found


@pytest.fixture
def declare(
    clusters: tuple[Cluster, Cluster], make_stack: Callable[[], Stack], plugin: Path
) -> Generator[Callable[[], Declared]]:
    """Declare a secret in a namespace of its own."""
    with ExitStack() as namespaces:

        def make() -> Declared:
            stack = with_plugin(make_stack(), plugin)
            declared = Declared(stack, clusters[0], namespaces.enter_context(clusters[0].namespace()))
            (stack.folder / "__main__.py").write_text(PROGRAM)
            configure(stack, "namespace", declared.namespace)
            configure(stack, "kubeconfig", clusters[0].kubeconfig.read_text(), "--secret")
            return declared

        yield make


def test_what_is_there_already_is_taken_over_only_if_that_is_enabled(
    declare: Callable[[], Declared], plugin: Path
) -> None:
    secret = declare()
    secret.cluster.api("CoreV1Api").create_namespaced_secret(secret.namespace, ABOUT, _request_timeout=30)
    before = secret.uid()
    # An older one takes it over in any case: pulumi-kubernetes, "CHANGELOG", 4.29.0.
    if tuple(map(int, version_of(plugin).split(".")[:2])) >= (4, 29):
        secret.say("one")
        secret.stack.preview()
        assert "already exists" in secret.stack.up(expect=1)
        assert not secret.there().data
    secret.say("one", upsert_existing_objects=True)
    secret.stack.up()
    assert (secret.uid(), secret.there().data) == (before, {"word": "b25l"})
    secret.stack.destroy()
    assert secret.there() is None


def test_a_secret_is_changed_in_place_only_if_that_is_enabled(declare: Callable[[], Declared]) -> None:
    secret = declare()
    secret.say("one", enable_secret_mutable=True)
    secret.stack.up()
    before = secret.uid()
    secret.say("two", enable_secret_mutable=True)
    secret.stack.up()
    assert (secret.uid(), secret.there().data) == (before, {"word": "dHdv"})
    secret.say("one")
    assert "replace" in secret.stack.preview()
    secret.stack.up()
    assert secret.uid() != before
    assert secret.there().data == {"word": "b25l"}


def test_everything_is_made_anew_on_another_cluster_and_only_then(declare: Callable[[], Declared]) -> None:
    secret = declare()
    secret.say("one", cluster_identifier="one")
    secret.stack.up()
    before = secret.uid()
    kubeconfig = yaml.safe_load(secret.cluster.kubeconfig.read_text())
    for each in kubeconfig["clusters"]:
        each["cluster"]["disable-compression"] = True
    configure(secret.stack, "kubeconfig", yaml.safe_dump(kubeconfig), "--secret")
    assert "replace" not in secret.stack.preview()
    secret.stack.up()
    assert secret.uid() == before
    secret.say("one", cluster_identifier="other")
    assert "Secret: (replace)" in secret.stack.preview()
