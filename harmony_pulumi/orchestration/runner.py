"""The runner of role changes: looks, asks what is next, does it, records it, until nothing is left to do.

It knows no topology and no Pulumi: only what the capability's sites offer. It may be killed anywhere and run again:
the operation is kept at the sites of both members, and each act may be repeated.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NoReturn

from harmony_pulumi.capabilities.site import Observation, Operation, Roles, Survey, Terms
from harmony_pulumi.errors import SiteError, UnlockableError, UnreachableError, counted
from harmony_pulumi.orchestration import failover
from harmony_pulumi.orchestration.journal import Journal, Write
from harmony_pulumi.orchestration.members import (
    Pair,
    alone_there,
    estimated_loss,
    follows,
    left_behind,
    look,
    look_at_endpoints,
    not_following,
    other_than,
    refuse_newcomers,
    roles_for,
    serve,
    told,
)
from harmony_pulumi.orchestration.operation import Run, fence_from_here, fence_yourself, next_step
from harmony_pulumi.orchestration.picture import Difference, differences, picture
from harmony_pulumi.orchestration.preflight import Check, checks, echo_deadline, endpoint_checks, problems
from harmony_pulumi.orchestration.replication import Group, Member, all_alone, establish, followed, missing
from harmony_pulumi.orchestration.roles import Desired, command, last_epoch, levels, moves
from harmony_pulumi.orchestration.switchover import ANSWERING, Facts, Step, host_answers, knows_less
from harmony_pulumi.orchestration.wait import wait_for

_COPIED_PER_SECOND = 100 * 10**6
"""Bytes; what one disk and a gigabit of network do. Only to say how long a copy takes."""
ANY_LOSS = Terms(max_data_loss=2**63, accept_unknown_loss=True, fenced="")
"""With which a plan says what a failover would lose, and refuses nothing for that."""


ORIGINAL = "primary"
"""The role of the member that is active as a pair is deployed."""
_LEAP = 100
"""More role changes than there are while a member is away: none but failovers that are tried again."""


def active_now(pair: Pair) -> str | None:
    """Return the role of the member that the sites know as active; None while a role change is under way."""
    return _settled_active(told(look(pair)))


def preflight(pair: Pair, target: str, seen: Mapping[str, Observation]) -> list[Check]:
    """Look at everything that a switchover to a member depends on. Changes nothing but for one record in the WAL."""
    if why := _why_it_stays(pair, told(seen)):
        return [Check(pair.name, "problem", why)]
    roles = (other_than(pair, target), target)
    surveys: tuple[Survey, Survey] | None = None
    if all(seen[role]["state"] == "running" for role in roles):
        surveys = (pair.members[roles[0]].movable.survey(), pair.members[roles[1]].movable.survey())
    both = (seen[roles[0]], seen[roles[1]])
    deadline = echo_deadline(*both, surveys)
    no_echo = _why_no_echo(pair.members[roles[0]], pair.members[target], deadline) if deadline else None
    found = checks(*both, surveys, now=datetime.now(UTC), no_echo=no_echo)
    return [*found, *endpoint_checks(look_at_endpoints(pair), both[0])]


def _why_no_echo(source: Member, target: Member, deadline: float) -> str:
    """Have the primary write something; return why the standby does not replay it, or nothing.

    A link that was cut a moment ago leaves both as if they were connected, until a timeout of theirs has passed. The
    clean stop would wait for that, and so would clients.
    """
    try:
        written = failover.lsn_bytes(source.movable.echo(target.name, deadline=deadline))
        wait_for(
            f"the replay on {target.name} of a record that {source.name} wrote for this",
            lambda: target.site.observe()["lsn"],
            lambda lsn: bool(lsn) and failover.lsn_bytes(lsn) >= written,
            deadline=deadline,
            advice=f"See what a query, or a lock, on {target.name} makes it wait for: its log says so",
        )
    except SiteError as error:
        return str(error)
    return ""


def reach(pair: Pair, desired: Desired, journal: Journal, *, by: str) -> Observation:
    """Bring a pair to the roles that are desired, and its members to replicate; return what was seen of the leader.

    Raises:
        SiteError: what is desired is refused, or could not be done; the message says how the pair was left.
    """
    seen = look(pair)
    _refuse_strangers(pair, seen)
    _refuse_contradiction(pair, seen)
    known = told(seen)
    served = True
    if moves(desired, known, pair.names) and desired.active != _settled_active(known):
        move(pair, desired, journal, by=by)
        known = told(look(pair))
    else:
        _refuse_drift(pair, desired, seen, known)
        _refuse_to_leave_untold(pair, desired, seen, known)
        with _alone(pair, seen, by):
            _refuse_moved(pair, known, _look_again(pair, seen))
            settled = {
                role: roles_for(
                    pair,
                    role,
                    desired,
                    None,
                    outer=known and known["outer"],
                    away=known and known["away"],
                    synchronous=_covered(pair, known),
                )
                # The active one last: the other, which may have to take over, never knows less.
                for role in sorted(pair.members, key=lambda role: role == desired.active)
            }
            _tell(pair, settled, seen)
            if not (known and known["away"]):
                _forget_leader(pair, desired.active, seen)
                _keep_following(pair, desired.active, seen)
            # Nobody can have taken over unnoticed: then clients need not wait until the other member streams.
            served = all(map(host_answers, seen.values())) or bool(known and known["away"])
            if served:
                serve(pair, desired.active, journal)
    if known and (away := known["away"]):
        left = pair.names[away["member"]]
        text = f"{left} was left behind by the failover of {away['since']}: `harmony rejoin` brings it back"
        journal.note(text, step="away", state="warning")
        return pair.members[desired.active].site.observe()
    leader = settle(pair, desired.active, journal, by=by)
    if pair.endpoints and not served:
        with _alone_with(pair, desired.active, by):
            serve(pair, desired.active, journal)
    return leader


def settle(pair: Pair, active: str, journal: Journal, *, by: str) -> Observation:
    """Wait until the members replicate as the pair is declared, and have the sites know it.

    Raises:
        SiteError: they do not, in time.
    """
    leader = establish(
        pair.members,
        active=active,
        synchronous=pair.synchronous,
        follows=follows(pair, told(look(pair))),
        deadline=pair.deadline,
        journal=journal,
    )
    if isinstance(pair.members[active].site, Group):  # A member of it that led before may keep WAL, too.
        pair.members[active].movable.prepare(pair.members[other_than(pair, active)].slot)
    seen = {role: leader if role == active else member.site.observe() for role, member in pair.members.items()}
    if active == ORIGINAL:
        for member in pair.members.values():
            pictures = {**_remembered(member), pair.id: picture(seen)}
            member.movable.remember(json.dumps(pictures, indent=1) + "\n")
    # Only now: a failover relies on it.
    untold = pair.synchronous and not all(roles["synchronous"] for roles in _all_told(pair, seen).values())
    if untold:
        with _alone_with(pair, active, by) as seen:
            known = _all_told(pair, seen)
            # The active one first: it is where commits are to wait as long as the other may count on it.
            order = sorted(known, key=lambda role: role != active)
            _tell(pair, {role: {**known[role], "synchronous": True} for role in order}, seen)
    return leader


def revert(pair: Pair, journal: Journal, *, by: str) -> tuple[Desired, list[Difference]]:
    """Bring back the roles that a pair was deployed with; return what to desire, and what it looks like beside before.

    Raises:
        SiteError: it could not be done; the message says how the pair was left. Run again, it goes on.
    """
    seen = look(pair)
    known = told(seen)
    active = known["active"] if known else ORIGINAL
    under_way = known["operation"] if known else None
    before = next((found for m in pair.members.values() if (found := _remembered(m).get(pair.id))), {})
    other = pair.names[other_than(pair, active)]
    if (under_way and under_way["kind"] == "rejoin") or (not under_way and missing(seen[active], [other])):
        bring_back(pair, journal, by=by)
        settle(pair, active, journal, by=by)
        known = told(look(pair))
        under_way = None
    epoch = known["epoch"] if known else 0
    desired = Desired(ORIGINAL, under_way["epoch"] if under_way else epoch + (active != ORIGINAL))
    reach(pair, desired, journal, by=by)
    return desired, differences(before, picture(look(pair)))


def _remembered(member: Member) -> dict[str, dict[str, str]]:
    """Return what the pairs that a member is in looked like in the roles that they were deployed with, by their ids."""
    found: dict[str, Any] = json.loads(member.movable.remembered() or "{}")
    # Before pairs could be members of others, it was the picture of the one pair itself.
    return {pair: fields for pair, fields in found.items() if isinstance(fields, dict)}


def _covered(pair: Pair, known: Roles | None) -> bool:
    """Tell whether commits go on waiting for the other member; before they no longer do, the sites are told."""
    return bool(pair.synchronous and known and known["synchronous"])


def move(pair: Pair, desired: Desired, journal: Journal, *, by: str) -> None:
    """Move roles by a switchover, or finish one that was begun.

    Raises:
        SiteError: it was refused before anything was touched, or given up, and then the old primary is back; or it
            could not be finished, and is when this is run again.
    """
    seen = look(pair)
    with _alone(pair, seen, by) as write, journal.writing_to(write):
        seen = _look_again(pair, seen)
        _refuse_strangers(pair, seen)
        _refuse_contradiction(pair, seen)
        known = told(seen)
        if not moves(desired, known, pair.names):
            return
        _refuse_where_it_follows(pair, known)
        under_way = known["operation"] if known else None
        if under_way is None:
            _refuse_to_forget(pair, known)
            found = problems(preflight(pair, desired.active, seen))
            if found:
                lines = "".join(f"\n  - {problem}" for problem in found)
                msg = f"{pair.name}: no switchover to {pair.names[desired.active]}; nothing was touched{lines}"
                raise SiteError(msg)
            under_way = _begin(
                "switchover", desired.epoch, source=other_than(pair, desired.active), target=desired.active, by=by
            )
        else:
            journal.note(f"going on with the {under_way['kind']} begun by {under_way['operator']}", step="resume")
        Run(pair, journal, under_way, _all_told(pair, seen)).finish(seen)


def resumption(under_way: Operation, seen: Mapping[str, Observation]) -> Check:
    """Tell whether what was begun can be gone on with. Changes nothing."""
    source, target = (Facts.of(seen[under_way[role]]) for role in ("source", "target"))
    try:
        step = next_step(under_way, source, target)
    except SiteError as error:
        return Check("unfinished", "problem", str(error))
    if step is Step.ACCEPT:
        text = f"somebody promoted {target.name}; it is active if it has everything that {source.name} wrote"
        return Check("unfinished", "warning", text)
    return Check("unfinished", "ok", f"the step that is next is {step}")


def _refuse_to_forget(pair: Pair, known: Roles | None) -> None:
    """Refuse a planned role change as long as a failover's is not made good."""
    if known and (away := known["away"]):
        msg = (
            f"{pair.name}: {pair.names[away['member']]} was left behind by the failover of {away['since']}, and has "
            f"not rejoined; nothing was touched. Run `harmony rejoin` first"
        )
        raise SiteError(msg)


