"""RedisHostTopology: this machine, running Redis or Valkey."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from acme_harmony.key_value import KeyValue, KeyValueConfig, KeyValueStore
from harmony_pulumi import SiteError, Topology
from harmony_pulumi.orchestration.wait import wait_for
from harmony_pulumi.providers.base import Provider, clean_errors, plain, show

_FLAVOURS = ("valkey", "redis")


class RedisServerProvider(Provider):
    """Makes, changes, reads and removes one server."""

    @clean_errors
    def create(self, props: dict[str, Any]) -> CreateResult:
        """Start a server, and wait until it answers; a replica, until it has its source's data."""
        props = plain(props)
        source = props.get("source")
        folder = Path(props["folder"])
        folder.mkdir(mode=0o700, parents=True)
        port, password = _free_port(), source["password"] if source else secrets.token_urlsafe(24)
        outputs = {**props, "endpoint": {"host": "127.0.0.1", "port": port}, "password": password}
        _write_config(outputs)
        subprocess.run([_program("server"), f"{folder}/redis.conf"], check=True, timeout=30)
        wait_for(
            f"{folder}: Redis",
            lambda: _ask(outputs, "INFO", "replication"),
            lambda said: ("master_link_status:up" if source else "role:master") in said,
            deadline=30,
            advice=f"Look at {folder}/redis.log.",
        )
        return CreateResult(str(folder), outputs)

    @clean_errors
    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Change the memory in place; anything else makes another server."""
        old, new = plain(_olds), plain(_news)
        changed = [key for key in ("folder", "source", "max_memory_mb") if old.get(key) != new.get(key)]
        replaces = [key for key in changed if key != "max_memory_mb"]
        return DiffResult(changes=bool(changed), replaces=replaces, delete_before_replace=True)

    @clean_errors
    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Change how much memory it may take."""
        outputs = {**plain(_olds), **plain(_news)}
        _write_config(outputs)
        _ask(outputs, "CONFIG", "SET", "maxmemory", f"{outputs['max_memory_mb']}mb")
        return UpdateResult(outputs)

    @clean_errors
    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """See whether it answers; a folder that is gone is a server that is gone."""
        state = plain(props)
        if not Path(state["folder"]).exists():
            return ReadResult("", {})
        if _ask(state, "PING") != "PONG":
            show(f"warning: {state['folder']}: Redis does not answer")
        return ReadResult(id_, state)

    @clean_errors
    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Stop the server, and remove its data."""
        state = plain(_props)
        _ask(state, "SHUTDOWN", "NOSAVE")
        wait_for(
            "Redis to stop",
            Path(f"{state['folder']}/redis.pid").exists,
            lambda running: not running,
            deadline=30,
            advice=f"Look at {state['folder']}/redis.log.",
        )
        shutil.rmtree(state["folder"], ignore_errors=True)


def _write_config(props: Mapping[str, Any]) -> None:
    """Write the server's configuration, which holds its password, for nobody else to read."""
    lines = {
        "bind": "127.0.0.1",
        "port": props["endpoint"]["port"],
        "dir": props["folder"],
        "daemonize": "yes",
        "pidfile": f"{props['folder']}/redis.pid",
        "logfile": f"{props['folder']}/redis.log",
        "appendonly": "yes",
        "repl-diskless-sync-delay": 0,  # There is no other replica to wait for.
        "maxmemory": f"{props['max_memory_mb']}mb",
        "requirepass": props["password"],
        "masterauth": props["password"],
    }
    if source := props.get("source"):
        lines["replicaof"] = f"{source['endpoint']['host']} {source['endpoint']['port']}"
    path = Path(f"{props['folder']}/redis.conf")
    path.touch(mode=0o600)
    path.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))


def _ask(props: Mapping[str, Any], *command: str) -> str:
    """Send a command and return the answer, or what the client says of its failure."""
    endpoint = props["endpoint"]
    argv = [_program("cli"), "-h", endpoint["host"], "-p", str(endpoint["port"]), *command]
    environment = {**os.environ, "REDISCLI_AUTH": props["password"]}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=10, check=False)
    return (done.stdout or done.stderr).strip()


def _program(kind: str) -> str:
    for flavour in _FLAVOURS:
        if path := shutil.which(f"{flavour}-{kind}"):
            return path
    msg = (
        f"neither {' nor '.join(f'{flavour}-{kind}' for flavour in _FLAVOURS)} is on PATH; apt-get install redis-server"
    )
    raise SiteError(msg)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class RedisServer(Resource, module="acme", name="RedisServer"):
    """One server."""

    endpoint: pulumi.Output[Any]
    password: pulumi.Output[str]

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions) -> None:
        """Declare the server."""
        secret = pulumi.ResourceOptions(additional_secret_outputs=["password"])
        outputs = {"endpoint": None, "password": None}
        super().__init__(RedisServerProvider(), name, {**outputs, **props}, pulumi.ResourceOptions.merge(secret, opts))


class RedisKeyValue(KeyValue):
    """Provides KeyValue on this machine, to any topology that inherits it."""

    name: str

    def deploy_key_value(
        self, name: str, config: KeyValueConfig, *, source: KeyValueStore | None = None
    ) -> KeyValueStore:
        """Deploy a server in a folder of its own."""
        server = RedisServer(
            f"{self.name}-{name}-key-value",
            {
                "folder": f"{config.directory}/{self.name}-{name}",
                "max_memory_mb": config.max_memory_mb,
                "source": source and {"endpoint": source.endpoint, "password": pulumi.Output.secret(source.password)},
            },
            pulumi.ResourceOptions(
                parent=cast("pulumi.Resource", self), depends_on=[source.resource] if source else []
            ),
        )
        return KeyValueStore(name, server.endpoint, server.password, server)


class RedisHostTopology(Topology, RedisKeyValue):
    """This machine, running Redis."""
