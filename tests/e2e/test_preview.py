"""What a PR check shows: golden diffs, made where no site can be reached and no PostgreSQL is installed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import Stack, with_machine
from tests.e2e.secret_values import assert_secrets_are_all_there, leaked, secrets_of

pytestmark = pytest.mark.e2e
GOLDEN = Path(__file__).parent / "golden"
HERE, ELSEWHERE = "d" * 32, "e" * 32

PROGRAM = """
primary = LinuxHostTopology("montreal", machine_id="{machine}")
replica = LinuxHostTopology("toronto", machine_id="{machine}")
site = FailoverTopology("orders", primary=primary, replica=replica)
site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"], {config}), active={active})
"""


def write(stack: Stack, config: str = "", active: str = "None") -> None:
    stack.program(PROGRAM.format(machine=HERE, config=config, active=active))


def normal(shown: str, stack: Stack) -> str:
    """Return a diff without what differs from run to run."""
    text = shown.replace(stack.project, "PROJECT")
    text = re.sub(r"\n\s*\[urn=[^\]]*\]", "", text)
    text = re.sub(r"\n\s*(Duration|View Live|@ previewing).*", "", text)
    text = re.sub(r'(system_identifier: ")\d+', r"\1SYSTEM", text)
    text = re.sub(r"(port *: )\d+", r"\1PORT", text)
    text = re.sub(r"(harmony_\w+_)[0-9a-f]{8}\b", r"\1HASH", text)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    # Resources are shown as they are registered, in any order that their dependencies allow.
    warnings = sorted({line for line in lines if line.startswith("warning: ")})
    diff = "\n".join(line for line in lines if not line.startswith("warning: "))
    body, _, counts = diff.partition("\nResources:")
    head, *resources = re.split(r"\n(?= +[+~-]+ ?[\w:/-]+: \()", body)
    return "\n".join([head, *warnings, *sorted(resources), "Resources:" + counts]) + "\n"


def assert_golden(name: str, shown: str, stack: Stack) -> None:
    path = GOLDEN / f"{name}.txt"
    found = normal(shown, stack)
    if os.environ.get("HARMONY_WRITE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def test_the_diffs_of_a_pr_check_read_well_and_hold_no_secret(stack: Stack) -> None:
    elsewhere = with_machine(ELSEWHERE, stack.folder, hide_postgresql=True)
    here = with_machine(HERE, stack.folder, hide_postgresql=False)
    shown: dict[str, str] = {}

    write(stack)
    stack.wrapper = elsewhere
    shown["first_deploy"] = stack.preview()
    stack.wrapper = here
    said = stack.up()

    stack.wrapper = elsewhere
    shown["no_change"] = stack.preview("--expect-no-changes")
    write(stack, 'settings={"work_mem": "16MB", "max_connections": 200}')
    shown["changed_setting"] = stack.preview()
    write(stack, 'slot_size_bound="20GB"')
    shown["changed_slot_size_bound"] = stack.preview()
    write(stack, "authority_generation=1")
    shown["rotated_authority"] = stack.preview()
    write(stack, 'members={"toronto": MemberPlacement(directory="/srv/toronto")}')
    shown["replacement"] = stack.preview()
    write(stack, active='Active("replica", epoch=1)')
    shown["moved_roles"] = stack.preview()

    stack.wrapper = here
    secrets = secrets_of(stack)
    assert_secrets_are_all_there(secrets, "montreal", "toronto")
    for name, text in shown.items():
        assert not leaked(secrets, text), name
        assert "PRIVATE KEY" not in text
        assert_golden(name, text, stack)
    said += stack.destroy()
    assert not leaked(secrets, said)