def failover_preflight(
    pair: Pair, target: str, seen: Mapping[str, Observation], terms: Terms, vouched: Collection[str] = ()
) -> list[Check]:
    """Look at everything that a failover to a member depends on. Changes nothing.

    Args:
        pair: whose primary is lost.
        target: the role of the member that is to take over.
        seen: by role.
        terms: what is accepted.
        vouched: in a pair of pairs, the servers outside the pair that certainly accept no writes.
    """
    if why := _why_it_stays(pair, told(seen)):
        return [Check(pair.name, "problem", why)]
    source = other_than(pair, target)
    found = estimated_loss(pair, target, seen)
    can_fence = source in pair.fence_commands
    now = datetime.now(UTC)
    return [
        *failover.checks(seen[source], seen[target], found, terms, can_fence=can_fence, now=now),
        *failover.endpoint_checks(look_at_endpoints(pair), seen[source], terms, can_fence=can_fence),
        *_around(pair, target, told(seen), vouched),
    ]


def _around(pair: Pair, target: str, known: Roles | None, vouched: Collection[str]) -> list[Check]:
    """Ask the servers outside a pair that is in another one whether it is still the active one there."""
    outer = known["outer"] if known else None
    if outer is None:
        return []
    mine = pair.names.values()
    heard = {s["name"]: s["roles"] for s in pair.members[target].movable.peers() if s["name"] not in mine}
    return [failover.around(level, heard, vouched) for level in levels(outer)]


