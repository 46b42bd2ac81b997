"""What importing the package brings with it, seen in a new interpreter each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = ("pulumi_kubernetes", "pulumi_docker")


def imported_by(statement: str, folder: Path) -> set[str]:
    """Return the top-level modules that a statement imports, with the heavy ones in the way of whoever wants them."""
    for name in HEAVY:
        # Not an ImportError: whoever tries to do without the module must not get past it.
        text = f"raise RuntimeError('{name} was imported')\n"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    report = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{report}"],
        env={**os.environ, "PYTHONPATH": f"{folder}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_modules_in_the_way_are_found_first(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="pulumi_docker was imported"):
        imported_by("import pulumi_docker", tmp_path)


def test_the_package_alone_imports_nothing_heavy(tmp_path: Path) -> None:
    found = imported_by("import harmony_pulumi", tmp_path)
    assert "harmony_pulumi" in found
    assert not found & {*HEAVY, "pulumi", "pydantic", "cryptography", "typer", "rich"}


def test_a_program_imports_only_what_it_uses(tmp_path: Path) -> None:
    found = imported_by("from harmony_pulumi import FailoverTopology, LinuxHostTopology, PostgreSQLConfig", tmp_path)
    assert {"pulumi", "pydantic"} <= found
    assert not found & {*HEAVY, "cryptography", "typer", "rich"}


def test_a_higher_order_topology_alone_needs_no_configuration(tmp_path: Path) -> None:
    found = imported_by("from harmony_pulumi import FailoverTopology, Topology, Capability", tmp_path)
    assert "pulumi" in found
    assert not found & {*HEAVY, "pydantic", "cryptography"}


def test_declaring_a_server_does_not_load_what_makes_one(tmp_path: Path) -> None:
    found = imported_by("from harmony_pulumi.providers import postgresql_pair, postgresql_server", tmp_path)
    assert "pulumi" in found
    assert not found & {*HEAVY, "pydantic", "cryptography", "typer", "rich"}


def test_making_a_server_does_not_load_what_only_programs_need(tmp_path: Path) -> None:
    found = imported_by("from harmony_pulumi.hosts.postgresql import deployment, inspection, site", tmp_path)
    assert "cryptography" in found
    assert not found & {*HEAVY, "pydantic", "typer", "rich"}


def test_every_public_name_can_be_had_without_the_kubernetes_and_docker_packages(tmp_path: Path) -> None:
    found = imported_by(
        "import harmony_pulumi\nfor name in harmony_pulumi.__all__: getattr(harmony_pulumi, name)", tmp_path
    )
    assert not found & set(HEAVY)
