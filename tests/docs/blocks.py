"""The code blocks of the documentation, as tests take them.

A block with a title is a file: those of one page are one Pulumi project, in which `__main__.py` is the program. A
`diff` block with a title changes that file. A `console` block is a session: `$ ` begins a command, and what follows is
what it prints, where `…` stands for anything. A comment above a block tells the tests how to take it:

    <!-- test: not run, because ... -->
    <!-- test: on another machine -->
    <!-- test: refused -->  (a change after which the program must fail with a clean error)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?P<attributes>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_SNIPPET = re.compile(r'^--8<-- "(.*)"\n', re.MULTILINE)
_DIRECTIVE = re.compile(r"<!-- test: (?P<how>(?:(?!-->).)*) -->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    title: str
    """The file that it is, or is a change of; empty if it is neither."""
    how: str
    """What a comment tells the tests; empty if there is none."""
    text: str

    @property
    def place(self) -> str:
        """Where it stands, for a test's name and messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether a session may be run."""
        return not self.how.startswith("not run")

    def commands(self) -> Iterator[tuple[str, str]]:
        """Iterate over the commands of a session and what each prints."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines(keepends=True)
            length = 1
            while lines[length - 1].endswith("\\\n"):
                length += 1
            yield "".join(lines[:length]).strip(), "".join(lines[length:])


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text()
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match["attributes"])
        directive = _DIRECTIVE.search(text[: match.start()])
        body = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        body = _SNIPPET.sub(lambda snippet: (ROOT / snippet[1]).read_text(), body)
        line = text.count("\n", 0, match.start()) + 1
        how = " ".join(directive["how"].split()) if directive else ""
        found.append(Block(page, line, match["language"], title[1] if title else "", how, body))
    return found


def changed(text: str, diff: str) -> str:
    """Return a file's text after a change, in which lines begin with `-`, `+` or a space.

    Raises:
        AssertionError: what the change expects is not there, or more than once.
    """
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in "- ")
    after = "".join(line[1:] for line in lines if line[0] in "+ ")
    assert text.count(before) == 1, f"expected once:\n{before}\nin:\n{text}"
    return text.replace(before, after)


def project_of(blocks: list[Block]) -> dict[str, str]:
    """Return the files of a page's project as the page first gives them."""
    files: dict[str, str] = {}
    for block in blocks:
        if block.title and block.language != "diff":
            files.setdefault(block.title, block.text)
    return files
