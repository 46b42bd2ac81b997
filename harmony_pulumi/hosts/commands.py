"""Commands and files somewhere, through one small interface: `run`.

Knows no capability. Everything is an argument list; what a user wrote never becomes shell text.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.errors import SiteError

# Files are read and written by one process for many of them: starting a process takes longer than the rest.
_READ = """
mark=$1
shift
for path; do
  cat -- "$path" 2>&1
  printf '%s\\n' "$mark$?$mark"
done
"""
# GNU head takes no more from a pipe than it is told to, so the next one finds the next file.
WRITE = """
set -e
umask 077
left=$#
while [ "$left" -gt 0 ]; do
  path=$1 size=$2 left=$((left - 2))
  shift 2
  head -c "$size" > "$path.new"
  if cmp -s "$path.new" "$path"; then rm "$path.new"; else set -- "$@" "$path.new"; fi
done
if ! { read -r end && [ "$end" = whole ]; }; then exit 1; fi # It is not, when who writes has died.
[ $# = 0 ] || sync -d "$@"
for new; do
  mv -f "$new" "${new%.new}"
  printf '%s\\n' "${new%.new}"
  set -- "$@" "${new%/*}"
  shift
done
[ $# = 0 ] || sync "$@" # The names, too: what is left are their folders.
"""


@dataclass(frozen=True)
class Completed:
    """What a command left."""

    status: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """What it said of how it went: on standard error, else on standard output."""
        return self.stderr.strip() or self.stdout.strip()


class Commands(ABC):
    """A way to run commands in one place: on a host, in a container."""

    name: str
    """What messages call the host."""

    @abstractmethod
    def run(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        stdin: str = "",
        timeout: float = 60,
        on_stderr: Callable[[str], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command to its end.

        Args:
            argv: the command and its arguments; no shell reads them. Never a secret: give that by `stdin`.
            user: the OS user to run as, if not the login user.
            stdin: what the command reads.
            timeout: seconds; the command is killed after it.
            on_stderr: given each line of standard error, and each carriage-return update, as it comes. The command is
                then taken to be long: it reads nothing, and with this process, all that it has started dies.
            env: variables to add.

        Raises:
            SiteError: the command is not there, or took longer than `timeout`.
            UnreachableError: the host does not answer.
        """

    @abstractmethod
    def conversing(
        self, argv: Sequence[str], *, user: str | None = None, env: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Callable[[str, str, float], str]]:
        """Keep a command running for as long as the block lasts; give what to ask it with.

        That takes what the command is to read, the line with which it ends its answer, and seconds to wait for that;
        it returns the answer, or raises a SiteError: the command has ended, or has not answered in time. It cannot be
        asked again then.
        """

    def check(self, argv: Sequence[str], **options: Any) -> str:
        """Run a command that must succeed, and return its standard output.

        Raises:
            SiteError: it ended with a status other than 0; the message holds its standard error.
        """
        done = self.run(argv, **options)
        if done.status:
            said = (done.said or "it said nothing")[-2000:]
            msg = f"{self.name}: `{argv[0]}` ended with status {done.status}: {said}"
            raise SiteError(msg)
        return done.stdout

    def read_file(self, path: str, user: str | None = None) -> str | None:
        """Return a file's text, or None if there is no such file."""
        return self.read_files([path], user)[path]

    def read_files(self, paths: Sequence[str], user: str | None = None) -> dict[str, str | None]:
        """Return the texts of files by their paths, None for those that are not there.

        Raises:
            SiteError: one is there, and cannot be read.
        """
        mark = secrets.token_hex(16)  # No file can hold it: it is made up now.
        said = self.check(["sh", "-c", _READ, "sh", mark, *paths], user=user, env={"LC_ALL": "C"})
        found: dict[str, str | None] = {}
        for path, answer in zip(paths, said.split(f"{mark}\n")[:-1], strict=True):
            text, _, status = answer.rpartition(mark)
            if status != "0" and "No such file" not in text:
                msg = f"{self.name}: cannot read {path}: {text.strip()}"
                raise SiteError(msg)
            found[path] = text if status == "0" else None
        return found

    def write_files(self, texts: Mapping[str, str], *, user: str | None = None) -> list[str]:
        """Write the files whose texts differ, by their paths; return the paths of these.

        Each is written whole or not at all, is on disk, and can be read by its owner alone from the start. They come to
        be in the order given, and none before the contents of all are on disk.
        """
        sizes = [word for path, text in texts.items() for word in (path, str(len(text.encode())))]
        stdin = "".join((*texts.values(), "whole\n"))
        return self.check(["sh", "-c", WRITE, "sh", *sizes], user=user, stdin=stdin).splitlines()

    def append_file(self, path: str, text: str, *, user: str | None = None) -> None:
        """Append whole lines to a file."""
        self.check(["sh", "-c", 'umask 077 && cat >> "$1"', "sh", path], user=user, stdin=text)

    def exists(self, path: str, user: str | None = None) -> bool:
        """Tell whether anything is at a path.

        Raises:
            SiteError: it cannot be told: a folder on the way cannot be entered, say.
        """
        done = self.run(["stat", "-L", "--", path], user=user, env={"LC_ALL": "C"})
        if done.status and "No such file or directory" not in done.stderr and "Not a directory" not in done.stderr:
            msg = f"{self.name}: cannot tell whether {path} is there: {done.stderr.strip()}"
            raise SiteError(msg)
        return done.status == 0
