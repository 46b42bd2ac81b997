"""What a program got wrong, and the one shape of a problem: a `RunError`, which Pulumi prints without a traceback.

Apart from the errors of sites, so that what acts on sites need not load Pulumi: a failover is not to wait for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pulumi import RunError

from harmony_pulumi.errors import counted


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an input."""

    path: str
    """The property's path, for instance `settings.work_mem` or `members.toronto.port`."""
    message: str
    """What was found, what was expected, and what to do."""

    def __str__(self) -> str:
        """Return the problem on one line."""
        return f"{self.path}: {self.message}" if self.path else self.message


class InputError(RunError, ValueError):
    """Every problem of an input, together. Raised before anything is registered."""

    def __init__(self, subject: str, problems: Iterable[Problem]) -> None:
        """Make the error for `subject`, for instance `PostgreSQL 'orders'`."""
        self.subject = subject
        self.problems: Sequence[Problem] = tuple(dict.fromkeys(problems))
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        count = counted(len(self.problems), "problem")
        super().__init__(f"{subject}: {count}, nothing was registered{lines}")


class CapabilityError(AttributeError, RunError):
    """A topology was asked for a capability that it does not provide.

    An `AttributeError`, so that `hasattr` tells the truth; a `RunError`, so that `pulumi preview` shows a message
    and no traceback.
    """
