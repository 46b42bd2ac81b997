"""The tests of rotation, themselves tested: `orchestration.rotation` is altered in each way that `test_mutants` has."""

from __future__ import annotations

import ast
import types
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from harmony_pulumi.orchestration import rotation
from tests.orchestration import test_rotation as of_rotation
from tests.orchestration.test_mutants import mutants


def checks() -> Iterator[Callable[[], None]]:
    """Yield every test of rotation, with each of its parameters."""
    for name, test in vars(of_rotation).items():
        if name.startswith("test_"):
            yield from with_parameters(test, getattr(test, "pytestmark", []))


def with_parameters(test: Callable[..., None], marks: list[pytest.Mark]) -> Iterator[Callable[[], None]]:
    given: list[list[dict[str, Any]]] = []
    for mark in marks:
        names, values = mark.args
        one = isinstance(names, str)
        given.append([dict(zip([names] if one else names, [v] if one else v, strict=True)) for v in values])
    for chosen in product(*given):
        yield partial(test, **{name: value for parameters in chosen for name, value in parameters.items()})


def killed(source: ast.Module, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Tell whether a test fails with this source."""
    altered = types.ModuleType(rotation.__name__)
    exec(compile(source, str(rotation.__file__), "exec"), altered.__dict__)
    for name, value in vars(of_rotation).items():
        if getattr(value, "__module__", "") == rotation.__name__:
            monkeypatch.setattr(of_rotation, name, getattr(altered, name))
    for check in checks():
        try:
            check()
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 # pytest's own failure is no Exception
            return True
    return False


def test_no_test_fails_without_a_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not killed(ast.parse(Path(str(rotation.__file__)).read_text()), monkeypatch)


@pytest.mark.parametrize("mutant", [pytest.param(tree, id=name) for name, tree in mutants(rotation)])
def test_a_mutant_does_not_survive(mutant: ast.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    assert killed(mutant, monkeypatch)
