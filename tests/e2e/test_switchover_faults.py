"""Whoever dies, wherever, while roles move: the same again ends it, nothing is lost, and there are never two writers.

By default, a sample of the boundaries between two steps, and between two commands, is visited, by a seed that is
printed (HARMONY_TEST_SEED); HARMONY_TEST_ALL=1 visits all.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from harmony_pulumi.capabilities.site import Observation, Terms
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.members import look
from harmony_pulumi.orchestration.pair import pair_of
from harmony_pulumi.orchestration.runner import resumption, take_as_it_is
from tests.e2e.conftest import Stack, as_os_user, eventually, found_postgresql, stacks, stop_postmaster, superuser
from tests.e2e.driver import REFUSED, Act, Kind, Plan
from tests.e2e.history import Clients
from tests.e2e.sampling import ALL, SEED, sampled

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
STATES = ("started", "done")
STEPS = [f"{step}:{state}" for step in ("prepare", "demote", "verify", "promote", "follow") for state in STATES]
LAST_STEPS = [f"{step}:{state}" for step in ("settle", "streaming") for state in STATES]
TOLD = ["prepare:told", "verify:told", "settle:told"]
KILLED = -9


def act(at: str, do: str = "die", times: int = 1) -> Act:
    return {"at": at, "times": times, "do": do}


@dataclass
class Driven:
    """What a driver left."""

    status: int
    passed: list[dict[str, Any]]
    said: str

    @property
    def boundaries(self) -> list[str]:
        return [passed["at"] for passed in self.passed]


@dataclass
class Mover:
    """A deployed pair whose roles are moved to and fro by drivers."""

    stack: Stack
    handle: dict[str, Any]
    outputs: dict[str, Any]
    ca: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])
    """What whoever moves the roles has in its environment, beside ours."""

    @classmethod
    def deployed(cls, stack: Stack, config: str = "") -> Self:
        stack.pair(config)
        return cls.of(stack)

    @classmethod
    def of(cls, stack: Stack) -> Self:
        """Deploy the pair that is the program of a stack."""
        stack.up()
        return cls.found_in(stack)

    @classmethod
    def found_in(cls, stack: Stack) -> Self:
        """Return the pair that a stack has deployed."""
        outputs = stack.outputs()
        ca = stack.folder / "ca.crt"
        ca.write_text(outputs["ca_certificate"])
        return cls(stack, {**outputs["site"], "deadline": 60}, outputs, ca)

    def look(self) -> dict[str, Observation]:
        return look(pair_of(self.handle))

    def told(self, role: str) -> dict[str, Any]:
        path = self.root(role) / "roles.json"
        return json.loads(path.read_text()) if path.exists() else {"epoch": 0, "active": "primary", "operation": None}

    def retell(self, role: str, roles: dict[str, Any]) -> None:
        """Tamper with what a site was told."""
        (self.root(role) / "roles.json").write_text(json.dumps(roles))

    def root(self, role: str) -> Path:
        return Path(self.handle["members"][role]["root"])

    def port(self, role: str) -> int:
        return int(json.loads((self.root(role) / "harmony.json").read_text())["port"])

    @property
    def epoch(self) -> int:
        return max(int(self.told(role)["epoch"]) for role in ("primary", "replica"))

    @property
    def next_epoch(self) -> int:
        """Return the epoch of what is under way, or else of what is begun next."""
        told = [self.told(role) for role in ("primary", "replica")]
        under_way = [int(roles["operation"]["epoch"]) for roles in told if roles["operation"]]
        return max(under_way, default=1 + max(int(roles["epoch"]) for roles in told))

    @property
    def leader(self) -> str:
        """Return the one primary; fail if there is none, or a second one."""
        (role,) = self.primaries()
        return role

    def primaries(self) -> list[str]:
        return [role for role, seen in self.look().items() if seen["role"] == "primary"]

    def healthy(self) -> bool:
        seen = self.look()
        streaming = [r for o in seen.values() for r in o["replicas"] if r["state"] == "streaming"]
        done = all(self.told(role)["operation"] is None for role in seen)
        return done and len(streaming) == 1 and sorted(o["role"] for o in seen.values()) == ["primary", "standby"]

    def start(self, role: str, env: Mapping[str, str] | None = None) -> None:
        """Start a server as whoever runs it would: again, while there are children left of one that was killed."""
        root = self.root(role)
        variables = [f"{name}={value}" for name, value in (env or {}).items()]
        argv = [f"{found_postgresql().path}/pg_ctl", "start", "-sw", "-D", f"{root}/config"]
        argv += ["-l", f"{root}/log/postgresql.log"]

        def starts() -> bool:
            done = subprocess.run(
                as_os_user("env", *variables, *argv), check=False, timeout=60, cwd="/", stdin=subprocess.DEVNULL
            )
            return done.returncode == 0

        eventually(starts, f"the server in {root} to start")

    def drive(
        self,
        active: str,
        epoch: int,
        acts: Sequence[Act] = (),
        *,
        kind: Kind = "switchover",
        terms: Terms | None = None,
        die_at_command: int = 0,
        die_after: float = 0.0,
    ) -> Driven:
        """Move the roles in a process of its own; at its end, there is at most one that takes writes."""
        plan: Plan = {
            "handle": self.handle,
            "kind": kind,
            "active": active,
            "epoch": epoch,
            "terms": terms,
            "acts": list(acts),
            "die_at_command": die_at_command,
            "die_after": die_after,
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.e2e.driver"],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            input=json.dumps(plan),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        passed = [json.loads(line) for line in done.stdout.splitlines()]
        driven = Driven(done.returncode, passed, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        assert len(self.primaries()) <= 1, driven
        return driven

    def clients(self) -> Clients:
        """Return clients that write all the while."""
        return Clients([self.outputs["uri"]] * 2, self.ca, pause=0.01)

    def insist(self, clients: Clients, leader: str) -> None:
        """Clients are served by one member; nothing was lost; both members are equal, and know of nothing under way."""
        clients.wait_until_served()
        assert self.leader == leader
        follower = other_than(leader)
        found = clients.insist(self.outputs[f"{leader}_uri"], self.outputs[f"{follower}_uri"])
        eventually(self.healthy, "the standby to stream")
        assert self.told("primary")["active"] == self.told("replica")["active"] == leader
        print(f"{leader} is active at epoch {self.epoch}: {found}")


def other_than(role: str) -> str:
    return "replica" if role == "primary" else "primary"


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[[], Mover]]:
    """Return the pair of before, or a new one if that was left ill by a test that failed."""
    print(f"HARMONY_TEST_SEED={SEED}")  # Shown if a test fails; the chosen boundaries are in the names.
    with stacks(tmp_path_factory) as make:
        made: list[Mover] = []

        def get() -> Mover:
            if not made or not made[-1].healthy():
                made.append(Mover.deployed(make()))
            return made[-1]

        yield get


@pytest.fixture
def mover(current: Callable[[], Mover]) -> Mover:
    return current()


def kill_and_run_again(mover: Mover, acts: Sequence[Act] = (), **when: Any) -> None:
    """Kill the driver of a switchover, and do the same again: it comes to what was wanted."""
    target, epoch = other_than(mover.leader), mover.epoch + 1
    with mover.clients() as clients:
        first = mover.drive(target, epoch, acts, **when)
        # It looks as often as it must, so the command of that number may be beyond its end.
        assert first.status == KILLED or ("die_at_command" in when and first.status == 0), first
        again = mover.drive(target, epoch)
        assert again.status == 0, again.said
        assert mover.epoch == epoch
        mover.insist(clients, target)


def test_the_boundaries_are_those_that_are_visited(mover: Mover) -> None:
    target = other_than(mover.leader)
    with mover.clients() as clients:
        done = mover.drive(target, mover.epoch + 1)
        assert done.status == 0, done.said
        mover.insist(clients, target)
    assert [at for at in done.boundaries if not at.endswith(":told")] == [*STEPS, *LAST_STEPS, "end"]
    # Both are told what begins, and, once both are ready, that it may go on.
    told = ["prepare:told", *TOLD]
    assert [at for at in done.boundaries if at.endswith(":told")] == [at for at in told for _ in range(2)]


@pytest.mark.parametrize("at", sampled([*STEPS, *LAST_STEPS], 4))
def test_whoever_moves_roles_is_killed_between_two_steps(mover: Mover, at: str) -> None:
    kill_and_run_again(mover, [act(at)])


@pytest.mark.parametrize("at", sampled(TOLD, 1))
def test_whoever_moves_roles_is_killed_when_one_site_knows_and_the_other_does_not(mover: Mover, at: str) -> None:
    kill_and_run_again(mover, [act(at)])


def test_whoever_moves_roles_is_killed_between_two_commands(mover: Mover) -> None:
    target = other_than(mover.leader)
    began = time.monotonic()
    done = mover.drive(target, mover.epoch + 1)
    assert done.status == 0, done.said
    took, commands = time.monotonic() - began, {passed["at"]: passed["commands"] for passed in done.passed}
    # Those before the first step look, and change nothing; of those after the last one, no two runs have equally many.
    for number in sampled(range(commands["prepare:started"] + 1, commands["settle:done"] + 1), 3):
        print(f"command {number} of {commands['end']}")
        kill_and_run_again(mover, die_at_command=number)
    for share in range(40 if ALL else 1):  # In the middle of one, too.
        after = random.Random(f"{SEED} {share}").uniform(0.05, took * 0.6)
        print(f"after {after:.3f} s of {took:.3f}")
        target, epoch = other_than(mover.leader), mover.epoch + 1
        with mover.clients() as clients:
            first = mover.drive(target, epoch, die_after=after)
            assert first.status in {KILLED, 0}, first
            again = mover.drive(target, epoch)
            assert again.status == 0, again.said
            mover.insist(clients, target)


@pytest.mark.parametrize("at", ["demote:started", *sampled(["prepare:started", "prepare:done"], 0)])
def test_an_old_primary_that_dies_before_it_has_stepped_down_is_the_primary_again(mover: Mover, at: str) -> None:
    source, before = mover.leader, mover.epoch
    with mover.clients() as clients:
        done = mover.drive(other_than(source), before + 1, [act(at, f"kill {source}")])
        assert done.status == REFUSED, done.said
        assert "given up" in done.said
        mover.insist(clients, source)
    assert mover.drive(source, mover.epoch).status == 0


@pytest.mark.parametrize("at", sampled(["demote:done", "verify:started"], 1))
def test_a_target_that_dies_before_it_is_to_be_active_gives_the_old_primary_back(mover: Mover, at: str) -> None:
    source = mover.leader
    target, epoch = other_than(source), mover.epoch + 1
    with mover.clients() as clients:
        done = mover.drive(target, epoch, [act(at, f"kill {target}")])
        assert done.status == REFUSED, done.said
        assert "given up" in done.said
        clients.wait_until_served()
        assert mover.leader == source
        again = mover.drive(target, mover.epoch + 1)
        assert again.status == REFUSED
        assert "nothing was touched" in again.said
        mover.start(target)
        mover.insist(clients, source)
    kill_and_run_again(mover, [act("promote:started")])


@pytest.mark.parametrize("at", sampled(["verify:told", "verify:done", "promote:started"], 1))
def test_a_target_that_dies_once_it_is_to_be_active_is_started_and_promoted(mover: Mover, at: str) -> None:
    target, epoch = other_than(mover.leader), mover.epoch + 1
    with mover.clients() as clients:
        done = mover.drive(target, epoch, [act(at, f"kill {target}")])
        assert done.status == 0, done.said
        mover.insist(clients, target)


def test_a_target_that_dies_as_the_new_primary_is_the_primary_again_once_it_is_started(mover: Mover) -> None:
    target, epoch = other_than(mover.leader), mover.epoch + 1
    with mover.clients() as clients:
        done = mover.drive(target, epoch, [act("promote:done", f"kill {target}")])
        assert done.status == REFUSED, done.said
        assert mover.primaries() == []
        mover.start(target)
        again = mover.drive(target, epoch)
        assert again.status == 0, again.said
        mover.insist(clients, target)


def test_an_old_primary_that_dies_as_a_standby_is_started_and_follows(mover: Mover) -> None:
    source = mover.leader
    target, epoch = other_than(source), mover.epoch + 1
    with mover.clients() as clients:
        done = mover.drive(target, epoch, [act("follow:done", f"kill {source}")])
        assert done.status == REFUSED, done.said
        clients.wait_until_served()
        mover.start(source)
        again = mover.drive(target, epoch)
        assert again.status == 0, again.said
        mover.insist(clients, target)


GIVING_UP = [f"{step}:{state}" for step in ("withdraw", "reinstate", "close") for state in STATES]


@pytest.mark.parametrize("at", sampled([*GIVING_UP, "withdraw:told", "close:told", "give-up:told"], 2))
def test_whoever_gives_up_is_killed_and_the_next_run_ends_it(mover: Mover, at: str) -> None:
    source = mover.leader
    target, epoch = other_than(source), mover.epoch + 1
    with mover.clients() as clients:
        # Told already, the source alone, so that there is something to withdraw.
        first = mover.drive(target, epoch, [act("verify:told")])
        assert first.status == KILLED, first
        roles = mover.told(source)
        roles["operation"]["token"]["lsn"] = "0/28"
        mover.retell(source, roles)
        second = mover.drive(target, epoch, [act(at)])
        assert second.status == KILLED, second
        third = mover.drive(target, epoch)
        assert third.status == REFUSED, third.said
        assert mover.epoch == epoch + 1
        mover.insist(clients, source)
    assert mover.drive(source, mover.epoch).status == 0


def refuses_another_token(mover: Mover, what: str) -> None:
    """Have the token that was kept be another one: this ends the switchover, and the old primary is back."""
    source = mover.leader
    target, epoch = other_than(source), mover.epoch + 1
    first = mover.drive(target, epoch, [act("verify:told")])
    assert first.status == KILLED
    old = mover.told(source)["operation"]["token"]
    assert mover.drive(target, epoch).status == 0
    assert mover.drive(source, epoch + 1).status == 0  # Back, to have a token of before.

    with mover.clients() as clients:
        first = mover.drive(target, epoch + 2, [act("verify:told")])
        assert first.status == KILLED
        roles = mover.told(source)
        token = roles["operation"]["token"]
        changed = {
            "record": token["record"].replace("CHECKPOINT_SHUTDOWN", "CHECKPOINT_ONLINE"),
            "lsn": old["lsn"],
            "system_identifier": "7000000000000000000",
            "timeline": token["timeline"] - 1,
        }
        assert {**token, **changed} != token
        roles["operation"]["token"] = old if what == "replayed" else {**token, what: changed[what]}
        mover.retell(source, roles)
        second = mover.drive(target, epoch + 2)
        assert second.status == REFUSED, second.said
        assert "given up" in second.said
        mover.insist(clients, source)
    assert mover.epoch == epoch + 3
    assert mover.drive(source, mover.epoch).status == 0


@pytest.mark.parametrize("what", ["replayed", *sampled(["record", "lsn", "system_identifier", "timeline"], 1)])
def test_a_token_that_is_not_the_one_of_this_stop_is_refused_and_the_old_primary_is_back(
    mover: Mover, what: str
) -> None:
    refuses_another_token(mover, what)


def test_an_operation_of_another_pair_is_not_taken_for_one_of_this(mover: Mover) -> None:
    source = mover.leader
    target, epoch = other_than(source), mover.epoch + 1
    with mover.clients() as clients:
        first = mover.drive(target, epoch, [act("prepare:done")])
        assert first.status == KILLED
        told = {role: mover.told(role) for role in (source, target)}
        for role, roles in told.items():
            mover.retell(role, {**roles, "pair": "acme/prod/other-orders"})
        second = mover.drive(target, epoch)
        assert second.status == REFUSED, second.said
        assert "member of the pair acme/prod/other-orders" in second.said
        assert mover.leader == source
        for role, roles in told.items():
            mover.retell(role, roles)
        assert mover.drive(target, epoch).status == 0
        mover.insist(clients, target)


def test_a_killed_up_is_finished_after_the_lock_that_it_left_is_taken_away(mover: Mover) -> None:
    stack, target, epoch = mover.stack, other_than(mover.leader), mover.epoch + 1
    stack.pair(active=f'Active("{target}", epoch={epoch})')
    log = mover.root(target) / "log/events.jsonl"
    size = log.stat().st_size
    with mover.clients() as clients:
        process = stack.start("up", "--yes", "--skip-preview")
        try:
            eventually(lambda: '"step":"demote"' in log.read_text()[size:], "the old primary to step down")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        assert len(mover.primaries()) <= 1
        assert "the stack is currently locked" in stack.up(expect=1)
        stack.run("cancel", "--yes")
        stack.up()
        mover.insist(clients, target)
    assert stack.outputs()["active"] == target
    stack.up("--expect-no-changes")


def test_two_operators_at_once_do_not_hinder_each_other(mover: Mover) -> None:
    target, epoch = other_than(mover.leader), mover.epoch + 1
    with mover.clients() as clients, ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: mover.drive(target, epoch), range(2)))
        assert 0 in {driven.status for driven in both}, both
        assert {driven.status for driven in both} <= {0, REFUSED}, both
        mover.insist(clients, target)


def promote_by_hand(mover: Mover, role: str) -> None:
    root = mover.root(role)
    argv = [f"{found_postgresql().path}/pg_ctl", "promote", "-sw", "-D", f"{root}/data"]
    subprocess.run(as_os_user(*argv), check=True, timeout=60, cwd="/", stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("at", sampled(["demote:done", "verify:started", "verify:told", "verify:done"], 2))
def test_a_target_that_somebody_promoted_meanwhile_is_active_by_the_same_command(mover: Mover, at: str) -> None:
    source = mover.leader
    target, epoch = other_than(source), mover.epoch + 1
    with mover.clients() as clients:
        first = mover.drive(target, epoch, [act(at)])
        assert first.status == KILLED, first
        promote_by_hand(mover, target)
        clients.wait_until_served()
        under_way = mover.told(source)["operation"]
        assert resumption(under_way, mover.look()).verdict in {"ok", "warning"}
        again = mover.drive(target, epoch)
        assert again.status == 0, again.said
        mover.insist(clients, target)


def test_a_target_that_somebody_promoted_and_that_lacks_something_is_accepted_by_a_word(mover: Mover) -> None:
    source = mover.leader
    target, epoch = other_than(source), mover.epoch + 1
    first = mover.drive(target, epoch, [act("prepare:done")])
    assert first.status == KILLED, first
    stop_postmaster(mover.root(target) / "data", signal.SIGINT)
    superuser(mover.root(source), "CREATE TABLE only_here ()", mover.port(source))
    stop_postmaster(mover.root(source) / "data", signal.SIGINT)
    mover.start(target)
    promote_by_hand(mover, target)
    for _ in range(2):
        again = mover.drive(target, epoch)
        assert again.status == REFUSED, again.said
        assert "is to stay, run `harmony accept`" in again.said
        assert "from where" in again.said
        assert " transaction" in again.said
    before = mover.told(target)
    pair = pair_of(mover.handle)
    found = take_as_it_is(pair, Journal("orders", "accept", print), by="a test")
    assert (found.active, found.epoch) == (target, before["operation"]["epoch"] + 1)
    assert mover.told(source)["away"]["member"] == source
    rejoined = mover.drive(target, found.epoch, kind="rejoin")
    assert rejoined.status == 0, rejoined.said
    eventually(mover.healthy, "the old primary to stream")
