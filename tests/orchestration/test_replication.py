"""Having a pair stream, and telling which member leads, over sites in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.orchestration.journal import Journal
from tests.orchestration.code import Code, pair_of
from tests.orchestration.sites import LONG_AGO, MemorySite, World, pair_site


def establish(code: Code, pair: Any, *, synchronous: bool = False, follows: bool = False) -> Any:
    journal = Journal("orders", "a test", lambda _: None)
    ways = {"synchronous": synchronous, "follows": follows, "deadline": 5.0, "journal": journal}
    return code.replication.establish(pair.members, active="primary", **ways)


def as_standby(site: Any) -> None:
    """Have the leader of a pair be seen as one that follows another cluster."""
    observe = site.observe
    site.observe = lambda: {**observe(), "role": "standby"}


def test_commits_wait_only_where_that_is_declared_and_the_pair_leads(code: Code) -> None:
    for synchronous, follows in ((False, False), (True, False), (False, True), (True, True)):
        world = World(code.host, busy=False)
        pair = pair_of(code, world)
        world.servers["primary"].waits_for = ["ottawa"]
        if follows:
            as_standby(pair.members["primary"].site)
        assert establish(code, pair, synchronous=synchronous, follows=follows)["name"] == "montreal"
        assert world.servers["primary"].waits_for == (["toronto"] if synchronous and not follows else [])


def test_a_leader_that_is_not_what_it_is_to_be_is_refused(code: Code) -> None:
    pair = pair_of(code, World(code.host, busy=False))
    with pytest.raises(SiteError, match="montreal was to be a standby and is a primary; see `harmony status`"):
        establish(code, pair, follows=True)
    as_standby(pair.members["primary"].site)
    with pytest.raises(SiteError, match="montreal was to be a primary and is a standby; see `harmony status`"):
        establish(code, pair)


def test_where_a_member_does_not_stream_the_leader_s_certificates_are_named_if_that_is_why(code: Code) -> None:
    world = World(code.host, busy=False)
    world.servers["replica"].linked = False
    with pytest.raises(SiteError, match=r"toronto streaming: not within 5 s; .* Look at the members' logs\.$"):
        establish(code, pair_of(code, world))
    world.servers["primary"].expires = LONG_AGO
    with pytest.raises(SiteError, match=r"'replication' of montreal expired .* makes a new one$"):
        establish(code, pair_of(code, world))


def test_who_leads_is_a_primary_or_in_a_pair_that_follows_one_with_a_replica(code: Code) -> None:
    world = World(code.host, busy=False)
    members = pair_of(code, world).members
    assert code.replication.leaders(members, follows=False) == ["primary"]
    as_standby(members["primary"].site)
    assert code.replication.leaders(members, follows=False) == []
    assert code.replication.leaders(members, follows=True) == ["primary"]


def test_that_nobody_leads_is_said_only_where_all_could_be_asked(code: Code) -> None:
    world = World(code.host, busy=False)
    members = pair_of(code, world).members
    world.servers["replica"].unreachable = True
    assert code.replication.leaders(members, follows=False) == ["primary"]
    world.servers["primary"].crash()
    with pytest.raises(UnreachableError, match=r"^does not answer$"):
        code.replication.leaders(members, follows=False)


class Grouped(MemorySite):
    """A site that is several servers."""

    def leading(self) -> Mapping[str, Any]:
        return {"name": "ottawa", "slot": "for_ottawa"}

    def gather(self, source: Mapping[str, Any]) -> None:
        """There is nobody to bring back."""


def test_of_a_site_that_is_several_servers_the_one_that_leads_is_the_member(code: Code) -> None:
    world = World(code.host, busy=False)
    handles = {
        role: {"kind": f"{__name__}:{kind}", "world": world, "role": role, "name": role, "slot": f"for_{role}"}
        for role, kind in (("replica", "Grouped"), ("primary", "MemorySite"))
    }
    found = code.replication.members_of(handles)
    assert [(role, member.name) for role, member in found.items()] == [("primary", "primary"), ("replica", "ottawa")]


def test_how_a_member_runs_and_who_streams_from_it_is_said_in_a_line(code: Code) -> None:
    world = World(code.host, busy=False)
    followed = code.replication.followed
    seen = pair_site(world, "primary").observe()
    assert followed(seen) == "montreal is a running primary; toronto is connected (streaming, async)"
    lost: Any = {"name": "for_toronto", "active": False, "wal_status": "lost"}
    kept: Any = {"name": "for_ottawa", "active": True, "wal_status": "reserved"}
    alone: Any = {**seen, "replicas": [], "slots": [kept, lost]}
    assert followed(alone) == "montreal is a running primary; no replica is connected; slot for_toronto is lost"
    world.servers["primary"].crash()
    seen = pair_site(world, "primary").observe()
    assert followed(seen) == f"montreal is stopped: {seen['detail']}; no replica is connected"
    assert followed({**seen, "detail": ""}) == "montreal is stopped; no replica is connected"


def test_a_wait_that_is_over_says_what_is_missing_and_not_all_that_was_seen(code: Code) -> None:
    world = World(code.host, busy=False)
    world.servers["replica"].linked = False
    with pytest.raises(SiteError) as caught:
        establish(code, pair_of(code, world))
    assert str(caught.value) == (
        "toronto streaming: not within 5 s; last seen: montreal is a running primary; no replica is connected. Look at "
        "the members' logs."
    )
