"""What only the site can tell is found before anything is done, at preview and at `up`, and told clearly."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from contextlib import closing
from pathlib import Path

import pytest

from harmony_pulumi.capabilities.postgresql_facts import SUPPORTED_MAJORS
from harmony_pulumi.hosts.connection import LocalConnection
from harmony_pulumi.hosts.postgresql.server import installed
from tests.e2e.conftest import Stack, base_folder, needs_root, os_user, with_machine, with_mounts
from tests.e2e.sampling import sampled

pytestmark = pytest.mark.e2e

SINGLE = """
site = LinuxHostTopology("montreal", {host})
site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"], {config}))
"""


def write(stack: Stack, config: str = "", host: str = "") -> None:
    stack.program(SINGLE.format(config=config, host=host))


def assert_refused(stack: Stack, *messages: str) -> None:
    """Both preview and an `up` without preview refuse, and nothing is deployed."""
    for shown in (stack.preview(expect=1), stack.up(expect=1)):
        for message in messages:
            assert message in shown
        # Pulumi interrupts the program once a check has failed, and Python then shows where it was: not our frames.
        assert "/harmony_pulumi/" not in shown
    assert not stack.resources("PostgreSQLServer")
    assert not list(stack.markers())


def test_a_port_in_use_is_found(stack: Stack) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        write(stack, f"port={port}")
        assert_refused(stack, f"something listens on {port} already; choose another, or leave it out")


def test_a_folder_that_the_os_user_cannot_enter_is_found(stack: Stack) -> None:
    needs_root("servers run as another user")
    closed = stack.folder / "closed"
    closed.mkdir(mode=0o700)
    (closed / "pg").mkdir(mode=0o755)
    write(stack, f'directory="{closed}/pg"')
    assert_refused(stack, f"{os_user()} cannot enter {closed}; chmod o+x it")


def test_a_folder_that_cannot_be_written_is_found(stack: Stack) -> None:
    closed = stack.folder / "closed"
    closed.mkdir(mode=0o555)
    if os.geteuid() == 0:  # Whom no mode keeps out.
        stack.wrapper = with_mounts(f"mount -t tmpfs -o ro,size=1m none {closed}")
    write(stack, f'directory="{closed}/pg"')
    assert_refused(stack, f"montreal: {closed} cannot be written; change its owner, or choose another directory")


def test_a_folder_of_something_else_is_found(stack: Stack) -> None:
    folder = stack.folder / "full"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    shutil.chown(folder, os_user())
    write(stack, f'directory="{folder}"')
    assert_refused(stack, "is not empty and is not harmony's (thesis.tex)")


def test_a_folder_of_another_deployment_is_found(stack: Stack) -> None:
    write(stack)
    stack.up()
    root = Path(stack.resources("PostgreSQLServer")[0]["outputs"]["root"])
    stack.destroy()
    marker = json.loads((root / "harmony.json").read_text())
    (root / "harmony.json").write_text(json.dumps({**marker, "owner": "other/dev/montreal-orders"}))
    for shown in (stack.preview(expect=1), stack.up(expect=1)):
        assert "belongs to other/dev/montreal-orders" in shown


def test_a_kept_database_that_is_not_what_is_declared_is_not_put_aside(stack: Stack) -> None:
    write(stack)
    stack.up()
    stack.destroy()
    write(stack, 'locale="C"')
    for shown in (stack.preview(expect=1), stack.up(expect=1)):
        assert "holds this database already, with locale C.UTF-8, and C is declared" in shown
    assert (base_folder() / stack.project / "dev/montreal-orders/data/PG_VERSION").is_file()


def test_a_path_too_long_for_a_socket_is_found(stack: Stack) -> None:
    write(stack, f'directory="/srv/{"x" * 100}"')
    assert_refused(stack, "a server's Unix socket is inside it, so it may have at most")


def test_a_missing_postgresql_is_found(stack: Stack) -> None:
    write(stack)
    machine = Path("/etc/machine-id").read_text().strip()
    stack.wrapper = with_machine(machine, stack.folder, hide_postgresql=True)
    assert_refused(stack, "PostgreSQL 13 to 18 is needed, found none", "apt-get install postgresql")


def old_postgresql(folder: Path) -> str:
    """Make the programs of a PostgreSQL that is too old, and return their version."""
    folder.mkdir()
    version = f"{SUPPORTED_MAJORS[0] - 1}.22"
    for name in ("postgres", "initdb", "pg_ctl", "pg_basebackup", "pg_controldata", "pg_waldump", "psql"):
        (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        (folder / name).chmod(0o755)
    return version


def test_a_postgresql_that_is_too_old_is_found(stack: Stack) -> None:
    old = stack.folder / "old"
    version = old_postgresql(old)
    machine = Path("/etc/machine-id").read_text().strip()
    stack.wrapper = with_machine(machine, stack.folder, hide_postgresql=True)
    stack.env["PATH"] = f"{old}:{stack.env['PATH']}"
    write(stack)
    assert_refused(stack, f"PostgreSQL 13 to 18 is needed, found {version} in {old};", "apt-get install postgresql")


def test_a_postgresql_that_is_too_old_is_in_no_other_s_way(stack: Stack) -> None:
    old_postgresql(stack.folder / "old")
    stack.env["PATH"] = f"{stack.folder}/old:{stack.env['PATH']}"
    write(stack)
    stack.preview()


def missing_version() -> int:
    """Return a supported version that this machine does not have."""
    there = {binaries.major for binaries in installed(LocalConnection())}
    return next(major for major in SUPPORTED_MAJORS if major not in there)


def test_a_version_that_is_not_there_is_found(stack: Stack) -> None:
    missing, there = missing_version(), installed(LocalConnection())
    write(stack, f"version={missing}")
    assert_refused(stack, f"PostgreSQL {missing} is needed, found {there[0].version} in {there[0].path}")


def test_an_os_user_that_is_not_there_is_found(stack: Stack) -> None:
    needs_root("servers run as another user")
    write(stack, host='user="nobody-here"')
    assert_refused(stack, "has no OS user 'nobody-here'")


def test_a_disk_that_is_too_small_is_found(stack: Stack) -> None:
    small = stack.folder / "small"
    small.mkdir()
    stack.wrapper = with_mounts(f"mount -t tmpfs -o size=100m,mode=777 none {small}")
    write(stack, f'directory="{small}/pg"')
    assert_refused(stack, "MB free; expected at least 512 MB")


NO_ID = "this machine has no machine-id, so it cannot be told from another"


def test_a_machine_without_an_id_previews_a_new_server_and_refuses_to_make_it(stack: Stack) -> None:
    write(stack, host='machine_id=pulumi.Config().get("host")')
    stack.wrapper = with_machine("", stack.folder, hide_postgresql=True)
    shown = stack.preview()
    assert f"warning: montreal/orders: not checked at its site: {NO_ID}" in shown
    assert not re.search(r"\bmachine_id *:|machine=", shown), "the host stays unbound"
    shown = stack.up(expect=1)
    assert NO_ID in shown
    assert "run `systemd-machine-id-setup`" in shown
    assert "/harmony_pulumi/" not in shown
    assert not stack.resources("PostgreSQLServer")
    assert not list(stack.markers())

    stack.run("config", "set", "host", "d" * 32)
    bound = "montreal is the machine with machine-id dddddddddddddddddddddddddddddddd, and this one has none"
    assert f"warning: montreal/orders: not checked at its site: {bound}" in stack.preview()
    assert bound in stack.up(expect=1)
    assert not stack.resources("PostgreSQLServer")


def test_a_machine_without_an_id_previews_a_deployed_server_and_leaves_it_alone(stack: Stack) -> None:
    write(stack)
    stack.up()
    machine = Path("/etc/machine-id").read_text().strip()
    stack.wrapper = with_machine("uninitialized", stack.folder, hide_postgresql=True)
    bound = f"montreal is the machine with machine-id {machine}, and this one has none: it cannot be reached from here"
    shown = stack.preview("--expect-no-changes")
    assert f"warning: montreal/orders: not checked at its site: {bound}" in shown
    write(stack, 'settings={"work_mem": "8MB"}')
    shown = stack.preview()
    assert "reload for work_mem" in shown
    assert "replace" not in shown
    assert bound in stack.up(expect=1)
    assert f"unreachable: {bound}" in stack.refresh()
    assert bound in stack.destroy(expect=1)
    stack.wrapper = []
    stack.up()
    assert "replace" not in stack.preview("--expect-no-changes")
    stack.destroy()


@pytest.mark.parametrize("password", sampled(["", "hunter2", "hünter24", "hunter\t24"], 1))
def test_a_password_that_is_an_output_is_checked_once_it_is_known(password: str, stack: Stack) -> None:
    write(stack, f'passwords={{"orders": pulumi.Output.secret({password!r})}}')
    message = f"has {len(password)} characters; expected at least 8 printable ASCII characters"
    assert_refused(stack, "property passwords.orders value", message)
    for shown in (stack.preview(expect=1), stack.up(expect=1)):
        assert not password or (password not in shown and repr(password)[1:-1] not in shown)


def test_a_password_that_only_the_deployment_makes_is_checked_then(stack: Stack) -> None:
    stack.program(
        """
