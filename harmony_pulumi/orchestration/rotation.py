"""Rotation of certificates while replication runs: which step is next (pure), and the runner that takes it (thin).

Every member has an authority of its own, and so its own certificates; the one that leads gives its followers theirs.
What was trusted before still is until everybody uses what is new, so that a stream is never down for longer than it
takes to connect, and clients notice nothing. Killed anywhere and run again, it goes on where it was: the sites know.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum

from harmony_pulumi.capabilities.site import Certificates, Rotation
from harmony_pulumi.errors import SiteError
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.members import Pair, each_endpoint, follows, look, told
from harmony_pulumi.orchestration.preflight import certificate_advice
from harmony_pulumi.orchestration.replication import all_alone
from harmony_pulumi.orchestration.wait import wait_for


class Step(StrEnum):
    """One act on one member; the runner records it before and after. In the order in which they are taken."""

    RENEW = "renew"
    """It has new certificates, and uses them; what was trusted before still is."""
    HAND_OVER = "hand-over"
    """A follower gets the new certificate that the leader issued, and the leader's authority."""
    RECONNECT = "reconnect"
    """A follower connects anew, with that."""
    DISTRUST = "distrust"
    """It trusts its authority of now alone."""


def new_rotation(by: str, *, authority: bool) -> Rotation:
    """Return a rotation that is to begin.

    Args:
        by: who begins it, for others who find it under way.
        authority: whether the authorities are to be replaced, too.
    """
    return {"id": uuid.uuid4().hex, "authority": authority, "operator": by, "ended": False}


def under_way(leader: str, seen: Mapping[str, Certificates]) -> Rotation | None:
    """Return the rotation that has not ended, that of the leader first; None if there is none."""
    for role in sorted(seen, key=lambda role: role != leader):
        rotation = seen[role]["rotation"]
        if rotation and not rotation["ended"]:
            return rotation
    return None


def next_step(
    rotation: Rotation, leader: str, seen: Mapping[str, Certificates], names: Mapping[str, str]
) -> tuple[Step, str] | None:
    """Return what is to be done next, and with which member; None if there is nothing left that can be done.

    Args:
        rotation: the one that is under way, or to begin.
        leader: the role of the member that the others follow.
        seen: by role.
        names: of the members, by role, as replication knows them.
    """
    last = {role: found["rotation"] for role, found in seen.items()}
    renewed = {
        role: known for role, known in last.items() if known and known["id"] == rotation["id"] and seen[role]["in_use"]
    }
    # The leader last: until then nothing that a follower may still use is given up.
    ordered = sorted(seen, key=lambda role: role == leader)
    followers, issued, used = ordered[:-1], seen[leader]["issued"], seen[leader]["used"]
    for role in ordered:
        if role not in renewed:
            return Step.RENEW, role
    for role in followers:
        if seen[role]["held"] != issued:
            return Step.HAND_OVER, role
    for role in followers:
        if used.get(names[role]) != issued:
            return Step.RECONNECT, role
    for role in ordered:
        if not renewed[role]["ended"] and not strangers(seen[role], names):
            return Step.DISTRUST, role
    return None


def strangers(source: Certificates, names: Mapping[str, str]) -> list[str]:
    """Return who replicates from a member, is none, and would be locked out with its authority of before."""
    if not _replaces_authority(source):
        return []
    old = {name for name, serial in source["used"].items() if serial != source["issued"]}
    return sorted(old - set(names.values()))


def _replaces_authority(found: Certificates) -> bool:
    return found["rotation"] is not None and found["rotation"]["authority"]


