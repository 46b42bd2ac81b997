"""What a run does around its operation: what it refuses, whom it tells, what it looks at first, and how it reverts.

Each of these has a part of `runner` that no operation from one end to the other needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from harmony_pulumi.orchestration.journal import Journal
from tests.orchestration.code import (
    Code,
    accept,
    bring_back,
    ended,
    fail_over,
    finished,
    known,
    outcome,
    pair_of,
    served,
)
from tests.orchestration.sites import World, terms
from tests.orchestration.sites import roles as told
from tests.orchestration.test_failover_runs import failed_over, killed_at, scene
from tests.orchestration.test_failover_runs import left_behind as away_from_its_pair
from tests.orchestration.test_operation import (
    BOTH,
    at,
    following,
    given_up_and_promoted_by_hand,
    inside,
    settled,
    take_the_lead,
)
from tests.orchestration.test_runner import fail

Act = Callable[[Code, World], str]


def reach_what_is(code: Code, world: World) -> str:
    return outcome(code, world, "primary", 0)


def move(code: Code, world: World) -> str:
    return outcome(code, world, "replica", 1)


MOVES: tuple[Act, ...] = (move, fail_over, bring_back, accept)


def of_another_pair(world: World, _label: str = "") -> None:
    world.servers["replica"].roles = told(0, "primary", "replica", pair="shop/prod/other")


def contradict(world: World, _label: str = "") -> None:
    """Have both members told at one epoch that another one is active."""
    world.check = lambda: None  # type: ignore[method-assign]
    for role, server in world.servers.items():
        outer = server.roles and server.roles["outer"]
        server.roles = told(4, role, role, outer=outer)


def done(world: World) -> list[str]:
    """Return what was done, without the looks and the locks."""
    acts = [label for label in world.labels if label.endswith(": before")]
    return [label for label in acts if not any(each in label for each in (".alone", ".record", ".survey", ".echo"))]


def comes_back(world: World, _label: str) -> None:
    world.servers["replica"].unreachable = False


ANOTHER = (
    "toronto was told that it is a member of the pair shop/prod/other, not of shop/prod/orders; nothing was touched"
)
BOTH_ACTIVE = "were told at the same epoch that different members are active; nothing was touched"


# -- refused -----------------------------------------------------------------------------------------------------------


def test_a_server_of_another_pair_is_not_even_locked(code: Code) -> None:
    for act in (reach_what_is, *MOVES):
        world = settled(code)
        of_another_pair(world)
        assert ANOTHER in act(code, world)
        assert not [label for label in world.labels if "observe" not in label]


def test_what_a_member_is_told_as_the_lock_is_waited_for_is_refused_too(code: Code) -> None:
    for happens, said in ((of_another_pair, ANOTHER), (contradict, BOTH_ACTIVE)):
        world = settled(code)
        world.whenever = at("toronto.alone: after", happens)
        assert said in outcome(code, world, "replica", 1)
        assert not done(world)
        world, ahead = following(code)
        world.servers["primary"].crash()
        happens(world)
        assert said in take_the_lead(code, world, ahead)
        assert not done(world)


def test_what_somebody_told_before_the_lock_was_taken_is_not_overwritten(code: Code) -> None:
    def twice(world: World, _label: str) -> None:
        for role, server in world.servers.items():
            server.roles = told(2, "primary", role)

    world = settled(code)
    world.whenever = at("montreal.alone: before", twice)
    assert "somebody else was moving its roles until a moment ago" in outcome(code, world, "primary", 0)
    assert not done(world)


def test_nobody_is_told_that_commits_wait_who_is_not_the_one_that_leads_any_more(code: Code) -> None:
    def away(world: World, _label: str) -> None:
        for role, server in world.servers.items():
            server.roles = told(1, "replica", role)

    world = settled(code)
    world.synchronous = True
    world.whenever = at("montreal.require_synchronous: after", away)
    assert "somebody else was moving its roles until a moment ago" in outcome(code, world, "primary", 0)
    assert "montreal.tell: before" not in world.labels


def test_what_another_has_done_meanwhile_is_not_done_again(code: Code) -> None:
    world = settled(code)

    def second(world: World, _label: str) -> None:
        assert outcome(code, world, "replica", 1, by="the second") == "done"

    world.whenever = at("montreal.alone: before", second)
    assert outcome(code, world, "replica", 1) == "done"
    finished(code, world, "replica", 1)
    assert world.labels.count("toronto.promote: before") == 1


def test_no_role_moves_in_a_pair_that_follows_and_it_is_said_why(code: Code) -> None:
    whole = (
        "its roles cannot be moved while it follows another cluster, as replica is active in shop/prod/world; make the "
        "pair itself active first; if the one that leads in it is lost, `harmony failover` has the other one lead in it"
    )
    for act in MOVES:
        world = inside(code, 1, "replica")
        assert act(code, world) == f"orders: {whole}. Nothing was touched"
        assert not done(world)
    deployed = "its roles cannot be moved while it follows another cluster; make the pair itself active first"
    world = World(code.host, busy=False)
    looks: list[tuple[World, Any, str]] = [
        (inside(code, 1, "replica"), None, whole),
        (world, replace(pair_of(code, world), follows=True), deployed),
    ]
    for world, declared, words in looks:
        pair = declared or pair_of(code, world)
        seen = code.members.look(pair)
        found = code.runner.preflight(pair, "replica", seen)
        assert [(check.name, check.verdict, check.found) for check in found] == [("orders", "problem", words)]
        assert code.runner.failover_preflight(pair, "replica", seen, terms()) == found


def test_a_member_that_accepts_writes_and_is_not_to_is_said_with_the_ways_out(code: Code) -> None:
    world = settled(code)
    world.servers["primary"].crash()
    world.promote(world.servers["replica"], by_hand=True)
    said = outcome(code, world, "primary", 0)
    assert "toronto accepts writes, and montreal is to be active alone. Somebody promoted a member by hand" in said
    assert "If toronto is to stay, run `harmony accept`; if montreal is, stop the other, start montreal" in said
    world.not_fenced.add("primary")
    world.servers["primary"].start()
    said = outcome(code, world, "primary", 0)
    assert "montreal and toronto accept writes, and montreal is to be active alone" in said
    assert "Stop the one that is not to stay, keep its data, then run `harmony accept`, and `harmony rejoin`" in said


def test_a_pair_that_follows_has_no_primary(code: Code) -> None:
    world, _ = following(code)
    assert outcome(code, world, "primary", 0) == "done"
    world.promote(world.servers["replica"], by_hand=True)
    said = outcome(code, world, "primary", 0)
    assert "orders: toronto accepts writes, and the pair follows another cluster: promoted by hand?" in said


def test_where_nobody_accepts_writes_nobody_was_promoted_by_hand(code: Code) -> None:
    world = settled(code)
    world.servers["primary"].crash()
    assert outcome(code, world, "primary", 0).startswith("toronto streaming: not within 5 s; last seen: montreal is s")


def test_a_rejoin_does_not_end_what_is_under_way_otherwise(code: Code) -> None:
    world = settled(code)
    world.whenever = killed_at("montreal.demote: before")
    assert outcome(code, world, "replica", 1) == "killed"
    world.whenever = None
    said = bring_back(code, world)
    assert "orders: a switchover to toronto, begun by the first, has not ended: run `harmony switchover --to t" in said
    assert world.servers["primary"].leads


# -- looked at first ---------------------------------------------------------------------------------------------------


def test_a_standby_that_stops_as_a_record_is_waited_for_is_a_problem(code: Code) -> None:
    world = settled(code)

    def stops(world: World, _label: str) -> None:
        world.whenever = at("toronto.observe", lambda world, _: world.servers["replica"].crash())

    world.whenever = at("montreal.echo: written", stops)
    assert "  - link: the replay on toronto of a record that montreal wrote for this" in outcome(
        code, world, "replica", 1
    )
    assert world.servers["primary"].leads


def rejoining(code: Code, world: World, active: str = "replica") -> dict[str, tuple[str, str]]:
    """Return what it takes to have the other member follow, by what was looked at."""
    pair = pair_of(code, world)
    found = code.runner.rejoin_preflight(pair, active, code.members.look(pair))
    return {check.name: (check.verdict, check.found) for check in found}


LEADS = {"toronto": ("ok", "a running primary")}


def test_what_it_takes_to_rejoin_is_said_of_one_that_was_left_behind(code: Code) -> None:
    world = away_from_its_pair(code, "as_it_is")
    size = len(world.servers["primary"].wal)
    copy = f"a copy of its {size} bytes takes about 0 s at 100 MB/s"
    found = rejoining(code, world)
    assert found == LEADS | {
        "montreal": ("ok", "stopped"),
        "diverged": ("warning", found["diverged"][1]),
        "rewind": ("ok", f"montreal can be rewound, as far as can be told; {copy}"),
    }
    assert found["diverged"][1].endswith(" bytes of WAL with 3 committed transactions")
    hintless = "montreal cannot be rewound: it has neither data checksums nor wal_log_hints"
    found = rejoining(code, away_from_its_pair(code, "without_hints"))
    assert found["rewind"] == ("warning", f"{hintless}; {copy}")
    verdict, words = rejoining(code, away_from_its_pair(code, "unreadable"))["diverged"]
    assert (verdict, words[:41]) == ("warning", "what montreal alone has cannot be read: m")
    world.servers["primary"].unreachable = True
    silent = ("problem", "unreachable: does not answer; it must answer to rejoin")
    assert rejoining(code, world) == LEADS | {"montreal": silent}


def test_what_it_takes_to_rejoin_is_said_of_one_that_runs_and_where_nobody_leads(code: Code) -> None:
    world = away_from_its_pair(code, "as_it_is")
    world.servers["primary"].start()
    found = rejoining(code, world)
    assert found["montreal"] == ("ok", "a running standby, which is stopped")
    assert found["diverged"][0] == "warning"
    world = away_from_its_pair(code, "started_by_hand")
    found = rejoining(code, world)
    assert found["montreal"] == ("ok", "a running primary, which is stopped")
    assert "diverged" not in found, "it goes on writing"
    world = away_from_its_pair(code, "as_it_is")
    world.servers["replica"].crash()
    found = rejoining(code, world)
    assert found["toronto"] == ("problem", "stopped no server process; a primary that runs is needed")
    assert list(found) == ["toronto", "montreal", "rewind"]


def test_what_it_takes_to_rejoin_is_nothing_where_nothing_is_lost(code: Code) -> None:
    world = settled(code)
    assert rejoining(code, world, "primary") == {
        "montreal": ("ok", "a running primary"),
        "toronto": ("ok", "it streams already"),
    }
    world.servers["replica"].crash()
    found = rejoining(code, world, "primary")
    assert found["diverged"] == ("ok", "toronto alone has 0 bytes of WAL with 0 committed transactions")


def test_what_it_takes_to_have_another_server_lead_is_said_of_all_that_it_depends_on(code: Code) -> None:
    for runs, verdict, said in (
        (True, "ok", "it runs: toronto is to follow it"),
        (False, "warning", "stopped: toronto cannot follow it yet; if it is lost, too, fail the pair around over then"),
    ):
        world, ahead = following(code)
        world.servers["primary"].crash()
        if not runs:
            ahead.server.crash()
        leader = code.replication.Member("primary", ahead, {"name": "ottawa", "slot": "for_ottawa"})
        pair = pair_of(code, world)
        checks = code.runner.succession_checks(pair, leader, "replica", code.members.look(pair), terms())
        found = {check.name: (check.verdict, check.found) for check in checks}
        assert list(found) == ["montreal", "toronto", "fencing", "loss", "shop/prod/world", "ottawa"]
        assert found["loss"] == ("ok", "none: neither is a primary, and ottawa has what they have")
        assert found["ottawa"] == (verdict, said)


# -- whom it tells, and what it does again -----------------------------------------------------------------------------


def test_what_is_as_it_is_to_be_is_locked_once_and_told_to_nobody(code: Code) -> None:
    world = settled(code)
    world.synchronous = True
    assert outcome(code, world, "primary", 0) == "done"
    world.labels = []
    assert outcome(code, world, "primary", 0) == "done"
    assert world.labels.count("montreal.alone: before") == 1
    assert not [label for label in done(world) if "tell" in label or "prepare" in label or "follow" in label]
    world = settled(code, endpoints=())
    world.servers["replica"].unreachable = True
    world.whenever = at("montreal.require_synchronous: before", comes_back)
    assert outcome(code, world, "primary", 0) == "done"
    assert world.labels.count("montreal.alone: before") == 1, "there is no endpoint to be led on once it streams"


def test_a_member_that_does_not_answer_and_need_not_be_told_anything_does_not_stop_a_run(code: Code) -> None:
    def nothing_told(code: Code) -> World:
        return World(code.host, busy=False)

    def synchronous(code: Code) -> World:
        world = settled(code)
        world.synchronous = True
        assert outcome(code, world, "primary", 0) == "done"
        return world

    for make in (nothing_told, synchronous):
        world = make(code)
        world.servers["replica"].unreachable = True
        world.whenever = at("montreal.require_synchronous: before", comes_back)
        assert outcome(code, world, "primary", 0) == "done"


def test_once_roles_have_moved_a_standby_is_told_where_its_leader_is(code: Code) -> None:
    world = settled(code)
    assert outcome(code, world, "primary", 0) == "done"
    assert "toronto.follow: before" not in world.labels, "before, the deployment sees to that"
    world = inside(code, 1, "primary")
    assert outcome(code, world, "primary", 0) == "done"
    assert "toronto.follow: after" in world.labels
    world = settled(code)
    assert outcome(code, world, "replica", 1) == "done"
    world.labels = []
    world.servers["replica"].slots.clear()
    assert outcome(code, world, "replica", 1) == "done"
    assert "montreal.follow: after" in world.labels
    finished(code, world, "replica", 1)
    world.servers["primary"].crash()
    world.labels = []
    assert "montreal streaming: not within" in outcome(code, world, "replica", 1)
    assert "montreal.follow: before" not in world.labels, "it is not for this to start it"


def test_one_that_was_left_behind_is_not_told_to_follow(code: Code) -> None:
    world = away_from_its_pair(code, "as_it_is")
    world.servers["primary"].start()
    assert outcome(code, world, "replica", 1) == "done"
    assert "montreal.follow: before" not in world.labels


def test_a_standby_that_was_got_ready_to_lead_keeps_no_wal_any_more(code: Code) -> None:
    world = settled(code)
    world.servers["replica"].slots = {"for_montreal"}
    assert outcome(code, world, "primary", 0) == "done"
    finished(code, world, "primary", 0)


def test_an_endpoint_is_led_on_though_one_that_was_left_behind_does_not_answer(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    world.servers["primary"].crash()
    world.servers["primary"].unreachable = world.endpoints["kingston"].unreachable = True
    assert fail_over(code, world, accept_unknown_loss=True, fenced="ada said so") == "done"
    world.endpoints["kingston"].unreachable = False
    assert outcome(code, world, "replica", 1) == "done"
    served(world, "replica")


def test_whoever_goes_on_with_what_was_begun_says_so(code: Code) -> None:
    world = settled(code)
    world.whenever = killed_at("montreal.demote: before")
    assert outcome(code, world, "replica", 1) == "killed"
    world.whenever = None
    assert outcome(code, world, "replica", 1) == "done"
    assert "orders: going on with the switchover begun by the first" in world.shown
    world, accepted = scene(code, "crashed", busy=False)
    world.whenever = killed_at("toronto.promote: before")
    assert fail_over(code, world, **accepted) == "killed"
    world.whenever = None
    assert fail_over(code, world, **accepted) == "done"
    assert "orders: going on with the failover begun by an operator" in world.shown
    assert fail_over(code, world, **accepted) == "done"
    assert "orders: toronto is active already, at epoch 1" in world.shown
    world.whenever = killed_at("montreal.rewind: before")
    assert bring_back(code, world) == "killed"
    world.whenever = None
    assert bring_back(code, world) == "done"
    assert "orders: going on with the rejoin begun by an operator" in world.shown


# -- failover ----------------------------------------------------------------------------------------------------------


def test_a_pair_that_was_told_nothing_and_is_in_no_other_fails_over(code: Code) -> None:
    world = World(code.host, busy=False)
    world.servers["primary"].crash()
    assert fail_over(code, world) == "done"
    failed_over(code, world)
    assert known(code, world)["epoch"] == 1
    assert not [label for label in world.labels if "peers" in label], "there is nobody around it to be asked"


def test_a_failover_takes_the_place_of_a_switchover(code: Code) -> None:
    world = settled(code)
    world.whenever = killed_at("montreal.demote: before")
    assert outcome(code, world, "replica", 1) == "killed"
    world.whenever = None
    world.servers["primary"].crash()
    assert fail_over(code, world, max_data_loss=100) == "done"
    failed_over(code, world)


def test_a_failover_that_was_given_up_is_begun_anew(code: Code) -> None:
    world, accepted = scene(code, "crashed", busy=False)

    def give_up(world: World, label: str) -> None:
        world.whenever = killed_at("montreal.reinstate: before")
        fail(world, label)

    world.whenever = at("toronto.require_synchronous: before", give_up)
    assert fail_over(code, world, **accepted) == "killed"
    world.whenever = None
    begun = known(code, world)["operation"]
    assert begun["given_up"]
    assert fail_over(code, world, **accepted) == "done"
    failed_over(code, world)
    assert known(code, world)["epoch"] > begun["epoch"]


def test_nothing_is_said_of_endpoints_where_there_are_none(code: Code) -> None:
    world = settled(code, endpoints=())
    world.servers["replica"].unreachable = True
    assert fail_over(code, world, "primary") == "done"
    assert not any("the endpoints are left" in line for line in world.shown)


def test_one_that_cannot_be_stopped_leads_no_more_in_a_pair_that_follows_only_if_somebody_vouches_for_it(
    code: Code,
) -> None:
    for fenced in ("", "ada said so"):
        world, ahead = following(code)
        world.servers["primary"].crash()
        world.whenever = at("montreal.fence: before", fail)
        said = take_the_lead(code, world, ahead, fenced=fenced)
        if fenced:
            assert said == "done"
            assert known(code, world)["away"]["fenced"] == fenced
        else:
            assert said.startswith("failed at montreal.fence: before. Mend that; or make certain that montreal accept")
            assert known(code, world)["active"] == "primary"


def test_one_that_leads_in_a_pair_that_follows_is_to_stream(code: Code) -> None:
    world, ahead = following(code)
    world.servers["primary"].crash()
    world.whenever = at("toronto.follow: after", lambda world, _: world.servers["replica"].crash())
    assert take_the_lead(code, world, ahead).startswith("toronto streaming from ottawa: not within 5 s")


def test_nobody_leads_in_a_pair_that_was_told_nothing_of_one_around_it(code: Code) -> None:
    world, ahead = following(code)
    for server in world.servers.values():
        server.roles = None
    pair = replace(pair_of(code, world), follows=True)
    leader = code.replication.Member("primary", ahead, {"name": "ottawa", "slot": "for_ottawa"})
    journal = Journal("orders", "failover", world.shown.append)
    act = code.runner.take_the_lead
    said = ended(lambda: act(pair, leader, "replica", terms(), journal, by="ada"))
    assert "somebody else was moving its roles until a moment ago" in said


# -- accept ------------------------------------------------------------------------------------------------------------


def test_the_primary_of_a_pair_that_was_told_nothing_is_accepted(code: Code) -> None:
    world = World(code.host, busy=False)
    assert accept(code, world) == "done"
    finished(code, world, "primary", 1)


def test_no_primary_is_accepted_as_long_as_the_other_member_cannot_be_asked(code: Code) -> None:
    world = settled(code)
    world.servers["replica"].unreachable = True
    before = [server.roles for server in world.servers.values()]
    said = accept(code, world)
    assert (
        "toronto cannot be asked; if that is lost, `harmony failover` goes on without it. Nothing was changed" in said
    )
    assert [server.roles for server in world.servers.values()] == before


def test_clients_are_led_to_the_primary_that_is_accepted(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    world.servers["primary"].crash()
    world.promote(world.servers["replica"], by_hand=True)
    assert accept(code, world) == "done"
    served(world, "replica")


def test_what_is_under_way_is_not_ended_by_accepting_a_primary_that_nobody_promoted_by_hand(code: Code) -> None:
    world = settled(code)
    world.whenever = killed_at("montreal.demote: before")
    assert outcome(code, world, "replica", 1) == "killed"
    world.whenever = None
    assert "a switchover is under way; `harmony switchover --to toronto` finishes it" in accept(code, world)
    world = away_from_its_pair(code, "as_it_is")
    world.whenever = killed_at("montreal.rewind: before")
    assert bring_back(code, world) == "killed"
    world.whenever = None
    world.forgets("replica")
    world.servers["replica"].roles = None
    assert "a rejoin is under way; `harmony rejoin` finishes it" in accept(code, world)


def test_one_that_somebody_promoted_after_that_was_given_up_is_accepted_and_nothing_is_under_way(code: Code) -> None:
    world = given_up_and_promoted_by_hand(code)
    assert accept(code, world) == "done"
    assert (known(code, world)["active"], known(code, world)["operation"]) == ("replica", None)


# -- revert ------------------------------------------------------------------------------------------------------------


def revert(code: Code, world: World) -> tuple[Any, list[Any]]:
    """Do what `harmony revert` does."""
    world.dead = False
    desired, found = code.runner.revert(pair_of(code, world), Journal("orders", "revert", world.shown.append), by="ada")
    return (desired.active, desired.epoch), found


def test_a_revert_brings_back_the_roles_and_shows_that_all_is_as_it_was(code: Code) -> None:
    world = settled(code)
    assert outcome(code, world, "replica", 1) == "done"
    desired, found = revert(code, world)
    assert desired == ("primary", 2)
    finished(code, world, "primary", 2)
    assert {each.field.partition(".")[0] for each in found} == {"montreal", "toronto"}
    assert {each.field for each in found if each.before == "-"} == set()
    assert [each for each in found if not each.is_expected] == []


def test_a_revert_where_nothing_has_moved_moves_nothing(code: Code) -> None:
    for world in (settled(code), World(code.host, busy=False)):
        first = known(code, world)["epoch"]
        world.labels = []
        assert revert(code, world)[0] == ("primary", first)
        finished(code, world, "primary", 0)
        assert not any("is active at epoch" in line for line in world.shown), "nobody has to rejoin"


def test_a_revert_brings_back_whoever_was_left_behind_first(code: Code) -> None:
    for begun in (False, True):
        world = away_from_its_pair(code, "as_it_is")
        world.synchronous = True
        if begun:
            world.whenever = killed_at("montreal.rewind: before")
            assert bring_back(code, world) == "killed"
        waited: list[list[str]] = []

        def look(world: World, label: str, waited: list[list[str]] = waited) -> None:
            if label == "toronto.demote: before":
                waited.append(world.servers["replica"].waits_for)

        world.whenever = look
        assert revert(code, world)[0] == ("primary", 2)
        finished(code, world, "primary", 2)
        assert waited == [["montreal"]], "it is as it was declared before roles move again"


def test_a_revert_ends_what_brings_back_the_roles_and_nothing_else(code: Code) -> None:
    world = settled(code)
    assert outcome(code, world, "replica", 1) == "done"
    world.whenever = killed_at("montreal.promote: before")
    assert outcome(code, world, "primary", 2) == "killed"
    world.whenever = None
    assert revert(code, world)[0] == ("primary", 2)
    finished(code, world, "primary", 2)
    world = settled(code)
    world.whenever = killed_at("toronto.promote: before")
    assert outcome(code, world, "replica", 1) == "killed"
    world.whenever = None
    said = ended(lambda: revert(code, world))
    assert "a switchover to toronto, begun by the first, has not ended: run `harmony switchover --to toronto`" in said
