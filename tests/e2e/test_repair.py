"""What went wrong half-way, or behind the program's back, and what the next run makes of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL

import pytest

from tests.e2e.conftest import (
    Stack,
    as_os_user,
    connection,
    eventually,
    found_postgresql,
    port_of,
    postmaster,
    stop_postmaster,
    with_machine,
)
from tests.e2e.sampling import sampled
from tests.e2e.test_lifecycle import data, kept_folders, logs, marker_of, put_row, rows, show, superuser

pytestmark = pytest.mark.e2e

ALONE = """
database = LinuxHostTopology("montreal").deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"], {config}))
for name in ("uri", "ca_certificate"):
    pulumi.export(name, getattr(database, name))
pulumi.export("primary_uri", database.uri)
"""


def server_program(stack: Stack, member: str, *command: str) -> None:
    """Run one of PostgreSQL's programs on a member's server by hand, as its OS user."""
    root = stack.server(member)["root"]
    argv = [f"{found_postgresql().path}/{command[0]}", *(word.format(root=root) for word in command[1:])]
    subprocess.run(as_os_user(*argv), check=True, timeout=60, cwd="/", stdin=DEVNULL, stdout=DEVNULL)


def test_a_server_keeps_nothing_of_the_environment_of_whoever_deploys(stack: Stack) -> None:
    stack.env |= {"PULUMI_ACCESS_TOKEN": "pul-0123456789", "AWS_SECRET_ACCESS_KEY": "key-0123456789"}
    stack.program(ALONE.format(config=""))
    stack.up()
    pid = postmaster(data(stack, "montreal"))
    kept = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert any(variable.startswith("PATH=") for variable in kept)
    for secret in ("pul-0123456789", "key-0123456789", stack.env["PULUMI_CONFIG_PASSPHRASE"]):
        assert not [variable for variable in kept if secret in variable]


def test_two_databases_in_one_folder_are_refused_and_the_first_is_left_alone(stack: Stack) -> None:
    place = stack.folder / "pg"
    program = """
host = LinuxHostTopology("montreal")
for name in ("orders", "invoices"):
    host.deploy_postgresql(name, PostgreSQLConfig(databases=[name], directory="{place}"))
