"""What is decided about configuration files, with no server at hand."""

from __future__ import annotations

import pytest

from harmony_pulumi.hosts.postgresql import files

CONTROL = {
    "max_connections setting": "150",
    "max_worker_processes setting": "8",
    "max_wal_senders setting": "10",
    "max_prepared_xacts setting": "5",
    "max_locks_per_xact setting": "64",
    "wal_level setting": "replica",
}


def test_a_configuration_file_is_read_as_postgresql_reads_it() -> None:
    text = """
# comment = 1
Work_Mem = '8MB'   # as ALTER SYSTEM writes it
port 5433
search_path='a, ''b'''
name.of_extension = on
include 'other.conf'
"""
    found = files.settings_in(text)
    assert found["work_mem"] == "8MB"
    assert found["port"] == "5433"
    assert found["search_path"] == "a, 'b'"
    assert found["name.of_extension"] == "on"
    left = files.without_settings(text, {"work_mem", "search_path"})
    assert left == text.replace("Work_Mem = '8MB'   # as ALTER SYSTEM writes it\n", "").replace(
        "search_path='a, ''b'''\n", ""
    )


@pytest.mark.parametrize("value", ["it's", "back\\slash", "a # b", "", "8MB", 1.0, True])
def test_what_is_quoted_is_read_back(value: object) -> None:
    assert files.settings_in(f"x = {files.quote_setting(value)}")["x"] == files.setting_text(value)


def test_a_standby_has_no_less_than_its_primary_had() -> None:
    assert files.limits(CONTROL, {}) == {"max_connections": 150, "max_prepared_transactions": 5}
    assert files.limits(CONTROL, {"Max_Connections": 200}) == {"max_prepared_transactions": 5}
    assert files.limits(CONTROL, {"max_connections": "120"})["max_connections"] == 150
    assert files.limits({**CONTROL, "wal_level setting": "logical"}, {})["wal_level"] == "logical"
