"""Checks that the sites of an implementation keep the contract by which roles are moved: `capabilities.site.RoleSite`.

What orchestration relies on, primitive by primitive, on a deployed pair: what is refused, what may be done twice, and
that nothing is lost. One function a check; its docstring says what is to hold.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from harmony_pulumi.capabilities.site import Operation, Roles, Survey, Terms, Token
from harmony_pulumi.errors import SiteError, UnlockableError
from harmony_pulumi.orchestration.members import Pair, roles_for
from harmony_pulumi.orchestration.rejoin import fork_of
from harmony_pulumi.orchestration.replication import Member, all_alone, missing
from harmony_pulumi.orchestration.roles import Desired, outer_of
from harmony_pulumi.orchestration.wait import wait_for
from harmony_pulumi.testing.report import Report, expect

_DEADLINE = 60.0
_SHORT = 2.0
"""Seconds for what is never to be."""
_WHO = "the conformance kit"


def check_sites(
    make_pair: Callable[[], Pair], commit: Callable[[Member], None], count: Callable[[Member], int]
) -> Report:
    """Check that the sites of a pair keep the contract by which roles are moved, by moving them.

    It takes a minute or so. The pair is to stream, its `primary` to lead, and nobody else to act on it meanwhile. It is
    left so, with a higher epoch. It loses what `commit` commits in one of the checks, as a failover would.

    Args:
        make_pair: makes the pair of its handles, anew at each call: `harmony_pulumi.orchestration.pair.pair_of`.
        commit: commits one transaction on a member that leads.
        count: returns how many of those a member has.

    Returns:
        The checks that they passed.

    Raises:
        ConformanceError: one that they did not pass: what was found, and what is expected.
    """
    trial = _Trial(make_pair, commit, count, make_pair())
    report = Report(" and ".join(sorted({type(m.site).__name__ for m in trial.pair.members.values()})))
    for check in (
        _it_is_seen_who_leads_and_who_streams,
        _whoever_is_at_work_keeps_others_out,
        _what_is_recorded_and_remembered_is_kept,
        _what_is_older_or_of_another_pair_is_refused,
        _what_decides_about_a_role_change_is_surveyed,
        _wal_is_kept_for_a_follower_until_it_is_forgotten,
        _what_the_leader_writes_comes_back,
        _one_that_was_not_told_to_lead_does_not,
        _a_standby_cannot_step_down,
        _a_token_is_of_one_stop_and_only_its_own_is_verified,
        _roles_move_and_nothing_is_lost,
        _what_one_alone_has_is_put_aside_before_it_is_rewound,
        _one_is_copied_anew,
    ):
        report.run(check, trial)
    return report


@dataclass
class _Trial:
    """A pair whose roles are moved."""

    make_pair: Callable[[], Pair]
    commit: Callable[[Member], None]
    count: Callable[[Member], int]
    pair: Pair
    leader: Member = field(init=False)
    follower: Member = field(init=False)

    def __post_init__(self) -> None:
        self.leader, self.follower = self.pair.members["primary"], self.pair.members["replica"]

    def alone(self) -> AbstractContextManager[object]:
        """Act on both members."""
        return all_alone(self.pair.members.values(), _WHO)

    def told(self) -> dict[str, Roles | None]:
        return {role: member.site.observe()["roles"] for role, member in self.pair.members.items()}

    @property
    def epoch(self) -> int:
        return max((roles["epoch"] for roles in self.told().values() if roles), default=0)

    def roles(self, active: Member, epoch: int, me: Member, operation: Operation | None = None) -> Roles:
        return roles_for(self.pair, me.role, Desired(active.role, epoch), operation, outer=outer_of(self.told()))

    def tell(self, active: Member, *, operation: Operation | None = None) -> None:
        """Have both know who is to be active from now on; the one that is not before the other."""
        epoch = self.epoch + 1
        for me in sorted(self.pair.members.values(), key=lambda member: member is active):
            me.movable.tell(self.roles(active, epoch, me, operation))

    def exchange(self) -> None:
        self.leader, self.follower = self.follower, self.leader

    def insist_on_streaming(self) -> None:
        names = [self.follower.name]
        wait_for(
            f"{self.follower.name} streaming from {self.leader.name}",
            self.leader.site.observe,
            lambda seen: seen["role"] == "primary" and not missing(seen, names),
            deadline=_DEADLINE,
            advice="",
        )

    def insist_on_all(self, rows: int) -> None:
        """Both have so many of what was committed, once the follower has replayed it."""
        self.insist_on_streaming()
        wait_for(
            f"{rows} on {self.leader.name} and {self.follower.name}",
            lambda: [self.count(self.leader), self.count(self.follower)],
            lambda found: found == [rows, rows],
            deadline=_DEADLINE,
            advice="",
        )


def _refused(act: Callable[[], object], what: str) -> str:
    try:
        found = act()
    except UnlockableError as error:  # A failover may pass by that, and never by somebody who is at work.
        expect(holds=False, found=repr(error), expected="a SiteError of another kind")
        return ""
    except SiteError as error:
        return str(error)
    expect(holds=False, found=f"{what} was done, and returned {found!r}", expected="a SiteError")
    return ""


# -- the checks ------------------------------------------------------------------------------------------------------


def _it_is_seen_who_leads_and_who_streams(trial: _Trial) -> None:
    """Who leads, and who streams from it, is seen; both are the same database on the same timeline."""
    trial.insist_on_streaming()
    one, other = trial.leader.site.observe(), trial.follower.site.observe()
    expect((one["role"], other["role"]) == ("primary", "standby"), found=(one, other), expected="a primary, a standby")
    for key in ("state", "system_identifier", "timeline"):
        expect(one[key] == other[key], found=(one[key], other[key]), expected=f"equal: {key}")
    expect(other["receiver"] == "streaming", found=other["receiver"], expected="streaming")
    expect(one["endpoint"] != other["endpoint"], found=one["endpoint"], expected="an endpoint for each")


def _whoever_is_at_work_keeps_others_out(trial: _Trial) -> None:
    """While somebody is at work on a member, everybody else is refused, and told who it is."""
    for role, member in trial.pair.members.items():
        other = trial.make_pair().members[role].movable
        with member.movable.alone(_WHO):
            said = _refused(other.alone("somebody else").__enter__, "a second lock")
        expect(_WHO in said, found=said, expected=f"that it names {_WHO}")
        with other.alone("somebody else"):
            pass


def _what_is_recorded_and_remembered_is_kept(trial: _Trial) -> None:
    """What is recorded is among the events, in a lock or not; what is remembered is read back."""
    run = secrets.token_hex(4)  # The kit may have been here before.
    lines = [json.dumps({"step": _WHO, "text": f"{text}, {run}"}) for text in ("by the site", "within the lock")]
    site = trial.leader.movable
    site.record(f"{lines[0]}\n")
    with site.alone(_WHO) as write:
        write(f"{lines[1]}\n")
    found = site.events().splitlines()
    expect([line for line in found if line in lines] == lines, found=found[-3:], expected=str(lines))
    with trial.alone():
        for member in trial.pair.members.values():
            before = member.movable.remembered()
            member.movable.remember(lines[0])
            expect(member.movable.remembered() == lines[0], found=member.movable.remembered(), expected=lines[0])
            member.movable.remember(before)


def _what_is_older_or_of_another_pair_is_refused(trial: _Trial) -> None:
    """A site keeps what it is told, and refuses an older epoch, another pair, and another active one at one epoch."""
    with trial.alone():
        trial.tell(trial.leader)
        epoch = trial.epoch
        for me in trial.pair.members.values():
            told = trial.roles(trial.leader, epoch, me)
            expect(me.site.observe()["roles"] == told, found=me.site.observe()["roles"], expected=str(told))
            me.movable.tell(told)
            others: list[Roles] = [
                {**told, "epoch": epoch - 1},
                {**told, "pair": f"{told['pair']}-of-somebody-else", "epoch": epoch + 1},
                {**told, "active": trial.follower.role},
            ]
            for other in others:
                _refused(partial(me.movable.tell, other), f"telling {other}")
            expect(me.site.observe()["roles"] == told, found=me.site.observe()["roles"], expected=str(told))


def _what_decides_about_a_role_change_is_surveyed(trial: _Trial) -> None:
    """A survey of either running member has all that a preflight compares; a rejoin's has a size."""
    surveys = [member.movable.survey() for member in trial.pair.members.values()]
    for survey in surveys:
        expect(
            set(survey) == set(Survey.__annotations__), found=set(survey), expected=", ".join(Survey.__annotations__)
        )
    expect(surveys[0]["build"] == surveys[1]["build"], found=surveys, expected="equal builds")
    size = trial.follower.movable.rejoining()["size_bytes"]
    expect(size > 0, found=size, expected="bytes")