def _refuse_where_moved_around(pair: Pair, target: str, known: Roles | None, vouched: Collection[str]) -> None:
    """Refuse to have a pair lead that may no longer be the active one of the pair around it."""
    if found := problems(_around(pair, target, known, vouched)):
        msg = f"{pair.name}: {'; '.join(found)}. Nothing was touched"
        raise SiteError(msg)


def rejoin_preflight(pair: Pair, active: str, seen: Mapping[str, Observation]) -> list[Check]:
    """Look at what it takes to have the other member follow the active one. Changes nothing."""
    source, leader = pair.members[other_than(pair, active)], seen[active]
    found = [Check(leader["name"], "ok", "a running primary")]
    if leader["role"] != "primary":
        state = f"{leader['state']} {leader['detail']}".strip()
        found = [Check(leader["name"], "problem", f"{state}; a primary that runs is needed")]
    back = seen[source.role]
    if back["receiver"] == "streaming":
        return [*found, Check(source.name, "ok", "it streams already")]
    if back["state"] not in ANSWERING:
        return [*found, Check(source.name, "problem", f"{back['state']}: {back['detail']}; it must answer to rejoin")]
    text = f"a running {back['role']}, which is stopped" if back["state"] == "running" else f"{back['state']}"
    found.append(Check(source.name, "ok", text))
    if found[0].verdict == "ok" and back["role"] != "primary":
        found.append(_alone_there(pair, source, active))
    needs = source.movable.rejoining()
    size, seconds = needs["size_bytes"], needs["size_bytes"] / _COPIED_PER_SECOND
    way = f"cannot be rewound: {needs['no_rewind']}" if needs["no_rewind"] else "can be rewound, as far as can be told"
    copy = f"a copy of its {size} bytes takes about {seconds:.0f} s at {_COPIED_PER_SECOND // 10**6} MB/s"
    found.append(Check("rewind", "warning" if needs["no_rewind"] else "ok", f"{source.name} {way}; {copy}"))
    return found


def _alone_there(pair: Pair, source: Member, active: str) -> Check:
    try:
        beyond = alone_there(pair, source.role, active)
    except SiteError as error:
        return Check("diverged", "warning", f"what {source.name} alone has cannot be read: {error}")
    count = len(beyond["transactions"])
    words = f"{source.name} alone has {beyond['bytes']} bytes of WAL with {counted(count, 'committed transaction')}"
    return Check("diverged", "warning" if count else "ok", words)


