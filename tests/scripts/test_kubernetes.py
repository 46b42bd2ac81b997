"""The clusters of the end-to-end tests (scripts/kubernetes), as far as that can be seen without one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def parts(scripts: Path, cache: Path) -> Path:
    """Return the folder of the parts that these scripts build."""
    argv = ["bash", "-c", 'source "$0"; kubernetes_dir', scripts / "lib.sh"]
    env = {**os.environ, "HARMONY_CACHE": str(cache)}
    return Path(subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=30).stdout.strip())


@pytest.mark.parametrize("changed", ["build", "pause.c", "kube/go.mod", "kube/folders.go", "operator/go.sum"])
def test_parts_are_built_again_once_what_they_are_built_from_has_changed(changed: str, tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, scripts)
    before = parts(scripts, tmp_path)
    assert before.parent == tmp_path
    with (scripts / "kubernetes" / changed).open("a") as file:
        file.write("\n")
    assert parts(scripts, tmp_path) != before


@pytest.mark.parametrize("changed", ["site", "addons.yaml"])
def test_parts_stay_where_only_their_use_has_changed(changed: str, tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, scripts)
    before = parts(scripts, tmp_path)
    with (scripts / "kubernetes" / changed).open("a") as file:
        file.write("\n")
    assert parts(scripts, tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["up", "a", "1", "--run", "a/b"], "the run 'a/b' must be 1 to 12 lower-case letters and digits"),
        (["up", "../a", "1"], "the site '../a' must be a name for a host: lower-case letters, digits and dashes"),
        (["up", "a", "1", "--owner", "me"], "the owner 'me' must be the id of a process"),
        (["up", "a", "1", "--run"], "usage: site up NAME NUMBER"),
        (["up"], "usage: site up NAME NUMBER"),
        (["up", "a", "1", "--wipe"], "usage: site up NAME NUMBER"),
    ],
)
def test_a_site_that_cannot_be_is_refused_before_anything_is_made(arguments: list[str], expected: str) -> None:
    argv = [SCRIPTS / "kubernetes/site", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode != 0
    assert expected in done.stderr