from pulumi.dynamic import CreateResult, Resource, ResourceProvider

class Short(ResourceProvider):
    def create(self, props):
        return CreateResult("1", {"made": "hunter2"})

class Password(Resource):
    made: pulumi.Output[str]

made = Password(Short(), "password", {"made": None}).made
LinuxHostTopology("montreal").deploy_postgresql(
    "orders", PostgreSQLConfig(databases=["orders"], passwords={"orders": made}))
"""
    )
    assert "has a problem" not in stack.preview()
    shown = stack.up(expect=1)
    assert "property passwords.orders value" in shown
    assert "has 7 characters; expected at least 8 printable ASCII characters" in shown
    assert not list(stack.markers())


def test_all_of_a_site_s_problems_are_told_together(stack: Stack) -> None:
    missing = missing_version()
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        write(stack, f'port={taken.getsockname()[1]}, version={missing}, directory="/srv/{"x" * 100}"')
        assert_refused(stack, "something listens on", f"PostgreSQL {missing} is needed", "Unix socket")


def test_settings_that_postgresql_refuses_are_told_together_before_anything_is_changed(stack: Stack) -> None:
    write(stack, 'settings={"TimeZone": "Mars/Olympus", "DateStyle": "stardate", "jit": False}')
    refused = ('parameter "TimeZone": "Mars/Olympus"', 'parameter "DateStyle": "stardate"')
    assert_refused(stack, "settings.TimeZone value", "refuses it", *refused)
    assert "settings.jit" not in stack.preview(expect=1)


def test_every_bad_value_of_a_program_is_one_clean_message_and_nothing_is_deployed(stack: Stack) -> None:
    stack.program(
        """
site = FailoverTopology("orders", primary=LinuxHostTopology("montreal"), replica=LinuxHostTopology("toronto"))
site.deploy_postgresql("orders", PostgreSQLConfig(
    databases=["template1"], port=80, settings={"fsync": False}, slot_size_bound="x"))
"""
    )
    for shown in (stack.preview(expect=1), stack.up(expect=1)):
        assert ": 4 problems, nothing was registered" in shown
        for path in ("databases.0.name", "port", "settings.fsync", "slot_size_bound"):
            assert f"- {path}: " in shown
        assert "Traceback" not in shown
    assert not stack.resources("PostgreSQLServer")