def epoch_after(known: Roles | None) -> int:
    """Return the next epoch: higher than any that a member may have been told, also by what is under way."""
    if known is None:
        return 1
    operation = known["operation"]
    return 1 + max(known["epoch"], operation["epoch"] if operation else 0)


def failover_epoch(known: Roles | None, target: str, *, answers: bool) -> int:
    """Return the epoch of a failover.

    A member that is not active is told everything that the active one is, and before it. But of a failover that left it
    behind unasked, or if what it was told is lost, it knows nothing: who led then may have come to any epoch.

    Args:
        known: what the sites that answer were told last.
        target: the role of the member that is to take over.
        answers: whether the other one does.
    """
    blind = not answers and (known is None or known["active"] == target)
    return epoch_after(known) + (_LEAP if blind else 0)


def next_failover_epoch(pair: Pair, target: str, seen: Mapping[str, Observation]) -> int:
    """Return the epoch that a failover to a member would establish, if it were begun now."""
    answers = seen[other_than(pair, target)]["state"] in ANSWERING
    return failover_epoch(told(seen), target, answers=answers)


def fail_over(
    pair: Pair, target: str, terms: Terms, journal: Journal, *, by: str, vouched: Collection[str] = ()
) -> int:
    """Have a member take over from one that is dead or cannot be reached; return the epoch.

    An operation that is under way and cannot be finished is replaced. The arguments are those of `failover_preflight`.

    Raises:
        SiteError: it was refused, or could not be done; the message says how the pair was left.
    """
    seen = look(pair)
    _refuse_strangers(pair, seen)
    _refuse_contradiction(pair, seen)
    source = other_than(pair, target)
    with _alone_as_vouched(pair, source, seen, terms, journal, by=by) as passed_by:
        pair = replace(pair, passed_by=passed_by)
        seen = _look_again(pair, seen)
        known = told(seen)
        _refuse_where_it_follows(pair, known)
        under_way = known["operation"] if known else None
        if known and not under_way and (known["active"], seen[target]["role"]) == (target, "primary"):
            journal.note(f"{pair.names[target]} is active already, at epoch {known['epoch']}", step="resume")
            _lead_on(pair, target, seen[source], journal, certain=bool(known["away"] or terms["fenced"]))
            return known["epoch"]
        if under_way and (under_way["kind"], under_way["target"]) == ("failover", target) and not under_way["given_up"]:
            _refuse_where_moved_around(pair, target, known, vouched)
            journal.note(f"going on with the failover begun by {under_way['operator']}", step="resume")
            under_way = Operation({**under_way, "terms": terms})
        elif found := problems(failover_preflight(pair, target, seen, terms, vouched)):
            lines = "".join(f"\n  - {problem}" for problem in found)
            msg = f"{pair.name}: no failover to {pair.names[target]}; nothing was touched{lines}"
            raise SiteError(msg)
        else:
            under_way = _begin(
                "failover",
                next_failover_epoch(pair, target, seen),
                source=source,
                target=target,
                by=by,
                terms=terms,
            )
        Run(pair, journal, under_way, _all_told(pair, seen)).finish(seen)
        return under_way["epoch"]


def _lead_on(pair: Pair, active: str, other: Observation, journal: Journal, *, certain: bool) -> None:
    """Lead the endpoints on that still lead elsewhere, unless the other member may have taken over unnoticed.

    Args:
        pair: whose endpoints.
        active: the role of the member that leads.
        other: what was seen of the other one.
        journal: records what is not done.
        certain: whether that one has certainly not taken over, even if it does not answer.
    """
    if pair.endpoints and not (certain or host_answers(other)):
        text = (
            f"the endpoints are left as they lead: {other['name']} does not answer ({other['detail']}), and may have "
            f"been made active meanwhile. Have it answer, or make certain that it accepts no writes, then run this "
            f"again with --fenced-by-me {other['name']}"
        )
        journal.note(text, step="endpoint", state="warning")
        return
    serve(pair, active, journal)


def succession_checks(
    pair: Pair, leader: Member, target: str, seen: Mapping[str, Observation], terms: Terms
) -> list[Check]:
    """Look at what it takes to have another server lead in a pair that follows. Changes nothing.

    Args:
        pair: whose own leader, a standby, is lost.
        leader: whom it follows: the active member of the pair around it.
        target: the role of the member that is to lead in it.
        seen: by role.
        terms: what is accepted; of these, only that the lost one is fenced.
    """
    old, new, ahead = seen[other_than(pair, target)], seen[target], leader.site.observe()
    mine, known = pair.names.values(), told(seen)
    assert known is not None, "a pair that follows knows whom"
    found = failover.standing(old, new, leads=known["active"] != target)
    found.append(failover.fencing(old, terms, can_fence=other_than(pair, target) in pair.fence_commands))
    found.append(Check("loss", "ok", f"none: neither is a primary, and {leader.name} has what they have"))
    others = [ahead, *(s for s in pair.members[target].movable.peers() if s["name"] not in mine)]
    found += failover.still_follows(known["outer"], [s["roles"] for s in others])
    if ahead["state"] == "running":
        return [*found, Check(leader.name, "ok", f"it runs: {new['name']} is to follow it")]
    lost = f"{ahead['state']}: {new['name']} cannot follow it yet; if it is lost, too, fail the pair around over then"
    return [*found, Check(leader.name, "warning", lost)]


