"""Why a route of OpenShift takes direct TLS: its router, HAProxy, tells servers apart by a name (SNI) that comes with
the first bytes of TLS, and PostgreSQL's clients ask for TLS in their own way first, unless told otherwise.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.e2e.conftest import Stack, eventually, found_postgresql, free_port, port_of
from tests.e2e.test_versions import versions

__all__ = ["versions"]
pytestmark = pytest.mark.e2e

# As the router of OpenShift does for routes with `termination: passthrough`.
ROUTER = """
defaults
  mode tcp
  timeout connect 5s
  timeout client 20s
  timeout server 20s
frontend router
  bind 127.0.0.1:{port}
  tcp-request inspect-delay 3s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  use_backend server if {{ req.ssl_sni -i localhost }}
backend server
  server server 127.0.0.1:{server}
"""


@contextmanager
def router(folder: Path, server: int) -> Generator[int]:
    """Run a router that passes TLS for one name through to a server; return its port."""
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(ROUTER.format(port=port, server=server))

    def listens() -> bool:
        assert process.poll() is None, "the router has ended"
        with closing(socket.socket()) as connection:
            return connection.connect_ex(("127.0.0.1", port)) == 0

    with subprocess.Popen(["haproxy", "-db", "-f", config], env={"PATH": f"{os.environ['PATH']}:/usr/sbin"}) as process:
        try:
            eventually(listens, "the router to listen")
            yield port
        finally:
            process.terminate()


def test_postgresql_passes_a_router_that_goes_by_names_as_direct_tls_alone(stack: Stack, versions: Path) -> None:
    stack.env["PATH"] = f"{versions}/17/bin:{stack.env['PATH']}"
    stack.program(
        'server = LinuxHostTopology("montreal").deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))\n'
        'pulumi.export("uri", server.uri)\n'
    )
    stack.up()
    known = conninfo_to_dict(stack.outputs()["uri"])

    def ask(port: object, client: Path, options: str = "") -> str:
        """Log in by name; return what is said."""
        conninfo = f"host=localhost port={port} dbname=orders user={known['user']} sslmode=require {options}"
        sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        argv = [str(client / "psql"), "-XAt", "-d", conninfo, "-c", sql]
        env = {**os.environ, "PGPASSWORD": str(known["password"]), "PGCONNECT_TIMEOUT": "10"}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip() or done.stderr

    before, direct = Path(found_postgresql().path), versions / "17/bin"
    with router(stack.folder, port_of(stack.outputs()["uri"])) as through:
        for client in (before, direct):
            assert ask(known["port"], client) == "t"
            assert "server closed the connection unexpectedly" in ask(through, client)
        assert ask(through, direct, "sslnegotiation=direct") == "t"
