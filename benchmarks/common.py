"""What the benchmarks share: samples that are taken in turn, facts of the machine, Pulumi projects of their own."""

from __future__ import annotations

import argparse
import json
import os
import platform
import pwd
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

REPOSITORY = Path(__file__).resolve().parent.parent
T = TypeVar("T")


class Sample(NamedTuple):
    """What one run of a command took."""

    seconds: float
    cpu_seconds: float
    """Of the command and all that it waited for. Another load on the machine disturbs it less."""


def timed(act: Callable[[], object]) -> Sample:
    """Time an act that runs child processes."""
    cpu, began = _cpu_of_children(), time.perf_counter()
    act()
    return Sample(time.perf_counter() - began, _cpu_of_children() - cpu)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def in_turn(
    sides: Mapping[str, Callable[[], T]], runs: int, *, budget: float = float("inf"), what: str = ""
) -> dict[str, list[T]]:
    """Take samples of all sides in turn, A B A B: what else the machine does meets them alike.

    Args:
        sides: by name; each takes one sample.
        runs: how many samples of each side.
        budget: seconds after which no further round begins; the first always runs.
        what: is measured, for the progress on standard error.
    """
    end = time.monotonic() + budget
    samples: dict[str, list[T]] = {side: [] for side in sides}
    for run in range(runs):
        if run and time.monotonic() > end:
            break
        for side, take in sides.items():
            began = time.monotonic()
            samples[side].append(take())
            took = time.monotonic() - began
            print(f"{what} {run + 1} of {runs}: {side}: {took:.2f} s in all", file=sys.stderr, flush=True)
    return samples


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the extremes and the number of samples."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "runs": len(values),
    }


def summaries(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return the summaries of what runs of a command took."""
    return {field: summary([getattr(sample, field) for sample in samples]) for field in Sample._fields}


def cell(found: Mapping[str, float], unit: str = "s", digits: int = 2) -> str:
    """Return a summary as a table shows it."""
    return f"{found['median']:.{digits}f} {unit} ({found['min']:.{digits}f} to {found['max']:.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    padded = (" | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"| {line} |" for line in padded) + "\n"


def verdict(aim: Mapping[str, Any]) -> str:
    """Return an aim, what was found and whether it was met, on one line."""
    return f"Aim: {aim['what']}. Found: {aim['found']}. {'Met.' if aim['met'] else 'MISSED.'}\n"


def machine() -> dict[str, Any]:
    """Return what a reader needs to know of the machine."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _said("git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _field("/proc/cpuinfo", "model name"),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "filesystem": _said("stat", "-f", "-c", "%T", tempfile.gettempdir()),
        "python": platform.python_version(),
        "pulumi": _said("pulumi", "version"),
        "pulumi sdk": _said(sys.executable, "-m", "pip", "show", "pulumi").partition("Version: ")[2].partition("\n")[0],
        "load average": os.getloadavg()[0],
    }


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    except OSError:
        return "none"


def _field(file: str, name: str) -> str:
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "unknown")


@contextmanager
def workspace() -> Generator[Path]:
    """Make a folder on disk that PostgreSQL's own OS user can enter, short enough for a Unix socket's path."""
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)


def owner() -> pwd.struct_passwd:
    """Return the OS user that owns the servers."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def become_owner() -> list[str]:
    """Return what to put before a command to run it as the OS user that owns the servers."""
    account = owner()
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups", "--"]


def as_owner(command: Sequence[str], *, stdin: str = "", timeout: float, env: Mapping[str, str] | None = None) -> str:
    """Run a command as the OS user that owns the servers; return its standard output."""
    return checked([*become_owner(), *command], stdin=stdin, timeout=timeout, env=env)


def checked(command: Sequence[str], *, stdin: str = "", timeout: float, env: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed and may leave a daemon; return its standard output."""
    # A daemon inherits the pipes of what starts it, so what is said goes to files.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            cwd="/",
            text=True,
            env=env,
            start_new_session=True,
        )
        try:
            process.communicate(stdin, timeout)
        except BaseException:  # What it has started would go on in a folder that is about to be removed.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        for file in (out, err):
            file.seek(0)
        said, complaint = out.read(), err.read()
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with status {process.returncode}: {complaint or said}")
    return said


