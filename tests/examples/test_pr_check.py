"""The workflows of `examples/pr_check`: they are what their services read, and their commands work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Stack, make_stack, with_machine

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pr_check"
REPOSITORY = EXAMPLE.parents[1]
__all__ = ["make_stack"]


def load(name: str) -> dict[Any, Any]:
    """Return a workflow, with the keys that YAML 1.1 reads as booleans (`on`) as they are."""
    return yaml.safe_load((EXAMPLE / name).read_text(encoding="utf-8"))


def github_steps() -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = load("github.yml")["jobs"]["preview"]["steps"]
    return steps


def scripts(name: str) -> list[str]:
    """Return the shell texts of a workflow."""
    if name == "github.yml":
        return [step["run"] for step in github_steps() if "run" in step]
    job = load(name)["database-preview"]
    return [*job["before_script"], *job["script"]]


def preview_script(name: str) -> str:
    """Return the one script that runs the preview."""
    [script] = [script for script in scripts(name) if "pulumi preview --diff" in script]
    return script


WORKFLOWS = pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])


def test_the_github_workflow_comments_on_pull_requests_of_this_repository_alone() -> None:
    workflow = load("github.yml")
    assert workflow[True] == "pull_request"  # YAML 1.1 reads `on` as true.
    assert workflow["permissions"] == {"contents": "read", "pull-requests": "write"}
    job = workflow["jobs"]["preview"]
    assert job["if"] == "github.event.pull_request.head.repo.full_name == github.repository"
    assert 0 < job["timeout-minutes"] <= 30
    assert [step["name"] for step in github_steps() if "name" in step][-3:] == ["Preview", "Comment", "Attach"]
    for step in github_steps():
        assert ("run" in step) != ("uses" in step)


def test_the_gitlab_job_attaches_the_diff_also_when_the_preview_fails() -> None:
    job = load("gitlab.yml")["database-preview"]
    assert job["artifacts"]["paths"] == ["preview.txt"]
    assert job["artifacts"]["when"] == "always"
    assert job["artifacts"]["expose_as"]
    assert "$CI_MERGE_REQUEST_SOURCE_PROJECT_ID == $CI_PROJECT_ID" in job["rules"][0]["if"]


@WORKFLOWS
def test_no_secret_is_written_in_a_workflow_and_none_is_on_a_command_line(name: str) -> None:
    text = (EXAMPLE / name).read_text(encoding="utf-8")
    assert not re.findall(r"PULUMI_(?:CONFIG_PASSPHRASE|ACCESS_TOKEN): (?!\$\{\{ secrets\.)", text)
    for script in scripts(name):
        assert "${{" not in script  # What a pull request's author writes would become shell text.
        assert "PASSPHRASE" not in script


@WORKFLOWS
def test_the_pulumi_that_is_installed_is_the_one_that_is_tested(name: str) -> None:
    library = (REPOSITORY / "scripts/lib.sh").read_text(encoding="utf-8")
    found = re.search(r"^PULUMI_VERSION=(\S+)", library, re.MULTILINE)
    assert found
    assert f"PULUMI_VERSION: {found[1]}\n" in (EXAMPLE / name).read_text(encoding="utf-8")


@WORKFLOWS
def test_every_script_is_shell_that_parses(name: str) -> None:
    for script in scripts(name):
        done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True, timeout=10, check=False)
        assert done.returncode == 0, done.stderr


def test_the_comment_fits_and_no_diff_can_leave_its_block(tmp_path: Path) -> None:
    [script] = [step["run"] for step in github_steps() if step.get("name") == "Comment"]
    made, _, sent = script.partition("gh pr comment")
    (tmp_path / "preview.txt").write_text("```\n@everyone\n" * 10_000, encoding="utf-8")
    subprocess.run(
        ["bash", "-e", "-c", made], cwd=tmp_path, env={**os.environ, "PULUMI_STACK": "dev"}, timeout=10, check=True
    )
    comment = (tmp_path / "comment.md").read_text(encoding="utf-8")
    assert len(comment) < 65536
    assert comment.startswith("### `pulumi preview` of `dev`\n\n````text\n```\n@everyone\n")
    assert comment.endswith("\n````\n")
    assert comment.count("````") == 2
    assert "--body-file comment.md" in sent


@pytest.mark.e2e
@WORKFLOWS
def test_pulumi_knows_the_options_that_are_used(name: str) -> None:
    shown = subprocess.run(["pulumi", "preview", "--help"], capture_output=True, text=True, timeout=60, check=True)
    [command] = [line for line in preview_script(name).splitlines() if line.startswith("pulumi preview")]
    options = [word for word in shlex.split(command) if word.startswith("--")]
    assert "--diff" in options
    for option in options:
        assert re.search(rf"{option}\b", shown.stdout), option


@pytest.mark.e2e
@WORKFLOWS
@pytest.mark.parametrize("machine", ["e" * 32, "", "uninitialized"], ids=["another machine", "no id", "an image"])
def test_the_preview_of_the_readme_runs_where_no_site_is_reached_and_no_postgresql_is_installed(
    name: str, machine: str, make_stack: Callable[[], Stack]
) -> None:
    stack = make_stack()
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    [program] = re.findall(r"^ *```python\n(.*?)```", readme, re.DOTALL | re.MULTILINE)
    main = stack.folder / "__main__.py"
    main.write_text(textwrap.dedent(program), encoding="utf-8")
    stack.run("config", "set", "host", "d" * 32)

    elsewhere = with_machine(machine, stack.folder, hide_postgresql=True)
    preview = [*elsewhere, "sh", "-e", "-c", preview_script(name)]
    env = {**stack.env, "PULUMI_STACK": "dev"}
    done = subprocess.run(preview, cwd=stack.folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    diff = (stack.folder / "preview.txt").read_text(encoding="utf-8")
    assert done.stdout == diff
    assert "montreal/orders: not checked at its site: montreal is the machine with machine-id dddd" in diff
    assert f"and this one has {machine if len(machine) == 32 else 'none'}: it cannot be reached from here" in diff
    assert "PostgreSQLServer" in diff
    assert "+ 7 to create" in diff

    main.write_text(main.read_text(encoding="utf-8").replace("databases=", "data="), encoding="utf-8")
    done = subprocess.run(preview, cwd=stack.folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "PostgreSQLConfig: 2 problems" in (stack.folder / "preview.txt").read_text(encoding="utf-8")
