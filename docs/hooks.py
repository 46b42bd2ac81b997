"""What is written into the pages at each build, so that it cannot drift: help and tables, from the package itself."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from harmony_pulumi.capabilities import postgresql_config, postgresql_facts


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what belongs there in the place of each mark."""
    for mark, text in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, text())
    return markdown


def command_line() -> str:
    """Return the help of every command of `harmony` as Markdown, each under a heading of the second level."""
    typer = [sys.executable, "-m", "typer", "harmony_pulumi.cli.main", "utils", "docs", "--name", "harmony"]
    text = subprocess.run(typer, check=True, capture_output=True, text=True, timeout=60).stdout
    text = text.partition("\n**Commands**:")[0] + "\n" + text[text.index("\n## ") :]  # The list is cut short.
    text = re.sub(r"(?<=\S )(```\w*)", r"`` \1 ``", text)  # Three backticks in a sentence are meant as such.
    return re.sub(r"^# `", "## `", text, flags=re.MULTILINE)


def managed_settings() -> str:
    """Return the settings that the package sets itself, and what to do instead."""
    return _table("instead", postgresql_facts.MANAGED)


def dangerous_settings() -> str:
    """Return the values of settings that are refused, and why."""
    refused = {f"{name} = {value}": why for (name, value), why in postgresql_config.DANGEROUS.items()}
    return _table("why", dict(sorted({**postgresql_config.REFUSED, **refused}.items())))


def _table(heading: str, rows: Mapping[str, str]) -> str:
    return "\n".join([f"| setting | {heading} |", "| --- | --- |", *(f"| `{k}` | {v} |" for k, v in rows.items())])


MARKS: Mapping[str, Callable[[], str]] = {
    "<!-- harmony --help -->": command_line,
    "<!-- managed settings -->": managed_settings,
    "<!-- dangerous settings -->": dangerous_settings,
}
