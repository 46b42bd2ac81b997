"""Which member a program, or else the stack's configuration, wants active."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any, cast

import pulumi
import pytest

from harmony_pulumi.failover.base import Active
from harmony_pulumi.failover.postgresql import declared_active

PAIR = "orders-db"
NAMES = {"primary": "montreal", "replica": "toronto"}
Configure = Callable[[Any], None]


@pytest.fixture
def configure() -> Generator[Configure]:
    def write(value: Any) -> None:
        pulumi.runtime.set_all_config({"harmony:active": json.dumps(value)})

    yield write
    pulumi.runtime.set_all_config({})


def said(given: Active | None = None) -> list[str]:
    return [str(problem) for problem in declared_active(PAIR, given, NAMES)[1]]


def test_by_default_the_primary_is_active_as_it_was_deployed() -> None:
    assert declared_active(PAIR, None, NAMES) == (Active("primary", 0), [])


def test_the_program_says_which_is_active() -> None:
    assert declared_active(PAIR, Active("replica", 3), NAMES) == (Active("replica", 3), [])


def test_the_configuration_says_which_is_active(configure: Configure) -> None:
    configure({PAIR: {"member": "replica", "epoch": 1}, "users-db": {"member": "primary", "epoch": 9}})
    assert declared_active(PAIR, None, NAMES) == (Active("replica", 1), [])
    assert declared_active("other-db", None, NAMES) == (Active("primary", 0), [])
    assert declared_active("other-db", Active("replica", 2), NAMES) == (Active("replica", 2), [])


def test_what_is_said_in_two_places_is_refused(configure: Configure) -> None:
    configure({PAIR: {"member": "replica", "epoch": 1}})
    given = Active("primary", 0)
    assert declared_active(PAIR, given, NAMES)[0] == given
    (problem,) = said(given)
    assert problem.startswith("active: is in the stack's configuration (harmony:active), too; say it in one place")
    assert "{'member': 'replica', 'epoch': 1}" in problem


@pytest.mark.parametrize("value", ["replica", ["replica", 1], 7])
def test_a_configuration_of_another_shape_is_refused(configure: Configure, value: Any) -> None:
    configure({PAIR: value})
    expected = 'expected a member and an epoch: {"member": "replica", "epoch": 1}'
    assert said() == [f"harmony:active.{PAIR}: {value!r} is not taken; {expected}"]


def test_every_field_that_is_missing_unknown_or_wrong_is_told(configure: Configure) -> None:
    configure({PAIR: {"member": "replica"}})
    assert said() == [f"harmony:active.{PAIR}.epoch: is missing"]
    configure({PAIR: {"member": "replca", "epoch": "three", "from": "me"}})
    assert said() == [
        f"harmony:active.{PAIR}.from: no such field; there are member and epoch",
        f"harmony:active.{PAIR}.member: 'replca' is not a member; expected 'primary' (montreal) or 'replica' (toronto)",
        f"harmony:active.{PAIR}.epoch: 'three' is not an epoch; expected a whole number from 0 on",
    ]


@pytest.mark.parametrize("value", ["replica", ["replica", 1], [{"orders-db": 1}], 7, True])
def test_a_configuration_that_has_no_pairs_is_refused(configure: Configure, value: Any) -> None:
    for given in (None, Active("replica", 3)):
        configure(value)
        (problem,) = said(given)
        assert problem.startswith(f"harmony:active: {value!r} is not taken; expected the members by the names of")


def test_a_configuration_that_is_no_json_is_refused() -> None:
    try:
        pulumi.runtime.set_all_config({"harmony:active": "replica"})
        (problem,) = said()
        assert problem.startswith("harmony:active: 'replica' is not taken")
    finally:
        pulumi.runtime.set_all_config({})


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", None, True])
def test_an_epoch_that_is_no_whole_number_is_refused(configure: Configure, epoch: Any) -> None:
    expected = f"{epoch!r} is not an epoch; expected a whole number from 0 on"
    assert said(Active("replica", epoch)) == [f"active.epoch: {expected}"]
    configure({PAIR: {"member": "replica", "epoch": epoch}})
    assert said() == [f"harmony:active.{PAIR}.epoch: {expected}"]


def test_a_member_that_is_none_is_refused_together_with_its_epoch() -> None:
    given = Active(cast("Any", "toronto"), -1)
    assert said(given) == [
        "active.member: 'toronto' is not a member; expected 'primary' (montreal) or 'replica' (toronto)",
        "active.epoch: -1 is not an epoch; expected a whole number from 0 on",
    ]