def _wal_is_kept_for_a_follower_until_it_is_forgotten(trial: _Trial) -> None:
    """A member gets ready to lead, and forgets that again, each as often as it is told to."""
    with trial.alone():
        for _ in range(2):
            trial.follower.movable.prepare(trial.leader.slot)
        found = _slots(trial.follower)
        expect(trial.leader.slot in found, found=found, expected=trial.leader.slot)
        for _ in range(2):
            trial.follower.movable.forget(trial.leader.slot)
        found = _slots(trial.follower)
        expect(trial.leader.slot not in found, found=found, expected=f"no {trial.leader.slot}")
        trial.leader.movable.prepare(trial.follower.slot)
        trial.leader.movable.ease()
    trial.insist_on_streaming()


def _what_the_leader_writes_comes_back(trial: _Trial) -> None:
    """A record that the leader writes is said to have come to the follower; of a stranger, nothing is heard."""
    trial.insist_on_streaming()
    written = trial.leader.movable.echo(trial.follower.name, deadline=_DEADLINE)
    expect("/" in written, found=written, expected="an LSN")
    _refused(partial(trial.leader.movable.echo, "nobody", deadline=_SHORT), "hearing of nobody")
    why = trial.follower.movable.cannot_follow()
    expect(not why, found=why, expected="nothing, as it streams")