def take_the_lead(pair: Pair, leader: Member, target: str, terms: Terms, journal: Journal, *, by: str) -> int:
    """Have another server lead in a pair that follows, as the one that does is lost; return the epoch.

    Nothing can be lost by that: they are standbys, all of them. Run again, it finishes what was left open. The
    arguments are those of `succession_checks`.

    Raises:
        SiteError: it was refused, or could not be done; the message says how the pair was left.
    """
    seen = look(pair)
    _refuse_strangers(pair, seen)
    _refuse_contradiction(pair, seen)
    source, member = other_than(pair, target), pair.members[target]
    with _alone_as_vouched(pair, source, seen, terms, journal, by=by) as passed_by:
        pair = replace(pair, passed_by=passed_by)
        seen = _look_again(pair, seen)
        known = told(seen)
        if known is None or not follows(pair, known):
            _refuse_to_interfere(pair)
        if found := problems(succession_checks(pair, leader, target, seen, terms)):
            lines = "".join(f"\n  - {problem}" for problem in found)
            msg = f"{pair.name}: {pair.names[target]} is not to lead in it; nothing was touched{lines}"
            raise SiteError(msg)
        epoch, left = known["epoch"], known["away"]
        takes_over, how = known["active"] != target, terms["fenced"] or "its site was asked, and it was stopped"
        if takes_over or left:  # Else the other one follows it again.
            if host_answers(seen[source]):
                try:
                    with journal.step(Step.FENCE, f"{pair.names[source]} is stopped"):
                        pair.members[source].movable.fence()
                except UnreachableError as error:
                    how = terms["fenced"] or fence_from_here(pair, source, str(error))
                except SiteError as error:
                    if not terms["fenced"]:
                        raise SiteError(fence_yourself(error, pair.names[source])) from error
                seen = _look_again(pair, seen)
            elif not terms["fenced"] and seen[source]["state"] != "absent":
                with journal.step(Step.FENCE, f"{pair.names[source]} is to accept no writes"):
                    how = fence_from_here(pair, source, seen[source]["detail"])
            if takes_over:
                epoch = next_failover_epoch(pair, target, seen)
                left = not_following(member, source, how)
            desired = Desired(target, epoch)
            with journal.step(Step.ELECT, f"{member.name} leads in {pair.name} from here on, at epoch {epoch}"):
                settled = {
                    role: roles_for(pair, role, desired, None, outer=known["outer"], away=left)
                    for role in (source, target)
                }
                _tell(pair, settled, seen)
        if leader.site.observe()["state"] == "running":
            with leader.movable.alone(by):
                _follow_directly(pair, leader, target, journal)
        else:
            text = f"{leader.name} does not run: `harmony rejoin` of the pair around has {member.name} follow it later"
            journal.note(text, step=Step.FOLLOW, state="warning")
        return epoch


def _follow_directly(pair: Pair, leader: Member, target: str, journal: Journal) -> None:
    member, lost = pair.members[target], pair.members[other_than(pair, target)]
    with journal.step(Step.FOLLOW, f"{member.name} follows {leader.name}"):
        leader.movable.prepare(member.slot)
        member.movable.follow(leader.movable.offer())
        wait_for(
            f"{member.name} streaming from {leader.name}",
            leader.site.observe,
            lambda seen: not missing(seen, [member.name]),
            deadline=pair.deadline,
            words=followed,
            advice=f"`harmony rejoin` of the pair around has {member.name} follow, by a copy if need be",
        )
    try:
        leader.movable.forget(lost.slot)
    except SiteError as error:  # It still uses it, out of our reach.
        journal.note(f"{leader.name} keeps WAL for {lost.name}: {error}", step=Step.FOLLOW, state="warning")


def bring_back(pair: Pair, journal: Journal, *, by: str) -> None:
    """Have the member that does not follow the active one follow it again.

    Raises:
        SiteError: it could not be done; the message says why, and what to do.
    """
    seen = look(pair)
    _refuse_strangers(pair, seen)
    _refuse_contradiction(pair, seen)
    with _alone(pair, seen, by) as write, journal.writing_to(write):
        seen = _look_again(pair, seen)
        known = told(seen)
        _refuse_where_it_follows(pair, known)
        under_way = known["operation"] if known else None
        if under_way and under_way["kind"] != "rejoin":
            msg = (
                f"{pair.name}: a {under_way['kind']} to {pair.names[under_way['target']]}, begun by "
                f"{under_way['operator']}, has not ended: run `harmony {command(under_way, pair.names)}` to finish it, "
                f"then this"
            )
            raise SiteError(msg)
        active = known["active"] if known else "primary"
        if under_way:
            journal.note(f"going on with the rejoin begun by {under_way['operator']}", step="resume")
        else:
            source = other_than(pair, active)
            away = known["away"] if known else None
            if seen[source]["role"] == "primary" and not away:
                msg = (
                    f"{pair.name}: {pair.names[source]} accepts writes, no failover left it behind, and "
                    f"{pair.names[active]} is known as active; nothing was touched. Decide which is to stay, stop the "
                    f"other, then run `harmony accept` or this again"
                )
                raise SiteError(msg)
            member, leader = pair.members[source], pair.members[active]
            if isinstance(member.site, Group) and seen[source]["receiver"] == "streaming":
                with journal.step(
                    Step.FOLLOW, f"{member.name} follows {leader.name}, and the other of its pair follows it"
                ):
                    member.movable.follow(leader.movable.offer())
            under_way = _begin("rejoin", known["epoch"] if known else 0, source=source, target=active, by=by)
        Run(pair, journal, under_way, _all_told(pair, seen)).finish(seen)
        member = pair.members[under_way["source"]]
        if isinstance(member.site, Group):
            member.site.gather(pair.members[under_way["target"]].movable.offer())


