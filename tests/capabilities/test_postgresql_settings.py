"""The table of server settings, and what it says about values, against what PostgreSQL itself says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harmony_pulumi.capabilities import postgresql_settings
from harmony_pulumi.capabilities.postgresql_settings import (
    Value,
    meaning,
    needs_restart,
    problem_with,
    quantity,
    setting,
    suggest,
)

WORK_MEM = "work_mem takes 64 to 2147483647 kB, for instance 4096 or '4MB'"
SHARED_BUFFERS = "shared_buffers takes 16 to 1073741823 units of 8kB, for instance 16384 or '128MB'"

PROBLEMS: list[tuple[str, Value, int | None, str]] = [
    ("work_mem", "lots", 15, f"'lots' is not a number; {WORK_MEM}"),
    ("work_mem", True, 15, f"True is not a number; {WORK_MEM}"),
    ("work_mem", 63, 15, f"63 is out of range; {WORK_MEM}"),
    ("work_mem", "4mb", 15, f"'4mb' does not end in a unit that fits (B, kB, MB, GB or TB); {WORK_MEM}"),
    (
        "shared_buffers",
        "1s",
        15,
        f"'1s' does not end in a unit that fits (B, kB, MB, GB or TB); {SHARED_BUFFERS}",
    ),
    (
        "max_connections",
        "4kB",
        15,
        "'4kB' has a unit, and this setting has none; max_connections takes 1 to 262143, for instance 100",
    ),
    (
        "random_page_cost",
        -1,
        15,
        "-1 is out of range; random_page_cost takes 0 or more, for instance 4",
    ),
    ("fsync", "maybe", 15, "'maybe' is not on or off; fsync takes on or off, for instance True"),
    (
        "wal_level",
        "minmal",
        15,
        "'minmal' is not one of its values; wal_level takes minimal, replica or logical",
    ),
    ("block_size", 8192, 15, "block_size cannot be set; PostgreSQL only reports it"),
    ("work_men", 4096, 15, "'work_men' is not a setting of PostgreSQL; did you mean work_mem?"),
    ("frobnicate", 1, None, "'frobnicate' is not a setting of PostgreSQL"),
    (
        "stats_temp_directory",
        "pg_stat_tmp",
        15,
        "stats_temp_directory does not exist in PostgreSQL 15; it ended with PostgreSQL 14",
    ),
    ("io_method", "sync", 15, "io_method does not exist in PostgreSQL 15; it came with PostgreSQL 18"),
    ("a.b.c", 1, 15, "'a.b.c' is not a name of an extension's setting; it takes the form extension.setting"),
    (".b", 1, 15, "'.b' is not a name of an extension's setting; it takes the form extension.setting"),
]


@pytest.mark.parametrize(("name", "value", "major", "message"), PROBLEMS)
def test_problem_says_what_was_found_and_what_is_expected(
    name: str, value: Value, major: int | None, message: str
) -> None:
    assert problem_with(name, value, major) == message


def test_an_extensions_setting_is_accepted() -> None:
    assert problem_with("pg_stat_statements.max", "anything", 15) is None


def test_what_a_setting_takes_depends_on_the_major() -> None:
    assert problem_with("wal_compression", "lz4", 14) is not None
    assert problem_with("wal_compression", "lz4", 15) is None
    assert problem_with("wal_compression", "lz4") is None, "without a major, one that takes it is enough"
    assert problem_with("io_method", "sync", 19) is None, "a newer major is taken for the newest known one"


def test_a_setting_is_found_in_any_case() -> None:
    found = setting("timezone")
    assert found is not None
    assert found.name == "TimeZone"
    assert setting("frobnicate") is None
    assert setting("io_method", 17) is None


def test_needs_restart() -> None:
    assert needs_restart("shared_buffers")
    assert not needs_restart("work_mem")
    assert not needs_restart("frobnicate")
    assert needs_restart("autovacuum_max_workers", 17)
    assert not needs_restart("autovacuum_max_workers", 18)
    assert needs_restart("autovacuum_max_workers"), "without a major, it does where any of them needs it"


@pytest.mark.parametrize(
    ("name", "closest"),
    [("max_conections", "max_connections"), ("WorkMem", "work_mem"), ("datestyl", "DateStyle"), ("x", None)],
)
def test_suggest(name: str, closest: str | None) -> None:
    assert suggest(name) == closest


@pytest.mark.parametrize(
    ("name", "value", "amount"),
    [
        ("shared_buffers", "128MB", 16384),
        ("shared_buffers", 16384, 16384),
        ("shared_buffers", "16384", 16384),
        ("checkpoint_timeout", "1h", 3600),
        ("autovacuum_vacuum_cost_delay", "2500us", 2.5),
        ("work_mem", "lots", None),
        ("wal_level", "replica", None),
        ("frobnicate", 1, None),
        ("work_mem", "9" * 5000, None),
        ("work_mem", "0x" + "f" * 5000, None),
    ],
)
def test_quantity_is_in_the_settings_own_unit(name: str, value: Value, amount: float | None) -> None:
    assert quantity(name, value) == amount


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        *(("fsync", value, "on") for value in (True, 1, "1", "on", "ON", "t", "Tru", "yes", "y")),
        *(("fsync", value, "off") for value in (False, 0, "0", "off", "of", "F", "fals", "no", "n")),
        ("fsync", "o", "o"),
        ("synchronous_commit", "TRUE", "on"),
        ("synchronous_commit", 0, "off"),
        ("synchronous_commit", "Remote_Apply", "remote_apply"),
        ("work_mem", "4MB", "4mb"),
    ],
)
def test_meaning_is_one_word_for_all_spellings(name: str, value: Value, meant: str) -> None:
    assert meaning(name, value) == meant


def test_importing_does_not_read_the_table() -> None:
    program = f"import {postgresql_settings.__name__} as m; print(m._table.cache_info().currsize)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


# Against real servers: every one that is installed.

VALUES: list[tuple[str, Value]] = [
    ("work_mem", 4096),
    ("work_mem", "4096"),
    ("work_mem", "4MB"),
    ("work_mem", " 4 MB "),
    ("work_mem", "4mb"),
    ("work_mem", "4K"),
    ("work_mem", "4096kBB"),
    ("work_mem", "lots"),
    ("work_mem", ""),
    ("work_mem", "63"),
    ("work_mem", "64.4"),
    ("work_mem", "63.5"),
    ("work_mem", "63.4"),
    ("work_mem", "0x100"),
    ("work_mem", "0x100kB"),
    ("work_mem", "0100"),
    ("work_mem", "0777"),
    ("work_mem", "0888"),
    ("work_mem", "+4096"),
    ("work_mem", "-4096"),
    ("work_mem", "1e3"),
    ("work_mem", "1e3MB"),
    ("work_mem", "1.5e"),
    ("work_mem", "1_000"),
    ("work_mem", ".5MB"),
    ("work_mem", "+.5MB"),
    ("work_mem", "30.1GB"),
    ("work_mem", "0.0001TB"),
    ("work_mem", "65536.3B"),
    ("work_mem", "1TB"),
    ("work_mem", "2TB"),
    ("work_mem", "2147483647"),
    ("work_mem", "2147483648"),
    ("work_mem", "99999999999999999999"),
    ("work_mem", "inf"),
    ("work_mem", "nan"),
    ("work_mem", "1s"),
    ("shared_buffers", "128MB"),
    ("shared_buffers", "100kB"),
    ("shared_buffers", "130kB"),
    ("shared_buffers", "1B"),
    ("wal_decode_buffer_size", "512kB"),
    ("min_wal_size", "1.5GB"),
    ("min_wal_size", "80000000B"),
    ("max_connections", "4kB"),
    ("max_connections", "10.5"),
    ("max_connections", 0),
    ("max_connections", 262144),
    ("checkpoint_timeout", "5min"),
    ("checkpoint_timeout", "0.5h"),
    ("checkpoint_timeout", "2d"),
    ("checkpoint_timeout", "1d"),
    ("checkpoint_timeout", "29999ms"),
    ("checkpoint_timeout", "29400ms"),
    ("checkpoint_timeout", "5Min"),
    ("log_rotation_age", "90s"),
    ("statement_timeout", "1.0001s"),
    ("statement_timeout", "1500us"),
    ("statement_timeout", "30d"),
    ("statement_timeout", -1),
    ("autovacuum_vacuum_cost_delay", "2ms"),
    ("autovacuum_vacuum_cost_delay", "2500us"),
    ("autovacuum_vacuum_cost_delay", "0.1s"),
    ("autovacuum_vacuum_cost_delay", "0.2s"),
    ("autovacuum_vacuum_cost_delay", "1kB"),
    ("random_page_cost", 1.1),
    ("random_page_cost", "1e-3"),
    ("random_page_cost", 1e-05),
    ("random_page_cost", ".5"),
    ("random_page_cost", "+.5"),
    ("random_page_cost", "0x1.8p1"),
    ("random_page_cost", "inf"),
    ("random_page_cost", "nan"),
    ("random_page_cost", "1e400"),
    ("random_page_cost", "1,5"),
    ("random_page_cost", -0.5),
    ("checkpoint_completion_target", 1.01),
    ("fsync", True),
    ("fsync", False),
    ("fsync", 1),
    ("fsync", 2),
    ("fsync", 1.0),
    ("fsync", "TRUE"),
    ("fsync", "t"),
    ("fsync", "ye"),
    ("fsync", "o"),
    ("fsync", "of"),
    ("fsync", "onn"),
    ("fsync", " on"),
    ("fsync", ""),
    ("wal_level", "Logical"),
    ("wal_level", "hot_standby"),
    ("wal_level", "log"),
    ("wal_level", True),
    ("huge_pages", False),
    ("huge_pages", "try"),
    ("huge_pages", "tr"),
    ("synchronous_commit", "remote_apply"),
    ("synchronous_commit", "yes"),
    ("wal_compression", True),
    ("wal_compression", "pglz"),
    ("ssl_min_protocol_version", "tlsv1.2"),
    ("ssl_max_protocol_version", ""),
    ("log_min_messages", "debug"),
    ("log_connections", "on"),
    ("application_name", 5),
    ("search_path", "a, b"),
    ("TIMEZONE", "UTC"),
    ("block_size", 8192),
    ("work_men", 4096),
    ("stats_temp_directory", "pg_stat_tmp"),
    ("vacuum_defer_cleanup_age", 0),
    ("old_snapshot_threshold", "1h"),
    ("force_parallel_mode", "on"),
    ("ssl_ecdh_curve", "prime256v1"),
    ("io_method", "sync"),
    ("summarize_wal", "on"),
    ("extension.setting", "anything"),
]


@dataclass(frozen=True)
class Installed:
    """A PostgreSQL on this machine, with a folder that is enough for it to answer questions."""

    postgres: Path
    major: int
    folder: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.postgres, *arguments],
            user="postgres" if os.geteuid() == 0 else None,
            cwd=self.folder,
            env={"LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


def installed() -> list[Path]:
    """The folders in HARMONY_POSTGRESQL_BIN, or where PostgreSQL's packages put it."""
    given = os.environ.get("HARMONY_POSTGRESQL_BIN")
    if given:
        return [Path(folder) / "postgres" for folder in given.split(os.pathsep)]
    found = shutil.which("postgres")
    if found:
        return [Path(found).resolve()]
    return sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")) or [Path("no/bin/postgres")]