def rotate(pair: Pair, wanted: Rotation | None, journal: Journal, *, by: str) -> bool:
    """Rotate the certificates of every member, or finish a rotation that was begun; tell whether it has ended.

    Args:
        pair: or a server that stands alone, as a pair of one.
        wanted: what is to begin if nothing is under way, or in the place of what keeps the authorities if this does
            not; None to finish only what is under way, where every member runs.
        journal: records the steps.
        by: who does this, for others who find it under way.

    Raises:
        SiteError: it was refused before anything was touched, or could not be finished, and is when this is run again:
            until then what is old is trusted, too.
    """
    if wanted is None and not _may_finish(pair):
        return True
    whole, (leader, others) = pair, _scope(pair)
    if others:
        pair = replace(pair, members={leader: pair.members[leader]})
    with all_alone(pair.members.values(), by) as record:
        if _scope(whole) != (leader, others):
            msg = f"{pair.name}: somebody else was moving its roles until a moment ago; run this again"
            raise SiteError(msg)
        with journal.writing_to(record):
            for name in others:
                text = (
                    f"{pair.names[leader]} gets new certificates alone, as {name} could not come back with those of "
                    f"now; once it has, run this again for its own"
                )
                journal.note(text, step="alone", state="warning")
            found = under_way(leader, _look(pair))
            # One that keeps the authorities may be why it cannot be finished: one of them has expired.
            if wanted and (found is None or (wanted["authority"] and not found["authority"])):
                return _finish(pair, leader, wanted, journal, insists=True)
            if found is None:
                return True
            journal.note(f"going on with the rotation begun by {found['operator']}", step="resume")
            return _finish(pair, leader, found, journal, insists=wanted is not None)


def rotation_in_words(names: Mapping[str, str], *, authority: bool) -> list[str]:
    """Return in words what a rotation does, told without looking at any site."""
    members = " and ".join(names.values())
    alone, what = len(names) == 1, "another authority and new certificates" if authority else "new certificates"
    return [
        f"{members} {'gets' if alone else 'each get'} {what}, and reload",
        *([] if alone else ["the standby connects anew with the certificate that the primary has issued to it"]),
        *(["then the authorities of before are trusted by no server any more"] if authority else []),
    ]


def _may_finish(pair: Pair) -> bool:
    """Tell whether a rotation is under way, and every member is there for it."""
    seen = look(pair)
    known = told(seen)
    if any(observation["state"] != "running" for observation in seen.values()) or (known and known["away"]):
        return False
    if follows(pair, known):
        return False
    return under_way("", _look(pair)) is not None


def _look(pair: Pair) -> dict[str, Certificates]:
    return {role: member.movable.certificates() for role, member in pair.members.items()}


def _scope(pair: Pair) -> tuple[str, list[str]]:
    """Return the role of the leader, and the names of members without which it is rotated, alone.

    Those that are not there, or were left behind, and could not come back: nobody can connect to the leader with its
    certificates of now.

    Raises:
        SiteError: as `_leader`.
    """
    seen = look(pair)
    known = told(seen)
    leaders = [role for role in seen if seen[role]["role"] == "primary"]
    under_way = known["operation"]["kind"] if known and known["operation"] else ""
    gone = any(observation["state"] != "running" for observation in seen.values()) or (known and known["away"])
    if len(leaders) == 1 and (under_way == "rejoin" or (gone and not under_way)):
        leader = leaders[0]
        if certificate_advice(seen[leader]):
            return leader, [name for role, name in pair.names.items() if role != leader]
    return _leader(pair), []


def _leader(pair: Pair) -> str:
    """Return the role of the one primary of a pair whose members all run, and whose roles are not being moved."""
    seen = look(pair)
    for observation in seen.values():
        if observation["state"] != "running":
            msg = (
                f"{pair.name}: {observation['name']} is {observation['state']} ({observation['detail']}), and "
                f"certificates are rotated where every member runs; have it run, then run this again"
            )
            raise SiteError(msg)
    known = told(seen)
    if known and known["operation"]:
        msg = (
            f"{pair.name}: a {known['operation']['kind']} begun by {known['operation']['operator']} has not ended; "
            f"finish it first: `harmony switchover --to {pair.names[known['operation']['target']]}`"
        )
        raise SiteError(msg)
    if known and known["away"]:
        msg = (
            f"{pair.name}: {pair.names[known['away']['member']]} was left behind by a failover; `harmony rejoin` first"
        )
        raise SiteError(msg)
    primaries = [role for role, observation in seen.items() if observation["role"] == "primary"]
    if len(primaries) != 1:
        names = " and ".join(pair.names[role] for role in primaries) or "no member"
        msg = f"{pair.name}: {names} is a primary; expected exactly one. Look at `harmony status`"
        raise SiteError(msg)
    return primaries[0]