"""
    stack.program(program.format(place=place))
    shown = stack.up(expect=1)
    # Which of the two it says depends on how far the first one is.
    assert re.search(r"belongs to \S+/montreal-(orders|invoices), not to|is not empty and is not harmony's", shown)
    marker = marker_of(place)
    assert marker["state"] == "ready"
    assert postmaster(place / "data") is not None
    assert list((place / "kept").iterdir()) == []


def test_a_setting_that_the_server_does_not_start_with_is_taken_back(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    stack.pair('settings={"shared_preload_libraries": "nowhere", "work_mem": "8MB"}')
    for _ in range(2):
        shown = stack.up(expect=1)
        assert "taking the change back" in shown
        assert 'could not access file "nowhere"' in shown
        assert show(stack, "work_mem") == "4MB"
        assert rows(stack) == [1]
    stack.pair()
    stack.up("--expect-no-changes")
    assert marker_of(data(stack, "montreal").parent)["state"] == "ready"


@pytest.mark.parametrize("moment", sampled(["reloading the configuration", "restarting, as"], 1))
def test_a_change_that_was_cut_off_is_seen_and_finished(stack: Stack, moment: str) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    changed = 'settings={"max_connections": 150, "work_mem": "8MB"}'
    stack.pair(changed)
    process = stack.start("up", "--yes", "--skip-preview")
    try:
        eventually(lambda: any(moment in log for log in logs(stack)), f"the step '{moment}'")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    stack.run("cancel", "--yes", expect=None)
    stack.pair()
    assert re.search("half-changed|stopped: no server process", stack.refresh())
    stack.up()
    assert (show(stack, "work_mem"), show(stack, "max_connections")) == ("4MB", "100")
    stack.pair(changed)
    stack.up()
    assert (show(stack, "work_mem"), show(stack, "max_connections")) == ("8MB", "150")
    assert rows(stack) == [1]
    stack.up("--expect-no-changes")


def test_an_old_primary_is_not_started_beside_one_that_was_promoted_by_hand(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    stop_postmaster(data(stack, "montreal"), signal.SIGKILL)
    server_program(stack, "toronto", "pg_ctl", "promote", "-s", "-D", "{root}/data")
    stack.refresh()
    shown = stack.up(expect=1)
    assert "started side by side, both would accept writes" in shown
    assert postmaster(data(stack, "montreal")) is None
    assert postmaster(data(stack, "toronto")) is not None


def test_a_replica_whose_slot_was_given_up_is_seen_and_copied_anew(stack: Stack) -> None:
    stack.pair('slot_size_bound="64MB"')
    stack.up()
    put_row(stack, 1)
    toronto = data(stack, "toronto")
    stop_postmaster(toronto, signal.SIGINT)
    uri, root = stack.outputs()["primary_uri"], Path(stack.server("montreal")["root"])
    for _ in range(7):  # 16 MB each.
        superuser(root, "SELECT pg_logical_emit_message(false, '', 'x'); SELECT pg_switch_wal();", port_of(uri))
    superuser(root, "CHECKPOINT", port_of(uri))
    status = superuser(root, "SELECT wal_status FROM pg_replication_slots", port_of(uri))
    assert status == "lost"
    server_program(
        stack, "toronto", "pg_ctl", "start", "-s", "-w", "-D", "{root}/config", "-l", "{root}/log/postgresql.log"
    )
    eventually(lambda: "left behind" in stack.refresh(), "refresh to see that it was left behind")
    shown = stack.up()
    assert "copying anew" in shown
    eventually(lambda: rows(stack, "replica") == [1], "the row on the new replica")
    assert len(kept_folders(stack, "toronto")) == 1


def test_a_folder_that_cannot_be_looked_into_is_not_taken_for_absent(stack: Stack) -> None:
    stack.pair()
    stack.up()
    above = data(stack, "montreal").parents[1]
    above.chmod(0o700)
    try:
        shown = stack.refresh()
    finally:
        above.chmod(0o755)
    assert "cannot tell whether" in shown
    assert {stack.server(name)["status"] for name in ("montreal", "toronto")} == {"unreachable"}
    stack.refresh()
    stack.up("--expect-no-changes")


def test_a_server_that_hangs_blocks_no_refresh_and_proves_nothing(stack: Stack) -> None:
    stack.pair()
    stack.up()
    pid = postmaster(data(stack, "montreal"))
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        shown = stack.refresh()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "its process runs and does not answer" in shown
    assert stack.outputs()["active"] == "primary"
    stack.up("--expect-no-changes")


def test_a_server_with_a_port_of_its_own_moves_to_another_folder(stack: Stack) -> None:
    stack.program(ALONE.format(config=""))
    stack.up()
    put_row(stack, 1)
    port = port_of(stack.outputs()["uri"])
    place = stack.folder / "pg"
    stack.program(ALONE.format(config=f'port={port}, directory="{place}"'))
    assert "replace" in stack.preview()
    stack.up()
    assert port_of(stack.outputs()["uri"]) == port
    assert data(stack, "montreal") == place / "data"


def test_what_was_moved_aside_outlives_a_destroy_that_deletes(stack: Stack) -> None:
    stack.program(ALONE.format(config='locale="C"'))
    stack.up()
    put_row(stack, 1)
    stack.program(ALONE.format(config=""))
    stack.up()
    (kept,) = kept_folders(stack, "montreal")
    stack.program(ALONE.format(config='on_destroy="delete"'))
    stack.up()
    root = Path(stack.server("montreal")["root"])
    shown = stack.destroy()
    assert f"{root}/kept stays" in shown
    assert [path.name for path in root.iterdir()] == ["kept"]
    assert (kept / "PG_VERSION").is_file()


def test_a_server_that_is_replaced_in_its_place_is_not_deleted_with_the_one_before(stack: Stack) -> None:
    stack.pair('on_destroy="delete"')
    stack.up()
    put_row(stack, 1)
    (urn,) = [r["urn"] for r in stack.resources("PostgreSQLServer") if r["urn"].endswith("::montreal-orders")]
    stack.up("--target-replace", urn)
    assert rows(stack) == [1]
    stack.up("--expect-no-changes")
    roots = [data(stack, name).parent for name in ("montreal", "toronto")]
    stack.destroy()
    assert not any(root.exists() for root in roots)


def test_a_stopped_server_is_destroyed_without_any_postgresql(stack: Stack) -> None:
    stack.pair()
    stack.up()
    for name in ("montreal", "toronto"):
        stop_postmaster(data(stack, name), signal.SIGINT)
    identifier = Path("/etc/machine-id").read_text().strip()
    stack.wrapper = with_machine(identifier, stack.folder, hide_postgresql=True)
    path = stack.env["PATH"]
    stack.env["PATH"] = ":".join(part for part in path.split(":") if "postgresql" not in part)
    stack.destroy()
    stack.wrapper, stack.env["PATH"] = [], path
    assert not stack.resources("PostgreSQLServer")


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Generator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True, timeout=10)
    try:
        yield
    finally:
        for path in folder.rglob("postmaster.pid"):
            stop_postmaster(path.parent, signal.SIGINT)
        subprocess.run(["umount", str(folder)], check=True, timeout=10)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_copy_that_would_fill_the_disk_is_refused_before_it_does(stack: Stack) -> None:
    stack.program(ALONE.format(config=""))
    stack.up()
    outputs = stack.outputs()
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        client.execute("CREATE TABLE big AS SELECT repeat(md5(i::text), 30) FROM generate_series(1, 300000) AS i")
    place = stack.folder / "disk"
    with small_disk(place, 560):
        stack.pair(f'members={{"toronto": MemberPlacement(directory="{place}/toronto")}}')
        shown = stack.up(expect=1)
        assert re.search(r"the copy needs \d+ MB more, and the disk of .* has \d+ MB free", shown)
        assert "No space left" not in shown
    assert postmaster(data(stack, "montreal")) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_disk_that_is_not_mounted_is_not_taken_for_a_server_that_is_gone(stack: Stack) -> None:
    place = stack.folder / "disk"
    with small_disk(place, 700):
        stack.program(ALONE.format(config=f'directory="{place}/montreal"'))
        stack.up()
        stop_postmaster(data(stack, "montreal"), signal.SIGINT)
        eventually(lambda: subprocess.run(["umount", str(place)], check=False).returncode == 0, "an idle disk")
        try:
            shown = stack.refresh()
            assert "which is not mounted" in shown
            assert stack.server("montreal")["status"] == "unreachable"
        finally:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True, timeout=10)
