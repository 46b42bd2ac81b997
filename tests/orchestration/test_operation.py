"""What an operation does beside its steps: endpoints, fencing by command, whom it tells, what it refuses to go on with.

Each of these has a part of `operation` or `members` that no run from one end to the other needs.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Observation
from harmony_pulumi.errors import SiteError
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.replication import Member
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
from tests.orchestration.sites import FAR, LONG_AGO, MemorySite, World, pair_site, terms
from tests.orchestration.sites import roles as told
from tests.orchestration.test_failover_runs import crashed, failed_over, left, scene
from tests.orchestration.test_failover_runs import left_behind as away_from_its_pair
from tests.orchestration.test_runner import fail, interrupt, kill, time_out
from tests.orchestration.test_switchover import operation

BOTH = ("kingston", "ottawa")


def at(
    label: str, act: Callable[[World, str], None], *, times: int = 1, after: int = 0
) -> Callable[[World, str], None]:
    """Return what has something happen whenever a point is passed, so many times, after it was passed some times."""
    left, before = [times], [after]

    def happens(world: World, passed: str) -> None:
        if passed == label and before[0]:
            before[0] -= 1
        elif passed == label and left[0]:
            left[0] -= 1
            act(world, passed)

    return happens


def settled(code: Code, **options: Any) -> World:
    """Return a pair that was told its roles."""
    world = World(code.host, busy=False, **options)
    assert outcome(code, world, "primary", 0) == "done"
    world.labels = []
    return world


# -- a pair inside another one -----------------------------------------------------------------------------------------


def inside(code: Code, epoch: int, active: str) -> World:
    """Return a pair that knows that it is the first one of another pair."""
    world, around = settled(code), told(epoch, active, pair="shop/prod/world")
    for role, server in world.servers.items():
        server.roles = told(0, "primary", role, outer=around)
    return world


def test_roles_move_only_in_a_pair_that_leads(code: Code) -> None:
    for epoch in (0, 1):
        world = inside(code, epoch, "primary")
        assert outcome(code, world, "replica", 1) == "done"
        assert all(server.roles and server.roles["outer"] for server in world.servers.values())
    # Before a role was moved around it, it is as it was deployed, whoever is named there.
    assert outcome(code, inside(code, 0, "replica"), "replica", 1) == "done"
    for act in (lambda w: outcome(code, w, "replica", 1), lambda w: fail_over(code, w), lambda w: bring_back(code, w)):
        ended = act(inside(code, 1, "replica"))
        assert "while it follows another cluster, as replica is active in shop/prod/world" in ended


class Several(MemorySite):
    """A member that is several servers."""

    def leading(self) -> Mapping[str, Any]:
        return {"name": self.server.name, "slot": self.server.slot}

    def gather(self, source: Mapping[str, Any]) -> None:
        """There is nobody to bring back."""


def test_a_pair_that_cannot_be_locked_is_not_passed_by_since_nobody_vouches_for_all_of_it(code: Code) -> None:
    for lockable in (False, True):
        world = settled(code)
        crashed(world)
        lost = world.servers["primary"]
        lost.lockable = lockable
        pair = pair_of(code, world)
        several = replace(pair.members["primary"], site=Several(world, lost))
        pair = replace(pair, members={**pair.members, "primary": several})
        journal = Journal("orders", "failover", world.shown.append)

        def fail_it_over(*, pair: Any = pair, journal: Journal = journal) -> None:
            accepted = terms(100, accept_unknown_loss=True, fenced="ada said so")
            code.runner.fail_over(pair, "replica", accepted, journal, by="ada")

        how = ended(fail_it_over)
        assert how == ("done" if lockable else "montreal: PostgreSQL 15 is needed, found none")
        assert ("montreal.tell: after" in world.labels) is lockable


class Ahead(MemorySite):
    """The server that the pair follows, in a world of its own, which toronto comes to follow."""

    def __init__(self, code: Code, pair: World) -> None:
        self.pair = pair
        world = World(code.host, busy=False)
        world.servers["primary"].slots = {"for_montreal"}
        world.servers["primary"].roles = told(1, "replica", "replica", pair="shop/prod/world")
        super().__init__(world, world.servers["primary"])

    def observe(self) -> Observation:
        found = super().observe()
        streams = {"name": "toronto", "state": "streaming", "sync_state": "async", "lag_bytes": 0, "lag_seconds": 0.0}
        return {**found, "replicas": [{**streams, "tls": "", "client": ""}] if self.is_followed else []}  # type: ignore[typeddict-item]

    @property
    def is_followed(self) -> bool:
        return self.pair.servers["replica"].running and "toronto.follow: after" in self.pair.labels


def following(code: Code) -> tuple[World, Ahead]:
    """Return a pair that follows, and the leader of the other one."""
    world = inside(code, 1, "replica")
    for server in world.servers.values():
        server.signal = server.in_recovery = True
    world.labels = []
    return world, Ahead(code, world)


def take_the_lead(code: Code, world: World, ahead: Ahead, **accepted: Any) -> str:
    """Do what `harmony failover` does in a pair that follows; return how it ended."""
    world.dead = False
    leader = Member("primary", ahead, {"name": "ottawa", "slot": "for_ottawa"})
    journal = Journal("orders", "failover", world.shown.append)
    act = code.runner.take_the_lead
    return ended(lambda: act(pair_of(code, world), leader, "replica", terms(**accepted), journal, by="an operator"))


def led_by_toronto(code: Code, world: World, ahead: Ahead, *, fenced: str = "") -> None:
    roles = world.servers["replica"].roles
    assert roles is not None
    assert (roles["epoch"], roles["active"], roles["operation"]) == (1, "replica", None)
    assert roles["outer"] == told(1, "replica", pair="shop/prod/world")
    assert roles["away"] is not None
    assert roles["away"]["member"] == "primary"
    assert roles["away"]["fenced"] == (fenced or "its site was asked, and it was stopped")
    assert not world.primaries
    assert ahead.is_followed
    assert ahead.server.slots == {"for_toronto"}
    assert "toronto.promote: before" not in world.labels


def test_another_server_leads_in_a_pair_that_follows_once_the_first_is_lost(code: Code) -> None:
    for cut_off, fenced in ((False, ""), (True, "ada said so")):

        def lost(*, cut_off: bool = cut_off) -> tuple[World, Ahead]:
            world, ahead = following(code)
            world.servers["primary"].crash()
            world.servers["primary"].unreachable = cut_off
            return world, ahead

        plain, ahead = lost()
        assert take_the_lead(code, plain, ahead, fenced=fenced) == "done"
        led_by_toronto(code, plain, ahead, fenced=fenced)
        first = plain.servers["primary"].roles
        assert first is not None
        assert first["active"] == ("primary" if cut_off else "replica")
        labels = list(plain.labels)
        assert ("montreal.fence: after" in labels) is not cut_off
        assert take_the_lead(code, plain, ahead, fenced=fenced) == "done"
        led_by_toronto(code, plain, ahead, fenced=fenced)
        for number, label in enumerate(labels):
            world, ahead = lost()
            world.at[world.count + number] = kill
            assert take_the_lead(code, world, ahead, fenced=fenced) == "killed", label
            assert take_the_lead(code, world, ahead, fenced=fenced) == "done", label
            led_by_toronto(code, world, ahead, fenced=fenced)


def test_a_leader_that_does_not_answer_in_a_pair_that_follows_is_fenced_by_what_is_declared_for_that(
    code: Code,
) -> None:
    world, ahead = following(code)
    world.servers["primary"].unreachable = True
    world.fence_commands = {"primary": ["sh", "-c", "exit 3"]}
    said = take_the_lead(code, world, ahead)
    assert said == "the fence_command of montreal, sh, did not succeed (3): it said nothing"
    roles = world.servers["replica"].roles
    assert roles is not None
    assert roles["active"] == "primary"
    world.fence_commands = {"primary": ["true"]}
    assert take_the_lead(code, world, ahead) == "done"
    assert any("montreal is to accept no writes" in line for line in world.shown)
    led_by_toronto(code, world, ahead, fenced="its fence_command, true, succeeded")


def test_a_leader_that_falls_silent_as_it_is_stopped_is_fenced_by_what_is_declared_for_that(code: Code) -> None:
    for declared, fenced, said in (
        ({"primary": ["true"]}, "", "its fence_command, true, succeeded"),
        ({}, "ada said so", "ada said so"),
        ({}, "", "add --fenced-by-me montreal"),
    ):
        world, ahead = following(code)
        world.servers["primary"].crash()
        world.fence_commands = declared

        def fall_silent(world: World, _label: str) -> None:
            world.servers["primary"].unreachable = True

        world.whenever = at("montreal.fence: before", fall_silent)
        if not (declared or fenced):
            assert said in take_the_lead(code, world, ahead)
            continue
        assert take_the_lead(code, world, ahead, fenced=fenced) == "done"
        led_by_toronto(code, world, ahead, fenced=said)


def test_a_leader_that_is_gone_from_a_pair_that_follows_needs_no_fencing(code: Code) -> None:
    world, ahead = following(code)
    observe = MemorySite.observe
    gone = {"state": "absent", "endpoint": "", "roles": None}

    def observed(site: MemorySite) -> Observation:
        found = observe(site)
        is_gone = site.server is world.servers["primary"]
        return Observation({**found, **(gone if is_gone else {})})  # type: ignore[typeddict-item]

    world.servers["primary"].unreachable = True
    world.fence_commands = {"primary": ["false"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemorySite, "observe", observed)
        assert take_the_lead(code, world, ahead) == "done"
    led_by_toronto(code, world, ahead)


def test_nobody_else_leads_in_a_pair_that_follows_where_something_stands_in_the_way(code: Code) -> None:
    world, ahead = following(code)
    world.servers["primary"].unreachable = True
    before = world.picture()
    assert "--fenced-by-me montreal" in take_the_lead(code, world, ahead)
    assert world.picture() == before
    world, ahead = following(code)
    assert "its roles cannot be moved while it runs" in take_the_lead(code, world, ahead)
    world.servers["primary"].crash()
    world.servers["replica"].crash()
    said = take_the_lead(code, world, ahead)
    assert "toronto is not to lead in it; nothing was touched\n  - toronto: stopped" in said
    for roles, words in (
        (None, "nobody of the other pair can be asked whether this one was made active meanwhile"),
        (told(2, "primary", "replica", pair="shop/prod/world"), "its server that is lost was the primary"),
    ):
        world, ahead = following(code)
        world.servers["primary"].crash()
        ahead.server.roles = roles
        before = world.picture()
        assert words in take_the_lead(code, world, ahead, fenced="ada said so")
        assert world.picture() == before
    world = inside(code, 1, "primary")
    assert "somebody else was moving its roles" in take_the_lead(code, world, Ahead(code, world))


def test_one_leads_in_a_pair_that_follows_also_where_who_is_followed_is_lost_and_what_it_keeps_is_said(
    code: Code,
) -> None:
    world, ahead = following(code)
    world.servers["primary"].crash()
    ahead.server.crash()
    assert take_the_lead(code, world, ahead) == "done"
    assert "ottawa does not run: `harmony rejoin` of the pair around has toronto follow it later" in world.shown[-1]
    assert "toronto.follow: before" not in world.labels
    ahead.server.start()
    ahead.world.whenever = at("montreal.forget: before", fail)
    assert take_the_lead(code, world, ahead) == "done"
    assert "keeps WAL for montreal: failed at montreal.forget: before" in world.shown[-1]
    assert ahead.is_followed


# -- endpoints ---------------------------------------------------------------------------------------------------------


def test_all_endpoints_are_paused_before_the_old_primary_stops_and_let_go_once_there_is_a_new_one(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    assert outcome(code, world, "replica", 1) == "done"
    served(world, "replica")
    passed = [label for label in world.labels if "observe" not in label and "record" not in label]
    first, last = passed.index("montreal.demote: before"), passed.index("toronto.promote: after")
    for name in BOTH:
        assert passed.index(f"{name}.pause: after") < first
        assert passed.index(f"{name}.point: before") > last
    held = passed[passed.index("kingston.pause: before") : last]
    assert "toronto.offer: before" not in held, "clients do not wait for what can be known before"


def test_one_endpoint_that_cannot_be_paused_ends_a_switchover_and_all_go_on(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    world.whenever = at("kingston.pause: before", fail)
    said = outcome(code, world, "replica", 1)
    assert "given up, and montreal is active: the endpoint on kingston: failed at kingston.pause: before" in said
    assert "ottawa.pause: after" in world.labels, "the others are asked all the same"
    served(world, "primary")
    assert world.servers["replica"].slots == set(), "what was made ready is taken back"
    finished(code, world, "primary", known(code, world)["epoch"])


def test_what_clients_are_led_to_is_known_before_there_is_no_way_back(code: Code) -> None:
    world = settled(code)
    world.whenever = at("toronto.offer: before", fail)
    assert "given up, and montreal is active: failed at toronto.offer: before" in outcome(code, world, "replica", 1)
    assert "kingston.pause: before" not in world.labels
    served(world, "primary")


def test_an_endpoint_that_cannot_be_told_of_a_switchover_is_told_as_it_is_settled(code: Code) -> None:
    for label in ("kingston.point: before", "kingston.resume: before"):
        world = settled(code, endpoints=BOTH)
        world.whenever = at(label, fail)
        assert outcome(code, world, "replica", 1) == "done"
        served(world, "replica")
        assert any(f"the endpoint on kingston: failed at {label}" in line for line in world.shown)


def test_a_stopped_endpoint_is_started_and_one_that_is_right_is_left_alone(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    world.endpoints["ottawa"].crash()
    assert outcome(code, world, "primary", 0) == "done"
    served(world, "primary")
    acts = [label for label in world.labels if label.startswith(BOTH) and "observe" not in label]
    assert acts == ["ottawa.resume: before", "ottawa.resume: after"]
    world.endpoints["ottawa"].paused, world.endpoints["kingston"].points_to = True, "replica"
    assert outcome(code, world, "primary", 0) == "done"
    served(world, "primary")


def test_that_an_endpoint_could_not_be_led_on_is_said_and_stops_nothing(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    world.endpoints["ottawa"].points_to = "replica"
    world.whenever = at("ottawa.point: before", fail)
    assert outcome(code, world, "primary", 0) == "done"
    assert "orders: the endpoint on ottawa: failed at ottawa.point: before" in world.shown
    world = settled(code, endpoints=BOTH)
    crashed(world)
    world.whenever = at("ottawa.point: before", fail)
    assert fail_over(code, world, fenced="ada said so") == "done"
    assert "orders: the endpoint on ottawa: failed at ottawa.point: before" in world.shown
    served(world, "replica")


def test_clients_are_led_to_one_that_has_taken_over_before_the_other_follows(code: Code) -> None:
    world = settled(code)
    world.whenever = at("toronto.promote: after", kill)
    assert outcome(code, world, "replica", 1) == "killed"
    world.whenever = None
    assert outcome(code, world, "replica", 1) == "done"
    assert world.labels.index("kingston.resume: after") < world.labels.index("montreal.follow: before")


def test_an_endpoint_whose_address_is_written_in_another_way_is_left_alone(code: Code) -> None:
    world = settled(code)
    pair, journal = pair_of(code, world), Journal("orders", "a test", world.shown.append)
    endpoint = pair.endpoints["kingston"]
    seen = {**endpoint.observe(), "points_to": "[0:0:0:0:0:0:0:1]:5432"}
    endpoint.observe = lambda: seen
    site = pair.members["primary"].site
    offer = {**site.offer(), "endpoint": {"host": "::1", "port": 5432.0}}
    site.offer = lambda: offer
    code.members.serve(pair, "primary", journal)
    assert "kingston.point: before" not in world.labels


def test_a_pair_without_endpoints_is_asked_for_nothing_that_they_need(code: Code) -> None:
    world = settled(code, endpoints=())
    crashed(world)
    assert fail_over(code, world) == "done"
    failed_over(code, world)
    world.come_to_rest()
    pair = pair_of(code, world)
    code.members.serve(pair, "replica", Journal("orders", "a test", world.shown.append))
    assert not [label for label in world.labels if ".offer" in label]


def test_every_endpoint_leads_away_from_the_old_primary_before_another_takes_over(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    crashed(world)
    world.whenever = at("ottawa.point: before", fail)
    said = fail_over(code, world)
    assert "the endpoint on ottawa: failed at ottawa.point: before; it may lead clients to montreal" in said
    assert "add --fenced-by-me montreal" in said
    assert "toronto.promote: before" not in world.labels
    assert world.endpoints["kingston"].points_to == "replica"


def test_a_failover_ordered_once_more_leads_an_endpoint_on_that_could_not_be_told(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    world.servers["primary"].crash()
    world.servers["primary"].unreachable = world.endpoints["kingston"].unreachable = True
    accepted: dict[str, Any] = {"accept_unknown_loss": True, "fenced": "ada said so"}
    assert fail_over(code, world, **accepted) == "done"
    world.endpoints["kingston"].unreachable = False
    assert world.endpoints["kingston"].points_to == "primary"
    for _ in range(2):
        world.labels = []
        assert fail_over(code, world) == "done", "what is done already asks for nothing to be accepted"
        served(world, "replica")
        assert "toronto.promote: before" not in world.labels
    assert "kingston.point: before" not in world.labels, "it leads there already"

    # After the rejoin, too, and whether the other one runs or not.
    rejoin_and_forget(code, world)
    for crashed_too in (False, True):
        world.endpoints["ottawa"].points_to = "primary"
        if crashed_too:
            world.servers["primary"].crash()
        assert fail_over(code, world) == "done"
        served(world, "replica")


def rejoin_and_forget(code: Code, world: World) -> None:
    world.mend()
    world.servers["primary"].unreachable = False
    assert bring_back(code, world) == "done"
    assert outcome(code, world, "replica", known(code, world)["epoch"]) == "done"
    assert known(code, world)["away"] is None


def test_an_endpoint_is_led_on_though_the_other_member_does_not_stream(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    world.servers["replica"].crash()
    world.endpoints["ottawa"].points_to = "replica"
    assert "toronto streaming: not within" in outcome(code, world, "primary", 0)
    served(world, "primary")


def test_an_endpoint_is_led_on_once_a_member_that_did_not_answer_streams(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    world.servers["replica"].unreachable = True
    world.endpoints["ottawa"].points_to = "replica"

    def come_back(world: World, _label: str) -> None:
        assert world.endpoints["ottawa"].points_to == "replica", "it may have been made active meanwhile"
        world.servers["replica"].unreachable = False

    world.whenever = at("montreal.require_synchronous: before", come_back)
    assert outcome(code, world, "primary", 0) == "done"
    served(world, "primary")


def test_no_endpoint_is_led_on_where_another_may_have_taken_over_unnoticed(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    world.servers["replica"].unreachable = True
    world.endpoints["ottawa"].points_to = "replica"
    assert fail_over(code, world, "primary") == "done"
    assert world.endpoints["ottawa"].points_to == "replica"
    assert "the endpoints are left as they lead: toronto does not answer" in world.shown[-1]
    assert world.shown[-1].endswith("then run this again with --fenced-by-me toronto")
    assert fail_over(code, world, "primary", fenced="--fenced-by-me toronto") == "done"
    served(world, "primary")


def test_to_accept_what_is_known_already_leads_an_endpoint_on(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    world.endpoints["ottawa"].points_to = "replica"
    assert accept(code, world) == "done"
    served(world, "primary")


def test_nobody_is_led_to_one_that_somebody_promoted_after_the_operation_was_given_up(code: Code) -> None:
    world = settled(code)

    def give_up_and_die(world: World, label: str) -> None:
        world.whenever = at("montreal.reinstate: before", kill)
        fail(world, label)

    world.whenever = at("toronto.verify: before", give_up_and_die)
    assert outcome(code, world, "replica", 1) == "killed"
    assert known(code, world)["operation"]["given_up"]
    world.whenever = None
    world.promote(world.servers["replica"], by_hand=True)
    assert "somebody promoted it" in outcome(code, world, "replica", 1)
    assert world.endpoints["kingston"].points_to == "primary"


# -- fencing -----------------------------------------------------------------------------------------------------------


class Alarm(BaseException):
    """What a signal raises."""


@contextmanager
def alarmed() -> Generator[None]:
    def ring(_number: int, _frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_fence_command_says_how_it_ended_and_what_it_said(code: Code) -> None:
    run = code.operation._run_here
    assert run(["sh", "-c", "echo off; echo ' now' >&2"]) == (0, "off\n now")
    assert run(["sh", "-c", "exit 3"]) == (3, "it said nothing")
    assert run(["/no/such/program"]) == ("No such file or directory", "")

    def refuse(*_: object, **__: object) -> None:
        raise OSError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code.operation.subprocess, "Popen", refuse)
        assert run(["true"]) == ("not started", "")


def test_a_fence_command_that_takes_too_long_ends_with_all_that_it_started(code: Code) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code.operation, "_FENCE_COMMAND", 0.2)
        assert code.operation._run_here(["sh", "-c", "sleep 600 & sleep 600"]) == ("not within 0.2 s", "")


def test_an_interrupt_of_a_fence_command_is_one_of_the_operation(code: Code) -> None:
    with pytest.raises(Alarm), alarmed():
        code.operation._run_here(["sleep", "600"])


def test_how_the_old_primary_was_fenced_is_kept_as_it_is_left_behind(code: Code) -> None:
    for name, fenced in (("crashed", "its site was asked, and it was stopped"), ("gone", "ada said so")):
        world, accepted = scene(code, name)
        assert fail_over(code, world, **accepted) == "done"
        assert left(world)["fenced"] == fenced


def test_a_rejoin_says_where_what_the_member_alone_had_is(code: Code) -> None:
    for state, said in (
        ("as_it_is", "what montreal alone has is in diverged-1"),
        ("torn", "what montreal alone has is in diverged-1"),
    ):
        world = away_from_its_pair(code, state)
        assert bring_back(code, world) == "done"
        assert any(said in line for line in world.shown), world.shown
        assert not any("has nothing alone" in line for line in world.shown)


def test_one_that_is_cut_off_as_it_is_to_be_fenced_is_not_taken_for_fenced(code: Code) -> None:
    world = settled(code)
    accepted = crashed(world)

    def cut_off(world: World, label: str) -> None:
        world.servers["primary"].unreachable = True

    world.whenever = at("montreal.fence: before", cut_off)
    said = fail_over(code, world, **accepted, accept_unknown_loss=True)
    assert "montreal does not answer, and may accept writes" in said
    assert "then add --fenced-by-me montreal" in said
    assert not world.servers["replica"].leads


def test_one_that_answers_again_meanwhile_is_not_gone_on_without(code: Code) -> None:
    def answers(world: World, label: str) -> None:
        world.servers["primary"].unreachable = False

    # As it is locked, or once its fence_command has succeeded, and that is told.
    for name, label, passed in (("gone", "toronto.alone: after", 0), ("fence_command_lies", "toronto.tell: after", 1)):
        world, accepted = scene(code, name, busy=False)
        world.whenever = at(label, answers, after=passed)
        said = fail_over(code, world, **accepted)
        assert "orders: montreal did not answer a moment ago, and does now; run this again" in said
        assert not world.servers["replica"].leads


# -- interrupted, or out of reach --------------------------------------------------------------------------------------


def test_an_interrupt_of_a_rejoin_leaves_it_open(code: Code) -> None:
    world = away_from_its_pair(code, "as_it_is")
    world.whenever = at("montreal.rewind: before", interrupt)
    assert bring_back(code, world) == "interrupted"
    assert known(code, world)["operation"]["kind"] == "rejoin"
    assert bring_back(code, world) == "done"
    finished(code, world, "replica", 1)


def test_an_interrupt_as_a_switchover_is_taken_back_leaves_it_open(code: Code) -> None:
    world = settled(code)

    def give_up_and_be_interrupted(world: World, label: str) -> None:
        world.whenever = at("montreal.reinstate: before", interrupt)
        fail(world, label)

    world.whenever = at("toronto.verify: before", give_up_and_be_interrupted)
    assert outcome(code, world, "replica", 1) == "interrupted"
    assert not any("there is no way back" in line for line in world.shown)
    assert "given up" in outcome(code, world, "replica", 1)
    served(world, "primary")


def test_one_that_does_not_answer_is_not_copied_for_that(code: Code) -> None:
    for act in ("archive", "rewind"):
        world = away_from_its_pair(code, "as_it_is")
        world.whenever = at(f"montreal.{act}: before", time_out)
        assert bring_back(code, world) == f"no answer at montreal.{act}: before"
        assert bring_back(code, world) == "done"
        finished(code, world, "replica", 1)
        # One whose rewind was begun may be half-way, and cannot be told from one that is not.
        assert ("montreal.clone: before" in world.labels) == (act == "rewind")


def test_an_interrupt_before_the_point_of_no_return_is_why_a_switchover_is_given_up(code: Code) -> None:
    world = settled(code)
    world.whenever = at("montreal.demote: before", interrupt)
    assert outcome(code, world, "replica", 1).endswith("montreal is active: interrupted")
    assert "orders: giving up at the step demote: interrupted" in world.shown


def test_a_second_interrupt_leaves_open_what_has_no_way_back(code: Code) -> None:
    world = settled(code)
    world.whenever = at("toronto.promote: before", interrupt, times=2)
    assert outcome(code, world, "replica", 1) == "interrupted"
    assert outcome(code, world, "replica", 1) == "done"
    finished(code, world, "replica", 1)


def cut_off_toronto(world: World, label: str) -> None:
    world.servers["replica"].unreachable = True


def as_it_is_to_be_active(act: Callable[[World, str], None]) -> Callable[[World, str], None]:
    """Return what has something happen as the target is told that it is to be active."""

    def arm(world: World, label: str) -> None:
        world.whenever = at("toronto.tell: before", act)

    return at("toronto.verify: after", arm)


def test_one_that_may_have_been_told_to_lead_and_does_not_answer_ends_the_run(code: Code) -> None:
    world = settled(code)
    world.whenever = as_it_is_to_be_active(cut_off_toronto)
    assert outcome(code, world, "replica", 1) == "toronto does not answer"
    assert "toronto.promote: before" not in world.labels
    world.mend()
    assert outcome(code, world, "replica", 1) == "done"
    finished(code, world, "replica", 1)


def test_a_second_interrupt_is_obeyed_even_where_all_was_told_meanwhile(code: Code) -> None:
    world = settled(code)

    def interrupted_again(world: World, label: str) -> None:
        if label == "toronto.verify: before":
            world.servers["replica"].unreachable = False
        if label == "toronto.tell: after":
            interrupt(world, label)

    def interrupted(world: World, label: str) -> None:
        cut_off_toronto(world, label)
        world.whenever = interrupted_again
        interrupt(world, label)

    world.whenever = as_it_is_to_be_active(interrupted)
    assert outcome(code, world, "replica", 1) == "interrupted"
    assert any("interrupted where there is no way back: going on" in line for line in world.shown)
    assert "toronto.promote: before" not in world.labels
    world.whenever = None
    assert outcome(code, world, "replica", 1) == "done"
    finished(code, world, "replica", 1)


def test_a_switchover_has_one_follow_once_and_a_rejoin_until_it_streams(code: Code) -> None:
    def cut(world: World, label: str) -> None:
        world.servers["primary"].linked = False

    world = settled(code)
    world.whenever = at("montreal.follow: before", cut)
    assert "montreal streaming: not within" in outcome(code, world, "replica", 1)
    assert world.labels.count("montreal.follow: before") == 1


def test_what_is_settled_is_said_with_who_is_to_rejoin(code: Code) -> None:
    for name, said in ((None, "toronto is active at epoch 1"), ("crashed", "epoch 1; montreal is to rejoin")):
        world, _ = scene(code, name) if name else (settled(code), {})
        assert (fail_over(code, world) if name else outcome(code, world, "replica", 1)) == "done"
        assert any(line.endswith(said) for line in world.shown), world.shown


def test_clients_are_led_to_one_that_was_to_take_over_only_if_it_has(code: Code) -> None:
    world = settled(code)
    world.whenever = at("toronto.promote: before", kill)
    assert outcome(code, world, "replica", 1) == "killed"
    world.labels = []
    assert outcome(code, world, "replica", 1) == "done"
    assert world.labels.index("kingston.point: before") > world.labels.index("toronto.promote: after")


def test_clients_are_not_led_to_one_that_somebody_promoted_unless_it_has_everything(code: Code) -> None:
    world = settled(code)
    world.whenever = at("toronto.verify: before", kill)
    assert outcome(code, world, "replica", 1) == "killed"
    world.promote(world.servers["replica"], by_hand=True)
    for happens, said in ((fail, "cannot be read: failed at montreal.history: before"), (time_out, "")):
        world.whenever = at("montreal.history: before", happens)
        ended = outcome(code, world, "replica", 1)
        # One that did not answer is asked again, and is no reason to decide.
        assert said in ended if said else ended == "no answer at montreal.history: before"
        assert world.endpoints["kingston"].points_to == "primary"
    assert outcome(code, world, "replica", 1) == "done"
    finished(code, world, "replica", 1)


def given_up_and_promoted_by_hand(code: Code) -> World:
    """Return a pair whose switchover was cut off as it was given up, and whose target somebody promoted since."""
    world = settled(code)
    target = world.servers["replica"]

    def die_as_it_is_given_up(world: World, label: str) -> None:
        operation = target.roles and target.roles["operation"]
        if operation and operation["given_up"]:
            kill(world, label)

    def crash(world: World, label: str) -> None:
        target.crash()
        world.whenever = die_as_it_is_given_up
        fail(world, label)

    world.whenever = at("toronto.promote: before", crash)
    assert outcome(code, world, "replica", 1) == "killed"
    world.whenever = None
    target.start()
    world.promote(target, by_hand=True)
    return world


def test_clients_are_not_led_to_one_that_was_told_to_lead_before_that_was_given_up(code: Code) -> None:
    world = given_up_and_promoted_by_hand(code)
    assert "somebody promoted it" in outcome(code, world, "replica", 1)
    assert world.endpoints["kingston"].points_to == "primary"


def test_one_that_was_copied_and_does_not_stream_is_not_copied_again(code: Code) -> None:
    world = away_from_its_pair(code, "without_hints")

    def diverges(world: World, label: str) -> None:
        if label == "montreal.follow: before":
            world.servers["primary"].wal[-1] = (1, "what its source has not")

    world.whenever = diverges
    assert "montreal streaming from toronto: not within" in bring_back(code, world)
    assert world.labels.count("montreal.clone: after") == 1


def test_a_certificate_that_has_expired_is_named_where_its_member_cannot_be_reached(code: Code) -> None:
    world = away_from_its_pair(code, "as_it_is")

    def expire(world: World, label: str) -> None:
        world.servers["replica"].expires = LONG_AGO
        time_out(world, label)

    world.whenever = at("montreal.rewind: before", expire)
    said = bring_back(code, world)
    assert said.startswith("no answer at montreal.rewind: before. certificate: 'server' of toronto expired"), said

    def no_room(world: World, label: str) -> None:
        world.servers["replica"].expires, world.servers["primary"].hindered = LONG_AGO, True

    def no_link(world: World, label: str) -> None:
        world.servers["replica"].expires, world.servers["primary"].linked = LONG_AGO, False

    for label, happens in (("montreal.rewind: before", no_room), ("montreal.follow: before", no_link)):
        world = away_from_its_pair(code, "as_it_is")
        world.whenever = at(label, happens)
        assert "certificate: 'server' of toronto expired" in bring_back(code, world)


def test_the_leader_writes_a_checkpoint_before_another_is_rewound(code: Code) -> None:
    """A rewind looks for the timeline of the leader in its last one."""
    world = away_from_its_pair(code, "as_it_is")
    assert bring_back(code, world) == "done"
    assert world.labels.index("toronto.ease: after") < world.labels.index("montreal.rewind: before")


# -- the token, and whom an operation tells ----------------------------------------------------------------------------


def test_one_that_was_a_primary_once_more_by_hand_is_not_left_for_the_other(code: Code) -> None:
    world = settled(code)
    world.whenever = at("toronto.promote: before", kill)
    assert outcome(code, world, "replica", 1) == "killed"
    source = world.servers["primary"]
    source.signal = False
    source.start()
    source.write("what somebody wrote by hand")
    world.stop(source)
    source.signal = True
    said = outcome(code, world, "replica", 1)
    assert "orders: the token that was kept is not that of montreal: expected {" in said
    assert not world.servers["replica"].leads


def test_a_switchover_that_is_withdrawn_says_of_nobody_that_commits_wait_for_it(code: Code) -> None:
    world = settled(code)
    world.synchronous = True
    assert outcome(code, world, "primary", 0) == "done"

    def fail_to_tell_the_second(world: World, label: str) -> None:
        world.whenever = at("toronto.tell: before", fail)

    world.whenever = at("toronto.verify: after", fail_to_tell_the_second)
    said = outcome(code, world, "replica", 1)
    assert "given up, and montreal is active" in said, said
    assert known(code, world)["epoch"] == 2
    assert [server.roles and server.roles["synchronous"] for server in world.servers.values()] == [False, False]
    assert outcome(code, world, "primary", 2) == "done"
    finished(code, world, "primary", 2)


def test_one_that_was_started_as_a_standby_meanwhile_has_written_nothing(code: Code) -> None:
    world = settled(code)
    world.whenever = at("toronto.promote: before", kill)
    assert outcome(code, world, "replica", 1) == "killed"
    world.servers["primary"].start()
    assert outcome(code, world, "replica", 1) == "done"
    finished(code, world, "replica", 1)


def test_a_failover_alone_goes_on_without_telling_one_that_does_not_answer(code: Code) -> None:
    world = settled(code)
    world.servers["primary"].unreachable = True
    seen = {role: pair_site(world, role).observe() for role in ("primary", "replica")}
    known_to = {role: told(0, "primary", role) for role in seen}

    def tells(kind: str, seen: Any, pair: Any = None) -> list[str]:
        begun = operation(kind=kind, source="primary", target="replica")
        journal = Journal("orders", kind, world.shown.append)
        run = code.operation.Run(pair or pair_of(code, world), journal, begun, known_to)
        run.facts = run._facts(seen)
        return run._to_tell()

    assert tells("switchover", seen) == tells("rejoin", seen) == [*seen]
    assert tells("failover", seen) == ["replica"]
    # Whoever is to lead is always told: if that fails, so does the failover.
    assert tells("failover", {**seen, "replica": seen["primary"]}) == ["replica"]
    assert tells("failover", {**seen, "primary": seen["replica"]}) == [*seen]
    # Of a pair, another server may answer than the one that leads there.
    pair = pair_of(code, world)
    pair.members["primary"].site.leading = pair.members["primary"].site.gather = dict
    assert tells("failover", seen, pair) == [*seen]


# -- what a failover would lose ----------------------------------------------------------------------------------------


def lost(code: Code, world: World, **changes: Any) -> Any:
    """Return what a failover to the replica would lose, with some of what is seen of that changed."""
    pair = pair_of(code, world)
    seen = code.members.look(pair)
    seen["replica"] = {**seen["replica"], **changes}
    return code.members.estimated_loss(pair, "replica", seen)


def test_what_a_standby_has_received_counts_and_what_it_has_replayed_only_without_that(code: Code) -> None:
    world = settled(code)
    for number in range(4):
        world.servers["replica"].replays = number < 1
        world.servers["replica"].linked = number < 3
        world.commit()
        world.go_on()
    replica = world.servers["replica"]
    assert (len(world.servers["primary"].wal), len(replica.wal), replica.replayed) == (5, 4, 2)
    world.servers["primary"].crash()
    assert lost(code, world).transactions == 1
    assert lost(code, world, received="").transactions == 3


def test_what_was_written_is_read_only_for_one_that_could_take_over(code: Code) -> None:
    world = settled(code)
    world.servers["primary"].crash()
    world.servers["replica"].crash()
    assert lost(code, world).transactions is None
    assert not [label for label in world.labels if "history" in label or "beyond" in label]


def test_what_a_failover_loses_is_known_of_a_pair_that_was_told_nothing(code: Code) -> None:
    world = World(code.host, busy=False)
    world.servers["replica"].linked = False
    world.commit()
    world.servers["primary"].crash()
    found = lost(code, world)
    assert (found.transactions, found.unread) == (1, "")


def test_one_whose_connection_ended_where_a_timeline_begins_has_come_to_that_one(code: Code) -> None:
    world = settled(code)
    assert outcome(code, world, "replica", 1) == "done"
    assert outcome(code, world, "primary", 2) == "done"
    pair = pair_of(code, world)
    seen = code.members.look(pair)
    mine = pair.members["primary"].site.history()
    pair.members["replica"].site.history = lambda: [*mine[:-2], {**mine[-2], "lsn": ""}]
    seen["replica"]["received"] = mine[-2]["lsn"]
    assert code.members._shared(pair, "primary", "replica", seen) == {"timeline": 3, "lsn": mine[-2]["lsn"]}


def left_behind(world: World, member: str, fork: str) -> None:
    """Have the sites know that a failover left a member behind."""
    away = {"member": member, "timeline": 1, "fork": fork, "fenced": "", "since": FAR}
    for role, server in world.servers.items():
        server.roles = told(1, "replica", role, away=away)


def test_one_that_was_left_behind_shares_what_was_written_before_and_nothing_that_has_the_same_number(
    code: Code,
) -> None:
    world = settled(code)
    crashed(world)
    assert fail_over(code, world) == "done"
    world.commit()
    old, new = world.servers["primary"], world.servers["replica"]
    # Somebody promoted the old primary by hand, and made a standby of it again.
    fork = next(number for number, record in enumerate(new.wal) if record[0] == 2)
    old.wal = [*new.wal[:fork], *((2, f"what {old.name} wrote by hand") for _ in new.wal[fork:])]
    old.start()
    new.crash()
    pair = pair_of(code, world)
    assert code.members.estimated_loss(pair, "primary", code.members.look(pair)).transactions == 1


def test_where_another_was_left_behind_says_nothing_of_what_a_member_has(code: Code) -> None:
    world = settled(code)
    world.commit()
    world.go_on()
    world.servers["replica"].linked = False
    world.commit()
    world.servers["primary"].crash()
    left_behind(world, "primary", "0/1")
    assert lost(code, world).transactions == 1


def test_that_commits_waited_counts_only_for_those_of_the_member_that_was_active(code: Code) -> None:
    for active, unknown in (("primary", False), ("replica", True)):
        world = settled(code)
        world.servers["primary"].waits_for = ["toronto"]
        for role, server in world.servers.items():
            server.roles = told(1, active, role, synchronous=True)
        world.servers["primary"].unreachable = True
        assert lost(code, world).unknown == unknown


def test_two_endpoints_that_fail_are_both_named(code: Code) -> None:
    world = settled(code, endpoints=BOTH)
    said: list[str] = []

    def act(endpoint: Any) -> None:
        said.append(endpoint.endpoint.name)
        raise SiteError("it is on fire")

    with pytest.raises(SiteError, match="the endpoint on kingston: it is on fire; the endpoint on ottawa: it is on f"):
        code.members.each_endpoint(pair_of(code, world), act)
    assert said == [*BOTH]
