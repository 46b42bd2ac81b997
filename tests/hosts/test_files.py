"""Files on a host, through a connection: this machine's own, and every command real."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts import commands
from harmony_pulumi.hosts.connection import LocalConnection
from harmony_pulumi.hosts.postgresql.home import make_root

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TEXTS = ["", "a", "a\n", "two\nlines", "ü🐘\n", "whole\n", "'; rm -rf $HOME; `id` \\ \"\n", "x" * 100_000 + "\n"]


@pytest.fixture
def here() -> LocalConnection:
    return LocalConnection()


def test_many_files_are_written_and_read_back_as_they_were(here: LocalConnection, tmp_path: Path) -> None:
    texts = {f"{tmp_path}/{number} 'of' many $x": text for number, text in enumerate(TEXTS)}
    assert here.write_files(texts) == list(texts)
    assert here.read_files(list(texts)) == texts
    assert {Path(path).read_bytes().decode() for path in texts} == set(TEXTS)
    assert len(list(tmp_path.iterdir())) == len(TEXTS)


def test_a_file_that_is_written_can_be_read_by_its_owner_alone(here: LocalConnection, tmp_path: Path) -> None:
    here.write_files({f"{tmp_path}/key": "secret"})
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_only_files_that_differ_are_written(here: LocalConnection, tmp_path: Path) -> None:
    texts = {f"{tmp_path}/{name}": f"{name}\n" for name in ("same", "changed", "new")}
    here.write_files({path: text for path, text in texts.items() if not path.endswith("new")})
    before = (tmp_path / "same").stat().st_ino
    texts[f"{tmp_path}/changed"] = "other\n"
    assert here.write_files(texts) == [f"{tmp_path}/changed", f"{tmp_path}/new"]
    assert (tmp_path / "same").stat().st_ino == before
    assert here.write_files(texts) == []
    assert here.read_files(list(texts)) == texts


def test_a_file_that_is_not_there_is_none(here: LocalConnection, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("text", encoding="utf-8")
    paths = [f"{tmp_path}/gone", f"{tmp_path}/there", f"{tmp_path}/no/folder"]
    assert here.read_files(paths) == dict(zip(paths, [None, "text", None], strict=True))


def test_a_file_that_cannot_be_read_is_not_taken_for_missing(here: LocalConnection, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SiteError, match=r"cannot read .*folder: .*Is a directory"):
        here.read_files([f"{tmp_path}/folder"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_is_closed_to_the_user_is_not_taken_for_empty(here: LocalConnection, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(SiteError, match="Permission denied"):
        here.read_files([f"{tmp_path}/file"], user="nobody")
    with pytest.raises(SiteError, match="Permission denied"):
        here.write_files({f"{tmp_path}/file": "text"}, user="nobody")


def test_when_a_file_cannot_be_written_none_of_them_is(here: LocalConnection, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"no/folder\.new"):
        here.write_files({f"{tmp_path}/first": "1", f"{tmp_path}/no/folder": "2"})
    assert not (tmp_path / "first").exists()


def test_a_writer_that_dies_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")
    program = (
        "import sys, time\n"
        "from harmony_pulumi.hosts import connection\n"
        "feed = connection._Conversation._feed\n"
        "def half(self, data):\n"
        "    if self.process.pid and len(data) < 500_000:\n"
        "        print('half', flush=True)\n"
        "        time.sleep(60)\n"
        "    return feed(self, data)\n"
        "connection._Conversation._feed = half\n"
        "connection.LocalConnection().write_files({sys.argv[1]: 'x' * 1_000_000})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        writer.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while subprocess.run(["pgrep", "-f", f"sh .*{path}"], capture_output=True, check=False).returncode == 0:
        assert time.monotonic() < end, "the shell that writes outlived its parent"
        time.sleep(0.02)
    assert path.read_text(encoding="utf-8") == "old"


def test_what_does_not_come_whole_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")
    for given in (b"x" * 10, b"x" * 500, b"x" * 1000, b"x" * 1000 + b"who"):
        argv = ["sh", "-c", commands.WRITE, "sh", str(path), "1000"]
        done = subprocess.run(argv, input=given, capture_output=True, check=False, timeout=10)
        assert done.returncode != 0
        assert path.read_text(encoding="utf-8") == "old"


def test_what_is_appended_is_there_even_if_the_writer_dies_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    program = (
        "import os, signal, sys\n"
        "from harmony_pulumi.hosts.connection import LocalConnection\n"
        "with LocalConnection().appending(sys.argv[1]) as append:\n"
        "    append('one\\n')\n"
        "    append('two\\n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for _ in range(2):
        argv = [sys.executable, "-c", program, str(path)]
        done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False, timeout=30)
        assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 10
    while path.read_text(encoding="utf-8") != "one\ntwo\n" * 2:
        assert time.monotonic() < end, path.read_text(encoding="utf-8")
        time.sleep(0.02)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_appended_to_is_said_to_be_so(here: LocalConnection, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=f"cannot append to {tmp_path}: .*directory"), here.appending(str(tmp_path)):
        pass


def test_folders_that_somebody_else_makes_meanwhile_are_no_error(tmp_path: Path) -> None:
    class Racing(LocalConnection):
        def exists(self, path: str, user: str | None = None) -> bool:
            found = super().exists(path, user)
            Path(path).mkdir(mode=0o711, exist_ok=True)
            return found

    (tmp_path / "there").mkdir()
    make_root(Racing(), f"{tmp_path}/there/shop/server", getpass.getuser())
    make_root(LocalConnection(), f"{tmp_path}/there/stock/dev/server", getpass.getuser())
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"there": 0o755, "shop": 0o711, "stock": 0o755, "dev": 0o755, "server": 0o700}
