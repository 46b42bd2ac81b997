"""Establishing replication between deployed members. Knows no topology and no Pulumi: sites only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harmony_pulumi.capabilities.site import Observation, PostgreSQLSite
from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.wait import wait_for


@dataclass(frozen=True)
class Member:
    """A member of a pair: its role as declared, and its site."""

    role: str
    site: PostgreSQLSite


def establish(
    members: Mapping[str, Member], *, active: str, synchronous: bool, deadline: float, journal: Journal
) -> None:
    """Wait until every other member streams from the active one, then have commits wait if declared so.

    Raises:
        SiteError: the active member is not a primary, or a member does not stream within `deadline` seconds.
    """
    source = members[active].site
    others = [members[role].site.observe() for role in members if role != active]
    names = [other["name"] for other in others]
    if not synchronous:
        source.require_synchronous([])
    with journal.step("streaming", f"waiting until {' and '.join(names)} streams from {active}"):
        seen = wait_for(
            f"{' and '.join(names)} streaming",
            source.observe,
            lambda observation: not missing(observation, names),
            deadline=deadline,
            advice="Look at the members' logs.",
        )
    if seen["role"] != "primary":
        msg = f"{seen['name']} was to be the primary and is a {seen['role'] or seen['state']}"
        raise SiteError(msg)
    if synchronous:
        with journal.step("synchronous", f"commits wait for {' or '.join(names)} from here on"):
            source.require_synchronous(names)
            wait_for(
                "a synchronous replica",
                source.observe,
                lambda observation: any(r["sync_state"] == "sync" for r in observation["replicas"]),
                deadline=deadline,
                advice="Look at the primary's log.",
            )


def missing(source: Observation, names: list[str]) -> list[str]:
    """Return which of the named replicas do not stream from a source."""
    streaming = {replica["name"] for replica in source["replicas"] if replica["state"] == "streaming"}
    return [name for name in names if name not in streaming]


def primaries(members: Mapping[str, Member]) -> list[str]:
    """Return the roles of the members that are running primaries.

    Raises:
        UnreachableError: none was seen, and one could not be asked.
    """
    seen = {role: member.site.observe() for role, member in members.items()}
    found = [role for role, observation in seen.items() if observation["role"] == "primary"]
    unreachable = [observation["detail"] for observation in seen.values() if observation["state"] == "unreachable"]
    if not found and unreachable:
        raise UnreachableError("; ".join(unreachable))
    return found
