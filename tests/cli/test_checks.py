"""What `harmony doctor` thinks of what it finds; each remedy is something to do."""

from __future__ import annotations

import pytest

from harmony_pulumi.cli import checks
from harmony_pulumi.cli.checks import Check

GOOD = [
    checks.python((3, 11, 0)),
    checks.pulumi("/opt/pulumi", "v3.259.0"),
    checks.pulumi("/opt/pulumi", "v4.0.0-alpha.1"),
    checks.language_plugin({"pulumi-language-python": "/opt/pulumi-language-python"}),
    checks.backend("file:///srv/state"),
    checks.runner("/usr/bin/setpriv"),
    checks.postgresql([("/usr/lib/postgresql/12/bin", "12.4"), ("/usr/lib/postgresql/15/bin", "15.8")]),
    checks.os_user("me", exists=True, is_root=False),
    checks.os_user("postgres", exists=True, is_root=True),
    checks.machine_id("0123", ""),
    checks.base_folder("/var/lib/harmony", 2**34, []),
    checks.client("/usr/bin/psql", "psql (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)"),
    checks.tls("42.0.0", "OpenSSL 3.0.1", tls13=True),
    checks.ports({22, 5432}),
    checks.certificates({}),
    checks.certificates({"/srv/one": [], "/srv/other": []}),
]
MISSING = [
    checks.python((3, 10, 4)),
    checks.pulumi(None, ""),
    checks.pulumi("/opt/pulumi", "v3.258.9"),
    checks.pulumi("/opt/pulumi", ""),
    checks.language_plugin({"pulumi-language-python": None}),
    checks.runner(None),
    checks.postgresql([]),
    checks.postgresql([("/usr/lib/postgresql/12/bin", "12.4")]),
    checks.os_user("postgres", exists=False, is_root=True),
    checks.machine_id("", "this machine has no machine-id"),
    checks.base_folder("/var/lib/harmony", 2**20, ["/var/lib has 1 MB free"]),
    checks.ports(range(1, 65536)),
]
WARNINGS = [
    checks.backend(None),
    checks.client(None, ""),
    checks.client("/usr/bin/psql", "psql (PostgreSQL) 9.6.24"),
    checks.tls("42.0.0", "OpenSSL 1.1.0", tls13=False),
    checks.unchecked("ports", "there is no setpriv"),
    checks.certificates({"/srv/one": [], "/srv/other": ["'server', which has expired; `harmony …` makes a new one"]}),
]


@pytest.mark.parametrize("check", GOOD, ids=lambda check: check.found)
def test_what_is_as_it_should_be_needs_no_remedy(check: Check) -> None:
    assert (check.status, check.remedy) == ("ok", "")
    assert check.found


@pytest.mark.parametrize("check", MISSING, ids=lambda check: check.found)
def test_what_is_missing_says_what_was_found_and_what_to_do(check: Check) -> None:
    assert check.status == "missing"
    assert check.found
    assert check.remedy


@pytest.mark.parametrize("check", WARNINGS, ids=lambda check: check.found)
def test_what_is_only_useful_is_a_warning_with_a_remedy(check: Check) -> None:
    assert check.status == "warning"
    assert check.found
    assert check.remedy


def test_a_server_that_is_too_old_is_shown_as_such_beside_one_that_will_do() -> None:
    assert "12.4 in /usr/lib/postgresql/12/bin (not supported)" in GOOD[6].found


def test_the_backend_is_shown_without_its_password() -> None:
    assert checks.backend("postgres://me:hunter2@db.example/state").found == "postgres://db.example/state"


def test_the_ports_name_the_next_free_one() -> None:
    assert checks.ports({5432, 5433, 5435}).found == "5434 is free; 5432 to 5433 taken"


def test_each_certificate_that_is_bad_is_named_with_its_server() -> None:
    assert checks.certificates({"/srv/one": []}).found == "of 1 server on this host: good"
    found = checks.certificates({"/srv/one": ["'a', which …", "'b', which …"], "/srv/other": ["'a', which …"]})
    assert found.found == "/srv/one: 'a', which …; /srv/one: 'b', which …; /srv/other: 'a', which …"
