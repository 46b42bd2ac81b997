"""The tests of a module that no other one's need, themselves tested: each mutant of the module must fail one."""

from __future__ import annotations

import pytest

from harmony_pulumi.hosts.postgresql import boot, renewal
from harmony_pulumi.orchestration import journal, pair, preflight, rotation
from tests.hosts import test_postgresql_boot, test_postgresql_renewal
from tests.orchestration import test_journal, test_pair, test_preflight, test_rotation
from tests.orchestration.mutation import Mutant, Trials, given_by, mutants, params, without_a_call

TESTS = {
    rotation: test_rotation,
    preflight: test_preflight,
    journal: test_journal,
    boot: test_postgresql_boot,
    renewal: test_postgresql_renewal,
    pair: test_pair,
}
TRIALS = {module: Trials([module], given_by(tests)) for module, tests in TESTS.items()}
ACTS = {boot: "judge", renewal: "use"}
"""The first function of a module that acts: what follows is tested with servers."""


@pytest.mark.parametrize("mutant", params(m for module in TESTS for m in mutants(module, before=ACTS.get(module, ""))))
def test_a_mutant_does_not_survive(mutant: Mutant) -> None:
    assert TRIALS[mutant.module].kill(mutant)


@pytest.mark.parametrize("mutant", params(m for module in TESTS if module not in ACTS for m in without_a_call(module)))
def test_nothing_that_is_done_or_recorded_can_be_left_out(mutant: Mutant) -> None:
    assert TRIALS[mutant.module].kill(mutant)
