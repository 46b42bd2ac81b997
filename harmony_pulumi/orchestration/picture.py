"""What a pair looks like, field by field, so that a revert can show that it is as it was. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from harmony_pulumi.capabilities.site import Observation

_SEEN = ("state", "role", "endpoint", "version", "system_identifier", "receiver", "waits_for", "timeline", "lsn")
_MOVES_ON = ("timeline", "lsn")
"""What no role change leaves as it was: each begins a timeline."""
_UNUSED_ON_A_PRIMARY = (
    "setting hot_standby_feedback",
    "setting primary_conninfo",
    "setting primary_slot_name",
    "setting sync_replication_slots",
    "certificate source-client",
)
"""What one that was a standby keeps of that."""


@dataclass(frozen=True)
class Difference:
    """One field, before and after."""

    field: str
    """`<member>.<what>`."""
    before: str
    after: str

    @property
    def is_equal(self) -> bool:
        """Whether it is as it was."""
        return self.before == self.after

    @property
    def is_expected(self) -> bool:
        """Whether it is as it was, or is one of the fields that no role change leaves as they were."""
        return self.is_equal or self.field.rpartition(".")[2] in _MOVES_ON


def picture(seen: Mapping[str, Observation]) -> dict[str, str]:
    """Return the fields of a pair: of each member what it is, whom it serves, and what it was told to be.

    Args:
        seen: by role.
    """
    fields: dict[str, str] = {}
    for observation in seen.values():
        name = observation["name"]
        fields |= {f"{name}.{key}": str(observation[key]) for key in _SEEN}  # type: ignore[literal-required]
        for replica in observation["replicas"]:
            words = {key: replica[key] for key in ("state", "sync_state", "tls", "client")}
            fields[f"{name}.replica {replica['name']}"] = json.dumps(words)
        fields |= {f"{name}.slot {slot['name']}": slot["wal_status"] for slot in observation["slots"]}
        fields |= {f"{name}.certificate {what}": expires for what, expires in observation["certificates"].items()}
        fields |= {f"{name}.setting {setting}": value for setting, value in observation["settings"].items()}
        if observation["role"] == "primary":
            for what in _UNUSED_ON_A_PRIMARY:
                fields.pop(f"{name}.{what}", None)
    return fields


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[Difference]:
    """Return every field of two pictures, side by side; one that is in one of them only is `-` in the other."""
    names = dict.fromkeys((*before, *after))
    return [Difference(name, before.get(name, "-"), after.get(name, "-")) for name in names]
