"""What a server is to start as, decided with no server at hand: every case of what it and its peer know."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Observation, Roles, load_site
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql.boot import Answer, Start, Verdict, verdict
from harmony_pulumi.hosts.postgresql.elsewhere import handle_of_elsewhere

PAIR = "shop/prod/orders"
SOURCE = {"host": "localhost", "port": 5432}
MEMBERS = ("primary", "replica")
LEFT = ("primary", "standby", "waiting")
EPOCHS = (0, 1, 2)
SEEN_AS = [("", ""), ("", "primary"), ("", "standby"), ("primary", ""), ("standby", "")]
"""A peer's role if it runs, else what it was left as; the first does not answer as a server, only its host does."""


def roles(epoch: int, active: str, me: str = "primary", pair: str = PAIR) -> Roles:
    return {
        "pair": pair,
        "epoch": epoch,
        "active": active,
        "me": me,
        "synchronous": False,
        "operation": None,
        "away": None,
        "outer": None,
    }


def peer(told: Roles | None, role: str = "", left_as: str = "", name: str = "toronto") -> Answer:
    return Answer(name, came=True, roles=told, role=role, left_as=left_as)


def silent(name: str = "toronto") -> Answer:
    return Answer(name, came=False, detail="the host is down")


def every_knowledge() -> list[Roles | None]:
    return [None, *(roles(epoch, active) for epoch, active in product(EPOCHS, MEMBERS))]


def starts(
    mine: Roles | None, answers: list[Answer], source: dict[str, Any] | None = None, left: str = "primary"
) -> Start | None:
    """Return what a server starts as; None if it is refused."""
    try:
        return verdict(mine, answers, source, left).start
    except SiteError:
        return None


@pytest.mark.parametrize(("source", "left"), [*product([None, SOURCE], LEFT)])
def test_nothing_ever_leads_against_what_is_known_or_without_an_answer(
    source: dict[str, Any] | None, left: str
) -> None:
    """The rule itself, over everything that can be known and seen of a pair."""
    for mine, told, (role, left_as) in product(every_knowledge(), every_knowledge(), SEEN_AS):
        theirs = roles(told["epoch"], told["active"], "replica") if told else None
        for answer in (peer(theirs, role, left_as), silent()):
            if starts(mine, [answer], source, left) is not Start.LEAD:
                continue
            assert left != "standby"
            assert answer.role != "primary"
            if mine is None:
                assert source is None
                assert not (answer.roles and answer.roles["epoch"])
                continue
            assert answer.came
            known = max(mine, answer.roles or mine, key=lambda told: told["epoch"])
            assert known["active"] == "primary" if known["epoch"] else source is None


@pytest.mark.parametrize(("source", "left"), [*product([None, SOURCE], LEFT)])
def test_of_two_members_that_ask_each_other_at_most_one_leads(source: dict[str, Any] | None, left: str) -> None:
    for mine, told, other_left in product(every_knowledge(), every_knowledge(), LEFT):
        theirs = roles(told["epoch"], told["active"], "replica") if told else None
        signal = {"primary": "primary", "standby": "standby", "waiting": "standby"}
        one = starts(mine, [peer(theirs, "", signal[other_left])], source, left)
        other_source = SOURCE if source is None else None
        other = starts(theirs, [peer(mine, "", signal[left], "montreal")], other_source, other_left)
        assert [one, other].count(Start.LEAD) < 2, (mine, theirs, left, other_left)


def test_a_pair_that_reboots_together_comes_back_as_it_was() -> None:
    for epoch in EPOCHS:
        # The declaration is that of before any change: the first member is the primary.
        leader = roles(epoch, "replica" if epoch else "primary", me="replica" if epoch else "primary")
        other = {**leader, "me": "primary" if epoch else "replica"}
        mine, theirs = (leader, roles(epoch, leader["active"], str(other["me"])))
        declared = [SOURCE, None] if epoch else [None, SOURCE]
        for left in ("primary", "waiting"):
            assert starts(mine, [peer(theirs, "", "standby")], declared[0], left) is Start.LEAD
        assert starts(theirs, [peer(mine, "", "primary")], declared[1], "standby") is Start.FOLLOW


