"""Random schedules of faults and commands over a pair in memory, whose invariants the world checks at every point.

Hypothesis shrinks what breaks them to the shortest schedule. With HARMONY_TEST_ALL, tens of thousands are tried.
"""

from __future__ import annotations

import os
import random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.orchestration.code import (
    REAL,
    accept,
    bring_back,
    command,
    fail_over,
    finished,
    known,
    outcome,
    start_endpoints,
)
from tests.orchestration.sites import World
from tests.orchestration.test_runner import DISTURBANCES, can_fail, fail, interrupt, kill, put_right, time_out

WHOLE = bool(os.environ.get("HARMONY_TEST_ALL"))
SEED = int(os.environ.get("HARMONY_TEST_SEED") or (random.SystemRandom().randrange(2**32) if WHOLE else 4))
EXAMPLES = 20_000 if WHOLE else 250

ENDPOINTS = ("kingston", "ottawa")
MEMBERS = st.sampled_from(["primary", "replica"])
ERRORS = {"killed": kill, "failed": fail, "timed out": time_out, "interrupted": interrupt}
EVENTS = st.sampled_from([*ERRORS, *DISTURBANCES])
POINTS = st.integers(0, 130)
"""From the next point on: a switchover passes some hundred."""


def event(name: str) -> Any:
    """Return what happens at a point; an error that cannot be there is none."""

    def happens(world: World, label: str) -> None:
        if name in DISTURBANCES:
            DISTURBANCES[name](world, label)
        elif name in {"killed", "interrupted"} or can_fail(label):
            ERRORS[name](world, label)

    return happens


class Schedules(RuleBasedStateMachine):
    """Commands by operators, among whatever happens to the servers and to the processes that orchestrate them."""

    @initialize(first=MEMBERS)
    def deploy(self, first: str) -> None:
        self.world = World(busy=False, endpoints=ENDPOINTS)
        self.world.limit = 100_000
        assert outcome(REAL, self.world, "primary", 0) == "done"
        if first == "replica":
            assert outcome(REAL, self.world, "replica", 1) == "done"

    @rule(at=POINTS, what=EVENTS)
    def something_will_happen(self, at: int, what: str) -> None:
        self.world.at[self.world.count + at] = event(what)

    @rule(what=st.sampled_from(list(DISTURBANCES)))
    def something_happens(self, what: str) -> None:
        DISTURBANCES[what](self.world, "between two commands")

    @rule()
    def a_client_commits(self) -> None:
        self.world.commit()
        self.world.go_on()

    @rule(to=MEMBERS)
    def switch_over(self, to: str) -> None:
        self.led(command(REAL, self.world, to))

    @rule(to=MEMBERS, most=st.sampled_from([0, 3, 1000]), unknown=st.booleans(), fenced=st.booleans())
    def fail_over(self, to: str, most: int, *, unknown: bool, fenced: bool) -> None:
        why = "an operator said so" if fenced else ""
        ended = fail_over(REAL, self.world, to, max_data_loss=most, accept_unknown_loss=unknown, fenced=why)
        self.led(ended)

    @rule()
    def rejoin(self) -> None:
        bring_back(REAL, self.world)

    @rule()
    def accept(self) -> None:
        self.led(accept(REAL, self.world))

    def led(self, ended: str) -> None:
        """Insist that what is done has left no endpoint that could be told paused, or leading elsewhere."""
        told = known(REAL, self.world)
        if ended == "done" and told["operation"] is None:
            for endpoint in self.world.endpoints.values():
                assert endpoint.untold or (endpoint.points_to, endpoint.paused) == (told["active"], False)

    @rule(name=st.sampled_from(ENDPOINTS), what=st.sampled_from(["stops", "is cut off", "answers again"]))
    def an_endpoint(self, name: str, what: str) -> None:
        endpoint = self.world.endpoints[name]
        if what == "stops":
            endpoint.crash()
        else:
            endpoint.unreachable = what == "is cut off"

    @rule()
    def hosts_of_endpoints_are_booted(self) -> None:
        start_endpoints(self.world)

    @rule(synchronous=st.booleans())
    def it_is_declared(self, *, synchronous: bool) -> None:
        self.world.synchronous = synchronous

    @rule(role=MEMBERS, attribute=st.sampled_from(["tears", "rewindable", "readable"]), value=st.booleans())
    def a_rejoin_will_go_another_way(self, role: str, attribute: str, *, value: bool) -> None:
        setattr(self.world.servers[role], attribute, value)

    @rule(active=MEMBERS, off=st.integers(-2, 2))
    def a_program_runs(self, active: str, off: int) -> None:
        told = known(REAL, self.world)
        epoch = max(told["epoch"] + off, 0)
        before = {role: server.roles for role, server in self.world.servers.items()}
        outcome(REAL, self.world, active, epoch, by="a program")
        if off < 0 and told["operation"] is None and known(REAL, self.world)["epoch"] <= told["epoch"]:
            highest = max((roles["epoch"] for roles in before.values() if roles), default=0)
            assert known(REAL, self.world)["epoch"] == highest

    @rule()
    def the_network_is_mended(self) -> None:
        self.world.mend()

    @rule(role=MEMBERS)
    def a_server_is_started_by_hand(self, role: str) -> None:
        self.world.servers[role].start()

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def no_endpoint_is_left_paused(self) -> None:
        if known(REAL, self.world)["operation"] is None:
            paused = [endpoint for endpoint in self.world.endpoints.values() if endpoint.paused and not endpoint.untold]
            assert not paused

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def nothing_is_lost_and_there_are_never_two(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """Let an operator put everything right: nothing must be left that no command gets out of."""
        if not hasattr(self, "world"):
            return
        self.world.at.clear()
        put_right(self.world)
        self._end_the_failover()
        for to in ("primary", "replica"):
            ended = [command(REAL, self.world, to) for _ in range(3)]
            assert ended[-1] == "done", ended
            finished(REAL, self.world, to, known(REAL, self.world)["epoch"])

    def _end_the_failover(self) -> None:
        told = known(REAL, self.world)
        said: list[str] = []
        for _ in range(4):
            under_way = told["operation"]
            if under_way and under_way["kind"] == "failover":
                accepted: dict[str, Any] = {"max_data_loss": 10_000, "accept_unknown_loss": True}
                said.append(fail_over(REAL, self.world, under_way["target"], **accepted))
            elif told.get("away") or (under_way and under_way["kind"] == "rejoin"):
                said.append(bring_back(REAL, self.world))
            put_right(self.world)
            told = known(REAL, self.world)
        assert not told.get("away"), said


@pytest.mark.parametrize("part", range(2))
def test_no_schedule_of_faults_and_commands_breaks_anything(part: int) -> None:
    print(f"HARMONY_TEST_SEED={SEED}")
    profile = settings(
        max_examples=EXAMPLES // 2,
        stateful_step_count=25,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        phases=[Phase.generate, Phase.shrink],
    )
    run_state_machine_as_test(seed(SEED + part)(Schedules), settings=profile)  # type: ignore[no-untyped-call]
