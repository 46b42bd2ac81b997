"""A machine is known by its machine-id, and one that has none is no host."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.hosts import connection

HERE, ELSEWHERE = "d" * 32, "e" * 32


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the files that hold the machine-id, which are not there yet."""
    paths = [tmp_path / "etc", tmp_path / "dbus"]
    monkeypatch.setattr(connection, "_MACHINE_ID_FILES", tuple(map(str, paths)))
    return paths


def test_the_first_file_that_holds_an_id_counts(files: list[Path]) -> None:
    files[1].write_text(f"{HERE}\n")
    assert connection.machine_id() == HERE
    files[0].write_text("uninitialized\n")
    assert connection.machine_id() == HERE
    files[0].write_text(f"{ELSEWHERE}\n")
    assert connection.machine_id() == ELSEWHERE


@pytest.mark.parametrize("text", [None, "", "\n", "uninitialized\n", HERE[1:], f"{HERE}{HERE}"])
def test_what_is_no_id_is_none(text: str | None, files: list[Path]) -> None:
    if text is not None:
        files[0].write_text(text)
    with pytest.raises(UnreachableError, match="this machine has no machine-id, so it cannot be told from another"):
        connection.machine_id()
    with pytest.raises(UnreachableError, match="this machine has no machine-id, so it cannot be told from another"):
        connection.connect({"name": "montreal"})
    with pytest.raises(UnreachableError, match=f"machine-id {HERE}, and this one has none: it cannot be reached"):
        connection.connect({"name": "montreal", "machine_id": HERE})


def test_only_the_bound_machine_is_connected_to(files: list[Path]) -> None:
    files[0].write_text(f"{HERE}\n")
    assert connection.connect({"name": "montreal"}).name == "montreal"
    assert connection.connect({"name": "montreal", "machine_id": HERE}).name == "montreal"
    with pytest.raises(UnreachableError, match=f"machine-id {ELSEWHERE}, and this one has {HERE}: it cannot"):
        connection.connect({"name": "montreal", "machine_id": ELSEWHERE})


def test_a_host_that_is_reached_in_a_way_that_is_not_installed_says_what_to_install() -> None:
    expected = "montreal is reached by a acme_harmony.ssh:SSH, which is not installed here .*; install the package"
    with pytest.raises(SiteError, match=expected):
        connection.connect({"name": "montreal", "connection": "acme_harmony.ssh:SSH"})
