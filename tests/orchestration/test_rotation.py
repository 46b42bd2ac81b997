"""The rotation of certificates: which step is next, and the runner over sites in memory, cut off and failing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Certificates, Rotation
from harmony_pulumi.errors import SiteError
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.rotation import (
    Step,
    new_rotation,
    next_step,
    rotate,
    rotation_in_words,
    strangers,
    under_way,
)
from tests.orchestration.code import REAL, pair_of, reach
from tests.orchestration.sites import FAR, LONG_AGO, NAMES, Killed, World, roles
from tests.orchestration.test_operation import at

BY = "a test"
LEADER, FOLLOWER = "primary", "replica"


def rotation(id_: str = "one", **changes: Any) -> Rotation:
    return Rotation(**{"id": id_, "authority": True, "operator": BY, "ended": False, **changes})  # type: ignore[typeddict-item]


def found(**changes: Any) -> Certificates:
    seen = {"rotation": rotation(), "in_use": True, "issued": "", "held": "", "used": {}, **changes}
    return Certificates(**seen)  # type: ignore[typeddict-item]


def leading(used: str = "new", **changes: Any) -> Certificates:
    return found(**{"issued": "new", "used": {"toronto": used}, **changes})


def following(**changes: Any) -> Certificates:
    return found(**{"issued": "its own", "held": "new", **changes})


ENDED: dict[str, Any] = {"rotation": rotation(ended=True)}
STRANGER = {"toronto": "new", "halifax": "old"}


@pytest.mark.parametrize(
    ("leader", "follower", "step"),
    [
        (leading(rotation=None), following(rotation=None), (Step.RENEW, FOLLOWER)),
        (leading(rotation=None), following(rotation=rotation("another")), (Step.RENEW, FOLLOWER)),
        (leading(rotation=rotation("another", ended=True)), following(), (Step.RENEW, LEADER)),
        (leading(rotation=None), following(), (Step.RENEW, LEADER)),
        (leading(in_use=False), following(), (Step.RENEW, LEADER)),
        (leading(), following(in_use=False), (Step.RENEW, FOLLOWER)),
        (leading("old"), following(held="old"), (Step.HAND_OVER, FOLLOWER)),
        (leading("old"), following(), (Step.RECONNECT, FOLLOWER)),
        (found(issued="new"), following(), (Step.RECONNECT, FOLLOWER)),
        (leading(), following(), (Step.DISTRUST, FOLLOWER)),
        (leading(), following(**ENDED), (Step.DISTRUST, LEADER)),
        (leading(**ENDED), following(**ENDED), None),
        (found(issued="new", used=STRANGER), following(), (Step.DISTRUST, FOLLOWER)),
        (found(issued="new", used=STRANGER), following(**ENDED), None),
        (leading(), following(used={"halifax": "old"}), (Step.DISTRUST, LEADER)),
    ],
)
def test_what_is_next_is_told_from_what_was_seen(
    leader: Certificates, follower: Certificates, step: tuple[Step, str] | None
) -> None:
    assert next_step(rotation(), LEADER, {LEADER: leader, FOLLOWER: follower}, NAMES) == step


def test_the_authority_of_before_stays_trusted_while_a_stranger_needs_it() -> None:
    leader = found(issued="new", used=STRANGER)
    plain = rotation(authority=False)
    assert strangers(leader, NAMES) == ["halifax"]
    assert strangers(Certificates({**leader, "rotation": plain}), NAMES) == []
    assert strangers(Certificates({**leader, "rotation": None}), NAMES) == []
    assert strangers(leading("old"), NAMES) == []
    seen = {LEADER: {**leader, "rotation": plain}, FOLLOWER: following(rotation={**plain, "ended": True})}
    assert next_step(plain, LEADER, seen, NAMES) == (Step.DISTRUST, LEADER)  # type: ignore[arg-type]


def test_of_two_rotations_that_have_not_ended_that_of_the_leader_goes_on() -> None:
    one, other = rotation("one"), rotation("other")
    assert under_way(LEADER, {LEADER: found(rotation=one), FOLLOWER: found(rotation=other)}) == one
    assert under_way(FOLLOWER, {LEADER: found(rotation=one), FOLLOWER: found(rotation=other)}) == other
    assert under_way(LEADER, {LEADER: found(**ENDED), FOLLOWER: found(rotation=other)}) == other
    assert under_way(LEADER, {LEADER: found(**ENDED), FOLLOWER: found(rotation=other, in_use=False)}) == other
    assert under_way(LEADER, {LEADER: found(**ENDED), FOLLOWER: found(rotation=None)}) is None


# -- the runner --------------------------------------------------------------------------------------------------------


def run(world: World, wanted: Rotation | None) -> bool:
    world.dead = False
    return rotate(pair_of(REAL, world), wanted, Journal("orders", "rotate", world.shown.append), by=BY)


def can_connect(world: World, label: str) -> None:
    """The follower would be let in, did it have to connect just now, and is connected."""
    for server in world.servers.values():
        if server.in_recovery and server.source:
            assert server.held[0] in world.servers[server.source].trusted, label
            assert world.connected(server), label


def watched(*, active: str = LEADER) -> World:
    world = World()
    if active != LEADER:
        reach(REAL, world, active, 1)
    world.labels.clear()
    world.count = 0
    world.whenever = can_connect
    return world


def insist_on_rotated(world: World, leader: str, times: int = 1, *, authority: bool = True) -> None:
    follower = world.servers[FOLLOWER if leader == LEADER else LEADER]
    assert all(endpoint.trusts == world.servers[leader].authority for endpoint in world.endpoints.values())
    assert follower.held == world.servers[leader].issued
    assert follower.shown == follower.held[1]
    for server in world.servers.values():
        assert len(server.renewals) == times
        assert server.trusted == {server.authority} == ({times} if authority else {0})
        assert server.rotation is not None
        assert server.rotation["ended"]
        assert server.holder is None
    assert world.commits(world.servers[leader]) == world.acknowledged


@pytest.mark.parametrize("active", [LEADER, FOLLOWER])
@pytest.mark.parametrize("authority", [False, True])
def test_a_rotation_renews_both_and_ends(active: str, authority: bool) -> None:
    world = watched(active=active)
    assert run(world, new_rotation(BY, authority=authority))
    insist_on_rotated(world, active, authority=authority)
    world.labels.clear()
    assert run(World(), None)
    assert run(world, None), "nothing is under way"
    assert not [label for label in world.labels if "alone" in label], "nobody is kept out for that"
    insist_on_rotated(world, active, authority=authority)
    assert run(world, new_rotation(BY, authority=authority))
    insist_on_rotated(world, active, 2, authority=authority)


@pytest.mark.parametrize("authority", [False, True])
def test_what_is_done_is_said_as_it_is_and_before(authority: bool) -> None:
    world = watched()
    run(world, new_rotation(BY, authority=authority))
    what = "another authority and new certificates" if authority else "new certificates"
    assert world.shown == [
        f"orders: toronto gets {what}",
        f"orders: montreal gets {what}",
        "orders: toronto gets the certificate that montreal has issued to it",
        "orders: toronto connects anew to montreal, with that certificate",
        "orders: toronto trusts its authority of now alone",
        "orders: montreal trusts its authority of now alone",
    ]
    last = ["then the authorities of before are trusted by no server any more"] if authority else []
    assert rotation_in_words(NAMES, authority=authority) == [
        f"montreal and toronto each get {what}, and reload",
        "the standby connects anew with the certificate that the primary has issued to it",
        *last,
    ]
    assert rotation_in_words({"server": "montreal"}, authority=authority) == [
        f"montreal gets {what}, and reload",
        *last,
    ]


def test_a_rotation_is_recorded_at_both_sites() -> None:
    world = watched()
    run(world, new_rotation(BY, authority=True))
    steps = ["renew", "renew", "hand-over", "reconnect", "distrust", "distrust"]
    for server in world.servers.values():
        found = [line.split('"step":"')[1].partition('"')[0] for line in server.events.splitlines() if '"done"' in line]
        assert found == steps


def kill(world: World, label: str) -> None:
    world.dead = True
    raise Killed(label)


def fail(world: World, label: str) -> None:
    raise SiteError(f"failed at {label}")


@pytest.mark.parametrize("what", [kill, fail])
@pytest.mark.parametrize("active", [LEADER, FOLLOWER])
def test_cut_off_anywhere_and_run_again_nothing_is_made_twice(what: Callable[[World, str], None], active: str) -> None:
    whole = watched(active=active)
    run(whole, new_rotation(BY, authority=True))
    for number, label in enumerate(whole.labels):
        if what is fail and (".observe" in label or ".record" in label):
            continue  # Looking never raises, and what cannot be recorded is done all the same.
        world = watched(active=active)
        world.at[number] = what
        try:
            run(world, new_rotation(BY, authority=True))
        except (Killed, SiteError):
            pass
        else:  # Endpoints are told once more.
            assert what is fail
            assert label.endswith((".point: before", ".point: after", ".offer: before")), label
        for server in world.servers.values():
            server.holder = None  # The lock ends with whoever held it.
        begun = under_way(active, {role: found(rotation=s.rotation) for role, s in world.servers.items()})
        ended = all(server.rotation and server.rotation["ended"] for server in world.servers.values())
        assert run(world, new_rotation("the second", authority=True))
        insist_on_rotated(world, active, 2 if ended else 1)
        assert begun is None or all(server.renewals == [begun["id"]] for server in world.servers.values()), label


@pytest.mark.parametrize("active", [LEADER, FOLLOWER])
def test_endpoints_get_the_authority_of_the_leader_once_it_is_new_and_before_the_rotation_ends(active: str) -> None:
    world = watched(active=active)
    assert run(world, new_rotation(BY, authority=True))
    first, last = (f"{NAMES[active]}.{what}" for what in ("renew: after", "distrust: before"))
    about = [label for label in world.labels if label in {first, last, "kingston.point: after"}]
    assert about == [first, "kingston.point: after", "kingston.point: after", last]
    world.labels.clear()
    assert run(world, new_rotation(BY, authority=False))
    assert not [label for label in world.labels if "kingston" in label], "the authority is the same"


def test_a_rotation_does_not_end_before_an_endpoint_has_the_new_authority() -> None:
    world = watched()
    world.endpoints["kingston"].unreachable = True
    for _ in range(2):
        with pytest.raises(SiteError, match=r"the endpoint on kingston: .*; have it answer, then run this again"):
            run(world, new_rotation(BY, authority=True))
        world.servers[LEADER].holder = world.servers[FOLLOWER].holder = None
        assert not (world.servers[LEADER].rotation or {"ended": True})["ended"]
    assert world.servers[FOLLOWER].held == world.servers[LEADER].issued, "the members are done"
    assert not run(world, None), "an update goes on without it"
    assert "have it answer, then run this again: `harmony rotate-certificates`" in world.shown[-1]
    world.endpoints["kingston"].unreachable = False
    assert run(world, new_rotation(BY, authority=True))
    insist_on_rotated(world, LEADER)


def test_a_pair_without_endpoints_is_asked_for_nothing_that_these_need() -> None:
    world = World(endpoints=())
    world.labels.clear()
    assert run(world, new_rotation(BY, authority=True))
    assert world.labels.count("montreal.offer: before") == 1, "for the follower"


def test_one_that_replaces_the_authorities_takes_the_place_of_what_keeps_them() -> None:
    for in_use in (True, False):
        world = watched()
        world.servers[LEADER].rotation, world.servers[LEADER].in_use = rotation(authority=False), in_use
        world.servers[LEADER].renewals.append("one")
        assert run(world, rotation("two"))
        assert [server.renewals for server in world.servers.values()] == [["one", "two"], ["two"]]
        assert "going on with" not in "".join(world.shown)
        for server in world.servers.values():
            assert (server.trusted, server.rotation) == ({1}, rotation("two", ended=True))
    world = watched()
    world.servers[LEADER].rotation = rotation(authority=False)
    world.servers[LEADER].renewals.append("one")
    assert run(world, rotation("two", authority=False))
    assert [server.renewals for server in world.servers.values()] == [["one"], ["one"]]
    world = watched()
    world.servers[LEADER].rotation = rotation()
    world.servers[LEADER].renewals.append("one")
    assert run(world, rotation("two", authority=False))
    assert [server.renewals for server in world.servers.values()] == [["one"], ["one"]]


def test_a_rotation_of_authorities_that_was_cut_off_in_its_first_act_is_finished_as_one_of_authorities() -> None:
    for label in ("toronto.renew: decided", "montreal.renew: decided"):
        whole = watched()
        run(whole, rotation())
        world = watched()
        world.at[whole.labels.index(label)] = kill
        with pytest.raises(Killed):
            run(world, rotation())
        for server in world.servers.values():
            server.holder = None
        assert run(world, rotation("two", authority=False))
        insist_on_rotated(world, LEADER)
        assert [server.renewals for server in world.servers.values()] == [["one"], ["one"]]


def test_what_takes_the_place_of_a_rotation_of_authorities_tells_endpoints_and_spares_strangers() -> None:
    world = watched()
    world.strangers = {"halifax": "old"}
    follower = world.servers[FOLLOWER]
    follower.rotation, follower.in_use = rotation("theirs"), False
    world.servers[LEADER].rotation = rotation("plain", authority=False)
    follower.renewals.append("theirs")
    world.servers[LEADER].renewals.append("plain")
    follower.authority, follower.trusted = 1, {0, 1}
    assert run(world, None)
    assert follower.rotation is not None
    assert (follower.rotation["id"], follower.rotation["authority"]) == ("plain", True)
    world = watched()
    world.strangers = {"halifax": "old"}
    leader = world.servers[LEADER]
    leader.rotation, leader.authority, leader.trusted = rotation("theirs"), 1, {0, 1}
    leader.renewals.append("theirs")
    leader.holder = "a test"
    pair_of(REAL, world).members[LEADER].movable.renew(rotation("plain", authority=False))
    leader.holder = None
    assert not run(world, None)
    assert leader.trusted == {0, 1}, "halifax has the certificate of before"
    world.strangers = {}
    assert run(world, None)
    assert leader.trusted == {1}
    assert all(endpoint.trusts == 1 for endpoint in world.endpoints.values())


def test_a_member_that_cannot_be_renewed_fails_whoever_asks_for_that_and_no_update() -> None:
    whole = watched()
    run(whole, rotation())
    world = watched()
    world.at[whole.labels.index("toronto.renew: decided")] = fail
    with pytest.raises(SiteError, match=r"failed at toronto\.renew: decided"):
        run(world, rotation())
    world.whenever = at("toronto.renew: decided", fail, times=2)
    assert not run(world, None)
    assert "failed at toronto.renew: decided: `harmony rotate-certificates`" in world.shown[-1]
    with pytest.raises(SiteError, match=r"failed at toronto\.renew: decided"):
        run(world, rotation("two", authority=False))
    world.whenever = at("montreal.reconnect: before", fail)
    with pytest.raises(SiteError, match=r"failed at montreal\.reconnect: before"):
        run(world, None)
    world.whenever = None
    assert run(world, None)
    insist_on_rotated(world, LEADER)


def test_what_is_under_way_is_finished_by_whoever_asks_for_nothing_else() -> None:
    world = watched(active=FOLLOWER)
    world.servers[LEADER].rotation = rotation()
    world.servers[LEADER].renewals.append("one")
    world.servers[LEADER].authority, world.servers[LEADER].trusted = 1, {0, 1}
    assert run(world, None)
    assert "going on with the rotation begun by a test" in "".join(world.shown)
    insist_on_rotated(world, FOLLOWER)


def test_what_somebody_else_finishes_as_the_lock_is_waited_for_is_not_finished_again() -> None:
    def finish(world: World, _label: str) -> None:
        world.servers[LEADER].rotation = rotation(ended=True)

    world = watched()
    world.servers[LEADER].rotation = rotation()
    world.whenever = at("montreal.alone: before", finish)
    assert run(world, None)
    assert world.shown == []


def test_a_rotation_that_a_stranger_keeps_open_is_ended_once_that_has_the_new_certificate() -> None:
    world = watched()
    world.strangers = {"halifax": "old"}
    assert not run(world, new_rotation(BY, authority=True))
    leader = world.servers[LEADER]
    assert leader.trusted == {0, 1}
    assert "halifax replicates from montreal with a certificate of the authority of before" in world.shown[-1]
    assert not run(world, None)
    assert not run(world, new_rotation(BY, authority=True))
    world.strangers = {"halifax": leader.issued[1]}
    assert run(world, None)
    insist_on_rotated(world, LEADER)


def stop_toronto(world: World) -> None:
    world.stop(world.servers[FOLLOWER])


def cut_toronto_off(world: World) -> None:
    world.servers[FOLLOWER].unreachable = True


def begin_a_switchover(world: World) -> None:
    operation = {
        "id": "x", "kind": "switchover", "epoch": 1, "source": LEADER, "target": FOLLOWER,
        "operator": "somebody", "prepared": False, "token": None, "given_up": "",
    }  # fmt: skip
    world.servers[LEADER].roles = roles(0, LEADER, operation=operation)


def leave_toronto_behind(world: World) -> None:
    away = {"member": FOLLOWER, "timeline": 1, "fork": "0/1", "fenced": "", "since": ""}
    world.servers[LEADER].roles = roles(1, LEADER, away=away)


def lose_the_primary(world: World) -> None:
    leader = world.servers[LEADER]
    leader.in_recovery = leader.signal = True


def promote_toronto(world: World) -> None:
    world.check = lambda: None  # type: ignore[method-assign]
    world.servers[FOLLOWER].in_recovery = False


def somebody_is_at_work(world: World) -> None:
    world.servers[FOLLOWER].holder = "somebody else"


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (stop_toronto, "toronto is stopped (no server process), and certificates are rotated where every member runs"),
        (cut_toronto_off, "toronto is unreachable"),
        (
            begin_a_switchover,
            "a switchover begun by somebody has not ended; finish it first: `harmony switchover --to t",
        ),
        (leave_toronto_behind, "toronto was left behind by a failover; `harmony rejoin` first"),
        (lose_the_primary, "no member is a primary; expected exactly one"),
        (promote_toronto, "montreal and toronto is a primary; expected exactly one"),
        (somebody_is_at_work, "somebody else has held it"),
    ],
)
def test_what_is_refused_touches_nothing(happens: Callable[[World], None], said: str) -> None:
    world = World()
    happens(world)
    with pytest.raises(SiteError) as caught:
        run(world, new_rotation(BY, authority=True))
    assert said in str(caught.value)
    assert [server.renewals for server in world.servers.values()] == [[], []]


def begin_a_rejoin(world: World) -> None:
    begin_a_switchover(world)
    known = world.servers[LEADER].roles
    assert known is not None
    assert known["operation"] is not None
    known["operation"]["kind"] = "rejoin"


@pytest.mark.parametrize("authority", [False, True])
@pytest.mark.parametrize("happens", [stop_toronto, cut_toronto_off, leave_toronto_behind, begin_a_rejoin])
def test_a_leader_that_nobody_could_come_back_to_is_rotated_alone(
    happens: Callable[[World], None], authority: bool
) -> None:
    world = World()
    world.servers[LEADER].expires = LONG_AGO
    happens(world)
    # What is still connected with a certificate of the authority of before would be locked out without that.
    ends = not authority or happens is stop_toronto
    assert run(world, new_rotation(BY, authority=authority)) == ends
    assert [len(world.servers[role].renewals) for role in (LEADER, FOLLOWER)] == [1, 0]
    found = world.servers[LEADER].rotation
    assert found is not None
    assert found["ended"] == ends
    assert any(
        line.endswith(
            "montreal gets new certificates alone, as toronto could not come back with those of now; once it has, run "
            "this again for its own"
        )
        for line in world.shown
    )
    assert "alone" in world.servers[LEADER].events
    assert not [label for label in world.labels if label.startswith("toronto.alone")]
    world.servers[LEADER].expires = FAR
    with pytest.raises(SiteError):
        run(world, new_rotation(BY, authority=authority))


def stop_montreal(world: World) -> None:
    world.stop(world.servers[LEADER])


def begin_a_switchover_and_stop_toronto(world: World) -> None:
    begin_a_switchover(world)
    stop_toronto(world)


UNSURE = [begin_a_switchover, begin_a_switchover_and_stop_toronto, lose_the_primary, promote_toronto, stop_montreal]


@pytest.mark.parametrize("happens", UNSURE)
def test_a_leader_that_may_not_be_one_is_not_rotated_alone(happens: Callable[[World], None]) -> None:
    world = World()
    for server in world.servers.values():
        server.expires = LONG_AGO
    happens(world)
    with pytest.raises(SiteError):
        run(world, new_rotation(BY, authority=True))
    assert [server.renewals for server in world.servers.values()] == [[], []]


@pytest.mark.parametrize("active", [LEADER, FOLLOWER])
def test_a_pair_that_is_whole_is_rotated_whole_though_its_certificates_have_expired(active: str) -> None:
    world = watched(active=active)
    for server in world.servers.values():
        server.expires = LONG_AGO
    assert run(world, new_rotation(BY, authority=False))
    insist_on_rotated(world, active, authority=False)


@pytest.mark.parametrize("happens", [stop_toronto, cut_toronto_off, leave_toronto_behind])
def test_what_is_under_way_waits_for_a_member_that_is_away_and_is_no_reason_to_fail(
    happens: Callable[[World], None],
) -> None:
    world = World()
    world.servers[LEADER].rotation = rotation()
    happens(world)
    assert run(world, None)
    assert [server.renewals for server in world.servers.values()] == [[], []]
    assert not [label for label in world.labels if "alone" in label]


def test_what_is_under_way_waits_while_the_pair_follows_another_one() -> None:
    world = World(busy=False)
    around = roles(1, "replica", pair="shop/prod/world")
    for role, server in world.servers.items():
        server.rotation, server.roles = rotation(), roles(0, "primary", role, outer=around)
        server.in_recovery = True
    assert run(world, None)
    assert not any(server.renewals for server in world.servers.values())


def test_roles_that_move_before_the_lock_is_held_are_noticed() -> None:
    world = watched()
    world.whenever = None

    def move(world: World, label: str) -> None:
        if label == "toronto.alone: before" and not world.servers[LEADER].in_recovery:
            world.servers[LEADER].in_recovery, world.servers[FOLLOWER].in_recovery = True, False

    world.busy = False
    world.whenever = move
    with pytest.raises(SiteError, match="somebody else was moving its roles until a moment ago"):
        run(world, new_rotation(BY, authority=True))


def test_a_follower_that_does_not_come_back_leaves_the_rotation_open_and_both_trusted() -> None:
    world = watched()
    world.whenever = None

    def cut(world: World, label: str) -> None:
        world.servers[FOLLOWER].linked = False

    run(world, new_rotation(BY, authority=True))
    number = world.labels.index("montreal.reconnect: before")
    world = watched()
    world.whenever = None
    world.at[number] = cut
    with pytest.raises(SiteError, match="toronto, connected to montreal with its new certificate: not within"):
        run(world, new_rotation(BY, authority=True))
    assert world.servers[LEADER].trusted == {0, 1}
    world.mend()
    assert run(world, None)
    insist_on_rotated(world, LEADER)
