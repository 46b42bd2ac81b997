"""The tests of the functions that decide, and of what acts on them, themselves tested: each mutant must fail one.

Of what acts, each statement that does nothing but call something is left out, too: acts, and records of them.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

from harmony_pulumi.hosts.postgresql import roles as host_roles
from harmony_pulumi.orchestration import failover, members, operation, rejoin, replication, roles, runner, switchover
from tests.hosts import test_postgresql_roles as of_host
from tests.orchestration import test_failover as of_failover
from tests.orchestration import test_failover_runs as of_failover_runs
from tests.orchestration import test_operation as of_operation
from tests.orchestration import test_pair as of_pair
from tests.orchestration import test_rejoin as of_rejoin
from tests.orchestration import test_replication as of_replication
from tests.orchestration import test_roles as of_roles
from tests.orchestration import test_runner as of_runner
from tests.orchestration import test_runs as of_runs
from tests.orchestration import test_switchover as of_steps
from tests.orchestration.code import Code, altered
from tests.orchestration.mutation import Check, Mutant, Trials, mutants, params, without_a_call

MODULES = (roles, switchover, failover, rejoin, host_roles)
OPERATING = (replication, members, operation, runner)
"""What acts, too: of these, whole runs are the tests."""
SLOW = {
    "test_a_killed_process_does_nothing_more",
    "test_killed_at_any_point_the_next_run_finishes_it",
    "test_killed_at_any_point_the_command_finishes_it",
    "test_two_operators_do_not_undo_each_other",
    "test_a_failover_takes_the_place_of_a_switchover_that_cannot_be_finished",
    "test_a_switchover_of_a_synchronous_pair_is_synchronous_from_its_first_commit_on",
    "test_what_another_operator_did_meanwhile_is_not_overwritten",
    "test_a_failover_given_up_is_begun_anew_by_the_same_command",
    "test_a_failover_that_was_given_up_and_cut_off_is_over_by_the_command_that_is_named",
    "test_the_second_of_two_operators_is_told_who_holds_it",
}
"""Tests that take long, and are not needed to notice any mutant."""


def checks_of(code: Code) -> Iterator[Check]:
    """Yield the tests of the functions that decide."""
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
    yield lambda: of_host.test_a_file_that_is_not_one_of_roles_is_refused("{")
    yield lambda: of_runner.test_a_switchover_and_one_back_lose_nothing(code)
    yield lambda: of_runner.test_a_stale_epoch_is_refused_and_changes_nothing(code)
    yield lambda: of_runner.test_killed_at_any_point_the_next_run_finishes_it(code)


def operations_of(code: Code) -> Iterator[Check]:
    """Yield the tests of what operations do, and whole runs."""
    for module in (of_replication, of_operation, of_runs, of_pair, of_failover_runs, of_runner):
        for name, test in vars(module).items():
            if name.startswith("test_") and name not in SLOW and set(test.__annotations__) == {"return", "code"}:
                yield lambda test=test: test(code)
    for name in of_failover_runs.SCENES:
        yield lambda name=name: of_failover_runs.test_a_failover_then_a_rejoin_then_a_switchover_back(code, name)
    yield lambda: of_failover_runs.test_what_may_pass_does_not_have_a_member_copied(code, "crashed_ahead")
    yield lambda: of_runner.test_an_act_that_fails_once_is_finished_or_taken_back(code, of_runner.fail)
    yield lambda: of_failover.test_an_epoch_is_higher_than_any_that_was_told_or_begun(code)
    yield from _epochs(code)


def _epochs(code: Code) -> Iterator[Check]:
    for answers in (False, True):
        yield (
            lambda answers=answers: (
                of_failover.test_one_that_may_not_know_of_a_failover_takes_an_epoch_that_none_has_come_to(
                    code, answers=answers
                )
            )
        )


@contextmanager
def deciding(sources: Mapping[types.ModuleType, ast.Module]) -> Generator[Sequence[Check]]:
    code = altered(sources)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("is_to_lead", "read_roles", "refusal"):
            patch.setattr(of_host, name, getattr(code.host, name))
        yield list(checks_of(code))


@contextmanager
def operating(sources: Mapping[types.ModuleType, ast.Module]) -> Generator[Sequence[Check]]:
    yield list(operations_of(altered(sources)))


DECIDING, ACTING = Trials(MODULES, deciding), Trials(OPERATING, operating)


def test_no_test_fails_without_a_mutant() -> None:
    assert DECIDING.measured
    assert ACTING.measured


@pytest.mark.parametrize("mutant", params(m for module in MODULES for m in mutants(module)))
def test_a_mutant_does_not_survive(mutant: Mutant) -> None:
    assert DECIDING.kill(mutant)


@pytest.mark.parametrize("mutant", params(m for module in OPERATING for m in mutants(module)))
def test_a_mutant_of_what_acts_does_not_survive(mutant: Mutant) -> None:
    assert ACTING.kill(mutant)


@pytest.mark.parametrize("mutant", params(m for module in OPERATING for m in without_a_call(module)))
def test_nothing_that_is_done_or_recorded_can_be_left_out(mutant: Mutant) -> None:
    assert ACTING.kill(mutant)