def test_whoever_was_told_later_counts() -> None:
    mine, theirs = roles(0, "primary"), roles(1, "replica", "replica")
    for left, seen_as in product(LEFT, SEEN_AS):
        assert starts(mine, [peer(theirs, *seen_as)], None, left) is Start.FOLLOW
    # And the other way round: the peer knows that this one is to be active, and this one does not yet.
    mine, theirs = roles(1, "replica"), roles(2, "primary", "replica")
    found = verdict(mine, [peer(theirs, "", "standby")], None, "primary")
    assert found == Verdict(Start.LEAD, learnt=roles(2, "primary", "primary"))
    assert verdict(roles(1, "primary"), [peer(roles(1, "primary", "replica"))], None, "primary") == Verdict(Start.LEAD)


def test_a_verdict_says_who_leads_and_what_its_site_was_not_told() -> None:
    found = verdict(roles(0, "primary"), [peer(roles(3, "replica", "replica"))], None, "primary")
    assert found == Verdict(Start.FOLLOW, "toronto is active at epoch 3", roles(3, "replica", "primary"))
    assert verdict(roles(3, "replica"), [peer(None)], None, "primary").why == "replica is active at epoch 3"
    assert verdict(None, [], SOURCE, "standby") == Verdict(Start.FOLLOW, "it is declared a standby")


def test_a_lone_survivor_waits_and_is_told_how_to_go_on() -> None:
    for epoch, left in product(EPOCHS, ("primary", "waiting")):
        found = verdict(roles(epoch, "primary"), [silent()], None, left)
        assert found.start is Start.WAIT
        assert "toronto does not answer (the host is down)" in found.why
        assert "`harmony start`" in found.why
        assert "`harmony failover`" in found.why


def test_a_peer_that_is_on_no_host_is_silent() -> None:
    seen = load_site(handle_of_elsewhere({"kind": "kubernetes", "name": "montreal", "owner": "o"})).observe()
    answer = Answer.of(seen, made_again=True)
    assert (answer.name, answer.came) == ("montreal", False)
    assert starts(None, [answer]) is Start.LEAD  # Of a pair that is just being made.
    assert starts(roles(0, "primary"), [answer]) is Start.WAIT


def test_a_standby_is_never_made_a_primary_by_a_start() -> None:
    for mine, told, source, seen_as in product(every_knowledge(), every_knowledge(), (None, SOURCE), SEEN_AS):
        theirs = roles(told["epoch"], told["active"], "replica") if told else None
        for answers in ([], [silent()], [peer(theirs, *seen_as)]):
            assert starts(mine, answers, source, "standby") in {Start.FOLLOW, Start.WAIT}
    assert "a start promotes nothing" in verdict(roles(1, "primary"), [], SOURCE, "standby").why


def test_a_server_that_stands_alone_leads_whatever_it_was_told_in_a_pair_of_before() -> None:
    assert starts(None, []) is Start.LEAD
    assert starts(roles(2, "primary"), []) is Start.LEAD


def test_a_pair_that_is_just_being_made_needs_no_answer() -> None:
    assert starts(None, [silent()]) is Start.LEAD
    assert starts(None, [peer(None, "", "")]) is Start.LEAD
    assert starts(None, [silent()], SOURCE, "standby") is Start.FOLLOW
    assert starts(None, [peer(roles(0, "primary", "replica"), "", "standby")]) is Start.LEAD


def test_a_server_that_was_told_nothing_does_not_lead_where_roles_have_moved() -> None:
    found = verdict(None, [peer(roles(1, "replica", "replica"), "standby")], None, "primary")
    assert found.start is Start.WAIT
    assert "toronto knows epoch 1" in found.why


