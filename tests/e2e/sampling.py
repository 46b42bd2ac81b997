"""What long sweeps visit: a sample by a seed, or all with HARMONY_TEST_ALL=1."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Sequence
from typing import TypeVar

ALL = bool(os.environ.get("HARMONY_TEST_ALL"))
# One for all workers of pytest-xdist, which must agree about which tests there are.
SEED = os.environ.get("HARMONY_TEST_SEED") or os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex(4)
V = TypeVar("V")


def sampled(items: Sequence[V], count: int, *, whole: int | None = None) -> list[V]:
    """Return so many of the items, by the seed, in their order.

    If all are to be visited, return all of them; or, of what would take too long for that, `whole` of them.
    """
    # By nothing but their number: items such as functions are not told alike by all workers.
    if ALL:
        count = len(items) if whole is None else whole
    if count >= len(items):
        return list(items)
    chosen = random.Random(f"{SEED} {len(items)}").sample(range(len(items)), count)
    return [items[index] for index in sorted(chosen)]
