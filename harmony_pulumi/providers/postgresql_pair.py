"""The Pulumi resource that orchestrates a pair: its roles, its wiring, and who is active. Thin.

What is desired (`active`, with its `epoch`) is an input; what was seen (`observed_active`) is an output. Reading never
writes the one from the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi.dynamic import CheckFailure, CheckResult, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from harmony_pulumi.capabilities.site import load_site
from harmony_pulumi.errors import UnreachableError
from harmony_pulumi.orchestration import pair
from harmony_pulumi.orchestration.journal import Journal, operator
from harmony_pulumi.orchestration.replication import leaders, members_of
from harmony_pulumi.orchestration.roles import Desired, input_problem, leap_in_words
from harmony_pulumi.orchestration.rotation import rotate, rotation_in_words
from harmony_pulumi.orchestration.runner import reach, steps_in_words
from harmony_pulumi.providers.base import Provider, clean_errors, is_known, plain, show


class PostgreSQLPairProvider(Provider):
    """Moves roles, establishes replication between deployed members, and reads who is active."""

    @clean_errors
    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Keep a member's site while it is not known anew and the member is the same; say what will be done."""
        old, new = plain(_olds), plain(news)
        members = dict(new["members"])
        for role, member in members.items():
            before = (old.get("members") or {}).get(role)
            if before and not is_known(member) and before["identity"] == member["identity"]:
                members[role] = before
        new["members"] = members
        # An update of an endpoint changes nothing of its handle; without any, there is nothing in the diff.
        before = old.get("endpoints") or {}
        endpoints = {
            name: handle if is_known(handle) else before.get(name, handle)
            for name, handle in (new.get("endpoints") or {}).items()
        }
        if endpoints or before:
            new["endpoints"] = endpoints
        if not old:
            return CheckResult(new, [])
        before, desired = _desired(old), _desired(new)
        steps = steps_in_words(_names(new), desired.active) if before.active != desired.active else []
        changed = _changed_certificates(old, new)
        words = rotation_in_words(_names(new), authority="authority" in changed) if changed else []
        plan = [*leap_in_words(before, desired), *steps, *words] or old.get("plan")
        problem = input_problem(before, desired, _names(new))
        failures = [CheckFailure("epoch", problem)] if problem else []
        return CheckResult({**new, **({"plan": plan} if plan else {})}, failures)

    @clean_errors
    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Tell whether anything is to be done.

        What was observed is never desired. But where another member was seen to be active than the desired one, or
        none, `up` is to look again: at servers that have been started, or at a drift, which it refuses.
        """
        old, new = plain(_olds), plain(_news)
        drifted = old.get("observed_active") != new["active"]
        return DiffResult(changes=drifted or any(old.get(key) != value for key, value in new.items() if key != "plan"))

    @clean_errors
    def create(self, props: dict[str, Any]) -> CreateResult:
        """Wire the members and wait until the standby streams."""
        props = plain(props)
        return CreateResult(props["name"], {**props, **_reach(props, "establish")})

    @clean_errors
    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Move the roles if another member is to be active; wire the members anew."""
        old, new = plain(_olds), plain(_news)
        moved = _desired(old) != _desired(new)
        return UpdateResult({**old, **new, **_reach(new, "switchover" if moved else "establish")})

    @clean_errors
    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """See who is active. A member that cannot be reached proves nothing, so what was known of it stays."""
        state = plain(props)
        try:
            active = leaders(members_of(_handles(state)), follows=state["follows"])
        except UnreachableError as error:
            show(f"warning: {state['name']}: {error}")
            return ReadResult(id_, state)
        if len(active) != 1:
            names = " and ".join(_names(state)[role] for role in active) or "no member"
            verb = "are" if len(active) > 1 else "is"
            stop = "stop the one that is not to stay, then `harmony accept` if the other was not active, and `rejoin`"
            ways = stop if active else "`harmony plan` says what can be done"
            show(f"warning: {state['name']}: {names} {verb} active; expected exactly one; {ways}")
        elif active[0] != state["active"]:
            name = _names(state)[active[0]]
            ways = "if a command moved the roles, write what it said into the configuration; else see `harmony accept`"
            show(f"warning: {state['name']}: {name} is active, and another member is declared to be; {ways}")
        serving = active[0] if len(active) == 1 else state["serving"]
        return ReadResult(id_, {**state, "observed_active": " and ".join(active) or "none", "serving": serving})

    @clean_errors
    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Undo what would stop a primary that lives on: commits must not wait for a replica that is going."""
        state = plain(_props)
        if state["replication"] != "synchronous":
            return
        for member in state["members"].values():  # Roles may have moved since the stack was told last.
            site = load_site(member["site"])
            if site.observe()["role"] == "primary":
                site.require_synchronous([])


def _desired(props: Mapping[str, Any]) -> Desired:
    return Desired(props["active"], props.get("epoch", 0))


def _changed_certificates(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what is declared otherwise of the members' certificates."""
    before = old.get("rotation") or new["rotation"]
    return [key for key, value in new["rotation"].items() if before.get(key) != value]


def _names(props: Mapping[str, Any]) -> dict[str, str]:
    return {role: member["name"] for role, member in sorted(props["members"].items())}


def _handles(props: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {role: member["site"] for role, member in props["members"].items()}


def _reach(props: Mapping[str, Any], operation: str) -> dict[str, Any]:
    handle: dict[str, Any] = {
        "kind": pair.KIND,
        "name": props["name"],
        "pair": props["pair"],
        "active": props["active"],
        "active_from": props.get("active_from"),
        "follows": props["follows"],
        "synchronous": props["replication"] == "synchronous",
        "deadline": props["deadline"],
        "fence_commands": props.get("fence_commands") or {},
        "members": _handles(props),
        "endpoints": [handle for _, handle in sorted((props.get("endpoints") or {}).items())],
    }
    journal = Journal(props["name"], operation, show)
    members = members_of(handle["members"])
    journal.write_to(members[props["active"]].site.record)
    by = operator(f"`pulumi` ({operation})")
    seen = reach(pair.pair_of(handle), _desired(props), journal, by=by)
    if pair.rotates(handle):
        # Their servers have new certificates if these were declared; here it is seen to that the members use them.
        rotate(pair.pair_of(handle), None, journal, by=by)
    return {
        "observed_active": props["active"],
        "serving": props["active"],
        "lag_bytes": {replica["name"]: replica["lag_bytes"] for replica in seen["replicas"]},
        "site": handle,
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
