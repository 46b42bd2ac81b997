"""What a whole run of the tests came to, written down."""

import subprocess
import sys
from pathlib import Path

from tests.record import Case, cases, report


def test_every_test_that_did_not_pass_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "def test_left_out(): pytest.skip('no part')\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError\n"
        "def test_unmade(broken): pass\n"
    )
    junit = tmp_path / "junit.xml"
    assert pytest_in(tmp_path, junit) == 1
    found = cases(junit)
    assert [(case.file, case.name, case.end) for case in found] == [
        ("test_some.py", "test_good", "passed"),
        ("test_some.py", "test_bad", "failed"),
        ("test_some.py", "test_left_out", "skipped"),
        ("test_some.py", "test_unmade", "error"),
    ]
    text = report([*found, Case("tests/e2e/test_other.py", "test_it", 61.4, "passed")], ["seed: 7"])
    assert "- seed: 7\n- tests: 2 passed, 1 failed, 1 skipped, 1 error\n" in text
    assert "| tests/e2e/test_other.py | 1 passed | 61 |" in text
    assert "- error: test_some.py::test_unmade\n" in text
    assert "test_good" not in text


def pytest_in(folder: Path, junit: Path) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "--junitxml", junit]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=60).returncode
