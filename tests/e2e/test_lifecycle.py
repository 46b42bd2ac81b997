"""What happens to a deployed pair as its program, its servers and its host change: no data is ever lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import (
    Stack,
    connection,
    eventually,
    port_of,
    postmaster,
    started_by,
    stop_postmaster,
    superuser,
    with_machine,
)
from tests.e2e.sampling import sampled

pytestmark = pytest.mark.e2e
ELSEWHERE = "e" * 32


def put_row(stack: Stack, value: int, member: str = "") -> None:
    outputs = stack.outputs()
    with connection(stack, outputs[f"{member}_uri" if member else "uri"], outputs["ca_certificate"]) as client:
        client.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        client.execute("INSERT INTO kept VALUES (%s)", (value,))


def rows(stack: Stack, member: str = "primary") -> list[int]:
    outputs = stack.outputs()
    with connection(stack, outputs[f"{member}_uri"], outputs["ca_certificate"]) as client:
        if client.execute("SELECT to_regclass('kept')").fetchone() == (None,):
            return []
        return [row[0] for row in client.execute("SELECT value FROM kept ORDER BY value")]


def show(stack: Stack, name: str, member: str = "primary") -> str:
    outputs = stack.outputs()
    with connection(stack, outputs[f"{member}_uri"], outputs["ca_certificate"]) as client:
        row = client.execute(f"SHOW {name}").fetchone()  # type: ignore[arg-type]
        assert row is not None
        return str(row[0])


def data(stack: Stack, name: str, *, kept: bool = False) -> Path:
    if kept:
        return next(root / "data" for root, _ in stack.markers() if root.name == f"{name}-orders")
    return Path(stack.server(name)["data_directory"])


def test_a_setting_reloads_or_restarts_as_postgresql_says_and_the_preview_says_which(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    pids = [postmaster(data(stack, name)) for name in ("montreal", "toronto")]

    stack.pair('settings={"work_mem": "8MB"}')
    assert "reload for work_mem" in stack.preview()
    shown = stack.up()
    assert "reloading" in shown
    assert "restarting" not in shown
    assert show(stack, "work_mem") == show(stack, "work_mem", "replica") == "8MB"
    assert [postmaster(data(stack, name)) for name in ("montreal", "toronto")] == pids

    stack.pair('settings={"work_mem": "8MB", "max_connections": 150}')
    assert "restart for max_connections" in stack.preview()
    assert "restarting, as PostgreSQL requires for max_connections" in stack.up()
    assert show(stack, "max_connections") == show(stack, "max_connections", "replica") == "150"
    assert rows(stack) == [1]
    stack.up("--expect-no-changes")

    stack.pair('settings={"work_mem": "8MB"}')
    assert "restart for max_connections" in stack.preview()
    stack.up()
    assert show(stack, "max_connections") == show(stack, "max_connections", "replica") == "100"

    stack.pair('slot_size_bound="2GB", settings={"work_mem": "8MB", "max_connections": 150}')
    assert "reload for max_slot_wal_keep_size" in stack.preview()
    stack.up()
    assert show(stack, "max_slot_wal_keep_size") == "2GB"


def test_a_new_database_and_extension_are_made_and_a_removed_one_is_kept(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    stack.program(
        """
