"""Moves the roles of a pair as `pulumi up` would, and dies, or kills a server, where it is told to.

Run as `python -m tests.e2e.driver`, with a plan as JSON on its standard input. It shows each boundary that it passes as
a line of JSON, and ends with 0, with 3 and the message if it was refused or given up, or as it was told to.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TypedDict

from harmony_pulumi.capabilities.site import Roles
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql.site import HostPostgreSQL
from harmony_pulumi.orchestration.journal import Journal, operator
from harmony_pulumi.orchestration.pair import pair_of
from harmony_pulumi.orchestration.roles import Desired
from harmony_pulumi.orchestration.runner import reach

REFUSED = 3


class Act(TypedDict):
    """What is to happen at a boundary."""

    at: str
    """`<step>:started`, `<step>:done`, or `<step>:told`, once a site was told its roles in a step."""
    times: int
    """How often the boundary is to be passed until then."""
    do: str
    """`die`, or `kill primary` or `kill replica`: SIGKILL for that member's postmaster."""


class Plan(TypedDict):
    """What the driver does."""

    handle: dict[str, Any]
    active: str
    epoch: int
    acts: list[Act]
    die_at_command: int
    """Die before the n-th command that is run on a host; 0 for never."""
    die_after: float
    """Die so many seconds after the operation began; 0 for never."""


def die() -> None:
    """End as a process does that is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_postmaster(data: Path) -> None:
    """Kill a server, but not its children, which notice that by themselves."""
    os.kill(int((data / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)


class Boundaries:
    """Counts what is passed, shows it, and does what is planned there."""

    def __init__(self, plan: Plan) -> None:
        """Begin to count."""
        self.plan = plan
        self.passed: dict[str, int] = {}
        self.commands = 0
        self.step = ""

    def reached(self, at: str) -> None:
        """Pass a boundary."""
        self.passed[at] = self.passed.get(at, 0) + 1
        print(json.dumps({"at": at, "commands": self.commands}), flush=True)
        for act in self.plan["acts"]:
            if act["at"] == at and act["times"] == self.passed[at]:
                self._do(act["do"])

    def audit(self, event: str, _: object) -> None:
        """See each command that is about to be run."""
        if event == "subprocess.Popen":
            self.commands += 1
            if self.commands == self.plan["die_at_command"]:
                die()

    def _do(self, what: str) -> None:
        if what == "die":
            die()
        else:
            kill_postmaster(Path(self.plan["handle"]["members"][what.removeprefix("kill ")]["data"]))


class WatchedJournal(Journal):
    """A journal whose every record is a boundary."""

    boundaries: Boundaries

    def _record(self, step: str, state: str, text: str, **detail: Any) -> None:
        super()._record(step, state, text, **detail)
        self.boundaries.step = step
        self.boundaries.reached(f"{step}:{state}")


def main() -> int:
    """Do what the plan says."""
    plan: Plan = json.load(sys.stdin)
    boundaries = Boundaries(plan)
    tell = HostPostgreSQL.tell

    def watched(site: HostPostgreSQL, roles: Roles) -> None:
        tell(site, roles)
        boundaries.reached(f"{boundaries.step}:told")

    HostPostgreSQL.tell = watched  # type: ignore[method-assign]
    journal = WatchedJournal(plan["handle"]["name"], "driver", lambda line: print(line, file=sys.stderr, flush=True))
    journal.boundaries = boundaries
    pair = pair_of(plan["handle"])
    journal.write_to(pair.members[plan["active"]].site.record)
    sys.addaudithook(boundaries.audit)
    if plan["die_after"]:
        threading.Timer(plan["die_after"], die).start()
    try:
        reach(pair, Desired(plan["active"], plan["epoch"]), journal, by=operator("a driver"))
    except SiteError as error:
        print(error, file=sys.stderr, flush=True)
        return REFUSED
    finally:
        print(json.dumps({"at": "end", "commands": boundaries.commands}), flush=True)
    return 0


if __name__ == "__main__":
    os._exit(main())
