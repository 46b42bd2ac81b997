"""The secrets of a deployed stack, value by value, and where they must not be: in a text, in a list of arguments."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from tests.e2e.conftest import Stack

_SECRET_MARK = "4dabf18193072939515e22adb298388d"
"""The key by which Pulumi's state marks a secret."""
_LOOK_EVERY = 0.005


def secrets_of(stack: Stack) -> dict[str, str]:
    """Return every secret value of a deployed stack by what it is: passwords, and the lines of private keys.

    From both ends: what the state encrypts, and what the servers' folders hold.
    """
    found: dict[str, str] = {"passphrase": stack.env["PULUMI_CONFIG_PASSPHRASE"]}
    for resource in json.loads(stack.run("stack", "export", "--show-secrets"))["deployment"]["resources"]:
        for part in ("inputs", "outputs"):
            name = f"{resource['urn'].rpartition('::')[2]} {part}"
            for place, value in _encrypted(resource.get(part, {}), name):
                found |= dict(_values(place, value))
    for root, _ in stack.markers():
        for user, password in json.loads((root / "credentials.json").read_text()).items():
            found |= dict(_values(f"{root}/credentials.json {user}", password))
        for path in root.glob("tls/*.key"):
            found |= dict(_values(str(path), path.read_text()))
    return found


def _encrypted(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Iterate over what the state marks as secret, below a value."""
    if isinstance(value, dict) and _SECRET_MARK in value:
        yield place, json.loads(value["plaintext"])
    else:
        for key, part in _parts(value):
            yield from _encrypted(part, f"{place}.{key}")


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, list):
        yield from ((str(index), part) for index, part in enumerate(value))


def _values(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Iterate over the secret values in what is marked or kept as secret. A certificate in it is for all to see."""
    if not isinstance(value, str):
        for key, part in _parts(value):
            yield from _values(f"{place}.{key}", part)
    elif "PRIVATE KEY" in value:
        lines = [line for line in value.splitlines() if line and not line.startswith("-----")]
        yield from ((f"{place} line {number}", line) for number, line in enumerate(lines, 1))
    elif "://" in value:
        password = urlsplit(value).password
        assert password, f"{place} has no password"
        yield f"{place} password", password  # As it is in the uri: percent-encoded.
    elif not value.startswith("-----BEGIN CERTIFICATE"):
        yield place, value
        yield f"{place}, quoted", quote(value, safe="")


def leaked(secrets: Mapping[str, str], text: str) -> list[str]:
    """Return what is in a text that must be in none, without telling it."""
    return [place for place, secret in secrets.items() if secret in text]


def assert_secrets_are_all_there(secrets: Mapping[str, str], *members: str) -> None:
    """Check that there is something to look for: of each member a password, and every key; and that it is found."""
    assert all(len(secret) >= 8 for secret in secrets.values())
    for member in members:
        for wanted in ("/credentials.json orders", "/tls/ca.key line 2", "/tls/server.key line 2"):
            assert [place for place in secrets if f"/{member}-orders{wanted}" in place], (member, wanted)
        for wanted in (" outputs.credentials.orders", " outputs.replication_certs.client_key line 2"):
            assert f"{member}-orders{wanted}" in secrets, wanted
    for place, secret in secrets.items():
        assert place in leaked(secrets, f'+ a diff\n    key: "{secret}\\n"\n')


@contextmanager
def watched_arguments() -> Generator[set[str]]:
    """Collect the argument lists of everything that is started meanwhile, seen every few milliseconds."""
    before = {process.name for process in os.scandir("/proc")}
    seen, over = set[str](), threading.Event()

    def look() -> None:
        for process in os.scandir("/proc"):
            if process.name.isdigit() and process.name not in before:
                with suppress(OSError):
                    line = Path(process.path, "cmdline").read_bytes()
                    seen.add(line.replace(bytes(1), b" ").decode(errors="replace"))

    def watch() -> None:
        while not over.wait(_LOOK_EVERY):
            look()

    watcher = threading.Thread(target=watch, name="watch arguments", daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def written_below(folder: Path) -> str:
    """Return all that is in the files below a folder."""
    return "".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*")) if path.is_file())
