"""The harmony command on real stacks: what it says is what real servers do."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harmony_pulumi.hosts.connection import LocalConnection
from harmony_pulumi.hosts.postgresql.server import choose_binaries
from tests.e2e.conftest import Stack, os_user

pytestmark = pytest.mark.e2e

HARMONY = str(Path(sys.executable).parent / "harmony")
DEADLINE = 60


def environment(stack: Stack) -> dict[str, str]:
    """Return the stack's environment without its passphrase: looking must not need it."""
    return {k: v for k, v in stack.env.items() if not k.startswith("PULUMI_CONFIG_PASSPHRASE")} | {"COLUMNS": "100"}


def harmony(stack: Stack, *args: str, given: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HARMONY, *args],
        cwd=cwd or stack.folder,
        env=environment(stack),
        input=given,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def status(stack: Stack) -> tuple[int, dict[str, Any]]:
    done = harmony(stack, "status", "--json")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def stop(data: str) -> None:
    """Stop a server as its OS user would, with pg_ctl."""
    pg_ctl = f"{choose_binaries(LocalConnection(), None).path}/pg_ctl"
    LocalConnection().check([pg_ctl, "stop", "-D", data, "-m", "fast", "-w", "-t", "60"], user=os_user(), timeout=90)


def test_status_tells_a_healthy_pair_from_one_whose_replica_is_stopped_and_its_remedy_works(stack: Stack) -> None:
    stack.pair()
    stack.up()
    code, document = status(stack)
    assert (code, document["healthy"], document["findings"]) == (0, True, [])
    assert (document["project"], document["stack"]) == (stack.project, "dev")
    (database,) = document["databases"]
    assert (database["name"], database["topology"]) == ("orders", "FailoverTopology orders")
    montreal, toronto = database["members"]
    assert [montreal["role"], toronto["role"]] == ["primary", "standby"]
    assert [montreal["active"], toronto["active"]] == [True, False]
    assert montreal["timeline"] == toronto["timeline"] == 1
    replication = toronto["replication"]
    assert (replication["source"], replication["state"], replication["tls"]) == ("montreal", "streaming", "TLSv1.3")
    (slot,) = montreal["slots"]
    assert (slot["active"], slot["bound_bytes"], slot["wal_status"]) == (True, 10 * 2**30, "reserved")
    assert {c["name"] for c in toronto["certificates"]} == {"ca", "server", "replication", "source-client"}
    for certificate in montreal["certificates"]:
        left = datetime.fromisoformat(certificate["expires"]) - datetime.now(UTC)
        assert certificate["days_left"] == left.days
    text = harmony(stack, "status", "--stack", "dev")
    assert (text.returncode, text.stderr) == (0, "")
    assert all(word in text.stdout for word in ("montreal  ● active", "streaming, async", slot["name"], "healthy"))

    stop(stack.server("toronto")["data_directory"])
    code, document = status(stack)
    assert (code, document["healthy"]) == (1, False)
    assert [(f["code"], f["member"]) for f in document["findings"] if f["severity"] == "problem"] == [
        ("stopped", "toronto")
    ]
    assert document["databases"][0]["members"][0]["slots"][0]["active"] is False
    text = harmony(stack, "status")
    assert text.returncode == 1
    assert "unknown: stopped" in text.stdout
    root = stack.server("toronto")["root"]
    assert f"`harmony start {root}` on its host starts it" in " ".join(text.stdout.split())

    assert harmony(stack, "start", root).returncode == 0
    stack.up("--refresh")
    assert status(stack)[0] == 0

    # As after an `up` that failed once the servers were there.
    stack.run("state", "delete", "--yes", database["urn"])
    code, document = status(stack)
    assert (code, [f["code"] for f in document["findings"]]) == (1, ["no_pair", "no_pair"])


def test_status_works_from_saved_handles_without_pulumi_and_backend(stack: Stack) -> None:
    stack.pair()
    stack.up()
    saved = stack.run("stack", "output", "--json")
    (stack.folder / "state").rename(stack.folder / "gone")
    assert harmony(stack, "status").returncode == 2
    done = harmony(stack, "status", "--json", "--site", "-", given=saved, cwd=Path("/"))
    (stack.folder / "gone").rename(stack.folder / "state")
    assert (done.returncode, done.stderr) == (0, "")
    (database,) = json.loads(done.stdout)["databases"]
    assert [member["name"] for member in database["members"]] == ["montreal", "toronto"]


