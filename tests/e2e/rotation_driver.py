"""Rotates the certificates of a pair as `harmony rotate-certificates` would, and dies where it is told to.

Run as `python -m tests.e2e.rotation_driver`, with a plan as JSON on its standard input: that of `tests.e2e.driver`, and
whether the authorities are replaced, too. It shows and ends as that one does.
"""

from __future__ import annotations

import json
import os
import sys

from harmony_pulumi.errors import SiteError
from harmony_pulumi.orchestration.journal import operator
from harmony_pulumi.orchestration.pair import pair_of
from harmony_pulumi.orchestration.rotation import new_rotation, rotate
from tests.e2e.driver import REFUSED, Boundaries, Plan, WatchedJournal


class RotationPlan(Plan):
    """What the driver does."""

    authority: bool


def main() -> int:
    """Do what the plan says."""
    plan: RotationPlan = json.load(sys.stdin)
    boundaries = Boundaries(plan)
    journal = WatchedJournal(plan["handle"]["name"], "driver", lambda line: print(line, file=sys.stderr, flush=True))
    journal.boundaries = boundaries
    sys.addaudithook(boundaries.audit)
    by = operator("a driver")
    try:
        rotate(pair_of(plan["handle"]), new_rotation(by, authority=plan["authority"]), journal, by=by)
    except SiteError as error:
        print(error, file=sys.stderr, flush=True)
        return REFUSED
    finally:
        print(json.dumps({"at": "end", "commands": boundaries.commands}), flush=True)
    return 0


if __name__ == "__main__":
    os._exit(main())
