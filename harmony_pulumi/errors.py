"""The errors that a user of this package can meet, and the one shape of a problem.

A user's mistake is a `RunError`, which Pulumi prints without a traceback. A site's trouble is a `SiteError`.
Every message names the thing, what was found, what was expected, and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pulumi import RunError


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


class SiteError(Exception):
    """Something at a site is not as it must be: the message says what was found and what to do."""


class UnreachableError(SiteError):
    """The site did not answer, or what answered is not the site. Nothing is known of what it holds."""


class UnlockableError(SiteError):
    """The site answers and nobody is at work on it, and it cannot be locked: what it holds cannot be read, say.

    Raised for nothing else: whoever orders a failover and vouches for a member may have it go on without that one.
    """


class PassingError(SiteError):
    """Something stands in the way that may pass, or be mended: a full disk, a connection that is refused.

    Nothing was changed, and nothing is to be decided by it: the same again, later.
    """


def counted(number: int, noun: str) -> str:
    """Return so many of something in words: `1 transaction`, `2 transactions`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
