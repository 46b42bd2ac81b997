"""What the benchmarks conclude from what they measured. How long anything takes is not tested."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common, deploy, overhead

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def event(second: int, subject: str, step: str, state: str) -> dict[str, str]:
    return {"time": f"2026-01-01T00:00:{second:02}.000+00:00", "subject": subject, "step": step, "state": state}


def server(**settings: str) -> dict[str, Any]:
    safe = {"fsync": "on", "data_checksums": "on", "full_page_writes": "on", "ssl": "on"}
    return {"settings": {**dict.fromkeys(deploy.SHOWN, "x"), **safe, **settings}, "access": [], "databases": []}


def pair(**settings: str) -> dict[str, Any]:
    stream = {"state": "streaming", "tls": "TLSv1.3", "cipher": "c", "certificate": True}
    primary = {**server(**settings), "recovery": False, "collation": [], "replication": [stream]}
    return {"primary": primary, "replica": {**server(**settings), "recovery": True}}


def test_sides_are_measured_in_turn() -> None:
    order: list[str] = []
    sides: dict[str, Callable[[], None]] = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    samples = common.in_turn(sides, 3)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert {side: len(found) for side, found in samples.items()} == {"a": 3, "b": 3}


def test_a_spent_budget_ends_with_a_whole_round() -> None:
    sides: dict[str, Callable[[], int]] = {"a": lambda: 1, "b": lambda: 2}
    assert common.in_turn(sides, 3, budget=-1) == {"a": [1], "b": [2]}


def test_the_spans_of_a_deployment_add_up_to_the_whole() -> None:
    began = 1767225600.0  # 2026-01-01T00:00:00Z
    events = [
        event(9, "replica/orders", "clone", "started"),
        event(2, "primary/orders", "initdb", "started"),
        event(5, "primary/orders", "initdb", "done"),
        event(10, "replica/orders", "clone", "progress"),
        event(13, "replica/orders", "clone", "done"),
    ]
    found = deploy.spans(began, events, began + 20)
    assert found == {
        "between the command's start and primary: initdb": 2,
        "primary: initdb": 3,
        "between primary: initdb and replica: clone": 4,
        "replica: clone": 4,
        "between replica: clone and the command's end": 7,
    }


def test_a_step_that_was_tried_again_is_one_span() -> None:
    began = 1767225600.0
    events = [
        event(s, "a/b", "start", state) for s, state in ((1, "started"), (3, "failed"), (3, "started"), (8, "done"))
    ]
    found = deploy.spans(began, events, began + 9)
    assert found["a: start"] == 7
    assert sum(found.values()) == 9


def test_servers_with_equal_settings_are_compared() -> None:
    found = deploy.equal([pair(), pair()])
    assert found["settings"]["fsync"] == "on"
    assert found["replication"] == "streaming, TLSv1.3 (c), client certificate, slot"


def test_a_setting_that_differs_between_the_sides_ends_the_comparison() -> None:
    with pytest.raises(SystemExit, match=r"wal_level.*'replica'.*'logical'"):
        deploy.equal([pair(wal_level="replica"), pair(wal_level="logical")])


def test_a_comparison_of_unsafe_servers_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"found \{'fsync': 'off'\}"):
        deploy.equal([pair(fsync="off"), pair(fsync="off")])


def test_linear_growth_is_one() -> None:
    def costs(seconds: float) -> dict[str, Any]:
        row = {"seconds": {"median": seconds}}
        return {"preview": row, "up": row, "no_op_up": row, "state_bytes": seconds * 1000}

    assert overhead.growths({"1": costs(2), "10": costs(2.9), "100": costs(11.9)})["up"] == 1
    assert overhead.growths({"1": costs(2), "10": costs(2.9), "100": costs(20.9)})["state_bytes"] == 2


@pytest.mark.parametrize("name", ["import", "deploy", "overhead"])
def test_each_benchmark_says_how_it_is_run(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "--json" in done.stdout
    assert "--runs" in done.stdout


@pytest.mark.e2e
def test_the_stub_pairs_of_both_sides_are_as_many_resources_and_hold_no_code(tmp_path: Path) -> None:
    def dynamic_resources(side: str) -> list[dict[str, Any]]:
        project = common.Project(tmp_path / side, overhead.SIDES[side], {"BENCHMARK_PAIRS": "2"})
        project.up()
        state = json.loads(project.state().read_text(encoding="utf-8"))
        made = [r for r in state["checkpoint"]["latest"]["resources"] if not r["type"].startswith("pulumi:")]
        assert len(made) == 2 * 6
        return [resource for resource in made if ":dynamic/" in resource["type"]]

    for side in overhead.SIDES:
        resources = dynamic_resources(side)
        assert len(resources) == 2 * 3
        for resource in resources:
            stored = base64.b64decode(resource["inputs"]["__provider"])
            assert len(stored) < 200
            assert overhead.SIDES[side].encode() in stored


@pytest.mark.e2e
def test_deploy_compares_equal_pairs_and_says_where_the_time_goes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.deploy", "--json", "--runs", "1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["deploy"]
    assert set(result["sides"]) == {"bare", "Pulumi alone", "harmony"}
    assert result["equal on both sides"]["replication"].startswith("streaming, TLSv1.3")
    for side in ("bare", "harmony"):
        whole = result["sides"][side]["seconds"]["median"]
        assert sum(span["median"] for span in result["spans"][side].values()) == pytest.approx(whole, rel=0.2)
