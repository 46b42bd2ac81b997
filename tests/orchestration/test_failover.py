"""What a failover may lose, what it depends on, and the choice of its next step."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Beyond, Observation, Roles
from harmony_pulumi.errors import SiteError
from tests.orchestration.code import Code
from tests.orchestration.sites import MemoryEndpoint, World, pair_site, roles, terms
from tests.orchestration.test_roles import operation
from tests.orchestration.test_switchover import EPOCH, KINDS, NEW, NEWER, OLD, facts

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
FENCED = terms(fenced="ada said so")


def seen(member: str, **changes: Any) -> Observation:
    found: dict[str, Any] = {**pair_site(World(busy=False), member).observe(), **changes}
    return Observation(**found)  # type: ignore[typeddict-item]


def standby(**changes: Any) -> Observation:
    return seen("replica", **{"received": "0/100", "heard_lsn": "", "heard_at": "2030-01-01T11:59:30+00:00", **changes})


def beyond(size: int, transactions: int) -> Beyond:
    one: Any = {"xid": 7, "committed_at": "", "lsn": "0/1", "changes": {}}
    return {"bytes": size, "transactions": [one] * transactions}


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_an_lsn_is_a_number_of_bytes(code: Code) -> None:
    assert code.failover.lsn_bytes("0/0") == 0
    assert code.failover.lsn_bytes("0/1A") == 26
    assert code.failover.lsn_bytes("2/A") == 2 * 2**32 + 10
    assert code.failover.lsn_bytes("1/00000000") > code.failover.lsn_bytes("0/FFFFFFFF")


def test_what_could_be_read_is_what_is_lost_and_nothing_is_unknown(code: Code) -> None:
    for synchronous in (False, True):
        found = code.failover.loss(standby(heard_lsn="0/900"), synchronous=synchronous, beyond=beyond(48, 3))
        assert (found.bytes, found.transactions, found.unknown) == (48, 3, False)
        assert found.words("m", "t") == "48 bytes of WAL, 3 transactions, that t has not received"


def test_what_could_not_be_read_is_known_up_to_where_the_source_was_heard_of(code: Code) -> None:
    for heard, missing in (("0/140", 0x40), ("0/100", 0), ("0/80", 0), ("", 0)):
        found = code.failover.loss(standby(heard_lsn=heard), synchronous=False, beyond=None)
        assert (found.bytes, found.transactions, found.unknown) == (missing, None, True)
        said = found.words("m", "t")
        assert said == (
            f"{missing} bytes of WAL that t is known to lack, and whatever m committed in the 30 s since it was last "
            f"heard of"
        )
    nothing = code.failover.loss(standby(received="", heard_at=""), synchronous=False, beyond=None)
    assert nothing.words("m", "t").endswith("since it was last heard of, nobody knows when")


def test_since_when_nothing_was_heard_is_told_by_the_clock_that_told_when(code: Code) -> None:
    for clock, end in (
        ("2030-01-01T11:59:30+00:00", " committed in the 0 s since it was last heard of"),
        ("2030-01-01T13:00:00+01:00", " committed in the 30 s since it was last heard of"),
        (
            "2030-01-01T10:59:30+00:00",
            ", nobody knows when: the clock of t was 3600 s later then than it is now",
        ),
        ("", " committed since it was last heard of, nobody knows when"),
    ):
        found = code.failover.loss(standby(clock=clock), synchronous=False, beyond=None)
        assert found.words("m", "t").endswith(end)
    read = code.failover.loss(standby(), synchronous=False, beyond=beyond(48, 3))
    assert (read.heard_at, read.clock) == ("2030-01-01T11:59:30+00:00", "2030-01-01T12:00:00+00:00")


def test_where_commits_waited_nothing_is_unknown(code: Code) -> None:
    found = code.failover.loss(standby(heard_lsn="0/140"), synchronous=True, beyond=None)
    assert (found.bytes, found.unknown) == (0x40, False)
    assert found.words("m", "t").endswith("; commits waited for t, so none that counts is lost")


def test_a_loss_is_accepted_up_to_its_bound_and_unknown_only_if_that_was_said(code: Code) -> None:
    for size, most, unknown, accepted in product((0, 1, 16), (0, 1, 15, 16), (False, True), (False, True)):
        found = code.failover.Loss(size, None, "", "", unknown=unknown)
        said = code.failover.loss_problem(found, terms(most, accept_unknown_loss=accepted))
        if size > most:
            assert said == f"{size} bytes would be lost, and at most {most} are accepted (--max-data-loss)"
        elif unknown and not accepted:
            assert said == (
                "what would be lost is not known in full: read the old primary's WAL, or add --accept-unknown-loss"
            )
        else:
            assert said is None


# -- what it depends on ------------------------------------------------------------------------------------------------


def checks(
    code: Code, source: Observation, target: Observation | None = None, *, can_fence: bool = False, **accepted: Any
) -> dict[str, tuple[str, str]]:
    new = target or standby()
    found = code.failover.loss(new, synchronous=False, beyond=beyond(16, 1))
    made = code.failover.checks(source, new, found, terms(**accepted), can_fence=can_fence, now=NOW)
    return {check.name: (check.verdict, check.found) for check in made}


STOPPED: dict[str, Any] = {"state": "stopped", "role": "", "detail": "no server process"}
UNREACHABLE: dict[str, Any] = {"state": "unreachable", "role": "", "detail": "no answer", "endpoint": ""}
HUNG: dict[str, Any] = {"state": "unreachable", "role": "", "detail": "its process runs and does not answer"}


def test_a_failover_from_a_dead_primary_that_answers_depends_on_the_loss_alone(code: Code) -> None:
    found = checks(code, seen("primary", **STOPPED), max_data_loss=16)
    assert found["montreal"] == ("ok", "stopped: no server process")
    assert found["toronto"] == ("ok", "a running standby, with everything up to 0/100")
    assert found["fencing"] == ("ok", "montreal answers: it is made certain that it accepts no writes")
    assert found["loss"] == ("warning", "16 bytes of WAL, 1 transaction, that toronto has not received")
    assert found["certificate"][0] == "ok"
    refused = checks(code, seen("primary", **STOPPED), max_data_loss=15)
    assert refused["loss"][0] == "problem"
    assert refused["loss"][1].endswith("16 bytes would be lost, and at most 15 are accepted (--max-data-loss)")
    new = standby()
    nothing = code.failover.loss(new, synchronous=True, beyond=None)
    made = code.failover.checks(seen("primary", state="stopped", role="", detail=""), new, nothing, terms(),
                                can_fence=False, now=NOW)  # fmt: skip
    by_name = {check.name: check for check in made}
    unknown = code.failover.loss(new, synchronous=False, beyond=None)
    accepted = terms(accept_unknown_loss=True)
    told = code.failover.checks(seen("primary", **STOPPED), new, unknown, accepted, can_fence=False, now=NOW)
    assert [check.verdict for check in told if check.name == "loss"] == ["warning"]
    assert by_name["loss"].verdict == "ok"
    assert by_name["montreal"].found == "stopped"


def test_certificates_that_have_expired_are_no_reason_to_have_nobody_lead(code: Code) -> None:
    expired = standby(certificates={"server": "2030-01-01T12:00:00+00:00", "replication": "2031-01-01T12:00:00+00:00"})
    found = code.failover.loss(expired, synchronous=False, beyond=beyond(0, 0))
    made = code.failover.checks(seen("primary", **STOPPED), expired, found, terms(), can_fence=False, now=NOW)
    rotate = "`harmony rotate-certificates` makes a new one"
    assert [(check.verdict, check.found) for check in made if check.name == "certificate"] == [
        ("warning", f"'server' of toronto expired {NOW.isoformat()}; {rotate}, once toronto leads"),
        ("ok", "'replication' of toronto is valid until 2031-01-01"),
    ]


def test_a_primary_that_runs_and_answers_is_switched_over_from(code: Code) -> None:
    assert checks(code, seen("primary"))["montreal"] == (
        "problem",
        "it runs and answers: `harmony switchover --to toronto` loses nothing",
    )


def test_nobody_but_a_running_standby_takes_over(code: Code) -> None:
    for changes, said in (
        (STOPPED, "stopped: no server process; a standby that runs is needed"),
        (UNREACHABLE, "unreachable: no answer; a standby that runs is needed"),
        (
            {"role": "primary"},
            "a primary already; if somebody promoted it, `harmony accept` takes it as the active one",
        ),
    ):
        found = checks(code, seen("primary", **STOPPED), seen("replica", **changes))
        assert found == {"montreal": ("ok", "stopped: no server process"), "toronto": ("problem", said)}
    # One that cannot be asked keeps nobody from going on with a member that somebody promoted.
    assert checks(code, seen("primary", **UNREACHABLE), seen("replica", role="primary"))["toronto"] == (
        "warning",
        "a primary already, which somebody promoted; montreal cannot be asked what it lacks",
    )
    restarted = checks(code, seen("primary", **STOPPED), standby(received=""))
    assert restarted["toronto"] == ("ok", "a running standby, with everything up to 0/1")


def test_it_is_certain_that_the_old_primary_accepts_no_writes_or_nobody_takes_over(code: Code) -> None:
    def of(source: dict[str, Any], *, can_fence: bool = False, fenced: str = "") -> tuple[str, str]:
        check = code.failover.fencing(seen("primary", **source), terms(fenced=fenced), can_fence=can_fence)
        return check.verdict, check.found

    assert of(UNREACHABLE)[0] == "problem"
    assert "montreal does not answer, and may accept writes: no answer" in of(UNREACHABLE)[1]
    assert "then add --fenced-by-me montreal" in of(UNREACHABLE)[1]
    assert of(UNREACHABLE, can_fence=True) == ("ok", "montreal does not answer; its fence_command is run")
    vouched = ("warning", "ada said so; clients that still reach montreal are not protected")
    certain = ("ok", "montreal answers: it is made certain that it accepts no writes")
    for can_fence in (False, True):
        assert of(UNREACHABLE, can_fence=can_fence, fenced="ada said so") == vouched
        for source, fenced in product((STOPPED, HUNG), ("", "ada said so")):
            assert of(source, can_fence=can_fence, fenced=fenced) == certain
    gone = {"state": "absent", "role": "", "endpoint": ""}
    assert of(gone) == ("ok", "montreal has no server any more: there is nothing to fence")


def test_a_standby_takes_the_place_of_another_that_is_no_primary(code: Code) -> None:
    def of(source: Observation, target: Observation, *, leads: bool = False) -> list[tuple[str, str]]:
        return [(check.verdict, check.found) for check in code.failover.standing(source, target, leads=leads)]

    runs = ("ok", "a running standby")
    for source, verdict, found in (
        ({"role": "primary"}, "problem", "it accepts writes, and its pair follows another: promoted by hand? Stop it"),
        ({"role": "standby"}, "warning", "a running standby, which is stopped: it is known as lost"),
        (STOPPED, "ok", "stopped: no server process"),
        ({"state": "absent", "role": ""}, "ok", "absent"),
    ):
        assert of(seen("primary", **source), standby()) == [(verdict, found), runs]
    ((verdict, words), _) = of(seen("primary", role="standby"), standby(), leads=True)
    assert verdict == "problem"
    assert "its roles cannot be moved while it runs" in words
    for target, found in (
        (STOPPED, "stopped  no server process; a standby that runs is needed"),
        ({"role": "primary"}, "running primary; a standby that runs is needed"),
    ):
        assert of(seen("primary", **STOPPED), seen("replica", **target))[1] == ("problem", found)


def test_one_that_hangs_is_stopped_whoever_vouches_for_it(code: Code) -> None:
    begun = failover(terms=FENCED)
    target = code.switchover.Facts.of(standby())
    hung, gone = (code.switchover.Facts.of(seen("primary", **source)) for source in (HUNG, UNREACHABLE))
    assert code.failover.next_step(begun, hung, target) == code.switchover.Step.FENCE
    assert code.failover.next_step(begun, gone, target) == code.switchover.Step.ELECT


def test_an_endpoint_that_cannot_be_told_counts_as_not_fenced_unless_that_is_certain_otherwise(code: Code) -> None:
    def of(state: str, source: dict[str, Any] = STOPPED, *, can_fence: bool = False, **accepted: Any) -> Any:
        world = World(busy=False)
        endpoint = MemoryEndpoint(world, world.endpoints["kingston"]).observe()
        endpoint["state"], endpoint["detail"] = state, "" if state in {"running", "absent"} else "no answer"
        old = seen("primary", **source)
        (check,) = code.failover.endpoint_checks({"kingston": endpoint}, old, terms(**accepted), can_fence=can_fence)
        assert check.name == "endpoint"
        return check.verdict, check.found

    for state, can_fence, fenced in product(("running", "stopped"), (False, True), ("", "ada said so")):
        found = f"kingston can be told ({state}): it leads away from montreal first"
        assert of(state, can_fence=can_fence, fenced=fenced) == ("ok", found)
    untold = "kingston cannot be told (unreachable: no answer), and may lead clients to montreal"
    refused = (
        f"{untold}, so that counts as not fenced. Have it answer, or make certain that montreal accepts no writes, "
        f"then add --fenced-by-me montreal"
    )
    gone = of("absent")
    assert (gone[0], gone[1].partition(",")[0]) == ("problem", "kingston cannot be told (absent)")
    for source in (STOPPED, HUNG, UNREACHABLE):
        assert of("unreachable", source) == ("problem", refused)
        for can_fence in (False, True):
            vouched = of("unreachable", source, can_fence=can_fence, fenced="ada said so")
            assert vouched == ("warning", f"{untold}: ada said so")
    # Its command is run only for one whose host does not answer.
    commanded = ("warning", f"{untold}, whose fence_command is run")
    assert of("unreachable", UNREACHABLE, can_fence=True) == commanded
    for source in (STOPPED, HUNG):
        assert of("unreachable", source, can_fence=True) == ("problem", refused)


# -- the next step -----------------------------------------------------------------------------------------------------


def failover(**changes: Any) -> Any:
    return operation(**{"kind": "failover", "terms": terms(), **changes})


def test_no_step_of_a_failover_is_unsafe_whatever_is_seen(code: Code) -> None:
    step_of = code.switchover.Step
    epochs = (0, OLD, NEW, NEWER)
    cases = product(("", "it failed"), (terms(), FENCED), product(KINDS, epochs), product(KINDS, epochs))
    for given_up, accepted, old, new in cases:
        begun = failover(given_up=given_up, terms=accepted)
        source, target = facts(code, "montreal", *old), facts(code, "toronto", *new)
        try:
            step = code.failover.next_step(begun, source, target)
        except SiteError:
            continue
        case = (step, begun, source, target)
        may_write = source.state == "running" or source.left_as == "primary"
        certain = source.state in {"stopped", "absent"} or bool(accepted["fenced"])
        if step in {step_of.ELECT, step_of.PROMOTE, step_of.SETTLE}:
            assert not may_write, case
            assert certain, case
            assert not given_up, case
        if step is step_of.PROMOTE:
            assert target.epoch == EPOCH, case
        if step is step_of.SETTLE:
            assert target.role == "primary", case
            assert target.epoch >= EPOCH, case
        if step is step_of.FENCE:
            assert may_write or not certain, case
            assert not given_up, case
        if given_up:
            assert step in {step_of.WITHDRAW, step_of.REINSTATE, step_of.CLOSE}, case
            assert target.role != "primary", case
            assert target.left_as != "primary" or source.role == "primary", case


DEAD, HALF_MADE = "stopped, primary, not clean", "stopped, nothing, not clean"
SITUATIONS: list[tuple[dict[str, Any], tuple[str, int], tuple[str, int], str]] = [
    ({}, (DEAD, OLD), ("a standby", OLD), "fence"),
    ({}, ("a primary", OLD), ("a standby", OLD), "fence"),
    ({}, ("a standby", OLD), ("a standby", OLD), "fence"),
    ({}, ("unreachable", 0), ("a standby", OLD), "fence"),
    ({}, (HALF_MADE, OLD), ("a standby", OLD), "elect"),
    ({}, ("absent", 0), ("a standby", OLD), "elect"),
    ({}, ("stopped, standby, clean", OLD), ("a standby", OLD), "elect"),
    ({"terms": FENCED}, ("unreachable", 0), ("a standby", OLD), "elect"),
    ({"terms": FENCED}, (DEAD, OLD), ("a standby", OLD), "fence"),
    ({"terms": FENCED, "stage": "vouched"}, ("unreachable", 0), ("a standby", OLD), "elect"),
    ({"stage": "vouched"}, ("unreachable", 0), ("a standby", OLD), "fence"),
    ({"terms": FENCED, "stage": "vouched"}, (DEAD, OLD), ("a standby", OLD), "elect"),
    ({"stage": "vouched"}, (DEAD, OLD), ("a standby", OLD), "fence"),
    ({"terms": None}, ("unreachable", 0), ("a standby", OLD), "fence"),
    ({}, ("stopped, standby, clean", NEW), ("a standby", NEW), "promote"),
    ({}, ("stopped, standby, clean", NEW), ("unreachable", NEW), "promote"),
    ({}, ("a primary", OLD), ("a standby", NEW), "fence"),
    ({}, ("stopped, standby, clean", NEW), ("a primary", NEW), "settle"),
    ({}, ("a primary", OLD), ("a primary", NEW), "fence"),
    ({}, ("unreachable", 0), ("a primary", NEW), "fence"),
    ({"terms": FENCED}, ("unreachable", 0), ("a primary", NEW), "settle"),
    ({}, (DEAD, OLD), ("a primary", OLD), "fence"),
    ({}, ("stopped, standby, clean", OLD), ("a primary", OLD), "elect"),
    ({"terms": FENCED}, ("unreachable", 0), ("a primary", OLD), "elect"),
    ({"given_up": "x"}, (DEAD, OLD), ("a primary", NEW), "toronto is a primary, and not by this failover"),
    ({"given_up": "x"}, (DEAD, OLD), ("a standby", OLD), "reinstate"),
    ({"given_up": "x"}, (DEAD, OLD), ("a standby", NEW), "withdraw"),
    ({"given_up": "x"}, ("a primary", OLD), ("a standby", OLD), "close"),
    ({"given_up": "x"}, (DEAD, OLD), ("stopped, primary, clean", OLD), "not by this failover: somebody promoted it"),
]


def test_what_is_next_in_every_situation_that_a_failover_meets(code: Code) -> None:
    for done, source, target, expected in SITUATIONS:
        try:
            step = code.failover.next_step(
                failover(**done), facts(code, "montreal", *source), facts(code, "toronto", *target)
            )
            found = str(step)
        except SiteError as error:
            found = str(error)
        assert expected == found if " " not in expected else expected in found, (done, source, target, found)


def test_a_word_for_one_whose_host_answers_counts_once_it_could_not_be_stopped(code: Code) -> None:
    answers = replace(facts(code, "montreal", "unreachable", OLD), host_answers=True)
    target = facts(code, "toronto", "a standby", OLD)
    for accepted, stage, expected in (
        (FENCED, "", "fence"),
        (FENCED, "vouched", "elect"),
        (terms(), "vouched", "fence"),
    ):
        assert str(code.failover.next_step(failover(terms=accepted, stage=stage), answers, target)) == expected


# -- the epoch ---------------------------------------------------------------------------------------------------------


def test_an_epoch_is_higher_than_any_that_was_told_or_begun(code: Code) -> None:
    after = code.runner.epoch_after
    assert after(None) == 1
    assert after(roles(4, "primary")) == 5
    assert after(roles(4, "primary", operation=operation(epoch=5))) == 6
    assert after(roles(6, "primary", operation=operation(epoch=5))) == 7


@pytest.mark.parametrize("answers", [False, True])
def test_one_that_may_not_know_of_a_failover_takes_an_epoch_that_none_has_come_to(code: Code, *, answers: bool) -> None:
    of = code.runner.failover_epoch
    assert of(roles(4, "primary"), "replica", answers=answers) == 5
    for known, plain in ((roles(4, "replica"), 5), (None, 1)):
        assert (of(known, "replica", answers=answers) == plain) is answers
        assert of(known, "replica", answers=False) > plain + 50


def test_whether_a_pair_inside_another_is_still_the_active_one_is_asked_around(code: Code) -> None:
    outer = roles(2, "primary", "primary", pair="shop/prod/world")

    def west(epoch: int, active: str) -> Roles:
        return roles(0, "primary", outer=roles(epoch, active, "replica", pair="shop/prod/world"))

    def found(*vouched: str, **heard: Roles | None) -> tuple[str, str]:
        check = code.failover.around(outer, heard, vouched)
        return check.verdict, check.found

    assert found(calgary=west(2, "primary"))[0] == "ok"
    assert found(calgary=None, vancouver=west(2, "primary"))[0] == "ok"
    # One that does not lead in its own pair may have been told less than the one that does.
    stale: Roles = {**west(2, "primary"), "me": "replica"}
    assert found(calgary=None, vancouver=stale)[0] == "problem"
    assert found(calgary=west(2, "primary"), vancouver=stale)[0] == "ok"
    assert found(vancouver=stale)[0] == "ok", "all have answered"
    verdict, words = found(calgary=west(3, "replica"), vancouver=None)
    assert verdict == "problem"
    assert "its replica is active at epoch 3, not this pair" in words
    verdict, words = found(calgary=None, vancouver=None)
    assert verdict == "problem"
    assert "add --fenced-by-me calgary --fenced-by-me vancouver" in words
    assert found("calgary", calgary=None, vancouver=None)[0] == "problem"
    assert found("calgary", "vancouver", calgary=None, vancouver=None)[0] == "warning"
    elsewhere = roles(9, "replica", "replica", pair="shop/prod/others")
    assert found(calgary=elsewhere)[0] == "problem", "it is of another pair, and has not answered for this"
    brother = roles(0, "primary", "replica", outer=outer)
    assert found(toronto=brother, calgary=None)[0] == "problem", "it is on the same side"


def test_whether_a_pair_certainly_follows_is_asked_of_the_one_that_it_follows(code: Code) -> None:
    outer = roles(2, "primary", "replica", pair="shop/prod/world")

    def found(*heard: Roles | None) -> tuple[str, str]:
        (check,) = code.failover.still_follows(outer, heard)
        return check.verdict, check.found

    def east(epoch: int, active: str) -> Roles:
        return roles(0, "primary", outer=roles(epoch, active, "primary", pair="shop/prod/world"))

    assert found(east(2, "primary"), None)[0] == "ok"
    assert found(east(1, "replica"))[0] == "ok", "told less than this one"
    verdict, words = found(None, east(3, "replica"))
    assert verdict == "problem"
    assert "this pair is the active one there at epoch 3: its server that is lost was the primary" in words
    verdict, words = found(None, roles(9, "replica", pair="shop/prod/others"))
    assert verdict == "problem"
    assert words.startswith("nobody of the other pair can be asked")


def test_one_that_was_seen_to_take_writes_is_fenced_whoever_vouches_for_it(code: Code) -> None:
    begun = operation(kind="failover", terms=FENCED)
    for role, step in (("primary", "fence"), ("", "elect")):
        source = code.switchover.Facts("montreal", "unreachable", role, "", False, EPOCH - 1)
        assert code.failover.next_step(begun, source, facts(code, "toronto", "a standby")) == step
