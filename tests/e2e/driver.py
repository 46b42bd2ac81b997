"""Moves the roles of a pair as `pulumi up` or `harmony` would, and dies, or kills a process, where it is told to.

Run as `python -m tests.e2e.driver`, with a plan as JSON on its standard input. It shows each boundary that it passes as
a line of JSON, and ends with 0, with 3 and the message if it was refused or given up, or as it was told to.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from harmony_pulumi.capabilities.site import Roles, Terms
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql.site import HostPostgreSQL
from harmony_pulumi.orchestration.journal import Journal, operator
from harmony_pulumi.orchestration.members import Pair
from harmony_pulumi.orchestration.pair import pair_of
from harmony_pulumi.orchestration.roles import Desired
from harmony_pulumi.orchestration.runner import bring_back, fail_over, reach, revert, settle
from harmony_pulumi.orchestration.wait import wait_for

if TYPE_CHECKING:
    from harmony_pulumi.kubernetes.site import ClusterPostgreSQL

REFUSED = 3
_PROGRAMS = ("postgres", "pg_rewind", "pg_basebackup")
Kind = Literal["switchover", "failover", "rejoin", "revert"]


class Act(TypedDict):
    """What is to happen at a boundary."""

    at: str
    """`<step>:started`, `<step>:done`, or `<step>:told`, once a site was told its roles in a step.

    Or `runs <word>`: a program was begun on a host that has this word among its arguments.
    """
    times: int
    """How often the boundary is to be passed until then."""
    do: str
    """`die`, or `kill primary` or `kill replica`: SIGKILL for that member's postmaster; `kill it`: for the program.

    Or `network <fault>`, of a pair in a network of its own; or `fill <path>`: a file takes all room on its disk; or
    `run <command>`, in words.
    """


class Plan(TypedDict):
    """What the driver does."""

    handle: dict[str, Any]
    kind: Kind
    active: str
    """The member that is to be active, or is, in a rejoin."""
    epoch: int
    """Of a switchover."""
    terms: Terms | None
    """Of a failover."""
    acts: list[Act]
    die_at_command: int
    """Die before the n-th command that is run on a host, or call to a cluster (`count_calls`); 0 for never."""
    die_after: float
    """Die so many seconds after the operation began; 0 for never."""


def die() -> None:
    """End as a process does that is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def processes_in(data: Path) -> list[str]:
    """Return the processes that work in a data directory: a server's."""

    def works_there(process: Path) -> bool:
        try:
            return (process / "cwd").resolve() == data
        except OSError:
            return False

    return [process.name for process in Path("/proc").glob("[0-9]*") if works_there(process)]