def test_two_that_know_different_members_as_active_at_one_epoch_both_wait() -> None:
    one, other = roles(1, "primary"), roles(1, "replica", "replica")
    for mine, theirs in ((one, other), (other, one)):
        found = verdict(mine, [peer(theirs, "", "standby")], None, "primary")
        assert found.start is Start.WAIT
        assert "different members as active at epoch 1" in found.why
    # One that knows less has not heard of the last role change.
    assert starts(roles(2, "primary"), [peer(roles(1, "replica", "replica"), "", "standby")]) is Start.LEAD


@pytest.mark.parametrize("source", [None, SOURCE])
def test_before_the_first_role_change_two_primaries_are_refused(source: dict[str, Any] | None) -> None:
    for seen_as, left in product([("primary", ""), ("", "primary")], ("primary", "waiting")):
        with pytest.raises(SiteError, match="so is toronto: started side by side, both would accept writes"):
            verdict(roles(0, "primary"), [peer(roles(0, "primary", "replica"), *seen_as)], source, left)


@pytest.mark.parametrize(
    ("mine", "seen_as", "ways"),
    [
        (roles(0, "primary"), ("primary", ""), ["toronto runs now", "`harmony accept`; then `harmony rejoin`"]),
        (roles(0, "primary"), ("", "primary"), ["pg_ctl -D FOLDER/config start", "`harmony accept`; then `harmony re"]),
        (None, ("primary", ""), ["the other one stays stopped, keep its folder"]),
    ],
)
def test_of_two_primaries_it_is_said_how_one_stays_and_the_other_keeps_its_data(
    mine: Roles | None, seen_as: tuple[str, str], ways: list[str]
) -> None:
    with pytest.raises(SiteError) as refused:
        verdict(mine, [peer(None, *seen_as)], None, "primary")
    assert all(way in str(refused.value) for way in ways)
    assert "move" not in str(refused.value)


def test_after_a_role_change_only_a_peer_that_runs_as_a_primary_is_in_the_way() -> None:
    mine, theirs = roles(1, "primary"), roles(1, "primary", "replica")
    assert starts(mine, [peer(theirs, "", "primary")]) is Start.LEAD  # It starts as a standby.
    assert starts(mine, [peer(theirs, "primary")]) is None
    assert starts(roles(1, "replica"), [peer(roles(1, "replica", "replica"), "primary")]) is Start.FOLLOW


def test_in_a_pair_of_pairs_only_a_member_of_the_same_pair_answers_for_it() -> None:
    others = [peer(None, "standby", name="paris"), peer(None, "standby", name="lyon")]
    mine = roles(0, "primary")
    assert starts(mine, [*others, silent()]) is Start.WAIT
    assert starts(mine, [*others, peer(roles(0, "primary", "replica"), "", "standby")]) is Start.LEAD
    assert starts(mine, [silent("paris"), silent("lyon"), peer(roles(0, "primary", "replica"))]) is Start.LEAD
    elsewhere = roles(7, "replica", "replica", pair="shop/prod/others")
    assert starts(mine, [peer(elsewhere, "standby"), peer(roles(0, "primary", "replica"))]) is Start.LEAD
    assert starts(mine, [peer(elsewhere, "standby"), silent()]) is Start.WAIT


def test_a_peer_that_was_made_anew_and_told_nothing_yet_has_answered() -> None:
    assert starts(roles(1, "primary"), [peer(None, "", "")]) is Start.LEAD


@pytest.mark.parametrize(
    ("state", "told", "came"),
    [
        ("running", None, True),
        ("stopped", None, True),
        ("absent", None, False),
        ("unreachable", None, False),
        ("unreachable", roles(0, "primary", "replica"), True),  # Its host has answered, its server did not.
    ],
)
def test_an_answer_is_the_host_s_and_not_the_server_s(state: str, told: Roles | None, came: bool) -> None:
    seen: Any = {"name": "toronto", "state": state, "detail": "", "roles": told, "role": "", "left_as": ""}
    observation: Observation = seen
    assert Answer.of(observation).came is came
    # Where a deployment makes the pair again, a folder that is gone is an answer, and silence is none.
    assert Answer.of(observation, made_again=True).came is (came or state == "absent")