def _finish(pair: Pair, leader: str, rotation: Rotation, journal: Journal, *, insists: bool) -> bool:
    """Do what is next until nothing is left; tell whether the rotation has ended.

    Args:
        pair: or a server that stands alone.
        leader: the role of the one that leads.
        rotation: that was begun, or begins.
        journal: records the steps.
        insists: whether it is a failure that a member cannot be renewed, or an endpoint be told; else each `up` would
            fail for that.
    """
    seen = _look(pair)
    while step := next_step(rotation, leader, seen, pair.names):
        act, role = step
        last = act is Step.DISTRUST and role == leader
        try:
            if last:
                _tell_endpoints(pair, leader, seen[leader])
            with journal.step(act, _words(pair, leader, rotation, act, role), id=rotation["id"]):
                _act(pair, leader, rotation, act, role)
        except SiteError as error:
            if insists or not (last or act is Step.RENEW):
                raise
            journal.note(f"{error}: `harmony rotate-certificates`", step=act, state="warning")
            return False
        seen = _look(pair)
        if act is Step.RENEW and role == leader:
            with suppress(SiteError):  # Nothing waits for an endpoint, until this is to end.
                _tell_endpoints(pair, leader, seen[leader])
    waiting = {role: found for role in seen if (found := strangers(seen[role], pair.names))}
    for role, names in waiting.items():
        text = (
            f"{' and '.join(names)} replicates from {pair.names[role]} with a certificate of the authority of before, "
            f"which is still trusted for that; give it the new one (`pulumi refresh`, `pulumi up`), and run this again"
        )
        journal.note(text, step="distrust", state="warning")
    return not waiting


def _tell_endpoints(pair: Pair, leader: str, seen: Certificates) -> None:
    """Have every endpoint trust the new authority of the leader.

    Where the old authority vouches for that, it does so until it expires; where it has expired, nobody gets through.
    """
    if not (_replaces_authority(seen) and pair.endpoints):
        return
    offer = pair.members[leader].movable.offer()
    try:
        each_endpoint(pair, lambda endpoint: endpoint.point(offer))
    except SiteError as error:
        msg = f"{error}. It trusts the authority of before alone, which expires; have it answer, then run this again"
        raise SiteError(msg) from error


def _act(pair: Pair, leader: str, rotation: Rotation, step: Step, role: str) -> None:
    site, source = pair.members[role].movable, pair.members[leader].movable
    match step:
        case Step.RENEW:
            site.renew(rotation)
        case Step.HAND_OVER:
            site.follow(source.offer())
        case Step.RECONNECT:
            name = pair.names[role]
            source.reconnect(name)
            wait_for(
                f"{name}, connected to {pair.names[leader]} with its new certificate",
                source.certificates,
                lambda seen: seen["used"].get(name) == seen["issued"],
                deadline=pair.deadline,
                words=lambda seen: (
                    f"{name} shows {seen['used'].get(name, 'none')}, and {seen['issued']} was issued to it"
                ),
                advice=f"Look at the end of the log of {name}, and run this again.",
            )
        case Step.DISTRUST:
            site.distrust()


def _words(pair: Pair, leader: str, rotation: Rotation, step: Step, role: str) -> str:
    name = pair.names[role]
    return {
        Step.RENEW: f"{name} gets {'another authority and ' if rotation['authority'] else ''}new certificates",
        Step.HAND_OVER: f"{name} gets the certificate that {pair.names[leader]} has issued to it",
        Step.RECONNECT: f"{name} connects anew to {pair.names[leader]}, with that certificate",
        Step.DISTRUST: f"{name} trusts its authority of now alone",
    }[step]
