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

from benchmarks import common, deploy, kubernetes, overhead, rejoin, switchover
from benchmarks.pairs.base import install
from benchmarks.writer import longest_gap, missing, served_again

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


def test_the_longest_gap_is_of_those_that_ended_after_the_command() -> None:
    moments = [0.0, 5.0, 5.25, 5.75, 6.0]
    assert longest_gap(moments, 5.125) == 0.5
    assert longest_gap(moments, 4.9) == 5.0, "it began before the command, and ended after it"


def test_a_client_that_is_never_served_again_has_an_endless_gap() -> None:
    assert longest_gap([1.0, 2.0], 2.5) == float("inf")
    assert longest_gap([], 0) == float("inf")


def test_a_client_is_served_again_after_its_first_failure_whatever_stalls_later() -> None:
    assert served_again([1.0, 2.0, 2.5, 9.0], [2.25, 8.0]) == 2.5
    assert served_again([1.0, 2.0], [2.25]) == float("inf")
    assert served_again([1.0, 2.0], []) == float("inf")


def test_rows_that_were_acknowledged_and_are_not_there_are_lost() -> None:
    assert missing({"a": 1.0, "b": 2.0, "c": 3.0}, ["c", "a", "of an unknown outcome"]) == ["b"]


def test_ours_is_compared_with_the_floor_and_with_the_best_of_the_others() -> None:
    found = switchover.ratios({"floor": 0.1, "ours": 0.125, "repmgr": 1.25, "patroni": 1.5})
    assert found == {
        "ours to floor": 1.25,
        "best peer": "repmgr",
        "best peer to ours": 10,
        "best peer to floor": 12.5,
    }


def test_what_was_not_measured_meets_no_aim_and_misses_none() -> None:
    nothing = switchover.ratios({"floor": 0.1})
    assert set(nothing.values()) == {None}
    found = switchover.aims({"planned gap": nothing, "promotion after the death": nothing}, {})
    assert [aim["met"] for aim in found] == [None] * 4


@pytest.mark.parametrize(
    ("ours", "peer", "met"),
    [(0.130, 0.780, [True, True]), (0.131, 0.786, [False, True]), (0.130, 0.779, [True, False])],
)
def test_an_aim_is_met_up_to_its_bound(*, ours: float, peer: float, met: list[bool]) -> None:
    gaps = switchover.ratios({"floor": 0.1, "ours": ours, "peer": peer})
    found = switchover.aims(
        {"planned gap": gaps, "promotion after the death": switchover.ratios({})},
        {"ours": {"planned": {"lost": [0, 1]}}},
    )
    assert [aim["met"] for aim in found] == [*met, None, False]
    assert found[-1]["found"] == "1 lost in 2"


def test_settings_that_one_system_has_otherwise_are_not_called_common() -> None:
    systems = [{"fsync": "on", "wal_log_hints": "off"}, {"fsync": "on", "wal_log_hints": "on"}]
    assert switchover.common_settings(systems) == {"fsync": "on"}


def test_what_is_not_installed_is_named_with_the_way_to_install_it() -> None:
    assert install("apt-get install tools", programs={"one": True, "two": True}) == ""
    said = install("apt-get install tools", programs={"one": True, "two": False})
    assert said == "not installed: two; apt-get install tools"


def test_a_rejoin_that_failed_is_told_beside_those_that_did_not() -> None:
    found = rejoin.report(
        {"1": {"database bytes": 10**9, "rewind": 2.0, "copy": 8.0}, "4": {"failed": "no space left on device"}}
    )
    assert "| 1.00 GB" in found
    assert "| 4.0 " in found, "a copy takes four times as long"
    assert "- a rejoin of 4 GB failed: no space left on device" in found


def test_a_pair_that_fails_is_stopped_and_left_out_from_then_on() -> None:
    stopped: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def stop(self) -> None:
            stopped.append(self.name)

    def act(pair: Any) -> switchover.Leg:
        if pair.name == "one":
            raise SystemExit("no")
        return switchover.Leg(1.0, 1.0, 1.0, 1, 0, 1000)

    pairs: dict[str, Any] = {name: Named(name) for name in ("one", "other")}
    left_out: dict[str, str] = {}
    for _ in range(2):
        assert list(switchover.in_turn("planned", pairs, act, left_out)) == ["other"]
    assert left_out == {"one": "failed: no"}
    assert stopped == ["one"]


def moved(*gaps: float, lost: int = 0) -> dict[str, Any]:
    return kubernetes.summary([switchover.Leg(gap, gap + 1, gap + 2, 1, lost, 1000) for gap in gaps])


def test_our_median_gap_between_clusters_is_compared_with_the_least_by_hand() -> None:
    by_hand = {"deploy": 40.0, "switchover": moved(2.0, 15.0), "revert": moved(2.0, 2.0)}
    ours = {"deploy": 60.0, "switchover": moved(1.0, 2.1, 5.0), "revert": moved(3.0, 3.0, lost=1)}
    rows = {"by_hand": by_hand, "ours": ours}
    assert [(aim["found"], aim["met"]) for aim in kubernetes.aims(rows)] == [
        ("1.05 times", True),
        ("2.381 times", False),
        ("0 lost in 3", True),
        ("1.5 times", False),
        ("1 times", True),
        ("2 lost in 2", False),
    ]
    assert kubernetes.ratio(rows, "deploy") == 1.5


def test_a_system_on_clusters_that_was_left_out_is_told_and_compared_with_nothing() -> None:
    settings = {"fsync": "on"}
    row = {"version": "1", "how": "so", "settings": settings, "deploy": 60.0, "switchover": moved(2.0), "revert": {}}
    rows = {"ours": row}
    aims = kubernetes.aims(rows)
    assert all(aim["what"].startswith("switchover: ") and "by hand" not in aim["what"] for aim in aims)
    found = {"systems": rows, "left out": {"by_hand": "failed: no"}, "ratios": {"switchover": None}, "aims": aims}
    text = kubernetes.report(found)
    assert "- by_hand: failed: no" in text
    assert "none." in text
    assert "| 2000 ms (2000 to 2000) |" in text


@pytest.mark.parametrize("name", ["import", "deploy", "overhead", "switchover", "kubernetes"])
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


@pytest.mark.e2e
def test_a_switchover_by_hand_is_measured_and_loses_nothing() -> None:
    options = ["--json", "--systems", "floor", "--runs", "1", "--deaths", "1", "--sizes"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "switchover", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["switchover"]
    assert result["left out"] == {}
    floor = result["systems"]["floor"]
    assert floor["settings"]["fsync"] == "on"
    planned, death = floor["planned"], floor["death"]
    assert planned["lost"] == [0]
    assert planned["acknowledged"][0] > 100
    assert 0.002 < planned["gap"]["median"] < 60
    assert death["streams_again"]["runs"] == 1
