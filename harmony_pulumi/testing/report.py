"""What a conformance check finds. Knows no capability and no topology."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec

P = ParamSpec("P")


class ConformanceError(AssertionError):
    """An implementation does not keep a contract: what was found, and what is expected."""


@dataclass
class Report:
    """The checks that an implementation has passed."""

    subject: str
    """What was checked."""
    passed: list[str] = field(default_factory=list[str])
    """What was found to hold, one sentence a check, in the order of the checks."""

    def run(self, check: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run one check, whose docstring is the sentence that is to hold.

        Raises:
            ConformanceError: it does not hold.
        """
        sentence = (check.__doc__ or check.__name__).strip().splitlines()[0]
        try:
            check(*args, **kwargs)
        except Exception as error:
            found = error if isinstance(error, ConformanceError) else f"  found: {type(error).__name__}: {error}"
            msg = f"{self.subject}: this does not hold: {sentence}\n{found}"
            raise ConformanceError(msg) from error
        self.passed.append(sentence)

    def __str__(self) -> str:
        """Return the report as text, one line a check."""
        return "\n".join((f"{self.subject}: {len(self.passed)} checks passed", *(f"  - {s}" for s in self.passed)))


def expect(holds: object, *, found: object, expected: str) -> None:
    """Refuse what does not hold.

    Raises:
        ConformanceError: `holds` is false.
    """
    if not holds:
        msg = f"  found: {found}\n  expected: {expected}"
        raise ConformanceError(msg)
