"""Altered sources of modules, and whether the tests of a module notice that it was altered.

Each refusal is taken out, each condition turned around, and each part of a condition left out. A mutant is given only
the tests that come to the statement in which it is one, the quickest first; to the others it is not altered.
"""

from __future__ import annotations

import ast
import signal
import time
import types
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.orchestration.code import REAL

Alter = Callable[[ast.AST], None]
Check = Callable[[], None]
"""A test, with its parameters."""
Given = Callable[[Mapping[types.ModuleType, ast.Module]], AbstractContextManager[Sequence[Check]]]
"""Makes the tests of what modules would be with these sources. Always the same ones, in the same order."""
Place = tuple[str, int]
"""The file and the line of a statement."""
_came_to: set[Place] = set()
_CLEARING = {"killpg"}
"""Calls that are not left out: what a test has started would go on for minutes."""


class Mutant(NamedTuple):
    """A module with one alteration."""

    name: str
    module: types.ModuleType
    line: int
    number: int
    """That of the node, as its source is walked."""
    alter: Alter

    @property
    def source(self) -> ast.Module:
        tree = source_of(self.module)
        node = list(ast.walk(tree))[self.number]
        self.alter(node)
        ast.fix_missing_locations(node)
        return tree


def ways(node: ast.AST) -> Iterator[tuple[int, str, Alter]]:
    """Yield each way of altering a node: the line, what is done, and what does it to such a node."""
    if isinstance(node, ast.If | ast.IfExp):
        yield node.test.lineno, "turned around", _turn_around
    if isinstance(node, ast.BoolOp):
        for number, value in enumerate(node.values):
            yield value.lineno, f"part {number} left out", _leaving_out(number)
    if isinstance(node, ast.If | ast.FunctionDef | ast.ExceptHandler):
        for number, statement in enumerate(node.body):
            if isinstance(statement, ast.Raise) or (isinstance(node, ast.If) and isinstance(statement, ast.Return)):
                yield statement.lineno, "taken out", _taking_out(number)


def _turn_around(node: ast.AST) -> None:
    assert isinstance(node, ast.If | ast.IfExp)
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _leaving_out(number: int) -> Alter:
    def alter(node: ast.AST) -> None:
        assert isinstance(node, ast.BoolOp)
        node.values[number] = ast.Constant(isinstance(node.op, ast.And))

    return alter


def _taking_out(number: int) -> Alter:
    def alter(node: ast.AST) -> None:
        assert isinstance(node, ast.If | ast.FunctionDef | ast.ExceptHandler)
        node.body[number] = ast.Pass()

    return alter


def _dropping(node: ast.AST) -> None:
    assert isinstance(node, ast.Expr)
    node.value = ast.Constant(None)


def source_of(module: types.ModuleType) -> ast.Module:
    """Return the source of a module as it is."""
    return ast.parse(Path(str(module.__file__)).read_text())


def mutants(module: types.ModuleType, *, before: str = "") -> Iterator[Mutant]:
    """Yield a module altered in every way; only what is before one of its functions, if that is named."""
    tree = source_of(module)
    end = next((each.lineno for each in tree.body if before and getattr(each, "name", "") == before), None)
    for number, node in enumerate(ast.walk(tree)):
        for line, what, alter in ways(node):
            if end is None or line < end:
                yield Mutant(_name(module, line, what), module, line, number, alter)


def without_a_call(module: types.ModuleType) -> Iterator[Mutant]:
    """Yield a module without one of the statements that do nothing but call something: an act, or a record of one."""
    for number, node in enumerate(ast.walk(source_of(module))):
        match node:
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name))) if name not in _CLEARING:
                yield Mutant(_name(module, node.lineno, f"without {name}"), module, node.lineno, number, _dropping)
            case _:
                pass


def _name(module: types.ModuleType, line: int, what: str) -> str:
    return f"{module.__name__.removeprefix('harmony_pulumi.')}:{line} {what}"


def params(found: Iterator[Mutant]) -> list[Any]:
    """Return mutants as the parameters of a test."""
    return [pytest.param(mutant, id=mutant.name) for mutant in found]


# -- which tests come to a statement -----------------------------------------------------------------------------------


def come_to(file: str, line: int) -> None:
    """Take down that a statement is executed: what `_telling` puts before each calls this."""
    _came_to.add((file, line))


