"""From nothing to a streaming pair: `pulumi up` with this package beside a bare shell script that does the same.

A third side, plain Pulumi with as many resources that do nothing, tells how much of the difference Pulumi takes
before the package does anything. All servers keep fsync, checksums and TLS; that both sides' settings and access
rules are equal is read from the servers, in every run, and the benchmark fails if they are not.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import common
from harmony_pulumi.hosts.connection import LocalConnection
from harmony_pulumi.hosts.postgresql.server import Binaries, choose_binaries

RUNS = 5
_LIMIT = 3.0
_MEMBERS = ("primary", "replica")
SHOWN = (
    "fsync",
    "data_checksums",
    "full_page_writes",
    "ssl",
    "ssl_min_protocol_version",
    "shared_buffers",
    "max_wal_size",
    "wal_level",
    "synchronous_commit",
    "max_slot_wal_keep_size",
    "password_encryption",
)

_FACTS = """
SELECT json_build_object(
  'settings', (SELECT json_object_agg(name, setting) FROM pg_settings
    WHERE source <> 'client' AND name NOT IN ('application_name', 'cluster_name', 'config_file', 'data_directory',
      'external_pid_file', 'hba_file', 'ident_file', 'port', 'primary_conninfo', 'primary_slot_name', 'ssl_ca_file',
      'ssl_cert_file', 'ssl_key_file', 'unix_socket_directories')),
  'access', (SELECT json_agg(json_build_array(type, database, array_replace(array_replace(user_name,
      'harmony_replication', 'replicas'), 'replicator', 'replicas'), address, auth_method) ORDER BY line_number)
    FROM pg_hba_file_rules),
  'recovery', pg_is_in_recovery(),
  'version', current_setting('server_version'),
  'databases', (SELECT json_agg(datname ORDER BY datname) FROM pg_database),
  'collation', (SELECT json_agg(DISTINCT datcollate || ' ' || pg_encoding_to_char(encoding)) FROM pg_database),
  'replication', (SELECT json_agg(json_build_object('state', state, 'tls', version, 'cipher', cipher,
      'certificate', client_dn IS NOT NULL)) FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)),
  'slots', (SELECT json_agg(json_build_array(slot_type, active)) FROM pg_replication_slots))
