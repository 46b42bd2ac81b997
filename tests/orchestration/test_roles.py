"""Who is to be active: every combination of what is wanted and what the sites know."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Operation, Roles
from harmony_pulumi.errors import SiteError
from tests.orchestration.code import Code
from tests.orchestration.sites import NAMES, roles

TOKEN: Any = {"system_identifier": "7", "timeline": 1, "lsn": "0/28", "record": "shutdown checkpoint"}
OTHER = {"primary": "replica", "replica": "primary"}


def operation(**changes: Any) -> Operation:
    """Return a switchover to the replica that is under way."""
    begun: dict[str, Any] = {
        "id": "1",
        "kind": "switchover",
        "epoch": 5,
        "source": "primary",
        "target": "replica",
        "operator": "ada",
        "prepared": False,
        "token": None,
        "given_up": "",
        "terms": None,
        "stage": "",
        "clone": "",
        **changes,
    }
    return Operation(**begun)  # type: ignore[typeddict-item]


def refused(code: Code, active: str, epoch: int, told: Any) -> str:
    with pytest.raises(SiteError) as caught:
        code.roles.moves(code.roles.Desired(active, epoch), told, NAMES)
    return str(caught.value)


def test_roles_move_only_with_an_epoch_that_is_one_higher(code: Code) -> None:
    for now, active, wanted, epoch in product((0, 1, 4), ("primary", "replica"), ("primary", "replica"), range(7)):
        for told in (roles(now, active), *([None] if (now, active) == (0, "primary") else [])):
            if epoch == now + 1:
                assert code.roles.moves(code.roles.Desired(wanted, epoch), told, NAMES) is True
            elif (epoch, wanted) == (now, active):
                assert code.roles.moves(code.roles.Desired(wanted, epoch), told, NAMES) is False
            else:
                said = refused(code, wanted, epoch, told)
                assert f"active='{wanted}' ({NAMES[wanted]}) at epoch {epoch} is wanted" in said
                assert f"the sites are at epoch {now} with {active} ({NAMES[active]}) active" in said


def test_a_refusal_says_which_numbers_to_write(code: Code) -> None:
    told = roles(4, "replica")
    both = "Write active='replica', epoch=4 to keep them as they are, or active='primary', epoch=5 to move them"
    assert refused(code, "primary", 3, told).endswith(f"roles have moved since. {both}")
    # What is wanted is active already: there is but one way out.
    assert refused(code, "replica", 3, told).endswith("Write active='replica', epoch=4 to keep them as they are")
    assert refused(code, "primary", 4, told).endswith(
        "a change of `active` needs a raised epoch. Write active='primary', epoch=5 to move the roles"
    )
    assert refused(code, "primary", 6, told).endswith("raised by one. Write active='primary', epoch=5")
    assert refused(code, "replica", 6, told).endswith("raised by one. Write active='replica', epoch=4")


def test_the_command_that_finishes_what_is_under_way_has_its_terms(code: Code) -> None:
    def finishes(**changes: Any) -> str:
        return str(code.roles.command(operation(**changes), NAMES))

    accepted: dict[str, Any] = {"max_data_loss": 8, "accept_unknown_loss": False, "fenced": "its fence_command, x"}
    vouched = {"max_data_loss": 0, "accept_unknown_loss": True, "fenced": "--fenced-by-me montreal: ada vouches for it"}
    assert finishes() == "switchover --to toronto"
    assert finishes(kind="rejoin", terms=None) == "rejoin"
    # One that was given up is taken back by what goes on with it: a failover would begin anew.
    assert finishes(kind="failover", terms=accepted, given_up="it failed") == "switchover --to toronto"
    assert finishes(kind="failover", terms=accepted) == "failover --to toronto --max-data-loss 8"
    assert finishes(kind="failover", terms=vouched) == (
        "failover --to toronto --max-data-loss 0 --accept-unknown-loss --fenced-by-me montreal"
    )


def test_an_epoch_that_is_raised_by_more_than_one_is_spoken_of(code: Code) -> None:
    def said(before: int, after: int) -> list[str]:
        of = code.roles.Desired
        return list(code.roles.leap_in_words(of("primary", before), of("replica", after)))

    assert said(2, 1) == said(2, 2) == said(2, 3) == []
    (words,) = said(2, 4)
    assert words.startswith("epoch 2 becomes 4: `up` refuses that, unless the sites have come to epoch 3 or 4 by")
    assert words.endswith("else the next one is 3")


def test_what_is_under_way_is_finished_before_anything_else(code: Code) -> None:
    for told in (
        roles(4, "primary", operation=operation()),
        roles(5, "replica", operation=operation(prepared=True, token=TOKEN)),
        roles(6, "primary", operation=operation(given_up="it failed")),
    ):
        assert code.roles.moves(code.roles.Desired("replica", 5), told, NAMES) is True
        for active, epoch in product(("primary", "replica"), range(8)):
            if (active, epoch) == ("replica", 5):
                continue
            said = refused(code, active, epoch, told)
            assert f"active='{active}' ({NAMES[active]}) at epoch {epoch} is wanted" in said
            assert "a switchover to toronto, begun by ada, has not ended" in said
            assert "run `harmony switchover --to toronto` to finish it" in said


def test_a_change_of_the_input_is_judged_without_asking_the_sites(code: Code) -> None:
    desired = code.roles.Desired
    for before, after, old, new in product(range(4), range(4), NAMES, NAMES):
        said = code.roles.input_problem(desired(old, before), desired(new, after), NAMES)
        if after < before:
            assert said is not None
            assert said.startswith(f"epoch {before} becomes {after}, which is older")
            assert said.endswith(f"write active='{old}', epoch={before}")
        elif old != new and after == before:
            assert said == (
                f"active changes from '{old}' ({NAMES[old]}) to '{new}' ({NAMES[new]}), and epoch stays {before}; "
                f"write epoch={before + 1} to move the roles"
            )
        else:
            assert said is None


def test_the_highest_epoch_is_what_the_sites_were_told_last(code: Code) -> None:
    old, new = roles(4, "primary"), roles(5, "replica")
    assert code.roles.latest({"primary": None, "replica": None}) is None
    for told in ({"primary": old, "replica": new}, {"primary": new, "replica": old}):
        assert code.roles.latest(told) is new
    assert code.roles.latest({"primary": None, "replica": old}) is old
    over = roles(5, "replica", operation=operation(prepared=True, given_up="it failed"))
    higher = roles(6, "primary")
    assert code.roles.latest({"primary": over, "replica": higher}) is higher


def test_of_equal_epochs_the_one_whose_operation_is_farther_counts(code: Code) -> None:
    stages = [
        None,
        operation(),
        operation(prepared=True),
        operation(prepared=True, token=TOKEN),
        operation(prepared=True, token=TOKEN, given_up="it failed"),
    ]
    for low, high in product(range(len(stages)), range(len(stages))):
        if low < high:
            one, other = (roles(4, "primary", operation=stages[stage]) for stage in (low, high))
            assert code.roles.latest({"primary": one, "replica": other}) is other
            assert code.roles.latest({"primary": other, "replica": one}) is other
    # A rejoin goes back, too: who leads was told first, whether that is farther or begun anew.
    for first, second in (("copied", "rewinding"), ("", "copied")):
        leads, follows = (
            {**roles(4, "replica", operation=operation(kind="rejoin", stage=stage)), "me": me}
            for me, stage in (("replica", first), ("primary", second))
        )
        assert code.roles.latest({"primary": follows, "replica": leads}) is leads
        assert code.roles.latest({"primary": leads, "replica": follows}) is leads
    # Given up before it was known to be prepared, or to have a token: that it is given up counts.
    for stage in stages[1:3]:
        assert stage is not None
        given_up = roles(4, "primary", operation={**stage, "given_up": "it failed"})
        going_on = roles(4, "primary", operation=operation(prepared=True))
        assert code.roles.latest({"primary": given_up, "replica": going_on}) is given_up
        assert code.roles.latest({"primary": going_on, "replica": given_up}) is given_up


def test_one_speaks_for_its_side_of_a_pair_only_where_it_leads_there(code: Code) -> None:
    world = roles(3, "replica", pair="shop/prod/world")

    def told(inner: str, middle: str) -> Roles:
        around = roles(0, "primary", middle, pair="shop/prod/land", outer=world)
        return roles(0, "primary", inner, pair="shop/prod/city", outer=around)

    for inner, middle in product(("primary", "replica"), repeat=2):
        leads = (inner, middle) == ("primary", "primary")
        assert code.roles.of_pair(told(inner, middle), "shop/prod/world") == (world, leads)
        assert code.roles.of_pair(told(inner, middle), "shop/prod/city")[1] is True
    assert code.roles.of_pair(told("primary", "primary"), "shop/prod/nowhere") is None
    assert code.roles.of_pair(None, "shop/prod/world") is None


def test_a_pair_follows_as_it_was_deployed_until_roles_move_around_it(code: Code) -> None:
    for deployed, active in product((False, True), ("primary", "replica")):
        assert code.roles.follows_another(None, deployed=deployed) is deployed
        assert code.roles.follows_another(roles(0, active), deployed=deployed) is deployed
        assert code.roles.follows_another(roles(1, active), deployed=deployed) is (active == "replica")
    older, newer = roles(1, "primary"), roles(2, "replica")
    told = {"primary": roles(0, "primary", outer=older), "replica": roles(0, "primary", outer=newer)}
    assert code.roles.outer_of(told) is newer
    assert code.roles.outer_of({**told, "replica": None}) is older
    assert code.roles.outer_of({"primary": None, "replica": roles(0, "primary")}) is None