def kill_postmaster(data: Path) -> None:
    """Kill a server as a loss of power does, and wait until none of its processes is left: they may still answer."""
    os.kill(int((data / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
    what = f"the end of all processes in {data}"
    wait_for(what, lambda: processes_in(data), lambda left: not left, deadline=60, advice="See what they wait for.")


def running_with(word: str, below: Path) -> int:
    """Return the program of PostgreSQL's that has this word, and a folder's path, in its arguments; 0 if none has."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_text(errors="replace").split("\0")
            if Path(words[0]).name in _PROGRAMS and word in words and any(w.startswith(f"{below}/") for w in words):
                return int(process.name)
    return 0


def fill(path: Path) -> None:
    """Take all the room that is left on a disk, however much that is by the end, by one file."""
    with path.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(65536))
            file.flush()


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

    def command(self) -> None:
        """Count a command that is about to be run, and die before it if that is planned."""
        self.commands += 1
        if self.commands == self.plan["die_at_command"]:
            die()

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """See each command that is about to be run."""
        if event == "subprocess.Popen":
            self.command()
            for act in self.plan["acts"]:
                word = act["at"].removeprefix("runs ")
                if word != act["at"] and word in args[1]:
                    threading.Thread(target=self._runs, args=(act, word), daemon=True).start()

    def _runs(self, act: Act, word: str) -> None:
        """Wait until a program runs that is about to be started, for 30 s at most."""
        roots = [Path(member["root"]) for member in self.plan["handle"]["members"].values()]
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if found := next(filter(None, (running_with(word, root) for root in roots)), 0):
                print(json.dumps({"at": act["at"], "commands": self.commands}), flush=True)
                self._do(act["do"], found)
                return

    def _do(self, what: str, pid: int = 0) -> None:
        if what == "die":
            die()
        elif what == "kill it":
            os.kill(pid, signal.SIGKILL)
        elif what.startswith("fill "):
            fill(Path(what.removeprefix("fill ")))
        elif what.startswith("run "):
            subprocess.run(shlex.split(what.removeprefix("run ")), check=True, timeout=120, stdout=subprocess.DEVNULL)
        elif what.startswith("network "):
            from tests.e2e.network import Network

            Network.of(self.plan["handle"]).fault(what.removeprefix("network "))
        else:
            kill_postmaster(Path(self.plan["handle"]["members"][what.removeprefix("kill ")]["data"]))


class WatchedJournal(Journal):
    """A journal whose every record is a boundary."""

    boundaries: Boundaries

    def _record(self, step: str, state: str, text: str, **detail: Any) -> None:
        super()._record(step, state, text, **detail)
        self.boundaries.step = step
        self.boundaries.reached(f"{step}:{state}")


def move(pair: Pair, plan: Plan, journal: Journal) -> None:
    """Do what is asked for, as the commands do."""
    by = operator("a driver")
    match plan["kind"]:
        case "switchover":
            reach(pair, Desired(plan["active"], plan["epoch"]), journal, by=by)
        case "failover":
            assert plan["terms"] is not None
            fail_over(pair, plan["active"], plan["terms"], journal, by=by)
        case "rejoin":
            bring_back(pair, journal, by=by)
            settle(pair, plan["active"], journal, by=by)
        case "revert":
            revert(pair, journal, by=by)


def watch(kind: type[HostPostgreSQL | ClusterPostgreSQL], boundaries: Boundaries) -> None:
    """Have each telling of roles to a site be a boundary."""
    tell: Callable[[Any, Roles], None] = kind.tell

    def watched(site: Any, roles: Roles) -> None:
        tell(site, roles)
        boundaries.reached(f"{boundaries.step}:told")

    kind.tell = watched  # type: ignore[method-assign]


def count_calls(boundaries: Boundaries) -> None:
    """Have what is asked of a cluster count as the commands on a host do.

    Right after a call is right before the next one, so each counts once: what may change something, but for the lock,
    which is renewed by the clock. A command in a pod runs on without whoever began it, so it counts once more then.
    """
    from harmony_pulumi.kubernetes.api import Api
    from harmony_pulumi.kubernetes.pods import Pod

    answer, begin = Api._answer, Pod._open  # pyright: ignore[reportPrivateUsage]

    def answered(api: Api, method: str, url: str, *rest: Any) -> Any:
        if method != "GET" and "/leases" not in url:
            boundaries.command()
        return answer(api, method, url, *rest)

    def begun(pod: Pod, *command: Any, **options: Any) -> Any:
        boundaries.command()
        session = begin(pod, *command, **options)
        boundaries.command()
        return session

    Api._answer, Pod._open = answered, begun  # type: ignore[method-assign] # pyright: ignore[reportPrivateUsage]


def main() -> int:
    """Do what the plan says."""
    plan: Plan = json.load(sys.stdin)
    boundaries = Boundaries(plan)
    watch(HostPostgreSQL, boundaries)
    if "harmony_pulumi.kubernetes." in json.dumps(plan["handle"]):  # To load what asks a cluster takes a second.
        from harmony_pulumi.kubernetes.site import ClusterPostgreSQL

        watch(ClusterPostgreSQL, boundaries)
        count_calls(boundaries)
    journal = WatchedJournal(plan["handle"]["name"], "driver", lambda line: print(line, file=sys.stderr, flush=True))
    journal.boundaries = boundaries
    pair = pair_of(plan["handle"])
    journal.write_to(pair.members[plan["active"]].site.record)
    sys.addaudithook(boundaries.audit)
    if plan["die_after"]:
        threading.Timer(plan["die_after"], die).start()
    try:
        move(pair, plan, journal)
    except SiteError as error:
        print(error, file=sys.stderr, flush=True)
        return REFUSED
    finally:
        print(json.dumps({"at": "end", "commands": boundaries.commands}), flush=True)
    return 0


if __name__ == "__main__":
    os._exit(main())
