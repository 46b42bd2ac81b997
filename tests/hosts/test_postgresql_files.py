"""What is decided about configuration files, with no server at hand."""

from __future__ import annotations

import pytest

from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import adoption, certificates, files
from harmony_pulumi.hosts.postgresql.layout import Layout

CONTROL = {
    "max_connections setting": "150",
    "max_worker_processes setting": "8",
    "max_wal_senders setting": "10",
    "max_prepared_xacts setting": "5",
    "max_locks_per_xact setting": "64",
    "wal_level setting": "replica",
}
LAYOUT = Layout("/srv/orders", "/srv/old/main")


def existing(**differently: object) -> adoption.Existing:
    found = {
        "data": "/srv/old/main",
        "major": 15,
        "config_file": "/srv/old/main/postgresql.conf",
        "own_config": "",
        "hba_rules": "local all all trust\n# none\n",
        "ident_maps": "",
        "altered": "",
        "port": 5432,
        "sockets": ["/tmp"],
        "tablespaces": [],
        "settings": {"ssl": "off", "wal_level": "replica", "max_wal_senders": "10", "max_replication_slots": "10"},
        "running": True,
        "command": ["/usr/bin/postgres", "-D", "/srv/old/main"],
    }
    return adoption.Existing(**{**found, **differently})  # type: ignore[arg-type]


def test_a_configuration_file_that_is_elsewhere_includes_the_same_files() -> None:
    text = """
include 'more.conf'  # relative
\tinclude_if_exists = 'it''s.conf'
INCLUDE_DIR conf.d
include '/etc/all.conf'
include_if_exists='/etc/all.conf'
#include 'none.conf'
included = 'plain'
work_mem = '8MB'
"""
    assert (
        files.moved_config(text, "/srv/o'ld")
        == """
include '/srv/o''ld/more.conf'  # relative
\tinclude_if_exists = '/srv/o''ld/it''s.conf'
INCLUDE_DIR '/srv/o''ld/conf.d'
include '/etc/all.conf'
include_if_exists='/etc/all.conf'
#include 'none.conf'
included = 'plain'
work_mem = '8MB'
"""
    )
    adopted = files.adopted_config("port = 5433\n\n", {"wal_log_hints": True})
    assert adopted.splitlines()[1:] == ["port = 5433", "wal_log_hints = on"]


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


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("work_mem", "4096", "4MB"),
        ("max_connections", "130", 130.0),
        ("ssl", "yes", True),
        ("wal_level", "Logical", "logical"),
    ],
)
def test_a_value_is_the_same_however_it_is_written(name: str, one: object, other: object) -> None:
    assert files.same_value(name, one, other)


def test_only_what_differs_beats_what_is_declared() -> None:
    auto = "work_mem = '8MB'\nport = '1'\nssl = 'on'\njit = 'off'\n"
    assert files.overriding(auto, {"Work_Mem": "8192kB", "port": 5432, "ssl": True}) == ["port"]


def test_folders_of_sockets_are_quoted_where_they_must_be() -> None:
    folders = ["/srv/a", "/srv/b,c", "/srv/d e", "@abstract"]
    assert files.folders_in(files.folder_list(folders)) == folders
    assert files.folder_list(folders[:1]) == "/srv/a"


def test_a_standby_has_no_less_than_its_primary_had() -> None:
    assert files.limits(CONTROL, {}) == {"max_connections": 150, "max_prepared_transactions": 5}
    assert files.limits(CONTROL, {"Max_Connections": 200}) == {"max_prepared_transactions": 5}
    assert files.limits(CONTROL, {"max_connections": "120"})["max_connections"] == 150
    assert files.limits({**CONTROL, "wal_level setting": "logical"}, {})["wal_level"] == "logical"


def test_only_what_is_too_little_for_replication_is_raised() -> None:
    assert adoption.required(existing()) == {"wal_log_hints": True}
    least = {"ssl": "off", "wal_level": "minimal", "max_wal_senders": "0", "max_replication_slots": "2"}
    assert adoption.required(existing(settings=least)) == {
        "wal_log_hints": True,
        "wal_level": "replica",
        "max_wal_senders": 10,
        "max_replication_slots": 10,
    }
    logical = {**existing().settings, "wal_level": "logical"}
    assert "wal_level" not in adoption.required(existing(settings=logical))


def test_settings_of_the_command_line_stay_but_for_those_that_are_managed() -> None:
    command = ["postgres", "-D", "/srv/old/main", "-c", "work_mem=9MB", "--jit=off", "-c", "port=1", "-k", "/tmp"]
    assert adoption.required(existing(command=command)) == {"work_mem": "9MB", "jit": "off", "wal_log_hints": True}


