"""What is said of a wait for replicas that did not come to stream."""

from __future__ import annotations

from typing import Any

import pytest

from harmony_pulumi.errors import SiteError
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.replication import establish, followed
from tests.orchestration.code import REAL, pair_of
from tests.orchestration.sites import World, pair_site


def test_how_a_member_runs_and_who_streams_from_it_is_said_in_a_line() -> None:
    world = World(busy=False)
    seen = pair_site(world, "primary").observe()
    assert followed(seen) == "montreal is a running primary; toronto is connected (streaming, async)"
    slot: Any = {"name": "for_toronto", "active": False, "wal_status": "lost"}
    alone: Any = {**seen, "replicas": [], "slots": [slot]}
    assert followed(alone) == "montreal is a running primary; no replica is connected; slot for_toronto is lost"
    world.servers["primary"].crash()
    seen = pair_site(world, "primary").observe()
    assert followed(seen).startswith(f"montreal is stopped: {seen['detail']}; no replica is connected")


def test_a_wait_that_is_over_says_what_is_missing_and_not_all_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harmony_pulumi.orchestration.wait.time.sleep", lambda _: None)
    world = World(busy=False)
    world.servers["replica"].linked = False
    members = pair_of(REAL, world).members
    with pytest.raises(SiteError) as caught:
        establish(
            members,
            active="primary",
            synchronous=False,
            follows=False,
            deadline=0,
            journal=Journal("orders", "establish", world.shown.append),
        )
    assert str(caught.value) == (
        "toronto streaming: not within 0 s; last seen: montreal is a running primary; no replica is connected. Look at "
        "the members' logs."
    )
