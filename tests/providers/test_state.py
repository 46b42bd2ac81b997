"""What the state of every stack holds of a provider: a reference to its class, and no code."""

from __future__ import annotations

import base64
import importlib
import io
import pickle
import pkgutil
from typing import Any

import pytest
from pulumi.dynamic.dynamic import serialize_provider

import harmony_pulumi.providers
from harmony_pulumi.providers.base import Provider


def providers() -> list[type[Provider]]:
    """Return the provider classes of this package."""
    package = harmony_pulumi.providers
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return list(dict.fromkeys(c for c in classes if issubclass(c, Provider) and c is not Provider))


def references_of(stored: str) -> list[tuple[str, str]]:
    """Return every module and name that a stored provider refers to."""
    reader = References(base64.b64decode(stored))
    reader.load()
    return reader.found


class References(pickle.Unpickler):
    """Reads a pickle and notes every global that it refers to."""

    def __init__(self, text: bytes) -> None:
        super().__init__(io.BytesIO(text))
        self.found: list[tuple[str, str]] = []

    def find_class(self, module_name: str, global_name: str) -> Any:
        self.found.append((module_name, global_name))
        return super().find_class(module_name, global_name)


@pytest.mark.parametrize("provider", providers(), ids=lambda provider: provider.__name__)
def test_the_state_refers_to_a_provider_by_module_and_name_alone(provider: type[Provider]) -> None:
    stored: str = serialize_provider(provider())
    assert len(stored) < 200
    assert references_of(stored) == [(provider.__module__, provider.__name__)]


@pytest.mark.parametrize("provider", providers(), ids=lambda provider: provider.__name__)
def test_a_provider_is_kept_in_the_clear_as_it_holds_no_secret(provider: type[Provider]) -> None:
    assert not provider.serialize_as_secret_always
    assert vars(provider()) == {}


def test_a_provider_that_no_module_holds_would_bring_its_code() -> None:
    class Local(Provider):
        pass

    stored: str = serialize_provider(Local())
    assert len(stored) > 200
    assert ("dill._dill", "_create_type") in references_of(stored)
