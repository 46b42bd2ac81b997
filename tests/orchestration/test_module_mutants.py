"""The tests of functions that decide without a site, themselves tested: each mutant of a module must fail one."""

from __future__ import annotations

import pytest

from harmony_pulumi.hosts.postgresql import boot
from harmony_pulumi.orchestration import journal, preflight, rotation
from tests.hosts import test_postgresql_boot
from tests.orchestration import test_journal, test_preflight, test_rotation
from tests.orchestration.mutation import Mutant, Trials, given_by, mutants, params

TESTS = {
    rotation: test_rotation,
    preflight: test_preflight,
    journal: test_journal,
    boot: test_postgresql_boot,
}
TRIALS = {module: Trials([module], given_by(tests)) for module, tests in TESTS.items()}
ACTS = {boot: "judge"}
"""The first function of a module that acts: what follows is tested with servers."""


@pytest.mark.parametrize("mutant", params(m for module in TESTS for m in mutants(module, before=ACTS.get(module, ""))))
def test_a_mutant_does_not_survive(mutant: Mutant) -> None:
    assert TRIALS[mutant.module].kill(mutant)
