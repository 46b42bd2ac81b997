"""Where an endpoint is to lead as it starts, decided with no server at hand: by what its members were told."""

from __future__ import annotations

from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Observation
from harmony_pulumi.hosts.pgbouncer.boot import active_of
from tests.orchestration.sites import World, pair_site, roles
from tests.orchestration.test_switchover import operation

UNREACHABLE: dict[str, Any] = {"state": "unreachable", "role": "", "endpoint": "", "roles": None, "detail": "no answer"}


def seen(primary: dict[str, Any] | None = None, replica: dict[str, Any] | None = None) -> dict[str, Observation]:
    """Return what is seen of a pair whose primary was told that it is active, with some of it changed."""
    changes = {"primary": primary or {}, "replica": replica or {}}
    found: dict[str, Any] = {}
    for role, changed in changes.items():
        plain = pair_site(World(busy=False), role).observe()
        found[role] = {**plain, "roles": roles(0, "primary", role), **changed}
    return found


def why(**changes: dict[str, Any]) -> str:
    role, words = active_of(seen(**changes))
    assert role == "", "nobody is to be served"
    return words


def test_it_leads_to_whom_all_members_know_as_active() -> None:
    assert active_of(seen()) == ("primary", "")
    moved = {role: {"roles": roles(3, "replica", role)} for role in ("primary", "replica")}
    assert active_of(seen(**moved)) == ("replica", "")


def test_the_higher_epoch_counts_whoever_was_told() -> None:
    for knows, other in (("primary", "replica"), ("replica", "primary")):
        told = {knows: {"roles": roles(2, "replica", knows)}, other: {"roles": roles(1, "primary", other)}}
        assert active_of(seen(**told)) == ("replica", "")
    assert active_of(seen(replica={"roles": None})) == ("primary", ""), "one that was made anew was told nothing yet"


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_server_need_not_run_for_its_site_to_answer(state: str) -> None:
    assert active_of(seen(primary={"state": state, "role": ""})) == ("primary", "")
    hung = {"state": "unreachable", "role": "", "detail": "its process runs and does not answer"}
    assert active_of(seen(primary=hung)) == ("primary", "")


@pytest.mark.parametrize("role", ["primary", "replica"])
@pytest.mark.parametrize("state", ["unreachable", "absent"])
def test_without_the_answer_of_every_member_nobody_is_served(role: str, state: str) -> None:
    name = {"primary": "montreal", "replica": "toronto"}[role]
    words = why(**{role: {**UNREACHABLE, "state": state}})
    assert words.startswith(f"{name} does not answer (no answer), so it may have been made active meanwhile")
    other = {"primary": "toronto", "replica": "montreal"}[role]
    order = f"`harmony failover --to {other} --max-data-loss 0 --fenced-by-me {name}`"
    assert words.endswith(f"once it is back, run this again; if {name} is lost for good, {order} starts this endpoint")


def test_where_nobody_answers_nobody_is_named_who_could_lead() -> None:
    words = why(primary=UNREACHABLE, replica=UNREACHABLE)
    assert words.endswith("so it may have been made active meanwhile; once it is back, run this again")


def test_a_former_primary_that_alone_answers_is_not_believed() -> None:
    assert why(replica=UNREACHABLE)
    assert active_of(seen(replica={"roles": roles(1, "replica", "replica")})) == ("replica", "")


def test_members_that_were_told_nothing_name_nobody() -> None:
    words = why(primary={"roles": None}, replica={"roles": None})
    assert words == (
        "montreal and toronto were told nothing of their roles; `pulumi up` tells them, or, where that finds nothing "
        "to change, `harmony switchover --to montreal`"
    )


def test_members_that_contradict_each_other_name_nobody() -> None:
    words = why(primary={"roles": roles(1, "primary")}, replica={"roles": roles(1, "replica", "replica")})
    assert words.startswith("montreal and toronto know different members as active at epoch 1: decide which one")
    words = why(primary={"roles": roles(1, "primary", pair="shop/prod/other")})
    assert "its members were told of different pairs: shop/prod/other and shop/prod/orders" in words


@pytest.mark.parametrize("kind", ["switchover", "failover"])
@pytest.mark.parametrize("role", ["primary", "replica"])
def test_while_roles_are_moving_nobody_is_served(kind: str, role: str) -> None:
    begun = operation(kind=kind, target="replica", operator="somebody")
    words = why(**{role: {"roles": roles(0, "primary", role, operation=begun)}})
    assert words == (
        f"a {kind} is under way, or was cut off: somebody. `harmony {kind} --to toronto` finishes it, and starts this "
        f"endpoint"
    )


def test_a_rejoin_moves_no_role() -> None:
    begun = operation(kind="rejoin", source="replica", target="primary")
    assert active_of(seen(primary={"roles": roles(1, "primary", operation=begun)})) == ("primary", "")
