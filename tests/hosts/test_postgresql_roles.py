"""What a site keeps of its pair's roles, and what it does not take."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from harmony_pulumi.capabilities.site import Roles
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.connection import Connection
from harmony_pulumi.hosts.postgresql.roles import is_to_lead, read_roles, refusal


def roles(epoch: int = 4, active: str = "primary", **changes: Any) -> Roles:
    told: dict[str, Any] = {"pair": "shop/prod/orders", "me": "primary", "synchronous": False, "operation": None}
    told |= {"away": None, "outer": None, **changes}
    return Roles(epoch=epoch, active=active, **told)


class Host:
    """A host with one file."""

    name = "db1"

    def __init__(self, text: str | None) -> None:
        self.text = text

    def read_file(self, path: str, user: str | None = None) -> str | None:
        return self.text


def read(text: str | None) -> Roles | None:
    return read_roles(cast("Connection", Host(text)), "/srv/orders/roles.json", "postgres")


def test_a_site_that_was_told_nothing_takes_anything() -> None:
    assert refusal(None, roles(0)) is None
    assert refusal(None, roles(7, "replica")) is None


def test_a_site_takes_the_same_again_and_what_is_newer() -> None:
    assert refusal(roles(), roles()) is None
    assert refusal(roles(), roles(operation={"id": "1"})) is None
    for active in ("primary", "replica"):
        assert refusal(roles(), roles(5, active)) is None
        assert refusal(roles(), roles(9, active)) is None


def test_a_site_refuses_an_older_epoch() -> None:
    said = "it knows epoch 4, with primary active, and epoch 3 is older: roles have moved since"
    assert refusal(roles(4), roles(3)) == said
    assert refusal(roles(4), roles(3, "replica")) == said


def test_a_site_refuses_another_active_member_at_the_same_epoch() -> None:
    assert refusal(roles(4), roles(4, "replica")) == "it knows primary as active at epoch 4, and replica is told of it"


def test_a_site_refuses_another_pair_whatever_its_epoch() -> None:
    said = "it is a member of the pair shop/prod/orders, not of shop/prod/users"
    for epoch in (3, 4, 5):
        assert refusal(roles(), roles(epoch, pair="shop/prod/users")) == said


def test_what_is_kept_is_what_was_told() -> None:
    later = {"terms": None, "stage": "", "clone": ""}
    told = roles(operation={**later, "id": "1", "kind": "switchover"})
    assert read(json.dumps({**told, "of a later version": 1})) == told
    assert read(None) is None


def test_what_was_kept_before_there_were_failovers_is_still_read() -> None:
    text = '{"pair": "shop/prod/orders", "epoch": 1, "active": "replica", "me": "primary", "operation": OPERATION}'
    assert read(text.replace("OPERATION", "null")) == roles(1, "replica")
    found = read(text.replace("OPERATION", '{"id": "1", "kind": "switchover"}'))
    assert found == roles(
        1, "replica", operation={"id": "1", "kind": "switchover", "terms": None, "stage": "", "clone": ""}
    )


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "{}", '{"pair": "p", "epoch": 1, "active": "primary", "me": "x"}']
)
def test_a_file_that_is_not_one_of_roles_is_refused(text: str) -> None:
    with pytest.raises(SiteError, match=r"db1: /srv/orders/roles\.json is not what this version of harmony writes"):
        read(text)


def test_what_a_site_was_told_counts_more_than_what_the_program_declares() -> None:
    source = {"endpoint": {}}
    assert is_to_lead(roles(active="primary", me="primary"), source)
    assert not is_to_lead(roles(active="replica", me="primary"), None)
    assert is_to_lead(None, None)
    assert not is_to_lead(None, source)


def test_before_the_first_role_change_the_program_declares_who_leads() -> None:
    source = {"endpoint": {}}
    assert not is_to_lead(roles(epoch=0, active="primary", me="primary"), source)
    assert is_to_lead(roles(epoch=0, active="primary", me="replica"), None)


def inside(told: Roles, **outer: Any) -> Roles:
    """Return what a member of a pair inside another pair was told."""
    return {**told, "outer": roles(pair="shop/prod/world", **outer)}


def test_a_site_in_a_pair_inside_another_takes_what_is_newer_in_either() -> None:
    known = inside(roles(4), epoch=2)
    assert refusal(known, known) is None
    assert refusal(roles(4), known) is None
    assert refusal(known, inside(roles(5, "replica"), epoch=2)) is None
    assert refusal(known, inside(roles(4), epoch=3, active="replica")) is None
    assert refusal(known, inside(roles(3), epoch=3)) is not None
    assert "it knows epoch 2, with primary active, and epoch 1 is older" in str(
        refusal(known, inside(roles(9), epoch=1))
    )
    assert refusal(known, roles(9)) == "it is a member of the pair shop/prod/world, too, and nothing is told of that"


def test_what_is_kept_of_the_pair_around_is_what_was_told() -> None:
    told = inside(roles(4), epoch=2)
    assert read(json.dumps(told)) == told


def test_only_who_is_active_in_every_pair_leads() -> None:
    source = {"endpoint": {}}
    assert is_to_lead(inside(roles(0), epoch=1), source)
    assert is_to_lead(inside(roles(1), epoch=0), source)
    assert not is_to_lead(inside(roles(0), epoch=1, active="replica"), None)
    assert not is_to_lead(inside(roles(0, "replica"), epoch=1), None)
    assert not is_to_lead(inside(roles(1, "replica"), epoch=0), None)
    assert not is_to_lead(inside(roles(0), epoch=0), source), "before the first role change the program says who leads"
    assert is_to_lead(inside(roles(0), epoch=0), None)
