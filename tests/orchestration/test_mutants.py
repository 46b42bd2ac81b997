"""The tests of the functions that decide, themselves tested: each of these functions is altered in every way below.

Each refusal is taken out, each condition turned around, and each part of a condition left out. Some test must fail.
"""

from __future__ import annotations

import ast
import copy
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harmony_pulumi.hosts.postgresql import roles as host_roles
from harmony_pulumi.orchestration import failover, members, operation, rejoin, roles, switchover
from tests.hosts import test_postgresql_roles as of_host
from tests.orchestration import test_failover as of_failover
from tests.orchestration import test_failover_runs as of_failover_runs
from tests.orchestration import test_operation as of_operation
from tests.orchestration import test_rejoin as of_rejoin
from tests.orchestration import test_roles as of_roles
from tests.orchestration import test_runner as of_runner
from tests.orchestration import test_switchover as of_steps
from tests.orchestration.code import REAL, Code, altered

MODULES = (roles, switchover, failover, rejoin, host_roles)
OPERATING = (members,)
"""What acts, too: of these, whole runs are the tests. Not `operation` yet: one of its mutants never comes to an end."""
SLOW = {
    "test_a_killed_process_does_nothing_more",
    "test_killed_at_any_point_the_next_run_finishes_it",
    "test_killed_at_any_point_the_command_finishes_it",
    "test_two_operators_do_not_undo_each_other",
}
RECORDS = {"_save", "_assign", "_reached", "tell", "require_synchronous", "prepare"}
Alter = Callable[[ast.AST], None]


def ways(node: ast.AST) -> Iterator[tuple[int, str, Alter]]:
    """Yield each way of altering a node: the line, what is done, and what does it to the node or a copy."""
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