# -- in a pair of pairs ------------------------------------------------------------------------------------------------

WORLD = "shop/prod/world"


def inside(told: Roles, epoch: int, active: str, me: str = "primary") -> Roles:
    return {**told, "outer": roles(epoch, active, me, pair=WORLD)}


def west(epoch: int, active: str, name: str = "calgary") -> Answer:
    return peer(inside(roles(0, "primary", pair="shop/prod/west"), epoch, active, "replica"), name=name)


def test_one_leads_only_where_its_pair_is_the_active_one_as_far_as_anybody_knows() -> None:
    mine, brother = inside(roles(0, "primary"), 1, "primary"), roles(0, "primary", "replica")
    here = peer(inside(brother, 1, "primary"))
    assert starts(mine, [here, west(1, "primary")]) is Start.LEAD
    found = verdict(mine, [here, west(2, "replica")], None, "primary")
    assert (found.start, found.why) == (Start.FOLLOW, "calgary is active at epoch 2")
    assert found.learnt == inside(roles(0, "primary"), 2, "replica")
    # It is called by the name of the one that leads there.
    inner = roles(0, "primary", "replica", pair="shop/prod/west")
    other = peer(inside(inner, 2, "replica", "replica"), name="vancouver")
    assert verdict(mine, [here, other, west(2, "replica")], None, "primary").why == "calgary is active at epoch 2"
    # It may be the only one that was told, too.
    assert starts(inside(roles(0, "primary"), 2, "replica"), [here, west(1, "primary")]) is Start.FOLLOW
    # What the other member of its own pair was told, it was to be told, too.
    assert starts(mine, [peer(inside(brother, 2, "replica")), west(1, "primary")]) is Start.FOLLOW
    assert starts(roles(0, "primary"), [peer(inside(brother, 2, "replica"))]) is Start.FOLLOW


def test_one_whose_pair_is_active_waits_for_an_answer_from_each_other_side() -> None:
    mine, brother = (
        inside(roles(0, "primary"), 1, "primary"),
        peer(inside(roles(0, "primary", "replica"), 1, "primary")),
    )
    assert starts(mine, [brother, silent("calgary"), silent("vancouver")]) is Start.WAIT
    assert starts(mine, [brother, silent("vancouver"), west(1, "primary")]) is Start.LEAD
    assert starts(mine, [silent(), west(1, "primary")]) is Start.WAIT
    # One that does not lead in its own pair may have been told less than the one that does, which is silent.
    inner = roles(0, "primary", "replica", pair="shop/prod/west")
    stale = peer(inside(inner, 1, "primary", "replica"), name="vancouver")
    assert starts(mine, [brother, silent("calgary"), stale]) is Start.WAIT
    assert starts(mine, [brother, west(1, "primary"), stale]) is Start.LEAD
    apart = verdict(mine, [brother, west(1, "replica")], None, "primary")
    assert apart.start is Start.WAIT
    assert "different members as active at epoch 1" in apart.why


def test_one_that_leads_by_a_role_change_around_its_pair_does_so_whatever_the_program_has_it_follow() -> None:
    mine = inside(roles(0, "primary", pair="shop/prod/west"), 1, "replica", "replica")
    brother = peer(inside(roles(0, "primary", "replica", pair="shop/prod/west"), 1, "replica", "replica"))
    east = peer(inside(roles(0, "primary"), 1, "replica"), name="montreal")
    assert starts(mine, [brother, east], SOURCE) is Start.LEAD
    assert starts({**mine, "me": "replica"}, [brother, east], SOURCE) is Start.FOLLOW