def test_watch_looks_again_until_ctrl_c_and_that_is_no_failure(stack: Stack) -> None:
    stack.program("""
database = LinuxHostTopology("dublin").deploy_postgresql("audit", PostgreSQLConfig(databases=["audit"]))
""")
    stack.up()
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [HARMONY, "status", "--watch", "0.2"],
        cwd=stack.folder,
        env=environment(stack),
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    shown = b""
    try:
        end = time.monotonic() + DEADLINE
        while shown.count(b"Ctrl-C ends") < 3:
            assert time.monotonic() < end, shown.decode(errors="replace")
            if select.select([ours], [], [], 0.2)[0]:
                shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "dublin" in shown.decode()


def test_graph_draws_the_deployed_pair_in_both_formats(stack: Stack) -> None:
    stack.pair()
    stack.up()
    members = [stack.server(name) for name in ("montreal", "toronto")]
    endpoints = [f"localhost:{int(member['endpoint']['port'])}" for member in members]
    slot = members[1]["site"]["slot"]

    done = harmony(stack, "graph")
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("flowchart LR", "orders<br/>FailoverTopology", "montreal", "toronto", f"slot {slot}", *endpoints):
        assert text in done.stdout

    done = harmony(stack, "graph", "--output", "stack.svg")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    root = ET.parse(stack.folder / "stack.svg").getroot()
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= {"montreal (primary)", "toronto (replica)", "active", "streaming", f"slot {slot}", *endpoints}


def test_where_there_is_nothing_to_look_at_the_reason_is_told_in_plain_words(
    make_stack: Callable[[], Stack], tmp_path: Path
) -> None:
    stack = make_stack()
    empty = {**environment(stack), "HOME": str(tmp_path)}
    del empty["PULUMI_BACKEND_URL"]
    for command in ("status", "graph"):
        for done, words in (
            (harmony(stack, command, "--stack", "nowhere"), "there is no stack 'nowhere'"),
            (harmony(stack, command, cwd=tmp_path), "there is no Pulumi project"),
            (harmony(stack, command), "stack dev has no"),
            (_run(empty, stack, command), "Pulumi is not logged in"),
        ):
            assert (done.returncode, done.stdout) == (2, "")
            assert words in " ".join(done.stderr.split())
            assert "Traceback" not in done.stderr


def _run(env: dict[str, str], stack: Stack, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HARMONY, command], cwd=stack.folder, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False
    )


def test_looking_at_one_stack_leaves_another_selected(stack: Stack) -> None:
    stack.run("stack", "init", "other")
    stack.run("stack", "select", "other")
    harmony(stack, "status", "--stack", "dev")
    stacks = json.loads(stack.run("stack", "ls", "--json"))
    assert [s["name"] for s in stacks if s["current"]] == ["other"]


def test_doctor_finds_this_machine_fit_for_what_the_other_tests_deploy(stack: Stack) -> None:
    done = harmony(stack, "doctor", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"], done.stderr) == (0, True, "")
    found = {check["name"]: check["found"] for check in document["checks"]}
    assert choose_binaries(LocalConnection(), None).path in found["PostgreSQL"]
    assert stack.env["PULUMI_BACKEND_URL"] == found["Pulumi's backend"]
    text = harmony(stack, "doctor")
    assert text.returncode == 0
    assert "✗" not in text.stdout


def test_a_certificate_that_nobody_trusts_is_named_with_the_command_that_mends_it(stack: Stack) -> None:
    stack.pair()
    stack.up()
    root = Path(stack.server("montreal")["root"])
    mine, theirs = (Path(stack.server(name)["root"]) / "tls/server" for name in ("montreal", "toronto"))
    certificate, key, other, its_key = (
        path.with_suffix(suffix).read_text() for path in (mine, theirs) for suffix in (".crt", ".key")
    )
    cases = {
        "does not belong to its key": (other, key),
        "was signed by no authority that is trusted there": (other, its_key),
        "cannot be read, or its key cannot": (certificate[:200], key),
    }
    for why, texts in cases.items():
        for suffix, text in zip((".crt", ".key"), texts, strict=True):
            mine.with_suffix(suffix).write_text(text)
        words = f"'server', which {why}"
        found = harmony(stack, "status", "--json")
        assert found.returncode == 1
        document = json.loads(found.stdout)
        (finding,) = (f for f in document["findings"] if f["code"] == "certificate")
        assert finding["member"] == "montreal"
        assert words in finding["message"]
        assert "`harmony rotate-certificates`" in finding["message"]
        assert why in document["databases"][0]["members"][0]["flaws"]["server"]
        assert why in " ".join(harmony(stack, "status").stdout.split())
        checks = {check["name"]: check for check in json.loads(harmony(stack, "doctor", "--json").stdout)["checks"]}
        assert checks["certificates"]["status"] == "warning"
        assert f"{root}: {words}" in checks["certificates"]["found"]
        assert "rotate-certificates" in "".join(harmony(stack, "doctor").stdout.split())
        assert harmony(stack, "rotate-certificates", "--yes").returncode == 0
        assert harmony(stack, "status").returncode == 0
