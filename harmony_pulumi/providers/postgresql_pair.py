"""The Pulumi resource that orchestrates a pair: it wires the members' replication and tells who is active. Thin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi.dynamic import CheckResult, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from harmony_pulumi.capabilities.site import load_site
from harmony_pulumi.errors import UnreachableError
from harmony_pulumi.orchestration import pair
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.replication import Member, establish, leaders
from harmony_pulumi.providers.base import Provider, clean_errors, is_known, plain, show


class PostgreSQLPairProvider(Provider):
    """Establishes replication between deployed members, and reads who is active."""

    @clean_errors
    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Keep a member's site as it was while it is not known anew and the member is the same."""
        old, new = plain(_olds), plain(news)
        members = dict(new["members"])
        for role, member in members.items():
            before = (old.get("members") or {}).get(role)
            if before and not is_known(member) and before["identity"] == member["identity"]:
                members[role] = before
        return CheckResult({**new, "members": members}, [])

    @clean_errors
    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Tell whether the wiring is to be made anew.

        What was observed is never desired, and no difference, except that a pair seen with no active member is to be
        looked at again once its servers have been started.
        """
        old, new = plain(_olds), plain(_news)
        asleep = str(old.get("observed_active")).startswith("none")
        return DiffResult(changes=asleep or any(old.get(key) != value for key, value in new.items()))

    @clean_errors
    def create(self, props: dict[str, Any]) -> CreateResult:
        """Wire the members and wait until the standby streams."""
        props = plain(props)
        return CreateResult(props["name"], {**props, **_establish(props, "establish")})

    @clean_errors
    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Wire the members anew."""
        old, new = plain(_olds), plain(_news)
        return UpdateResult({**old, **new, **_establish(new, "establish")})

    @clean_errors
    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """See who is active. A member that cannot be reached proves nothing, so what was known of it stays."""
        state = plain(props)
        try:
            active = leaders(_members(state), follows=state["follows"])
        except UnreachableError as error:
            show(f"warning: {state['name']}: {error}")
            return ReadResult(id_, state)
        if len(active) != 1:
            show(f"warning: {state['name']}: {' and '.join(active) or 'no member'} is active; expected exactly one")
        serving = active[0] if len(active) == 1 else state["serving"]
        return ReadResult(id_, {**state, "observed_active": " and ".join(active) or "none", "serving": serving})

    @clean_errors
    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Undo what would stop a primary that lives on: commits must not wait for a replica that is going."""
        state = plain(_props)
        if state["replication"] == "synchronous":
            site = load_site(state["members"][state["serving"]]["site"])
            if site.observe()["role"] == "primary":
                site.require_synchronous([])


def _members(props: Mapping[str, Any]) -> dict[str, Member]:
    return {role: Member(role, load_site(member["site"])) for role, member in props["members"].items()}


def _establish(props: Mapping[str, Any], operation: str) -> dict[str, Any]:
    journal = Journal(props["name"], operation, show)
    members = _members(props)
    journal.write_to(members[props["active"]].site.record)
    seen = establish(
        members,
        active=props["active"],
        synchronous=props["replication"] == "synchronous",
        follows=props["follows"],
        deadline=float(props["deadline"]),
        journal=journal,
    )
    return {
        "observed_active": props["active"],
        "serving": props["active"],
        "lag_bytes": {replica["name"]: replica["lag_bytes"] for replica in seen["replicas"]},
        "site": {
            "kind": pair.KIND,
            "name": props["name"],
            "active": props["active"],
            "members": {role: member["site"] for role, member in props["members"].items()},
        },
    }


class PostgreSQLPairResource(Resource, module="harmony", name="PostgreSQLPair"):
    """The roles and the wiring of a pair of PostgreSQL clusters."""

    observed_active: pulumi.Output[str]
    serving: pulumi.Output[str]
    """The member that was last seen to be active: where queries go."""
    lag_bytes: pulumi.Output[Any]
    """By member: the WAL that it had not replayed as the run ended. Not refreshed: it changes from minute to minute."""
    site: pulumi.Output[Any]

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare the pair. `props` is what `FailoverPostgreSQL` makes of its members."""
        super().__init__(
            PostgreSQLPairProvider(),
            name,
            {"observed_active": None, "serving": None, "lag_bytes": None, "site": None, **props},
            opts,
        )
