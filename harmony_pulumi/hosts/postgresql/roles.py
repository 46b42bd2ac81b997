"""What a server's site keeps of its pair's roles, and which role a server is to start in. Thin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from harmony_pulumi.capabilities.site import Operation, Roles
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.connection import Connection
from harmony_pulumi.orchestration.roles import last_epoch, leads

_LATER = {"terms": None, "stage": "", "clone": ""}
"""What an operation that was begun before there were failovers does not have."""


def read_roles(connection: Connection, path: str, user: str) -> Roles | None:
    """Return what a site was told, or None if nothing.

    Raises:
        SiteError: the file is not one of this version of harmony.
    """
    text = connection.read_file(path, user)
    if text is None:
        return None
    try:
        return roles_from(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        msg = (
            f"{connection.name}: {path} is not what this version of harmony writes ({error!r}); it says which member "
            f"of a pair is active, so compare it with that of the other member before you do anything about it"
        )
        raise SiteError(msg) from error


def roles_from(found: Mapping[str, Any]) -> Roles:
    """Return what was kept of roles, whatever version of harmony has written it."""
    operation: Any = found["operation"]
    outer: Any = found.get("outer")
    return Roles(
        pair=found["pair"],
        epoch=found["epoch"],
        active=found["active"],
        me=found["me"],
        synchronous=found.get("synchronous", False),
        operation=cast("Operation", {**_LATER, **operation}) if operation else None,
        away=found.get("away"),  # What was written before there were failovers has none, either.
        outer=roles_from(outer) if outer else None,
    )


def refusal(known: Roles | None, told: Roles) -> str | None:
    """Return why a site does not take what it is told, or None if it does."""
    if known is None:
        return None
    if known["outer"]:
        if told["outer"] is None:
            return f"it is a member of the pair {known['outer']['pair']}, too, and nothing is told of that"
        if reason := refusal(known["outer"], told["outer"]):
            return reason
    if known["pair"] != told["pair"]:
        return f"it is a member of the pair {known['pair']}, not of {told['pair']}"
    if known["epoch"] > told["epoch"]:
        return (
            f"it knows epoch {known['epoch']}, with {known['active']} active, and epoch {told['epoch']} is older: "
            f"roles have moved since"
        )
    if known["epoch"] == told["epoch"] and known["active"] != told["active"]:
        return f"it knows {known['active']} as active at epoch {known['epoch']}, and {told['active']} is told of it"
    return None


def is_to_lead(roles: Roles | None, source: Mapping[str, Any] | None) -> bool:
    """Tell whether a server is to be a primary.

    What its site was told of a role change counts; before the first one (epoch 0), what the program declares.
    """
    return leads(roles) if roles and last_epoch(roles) else not source
