"""A pair as a site: what its other member is made to do as the active one follows somebody."""

from __future__ import annotations

from harmony_pulumi.orchestration import wait
from harmony_pulumi.orchestration.members import Pair
from harmony_pulumi.orchestration.pair import KIND, PairSite, followed_by, has_all_of
from tests.orchestration.code import REAL, outcome, pair_of
from tests.orchestration.sites import PAIR, MemorySite, Server, World
from tests.orchestration.sites import roles as told
from tests.orchestration.test_failover import seen, standby

DEADLINE = 60.0


def following() -> tuple[World, Pair, PairSite, Server]:
    """Return a pair whose active member is to follow a server, that pair as a site, and the server."""
    world = World(busy=False)
    assert outcome(REAL, world, "primary", 0) == "done"
    known = pair_of(REAL, world)
    pair = Pair(known.id, known.name, known.members, synchronous=False, deadline=DEADLINE)
    active = world.servers["primary"]
    active.crash()
    upstream = Server("upstream", "calgary", "for_calgary", wal=list(active.wal), slots={active.slot})
    world.servers["upstream"] = upstream
    world.check = lambda: None  # type: ignore[method-assign] # Which knows two servers.
    world.labels = []
    return world, pair, PairSite({"active": "primary"}, pair), upstream


def test_a_member_that_can_never_follow_is_copied_without_a_wait() -> None:
    for cannot in (False, True):
        world, _, site, upstream = following()
        other = world.servers["replica"]
        if cannot:
            other.wal[-1], other.rewindable = (1, "what its source has not"), False
        began = vars(wait)["time"].now
        with site.alone("ada"):
            site.follow(MemorySite(world, upstream).offer())
        assert world.connected(other)
        assert ("toronto.clone: after" in world.labels) is cannot
        assert vars(wait)["time"].now - began < DEADLINE / 10


def test_what_a_member_says_before_its_source_has_what_it_asks_for_is_no_reason_to_copy_it() -> None:
    world, pair, site, upstream = following()
    other = world.servers["replica"]
    other.wal[-1], other.rewindable = (1, "what its source has not"), False
    upstream.slots.clear()  # So that the active one streams from nobody.
    began = vars(wait)["time"].now
    with site.alone("ada"):
        site.follow(MemorySite(world, upstream).offer())
    assert vars(wait)["time"].now - began > pair.deadline - 1
    connected, cut_off = {"receiver": "streaming"}, {"receiver": ""}
    assert has_all_of(seen("primary", lsn="0/5"), standby(received="0/5"))
    assert not has_all_of(seen("primary", lsn="0/4"), standby(received="0/5"))
    assert has_all_of(standby(received="0/5", **connected), standby(received="", lsn="0/5"))
    assert not has_all_of(standby(received="0/5", **cut_off), standby(received="0/5"))
    assert not has_all_of(seen("primary", lsn="0/5"), standby(received="", lsn=""))


def test_one_that_was_left_behind_is_brought_back_by_whoever_gathers_and_nobody_else() -> None:
    world, _, site, upstream = following()
    away = {"member": "replica", "timeline": 1, "fork": "0/0", "fenced": "it was stopped", "since": ""}
    world.servers["primary"].roles = told(1, "primary", away=away)
    with site.alone("ada"):
        site.follow(MemorySite(world, upstream).offer())
        assert "toronto.follow: before" not in world.labels
        site.gather(MemorySite(world, upstream).offer())
    assert "toronto.follow: after" in world.labels
    for role in ("primary", "replica"):
        assert world.servers[role].roles == told(1, "primary", role)


def test_who_is_followed_is_found_in_the_innermost_pair_in_which_another_is_active() -> None:
    def server(name: str) -> dict[str, object]:
        host = {"name": name, "machine_id": "0" * 32}  # Which is none: it does not answer.
        kind = "harmony_pulumi.hosts.postgresql.site:HostPostgreSQL"
        return {"kind": kind, "name": name, "slot": name, "host": host, "owner": name, "root": "/nowhere"}

    def pair(name: str, primary: dict[str, object], replica: dict[str, object]) -> dict[str, object]:
        members = {"primary": primary, "replica": replica}
        known = {"kind": KIND, "name": name, "pair": name, "active": "primary"}
        return {**known, "synchronous": False, "deadline": 1, "members": members}

    mine = pair(PAIR, server("calgary"), server("vancouver"))
    middle = pair("middle", server("montreal"), mine)
    world = pair("world", server("ottawa"), middle)

    def found(in_the_middle: str, in_the_world: str) -> str:
        outermost = told(1, in_the_world, "replica", pair="world")
        known = told(0, "primary", outer=told(1, in_the_middle, "replica", pair="middle", outer=outermost))
        member = followed_by(known, world)
        return member.name if member else ""

    assert found("primary", "replica") == found("primary", "primary") == "montreal"
    assert found("replica", "primary") == "ottawa"
    assert not found("replica", "replica")
    assert followed_by(None, world) is None
    assert followed_by(told(0, "primary", outer=told(1, "primary", "replica", pair="elsewhere")), world) is None
