"""Whether PostgreSQL takes settings, asked of its own program: nothing is started, or changed, for that."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harmony_pulumi.hosts.commands import Commands

# With `-C` it ends once it has taken its arguments: PostgreSQL, "postgres". It wants a folder, and reads nothing there.
_TRY = r"""
program=$1
shift
for each; do
  said=$("$program" --config-file=/dev/null -D / -c "$each" -C "${each%%=*}" 2>&1 >/dev/null) ||
    printf '%s\0%s\0' "${each%%=*}" "$said"
done
"""
_REASON = re.compile(r"(?:FATAL|HINT): +(.*)")


def refused(connection: Commands, program: str, user: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Return why settings are refused, by name: those that are not known, and values that are none.

    What takes a library, or the machine, to tell is not found: a parameter of an extension, or too much memory.

    Args:
        connection: to where the program is.
        program: the path of `postgres`.
        user: the OS user to run it as; it refuses root.
        settings: as PostgreSQL takes them.
    """
    if not settings:
        return {}
    declared = [f"{name}={value}" for name, value in settings.items()]
    said = connection.check(["sh", "-c", _TRY, "sh", program, *declared], user=user, env={"LC_ALL": "C"}).split("\0")
    reasons = {name: ". ".join(_REASON.findall(text)) for name, text in zip(said[::2], said[1::2], strict=False)}
    return {name: reason for name, reason in reasons.items() if reason}
