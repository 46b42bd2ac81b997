"""The runner over sites in memory: cut off, failing and disturbed at every point of every act.

The world checks at each point that there are never two primaries, that the one that takes writes has everything that
was ever acknowledged, in order and once, and that no site goes back to a lower epoch.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harmony_pulumi.errors import SiteError, UnreachableError
from tests.orchestration.code import (
    REAL,
    Code,
    accept,
    active_member,
    bring_back,
    command,
    finished,
    known,
    outcome,
    reach,
    start_endpoints,
)
from tests.orchestration.sites import Killed, Record, World, pair_site, roles


def kill(world: World, label: str) -> None:
    world.dead = True
    raise Killed(label)


def fail(world: World, label: str) -> None:
    raise SiteError(f"failed at {label}")


def time_out(world: World, label: str) -> None:
    raise UnreachableError(f"no answer at {label}")


def interrupt(world: World, label: str) -> None:
    raise KeyboardInterrupt


def labels_of(code: Code = REAL) -> list[str]:
    """Return every point that a switchover passes."""
    world = World(code.host)
    reach(code, world, "replica", 1)
    return world.labels


def can_fail(label: str) -> bool:
    """Tell whether an act may raise there: looking never does, and before the lock nothing was begun."""
    return ".observe" not in label and ".alone" not in label


def last_of(labels: list[str], text: str) -> int:
    return max(number for number, label in enumerate(labels) if text in label)


# -- as it should go ---------------------------------------------------------------------------------------------------


def test_a_switchover_and_one_back_lose_nothing(code: Code) -> None:
    world = World(code.host)
    reach(code, world, "primary", 0)
    finished(code, world, "primary", 0)
    for epoch, active in enumerate(("replica", "primary", "replica", "primary"), 1):
        reach(code, world, active, epoch)
        finished(code, world, active, epoch)
        assert world.servers["primary"].timeline == epoch + 1
    assert len(world.acknowledged) > 100


def test_reaching_what_is_reached_already_touches_no_role(code: Code) -> None:
    world = World(code.host)
    reach(code, world, "replica", 1)
    world.labels.clear()
    reach(code, world, "replica", 1)
    finished(code, world, "replica", 1)
    assert not [label for label in world.labels if "tell" in label or "demote" in label or "promote" in label]


def test_a_raised_epoch_alone_is_told_and_moves_nothing(code: Code) -> None:
    world = World(code.host)
    reach(code, world, "primary", 1)
    finished(code, world, "primary", 1)
    assert world.servers["primary"].timeline == 1


# -- cut off, failing, disturbed ---------------------------------------------------------------------------------------


def test_a_killed_process_does_nothing_more(code: Code) -> None:
    for number in range(len(labels_of(code))):
        world = World(code.host)
        left: list[str] = []

        def stop(world: World, label: str, left: list[str] = left) -> None:
            left.append(world.picture())
            kill(world, label)

        world.at[number] = stop
        with pytest.raises(Killed):
            reach(code, world, "replica", 1)
        for server in world.servers.values():
            server.holder = None
        assert [world.picture()] == [text.replace("holder='the first'", "holder=None") for text in left]


def test_killed_at_any_point_the_next_run_finishes_it(code: Code) -> None:
    for number, label in enumerate(labels_of(code)):
        world = World(code.host)
        world.at[number] = kill
        assert outcome(code, world, "replica", 1) == "killed", label
        assert outcome(code, world, "replica", 1) == "done", label
        finished(code, world, "replica", 1)


def test_killed_at_any_point_the_command_finishes_it(code: Code) -> None:
    for number, label in enumerate(labels_of(code)):
        world = World(code.host)
        world.at[number] = kill
        assert outcome(code, world, "replica", 1) == "killed", label
        assert command(code, world, "replica") == "done", label
        finished(code, world, "replica", 1)


def settled(code: Code, world: World, ended: str, where: str) -> None:
    """Assert that a run ended well, or with the old primary back, or at a promotion that the next run finishes."""
    if ended == "done":
        finished(code, world, "replica", 1)
        return
    world.come_to_rest()
    leader = active_member(world)
    if leader == "montreal":
        told = known(code, world)
        given_up = "given up, and montreal is active" in ended
        assert given_up or told["operation"] is None or told["operation"]["given_up"], (where, ended)
    told = known(code, world)
    if told["operation"] is None:
        assert outcome(code, world, told["active"], told["epoch"]) == "done", where
        finished(code, world, told["active"], told["epoch"])
        epoch = told["epoch"] + (told["active"] != "replica")
    else:
        last = outcome(code, world, "replica", 1)
        assert last == "done" or "given up" in last, (where, ended, last)
        told = known(code, world)
        epoch = told["epoch"] + (told["active"] != "replica")
    assert outcome(code, world, "replica", epoch) == "done", where
    finished(code, world, "replica", epoch)


@pytest.mark.parametrize("happens", [fail, time_out, interrupt])
def test_an_act_that_fails_once_is_finished_or_taken_back(code: Code, happens: Callable[[World, str], None]) -> None:
    labels = labels_of(code)
    demoted, promoting = last_of(labels, "demote: before"), last_of(labels, "promote: before")
    for number, label in enumerate(labels):
        if not can_fail(label) and happens is not interrupt:
            continue
        world = World(code.host)
        world.at[number] = happens
        ended = outcome(code, world, "replica", 1)
        if demoted <= number < promoting and ended != "interrupted":
            assert active_member(world) in {"montreal", "toronto"}, (label, ended)
        settled(code, world, ended, label)


def test_an_interrupt_after_the_point_of_no_return_leaves_nobody_without_a_primary(code: Code) -> None:
    labels = labels_of(code)
    for number in range(last_of(labels, "promote: before"), last_of(labels, "follow: before") + 1):
        world = World(code.host)
        world.at[number] = interrupt
        assert outcome(code, world, "replica", 1) == "done", labels[number]
        assert active_member(world) == "toronto"


def crash(role: str) -> Callable[[World, str], None]:
    return lambda world, label: world.servers[role].crash()


def restart(role: str) -> Callable[[World, str], None]:
    def happens(world: World, label: str) -> None:
        world.servers[role].crash()
        world.servers[role].start()

    return happens


def start(role: str) -> Callable[[World, str], None]:
    return lambda world, label: world.servers[role].start()


def cut_off(role: str) -> Callable[[World, str], None]:
    def happens(world: World, label: str) -> None:
        world.servers[role].unreachable = True

    return happens


def cut_link(world: World, label: str) -> None:
    world.servers["replica"].linked = False


def fall_silent(world: World, label: str) -> None:
    world.servers["replica"].hears = False


def lag(world: World, label: str) -> None:
    world.servers["replica"].replays = False


def endpoint_stops(world: World, label: str) -> None:
    for endpoint in list(world.endpoints.values())[:1]:
        endpoint.crash()


def endpoint_is_cut_off(world: World, label: str) -> None:
    for endpoint in list(world.endpoints.values())[:1]:
        endpoint.unreachable = True


DISTURBANCES = {
    "the source crashes": crash("primary"),
    "the source restarts": restart("primary"),
    "the source is started by hand": start("primary"),
    "the source is cut off": cut_off("primary"),
    "the target crashes": crash("replica"),
    "the target restarts": restart("replica"),
    "the target is started by hand": start("replica"),
    "the target is cut off": cut_off("replica"),
    "the standby loses its connection": cut_link,
    "the standby replays nothing more": lag,
    "an endpoint stops": endpoint_stops,
    "an endpoint is cut off": endpoint_is_cut_off,
    "nothing that is sent arrives": fall_silent,
}


def put_right(world: World) -> None:
    """Do what an operator does who knows nothing of a switchover: mend the network, start what does not run."""
    world.mend()
    for server in world.servers.values():
        server.start()
    start_endpoints(world)
    world.come_to_rest()


@pytest.mark.parametrize("what", DISTURBANCES)
@pytest.mark.parametrize("killed", [False, True])
def test_whatever_happens_to_a_server_all_is_well_once_it_is_back(code: Code, what: str, *, killed: bool) -> None:
    for number, label in enumerate(labels_of(code)):
        world = World(code.host)

        def happens(world: World, label: str) -> None:
            DISTURBANCES[what](world, label)
            if killed:
                kill(world, label)

        world.at[number] = happens
        first = outcome(code, world, "replica", 1)
        put_right(world)
        second = command(code, world, "replica")
        if second != "done":
            second = command(code, world, "replica")
        assert second == "done", (label, first, second)
        told = known(code, world)
        finished(code, world, "replica", told["epoch"])


def test_a_target_that_is_cut_off_before_it_was_told_brings_the_old_primary_back(code: Code) -> None:
    labels = labels_of(code)
    for number in range(last_of(labels, "demote: stopped"), last_of(labels, "toronto.verify: after")):
        world = World(code.host)
        world.at[number] = cut_off("replica")
        outcome(code, world, "replica", 1)
        assert [server.name for server in world.primaries] == ["montreal"], labels[number]


# -- the token ---------------------------------------------------------------------------------------------------------


def test_a_target_with_another_record_is_not_promoted(code: Code) -> None:
    labels = labels_of(code)

    def forge(world: World, label: str) -> None:
        if label == "toronto.verify: before":
            forged: Record = (1, "shutdown checkpoint of another history")
            world.servers["replica"].wal[-1] = forged

    def rebuild(world: World, label: str) -> None:
        if label == "toronto.verify: before":
            world.servers["replica"].system_identifier = "7000000000000000002"

    stopping = last_of(labels, "demote: before")
    for happens in (forge, rebuild, lag, cut_link, crash("replica")):
        world = World(code.host)
        if happens in (forge, rebuild):
            world.whenever = happens
        else:
            world.at[stopping] = happens
        ended = outcome(code, world, "replica", 1)
        assert "the switchover was given up, and montreal is active" in ended
        assert ("toronto streaming from montreal" in ended) == (happens in (forge, cut_link)), ended
        world.come_to_rest()
        assert [server.name for server in world.primaries] == ["montreal"]
        assert world.servers["primary"].timeline == 1
        assert known(code, world)["operation"] is None


def test_an_interrupt_while_the_standby_is_waited_for_leaves_nothing_open(
    code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(code.operation, "wait_for", interrupted)
    world = World(code.host)
    world.at[last_of(labels_of(code), "demote: before")] = cut_link
    ended = outcome(code, world, "replica", 1)
    assert "the switchover was given up, and montreal is active" in ended
    assert "toronto was not waited for, which is to stream again" in ended
    assert known(code, world)["operation"] is None


# -- refused -----------------------------------------------------------------------------------------------------------


def test_a_stale_epoch_is_refused_and_changes_nothing(code: Code) -> None:
    world = World(code.host, busy=False)
    reach(code, world, "replica", 1)
    before = world.picture()
    for active, epoch, numbers in (
        ("primary", 0, "active='replica', epoch=1"),
        ("primary", 1, "active='primary', epoch=2"),
        ("primary", 3, "active='primary', epoch=2"),
        ("replica", 0, "active='replica', epoch=1"),
        ("replica", 3, "active='replica', epoch=1"),
    ):
        assert numbers in outcome(code, world, active, epoch)
        assert world.picture() == before


def test_the_second_of_two_operators_is_told_who_holds_it(code: Code) -> None:
    labels = labels_of(code)
    held = range(labels.index("montreal.alone: after") + 1, last_of(labels, "toronto.tell: after"))
    for number in held:
        world = World(code.host)
        said: list[str] = []

        def second(world: World, label: str, said: list[str] = said) -> None:
            before = world.picture()
            said.append(outcome(code, world, "replica", 1, by="the second"))
            assert world.acknowledged or before == world.picture()

        world.at[number] = second
        first = outcome(code, world, "replica", 1, by="the first")
        assert first == "done", (labels[number], first)
        assert "the first has held it" in said[0], labels[number]
        finished(code, world, "replica", 1)


def test_what_another_operator_did_meanwhile_is_not_overwritten(code: Code) -> None:
    """The first looks at a pair that was told nothing; before it has the lock, the second begins, and is killed."""
    plain = World(code.host)
    reach(code, plain, "primary", 0)
    before_lock = plain.labels.index("montreal.alone: before")
    for number, label in enumerate(labels_of(code)):
        world = World(code.host)

        def meanwhile(world: World, label: str, number: int = number) -> None:
            world.at[world.count + number] = kill
            assert outcome(code, world, "replica", 1, by="the second") == "killed"
            world.dead = False

        world.at[before_lock] = meanwhile
        outcome(code, world, "primary", 0, by="the first")
        told = known(code, world)
        if told["operation"] is None and told["epoch"] == 0:
            assert active_member(world) == "montreal", label
        assert command(code, world, "replica") == "done", label
        finished(code, world, "replica", 1)


def test_nothing_begins_where_preflight_finds_a_problem(code: Code) -> None:
    world = World(code.host)
    world.servers["replica"].linked = False
    ended = outcome(code, world, "replica", 1)
    assert "no switchover to toronto; nothing was touched\n  - streaming: toronto is not connected" in ended
    assert not [label for label in world.labels if "tell" in label or "prepare" in label]


def misled(world: World) -> None:
    world.endpoints["kingston"].points_to = "replica"


def out_of_reach(world: World) -> None:
    world.endpoints["kingston"].unreachable = True


def not_running(world: World) -> None:
    world.endpoints["kingston"].crash()


@pytest.mark.parametrize("state", [misled, out_of_reach, not_running])
def test_a_switchover_does_not_begin_where_an_endpoint_could_not_go_along(
    code: Code, state: Callable[[World], None]
) -> None:
    world = World(code.host, endpoints=("ottawa", "kingston"))
    reach(code, world, "primary", 0)
    state(world)
    before, world.labels = repr(world.endpoints), []
    ended = outcome(code, world, "replica", 1)
    assert "no switchover to toronto; nothing was touched\n  - endpoint: kingston " in ended
    assert "ottawa" not in ended
    assert repr(world.endpoints) == before
    assert not [label for label in world.labels if "tell" in label or "prepare" in label]


def test_nothing_begins_where_the_standby_hears_nothing_though_it_seems_connected(code: Code) -> None:
    for number in range(labels_of(code).index("montreal.echo: before") + 1):
        world = World(code.host)
        world.at[number] = fall_silent
        ended = outcome(code, world, "replica", 1)
        assert (
            "no switchover to toronto; nothing was touched\n  - link: a word of toronto: not within 5 s, though"
            in ended
        )
        assert not [label for label in world.labels if "tell" in label or "prepare" in label]
        assert [server.name for server in world.primaries] == ["montreal"]
        world.mend()
        assert outcome(code, world, "replica", 1) == "done"
        finished(code, world, "replica", 1)


def test_nothing_begins_where_replay_stands_still(code: Code) -> None:
    world = World(code.host)
    world.at[0] = lag
    ended = outcome(code, world, "replica", 1)
    assert "  - link: the replay on toronto of a record that montreal wrote for this: not within 5 s" in ended
    assert [server.name for server in world.primaries] == ["montreal"]
    assert known(code, world)["operation"] is None


def test_a_member_promoted_by_hand_is_drift_that_moves_no_role(code: Code) -> None:
    world = World(code.host, busy=False)
    world.servers["primary"].crash()
    world.promote(world.servers["replica"], by_hand=True)
    ended = outcome(code, world, "primary", 0)
    assert "toronto accepts writes, and montreal is to be active alone" in ended
    assert not [label for label in world.labels if "tell" in label]


def promoted_by_hand(code: Code, number: int, *, busy: bool = False, cut_at: int | None = None) -> World:
    """Return a pair whose switchover was killed at a point, and whose target somebody promoted there."""
    world = World(code.host, busy=busy)

    def by_hand(world: World, label: str) -> None:
        world.promote(world.servers["replica"], by_hand=True)
        kill(world, label)

    if cut_at is not None:
        world.at[cut_at] = cut_link
    world.at[number] = by_hand
    assert outcome(code, world, "replica", 1) == "killed"
    return world


def stopped_and_untold(code: Code) -> range:
    """Return the points at which the source is stopped, and the target was not told that it is to lead."""
    labels = labels_of(code)
    stopped = labels.index("montreal.demote: stopped")
    return range(stopped, labels.index("toronto.tell: before", stopped) + 1)


@pytest.mark.parametrize("busy", [False, True])
def test_a_target_promoted_by_hand_that_has_everything_is_active_by_the_same_command(code: Code, *, busy: bool) -> None:
    for number in stopped_and_untold(code):
        world = promoted_by_hand(code, number, busy=busy)
        assert outcome(code, world, "replica", 1) == "done"
        finished(code, world, "replica", 1)
        assert not world.lost
        assert "toronto was promoted by somebody" in " ".join(world.shown)


def test_that_a_target_promoted_by_hand_is_active_is_recorded_before_the_other_follows(code: Code) -> None:
    world = promoted_by_hand(code, stopped_and_untold(code)[0])

    def follows(world: World, label: str) -> None:
        if label == "montreal.follow: before":
            assert world.endpoints["kingston"].points_to == "replica", "clients do not wait for that"
            kill(world, label)

    world.whenever = follows
    assert outcome(code, world, "replica", 1) == "killed"
    told = [server.roles for server in world.servers.values() if server.roles]
    assert [(each["epoch"], each["active"]) for each in told] == [(1, "replica"), (1, "replica")]


def test_a_target_promoted_by_hand_that_lacks_something_is_accepted_only_by_a_word(code: Code) -> None:
    labels = labels_of(code)
    for number in range(stopped_and_untold(code)[0], labels.index("toronto.verify: before") + 1):
        world = promoted_by_hand(code, number, busy=True, cut_at=labels.index("montreal.ease: before"))
        before = [server.roles for server in world.servers.values()]
        for _ in range(2):
            said = command(code, world, "replica")
            assert "toronto is a primary, and not by this switchover: somebody promoted it" in said
            assert "If toronto is to stay, run `harmony accept`" in said
            assert "The WAL of montreal from where toronto took over has" in said
            assert [server.roles for server in world.servers.values()] == before
        assert accept(code, world) == "done"
        assert known(code, world)["away"]["member"] == "primary"
        assert world.lost
        put_right(world)
        assert bring_back(code, world) == "done"
        finished(code, world, "replica", 2)


def test_what_a_target_promoted_by_hand_lacks_is_not_guessed(code: Code) -> None:
    world = promoted_by_hand(code, stopped_and_untold(code)[0])
    world.servers["primary"].readable = False
    said = outcome(code, world, "replica", 1)
    assert "The WAL of montreal from where toronto took over cannot be read: " in said
    world.servers["primary"].unreachable = True
    assert "montreal is unreachable" in outcome(code, world, "replica", 1)
    world.mend()
    world.servers["primary"].readable = True
    assert outcome(code, world, "replica", 1) == "done"
    finished(code, world, "replica", 1)


def test_a_target_promoted_by_hand_waits_for_nobody_once_it_is_accepted(code: Code) -> None:
    labels = labels_of(code)
    world = World(code.host)
    world.synchronous = True
    assert outcome(code, world, "primary", 0) == "done"
    world.at[world.count + labels.index("montreal.demote: before")] = cut_link

    def by_hand(world: World, label: str) -> None:
        if label == "montreal.demote: after":
            world.promote(world.servers["replica"], by_hand=True)
            kill(world, label)

    world.whenever = by_hand
    assert outcome(code, world, "replica", 1) == "killed"
    world.whenever = None
    assert world.servers["replica"].waits_for == ["montreal"]
    assert accept(code, world) == "done"
    assert world.servers["replica"].waits_for == []
    assert "commits wait for nobody until montreal has rejoined" in " ".join(world.shown)


def test_a_target_that_was_promoted_by_hand_and_runs_no_more_is_asked_for_first(code: Code) -> None:
    for number in stopped_and_untold(code):
        world = promoted_by_hand(code, number)
        world.servers["replica"].crash()
        assert "toronto is stopped and was a primary, not by this switchover" in outcome(code, world, "replica", 1)
        assert not world.primaries
        world.servers["replica"].start()
        assert outcome(code, world, "replica", 1) == "done"
        finished(code, world, "replica", 1)


def test_a_primary_is_not_stopped_for_a_target_that_somebody_promoted_and_stopped(code: Code) -> None:
    labels = labels_of(code)
    world = World(code.host)
    world.at[labels.index("montreal.demote: before")] = kill
    assert outcome(code, world, "replica", 1) == "killed"
    replica = world.servers["replica"]
    replica.crash()
    replica.signal = False
    assert "toronto is stopped and was a primary: somebody promoted it" in outcome(code, world, "replica", 1)
    assert [server.name for server in world.primaries] == ["montreal"]
    assert known(code, world)["operation"] is None


def test_what_was_begun_can_be_looked_at_without_going_on(code: Code) -> None:
    for number, label in enumerate(labels_of(code)):
        world = World(code.host, busy=False)
        world.at[number] = kill
        assert outcome(code, world, "replica", 1) == "killed"
        world.dead = False
        under_way = known(code, world)["operation"]
        if under_way:
            before = world.picture()
            seen = {role: pair_site(world, role).observe() for role in world.servers}
            assert code.runner.resumption(under_way, seen).verdict == "ok", label
            assert world.picture() == before
    world = promoted_by_hand(code, stopped_and_untold(code)[0])
    world.dead = False
    seen = {role: pair_site(world, role).observe() for role in world.servers}
    found = code.runner.resumption(known(code, world)["operation"], seen)
    assert (found.verdict, found.found[:25]) == ("warning", "somebody promoted toronto")
    world.servers["replica"].crash()
    seen = {role: pair_site(world, role).observe() for role in world.servers}
    found = code.runner.resumption(known(code, world)["operation"], seen)
    assert found.verdict == "problem"


def test_a_source_that_lost_what_it_was_told_is_told_again(code: Code) -> None:
    labels = labels_of(code)

    def forgets(world: World, label: str) -> None:
        world.servers["primary"].roles = None
        kill(world, label)

    world = World(code.host)
    world.forgets("primary")
    world.at[last_of(labels, "promote: after")] = forgets
    assert outcome(code, world, "replica", 1) == "killed"
    assert outcome(code, world, "replica", 1) == "done"
    finished(code, world, "replica", 1)


def test_a_site_takes_no_lower_epoch_and_no_other_pair(code: Code) -> None:
    world = World(code.host)
    site = world.servers["primary"]
    site.roles = roles(5, "primary", pair="shop/prod/other")
    assert "shop/prod/other" in outcome(code, world, "primary", 5)
