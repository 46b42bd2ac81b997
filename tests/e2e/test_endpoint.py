"""One stable address for a pair: PgBouncer in front of it, on real servers, by the real engine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from harmony_pulumi.capabilities.endpoint import EndpointSite, load_endpoint
from harmony_pulumi.errors import SiteError
from tests.e2e.conftest import (
    PAIR,
    Stack,
    base_folder,
    eventually,
    parent_of,
)

pytestmark = pytest.mark.e2e

ENDPOINT = '[EndpointConfig(on=LinuxHostTopology("kingston"))]'


def pair(stack: Stack, config: str = "", active: str = "None", endpoints: str = ENDPOINT) -> None:
    """Set the program to a pair with endpoints."""
    text = PAIR.format(config=config, active=f"{active}, endpoints={endpoints}")
    stack.program(text)


def handles(stack: Stack) -> list[dict[str, Any]]:
    """Return the handles of a deployed pair's endpoints, as the runner finds them."""
    return stack.outputs()["site"]["endpoints"]


def the_endpoint(stack: Stack) -> EndpointSite:
    (handle,) = handles(stack)
    return load_endpoint(handle)


def folder(stack: Stack, host: str = "kingston") -> Path:
    (found,) = (base_folder() / stack.project).glob(f"*/{host}-orders-endpoint")
    return found


def process(stack: Stack, host: str = "kingston") -> int:
    return int((folder(stack, host) / "run/pgbouncer.pid").read_text())


@contextmanager
def client(stack: Stack, uri: str = "") -> Generator[psycopg.Connection[Any]]:
    """Connect as a user would, by the pair's uri unless another is given."""
    outputs = stack.outputs()
    path = stack.folder / "endpoint-ca.crt"
    path.write_text(outputs["ca_certificate"])
    with psycopg.connect(
        uri or outputs["uri"], sslrootcert=str(path), connect_timeout=10, autocommit=True, prepare_threshold=None
    ) as connection:
        yield connection


def test_clients_reach_the_active_member_by_one_address_over_tls(stack: Stack) -> None:
    pair(stack)
    shown = stack.up()
    print(shown)
    outputs = stack.outputs()
    seen = the_endpoint(stack).observe()
    assert seen["state"] == "running"
    print(seen)
    with client(stack) as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        assert connection.pgconn.ssl_in_use
        port = connection.execute("SELECT current_setting('port')").fetchone()
    print(port, outputs["uri"])
    assert the_endpoint(stack).observe()["points_to"] == f"localhost:{port[0]}"
    assert parent_of(process(stack)) == 1
    stack.up("--expect-no-changes")
    assert "8 unchanged" in stack.refresh()
    stack.preview("--expect-no-changes")
    root = folder(stack)
    stack.destroy()
    assert not root.exists()
