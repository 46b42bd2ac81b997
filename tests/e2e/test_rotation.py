"""Certificates are rotated while clients write and the standby streams: nobody is disconnected, and all ends up new."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Stack, eventually
from tests.e2e.test_lifecycle import put_row, rows
from tests.e2e.test_roles_cli import harmony
from tests.e2e.test_switchover import ask, clients, home, insist

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("authority", [False, True])
def test_one(stack: Stack, authority: bool) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    with clients(stack) as running:
        before = len(running.attempts)
        print(harmony(stack, "rotate-certificates", "--yes", *(["--authority"] if authority else [])))
        running.wait_until_served()
        assert not running.errors
        print(before, len(running.attempts))
    insist(stack, running, "primary")
    with clients(stack) as running:
        pass
    print(stack.refresh())
    print(stack.preview())
    print(stack.up())
    stack.up("--expect-no-changes")
    print(harmony(stack, "status"))
