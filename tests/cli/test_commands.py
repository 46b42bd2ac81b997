"""The command's exit statuses and messages, where neither Pulumi nor PostgreSQL is needed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from harmony_pulumi.cli import status
from harmony_pulumi.cli.main import app
from harmony_pulumi.cli.stack import explained
from tests.cli.sites import endpoint, replica, seen
from tests.cli.states import handle, pair_handle

STOPPED = {"name": "toronto", "state": "stopped", "detail": "no server process"}


def harmony(*args: str, given: str | None = None) -> Result:
    return CliRunner().invoke(app, [*args], input=given)


def sites(primary: dict[str, Any], replica_: dict[str, Any]) -> str:
    """Return the outputs of a stack whose sites are scripted."""
    both = pair_handle("orders", {**handle("montreal"), **primary}, {**handle("toronto"), **replica_})
    return json.dumps({"site": both, "uri": "[secret]"})


HEALTHY = sites(
    {"seen": seen("montreal", replicas=[replica("toronto")])},
    {"seen": seen("toronto", "standby")},
)


def test_status_of_a_healthy_pair_ends_with_0() -> None:
    result = harmony("status", "--site", "-", given=HEALTHY)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "the database is healthy" in result.stdout


def test_status_of_a_pair_with_a_stopped_member_ends_with_1_and_names_it(tmp_path: Path) -> None:
    file = tmp_path / "sites.json"
    file.write_text(sites({"seen": seen("montreal")}, {"seen": STOPPED}))
    result = harmony("status", "--site", str(file))
    assert result.exit_code == 1
    assert "orders/toronto is stopped" in result.stdout


def test_status_as_json_is_one_document_with_the_same_exit_status() -> None:
    result = harmony("status", "--json", "--site", "-", given=sites({"seen": seen("montreal")}, {"seen": STOPPED}))
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["schema"], document["healthy"]) == (1, False)
    assert [finding["code"] for finding in document["findings"]] == ["stopped"]


def test_a_site_that_fails_to_look_is_reported_and_does_not_hide_the_others() -> None:
    given = sites({"raises": "the database system is starting up"}, {"seen": seen("toronto", "standby")})
    document = json.loads(harmony("status", "--json", "--site", "-", given=given).stdout)
    montreal, toronto = document["databases"][0]["members"]
    assert (montreal["state"], montreal["detail"]) == ("unknown", "the database system is starting up")
    assert toronto["state"] == "running"


def test_status_looks_at_endpoints_too_and_none_hides_another() -> None:
    pair = json.loads(HEALTHY)["site"]
    kind = "tests.cli.sites:ScriptedEndpoint"
    kingston = {"kind": kind, "name": "kingston", "seen": endpoint("kingston")}
    ottawa = {"kind": kind, "name": "ottawa", "raises": "it cannot be said"}
    result = harmony("status", "--json", "--site", "-", given=json.dumps({**pair, "endpoints": [kingston, ottawa]}))
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    first, second = document["databases"][0]["endpoints"]
    assert (first["state"], first["leads_to"], first["waiting"]) == ("running", "montreal", 1)
    assert (second["name"], second["state"], second["detail"]) == ("ottawa", "unknown", "it cannot be said")
    assert [(finding["code"], finding["endpoint"]) for finding in document["findings"]] == [("endpoint", "ottawa")]
    healthy = json.dumps({**pair, "endpoints": [kingston]})
    shown = harmony("status", "--site", "-", given=healthy)
    assert shown.exit_code == 0
    assert "kingston.example:6432" in shown.stdout


def test_a_site_whose_package_is_not_installed_is_reported_with_what_to_do() -> None:
    given = json.dumps({"kind": "nowhere.sites:Site", "name": "dublin"})
    result = harmony("status", "--json", "--site", "-", given=given)
    assert "install the package that deployed it" in json.loads(result.stdout)["findings"][0]["message"]


def test_a_site_that_does_not_answer_is_waited_for_no_longer_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_SECONDS", 0.2)
    began = time.monotonic()
    given = sites({"hangs": True}, {"seen": seen("toronto", "standby")})
    document = json.loads(harmony("status", "--json", "--site", "-", given=given).stdout)
    assert time.monotonic() - began < 10
    montreal = document["databases"][0]["members"][0]
    assert (montreal["state"], montreal["detail"]) == ("unreachable", "it did not answer within 0.2 s")


def test_a_hanging_site_does_not_keep_the_command_from_ending(tmp_path: Path) -> None:
    file = tmp_path / "sites.json"
    file.write_text(sites({"hangs": True}, {"hangs": True}))
    program = "from harmony_pulumi.cli import main, status; status._SECONDS = 0.2; main.app()"
    done = subprocess.run(
        [sys.executable, "-c", program, "status", "--site", str(file)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["status", "--site", "nowhere.json"], "cannot read nowhere.json"),
        (["status", "--site", "-"], "standard input has no site in it"),
        (["status", "--site", "-", "--stack", "dev"], "--site needs no stack"),
        (["status", "5"], "5 goes with --watch"),
        (["status", "--watch", "--json"], "use one"),
        (["status", "--watch", "often"], "number"),
        (["status", "--cwd", "/nowhere"], "does not exist"),
        (["graph", "--format", "png"], "png"),
        (["failover"], "failover"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(args: list[str], message: str) -> None:
    result = harmony(*args, given="{}")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("command", ["status", "graph"])
def test_without_pulumi_the_message_leads_to_the_doctor(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = harmony(command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "`harmony doctor`" in result.stderr


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("error: no stack selected; please use `pulumi stack select` to choose one", "name one with --stack"),
        ("error: no Pulumi.yaml project file found (searching upwards from /)", "--cwd"),
        ("error: PULUMI_ACCESS_TOKEN must be set for login during non-interactive CLI sessions", "pulumi login"),
        ("error: the disk is on fire", "the disk is on fire"),
    ],
)
def test_what_pulumi_says_is_told_in_plain_words(said: str, expected: str) -> None:
    assert expected in explained(said, Path("/srv/shop"))


@pytest.mark.parametrize("command", ["status", "doctor", "graph"])
def test_the_help_of_each_command_documents_its_exit_statuses(command: str) -> None:
    result = harmony(command, "--help")
    assert result.exit_code == 0
    assert "Exit status: 0" in " ".join(result.stdout.split())


def test_doctor_judges_this_machine_and_its_exit_status_follows_what_is_missing() -> None:
    result = harmony("doctor", "--json")
    document = json.loads(result.stdout)
    missing = [check["name"] for check in document["checks"] if check["status"] == "missing"]
    assert result.exit_code == (1 if missing else 0)
    assert document["ok"] == (not missing)


def test_doctor_without_anything_on_path_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = harmony("doctor", "--json")
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 1
    assert {name for name, check in found.items() if check["status"] == "missing"} >= {"Pulumi", "setpriv"}
    assert "get.pulumi.com" in found["Pulumi"]["remedy"]


def test_the_version_is_printed() -> None:
    assert harmony("--version").stdout.count(".") >= 2


def test_help_loads_neither_pulumi_nor_what_looks_at_servers() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from harmony_pulumi.cli.main import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "print([m for m in ('pulumi', 'grpc', 'cryptography', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"
