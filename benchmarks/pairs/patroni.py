"""Patroni, the newest from PyPI, with etcd from the distribution, over two bare servers that it takes over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any, ClassVar

from benchmarks import common
from benchmarks.pairs.base import MEMBERS, install, wait_for
from benchmarks.pairs.by_hand import BarePair

_INSTALL = (
    "apt-get install etcd-server; /usr/bin/python3 -m venv VENV && VENV/bin/pip install 'patroni[etcd3]' "
    "'psycopg[binary]', with VENV/bin at the end of PATH and where the OS user of the servers can read it"
)
_SCOPE = "benchmark"


class Patroni(BarePair):
    """With what it has by default."""

    name = "patroni"
    is_automatic = True
    how = (
        "defaults: ttl 30, loop_wait 10, retry_timeout 10; `patronictl switchover --force`; etcd is one member on this "
        "machine, without TLS"
    )
    dynamic: ClassVar[Mapping[str, Any]] = {"ttl": 30, "loop_wait": 10, "retry_timeout": 10}

    @classmethod
    def lacking(cls) -> str:
        return install(_INSTALL, programs={name: bool(shutil.which(name)) for name in ("etcd", "patroni")})

    def version(self) -> str:
        etcd = self.run(_found("etcd"), "--version").partition("\n")[0].removeprefix("etcd Version: ")
        return f"{self.run(_found('patroni'), '--version').strip()}, etcd {etcd}"

    def start(self) -> None:
        super().start()
        self.stop_servers()
        client, peer, *apis = common.free_ports(2 + len(MEMBERS))
        self._start_etcd(client, peer)
        for member, api in zip(MEMBERS, apis, strict=True):
            self.write(self._config(member), json.dumps(self._settings(member, api, client)))  # JSON is YAML, too.
        self.rejoin(self.leader)
        wait_for(f"{self.name}: the leader", lambda: self.leads(self.leader), deadline=60)
        self.rejoin(self.follower)
        wait_for(f"{self.name}: streaming", lambda: self.is_followed(self.leader), deadline=60)
        wait_for(f"{self.name}: a candidate", self._is_ready, deadline=60, interval=0.5)

    def switch_over(self) -> None:
        old, new = self.leader, self.follower
        wait_for(f"{self.name}: a candidate", self._is_ready, deadline=60, interval=0.5)
        self._control("switchover", _SCOPE, "--leader", old, "--candidate", new, "--force")
        self.leader = new

    def fail_over(self) -> None:
        new = self.follower
        wait_for(f"{self.name}: a new leader", lambda: self.leads(new), deadline=120)
        self.leader = new

    def rejoin(self, member: str) -> None:
        self.launch(member, _found("patroni"), str(self._config(member)))

    def _is_ready(self) -> bool:
        """Tell whether a switchover would be accepted: the replica streams on the leader's timeline, as etcd has it."""
        found = json.loads(self._control("list", _SCOPE, "--format", "json"))
        state = {row["Member"]: (row["Role"], row["State"], row.get("TL")) for row in found}
        timeline = state.get(self.leader, ("", "", None))[2]
        return state == {
            self.leader: ("Leader", "running", timeline),
            self.follower: ("Replica", "streaming", timeline),
        }

    def _control(self, *arguments: str) -> str:
        return self.run(_found("patronictl"), "-c", str(self._config(self.follower)), *arguments)

    def _config(self, member: str) -> Any:
        return self.folder / f"{member}.json"

    def _start_etcd(self, client: int, peer: int) -> None:
        urls = {"client": f"http://127.0.0.1:{client}", "peer": f"http://127.0.0.1:{peer}"}
        options = ["--name", "etcd", "--data-dir", str(self.folder / "etcd")]
        options += ["--listen-client-urls", urls["client"], "--advertise-client-urls", urls["client"]]
        options += ["--listen-peer-urls", urls["peer"], "--initial-advertise-peer-urls", urls["peer"]]
        self.launch("etcd", _found("etcd"), *options, "--initial-cluster", f"etcd={urls['peer']}")

    def _settings(self, member: str, api: int, etcd: int) -> dict[str, Any]:
        tls = {"sslmode": "verify-full", "sslrootcert": f"{self.folder}/ca.crt"}
        certificate = {"sslcert": f"{self.folder}/client.crt", "sslkey": f"{self.folder}/client.key"}
        superuser = {"username": "postgres", "password": self.password, **tls}
        address = f"localhost:{self.ports[member]}"
        return {
            "scope": _SCOPE,
            "name": member,
            "restapi": {"listen": f"127.0.0.1:{api}", "connect_address": f"127.0.0.1:{api}"},
            "etcd3": {"host": f"127.0.0.1:{etcd}"},
            "bootstrap": {"dcs": {**self.dynamic, "postgresql": {"use_pg_rewind": True, "use_slots": True}}},
            "postgresql": {
                "listen": address,
                "connect_address": address,
                "data_dir": str(self.data(member)),
                "bin_dir": self.binaries.path,
                "pgpass": str(self.folder / f"{member}.pgpass"),
                "authentication": {
                    "superuser": superuser,
                    "rewind": superuser,
                    "replication": {"username": "replicator", **tls, **certificate},
                },
                "parameters": {"unix_socket_directories": str(self.socket(member))},
            },
        }


class PatroniTuned(Patroni):
    """As quick as its documentation lets it be."""

    name = "patroni_tuned"
    how = "as patroni, with ttl 20, loop_wait 1, retry_timeout 3"
    dynamic: ClassVar[Mapping[str, Any]] = {"ttl": 20, "loop_wait": 1, "retry_timeout": 3}


def _found(program: str) -> str:
    path = shutil.which(program)
    assert path is not None, "as `lacking` has told"
    return path
