"""`harmony plan`, `switchover` and `events` on a real stack, and without one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Stack, eventually, stop_postmaster
from tests.e2e.test_lifecycle import put_row, rows

pytestmark = pytest.mark.e2e


def harmony(stack: Stack, *args: str, expect: int | None = 0, given: str | None = None) -> str:
    done = subprocess.run(
        ["harmony", *args],
        cwd=stack.folder,
        env={**stack.env, "NO_COLOR": "1", "COLUMNS": "140"},
        input=given if given is not None else "",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert expect is None or done.returncode == expect, done.stdout
    return done.stdout


def test_a_switchover_by_command_moves_the_roles_and_tells_the_stack(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)

    plan = json.loads(harmony(stack, "plan", "--json"))
    assert (plan["active"], plan["target"], plan["epoch"], plan["possible"]) == ("montreal", "toronto", 1, True)
    assert {check["name"] for check in plan["checks"]} >= {"streaming", "lag", "link", "extensions", "settings", "disk"}
    assert "nobody is there to be asked" in harmony(stack, "switchover", expect=2)
    assert "--yes needs --to" in harmony(stack, "switchover", "--yes", expect=2)
    stack.up("--expect-no-changes")

    shown = harmony(stack, "switchover", "--to", "toronto", "--yes")
    assert "toronto becomes the primary" in shown
    assert "The stack knows" in shown
    settings = (stack.folder / "Pulumi.dev.yaml").read_text()
    assert "harmony:active" in settings
    assert stack.outputs()["active"] == "replica"
    put_row(stack, 2)
    eventually(lambda: rows(stack) == [1, 2], "both rows on the standby")
    stack.up("--expect-no-changes")
    stack.refresh()
    stack.up("--expect-no-changes")
    assert "is active already" in harmony(stack, "switchover", "--to", "toronto", "--yes")

    events = json.loads(harmony(stack, "events", "--json"))
    steps = [event["step"] for event in events if event["operation"] == "switchover" and event["state"] == "done"]
    assert steps[:6] == ["prepare", "demote", "verify", "promote", "follow", "settle"]
    assert "toronto becomes the primary" in harmony(stack, "events")
    assert json.loads(harmony(stack, "events", "--json", "--last", "2")) == events[-2:]


def test_a_switchover_needs_no_backend_and_a_stale_program_is_refused_afterwards(stack: Stack, tmp_path: Path) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    sites = stack.run("stack", "output", "--json", "site")
    (tmp_path / "sites.json").write_text(sites)
    shutil.move(stack.folder / "state", stack.folder / "away")
    shown = harmony(stack, "switchover", "--to", "toronto", "--yes", "--site", str(tmp_path / "sites.json"))
    assert "The stack was not told" in shown
    shutil.move(stack.folder / "away", stack.folder / "state")

    stack.up("--expect-no-changes")  # It does not know, and changes nothing.
    assert stack.outputs()["active"] == "primary"
    stack.pair('settings={"work_mem": "8MB"}')
    stack.up()  # The servers are changed where they are.
    stack.refresh()
    shown = stack.up(expect=1)
    assert "roles have moved since. Write active='replica', epoch=1 to keep them as they are" in shown
    for key, value in {"member": "replica", "epoch": "1"}.items():
        stack.run("config", "set", "--path", f'harmony:active["orders-orders"].{key}', value)
    stack.up()
    stack.up("--expect-no-changes")
    put_row(stack, 2)
    eventually(lambda: rows(stack) == [1, 2], "both rows on the standby")


def test_a_plan_says_what_stands_in_the_way(stack: Stack) -> None:
    stack.pair()
    stack.up()
    stop_postmaster(Path(stack.server("toronto")["data_directory"]), signal.SIGINT)
    shown = harmony(stack, "plan", expect=1)
    assert "a standby that runs is needed" in shown
    assert "toronto is not connected" in shown
    assert "a standby that runs is needed" in harmony(stack, "switchover", "--to", "toronto", "--yes", expect=1)


def test_roles_that_the_program_declares_are_not_written_into_the_configuration(stack: Stack) -> None:
    stack.pair(active='Active("primary", epoch=0)')
    stack.up()
    shown = harmony(stack, "switchover", "--to", "toronto", "--yes")
    assert 'write active=Active("replica", epoch=1) there' in shown
    stack.pair(active='Active("replica", epoch=1)')
    stack.up()
    stack.up("--expect-no-changes")