def take_as_it_is(pair: Pair, journal: Journal, *, by: str) -> Desired:
    """Have the sites know the member that was found to be the one primary as the active one; return what to desire.

    Raises:
        SiteError: there is not exactly one, or an operation is under way.
    """
    seen = look(pair)
    _refuse_strangers(pair, seen)
    with _alone(pair, seen, by) as write, journal.writing_to(write):
        seen = _look_again(pair, seen)
        known = told(seen)
        _refuse_where_it_follows(pair, known)
        under_way = known["operation"] if known else None
        primaries = _primaries(seen)
        if found := _why_not_accepted(pair, primaries, under_way, seen):
            msg = f"{pair.name}: expected exactly one primary, and every member to answer; {found}. Nothing was changed"
            raise SiteError(msg)
        (active,) = primaries
        _refuse_where_moved_around(pair, active, known, ())
        if known and not under_way and known["active"] == active and not _contradict(pair, seen):
            serve(pair, active, journal)
            return Desired(active, known["epoch"])
        other = other_than(pair, active)
        desired = Desired(active, epoch_after(known))
        left = None
        if seen[other]["left_as"] == "primary":
            pair.members[other].movable.fence()
        if missing(seen[active], [pair.names[other]]):
            if seen[active]["waits_for"]:  # The other one, which does not follow.
                pair.members[active].site.require_synchronous([])
                text = f"commits wait for nobody until {pair.names[other]} has rejoined"
                journal.note(text, step="accept", state="warning")
            pair.members[active].movable.prepare(pair.members[other].slot)  # So that it can be rewound, and follow.
            left = left_behind(pair.members[active], other, f"found {seen[other]['state']}, as a primary was accepted")
        with journal.step("accept", f"{pair.names[active]} is active, as was found, at epoch {desired.epoch}"):
            _tell(
                pair,
                {
                    role: roles_for(pair, role, desired, None, outer=known and known["outer"], away=left)
                    for role in (other, active)
                },
                seen,
            )
        serve(pair, active, journal)
        return desired


def _why_not_accepted(
    pair: Pair, primaries: Sequence[str], under_way: Operation | None, seen: Mapping[str, Observation]
) -> str:
    """Return why no member can be taken for the active one as it was found, or nothing."""
    if unknown := [observation["name"] for observation in seen.values() if observation["state"] == "unreachable"]:
        return f"{' and '.join(unknown)} cannot be asked; if that is lost, `harmony failover` goes on without it"
    if len(primaries) != 1:
        return _who_accepts(pair, primaries)
    if under_way and not _overtaken(under_way, seen):
        return f"a {under_way['kind']} is under way; `harmony {command(under_way, pair.names)}` finishes it"
    return ""


def _primaries(seen: Mapping[str, Observation]) -> list[str]:
    """Return the roles of the members that accept writes."""
    return [role for role, observation in seen.items() if observation["role"] == "primary"]


def _overtaken(under_way: Operation, seen: Mapping[str, Observation]) -> bool:
    """Tell whether somebody else promoted the target of an operation, which so cannot simply be gone on with."""
    target = Facts.of(seen[under_way["target"]])
    by_hand = knows_less(under_way, target) or bool(under_way["given_up"])
    return under_way["kind"] != "rejoin" and target.role == "primary" and by_hand


def _who_accepts(pair: Pair, primaries: Sequence[str]) -> str:
    """Return in words which members accept writes."""
    names = [pair.names[role] for role in primaries]
    return f"{' and '.join(names) or 'no member'} {'accept' if len(names) > 1 else 'accepts'} writes"


def _settled_active(known: Roles | None) -> str | None:
    """Return who is active as far as the sites know, or None while an operation is under way."""
    if known is None:
        return "primary"
    return None if known["operation"] else known["active"]


def _refuse_strangers(pair: Pair, seen: Mapping[str, Observation]) -> None:
    """Refuse to act on what is told of another pair: no step of an operation of that may be taken here."""
    for role, observation in seen.items():
        roles = observation["roles"]
        if roles and roles["pair"] != pair.id:
            msg = (
                f"{pair.name}: {pair.names[role]} was told that it is a member of the pair {roles['pair']}, not of "
                f"{pair.id}; nothing was touched. Find out whose it is before you do anything about it"
            )
            raise SiteError(msg)


