"""A step of the set-up (scripts/lib.sh): silent where it goes well, and never a riddle where it does not."""

from __future__ import annotations

import os
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.conftest import eventually

LIBRARY = Path(__file__).parents[2] / "scripts/lib.sh"
DEADLINE = 60


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that has the library's functions; its logs are in a folder."""
    return subprocess.run(
        ["bash", "-c", f'source "{LIBRARY}"\n{script}'],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def logs(folder: Path) -> list[Path]:
    return list(folder.glob("harmony-setup.*"))


def test_a_step_that_goes_well_says_how_long_it_took_and_leaves_no_log(tmp_path: Path) -> None:
    done = shell('work() { echo "much to say, by $1"; }; export -f work\nstep "Make it" 30 "hint" work me', tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"== Make it\n   done in \d+ s\n", done.stdout)
    assert not logs(tmp_path)


def test_a_failed_step_tells_the_end_of_its_log_and_what_to_install_by_hand(tmp_path: Path) -> None:
    script = """
work() { for number in {1..30}; do echo "line $number"; done; echo 'no space left' >&2; return 3; }
export -f work
step 'Install it' 30 'apt-get install it' work
echo 'and on'
"""
    done = shell(script, tmp_path)
    assert done.returncode == 1
    assert done.stdout == "== Install it\n", "it does not go on"
    (log,) = logs(tmp_path)
    assert done.stderr.splitlines() == [
        "",
        "error: this step failed: Install it",
        f"--- the last lines of {log}",
        *(f"line {number}" for number in range(12, 31)),
        "no space left",
        "---",
        "To do it by hand: apt-get install it",
    ]
    assert log.read_text().startswith("line 1\n"), "the whole log is kept"


def test_a_step_that_takes_too_long_is_ended_and_says_so(tmp_path: Path) -> None:
    script = """
work() { echo $$ >pid; echo 'waiting for it'; read -r <>waiting; }
mkfifo waiting
export -f work
step 'Fetch it' 1 'carry it here' work
"""
    done = shell(script, tmp_path)
    assert done.returncode == 1
    assert "error: this step failed: Fetch it\nIt took longer than 1 s.\n" in done.stderr
    assert "waiting for it" in done.stderr
    assert done.stderr.endswith("To do it by hand: carry it here\n")
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_long_step_shows_how_far_it_is(tmp_path: Path) -> None:
    # Between two looks at the step, a quarter of a minute passes; the step ends once it was looked at three times.
    script = """
work() { echo 'getting ready'; echo '40 % of a very large file'; read -r <>enough; echo 'all of it'; }
mkfifo enough
export -f work
looks=0
sleep() {
	command sleep 0.05
	[ "$(wc -l <"$log")" = 2 ] || return 0
	SECONDS=$((SECONDS + 15)) looks=$((looks + 1))
	[ "$looks" != 3 ] || echo >enough
}
step 'Fetch it' 30 'carry it here' work
"""
    done = shell(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.splitlines()
    assert shown[0] == "== Fetch it"
    assert re.fullmatch(r"   done in \d+ s", shown[-1])
    # The last look may find what the step says after it was let go.
    told = [re.fullmatch(r"   (\d+) s: (40 % of a very large file|all of it)", line) for line in shown[1:-1]]
    assert len([found for found in told if found and found[2] != "all of it"]) >= 2, shown
    seconds = [int(found[1]) for found in told if found]
    assert len(seconds) == len(told), shown
    assert all(later - earlier >= 15 for earlier, later in pairwise(seconds)), shown


@pytest.mark.parametrize("signal", ["INT", "TERM"])
def test_an_interrupted_step_leaves_nothing_running(tmp_path: Path, signal: str) -> None:
    script = f"""
work() {{ echo $$ >pid; read -r <>waiting; }}
mkfifo waiting
export -f work
sleep() {{
	command sleep 0.05
	[ ! -s pid ] || kill -{signal} $$
}}
step 'Fetch it' 50 'carry it here' work
"""
    done = shell(script, tmp_path)
    assert done.returncode == {"INT": 130, "TERM": 143}[signal]
    pid = (tmp_path / "pid").read_text().strip()
    eventually(lambda: not arguments_of(pid), "what the step had started to end")


def arguments_of(pid: str) -> bytes:
    """Return the arguments of a process; none where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