def free_ports(count: int) -> list[int]:
    """Return TCP ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("localhost", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Project:
    """A Pulumi project with a file backend and one stack, apart from everything that the user has."""

    def __init__(self, folder: Path, program: str, environment: Mapping[str, str]) -> None:
        """Make the project in a new folder and its stack.

        Args:
            folder: to make.
            program: the module whose `deploy()` is the Pulumi program.
            environment: what the program reads.
        """
        if not shutil.which("pulumi"):
            raise SystemExit("the pulumi command is not on PATH; `scripts/demo` installs it and says where")
        self.folder = folder
        self.home, self.backend = folder / "home", folder / "state"
        for made in (folder, self.home, self.backend):
            made.mkdir()
        (folder / "Pulumi.yaml").write_text("name: harmony-benchmark\nruntime: python\n", encoding="utf-8")
        (folder / "__main__.py").write_text(f"from {program} import deploy\n\ndeploy()\n", encoding="utf-8")
        self.environment = {
            **os.environ,
            # The language host takes the first python3 on PATH.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
            "PULUMI_BACKEND_URL": f"file://{self.backend}",
            "PULUMI_CONFIG_PASSPHRASE": "benchmark",
            "PULUMI_HOME": str(self.home),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            **environment,
        }
        self.pulumi("stack", "init", "benchmark")

    def pulumi(self, *arguments: str) -> str:
        """Run a command of Pulumi's that must succeed; return its standard output."""
        command = ["pulumi", *arguments, "--non-interactive", "--stack", "benchmark"]
        if arguments[0] == "stack":
            command = ["pulumi", *arguments, "--non-interactive"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def up(self) -> None:
        """Deploy without a preview."""
        self.pulumi("up", "--skip-preview", "--yes")

    def state(self) -> Path:
        """Return the file that holds the stack's state."""
        return self.backend / ".pulumi" / "stacks" / "harmony-benchmark" / "benchmark.json"


def run(
    name: str,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    report: Callable[[dict[str, Any]], str],
    *,
    parser: argparse.ArgumentParser,
) -> None:
    """Be the command line of one benchmark, with the options that it has of its own."""
    add_output_options(parser)
    options = parser.parse_args()
    began = datetime.now(UTC)
    result: dict[str, Any] = {"machine": machine(), name: measure(options)}
    publish(result, {name: report}, began, options, suffix=f"-{name}")


def run_times(
    name: str, measure: Callable[[int], dict[str, Any]], report: Callable[[dict[str, Any]], str], *, runs: int
) -> None:
    """Be the command line of one benchmark, with `runs` samples of each side by default."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--runs", type=int, default=runs, help="samples of each side (default: %(default)s)")
    run(name, lambda options: measure(options.runs), report, parser=parser)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a result is shown."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--save",
        action="store_true",
        help="keep both forms in benchmarks/results/, by date and time; no run replaces another",
    )


def publish(
    result: dict[str, Any],
    reports: Mapping[str, Callable[[dict[str, Any]], str]],
    began: datetime,
    options: argparse.Namespace,
    *,
    suffix: str = "",
) -> None:
    """Print a result as `--json` says, and keep it if `--save` does."""
    result["machine"]["load average at the end"] = os.getloadavg()[0]
    parts = ["# Benchmarks\n", describe(result["machine"]), *(report(result[name]) for name, report in reports.items())]
    texts = {"json": json.dumps(result, indent=1) + "\n", "md": "\n".join(parts)}
    if options.save:
        for ending, text in texts.items():
            place = REPOSITORY / "benchmarks" / "results" / f"{began:%Y-%m-%dT%H%MZ}{suffix}.{ending}"
            place.parent.mkdir(exist_ok=True)
            place.write_text(text, encoding="utf-8")
    print(texts["json" if options.json else "md"], end="")


def describe(facts: Mapping[str, Any]) -> str:
    """Return the machine's facts as text."""
    return "".join(f"- {name}: {value}\n" for name, value in facts.items())