def _refuse_contradiction(pair: Pair, seen: Mapping[str, Observation]) -> None:
    """Refuse to choose between members that each took over without the other at the same epoch."""
    if _contradict(pair, seen):
        names = " and ".join(pair.names.values())
        msg = (
            f"{pair.name}: {names} were told at the same epoch that different members are active; nothing was touched. "
            f"Stop the one that is not to stay, then run `harmony accept`"
        )
        raise SiteError(msg)


def _contradict(pair: Pair, seen: Mapping[str, Observation]) -> bool:
    one, other = (seen[role]["roles"] for role in pair.members)
    return bool(one and other and one["epoch"] == other["epoch"] and one["active"] != other["active"])


def _refuse_drift(pair: Pair, desired: Desired, seen: Mapping[str, Observation], known: Roles | None) -> None:
    """Refuse to go on where somebody else has moved the roles: that never moves a desired role."""
    primaries = _primaries(seen)
    advice = "Look at `harmony status`; stop the one that is not to stay, and keep its data"
    names = " and ".join(pair.names[role] for role in primaries)
    if primaries and follows(pair, known):
        msg = f"{pair.name}: {names} accepts writes, and the pair follows another cluster: promoted by hand? {advice}"
        raise SiteError(msg)
    if primaries and primaries != [desired.active]:
        wanted = pair.names[desired.active]
        ways = (
            f"If {pair.names[primaries[0]]} is to stay, run `harmony accept`; if {wanted} is, stop the other, start "
            f"{wanted}, then run `harmony accept`"
            if len(primaries) == 1
            else "Stop the one that is not to stay, keep its data, then run `harmony accept`, and `harmony rejoin`"
        )
        msg = (
            f"{pair.name}: {_who_accepts(pair, primaries)}, and {wanted} is to be active alone. Somebody promoted a "
            f"member by hand. {ways}"
        )
        raise SiteError(msg)


def _why_it_stays(pair: Pair, known: Roles | None) -> str:
    """Return why no role can be moved in a pair that follows another one: none of its members could be a primary."""
    if not follows(pair, known):
        return ""
    outer = known["outer"] if known else None
    around = f", as {outer['active']} is active in {outer['pair']}" if outer else ""
    lost = "; if the one that leads in it is lost, `harmony failover` has the other one lead in it" if outer else ""
    return (
        f"its roles cannot be moved while it follows another cluster{around}; make the pair itself active first{lost}"
    )


def _refuse_where_it_follows(pair: Pair, known: Roles | None) -> None:
    if why := _why_it_stays(pair, known):
        msg = f"{pair.name}: {why}. Nothing was touched"
        raise SiteError(msg)


def _refuse_to_leave_untold(pair: Pair, desired: Desired, seen: Mapping[str, Observation], known: Roles | None) -> None:
    """Refuse what a member that does not answer must know before it takes over one day.

    Not knowing of a raised epoch, it would take the same one for another; or count on commits that no longer wait.
    """
    silent = [pair.names[role] for role in pair.members if seen[role]["state"] == "unreachable"]
    if not silent:
        return
    epoch = known["epoch"] if known else 0
    if desired.epoch > epoch:
        what, instead = f"epoch {desired.epoch} is wanted", f"write epoch={epoch} to keep the roles as they are"
    elif known and known["synchronous"] and not pair.synchronous:
        what, instead = "commits are to wait for nobody", "declare it synchronous as it was"
    else:
        return
    msg = (
        f"{pair.name}: {what}, and {' and '.join(silent)} does not answer and cannot be told; nothing was changed. "
        f"Run this again once it answers, or {instead}"
    )
    raise SiteError(msg)


def _begin(kind: str, epoch: int, *, source: str, target: str, by: str, terms: Terms | None = None) -> Operation:
    return {
        "id": uuid.uuid4().hex,
        "kind": kind,
        "epoch": epoch,
        "source": source,
        "target": target,
        "operator": by,
        "prepared": False,
        "token": None,
        "given_up": "",
        "terms": terms,
        "stage": "",
        "clone": "",
    }


def _all_told(pair: Pair, seen: Mapping[str, Observation]) -> dict[str, Roles]:
    """Return what each site was told; for one that was told nothing, the roles that it was deployed with."""
    deployed = Desired("primary", 0)
    return {role: seen[role]["roles"] or roles_for(pair, role, deployed, None) for role in pair.members}


def _tell(pair: Pair, roles: Mapping[str, Roles], seen: Mapping[str, Observation]) -> None:
    """Tell those sites that answer, and do not know yet."""
    for role, site_roles in roles.items():
        member = pair.members[role]
        # Of a pair, it is not seen whether all were told.
        untold = seen[role]["roles"] != site_roles or isinstance(member.site, Group)
        if seen[role]["state"] in ANSWERING and untold:
            member.movable.tell(site_roles)