@pytest.fixture(scope="module", params=installed(), ids=lambda path: path.parts[-3])
def real(request: pytest.FixtureRequest) -> Iterator[Installed]:
    postgres: Path = request.param
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "postgresql.conf").touch()
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        version = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True).stdout
        yield Installed(postgres, int(version.split()[2].split(".")[0]), folder)


@pytest.mark.e2e
def test_the_table_is_what_the_server_describes(real: Installed) -> None:
    described = [line.split("\t") for line in real.run("--describe-config").stdout.splitlines()]
    assert len(described) > 250
    differences: list[str] = []
    for name, context, _, kind, _, low, high, *_ in described:
        found = setting(name, real.major)
        if found is None:
            differences.append(f"{name} is not in the table")
            continue
        ours = [name, found.context, {"boolean": "bool"}.get(kind.lower(), kind.lower())]
        theirs = [found.name, context, found.kind]
        if found.minimum is not None and found.maximum is not None:
            ours += [f"{float(low):g}", f"{float(high):g}"]
            theirs += [f"{found.minimum:g}", f"{found.maximum:g}"]
        if ours != theirs or needs_restart(name, real.major) != (context == "postmaster"):
            differences.append(f"{theirs} in the table, {ours} in the server")
    assert differences == []


@pytest.mark.e2e
def test_problems_and_quantities_are_those_of_the_server(real: Installed) -> None:
    differences: list[str] = []
    for name, value in VALUES:
        text = ("on" if value else "off") if isinstance(value, bool) else str(value)
        answer = real.run("-D", str(real.folder), "-C", name, "-c", f"{name}={text}")
        problem = problem_with(name, value, real.major)
        if (problem is None) != (answer.returncode == 0):
            differences.append(f"{name}={value!r}: {problem}; the server: {answer.stderr.strip() or 'accepts'}")
        amount = quantity(name, value, real.major)
        if amount is not None and answer.returncode == 0 and float(answer.stdout) != pytest.approx(amount):
            differences.append(f"{name}={value!r}: {amount} in the table, {answer.stdout.strip()} in the server")
    assert differences == []