site = LinuxHostTopology("montreal")
replica = LinuxHostTopology("toronto")
pair = FailoverTopology("orders", primary=site, replica=replica)
database = pair.deploy_postgresql("orders", PostgreSQLConfig(databases=[
    Database(name='pay "roll" \\' $HOME', owner="o'wner; DROP", extensions=["pgcrypto"])]))
pulumi.export("uri", database.uri)
pulumi.export("ca_certificate", database.ca_certificate)
pulumi.export("primary_uri", database.members["primary"].uri)
"""
    )
    assert "keep databases orders, no longer declared" in stack.preview()
    stack.up()
    outputs = stack.outputs()
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        seen = client.execute("SELECT current_database(), current_user, gen_random_uuid() IS NOT NULL").fetchone()
        assert seen == ('pay "roll" \' $HOME', "o'wner; DROP", True)
        names = {row[0] for row in client.execute("SELECT datname FROM pg_database")}
        assert "orders" in names


def test_refresh_tells_a_dead_an_unreachable_and_a_vanished_server_apart(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    montreal, toronto = data(stack, "montreal"), data(stack, "toronto")

    stop_postmaster(toronto, signal.SIGKILL)
    assert "stopped" in stack.refresh()
    assert stack.server("toronto")["status"] == "stopped"
    assert stack.server("montreal")["status"] == "running"
    stack.up()
    assert postmaster(toronto) is not None
    assert stack.server("toronto")["status"] == "running"

    stack.wrapper = with_machine(ELSEWHERE, stack.folder, hide_postgresql=False)
    shown = stack.refresh()
    assert "cannot be reached from here" in shown
    assert {stack.server(name)["status"] for name in ("montreal", "toronto")} == {"unreachable"}
    assert stack.outputs()["active"] == "primary"
    assert "unchanged" in stack.preview("--expect-no-changes"), "nothing is re-created because it did not answer"
    stack.wrapper = []
    stack.refresh()

    stop_postmaster(toronto, signal.SIGINT)
    moved = toronto.parent.with_name("moved")
    toronto.parent.rename(moved)
    shown = stack.refresh()
    assert "is gone from its host" in shown
    assert not [r for r in stack.resources("PostgreSQLServer") if "toronto" in r["urn"]]
    shown = stack.up()
    assert "copying the data from" in shown
    eventually(lambda: rows(stack, "replica") == [1], "the row on the new replica")
    assert postmaster(montreal) is not None
    shutil.rmtree(moved)


def test_destroy_stops_both_and_keeps_the_data_and_the_next_up_takes_it_over(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    before = {name: stack.server(name)["system_identifier"] for name in ("montreal", "toronto")}
    uri = stack.outputs()["uri"]
    folders = [data(stack, name) for name in ("montreal", "toronto")]
    shown = stack.destroy()
    assert all(f"its data is kept in {folder}" in shown for folder in folders)
    assert [postmaster(folder) for folder in folders] == [None, None]
    assert all((folder / "PG_VERSION").is_file() for folder in folders)

    shown = stack.up()
    assert "initdb" not in shown
    assert "making an empty database" not in shown
    assert "copying the data" not in shown
    assert {name: stack.server(name)["system_identifier"] for name in ("montreal", "toronto")} == before
    assert stack.outputs()["uri"] == uri, "clients go on with what they know"
    put_row(stack, 2)
    eventually(lambda: rows(stack, "replica") == [1, 2], "both rows on the replica")


def test_a_kept_replica_that_missed_too_much_is_copied_anew_and_its_old_data_kept(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    program = (stack.folder / "__main__.py").read_text()
    stack.program(
        """
site = LinuxHostTopology("montreal")
database = site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))
for name in ("uri", "ca_certificate"):
    pulumi.export(name, getattr(database, name))
pulumi.export("primary_uri", database.uri)
"""
    )
    stack.up()
    outputs = stack.outputs()
    root = Path(stack.server("montreal")["root"])
    with connection(stack, outputs["uri"], outputs["ca_certificate"]) as client:
        client.execute("INSERT INTO kept SELECT generate_series(2, 200000)")
    superuser(root, "SELECT pg_switch_wal(); CHECKPOINT;", port_of(outputs["uri"]))
    for _ in range(4):
        superuser(root, "CREATE TABLE IF NOT EXISTS t (); DROP TABLE t;", port_of(outputs["uri"]))
        superuser(root, "SELECT pg_switch_wal()", port_of(outputs["uri"]))
        superuser(root, "CHECKPOINT", port_of(outputs["uri"]))
    (stack.folder / "__main__.py").write_text(program)
    shown = stack.up()
    assert "copying anew" in shown
    eventually(lambda: len(rows(stack, "replica")) == 200000, "every row on the replica")
    kept = list((Path(stack.server("toronto")["root"]) / "kept").iterdir())
    assert len(kept) == 1
    assert (kept[0] / "PG_VERSION").is_file()


def test_a_new_empty_primary_is_never_made_while_the_replica_holds_the_data(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    montreal = Path(stack.server("montreal")["root"])
    stop_postmaster(montreal / "data", signal.SIGKILL)
    moved = montreal.with_name("moved")
    montreal.rename(moved)
    stack.refresh()
    shown = stack.up(expect=1)
    assert "a new, empty database was about to be made" in shown
    assert "toronto holds this database" in shown
    assert "/harmony_pulumi/" not in shown
    assert not montreal.exists()
    moved.rename(montreal)
    stack.up()
    assert rows(stack) == [1]


SINGLE = """
database = LinuxHostTopology("montreal").deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"], {config}))
for name in ("uri", "ca_certificate"):
    pulumi.export(name, getattr(database, name))
pulumi.export("primary_uri", database.uri)
"""


def kept_folders(stack: Stack, name: str) -> list[Path]:
    return list((Path(stack.server(name)["root"]) / "kept").iterdir())


def test_what_cannot_change_in_place_is_replaced_and_the_old_data_kept(stack: Stack) -> None:
    stack.program(SINGLE.format(config=""))
    stack.up()
    put_row(stack, 1)
    old = stack.server("montreal")
    stack.program(SINGLE.format(config='locale="C"'))
    shown = stack.preview()
    assert "replace" in shown
    assert "since its locale is C.UTF-8, and C is declared" in shown
    stack.up()
    assert stack.server("montreal")["system_identifier"] != old["system_identifier"]
    assert rows(stack) == []
    (kept,) = kept_folders(stack, "montreal")
    assert (kept / "PG_VERSION").is_file()


def test_a_replica_is_replaced_and_the_active_member_of_a_pair_is_not(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    before = stack.server("montreal")["system_identifier"]
    old = data(stack, "toronto")

    stack.pair('locale="C"')
    for shown in (stack.preview(expect=1), stack.up(expect=1)):
        assert "which is the active member: an empty database would serve in its place" in shown
    assert rows(stack) == [1]

    place = stack.folder / "pg"
    place.mkdir()
    stack.pair(f'members={{"toronto": MemberPlacement(directory="{place}")}}')
    assert "replace" in stack.preview()
    stack.up()
    assert data(stack, "toronto") == place / "data"
    assert stack.server("toronto")["system_identifier"] == stack.server("montreal")["system_identifier"] == before
    eventually(lambda: rows(stack, "replica") == [1], "the row on the new replica")
    assert (old / "PG_VERSION").is_file()
    assert postmaster(old) is None


def test_data_is_deleted_only_once_a_deployed_configuration_says_so(stack: Stack) -> None:
    stack.pair()
    stack.up()
    roots = [Path(stack.server(name)["root"]) for name in ("montreal", "toronto")]
    stack.pair('on_destroy="delete"')
    stack.up()
    stack.pair('on_destroy="delete", locale="C"')
    shown = stack.up(expect=1)
    assert "its data would be deleted" in shown
    assert all(root.exists() for root in roots)
    stack.pair('on_destroy="delete"')
    stack.destroy()
    assert not any(root.exists() for root in roots)


@pytest.mark.parametrize(
    "moment",
    sampled(
        [
            "making an empty database",
            "starting PostgreSQL",
            "roles and databases",
            "copying the data",
            "waiting until it streams",
        ],
        2,
    ),
)
def test_an_interrupted_up_is_finished_by_the_next(stack: Stack, moment: str) -> None:
    stack.pair()
    process = stack.start("up", "--yes", "--skip-preview")

    def reached() -> bool:
        logs = [root / "log/events.jsonl" for root, _ in stack.markers()]
        return any(moment in log.read_text() for log in logs if log.exists())

    try:
        eventually(reached, f"the step '{moment}'")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    stack.run("cancel", "--yes", expect=None)
    identifiers = {str(root): marker["system_identifier"] for root, marker in stack.markers()}
    stack.up()
    for root, marker in stack.markers():
        assert marker["state"] == "ready"
        assert identifiers.get(str(root), "") in {"", marker["system_identifier"]}
    put_row(stack, 1)
    eventually(lambda: rows(stack, "replica") == [1], "the row on the replica")
    stack.up("--expect-no-changes")


def test_another_machine_previews_and_never_touches(stack: Stack) -> None:
    stack.pair()
    stack.up()
    stack.pair('settings={"work_mem": "8MB"}')
    stack.wrapper = with_machine(ELSEWHERE, stack.folder, hide_postgresql=True)
    shown = stack.preview()
    assert "reload for work_mem" in shown
    assert "warning: montreal/orders: not checked at its site" in shown
    shown = stack.up(expect=1)
    assert "cannot be reached from here" in shown
    shown = stack.destroy(expect=1)
    assert "cannot be reached from here" in shown
    stack.wrapper = []
    assert all(postmaster(data(stack, name)) for name in ("montreal", "toronto"))


def test_a_dead_member_blocks_neither_preview_nor_destroy(stack: Stack) -> None:
    stack.pair()
    stack.up()
    stop_postmaster(data(stack, "montreal"), signal.SIGKILL)
    stack.preview()
    shown = stack.destroy()
    assert "could not be dropped at the source" in shown
    assert not stack.resources("PostgreSQLServer")


def marker_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "harmony.json").read_text())


def test_no_process_outlives_a_killed_up_but_the_servers(stack: Stack) -> None:
    stack.pair()
    process = stack.start("up", "--yes", "--skip-preview")
    try:
        eventually(lambda: any("copying the data" in log for log in logs(stack)), "the copy to begin")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    # Pulumi's own language host is not ours to end.
    eventually(
        lambda: not [name for name in started_by(stack) if not name.startswith("pulumi")], "its processes to end"
    )


def logs(stack: Stack) -> list[str]:
    files = [root / "log/events.jsonl" for root, _ in stack.markers()]
    return [file.read_text() for file in files if file.exists()]


def test_naming_what_the_site_chose_changes_nothing(stack: Stack) -> None:
    stack.pair()
    stack.up()
    server = stack.server("montreal")
    roots = {name: stack.server(name)["root"] for name in ("montreal", "toronto")}
    places = ", ".join(f'"{name}": MemberPlacement(directory="{root}")' for name, root in roots.items())
    stack.pair(f"version={server['version']}, members={{{places}}}")
    stack.up("--expect-no-changes")


def test_a_folder_left_by_a_primary_is_not_started_as_a_replica(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    stack.destroy()
    (data(stack, "toronto", kept=True) / "standby.signal").unlink()
    shown = stack.up(expect=1)
    assert "both would accept writes" in shown
    assert [postmaster(data(stack, name, kept=True)) for name in ("montreal", "toronto")] == [None, None]


def test_a_disk_that_is_not_mounted_is_no_reason_for_an_empty_database(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    stack.destroy()
    folder = data(stack, "montreal", kept=True)
    folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()
    shown = stack.up(expect=1)
    assert "Is a disk not mounted?" in shown
    folder.rmdir()
    folder.with_name("elsewhere").rename(folder)
    stack.up()
    assert rows(stack) == [1]
