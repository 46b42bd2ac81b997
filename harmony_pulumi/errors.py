"""The errors of sites. Those of a program are in `input_errors`.

Every message names the thing, what was found, what was expected, and what to do next.
"""

from __future__ import annotations


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