def _slots(member: Member) -> list[str]:
    return [slot["name"] for slot in member.site.observe()["slots"]]


def _one_that_was_not_told_to_lead_does_not(trial: _Trial) -> None:
    """A standby that was not told that it is to be active is not promoted."""
    with trial.alone():
        _refused(trial.follower.movable.promote, "a promotion that nobody was told of")
        trial.leader.movable.promote()  # One that leads stays what it is.
    expect(
        trial.follower.site.observe()["role"] == "standby", found=trial.follower.site.observe(), expected="a standby"
    )
    trial.insist_on_streaming()


def _a_standby_cannot_step_down(trial: _Trial) -> None:
    """A standby gives no token, and goes on."""
    with trial.alone():
        _refused(trial.follower.movable.demote, "to step down as a standby")
    trial.insist_on_streaming()


def _a_token_is_of_one_stop_and_only_its_own_is_verified(trial: _Trial) -> None:
    """One that steps down gives one token, again and again; no other is verified; and it can be taken back."""
    trial.commit(trial.leader)
    rows = trial.count(trial.leader)
    with trial.alone():
        token = trial.leader.movable.demote()
        again = trial.leader.movable.demote()
        expect(token == again, found=again, expected=str(token))
        seen = trial.leader.site.observe()
        found = (seen["state"], seen["left_as"], seen["ended_cleanly"])
        expect(found == ("stopped", "standby", True), found=found, expected="stopped cleanly, and left as a standby")
        site = trial.follower.movable
        site.verify(token, deadline=_DEADLINE)
        others: list[Token] = [{**token, "system_identifier": "1"}, {**token, "record": f"not {token['record']}"}]
        for other in others:
            _refused(partial(site.verify, other, deadline=_SHORT), f"verifying another token, {other}")
        _refused(site.demote, "to step down as a standby whose primary is gone")
        trial.leader.movable.reinstate()
        trial.leader.movable.reinstate()
    trial.insist_on_all(rows)


