"""A pair as a site: it moves its roles with the pair around it, and its other member goes along with the active one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Rotation
from harmony_pulumi.errors import PassingError, SiteError, UnreachableError
from harmony_pulumi.orchestration import wait
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.members import Pair
from harmony_pulumi.orchestration.pair import KIND, PairSite, followed_by, has_all_of, has_roles, pair_of, rotates
from harmony_pulumi.orchestration.replication import Member
from harmony_pulumi.orchestration.roles import Desired
from tests.orchestration.code import REAL, Code, ended, outcome
from tests.orchestration.code import pair_of as pair_in
from tests.orchestration.sites import NAMES, PAIR, MemorySite, Server, World, terms
from tests.orchestration.sites import roles as told
from tests.orchestration.test_failover import seen, standby
from tests.orchestration.test_failover_runs import killed_at
from tests.orchestration.test_operation import at
from tests.orchestration.test_roles import operation
from tests.orchestration.test_runner import fail

DEADLINE = 60.0
AROUND = "shop/prod/world"


def following() -> tuple[World, Pair, PairSite, Server]:
    """Return a pair whose active member is to follow a server, that pair as a site, and the server."""
    world = World(busy=False)
    assert outcome(REAL, world, "primary", 0) == "done"
    known = pair_in(REAL, world)
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


# -- what the other member is made to do -------------------------------------------------------------------------------


def promoted(world: World) -> list[tuple[int, str]]:
    """Have somebody promote the other member, which then writes something; return what it alone has."""
    other = world.servers["replica"]
    shared = len(other.wal)
    world.promote(other, by_hand=True)
    other.write("what somebody wrote by hand")
    return other.wal[shared:]


def follow(world: World, site: PairSite, upstream: Server) -> None:
    with site.alone("ada"):
        site.follow(MemorySite(world, upstream).offer())


def test_one_that_streams_is_neither_stopped_nor_asked_why_it_does_not() -> None:
    world, _, site, upstream = following()
    world.servers["primary"].slots.clear()  # Somebody has dropped the slot.
    follow(world, site, upstream)
    assert world.connected(world.servers["replica"])
    assert not [label for label in world.labels if "toronto.retire" in label or "toronto.cannot_follow" in label]


def test_one_that_somebody_promoted_is_rewound_and_what_it_alone_has_is_put_aside() -> None:
    world, _, site, upstream = following()
    other, alone = world.servers["replica"], promoted(world)
    follow(world, site, upstream)
    assert world.connected(other)
    (kept,) = other.kept
    assert kept[: len(alone)] == alone
    assert world.labels.count("toronto.rewind: after") == 1
    assert "toronto.clone: before" not in world.labels


def test_one_that_was_rewound_and_may_follow_yet_is_not_copied() -> None:
    world, _, site, upstream = following()
    other, _ = world.servers["replica"], promoted(world)
    other.linked = False
    with pytest.raises(SiteError, match=r"^toronto streaming from montreal: not within 60 s"):
        follow(world, site, upstream)
    other.linked = True
    follow(world, site, upstream)
    assert world.connected(other)
    assert "toronto.clone: before" not in world.labels


def test_what_may_pass_is_no_reason_to_copy_one_that_could_be_rewound() -> None:
    def no_answer(world: World, label: str) -> None:
        raise UnreachableError(label)

    def no_room(world: World, label: str) -> None:
        world.servers["replica"].hindered = True

    for happens, error in ((no_answer, UnreachableError), (no_room, PassingError)):
        world, _, site, upstream = following()
        promoted(world)
        world.whenever = at("toronto.rewind: before", happens)
        with pytest.raises(error):
            follow(world, site, upstream)
        assert "toronto.clone: before" not in world.labels


def test_one_that_can_never_follow_is_stopped_and_copied_with_a_slot_made_anew_and_that_is_recorded() -> None:
    world, _, site, upstream = following()
    leader, other = world.servers["primary"], world.servers["replica"]
    promoted(world)
    slots: list[tuple[str, bool, set[str]]] = []

    def look(world: World, label: str) -> None:
        if label in {"montreal.forget: before", "toronto.clone: before"}:
            slots.append((label, other.running, leader.slots - leader.lost))
        if label == "toronto.rewind: after":
            leader.lost = {other.slot}

    world.whenever = look
    follow(world, site, upstream)
    # While it runs, it may be connected again at any moment, and what it is connected by cannot be dropped.
    assert slots == [("montreal.forget: before", False, set()), ("toronto.clone: before", False, {other.slot})]
    assert world.connected(other)
    assert "toronto is copied anew: requested WAL segment has already been removed" in leader.events


def test_one_that_was_copied_and_does_not_stream_is_said_not_to() -> None:
    world, _, site, upstream = following()
    world.servers["replica"].rewindable = world.servers["replica"].linked = False
    with pytest.raises(SiteError, match=r"^toronto streaming from montreal: not within 60 s"):
        follow(world, site, upstream)
    assert world.labels.count("toronto.clone: after") == 1


def test_what_one_said_first_may_be_of_an_attempt_before_and_is_not_believed() -> None:
    world, _, site, upstream = following()
    other = world.servers["replica"]
    shared = other.wal[-1]
    other.wal[-1] = (1, "what its source has not")

    def mend(world: World, label: str) -> None:
        if world.labels.count("toronto.cannot_follow: before") == 2:
            other.wal[-1] = shared

    world.whenever = mend
    follow(world, site, upstream)
    assert world.connected(other)
    assert "toronto.retire: before" not in world.labels


def test_what_one_says_once_its_source_has_all_is_believed_also_where_that_is_cut_off_then() -> None:
    world, _, site, upstream = following()
    other = world.servers["replica"]
    other.wal[-1], other.rewindable = (1, "what its source has not"), False
    world.whenever = at("toronto.cannot_follow: before", lambda world, _: upstream.slots.clear())
    began = vars(wait)["time"].now
    follow(world, site, upstream)
    assert vars(wait)["time"].now - began < DEADLINE / 10
    assert world.connected(other)


def test_a_pair_that_was_told_nothing_follows_as_it_was_deployed() -> None:
    world, _, site, upstream = following()
    for server in world.servers.values():
        server.roles = None
    follow(world, site, upstream)
    assert world.connected(world.servers["replica"])


# -- who is asked, and who is not --------------------------------------------------------------------------------------


def pair_in_memory() -> tuple[World, PairSite]:
    world = World(busy=False)
    assert outcome(REAL, world, "primary", 0) == "done"
    world.labels = []
    return world, PairSite({"active": "primary"}, pair_in(REAL, world))


def acts(world: World) -> list[str]:
    """Return what was done, without the looks, in order."""
    done = [label.removesuffix(": before") for label in world.labels if label.endswith(": before")]
    return [each for each in done if ".alone" not in each]


def test_whose_roles_are_not_settled_takes_no_part_in_anything() -> None:
    world, site = pair_in_memory()
    under_way = operation(epoch=1)
    for server in world.servers.values():
        assert server.roles is not None
        server.roles = {**server.roles, "operation": under_way}
    with (
        pytest.raises(SiteError, match=f"a switchover in {PAIR}, begun by ada, has not ended; have that finished"),
        site.alone("grace"),
    ):
        pass

    def move(world: World, label: str) -> None:
        for role, server in world.servers.items():
            server.roles = told(1, "replica", role)

    world, site = pair_in_memory()
    world.whenever = at("montreal.alone: before", move)
    with pytest.raises(SiteError, match="somebody else was moving its roles"), site.alone("grace"):
        pass
    with site.alone("grace"):
        assert site.leading()["name"] == "toronto"
    assert not acts(world)


def test_who_leads_is_as_the_pair_was_told_and_as_it_was_deployed_where_it_was_told_nothing() -> None:
    world = World(busy=False)
    site = PairSite({"active": "replica"}, pair_in(REAL, world))
    with site.alone("ada"):
        assert site.leading()["name"] == "toronto"
        assert site.observe()["roles"] is None
    for epoch, active in enumerate(NAMES, 1):
        for role, server in world.servers.items():
            server.roles = told(epoch, active, role)
        with site.alone("ada"):
            assert site.leading()["name"] == NAMES[active]
        assert site.observe()["name"] == NAMES[active]


def test_nobody_is_acted_on_who_did_not_answer_as_the_pair_was_locked() -> None:
    world, site = pair_in_memory()
    other = world.servers["replica"]
    other.unreachable = True
    with site.alone("ada"):
        other.unreachable = False
        site.retire()
    assert other.running
    assert not world.servers["primary"].running
    with site.alone("ada"):
        site.retire()
    assert not other.running


def test_each_member_that_answers_keeps_what_the_pair_around_it_looked_like_and_what_was_recorded() -> None:
    world, site = pair_in_memory()
    first, other = world.servers["primary"], world.servers["replica"]
    first.events, other.events = "both\n", "both\nof the other\n"
    site.record("of the first\n")
    assert site.events() == "both\nof the first\nof the other\n"
    world.labels = []
    site.remember("a text")
    assert acts(world) == ["montreal.remember", "toronto.remember"]
    other.unreachable = True
    site.remember("another text")
    assert (first.remembered, other.remembered) == ("another text", "a text")
    assert site.events() == "both\nof the first\n"


def test_what_is_told_of_the_pair_around_is_kept_by_all_that_can_be_told_the_active_one_last() -> None:
    around = told(1, "replica", pair=AROUND)
    for active, order in (("primary", ["toronto", "montreal"]), ("replica", ["montreal", "toronto"])):
        world, site = pair_in_memory()
        for role, server in world.servers.items():
            server.roles = told(3, active, role)
        for server in world.servers.values():
            server.crash()
        with site.alone("ada"):
            site.tell(around)
        assert acts(world) == [f"{name}.tell" for name in order]
        assert site.observe()["roles"] == around
        for role, server in world.servers.items():
            assert server.roles == told(3, active, role, outer=around)
    world, site = pair_in_memory()
    world.servers["primary"].roles, world.servers["replica"].closed = None, True
    with site.alone("ada"):
        site.tell(around)
    assert acts(world) == ["toronto.tell", "montreal.tell"]
    assert world.servers["primary"].roles == told(0, "primary", outer=around)
    assert world.servers["replica"].roles == told(0, "primary", "replica", outer=around), "it hangs, and was asked"
    for unseen in ("closed", "unreachable"):
        world, site = pair_in_memory()
        for server in world.servers.values():
            server.roles = None
        setattr(world.servers["replica"], unseen, True)
        with site.alone("ada"):
            site.tell(around)
        assert acts(world) == ["montreal.tell"], "nobody knows what the other one was told"


def test_wal_is_kept_by_the_active_member_and_no_longer_by_another_once_that_is_not_used() -> None:
    world, site = pair_in_memory()
    first, other = world.servers["primary"], world.servers["replica"]
    world.servers["upstream"] = third = Server("upstream", "calgary", "for_calgary", source="replica")
    third.wal, third.in_recovery = list(other.wal), True
    world.check = lambda: None  # type: ignore[method-assign] # Which knows two servers.
    other.slots = {"for_calgary", "for_ottawa"}
    site.prepare("for_calgary")
    assert (first.slots, other.slots) == ({"for_toronto", "for_calgary"}, {"for_calgary", "for_ottawa"})
    third.source = "primary"
    site.prepare("for_calgary")
    assert (first.slots, other.slots) == ({"for_toronto", "for_calgary"}, {"for_ottawa"})
    other.crash()
    with site.alone("ada"):
        site.prepare("for_calgary")


def test_wal_is_kept_nowhere_for_a_member_that_is_to_be_forgotten() -> None:
    world, site = pair_in_memory()
    first, other = world.servers["primary"], world.servers["replica"]
    for runs in (True, False):
        first.slots, other.slots = {"for_calgary"}, {"for_calgary"}
        if not runs:
            other.crash()
        with site.alone("ada"):
            site.forget("for_calgary")
        assert first.slots == set()
        assert other.slots == (set() if runs else {"for_calgary"})
    first.crash()
    with pytest.raises(SiteError, match="montreal: no server process"), site.alone("ada"):
        site.forget("for_calgary")


def test_all_that_may_accept_writes_are_fenced() -> None:
    world, site = pair_in_memory()
    with site.alone("ada"):
        assert site.fence() == "it was stopped"
    assert acts(world) == ["montreal.fence"]
    for crashed in (False, True):
        world, site = pair_in_memory()
        world.check = lambda: None  # type: ignore[method-assign]
        promoted(world)
        if crashed:
            world.servers["replica"].crash()
        with site.alone("ada"):
            site.fence()
        assert not world.primaries
        assert all(server.signal for server in world.servers.values())


def test_certificates_are_those_of_the_active_member_and_are_rotated_by_input_alone() -> None:
    world, site = pair_in_memory()
    other = world.servers["replica"]
    other.held = (0, "a new one")
    site.reconnect("toronto")
    assert other.shown == "a new one"
    for server in world.servers.values():
        server.authority, server.trusted = 1, {0, 1}
    site.distrust()
    assert [server.trusted for server in world.servers.values()] == [{1}, {1}]
    rotation: Any = {"id": "one", "authority": True, "operator": "ada", "ended": False}
    with pytest.raises(SiteError, match=f"^{PAIR}: the certificates of a pair inside a pair are rotated by input"):
        site.renew(Rotation(**rotation))


def test_what_can_be_done_with_a_pair_is_told_by_its_handle() -> None:
    world = World(busy=False)
    members = {
        role: {"kind": f"{MemorySite.__module__}:MemorySite", "world": world, "role": role, "name": NAMES[role]}
        for role in NAMES
    }
    pair = {"pair": PAIR, "name": "orders", "synchronous": False, "deadline": 5, "members": members}
    nested = {**pair, "members": {"primary": pair, "replica": members["replica"]}}
    found = [(has_roles(each), rotates(each)) for each in (pair, {**pair, "follows": {}}, nested, members["primary"])]
    assert found == [(True, True), (True, True), (True, False), (False, False)]
    copy = {**pair, "follows": {"host": "elsewhere"}}
    assert (has_roles(copy), rotates(copy)) == (False, False)
    plain, whole = (
        pair_of(each)
        for each in (
            pair,
            {
                **pair,
                "fence_commands": {"primary": ["true"]},
                "endpoints": [
                    {
                        "kind": "tests.orchestration.sites:MemoryEndpoint",
                        "world": world,
                        "name": "kingston",
                    }
                ],
            },
        )
    )
    assert (plain.fence_commands, plain.endpoints, plain.names) == ({}, {}, NAMES)
    assert (whole.fence_commands, list(whole.endpoints)) == ({"primary": ["true"]}, ["kingston"])


# -- whole runs of the pair around it ----------------------------------------------------------------------------------


class Nested:
    """A pair of montreal, which leads, and toronto; and calgary, that follows it, in a pair with both."""

    def __init__(self, code: Code, *, synchronous: bool = False) -> None:
        self.code, self.synchronous = code, synchronous
        self.world = world = World(endpoints=())
        assert outcome(code, world, "primary", 0) == "done"
        leader = world.servers["primary"]
        calgary = Server("calgary", "calgary", "for_calgary", source="primary", signal=True, in_recovery=True)
        calgary.wal, calgary.replayed = list(leader.wal), len(leader.wal)
        world.servers["calgary"] = calgary
        world.accounts["calgary"] = []
        leader.slots.add(calgary.slot)
        world.check = lambda: None  # type: ignore[method-assign] # Which knows two servers.
        world.labels = []

    @property
    def inner(self) -> Pair:
        """The pair inside the other one."""
        members = pair_in(self.code, self.world).members
        servers = {role: members[role] for role in NAMES}
        return Pair(PAIR, "orders", servers, synchronous=False, deadline=DEADLINE)

    @property
    def pair(self) -> Pair:
        """The pair around, anew, as whoever acts makes it of its handle."""
        inner = PairSite({"active": "primary"}, self.inner)
        second = pair_in(self.code, self.world).members["calgary"]
        members = {
            "primary": Member("primary", inner, inner.leading()),
            "replica": Member("replica", second.site, second.handle),
        }
        return Pair(AROUND, "world", members, synchronous=self.synchronous, deadline=DEADLINE)

    def run(self, act: Callable[[Pair, Journal], object]) -> None:
        """Do what a command does with the pair around."""
        pair, journal = self.pair, Journal("world", "a test", self.world.shown.append)
        journal.write_to(pair.members["primary"].site.record)
        act(pair, journal)

    def bring_back(self) -> None:
        self.run(lambda pair, journal: self.code.runner.bring_back(pair, journal, by="ada"))

    def reach(self, active: str, epoch: int) -> None:
        self.run(lambda pair, journal: self.code.runner.reach(pair, Desired(active, epoch), journal, by="ada"))

    def led_by(self, leader: str, epoch: int, follows: Mapping[str, str]) -> None:
        """Assert who leads, who follows whom, that all know it, and for whom WAL is kept."""
        world = self.world
        world.come_to_rest()
        assert [server.name for server in world.primaries] == [leader]
        servers = {server.name: server for server in world.servers.values()}
        for name, source in follows.items():
            assert world.servers[servers[name].source].name == source
            assert world.connected(servers[name]), name
        for name, server in servers.items():
            assert server.slots == {f"for_{each}" for each, source in follows.items() if source == name}, name
            assert server.holder is None
            known = server.roles if name == "calgary" else server.roles and server.roles["outer"]
            assert known is not None
            assert (known["pair"], known["epoch"], known["operation"], known["away"]) == (AROUND, epoch, None, None)
            assert known["active"] == ("replica" if leader == "calgary" else "primary")
            kept = world.commits(server)
            assert set(world.acknowledged) - set(kept) <= set(world.lost)
        inner = [world.servers[role].roles for role in NAMES]
        assert [each and each["me"] for each in inner] == list(NAMES)


MONTREAL_LEADS = {"toronto": "montreal", "calgary": "montreal"}
CALGARY_LEADS = {"toronto": "montreal", "montreal": "calgary"}


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_pair_steps_down_for_another_server_and_takes_its_place_again(code: Code, *, synchronous: bool) -> None:
    nested = Nested(code, synchronous=synchronous)
    nested.reach("primary", 0)
    nested.led_by("montreal", 0, MONTREAL_LEADS)
    assert nested.world.servers["primary"].waits_for == (["calgary"] if synchronous else [])
    nested.reach("replica", 1)
    nested.led_by("calgary", 1, CALGARY_LEADS)
    assert nested.world.servers["calgary"].waits_for == (["montreal"] if synchronous else [])
    nested.reach("primary", 2)
    nested.led_by("montreal", 2, MONTREAL_LEADS)
    assert not nested.world.lost
    assert '"step":"promote","state":"done"' in nested.world.servers["primary"].events


def test_a_switchover_from_a_pair_is_taken_back_where_the_other_cannot_take_over(code: Code) -> None:
    nested = Nested(code)
    nested.reach("primary", 0)
    nested.world.whenever = at("calgary.verify: before", fail)
    with pytest.raises(SiteError, match="the switchover was given up, and montreal is active: failed at calgary"):
        nested.reach("replica", 1)
    nested.led_by("montreal", 0, MONTREAL_LEADS)
    labels = nested.world.labels
    assert labels.index("montreal.ease: after") < labels.index("montreal.demote: before"), "so that it stops fast"


def test_a_pair_takes_over_only_if_its_active_member_has_everything(code: Code) -> None:
    nested = Nested(code)
    nested.reach("primary", 0)
    nested.reach("replica", 1)

    def forge(world: World, label: str) -> None:
        world.servers["primary"].wal[-1] = (2, "shutdown checkpoint of another history")

    nested.world.whenever = at("montreal.verify: before", forge)
    with pytest.raises(SiteError, match="given up, and calgary is active: montreal: another history"):
        nested.reach("primary", 2)


def test_a_pair_that_was_failed_over_from_rejoins_with_all_its_servers(code: Code) -> None:
    for state in ("as it is", "without hints"):
        nested = Nested(code)
        nested.reach("primary", 0)
        world = nested.world
        world.servers["calgary"].linked = False
        for _ in range(3):
            world.commit()
        world.servers["primary"].crash()
        nested.run(lambda pair, journal: code.runner.fail_over(pair, "replica", terms(100), journal, by="ada"))
        assert [server.name for server in world.primaries] == ["calgary"]
        assert len(world.lost) >= 3
        world.servers["primary"].rewindable = state == "as it is"
        nested.bring_back()
        nested.led_by("calgary", 1, CALGARY_LEADS)
        put_aside = {content for part in world.servers["primary"].kept for _, content in part}
        assert set(world.lost) <= put_aside
        assert ("montreal.clone: after" in world.labels) == (state == "without hints")
        acts = [label for label in world.labels if label in {"montreal.follow: before", "montreal.retire: before"}]
        assert acts[0] == "montreal.retire: before", "one that does not stream is not started before it was rewound"


def test_a_server_that_was_left_behind_in_a_pair_that_follows_comes_back_as_that_pair_rejoins(code: Code) -> None:
    away = {"member": "replica", "timeline": 1, "fork": "0/0", "fenced": "it was stopped", "since": ""}
    for left in (None, away):
        nested = Nested(code)
        nested.reach("primary", 0)
        nested.reach("replica", 1)
        for role in NAMES:
            server = nested.world.servers[role]
            assert server.roles is not None
            server.roles = {**server.roles, "epoch": 1, "away": left}  # type: ignore[typeddict-item]
        nested.world.servers["replica"].crash()
        nested.bring_back()
        nested.led_by("calgary", 1, CALGARY_LEADS)
        assert [nested.world.servers[role].roles for role in NAMES] == [
            told(1, "primary", role, outer=told(1, "replica", pair=AROUND)) for role in NAMES
        ]


def test_a_pair_is_looked_after_whenever_the_one_around_it_is_reached(code: Code) -> None:
    nested = Nested(code)
    nested.reach("primary", 0)
    world = nested.world
    other = world.servers["replica"]
    assert other.roles is not None
    other.roles = {**other.roles, "outer": None}  # It was told less than the one that leads.
    other.slots = {"for_calgary"}  # It led before, and calgary follows it yet.
    world.servers["calgary"].source = "replica"
    world.labels = []
    nested.reach("primary", 0)
    nested.led_by("montreal", 0, MONTREAL_LEADS)
    assert "calgary.follow: after" in world.labels, "another of its servers may lead in it by now"
    assert sorted(json.loads(world.servers["primary"].remembered)) == [PAIR, AROUND]
    assert json.loads(other.remembered)[AROUND] == json.loads(world.servers["calgary"].remembered)[AROUND]


def test_of_a_pair_the_servers_that_answer_are_locked_though_the_one_that_leads_does_not(code: Code) -> None:
    nested = Nested(code)
    nested.reach("primary", 0)
    world = nested.world
    world.servers["primary"].unreachable = True
    world.servers["replica"].holder = "grace"
    accepted = terms(100, accept_unknown_loss=True, fenced="ada said so")
    with pytest.raises(SiteError, match="toronto: cannot lock: grace has held it"):
        nested.run(lambda pair, journal: code.runner.fail_over(pair, "replica", accepted, journal, by="ada"))


def test_a_server_takes_over_in_a_pair_only_if_that_is_certainly_the_active_one_around(code: Code) -> None:
    def lost() -> tuple[Nested, World]:
        nested = Nested(code)
        nested.reach("primary", 0)
        nested.world.servers["primary"].crash()
        return nested, nested.world

    def fail_over(nested: Nested, *vouched: str) -> str:
        nested.world.dead = False
        journal = Journal("orders", "failover", nested.world.shown.append)
        act = code.runner.fail_over
        return ended(lambda: act(nested.inner, "replica", terms(100), journal, by="ada", vouched=vouched))

    def move_around(world: World) -> None:
        world.servers["calgary"].roles = told(1, "replica", "replica", pair=AROUND)

    moved = f"{AROUND}: its replica is active at epoch 1, not this pair: have this one rejoin it"
    nested, world = lost()
    move_around(world)
    assert fail_over(nested) == f"orders: no failover to toronto; nothing was touched\n  - {moved}"
    nested, world = lost()
    assert fail_over(nested) == "done"
    nested, world = lost()
    world.servers["calgary"].unreachable = True
    assert f"{AROUND}: calgary do not answer, and may have been made active there" in fail_over(nested)
    assert fail_over(nested, "calgary") == "done"
    nested, world = lost()
    world.whenever = killed_at("toronto.promote: before")
    assert fail_over(nested) == "killed"
    world.whenever = None
    move_around(world)
    assert fail_over(nested) == f"orders: {moved}. Nothing was touched"
    nested, world = lost()
    world.promote(world.servers["replica"], by_hand=True)
    move_around(world)
    journal = Journal("orders", "accept", world.shown.append)
    assert ended(lambda: code.runner.take_as_it_is(nested.inner, journal, by="ada")).endswith("Nothing was touched")
