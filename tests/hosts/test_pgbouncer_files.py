"""What is decided about an endpoint, with no PgBouncer at hand."""

from __future__ import annotations

from typing import Any

import pytest

from harmony_pulumi.hosts.pgbouncer import files
from harmony_pulumi.hosts.pgbouncer.files import Layout

LAYOUT = Layout("/srv/endpoint")
PROPS: dict[str, Any] = {"host": {"address": "db.example"}, "pool_size": 20, "max_clients": 1000}
PRIMARY = {"host": "a.example", "port": 5432, "ca_certificate": "A"}
REPLICA = {"host": "b.example", "port": 5432, "ca_certificate": "B"}
BOTH = {"primary": PRIMARY, "replica": REPLICA}


def config(version: str = "1.24.1", **differently: Any) -> str:
    return files.main_config({**PROPS, **differently}, LAYOUT, port=6432, version=version)


def test_clients_need_tls_and_a_password_and_the_server_a_certificate_of_its_authority() -> None:
    lines = config().splitlines()
    assert "%include /srv/endpoint/config/databases.ini" in lines
    for line in (
        "auth_type = scram-sha-256",
        "pool_mode = transaction",
        "client_tls_sslmode = require",
        "server_tls_sslmode = verify-full",
        "server_tls_ca_file = /srv/endpoint/tls/server-ca.crt",
        "listen_addr = db.example",
        "listen_port = 6432",
        "default_pool_size = 20",
        "max_client_conn = 1000",
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("version", "has"), [("1.18.0", False), ("1.20.1", False), ("1.21.0", True), ("1.24.1", True), ("2.0", True)]
)
def test_prepared_statements_are_on_where_pgbouncer_has_them(version: str, *, has: bool) -> None:
    assert files.has_prepared_statements(version) == has
    assert ("max_prepared_statements = 200\n" in config(version)) == has


def test_only_what_it_listens_on_needs_a_restart() -> None:
    assert not files.needs_restart(config(), config(pool_size=5, max_clients=9))
    assert files.needs_restart(config(), config(host={"address": "other.example"}))
    assert files.needs_restart(config(), config().replace("6432", "6433"))
    assert files.needs_restart(None, config())


def test_every_database_is_forwarded_to_the_one_server() -> None:
    assert files.databases_config(PRIMARY).endswith("[databases]\n* = host=a.example port=5432\n")
    assert "A" not in files.databases_config(PRIMARY).partition("[databases]")[2]


def test_passwords_are_quoted_as_pgbouncer_reads_them() -> None:
    assert files.users({"b": 'qu"ote', "a": "semi;colon"}) == '"a" "semi;colon"\n"b" "qu""ote"\n'


@pytest.mark.parametrize(
    ("password", "taken"),
    [
        ("md5 is no hash", True),
        ("md50123456789abcdef0123456789abcdef", False),
        ("SCRAM-SHA-256$4096:salt$stored:server", False),
        ("correct horse", True),
    ],
)
def test_a_password_that_looks_like_a_stored_secret_is_refused_without_being_shown(
    password: str, *, taken: bool
) -> None:
    problem = files.password_problem(password)
    assert (problem is None) == taken
    assert password not in (problem or "")


def test_a_new_endpoint_forwards_to_the_active_member() -> None:
    assert files.forwarded(None, {}, BOTH, "primary") == PRIMARY
    assert files.forwarded(None, {}, BOTH, "replica") == REPLICA


def test_a_deployment_moves_an_endpoint_only_with_its_member() -> None:
    now = {"host": "b.example", "port": 5432}
    moved = {**REPLICA, "port": 5433, "ca_certificate": "B2"}
    assert files.forwarded(now, BOTH, BOTH, "primary") == REPLICA
    assert files.forwarded(now, BOTH, {**BOTH, "replica": moved}, "primary") == moved
    assert files.forwarded(now, {}, BOTH, "primary") == REPLICA
    assert files.forwarded({"host": "c.example", "port": 5432}, BOTH, BOTH, "primary") is None
    # The members have changed places: it stays with the one that it was with.
    swapped = {"primary": REPLICA, "replica": PRIMARY}
    assert files.forwarded(now, BOTH, swapped, "primary") == PRIMARY


def test_answers_of_the_console_are_counted_without_its_own_connection() -> None:
    pools = files.rows(
        "database,user,cl_active,cl_waiting,sv_active,sv_idle,sv_used,sv_tested,sv_login\n"
        '"na,me",orders,3,1,2,5,1,0,1\n'
        "orders,orders,1,0,0,1,0,1,0\n"
        "pgbouncer,pgbouncer,1,0,0,0,0,0,0\n"
    )
    assert pools[0]["database"] == "na,me"
    assert files.at_work(pools) == 4
    assert files.clients_of(pools) == 5
    assert files.waiting_of(pools) == 1


def test_an_address_is_written_as_in_a_uri() -> None:
    assert files.address_of({"host": "::1", "port": 5432.0}) == "[::1]:5432"
    assert files.address_of(PRIMARY) == "a.example:5432"
