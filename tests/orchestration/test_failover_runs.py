"""Failover and rejoin over sites in memory: cut off, failing and disturbed at every point of every act.

The world checks at each point that there are two primaries only where it was told falsely that one accepts no writes,
that no more is lost than was accepted, and that nothing that was acknowledged is gone from every server and archive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.orchestration.code import (
    Code,
    accept,
    active_member,
    bring_back,
    command,
    fail_over,
    finished,
    known,
    outcome,
    pair_of,
)
from tests.orchestration.sites import NAMES, World, pair_site
from tests.orchestration.sites import roles as told
from tests.orchestration.test_runner import DISTURBANCES, can_fail, fail, interrupt, kill, put_right, time_out

Scene = Callable[[World], dict[str, Any]]
"""What has happened to the primary; returns what the operator accepts."""


def crashed(world: World) -> dict[str, Any]:
    world.servers["primary"].crash()
    return {}


def crashed_ahead(world: World) -> dict[str, Any]:
    """It had acknowledged what its standby never got."""
    world.servers["replica"].linked = False
    for _ in range(3):
        world.commit()
    world.servers["primary"].crash()
    return {"max_data_loss": 100}


def gone(world: World) -> dict[str, Any]:
    world.servers["primary"].crash()
    world.servers["primary"].unreachable = True
    return {"accept_unknown_loss": True, "fenced": "ada said so"}


def alive_out_of_reach(world: World) -> dict[str, Any]:
    """It goes on accepting writes, and what is said of it is not true."""
    world.servers["primary"].unreachable = True
    return {"accept_unknown_loss": True, "fenced": "ada said so"}


def fence_command_lies(world: World) -> dict[str, Any]:
    world.servers["primary"].unreachable = True
    world.fence_commands = {"primary": ["true"]}
    return {"accept_unknown_loss": True}


def restarted_as_a_standby(world: World) -> dict[str, Any]:
    """As the guard does with one that finds no peer that says it is active."""
    primary = world.servers["primary"]
    world.servers["replica"].linked = False
    for _ in range(3):
        world.commit()
    primary.crash()
    primary.signal = True
    primary.start()
    return {"max_data_loss": 100, "accept_unknown_loss": True}


SCENES: dict[str, Scene] = {
    each.__name__: each
    for each in (crashed, crashed_ahead, gone, alive_out_of_reach, fence_command_lies, restarted_as_a_standby)
}


def scene(code: Code, name: str, *, busy: bool = True) -> tuple[World, dict[str, Any]]:
    world = World(code.host, busy=busy)
    assert outcome(code, world, "primary", 0) == "done"
    accepted = SCENES[name](world)
    world.count, world.labels = 0, []
    return world, accepted


def labels_of(code: Code, name: str) -> list[str]:
    world, accepted = scene(code, name)
    assert fail_over(code, world, **accepted) == "done"
    return world.labels


def left(world: World) -> dict[str, Any]:
    """Return who is left behind, as the new leader knows."""
    roles = world.servers[world.leader].roles
    assert roles is not None
    assert roles["operation"] is None
    assert roles["away"] is not None
    return dict(roles["away"])


def failed_over(code: Code, world: World) -> None:
    """Assert that the replica leads, and the primary is left behind."""
    world.come_to_rest()
    assert world.servers["replica"].leads
    assert known(code, world)["active"] == "replica"
    assert left(world)["member"] == "primary"
    assert world.servers["replica"].slots == {"for_montreal"}


def rejoined(code: Code, world: World) -> None:
    put_right(world)
    assert bring_back(code, world) == "done"
    finished(code, world, "replica", known(code, world)["epoch"])
    assert outcome(code, world, "replica", known(code, world)["epoch"]) == "done"


# -- as it should go ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENES)
def test_a_failover_then_a_rejoin_then_a_switchover_back(code: Code, name: str) -> None:
    world, accepted = scene(code, name)
    assert fail_over(code, world, **accepted) == "done"
    failed_over(code, world)
    assert bool(world.lost) == (name in {"crashed_ahead", "restarted_as_a_standby"})
    rejoined(code, world)
    told_now = known(code, world)
    assert outcome(code, world, "primary", told_now["epoch"] + 1) == "done"
    finished(code, world, "primary", told_now["epoch"] + 1)


def test_reach_leaves_alone_who_is_away_and_says_so(code: Code) -> None:
    world, accepted = scene(code, "gone")
    assert fail_over(code, world, **accepted) == "done"
    before = world.servers["primary"].roles
    assert outcome(code, world, "replica", 1) == "done"
    assert "montreal was left behind by the failover of" in world.shown[-1]
    put_right(world)
    world.servers["primary"].crash()
    assert outcome(code, world, "replica", 1) == "done"
    roles = world.servers["primary"].roles
    assert roles != before
    assert roles == {**world.servers["replica"].roles, "me": "primary"}  # type: ignore[dict-item]
    assert not world.connected(world.servers["primary"])


def test_a_switchover_is_refused_while_a_member_is_away(code: Code) -> None:
    world, accepted = scene(code, "crashed")
    assert fail_over(code, world, **accepted) == "done"
    world.servers["primary"].start()
    away = left(world)
    said = outcome(code, world, "primary", 2)
    assert f"montreal was left behind by the failover of {away['since']}, and has not rejoined" in said
    assert "Run `harmony rejoin` first" in said
    assert left(world) == away


# -- cut off, failing, disturbed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENES)
def test_a_failover_killed_at_any_point_is_finished_by_the_same_command(code: Code, name: str) -> None:
    for number, label in enumerate(labels_of(code, name)):
        world, accepted = scene(code, name)
        world.at[number] = kill
        assert fail_over(code, world, **accepted) == "killed", label
        assert fail_over(code, world, **accepted) == "done", label
        failed_over(code, world)
        rejoined(code, world)


@pytest.mark.parametrize("happens", [fail, time_out, interrupt])
@pytest.mark.parametrize("name", SCENES)
def test_a_failover_that_fails_once_is_finished_or_taken_back(
    code: Code, name: str, happens: Callable[[World, str], None]
) -> None:
    for number, label in enumerate(labels_of(code, name)):
        if not can_fail(label) and happens is not interrupt:
            continue
        world, accepted = scene(code, name)
        world.at[number] = happens
        first = fail_over(code, world, **accepted)
        if "given up" in first:
            assert active_member(world).startswith("montreal"), (label, first)
            world.servers["primary"].crash()
        second = "" if first == "done" else fail_over(code, world, **accepted)
        assert "done" in {first, second}, (label, first, second)
        failed_over(code, world)
        rejoined(code, world)


@pytest.mark.parametrize("name", ["crashed_ahead", "alive_out_of_reach"])
@pytest.mark.parametrize("what", DISTURBANCES)
def test_whatever_happens_to_a_server_in_a_failover_all_is_well_once_it_is_back(
    code: Code, name: str, what: str
) -> None:
    for number, label in enumerate(labels_of(code, name)):
        world, accepted = scene(code, name)
        world.at[number] = DISTURBANCES[what]
        first = fail_over(code, world, **accepted)
        put_right(world)
        roles = known(code, world)
        if roles["operation"] or roles["active"] == "replica":
            again = [fail_over(code, world, **accepted) for _ in range(2) if known(code, world)["operation"]]
            assert known(code, world)["operation"] is None, (label, first, again)
        if known(code, world)["active"] == "replica":
            rejoined(code, world)
        else:
            assert outcome(code, world, "primary", known(code, world)["epoch"]) == "done", (label, first)
            finished(code, world, "primary", known(code, world)["epoch"])


def torn(world: World) -> None:
    world.servers["primary"].tears = True


def without_hints(world: World) -> None:
    world.servers["primary"].rewindable = False


def unreadable(world: World) -> None:
    world.servers["primary"].readable = False


def cut_from_its_source(world: World) -> None:
    world.servers["primary"].linked = False


def started_by_hand(world: World) -> None:
    """Without its guard, before anybody fenced it."""
    primary = world.servers["primary"]
    primary.signal = False
    primary.start()
    world.not_fenced.add("primary")
    world.accounts["primary"] = world.commits(primary)


def as_it_is(world: World) -> None:
    pass


STATES = {each.__name__: each for each in (as_it_is, torn, without_hints, unreadable, started_by_hand)}


def left_behind(code: Code, state: str) -> World:
    """Return a pair that failed over, and whose old primary is back in a state."""
    world, accepted = scene(code, "alive_out_of_reach" if state == "started_by_hand" else "crashed_ahead")
    assert fail_over(code, world, **accepted) == "done"
    world.mend()
    STATES[state](world)
    world.count, world.labels = 0, []
    return world


@pytest.mark.parametrize("state", STATES)
def test_a_rejoin_killed_at_any_point_is_finished_by_the_same_command(code: Code, state: str) -> None:
    plain = left_behind(code, state)
    assert bring_back(code, plain) == "done"
    finished(code, plain, "replica", 1)
    for number, label in enumerate(plain.labels):
        world = left_behind(code, state)
        world.at[number] = kill
        assert bring_back(code, world) == "killed", label
        assert bring_back(code, world) == "done", label
        finished(code, world, "replica", 1)


@pytest.mark.parametrize("happens", [fail, time_out, interrupt, started_by_hand])
def test_a_rejoin_that_is_disturbed_once_is_finished_by_the_same_command(
    code: Code, happens: Callable[..., None]
) -> None:
    plain = left_behind(code, "as_it_is")
    assert bring_back(code, plain) == "done"
    for number, label in enumerate(plain.labels):
        if happens in (fail, time_out) and not can_fail(label):
            continue
        world = left_behind(code, "as_it_is")

        def happen(world: World, label: str) -> None:
            if happens is started_by_hand:
                if not world.servers["primary"].running:
                    started_by_hand(world)
                kill(world, label)
            else:
                happens(world, label)

        world.at[number] = happen
        first = bring_back(code, world)
        if first != "done":
            assert bring_back(code, world) == "done", (label, first)
        finished(code, world, "replica", 1)


def test_what_cannot_be_rewound_is_copied_anew_and_kept(code: Code) -> None:
    for state in ("torn", "without_hints", "unreadable"):
        world = left_behind(code, state)
        had = list(world.servers["primary"].wal)
        world.servers["replica"].lost = {"for_montreal"}
        assert bring_back(code, world) == "done"
        finished(code, world, "replica", 1)
        assert "clone: after" in " ".join(world.labels)
        assert "montreal is copied" in " ".join(world.shown)
        assert "orders: montreal: half of it" in world.shown
        why = "its whole data directory is kept: montreal: its WAL from"
        assert any(why in line for line in world.shown) == (state == "unreadable")
        kept = [record for part in world.servers["primary"].kept for record in part]
        assert set(had[-4:]) <= set(kept), state


def test_one_that_was_rewound_and_does_not_stream_yet_is_not_copied_and_not_called_rejoined(code: Code) -> None:
    world = left_behind(code, "as_it_is")
    cut_from_its_source(world)
    for _ in range(2):
        said = bring_back(code, world)
        assert "montreal streaming from toronto: not within" in said
        assert "mend that, then run this again" in said
    roles = world.servers["replica"].roles
    assert roles is not None
    assert roles["operation"] is not None
    assert roles["away"] is not None
    rejoined(code, world)
    assert "clone: " not in " ".join(world.labels)
    assert "copied anew" not in " ".join(world.shown)


def test_one_that_was_rewound_and_can_never_stream_is_copied(code: Code) -> None:
    world = left_behind(code, "as_it_is")

    def diverges(world: World, label: str) -> None:
        if label == "montreal.follow: before" and "montreal.clone: after" not in world.labels:
            world.servers["primary"].wal[-1] = (1, "what its source has not")

    world.whenever = diverges
    assert bring_back(code, world) == "done"
    assert "montreal is copied anew: rewound, it cannot stream: it is no child of" in " ".join(world.shown)
    finished(code, world, "replica", 1)


@pytest.mark.parametrize("name", ["crashed_ahead", "restarted_as_a_standby"])
def test_what_may_pass_does_not_have_a_member_copied(code: Code, name: str) -> None:
    """Whatever stands in the way, and from whichever act on: the run fails, and the same again goes on by a rewind."""

    def back() -> World:
        world, accepted = scene(code, name)
        assert fail_over(code, world, **accepted) == "done"
        world.mend()
        world.count, world.labels = 0, []
        return world

    plain = back()
    assert bring_back(code, plain) == "done"
    assert "montreal.rewind: after" in plain.labels
    refused = 0
    for number, label in enumerate(plain.labels):
        world = back()

        def hinder(world: World, label: str) -> None:
            world.servers["primary"].hindered = True

        world.at[number] = hinder
        first = bring_back(code, world)
        if first != "done":
            refused += 1
            assert "No space left on device" in first, label
            assert "No space left on device" in bring_back(code, world), label
            world.servers["primary"].hindered = False
            assert bring_back(code, world) == "done", label
        finished(code, world, "replica", 1)
        assert "clone: " not in " ".join(world.labels), label
    assert refused > 5


def test_a_slot_is_there_before_a_rewind_or_a_copy_and_made_anew_if_it_is_dropped_after_it(code: Code) -> None:
    for state, act in (("as_it_is", "rewind"), ("without_hints", "clone")):
        world = left_behind(code, state)
        world.servers["replica"].slots.clear()
        there: list[bool] = []

        def drop(world: World, label: str, act: str = act, there: list[bool] = there) -> None:
            if label == f"montreal.{act}: before":
                there.append("for_montreal" in world.servers["replica"].slots)
            if label == f"montreal.{act}: after":
                world.servers["replica"].slots.clear()

        world.whenever = drop
        assert bring_back(code, world) == "done"
        assert there == [True]
        finished(code, world, "replica", 1)


def test_what_the_leader_cannot_tell_now_does_not_have_a_member_copied(code: Code) -> None:
    for what in (fail, time_out):
        world = left_behind(code, "as_it_is")
        world.at[labels_to(code, "toronto.history: before")] = what
        assert "toronto.history: before" in bring_back(code, world)
        assert bring_back(code, world) == "done"
        assert "clone: " not in " ".join(world.labels)
        finished(code, world, "replica", 1)


def labels_to(code: Code, label: str) -> int:
    """Return the number of the last such point of a rejoin."""
    plain = left_behind(code, "as_it_is")
    assert bring_back(code, plain) == "done"
    return max(number for number, each in enumerate(plain.labels) if each == label)


def test_a_rejoin_of_one_that_streams_changes_nothing(code: Code) -> None:
    world = World(code.host, busy=False)
    assert outcome(code, world, "primary", 0) == "done"
    world.labels = []
    assert bring_back(code, world) == "done"
    acts = {"stop", "retire", "archive", "rewind", "clone", "follow", "demote", "promote"}
    assert not [label for label in world.labels if any(act in label for act in acts)]
    finished(code, world, "primary", 0)


def test_a_member_that_only_lost_its_connection_rejoins_and_nothing_is_put_aside(code: Code) -> None:
    world = World(code.host)
    assert outcome(code, world, "primary", 0) == "done"
    world.servers["replica"].crash()
    assert bring_back(code, world) == "done"
    finished(code, world, "primary", 0)
    assert world.servers["replica"].kept == []


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_failover_from_a_primary_that_answers_is_refused_and_touches_nothing(code: Code) -> None:
    world = World(code.host, busy=False)
    assert outcome(code, world, "primary", 0) == "done"
    before = world.picture()
    assert "it runs and answers: `harmony switchover --to toronto` loses nothing" in fail_over(code, world)
    assert world.picture() == before


def test_a_failover_is_refused_where_nothing_is_certain_of_the_old_primary(code: Code) -> None:
    world, accepted = scene(code, "alive_out_of_reach", busy=False)
    before = world.picture()
    said = fail_over(code, world, **{**accepted, "fenced": ""})
    assert "montreal does not answer, and may accept writes" in said
    assert "--fenced-by-me montreal" in said
    assert world.picture() == before


def test_an_endpoint_that_cannot_be_told_is_not_fenced_unless_somebody_vouches_for_that(code: Code) -> None:
    world = World(code.host, endpoints=("kingston", "ottawa"))
    assert outcome(code, world, "primary", 0) == "done"
    accepted = crashed(world)
    world.endpoints["kingston"].unreachable = True
    world.endpoints["ottawa"].crash()
    before, world.labels = world.picture(), []
    said = fail_over(code, world, **accepted)
    assert "no failover to toronto; nothing was touched\n  - endpoint: kingston cannot be told (unreachable" in said
    assert "ottawa" not in said
    assert not [label for label in world.labels if "tell" in label or "fence" in label]
    assert world.picture() == before
    assert fail_over(code, world, **accepted, fenced="ada said so") == "done"
    failed_over(code, world)
    assert [(e.points_to, e.lets_through) for e in world.endpoints.values()] == [("primary", True), ("replica", True)]
    assert any("the endpoint on kingston: kingston does not answer" in line for line in world.shown)
    world.endpoints["kingston"].unreachable = False
    rejoined(code, world)


def test_an_old_primary_whose_data_cannot_be_read_is_fenced_by_somebody_s_word(code: Code) -> None:
    def closed() -> World:
        world, _ = scene(code, "crashed")
        world.servers["primary"].closed = True
        return world

    world = closed()
    said = fail_over(code, world, accept_unknown_loss=True)
    assert "montreal: its data directory cannot be read. Mend that; or make certain that montreal accepts no" in said
    assert said.endswith("--fenced-by-me montreal")
    assert not world.primaries
    accepted: dict[str, Any] = {"accept_unknown_loss": True, "fenced": "ada said so"}
    world.shown = []
    assert fail_over(code, world, **accepted) == "done"
    assert "orders: montreal: its data directory cannot be read" in world.shown
    assert "orders: montreal accepts no writes: ada said so" in world.shown
    world.servers["primary"].signal = True
    plain = closed()
    assert fail_over(code, plain, **accepted) == "done"
    for number, label in enumerate(plain.labels):
        world = closed()
        world.at[world.count + number] = kill
        assert fail_over(code, world, **accepted) == "killed", label
        assert fail_over(code, world, **accepted) == "done", label
        assert left(world)["fenced"] == "ada said so"
        world.servers["primary"].closed = False
        rejoined(code, world)


def test_an_old_primary_that_cannot_be_locked_is_passed_by_where_somebody_vouches_for_it(code: Code) -> None:
    def unlockable(*, closed: bool = False) -> World:
        world, _ = scene(code, "crashed")
        world.servers["primary"].closed = closed
        world.servers["primary"].lockable = False
        return world

    accepted: dict[str, Any] = {"accept_unknown_loss": True, "fenced": "ada said so"}
    world = unlockable()
    before = world.picture()
    said = fail_over(code, world, accept_unknown_loss=True)
    assert said.endswith("montreal accepts no writes, then add --fenced-by-me montreal")
    assert "montreal: PostgreSQL 15 is needed, found none. Mend that" in said
    assert world.picture() == before
    for closed in (False, True):
        plain = unlockable(closed=closed)
        assert fail_over(code, plain, **accepted) == "done"
        labels = list(plain.labels)
        acts = {label for label in labels if label.startswith("montreal.")}
        assert acts == {"montreal.observe", "montreal.alone: before"}
        passed = [line for line in plain.shown if "montreal is passed by: montreal: PostgreSQL 15 is needed" in line]
        assert len(passed) == 1
        assert "ada said so; it could not be marked, so until it has rejoined start it by nothing but" in passed[0]
        assert "PostgreSQL 15 is needed" in bring_back(code, plain)
        for number, label in enumerate(labels):
            world = unlockable(closed=closed)
            world.at[world.count + number] = kill
            assert fail_over(code, world, **accepted) == "killed", label
            assert fail_over(code, world, **accepted) == "done", label
            assert left(world)["fenced"] == "ada said so"
            world.servers["primary"].closed, world.servers["primary"].lockable = False, True
            rejoined(code, world)


def test_nobody_is_passed_by_who_is_at_work_on_it_or_takes_writes_or_is_to_take_over(code: Code) -> None:
    accepted: dict[str, Any] = {"accept_unknown_loss": True, "fenced": "ada said so"}
    for held in (True, False):
        world, _ = scene(code, "crashed")
        world.servers["primary"].lockable = False
        world.servers["primary"].holder = "grace" if held else None
        world.servers["replica"].lockable = held
        before = world.picture()
        said = fail_over(code, world, **accepted)
        assert said == (
            "montreal: cannot lock: grace has held it for the last 5 s"
            if held
            else "toronto: PostgreSQL 15 is needed, found none"
        )
        assert world.picture() == before
    world = World(code.host, busy=False)
    assert outcome(code, world, "primary", 0) == "done"
    world.servers["primary"].lockable = False
    assert fail_over(code, world, **accepted) == "montreal: PostgreSQL 15 is needed, found none"
    assert world.primaries == [world.servers["primary"]]


def test_one_that_somebody_promoted_while_the_old_primary_cannot_be_asked_is_failed_over_to(code: Code) -> None:
    world = World(code.host, busy=False)
    assert outcome(code, world, "primary", 0) == "done"
    old = world.servers["primary"]
    old.crash()
    old.unreachable = True
    world.promote(world.servers["replica"], by_hand=True)
    assert "--fenced-by-me montreal" in fail_over(code, world, accept_unknown_loss=True)
    assert "--accept-unknown-loss" in fail_over(code, world, fenced="ada said so")
    assert fail_over(code, world, accept_unknown_loss=True, fenced="ada said so") == "done"
    assert left(world)["fenced"] == "ada said so"
    assert known(code, world)["active"] == "replica"
    old.unreachable = False
    assert bring_back(code, world) == "done"
    finished(code, world, "replica", known(code, world)["epoch"])


def test_a_failover_cut_off_as_it_fences_is_known_to_be_under_way(code: Code) -> None:
    for name in ("crashed", "alive_out_of_reach"):
        labels = labels_of(code, name)
        world, accepted = scene(code, name)
        world.fence_commands = {"primary": ["true"]}
        world.at[labels.index("montreal.fence: before" if name == "crashed" else "toronto.tell: after")] = kill
        accepted.pop("fenced", None)
        assert fail_over(code, world, **accepted) == "killed"
        assert known(code, world)["operation"]["kind"] == "failover"
        said = outcome(code, world, "primary", 0)
        terms = "--max-data-loss 0" + ("" if name == "crashed" else " --accept-unknown-loss")
        again = f"run `harmony failover --to toronto {terms}`"
        assert f"a failover to toronto, begun by an operator, has not ended: {again}" in said


def test_what_a_switchover_has_done_is_recorded_before_it_goes_on(code: Code) -> None:
    for label, prepared in (("toronto.forget: before", False), ("montreal.demote: before", True)):
        plain = World(code.host)
        assert outcome(code, plain, "replica", 1) == "done"
        world = World(code.host)
        world.at[plain.labels.index(label)] = kill
        assert outcome(code, world, "replica", 1) == "killed"
        operation = known(code, world)["operation"]
        assert operation is not None
        assert operation["prepared"] is prepared


def test_one_that_comes_back_knows_who_leads_before_it_is_stopped(code: Code) -> None:
    world, accepted = scene(code, "gone")
    assert fail_over(code, world, **accepted) == "done"
    world.mend()

    def cut_off(world: World, label: str) -> None:
        if label == "montreal.retire: before":
            kill(world, label)

    world.whenever = cut_off
    assert bring_back(code, world) == "killed"
    roles = world.servers["primary"].roles
    assert roles is not None
    assert (roles["active"], roles["epoch"], roles["me"]) == ("replica", 1, "primary")


def test_commits_on_one_that_is_elected_wait_for_nobody(code: Code) -> None:
    world, accepted = scene(code, "crashed")
    world.servers["replica"].waits_for = ["montreal"]
    assert fail_over(code, world, **accepted) == "done"
    assert world.servers["replica"].waits_for == []


def test_a_slot_that_is_gone_is_made_anew_for_whoever_rejoins(code: Code) -> None:
    for state in ("as_it_is", "unreadable"):
        world = left_behind(code, state)
        world.servers["replica"].slots.clear()
        assert bring_back(code, world) == "done"
        finished(code, world, "replica", 1)
        assert ("montreal.clone: after" in world.labels) is (state == "unreadable")


def killed_at(label: str) -> Callable[[World, str], None]:
    def happens(world: World, at: str) -> None:
        if at == label:
            kill(world, at)

    return happens


def test_how_far_a_rejoin_is_and_why_it_goes_another_way_is_recorded(code: Code) -> None:
    for state, label, stage, why in (
        ("as_it_is", "montreal.rewind: before", "rewinding", ""),
        ("torn", "montreal.clone: before", "archived", "it cannot be rewound: montreal: could not write"),
    ):
        world = left_behind(code, state)
        world.whenever = killed_at(label)
        assert bring_back(code, world) == "killed"
        operation = known(code, world)["operation"]
        assert (operation["stage"], operation["clone"]) == (stage, why)


def test_how_the_old_primary_was_fenced_is_recorded_before_anybody_is_elected(code: Code) -> None:
    world, accepted = scene(code, "fence_command_lies")
    world.whenever = killed_at("toronto.require_synchronous: before")
    assert fail_over(code, world, **accepted) == "killed"
    assert known(code, world)["operation"]["terms"]["fenced"] == "its fence_command, true, succeeded"


def test_one_that_lost_what_it_was_told_is_told_before_it_follows(code: Code) -> None:
    plain = World(code.host)
    assert outcome(code, plain, "replica", 1) == "done"
    world = World(code.host)
    world.at[plain.labels.index("toronto.promote: after")] = kill
    assert outcome(code, world, "replica", 1) == "killed"
    world.servers["primary"].roles = None
    world.forgets("primary")
    world.whenever = killed_at("montreal.follow: before")
    assert outcome(code, world, "replica", 1) == "killed"
    roles = world.servers["primary"].roles
    assert roles is not None
    assert roles["active"] == "replica"


def test_that_a_switchover_is_given_up_is_recorded_at_both(code: Code) -> None:
    plain = World(code.host)
    assert outcome(code, plain, "replica", 1) == "done"
    world = World(code.host)
    world.at[plain.labels.index("montreal.demote: stopped")] = fail
    world.whenever = killed_at("montreal.reinstate: before")
    assert outcome(code, world, "replica", 1) == "killed"
    for server in world.servers.values():
        assert server.roles is not None
        assert server.roles["operation"] is not None
        assert server.roles["operation"]["given_up"] == "failed at montreal.demote: stopped"


def test_a_fence_command_that_fails_leaves_the_failover_undone(code: Code) -> None:
    for argv, said in ((["false"], "did not succeed (1): it said nothing"), (["/no/such/program"], "did not succeed")):
        world, accepted = scene(code, "alive_out_of_reach")
        world.fence_commands = {"primary": argv}
        assert said in fail_over(code, world, **{**accepted, "fenced": ""})
        assert [server.name for server in world.primaries] == ["montreal"]
        put_right(world)
        world.servers["primary"].crash()
        assert fail_over(code, world, max_data_loss=100) == "done"
        failed_over(code, world)


def test_more_than_was_accepted_is_not_lost_and_the_old_primary_is_back(code: Code) -> None:
    world, _ = scene(code, "crashed_ahead")
    assert "nothing was touched\n  - loss: " in fail_over(code, world, max_data_loss=2, accept_unknown_loss=True)
    world, _ = scene(code, "restarted_as_a_standby")
    before = len(world.acknowledged)
    said = fail_over(code, world, max_data_loss=0, accept_unknown_loss=True)
    assert "given up, and montreal is active" in said
    assert "bytes would be lost, and at most 0 are accepted" in said
    world.mend()
    world.come_to_rest()
    finished(code, world, "primary", 0)
    assert len(world.acknowledged) > before
    assert not world.lost


def test_what_cannot_be_known_is_lost_only_if_that_is_accepted(code: Code) -> None:
    for name in ("gone", "alive_out_of_reach"):
        world, accepted = scene(code, name)
        accepted["accept_unknown_loss"] = False
        said = fail_over(code, world, **accepted)
        assert "or add --accept-unknown-loss" in said
        assert not world.servers["replica"].leads


# -- after a failover, another -----------------------------------------------------------------------------------------


def test_a_failover_back_to_one_that_was_left_behind_says_what_that_loses(code: Code) -> None:
    """The double failure: the new leader dies before the old one has rejoined."""
    world, accepted = scene(code, "crashed")
    assert fail_over(code, world, **accepted) == "done"
    world.servers["primary"].start()
    for _ in range(5):
        world.commit()
    world.servers["replica"].crash()
    said = fail_over(code, world, "primary", accept_unknown_loss=True)
    assert "and at most 0 are accepted" in said
    assert fail_over(code, world, "primary", max_data_loss=1000) == "done"
    assert len(world.lost) >= 5
    put_right(world)
    assert bring_back(code, world) == "done"
    finished(code, world, "primary", 2)


def test_two_timelines_of_one_number_that_begin_at_one_place_are_told_apart(code: Code) -> None:
    world = World(code.host, busy=False)
    assert outcome(code, world, "primary", 0) == "done"
    world.servers["primary"].crash()
    assert fail_over(code, world) == "done"
    world.servers["primary"].start()
    world.commit()
    world.servers["replica"].crash()
    assert fail_over(code, world, "primary", max_data_loss=100) == "done"
    world.commit()
    mine, theirs = world.servers["replica"].history(), world.servers["primary"].history()
    assert mine == theirs
    left_at = int(known(code, world)["away"]["fork"].removeprefix("0/"), 16)
    put_right(world)
    assert bring_back(code, world) == "done"
    assert "what toronto alone has is in diverged-1" in " ".join(world.shown)
    assert world.servers["replica"].kept[0] == world.servers["replica"].kept[1][left_at:]
    finished(code, world, "primary", 2)
    assert world.lost


def test_one_that_knows_of_no_failover_takes_over_with_an_epoch_that_no_other_has(code: Code) -> None:
    """The old primary was out of reach at the failover; now the new one is, and the old one must lead."""
    world, accepted = scene(code, "gone")
    world.synchronous = True
    assert fail_over(code, world, **accepted) == "done"
    world.mend()
    world.servers["replica"].unreachable = True
    world.servers["replica"].crash()
    world.servers["primary"].signal = True
    world.servers["primary"].start()
    assert "--accept-unknown-loss" in fail_over(code, world, "primary", fenced="ada said so")
    seen = {role: pair_site(world, role).observe() for role in world.servers}
    planned = code.runner.next_failover_epoch(pair_of(code, world), "primary", seen)
    assert fail_over(code, world, "primary", **accepted) == "done"
    assert known(code, world)["epoch"] == planned
    put_right(world)
    assert "montreal and toronto accept writes" in outcome(code, world, "primary", known(code, world)["epoch"])
    assert known(code, world)["active"] == "primary"
    assert bring_back(code, world) == "done"
    finished(code, world, "primary", known(code, world)["epoch"])


def test_members_that_were_told_the_same_epoch_of_each_are_not_chosen_between(code: Code) -> None:
    world = World(code.host, busy=False)
    world.servers["primary"].roles = told(4, "primary")
    world.servers["replica"].roles = told(4, "replica", "replica")
    world.check = lambda: None  # type: ignore[method-assign]
    acts: list[Callable[[], str]] = [
        lambda: outcome(code, world, "primary", 4),
        lambda: outcome(code, world, "replica", 5),
        lambda: fail_over(code, world),
        lambda: bring_back(code, world),
    ]
    for act in acts:
        assert "at the same epoch that different members are active; nothing was touched" in act()
    assert accept(code, world) == "done"
    assert [server.roles and server.roles["epoch"] for server in world.servers.values()] == [5, 5]
    assert known(code, world)["active"] == "primary"


def test_a_failover_takes_the_place_of_a_switchover_that_cannot_be_finished(code: Code) -> None:
    plain = World(code.host)
    assert outcome(code, plain, "replica", 1) == "done"
    for number, label in enumerate(plain.labels):
        for to, other in (("replica", "primary"), ("primary", "replica")):
            world = World(code.host)
            world.at[number] = kill
            assert outcome(code, world, "replica", 1) == "killed"
            world.servers[other].crash()
            world.servers[to].signal = world.servers[to].signal or not world.servers[to].leads
            world.servers[to].start()
            before = known(code, world)
            ended = fail_over(code, world, to, max_data_loss=1000)
            if ended == "done":
                world.come_to_rest()
                assert world.leader == to, label
                was_over = (before["operation"], before["active"]) == (None, to)
                assert known(code, world)["epoch"] > before["epoch"] - was_over, label
                put_right(world)
                assert bring_back(code, world) == "done", label
                finished(code, world, to, known(code, world)["epoch"])


def test_a_failover_given_up_is_begun_anew_by_the_same_command(code: Code) -> None:
    for what in (fail, time_out):
        labels = labels_of(code, "crashed")
        for number, label in enumerate(labels):
            if not can_fail(label):
                continue
            world, accepted = scene(code, "crashed")
            world.at[number] = what
            ended = fail_over(code, world, **accepted)
            if "given up" not in ended:
                continue
            epoch = known(code, world)["epoch"]
            world.servers["primary"].crash()
            assert fail_over(code, world, **accepted) == "done"
            assert known(code, world)["epoch"] == epoch + 1
            failed_over(code, world)


def test_a_failover_that_was_given_up_and_cut_off_is_over_by_the_command_that_is_named(code: Code) -> None:
    begun: set[str] = set()
    for number, label in enumerate(labels_of(code, "crashed")):
        for later in range(1, 40):
            world, accepted = scene(code, "crashed")
            world.at |= {number: fail, number + later: kill} if can_fail(label) else {}
            if fail_over(code, world, **accepted) != "killed":
                break
            under_way = known(code, world)["operation"]
            if not (under_way and under_way["given_up"]):
                continue
            begun.add(label)
            assert code.roles.command(under_way, NAMES) == "switchover --to toronto"
            assert "given up, and montreal is active" in command(code, world, "replica"), (label, later)
            assert known(code, world)["operation"] is None
    assert begun


def test_that_it_was_given_up_is_said_also_where_a_site_cannot_be_told_so(code: Code) -> None:
    said: list[str] = []
    number = next(n for n, label in enumerate(labels_of(code, "crashed")) if "montreal.fence" in label)
    for what in (fail, time_out):
        for later in range(1, 60):
            world, accepted = scene(code, "crashed")
            world.at |= {number: fail, number + later: what}
            ended = fail_over(code, world, **accepted)
            if "Not both could be told so, run the same again" in ended:
                said.append(ended)
    assert len(said) > 4
    assert all("the failover was given up, and montreal is active: " in each for each in said)


def test_who_was_left_behind_is_remembered_by_a_failover_that_is_given_up(code: Code) -> None:
    world, accepted = scene(code, "crashed")
    assert fail_over(code, world, **accepted) == "done"
    world.servers["primary"].start()
    away = left(world)
    for number in range(200):
        world.servers["replica"].crash()
        world.at[world.count + number] = fail
        ended = fail_over(code, world, "primary", max_data_loss=1000)
        world.at.clear()
        if "given up" in ended:
            assert left(world) == away
            world.servers["primary"].start()
        elif ended == "done":
            return
    pytest.fail("it never ended well")


# -- accept ------------------------------------------------------------------------------------------------------------


def test_the_one_primary_that_is_found_is_accepted_and_the_other_left_behind(code: Code) -> None:
    for stopped in ("as a primary", "as a standby"):
        world = World(code.host)
        assert outcome(code, world, "primary", 0) == "done"
        world.servers["primary"].crash()
        world.servers["primary"].signal = stopped == "as a standby"
        world.promote(world.servers["replica"], by_hand=True)
        assert accept(code, world) == "done"
        failed_over(code, world)
        assert world.servers["primary"].signal
        assert known(code, world)["epoch"] == 1
        assert accept(code, world) == "done"
        assert known(code, world)["epoch"] == 1
        rejoined(code, world)


def test_nothing_is_accepted_where_there_is_not_exactly_one_primary_or_something_is_under_way(code: Code) -> None:
    world = World(code.host, busy=False)
    assert outcome(code, world, "primary", 0) == "done"
    world.servers["primary"].crash()
    assert "no member accepts writes. Nothing was changed" in accept(code, world)
    world.servers["primary"].unreachable = True
    assert "montreal cannot be asked" in accept(code, world)
    world.mend()
    world.promote(world.servers["replica"], by_hand=True)
    world.not_fenced.add("primary")
    world.servers["primary"].start()
    assert "montreal and toronto accept writes" in accept(code, world)
    world, accepted = scene(code, "crashed")
    world.at[world.count + len(labels_of(code, "crashed")) - 8] = kill
    assert fail_over(code, world, **accepted) == "killed"
    put_right(world)
    again = "`harmony failover --to toronto --max-data-loss 0`"
    assert f"a failover is under way; {again} finishes it" in accept(code, world)


def test_a_failover_whose_target_somebody_promoted_is_finished_by_the_same_command(code: Code) -> None:
    labels = labels_of(code, "crashed_ahead")
    for number in range(labels.index("montreal.fence: before"), labels.index("toronto.tell: after", 60)):
        world, accepted = scene(code, "crashed_ahead")
        world.at[number] = kill
        assert fail_over(code, world, **accepted) == "killed"
        if world.servers["replica"].roles and world.servers["replica"].roles["epoch"]:
            break
        world.promote(world.servers["replica"], by_hand=True)
        assert "bytes would be lost, and at most 0 are accepted" in fail_over(code, world, max_data_loss=0)
        assert fail_over(code, world, **accepted) == "done", labels[number]
        failed_over(code, world)
        rejoined(code, world)


def test_a_rejoin_stops_no_primary_that_no_failover_left_behind(code: Code) -> None:
    world = World(code.host, busy=False)
    assert outcome(code, world, "primary", 0) == "done"
    world.servers["primary"].crash()
    world.promote(world.servers["replica"], by_hand=True)
    world.not_fenced.add("primary")
    world.servers["primary"].start()
    assert "toronto accepts writes, no failover left it behind" in bring_back(code, world)
    assert len(world.primaries) == 2


# -- synchronous -------------------------------------------------------------------------------------------------------


def synchronous(code: Code) -> World:
    world = World(code.host)
    world.synchronous = True
    assert outcome(code, world, "primary", 0) == "done"
    return world


def flags(world: World) -> list[bool]:
    return [bool(server.roles and server.roles["synchronous"]) for server in world.servers.values()]


def test_a_pair_is_told_to_be_synchronous_once_it_is_and_not_to_be_before_it_is_not(code: Code) -> None:
    """The world checks at every point that commits wait wherever the standby was told so."""
    for first, then in ((True, False), (False, True)):
        plain = World(code.host)
        plain.synchronous = first
        assert outcome(code, plain, "primary", 0) == "done"
        begin = plain.count
        plain.synchronous = then
        assert outcome(code, plain, "primary", 0) == "done"
        assert flags(plain) == [then, then]
        for number in range(begin, plain.count):
            world = World(code.host)
            world.synchronous = first
            assert outcome(code, world, "primary", 0) == "done"
            world.synchronous = then
            world.at[number] = kill
            assert outcome(code, world, "primary", 0) == "killed"
            world.servers["replica"].linked = False
            world.commit()
            world.check()


def test_nothing_is_lost_by_a_failover_of_a_synchronous_pair(code: Code) -> None:
    world = synchronous(code)
    world.servers["replica"].linked = False
    for _ in range(3):
        world.commit()
    world.servers["primary"].crash()
    world.servers["primary"].unreachable = True
    assert fail_over(code, world, fenced="ada said so") == "done"
    assert "none that counts is lost" in " ".join(world.shown)
    assert "commits wait for nobody until montreal has rejoined" in " ".join(world.shown)
    assert world.lost == []
    assert flags(world)[1] is False
    put_right(world)
    assert bring_back(code, world) == "done"
    assert outcome(code, world, "replica", 1) == "done"
    assert flags(world) == [True, True]


def test_a_pair_stays_synchronous_where_the_standby_cannot_be_told_that_it_is_not(code: Code) -> None:
    world = synchronous(code)
    world.servers["replica"].unreachable = True
    world.synchronous = False
    said = outcome(code, world, "primary", 0)
    assert "commits are to wait for nobody, and toronto does not answer and cannot be told; nothing was changed" in said
    assert world.servers["primary"].waits_for == ["toronto"]
    world.synchronous = True
    assert "epoch 1 is wanted, and toronto does not answer" in outcome(code, world, "primary", 1)


def test_a_switchover_of_a_synchronous_pair_is_synchronous_from_its_first_commit_on(code: Code) -> None:
    world = synchronous(code)
    assert outcome(code, world, "replica", 1) == "done"
    finished_flags = flags(world)
    assert finished_flags == [True, True]
    plain = synchronous(code)
    begin = plain.count
    assert outcome(code, plain, "replica", 1) == "done"
    for number in range(begin, plain.count):
        world = synchronous(code)
        world.synchronous = False
        world.at[number] = kill
        assert outcome(code, world, "replica", 1) in {"killed", "done"}
        world.at.clear()
        world.synchronous = True
        ended = outcome(code, world, "replica", 1)
        assert ended == "done" or "given up" in ended, ended


def test_what_is_declared_asynchronous_meanwhile_is_told_before_commits_wait_for_nobody(code: Code) -> None:
    """The world checks at every point that commits wait wherever the standby was told so."""
    plain = synchronous(code)
    begin = plain.count
    assert outcome(code, plain, "replica", 1) == "done"
    for number in range(begin, plain.count):
        world = synchronous(code)
        world.at[number] = kill
        assert outcome(code, world, "replica", 1) == "killed"
        world.at.clear()
        world.synchronous = False
        ended = outcome(code, world, "replica", 1)
        assert ended == "done" or "given up" in ended, ended
        assert flags(world) == [False, False]


def test_a_member_that_was_told_of_a_switchover_alone_does_not_count_on_its_commits(code: Code) -> None:
    """The one that was to lead is cut off as it is told, and leads by a failover, where commits wait for nobody."""
    plain = synchronous(code)
    begin = plain.count
    assert outcome(code, plain, "replica", 1) == "done"
    told_alone = 0
    for number in range(begin, plain.count):
        world = synchronous(code)
        world.at[number] = DISTURBANCES["the target is cut off"]
        outcome(code, world, "replica", 1)
        world.at.clear()
        world.servers["primary"].unreachable, world.servers["replica"].unreachable = True, False
        one, other = (server.roles and server.roles["epoch"] for server in world.servers.values())
        told_alone += (one, other) == (1, 0)
        fail_over(code, world, fenced="ada said so", max_data_loss=1000, accept_unknown_loss=True)
        world.check()
    assert told_alone


def test_two_operators_do_not_undo_each_other(code: Code) -> None:
    """The second begins a switchover, and is killed, at any point of what the first does."""
    plain = World(code.host)
    plain.synchronous = True
    assert outcome(code, plain, "primary", 0) == "done"
    for number, label in enumerate(plain.labels):
        for stop in range(0, 100, 23):
            world = World(code.host)
            world.synchronous = True

            def meanwhile(world: World, label: str, stop: int = stop) -> None:
                world.at[world.count + stop] = kill
                outcome(code, world, "replica", 1, by="the second")
                world.dead = False
                for server in world.servers.values():
                    server.holder = "the first" if server.holder == "the first" else None

            world.at[number] = meanwhile
            outcome(code, world, "primary", 0, by="the first")
            world.at.clear()
            put_right(world)
            ended = [command(code, world, "replica") for _ in range(2)]
            assert ended[-1] == "done", (label, stop, ended)
            finished(code, world, "replica", known(code, world)["epoch"])
