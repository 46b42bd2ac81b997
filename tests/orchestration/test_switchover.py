"""The choice of the next step: over every combination of what can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Operation
from harmony_pulumi.errors import SiteError
from tests.orchestration.code import REAL, Code
from tests.orchestration.sites import NAMES, World, pair_site, roles
from tests.orchestration.test_roles import TOKEN, operation

EPOCH = 5
ANSWERING = {"running", "stopped"}


def facts(code: Code, name: str, kind: str, epoch: int = EPOCH - 1) -> Any:
    """Return the facts of a member, of its kind in words."""
    running = {"a primary": "primary", "a standby": "standby", "a standby that streams": "standby"}
    if kind in running:
        return code.switchover.Facts(name, "running", running[kind], "", False, epoch, kind.endswith("streams"))
    if kind.startswith("stopped"):
        _, left_as, end = kind.split(", ")
        return code.switchover.Facts(name, "stopped", "", left_as.replace("nothing", ""), end == "clean", epoch)
    return code.switchover.Facts(name, kind, "", "", False, epoch)


KINDS = [
    "a primary",
    "a standby",
    "a standby that streams",
    *(f"stopped, {was}, {end}" for was, end in product(("primary", "standby", "nothing"), ("clean", "not clean"))),
    "unreachable",
    "absent",
]
DEMOTED = "stopped, standby, clean"


def every_case(code: Code) -> Iterator[tuple[Operation, Any, Any, Any]]:
    """Yield every operation, source and target, with the step that is next; None where all is refused."""
    epochs = (0, EPOCH - 1, EPOCH, EPOCH + 1)
    sources = [facts(code, "montreal", kind, epoch) for kind, epoch in product(KINDS, epochs)]
    targets = [facts(code, "toronto", kind, epoch) for kind, epoch in product(KINDS, epochs)]
    for prepared, token, given_up in product((False, True), (None, TOKEN), ("", "it failed")):
        begun = operation(prepared=prepared, token=token, given_up=given_up)
        for source, target in product(sources, targets):
            try:
                step = code.switchover.next_step(begun, source, target)
            except SiteError:
                step = None
            yield begun, source, target, step


def test_no_step_is_unsafe_whatever_is_seen(code: Code) -> None:
    step_of = code.switchover.Step
    for begun, source, target, step in every_case(code):
        case = (step, begun, source, target)
        told = (source.epoch, target.epoch)
        if step is step_of.PROMOTE:
            assert told == (EPOCH, EPOCH), case
            assert "standby" in {source.role, source.left_as}, case
            assert not begun["given_up"], case
        if step in {step_of.WITHDRAW, step_of.REINSTATE, step_of.CLOSE, step_of.GIVE_UP, step_of.PREPARE}:
            assert target.role != "primary", case
            # One that somebody promoted, and that runs no more, takes no writes from one that does run.
            assert target.left_as != "primary" or source.role == "primary", case
        if step in {step_of.PREPARE, step_of.DEMOTE, step_of.VERIFY, step_of.REINSTATE}:
            assert target.left_as != "primary", case
        if step is step_of.ACCEPT:
            assert target.role == "primary", case
            assert target.epoch < EPOCH, case
            assert not begun["given_up"], case
            assert source.role == "standby" or (source.state == "stopped" and source.ended_cleanly), case
        if step in {step_of.REINSTATE, step_of.CLOSE}:
            assert begun["given_up"], case
            assert EPOCH not in told, case
        if step is step_of.GIVE_UP:
            assert not begun["given_up"], case
            assert source.state in ANSWERING, case
            assert target.epoch < EPOCH if target.state in ANSWERING else source.epoch < EPOCH, case
        if step in {step_of.DEMOTE, step_of.VERIFY}:
            assert target.role != "primary", case
            assert not begun["given_up"], case
            assert source.role == "primary" or (source.state == "stopped" and source.ended_cleanly), case
        if step is step_of.VERIFY:
            assert begun["token"], case
            assert source.left_as == "standby", case
        if step in {step_of.FOLLOW, step_of.SETTLE}:
            assert target.role == "primary", case
            assert source.role != "primary", case
            assert source.state in ANSWERING, case
            assert target.epoch >= EPOCH, case
            assert not begun["given_up"], case
        if step is step_of.SETTLE:
            assert source.streams, case
            assert source.epoch == EPOCH, case


def applied(code: Code, step: Any, begun: Operation, source: Any, target: Any) -> tuple[Operation, Any, Any]:
    """Return what a step that succeeds leaves."""
    source, target = code.switchover.after(step, begun, source, target)
    changes = {"prepare": {"prepared": True}, "demote": {"token": TOKEN}, "give-up": {"given_up": "it failed"}}
    begun = operation(**{**begun, **changes.get(str(step), {})})
    return begun, source, target


def walk(code: Code, begun: Operation, source: Any, target: Any) -> list[str]:
    """Return the steps from a state to the end."""
    found: list[str] = []
    while not found or found[-1] not in {"settle", "close"}:
        step = code.switchover.next_step(begun, source, target)
        assert str(step) not in found, (found, step)
        found.append(str(step))
        begun, source, target = applied(code, step, begun, source, target)
    return found


def test_every_state_from_which_a_step_leads_comes_to_an_end(code: Code) -> None:
    steps = list(code.switchover.Step)
    for begun, source, target, step in every_case(code):
        if step is not None:
            found = walk(code, begun, source, target)
            assert len(found) <= len(steps)
            if begun["given_up"]:
                assert found[-1] == "close"


def test_a_switchover_takes_its_steps_in_order(code: Code) -> None:
    whole = ["prepare", "demote", "verify", "promote", "follow", "settle"]
    begun, source, target = operation(), facts(code, "m", "a primary"), facts(code, "t", "a standby that streams")
    assert walk(code, begun, source, target) == whole
    back = {
        "prepare": ["close"],
        "demote": ["reinstate", "close"],
        "verify": ["withdraw", "reinstate", "close"],
        "promote": None,
    }
    for name in whole[:4]:
        step = code.switchover.Step(name)
        begun, source, target = applied(code, step, begun, source, target)
        given_up = operation(**{**begun, "given_up": "it failed"})
        if back[name]:
            assert walk(code, given_up, source, target) == back[name]
        else:
            with pytest.raises(SiteError, match="is a primary, and not by this switchover"):
                code.switchover.next_step(given_up, source, target)


# What was done, what is seen of source and target with what each was told; what is next, or what is said.
PREPARED = {"prepared": True}
STOPPED = {"prepared": True, "token": TOKEN}
GIVEN_UP = {"prepared": True, "given_up": "it failed"}
OLD, NEW, NEWER = EPOCH - 1, EPOCH, EPOCH + 1
SITUATIONS: list[tuple[dict[str, Any], tuple[str, int], tuple[str, int], str]] = [
    ({}, ("a primary", OLD), ("a standby", OLD), "prepare"),
    (PREPARED, ("a primary", OLD), ("a standby", OLD), "demote"),
    (PREPARED, ("stopped, primary, clean", OLD), ("a standby", OLD), "demote"),
    (PREPARED, (DEMOTED, OLD), ("a standby", OLD), "demote"),
    (STOPPED, ("stopped, primary, clean", OLD), ("a standby", OLD), "demote"),
    (STOPPED, (DEMOTED, OLD), ("a standby", OLD), "verify"),
    (STOPPED, (DEMOTED, NEW), ("a standby", OLD), "verify"),
    (STOPPED, (DEMOTED, NEW), ("a standby", NEW), "promote"),
    (STOPPED, (DEMOTED, NEW), ("stopped, primary, not clean", NEW), "promote"),
    (STOPPED, ("a standby", NEW), ("a standby", NEW), "promote"),
    (STOPPED, ("a primary", NEW), ("a standby", NEW), "montreal was to step down and is a running primary"),
    (
        STOPPED,
        ("stopped, primary, clean", NEW),
        ("a standby", NEW),
        "is stopped: it cannot be told whether toronto has all",
    ),
    (STOPPED, ("unreachable", NEW), ("a standby", NEW), "montreal was to step down and is unreachable: it"),
    (STOPPED, (DEMOTED, NEW), ("a primary", NEW), "follow"),
    (STOPPED, ("a standby", NEW), ("a primary", NEW), "follow"),
    (STOPPED, ("a standby that streams", NEW), ("a primary", NEW), "settle"),
    (STOPPED, ("a standby that streams", OLD), ("a primary", NEW), "follow"),
    (STOPPED, ("unreachable", 0), ("a primary", NEW), "montreal cannot follow it: it is unreachable"),
    (STOPPED, ("absent", 0), ("a primary", NEW), "montreal cannot follow it: it is absent"),
    (STOPPED, ("a primary", NEW), ("a primary", NEW), "both montreal and toronto are primaries"),
    (STOPPED, (DEMOTED, OLD), ("a primary", OLD), "accept"),
    (STOPPED, (DEMOTED, NEW), ("a primary", OLD), "accept"),
    (PREPARED, ("stopped, primary, clean", OLD), ("a primary", OLD), "accept"),
    (STOPPED, ("a standby", OLD), ("a primary", OLD), "accept"),
    (STOPPED, ("a standby that streams", NEW), ("a primary", OLD), "accept"),
    (
        STOPPED,
        ("stopped, standby, not clean", OLD),
        ("a primary", OLD),
        "somebody promoted it, and montreal is stopped, not cleanly. If toronto is to stay, run `harmony accept`",
    ),
    (STOPPED, ("unreachable", OLD), ("a primary", OLD), "toronto is a primary, and not by this switchover"),
    (PREPARED, ("a primary", OLD), ("stopped, primary, clean", OLD), "give-up"),
    (PREPARED, ("a primary", OLD), ("stopped, primary, clean", NEW), "toronto is stopped and was a primary, not by"),
    (STOPPED, (DEMOTED, OLD), ("stopped, primary, not clean", OLD), "start it, then run this again"),
    (GIVEN_UP, ("a primary", OLD), ("stopped, primary, clean", OLD), "close"),
    (GIVEN_UP, (DEMOTED, NEW), ("a primary", NEW), "toronto is a primary, and not by this switchover"),
    (GIVEN_UP, ("a primary", OLD), ("a standby", OLD), "close"),
    (GIVEN_UP, (DEMOTED, OLD), ("a standby", OLD), "reinstate"),
    (GIVEN_UP, ("a standby", OLD), ("a standby", OLD), "reinstate"),
    (GIVEN_UP, (DEMOTED, OLD), ("unreachable", 0), "reinstate"),
    (GIVEN_UP, (DEMOTED, NEW), ("a standby", OLD), "withdraw"),
    (GIVEN_UP, (DEMOTED, NEW), ("a standby", NEWER), "withdraw"),
    (GIVEN_UP, (DEMOTED, NEWER), ("a standby", NEWER), "reinstate"),
    (GIVEN_UP, (DEMOTED, OLD), ("stopped, primary, clean", OLD), "toronto is stopped and was a primary, not by this"),
    (PREPARED, ("a standby", OLD), ("a standby", OLD), "give-up"),
    (PREPARED, ("stopped, primary, not clean", OLD), ("a standby", OLD), "give-up"),
    (PREPARED, ("stopped, primary, not clean", OLD), ("unreachable", 0), "give-up"),
    (STOPPED, ("a standby", NEW), ("a standby", OLD), "give-up"),
    (STOPPED, ("a standby", NEW), ("unreachable", 0), "montreal was to step down and is a running standby"),
    (STOPPED, ("stopped, standby, not clean", NEW), ("unreachable", 0), "is stopped, not cleanly"),
    (PREPARED, ("unreachable", 0), ("a standby", OLD), "montreal was to step down and is unreachable: it"),
    (PREPARED, ("absent", 0), ("a standby", OLD), "montreal was to step down and is absent: it"),
    (PREPARED, ("a standby", OLD), ("stopped, primary, clean", OLD), "toronto is stopped and was a primary, not by"),
]


def test_what_is_next_in_every_situation_that_a_switchover_meets(code: Code) -> None:
    for done, source, target, expected in SITUATIONS:
        seen = facts(code, "montreal", *source), facts(code, "toronto", *target)
        try:
            found = str(code.switchover.next_step(operation(**done), *seen))
        except SiteError as error:
            found = str(error)
            assert " " in expected, (done, source, target, found)
        assert expected == found if " " not in expected else expected in found, (done, source, target, found)


def test_why_a_switchover_is_given_up_is_told(code: Code) -> None:
    stopped = facts(code, "montreal", "stopped, primary, not clean")
    for source, target, said in (
        (stopped, "a standby", "montreal was to step down and is stopped, not cleanly: it cannot be told whether"),
        (stopped, "stopped, primary, clean", "montreal was to step down and is stopped, not cleanly"),
        (facts(code, "montreal", "a primary"), "a standby", "montreal was to step down and is a running primary"),
        (facts(code, "montreal", "a primary"), "stopped, primary, clean", "toronto is stopped and was a primary: some"),
    ):
        assert code.switchover.unclear(source, facts(code, "toronto", target)).startswith(said)


def test_a_switchover_is_given_up_only_where_nobody_can_have_been_promoted(code: Code) -> None:
    for begun, source, target, _ in every_case(code):
        if "primary" in {target.role, target.left_as}:
            expected = False
        elif target.epoch < EPOCH if target.state in ANSWERING else source.epoch < EPOCH:
            expected = True  # The target was not told that it may lead.
        else:
            expected = target.left_as == "standby" and source.epoch >= EPOCH
        assert code.switchover.may_give_up(begun, source, target) is expected, (source, target)


def test_what_is_not_known_of_a_member_is_no_reason_to_give_up(code: Code) -> None:
    for source, target in (("unreachable", "a standby"), (DEMOTED, "unreachable"), ("unreachable", "unreachable")):
        unknown = [facts(code, "montreal", source, EPOCH), facts(code, "toronto", target, EPOCH)]
        silent = [replace(f, epoch=None) if f.state == "unreachable" else f for f in unknown]
        assert not code.switchover.may_give_up(operation(prepared=True, token=TOKEN), *silent)


def test_a_rejoin_is_never_given_up_and_a_failover_only_where_the_old_primary_answers(code: Code) -> None:
    for _, source, target, _ in every_case(code):
        assert not code.switchover.may_give_up(operation(kind="rejoin"), source, target)
        if source.state not in ANSWERING:
            assert not code.switchover.may_give_up(operation(kind="failover"), source, target)
    standby, silent = facts(code, "toronto", "a standby"), facts(code, "toronto", "unreachable", NEW)
    source = facts(code, "montreal", DEMOTED)
    assert code.switchover.may_give_up(operation(kind="failover"), source, standby)
    # In a failover, the source may have been out of reach as the target was told.
    assert not code.switchover.may_give_up(operation(kind="failover"), source, silent)
    assert code.switchover.may_give_up(operation(), source, silent)
    told = facts(code, "toronto", "a standby", NEW)
    assert not code.switchover.may_give_up(operation(kind="failover"), source, told)


def test_what_is_elected_is_not_told_to_one_that_does_not_answer(code: Code) -> None:
    for kind, told in ((DEMOTED, EPOCH), ("a standby", EPOCH), ("unreachable", None), ("absent", None)):
        seen = facts(code, "montreal", kind), facts(code, "toronto", "a standby")
        found = code.switchover.after(code.switchover.Step.ELECT, operation(kind="failover"), *seen)
        assert [each.epoch for each in found] == [told, EPOCH]


def test_what_a_step_leaves_is_what_a_site_shows_after_it(code: Code) -> None:
    """The runner does not look between two steps, so what it expects must be true."""
    world = World(code.host, busy=False, endpoints=())
    source, target = (pair_site(world, role) for role in ("primary", "replica"))
    begun = operation(epoch=1)

    def seen() -> tuple[Any, Any]:
        of = code.switchover.Facts.of
        return of(source.observe()), replace(of(target.observe()), streams=False)  # Of the target, nobody asks.

    def tell(epoch: int, active: str) -> None:
        for role, site in (("primary", source), ("replica", target)):
            site.tell(roles(epoch, active, role))

    acts = {
        "prepare": lambda: target.prepare("for_montreal"),
        "demote": source.demote,
        "verify": lambda: tell(1, "replica"),
        "promote": target.promote,
        "follow": lambda: source.follow(target.offer()),
        "accept": lambda: tell(1, "replica"),
    }
    with source.alone("a test"), target.alone("a test"):
        for name, act in acts.items():
            expected = code.switchover.after(code.switchover.Step(name), begun, *seen())
            act()
            assert seen() == expected, name
    world = World(code.host, busy=False)
    source, target = (pair_site(world, role) for role in ("primary", "replica"))
    with source.alone("a test"), target.alone("a test"):
        source.demote()
        for name, act in {"withdraw": lambda: tell(2, "primary"), "reinstate": source.reinstate}.items():
            expected = code.switchover.after(code.switchover.Step(name), begun, *seen())
            act()
            found = seen()
            assert (found[0].state, found[0].role, found[0].left_as, found[0].epoch) == (
                expected[0].state,
                expected[0].role,
                expected[0].left_as,
                expected[0].epoch,
            )
            assert found[1].epoch == expected[1].epoch


def test_what_a_member_was_told_is_unknown_of_one_that_does_not_answer(code: Code) -> None:
    world = World(code.host, busy=False)
    seen = pair_site(world, "primary").observe()
    of = code.switchover.Facts.of
    assert of({**seen, "roles": None}).epoch == 0
    assert of({**seen, "roles": None, "state": "unreachable"}).epoch is None
    assert of({**seen, "roles": roles(3, "primary", "primary"), "state": "unreachable"}).epoch == 3


def test_the_steps_of_a_plan_name_both_members() -> None:
    words = REAL.runner.steps_in_words(NAMES, "replica")
    assert words[0] == "switch over from montreal to toronto"
    assert words[-1].endswith("if anything fails before the promotion, montreal is back")
    assert REAL.runner.steps_in_words(NAMES, "primary")[0] == "switch over from toronto to montreal"