def _look_again(pair: Pair, before: Mapping[str, Observation]) -> dict[str, Observation]:
    """Look at a pair whose members are locked by now: whoever held the lock has moved on."""
    seen = look(pair)
    refuse_newcomers(pair, before, seen)
    return seen


def _refuse_moved(pair: Pair, known: Roles | None, seen: Mapping[str, Observation]) -> None:
    """Refuse to tell what was found before the lock was taken, where somebody has told something else since."""
    if told(seen) != known:
        _refuse_to_interfere(pair)


def _refuse_to_interfere(pair: Pair) -> NoReturn:
    msg = f"{pair.name}: somebody else was moving its roles until a moment ago; run this again"
    raise SiteError(msg)


def _forget_leader(pair: Pair, active: str, seen: Mapping[str, Observation]) -> None:
    """Have no standby keep WAL for the member that leads, as one does that was got ready to lead and never did."""
    other = other_than(pair, active)
    if seen[other]["role"] == "standby":
        pair.members[other].movable.forget(pair.members[active].slot)


def _keep_following(pair: Pair, active: str, seen: Mapping[str, Observation]) -> None:
    """Have the standby know where the leader is now, and its certificates, which a deployment may have changed.

    Before the first role change the deployment itself sees to that.
    """
    known, leader = told(seen), pair.members[active]
    moved = (known and last_epoch(known)) or isinstance(leader.site, Group)
    if moved and all(observation["state"] == "running" for observation in seen.values()):
        other = pair.members[other_than(pair, active)]
        leader.movable.prepare(other.slot)
        other.movable.follow(leader.movable.offer())


def _alone(
    pair: Pair, seen: Mapping[str, Observation], by: str, *pass_by: Callable[[Member, UnlockableError], None]
) -> AbstractContextManager[Write]:
    """Keep every other operation away from the members that answer; give what records at the sites of all of them."""
    answering = (
        member
        for role, member in pair.members.items()
        if host_answers(seen[role]) or isinstance(member.site, Group)  # Whose other servers may answer.
    )
    return all_alone(answering, by, *pass_by)


@contextmanager
def _alone_as_vouched(
    pair: Pair, source: str, seen: Mapping[str, Observation], terms: Terms, journal: Journal, *, by: str
) -> Generator[Mapping[str, str]]:
    """Keep every other operation away, and pass by a source that cannot be locked if an operator vouches for it.

    Gives by its role why it is passed by; nothing if it is not.

    Raises:
        SiteError: somebody else is at work on a member, or it cannot be locked and nobody vouches for it.
    """
    passed_by: dict[str, str] = {}

    def pass_by(member: Member, error: UnlockableError) -> None:
        # Of several servers, one that is not vouched for may be the one that cannot be locked.
        if member.role != source or isinstance(member.site, Group) or seen[source]["role"] == "primary":
            raise error
        if not terms["fenced"]:
            raise SiteError(fence_yourself(error, member.name)) from error
        passed_by[source] = str(error)

    with _alone(pair, seen, by, pass_by) as write, journal.writing_to(write):
        for why in passed_by.values():
            text = (
                f"{pair.names[source]} is passed by: {why}. {terms['fenced']}; it could not be marked, so until it has "
                f"rejoined start it by nothing but `harmony start`: a bare pg_ctl may make it a second primary"
            )
            journal.note(text, step=Step.FENCE, state="warning")
        yield passed_by


@contextmanager
def _alone_with(pair: Pair, active: str, by: str) -> Generator[dict[str, Observation]]:
    """Keep every other operation away, where a member is known as active and nothing is under way; give what is seen.

    Raises:
        SiteError: roles are being moved, or were a moment ago.
    """
    seen = look(pair)
    with _alone(pair, seen, by):
        seen = _look_again(pair, seen)
        if _settled_active(told(seen)) != active:
            _refuse_to_interfere(pair)
        yield seen


def steps_in_words(pair_names: Mapping[str, str], active: str, operation: str = "switchover") -> list[str]:
    """Return in words what an operation that leaves a member active does, told without looking at any site."""
    new = pair_names[active]
    old = next(name for role, name in pair_names.items() if role != active)
    return {
        "switchover": [
            f"switch over from {old} to {new}",
            f"{old} stops cleanly and becomes a standby",
            f"{new} is promoted once it has everything that {old} wrote",
            f"{old} follows {new}; if anything fails before the promotion, {old} is back",
        ],
        "failover": [
            f"fail over from {old} to {new}: `harmony failover --to {new} --max-data-loss BYTES`",
            f"it is made certain that {old} accepts no writes",
            f"{new} is promoted with what it has received; the rest is lost to it",
            f"{old} stays marked until `harmony rejoin`, which puts aside what it alone has",
        ],
        "rejoin": [
            f"have {old} follow {new} again: `harmony rejoin`",
            f"{old} is stopped; what it alone has is put aside, and its transactions are listed",
            f"{old} is rewound to where {new} took over, or else copied anew, its old data kept",
            f"{old} follows {new}",
        ],
    }[operation]
