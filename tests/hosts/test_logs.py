"""Logs that have grown are moved aside before a start, by the host's own commands."""

from __future__ import annotations

import getpass
from pathlib import Path

from harmony_pulumi.hosts.connection import LocalConnection
from harmony_pulumi.hosts.logs import LARGE, recorded, recording, set_aside_if_large


def grown(path: Path, size: int) -> None:
    """Make a file that seems as large, and takes no room."""
    with path.open("wb") as file:
        file.truncate(size)


def test_a_log_is_moved_aside_once_it_is_large_and_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    here, user = LocalConnection(), getpass.getuser()
    log, aside = tmp_path / "a log", tmp_path / "a log.1"
    set_aside_if_large(here, str(log), user)
    assert list(tmp_path.iterdir()) == []
    aside.write_text("older")
    grown(log, LARGE)
    set_aside_if_large(here, str(log), user)
    assert (log.stat().st_size, aside.read_text()) == (LARGE, "older")
    grown(log, LARGE + 1)
    set_aside_if_large(here, str(log), user)
    assert [path.name for path in tmp_path.iterdir()] == ["a log.1"]
    assert aside.stat().st_size == LARGE + 1


def test_a_log_of_events_goes_on_in_a_new_file_once_it_is_large_and_is_read_with_the_one_before(tmp_path: Path) -> None:
    here, user = LocalConnection(), getpass.getuser()
    log, aside = tmp_path / "events", tmp_path / "events.1"
    assert recorded(here, str(log), user) == ""
    for line in ("first\n", "second\n"):
        with recording(here, str(log), user) as append:
            append(line)
    assert (recorded(here, str(log), user), aside.exists()) == ("first\nsecond\n", False)
    log.rename(aside)
    grown(log, LARGE + 1)
    with recording(here, str(log), user) as append:
        append("third\n")
    assert (log.read_text(), aside.stat().st_size) == ("third\n", LARGE + 1)
    aside.write_text("second\n")
    assert recorded(here, str(log), user) == "second\nthird\n"
