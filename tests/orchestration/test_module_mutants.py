"""The tests of functions that act on nothing, themselves tested: each module is altered in each way that there is."""

from __future__ import annotations

import pytest

from harmony_pulumi.orchestration import journal, preflight, rotation
from tests.orchestration import test_journal, test_preflight, test_rotation
from tests.orchestration.mutation import Mutant, Trials, given_by, mutants, params

TRIALS = {
    module: Trials([module], given_by(tests))
    for module, tests in ((rotation, test_rotation), (preflight, test_preflight), (journal, test_journal))
}


@pytest.mark.parametrize("mutant", params(mutant for module in TRIALS for mutant in mutants(module)))
def test_a_mutant_does_not_survive(mutant: Mutant) -> None:
    assert TRIALS[mutant.module].kill(mutant)