"""


class Deployed(NamedTuple):
    """What one sample found."""

    sample: common.Sample
    spans: Mapping[str, float]
    """Seconds by what they were spent on; they add up to the whole."""
    servers: Mapping[str, Any]
    """What each server says of itself, by member."""


def measure(runs: int) -> dict[str, Any]:
    """Measure all sides."""
    binaries = choose_binaries(LocalConnection(), None)
    sides: dict[str, Callable[[], Deployed]] = {
        "bare": lambda: _bare(binaries),
        "Pulumi alone": _pulumi_alone,
        "harmony": lambda: _harmony(binaries),
    }
    samples = common.in_turn(sides, runs, what="deploy")
    servers = equal([run.servers for side in ("bare", "harmony") for run in samples[side]])
    rows = {side: common.summaries([run.sample for run in found]) for side, found in samples.items()}
    added, fastest = (rows["harmony"]["seconds"][key] - rows["bare"]["seconds"][key] for key in ("median", "min"))
    pulumi = rows["Pulumi alone"]["seconds"]["median"]
    return {
        "aim": {
            "what": f"the package and Pulumi together add at most {_LIMIT:g} s to the bare script",
            "found": f"{added:.2f} s (fastest runs: {fastest:.2f} s), of which Pulumi alone takes {pulumi:.2f} s",
            "met": added <= _LIMIT,
        },
        "postgresql": binaries.version,
        "sides": rows,
        "added seconds": {
            "in all": round(added, 3),
            "in all, by the fastest runs": round(fastest, 3),
            "by Pulumi alone": pulumi,
            "by the package": round(added - pulumi, 3),
        },
        "spans": {side: _median_spans([run.spans for run in samples[side]]) for side in ("bare", "harmony")},
        "equal on both sides": servers,
    }


def report(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    sides = [
        [side, common.cell(row["seconds"]), common.cell(row["cpu_seconds"])] for side, row in result["sides"].items()
    ]
    spans = [
        [side, span, f"{seconds['median']:.2f} s"]
        for side, found in result["spans"].items()
        for span, seconds in found.items()
    ]
    facts = result["equal on both sides"]
    return (
        f"## deploy\n\nPostgreSQL {result['postgresql']}. {facts['equal settings']} settings and the access rules were "
        f"read from all four servers in every run and are equal, among them "
        f"{', '.join(f'{name} = {value}' for name, value in facts['settings'].items())}. "
        f"Replication on both sides: {facts['replication']}.\n\n"
        f"{common.table(['nothing to streaming', 'wall clock', 'CPU time of commands'], sides)}\n"
        f"Where the time goes (medians):\n\n{common.table(['side', 'spent on', 'seconds'], spans)}\n"
        f"{common.verdict(result['aim'])}"
    )


def _bare(binaries: Binaries) -> Deployed:
    owner, ports = common.owner(), dict(zip(_MEMBERS, common.free_ports(2), strict=True))
    # The script is read from standard input, since its owner need not be able to enter this checkout.
    script = Path(__file__).with_name("bare_pair.sh").read_text(encoding="utf-8")
    with common.workspace() as folder:
        home = folder / "bare"
        home.mkdir(mode=0o700)
        os.chown(home, owner.pw_uid, owner.pw_gid)
        command = ["bash", "-s", "--", binaries.path, str(home), *map(str, ports.values())]
        said: list[str] = []
        try:
            sample = common.timed(lambda: said.append(common.as_owner(command, stdin=script, timeout=300)))
            servers = {m: _facts(binaries, home / m / "run", ports[m]) for m in _MEMBERS}
        finally:
            _stop_servers(binaries, home)
    phases = (line.split("\t") for line in said[0].splitlines())
    return Deployed(sample, {name: int(micros) / 1e6 for name, micros in phases}, servers)


def _pulumi_alone() -> Deployed:
    with tempfile.TemporaryDirectory(prefix="hb-") as folder:
        project = common.Project(Path(folder) / "project", "benchmarks.programs.plain", {"BENCHMARK_PAIRS": "1"})
        return Deployed(common.timed(project.up), {}, {})


def _harmony(binaries: Binaries) -> Deployed:
    with common.workspace() as folder:
        environment = {"BENCHMARK_FOLDER": str(folder)}
        project = common.Project(folder / "project", "benchmarks.programs.pair", environment)
        try:
            began = time.time()
            sample = common.timed(project.up)
            ended = time.time()
            ports = json.loads(project.pulumi("stack", "output", "--json"))["ports"]
            servers = {m: _facts(binaries, folder / m / "run", int(ports[m])) for m in _MEMBERS}
            lines = [line for m in _MEMBERS for line in (folder / m / "log" / "events.jsonl").read_text().splitlines()]
        finally:
            try:
                project.pulumi("destroy", "--yes", "--skip-preview")
            finally:
                _stop_servers(binaries, folder)
    return Deployed(sample, spans(began, [json.loads(line) for line in lines], ended), servers)


def spans(began: float, events: Sequence[Mapping[str, Any]], ended: float) -> dict[str, float]:
    """Return how long each step took, and what was between the steps, from the event log of a deployment.

    Args:
        began: when the command was started, in seconds since the epoch.
        events: of all members, as the log has them.
        ended: when the command was at its end.
    """
    found: defaultdict[str, float] = defaultdict(float)  # A step that was tried again is one span.
    last, previous = began, "the command's start"
    for event in sorted(events, key=lambda event: str(event["time"])):
        name = f"{str(event['subject']).partition('/')[0]}: {event['step']}"
        at = datetime.fromisoformat(event["time"]).timestamp()
        if event["state"] == "started":
            found[f"between {previous} and {name}"] += at - last
            last = at
        elif event["state"] in {"done", "failed"}:
            found[name] += at - last
            last, previous = at, name
    found[f"between {previous} and the command's end"] += ended - last
    return dict(found)


def _median_spans(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: common.summary([run.get(name, 0.0) for run in runs]) for name in names}


def equal(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is equal on all servers of all runs.

    Raises:
        SystemExit: something that must be equal is not: the comparison would be worth nothing.
    """
    first = runs[0]
    for member in _MEMBERS:
        for run in runs[1:]:
            if differing := _differences(first[member], run[member]):
                raise SystemExit(f"the {member} of the two sides differ, so nothing was compared: {differing}")
    primary, replica = first["primary"], first["replica"]
    settings = primary["settings"]
    wanted = {"fsync": "on", "data_checksums": "on", "full_page_writes": "on", "ssl": "on"}
    if unsafe := {name: settings[name] for name, value in wanted.items() if settings[name] != value}:
        raise SystemExit(f"expected {wanted}, found {unsafe}")
    [stream] = primary["replication"]
    if not replica["recovery"] or primary["recovery"] or stream["state"] != "streaming" or not stream["certificate"]:
        raise SystemExit(f"the pair does not stream with a client certificate: {stream}")
    return {
        "settings": {name: settings[name] for name in SHOWN},
        "equal settings": len(settings),
        "access rules": primary["access"],
        "databases": primary["databases"],
        "collation": primary["collation"],
        "replication": f"{stream['state']}, {stream['tls']} ({stream['cipher']}), client certificate, slot",
    }


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    flat = [{**facts, **facts["settings"], "settings": None} for facts in (one, other)]
    return {
        key: (flat[0].get(key), flat[1].get(key))
        for key in sorted({*flat[0], *flat[1]})
        if flat[0].get(key) != flat[1].get(key)
    }


def _facts(binaries: Binaries, folder: Path, port: int) -> dict[str, Any]:
    """Return what a server says of itself, over its Unix socket."""
    command = [f"{binaries.path}/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
    command += ["-h", str(folder), "-p", str(port), "-U", "postgres", "-d", "postgres"]
    facts: dict[str, Any] = json.loads(common.as_owner(command, stdin=_FACTS, timeout=60))
    return facts


def _stop_servers(binaries: Binaries, folder: Path) -> None:
    """Stop what runs below a folder, the replica first, if anything does."""
    for member in reversed(_MEMBERS):
        if (folder / member / "data" / "postmaster.pid").exists():
            data = str(folder / member / "data")
            common.as_owner([f"{binaries.path}/pg_ctl", "stop", "-D", data, "-m", "immediate", "-s"], timeout=60)


if __name__ == "__main__":
    common.run_times("deploy", measure, report, runs=RUNS)