def _telling(module: types.ModuleType) -> ast.Module:
    """Return the source of a module in which every statement of a function tells that it is executed."""
    tree = source_of(module)
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        for node in ast.walk(function):
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list) and not _tells(block):
                    setattr(node, name, [each for s in block for each in (_tell(module, s.lineno), s)])
    told = next(n for n, s in enumerate(tree.body) if isinstance(s, ast.ImportFrom) and s.module == "__future__") + 1
    tree.body[told:told] = ast.parse(f"from {__name__} import come_to as _come_to").body
    return ast.fix_missing_locations(tree)


def _tell(module: types.ModuleType, line: int) -> ast.stmt:
    return ast.parse(f"_come_to({module.__file__!r}, {line})").body[0]


def _tells(block: Sequence[ast.stmt]) -> bool:
    """Tell whether a block was seen to: a function in a function is walked with both."""
    return not block or "id='_come_to'" in ast.dump(block[0])


def _place(mutant: Mutant) -> Place | None:
    """Return the statement in which a mutant is one; None if that is in no function, so that all tests come to it."""
    around = [lines.start for lines in _statements(mutant.module) if mutant.line in lines]
    return (str(mutant.module.__file__), max(around)) if around else None


@cache
def _statements(module: types.ModuleType) -> frozenset[range]:
    """Return the lines of each statement in a function of a module."""
    functions = [node for node in ast.walk(source_of(module)) if isinstance(node, ast.FunctionDef)]
    return frozenset(
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.stmt) and node is not function
    )


class Measured(NamedTuple):
    """A test, of modules that are not altered."""

    number: int
    seconds: float
    places: frozenset[Place]
    """The statements that it comes to."""


class Trials:
    """The tests of modules."""

    def __init__(self, modules: Sequence[types.ModuleType], given: Given) -> None:
        self.modules, self.given = modules, given

    @cached_property
    def measured(self) -> list[Measured]:
        """Each test, the quickest first. Fails if one of them does."""
        found: list[Measured] = []
        with self.given({module: _telling(module) for module in self.modules}) as checks:
            for number, check in enumerate(checks):
                _came_to.clear()
                began = time.monotonic()
                check()
                found.append(Measured(number, time.monotonic() - began, frozenset(_came_to)))
        return sorted(found, key=lambda each: each.seconds)

    def kill(self, mutant: Mutant) -> bool:
        """Tell whether a test fails with a mutant, or never ends."""
        place = _place(mutant)
        chosen = [each for each in self.measured if place is None or place in each.places]
        with self.given({mutant.module: mutant.source}) as checks:
            return any(_fails(checks[each.number], 1 + 10 * each.seconds) for each in chosen)


class TooLong(BaseException):
    """A test takes many times as long as it does without a mutant."""


@contextmanager
def at_most(seconds: float) -> Generator[None]:
    """Raise TooLong in what takes longer; again and again, should it go on."""

    def ring(_number: int, _frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _fails(check: Check, deadline: float) -> bool:
    try:
        with at_most(deadline):
            check()
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 # pytest's own failure is no Exception
        return True
    return False


# -- tests that import what they test ----------------------------------------------------------------------------------


def given_by(tests: types.ModuleType) -> Given:
    """Return what makes the tests of a module, each with each of its parameters, of what they import from others."""

    @contextmanager
    def given(sources: Mapping[types.ModuleType, ast.Module]) -> Generator[Sequence[Check]]:
        with pytest.MonkeyPatch.context() as patch:
            for module, source in sources.items():
                altered = types.ModuleType(module.__name__)
                exec(compile(source, str(module.__file__), "exec"), altered.__dict__)
                for name, value in vars(tests).items():
                    if getattr(value, "__module__", "") == module.__name__:
                        patch.setattr(tests, name, getattr(altered, name))
            yield [
                check
                for name, test in vars(tests).items()
                if name.startswith("test_")
                for check in with_parameters(
                    partial(test, code=REAL) if "code" in test.__annotations__ else test,
                    getattr(test, "pytestmark", []),
                )
            ]

    return given


def with_parameters(test: Callable[..., None], marks: Sequence[pytest.Mark]) -> Iterator[Check]:
    """Yield a test with each of its parameters."""
    given: list[list[dict[str, Any]]] = []
    for mark in marks:
        names, values = mark.args
        keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        given.append([dict(zip(keys, [v] if len(keys) == 1 else v, strict=True)) for v in values])
    for chosen in product(*given):
        yield partial(test, **{name: value for parameters in chosen for name, value in parameters.items()})