def mutants(module: types.ModuleType) -> Iterator[tuple[str, ast.Module]]:
    """Yield every altered source of a module, with its name."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    for number, node in enumerate(ast.walk(tree)):
        for line, what, alter in ways(node):
            mutant = copy.deepcopy(tree)
            alter(list(ast.walk(mutant))[number])
            yield f"{module.__name__.removeprefix('harmony_pulumi.')}:{line} {what}", ast.fix_missing_locations(mutant)


def without_a_record(tree: ast.Module) -> Iterator[tuple[str, ast.Module]]:
    """Yield the source of a module without one of the statements that tell a site something, or prepare it for it."""
    for number, node in enumerate(ast.walk(tree)):
        match node:
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name))) if name in RECORDS:
                mutant = copy.deepcopy(tree)
                dropped = list(ast.walk(mutant))[number]
                assert isinstance(dropped, ast.Expr)
                dropped.value = ast.Constant(None)
                yield f"{name} at {node.lineno}", ast.fix_missing_locations(mutant)
            case _:
                pass


def runs_of(code: Code) -> Iterator[Callable[[], None]]:
    """Yield the tests of whole runs that show what is recorded, the quick ones first."""
    for name in of_failover_runs.SCENES:
        yield lambda name=name: of_failover_runs.test_a_failover_then_a_rejoin_then_a_switchover_back(code, name)
    yield lambda: of_runner.test_a_switchover_and_one_back_lose_nothing(code)
    yield lambda: of_failover_runs.test_nothing_is_lost_by_a_failover_of_a_synchronous_pair(code)
    yield lambda: of_failover_runs.test_what_cannot_be_rewound_is_copied_anew_and_kept(code)
    yield lambda: of_failover_runs.test_more_than_was_accepted_is_not_lost_and_the_old_primary_is_back(code)
    yield (
        lambda: of_failover_runs.test_a_slot_is_there_before_a_rewind_or_a_copy_and_made_anew_if_it_is_dropped_after_it(
            code
        )
    )
    for name in ("crashed_ahead", "restarted_as_a_standby"):
        yield lambda name=name: of_failover_runs.test_what_may_pass_does_not_have_a_member_copied(code, name)
    yield lambda: of_failover_runs.test_an_old_primary_whose_data_cannot_be_read_is_fenced_by_somebody_s_word(code)
    yield lambda: of_failover_runs.test_a_failover_cut_off_as_it_fences_is_known_to_be_under_way(code)
    yield lambda: of_failover_runs.test_what_a_switchover_has_done_is_recorded_before_it_goes_on(code)
    yield lambda: of_failover_runs.test_one_that_comes_back_knows_who_leads_before_it_is_stopped(code)
    yield lambda: of_failover_runs.test_commits_on_one_that_is_elected_wait_for_nobody(code)
    yield lambda: of_failover_runs.test_a_slot_that_is_gone_is_made_anew_for_whoever_rejoins(code)
    yield lambda: of_failover_runs.test_how_far_a_rejoin_is_and_why_it_goes_another_way_is_recorded(code)
    yield lambda: of_failover_runs.test_how_the_old_primary_was_fenced_is_recorded_before_anybody_is_elected(code)
    yield lambda: of_failover_runs.test_that_a_switchover_is_given_up_is_recorded_at_both(code)
    yield lambda: of_failover_runs.test_one_that_lost_what_it_was_told_is_told_before_it_follows(code)
    yield lambda: of_failover_runs.test_a_switchover_of_a_synchronous_pair_is_synchronous_from_its_first_commit_on(code)
    yield lambda: of_runner.test_that_a_target_promoted_by_hand_is_active_is_recorded_before_the_other_follows(code)
    yield lambda: of_runner.test_killed_at_any_point_the_next_run_finishes_it(code)
    yield lambda: of_runner.test_an_act_that_fails_once_is_finished_or_taken_back(code, of_runner.fail)
    yield lambda: of_failover_runs.test_a_failover_killed_at_any_point_is_finished_by_the_same_command(code, "gone")


def checks_of(code: Code) -> Iterator[Callable[[], None]]:
    """Yield the tests, the quick ones first."""
    for module in (of_host, of_roles, of_failover, of_rejoin, of_steps):
        for name, test in vars(module).items():
            arguments = set(test.__annotations__) - {"return", "code"} if name.startswith("test_") else {"?"}
            if not arguments:
                yield (lambda test=test: test(code)) if "code" in test.__annotations__ else test
    for mine, theirs, fork in of_rejoin.FORKS:
        yield (
            lambda mine=mine, theirs=theirs, fork=fork: (
                of_rejoin.test_a_history_leaves_another_where_they_end_their_last_common_timeline(
                    code, mine, theirs, fork
                )
            )
        )
    for answers in (False, True):
        yield (
            lambda answers=answers: (
                of_failover.test_one_that_may_not_know_of_a_failover_takes_an_epoch_that_none_has_come_to(
                    code, answers=answers
                )
            )
        )
    yield lambda: of_host.test_a_file_that_is_not_one_of_roles_is_refused("{")
    yield lambda: of_runner.test_a_switchover_and_one_back_lose_nothing(code)
    yield lambda: of_runner.test_a_stale_epoch_is_refused_and_changes_nothing(code)
    yield lambda: of_runner.test_killed_at_any_point_the_next_run_finishes_it(code)


def operations_of(code: Code) -> Iterator[Callable[[], None]]:
    """Yield the tests of what operations do, the quick ones first."""
    for module in (of_operation, of_failover_runs, of_runner):
        for name, test in vars(module).items():
            if name.startswith("test_") and name not in SLOW and set(test.__annotations__) == {"return", "code"}:
                yield lambda test=test: test(code)
    yield from runs_of(code)


def killed(tests: Iterator[Callable[[], None]]) -> bool:
    """Tell whether a test fails."""
    for test in tests:
        try:
            test()
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 # pytest's own failure is no Exception
            return True
    return False


def unaltered(module: types.ModuleType) -> Code:
    """Return the modules as they are, with one read anew as a mutant is."""
    return altered(module, ast.parse(Path(str(module.__file__)).read_text()))


def test_no_test_fails_without_a_mutant() -> None:
    for module in MODULES:
        assert not killed(checks_of(unaltered(module)))
    for module in OPERATING:
        assert not killed(operations_of(unaltered(module)))
    for test in checks_of(REAL):
        test()


MUTANTS = [pytest.param(module, tree, id=name) for module in MODULES for name, tree in mutants(module)]


@pytest.mark.parametrize(("module", "mutant"), MUTANTS)
def test_a_mutant_does_not_survive(
    module: types.ModuleType, mutant: ast.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = altered(module, mutant)
    for name in ("is_to_lead", "read_roles", "refusal"):
        monkeypatch.setattr(of_host, name, getattr(code.host, name))
    assert killed(checks_of(code))


ACTING = [pytest.param(module, tree, id=name) for module in OPERATING for name, tree in mutants(module)]


@pytest.mark.parametrize(("module", "mutant"), ACTING)
def test_a_mutant_of_what_acts_does_not_survive(module: types.ModuleType, mutant: ast.Module) -> None:
    assert killed(operations_of(altered(module, mutant)))


RECORDING = list(without_a_record(ast.parse(Path(str(operation.__file__)).read_text())))


@pytest.mark.parametrize("mutant", [pytest.param(tree, id=name) for name, tree in RECORDING])
def test_nothing_that_an_operation_records_can_be_left_out(mutant: ast.Module) -> None:
    assert killed(runs_of(altered(operation, mutant)))
