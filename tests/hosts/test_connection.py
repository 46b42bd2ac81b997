"""Commands and files on a host: what keeps two runs apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmony_pulumi.errors import SiteError, UnlockableError
from harmony_pulumi.hosts.connection import LocalConnection


def test_a_lock_that_is_held_is_told_apart_from_one_that_nobody_can_take(tmp_path: Path) -> None:
    here = LocalConnection()
    with (
        here.holding(f"{tmp_path}/lock", who="ada", deadline=1),
        pytest.raises(SiteError, match=r"cannot lock .*: ada has held it for the last 1 s; let it end") as refused,
        here.holding(f"{tmp_path}/lock", who="grace", deadline=1),
    ):
        pass
    assert not isinstance(refused.value, UnlockableError)
    with (
        pytest.raises(UnlockableError, match=r"cannot lock .*: flock: .*No such file or directory$"),
        here.holding(f"{tmp_path}/nowhere/lock", who="ada", deadline=1),
    ):
        pass