def test_all_that_harmony_manages_is_compared() -> None:
    managed = files.managed_settings(LAYOUT, name="montreal", address="localhost", port=1, slot_size_bound="10GB")
    least = {"ssl": "off", "wal_level": "minimal", "max_wal_senders": "0", "max_replication_slots": "2"}
    places = {"data_directory", "hba_file", "ident_file", "ssl_key_file"}  # Said in other words, or of no interest.
    assert {*managed, *adoption.required(existing(settings=least))} - places == set(adoption.COMPARED)


def test_changes_are_said_with_their_units_and_fit_in_a_line_of_pulumi() -> None:
    settings = {**existing().settings, "ssl": "on", "work_mem": "7168", "shared_buffers": "16384", "port": "5432"}
    altered = "".join(f"a_setting_with_a_long_name_{number} = 1\n" for number in range(30))
    wanted = {"work_mem": "16MB", "shared_buffers": "128MB", "port": 5432, **files.settings_in(altered)}
    shown = adoption.changes(existing(settings=settings, altered=altered), wanted, "/srv/orders/kept/file")
    assert "work_mem: 7MB becomes 16MB" in shown
    assert not [line for line in shown if line.startswith(("shared_buffers", "port"))]
    assert [line for line in shown if "then its 1 rules" in line]
    assert all(f"a_setting_with_a_long_name_{number}" in " ".join(shown) for number in range(30))
    assert max(map(len, shown)) <= 140


def test_roles_and_databases_are_said_to_be_made_or_changed_only_where_they_are() -> None:
    databases = [
        {"name": "orders", "owner": "orders", "extensions": []},
        {"name": "more", "owner": "alice", "extensions": ["pgcrypto"]},
    ]
    assert adoption.content_changes(adoption.Content({}, {}), databases, []) == [
        "make roles harmony_replication, alice, orders",
        "make databases orders, more",
        "database more: extensions pgcrypto, if they are missing",
    ]
    has = {"login": True, "password": True}
    there = adoption.Content(
        {"harmony_replication": has, "alice": has, "orders": has}, {"orders": "bob", "more": "alice"}
    )
    assert adoption.content_changes(there, databases, ["alice"]) == [
        "role alice: its password becomes the one in `passwords`",
        "database orders: owner bob becomes orders",
        "database more: extensions pgcrypto, if they are missing",
    ]
    assert list(adoption.unknown_passwords(there, ["alice"])) == ["orders"]


def test_only_a_password_that_nobody_told_is_a_problem() -> None:
    has = {"login": True, "password": True}
    content = adoption.Content({"told": has, "untold": has, "without": {"login": True, "password": False}}, {})
    assert list(adoption.unknown_passwords(content, ["told"])) == ["untold"]


def test_nothing_that_a_shell_would_read_is_among_the_options_of_a_start() -> None:
    plain = ["postgres", "-D", "/srv/old/main", "-c", "config_file=/etc/main.conf"]
    assert adoption.start_options(existing(command=plain)) == ["-c", "config_file=/etc/main.conf"]
    odd = ["postgres", "-D", "/srv/old/main", "-c", "log_line_prefix=$(id)"]
    assert adoption.start_options(existing(command=odd)) == []
    assert adoption.start_options(existing(command=odd, config_file="/etc/m.conf")) == ["-c", "config_file=/etc/m.conf"]
    with pytest.raises(SiteError, match="start it as it was started before"):
        adoption.start_options(existing(command=odd, config_file="/etc/$(id).conf"))


@pytest.mark.parametrize("role", ["harmony_replication", "streaming_replica"])
def test_a_replica_connects_as_the_role_of_the_certificate_that_its_source_gives(role: str) -> None:
    pair = certificates.make_client(certificates.make_authority("test"), role, 30)
    source = {"endpoint": {"host": "there", "port": 5433.0}, "certs": {"client_certificate": pair.certificate}}
    conninfo = files.source_conninfo(source, LAYOUT, "toronto")
    assert f"user='{role}'" in conninfo
    assert "port='5433'" in conninfo
    assert "sslnegotiation" not in conninfo, "no libpq before 17 knows it"
    direct = {**source, "endpoint": {"host": "there", "port": 443, "direct": True}}
    assert "sslnegotiation='direct'" in files.source_conninfo(direct, LAYOUT, "toronto")


def test_the_role_of_replicas_is_made_on_a_primary_that_lacks_it_with_what_a_rewind_needs() -> None:
    sql = files.follower_role_sql("streaming_replica")
    assert 'CREATE ROLE "streaming_replica" LOGIN REPLICATION' in sql
    assert sql.count("GRANT EXECUTE ON FUNCTION") == 4
    assert "NOT pg_is_in_recovery()" in sql
    assert "NOT EXISTS" in sql


def test_a_server_beside_a_cluster_is_like_one_unless_the_program_says_otherwise() -> None:
    text = files.main_config({}, adopted=False, beside_cluster=True)
    assert text.index("wal_keep_size = '512MB'") < text.index("include 'settings.conf'")
    assert "max_worker_processes = '32'" in text
    assert "wal_keep_size" not in files.main_config({}, adopted=False)