def _roles_move_and_nothing_is_lost(trial: _Trial) -> None:
    """Roles move by their primitives, each done twice; nothing is lost."""
    trial.commit(trial.leader)
    rows = trial.count(trial.leader)
    old, new = trial.leader.movable, trial.follower.movable
    with trial.alone():
        new.prepare(trial.leader.slot)
        token = old.demote()
        new.verify(token, deadline=_DEADLINE)
        trial.tell(trial.follower)
        _refused(old.reinstate, "to reinstate one while another is to be active")
        for _ in range(2):
            new.promote()
        for _ in range(2):
            old.follow(new.offer())
        trial.exchange()
        trial.insist_on_streaming()
        trial.follower.movable.forget(trial.leader.slot)
    trial.insist_on_all(rows)
    trial.commit(trial.leader)
    trial.insist_on_all(rows + 1)


def _what_one_alone_has_is_put_aside_before_it_is_rewound(trial: _Trial) -> None:
    """What a fenced primary alone has is told and put aside; then it is rewound, follows, and is equal."""
    trial.insist_on_streaming()
    rows, timeline = trial.count(trial.leader), trial.leader.site.observe()["timeline"]
    old, new = trial.leader.movable, trial.follower.movable
    with trial.alone():
        new.fence()
        seen = trial.follower.site.observe()
        expect((seen["state"], seen["left_as"]) == ("stopped", "standby"), found=seen, expected="stopped, a standby")
        trial.commit(trial.leader)
        for _ in range(2):
            old.fence()
        seen = trial.leader.site.observe()
        expect((seen["state"], seen["left_as"]) == ("stopped", "standby"), found=seen, expected="stopped, a standby")
        trial.tell(trial.follower, operation=_failover(trial))
        new.promote()
        new.prepare(trial.leader.slot)
        new.ease()
        fork = fork_of(old.history(), new.history())
        expect(fork is not None, found=(old.history(), new.history()), expected="histories that part")
        assert fork is not None
        beyond = old.beyond(fork)
        expect(len(beyond["transactions"]) == 1 and beyond["bytes"] > 0, found=beyond, expected="one transaction")
        old.retire()
        place = old.archive(fork)
        expect(place, found=place, expected="where it was put")
        why = old.rewind(new.offer())
        expect(not why, found=why, expected="that it was rewound")
        old.follow(new.offer())
        trial.exchange()
        trial.insist_on_streaming()
        trial.tell(trial.leader)
    trial.insist_on_all(rows)
    expect(trial.leader.site.observe()["timeline"] > timeline, found=timeline, expected="a later timeline")


def _one_is_copied_anew(trial: _Trial) -> None:
    """A member that is stopped is copied anew from the one that leads, follows it, and is equal."""
    trial.commit(trial.leader)
    rows = trial.count(trial.leader)
    shown: list[str] = []
    leader, follower = trial.leader.movable, trial.follower.movable
    with trial.alone():
        follower.retire()
        leader.forget(trial.follower.slot)
        leader.prepare(trial.follower.slot)
        follower.clone(leader.offer(), shown.append)
        follower.follow(leader.offer())
    trial.insist_on_all(rows)


def _failover(trial: _Trial) -> Operation:
    return {
        "id": _WHO,
        "kind": "failover",
        "epoch": trial.epoch + 1,
        "source": trial.leader.role,
        "target": trial.follower.role,
        "operator": _WHO,
        "prepared": False,
        "token": None,
        "given_up": "",
        "terms": Terms(max_data_loss=2**30, accept_unknown_loss=True, fenced=""),
        "stage": "",
        "clone": "",
    }
