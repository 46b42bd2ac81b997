"""pg_auto_failover, from the distribution, with its monitor and its defaults."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmarks import common
from benchmarks.pairs.base import install, wait_for
from benchmarks.pairs.by_hand import BarePair

_HBA = """
local all postgres peer map=bare
hostssl all client,postgres all scram-sha-256
local all all trust
hostssl all all 127.0.0.1/32 trust
hostssl all all ::1/128 trust
hostssl replication all 127.0.0.1/32 trust
hostssl replication all ::1/128 trust
"""


class PgAutoFailover(BarePair):
    """A monitor and two keepers; the first takes over a bare server, the second copies it."""

    name = "pg_auto_failover"
    is_automatic = True
    how = (
        "defaults, among them commits that wait for the standby; `pg_autoctl perform switchover`; its own connections "
        "use TLS and trust"
    )

    @classmethod
    def lacking(cls) -> str:
        there = {
            "pg_autoctl": bool(shutil.which("pg_autoctl")),
            "the extension pgautofailover": Path("/usr/share/postgresql/15/extension/pgautofailover.control").exists(),
        }
        return install("apt-get install pg-auto-failover-cli postgresql-15-auto-failover", programs=there)

    def version(self) -> str:
        return self.run("pg_autoctl", "--version").partition("\n")[0]

    def start(self) -> None:
        super().start()
        self.stop_servers()
        self.run("rm", "-r", str(self.data(self.follower)))
        # One folder for both sockets: the second server copies the first one's configuration.
        self.write(self.data(self.leader) / "pg_hba.conf", _HBA)
        self._start_monitor()
        for member in (self.leader, self.follower):
            self._control(
                "create", "postgres", *self._tls(member), "--pgdata", str(self.data(member)),
                "--pghost", str(self.socket(member)), "--pgport", str(self.ports[member]), "--hostname", "localhost",
                "--listen", "localhost", "--name", member, "--monitor", self._monitor_uri, "--skip-pg-hba",
            )  # fmt: skip
            self.rejoin(member)
            wait_for(f"{self.name}: the leader", lambda: self.leads(self.leader), deadline=60)
        wait_for(f"{self.name}: both settled", self._is_settled, deadline=120, interval=0.5)

    def switch_over(self) -> None:
        new = self.follower
        wait_for(f"{self.name}: both settled", self._is_settled, deadline=120, interval=0.5)
        self._control("perform", "switchover", "--monitor", self._monitor_uri, "--group", "0")
        self.leader = new

    def fail_over(self) -> None:
        new = self.follower
        wait_for(f"{self.name}: a new leader", lambda: self.leads(new), deadline=120)
        self.leader = new

    def rejoin(self, member: str) -> None:
        self.launch(member, "pg_autoctl", "run", "--pgdata", str(self.data(member)))

    def environment(self) -> dict[str, str]:
        home = self.folder / "home"
        places = {"XDG_DATA_HOME": "share", "XDG_CONFIG_HOME": "config", "XDG_RUNTIME_DIR": "run"}
        return {**super().environment(), **{name: str(home / place) for name, place in places.items()}}

    def _start_monitor(self) -> None:
        (port,) = common.free_ports(1)
        self._monitor_uri = f"postgres://autoctl_node@localhost:{port}/pg_auto_failover?sslmode=verify-full&sslrootcert={self.authority}"
        data = str(self.folder / "monitor")
        self.run("mkdir", "-p", self.environment()["XDG_RUNTIME_DIR"])
        create = ["pg_autoctl", "create", "monitor", *self._tls(self.leader), "--pgdata", data, "--pgport", str(port)]
        create += ["--hostname", "localhost", "--auth", "trust"]
        if os.geteuid() == 0:  # It listens on all addresses until it is told otherwise: here, there are no others.
            script = 'ip link set lo up && exec "$@"'
            apart = ["unshare", "--net", "sh", "-c", script, "sh", *common.become_owner()]
            common.checked([*apart, *create], timeout=120, env=self.environment())
        else:
            self.run(*create)
        self._control("config", "set", "postgresql.listen_addresses", "localhost", "--pgdata", data)
        self.launch("monitor", "pg_autoctl", "run", "--pgdata", data)

    def _control(self, *arguments: str) -> str:
        return self.run("pg_autoctl", *arguments)

    def _tls(self, member: str) -> list[str]:
        files = ["--server-cert", f"{self.folder}/{member}.crt", "--server-key", f"{self.folder}/{member}.key"]
        return ["--ssl-mode", "verify-full", "--ssl-ca-file", str(self.authority), *files]

    def _is_settled(self) -> bool:
        try:
            said = self._control("show", "state", "--monitor", self._monitor_uri)
        except SystemExit:  # The monitor is about to start.
            return False
        states = {line.split("|")[0].strip(): line.split("|")[-2:] for line in said.splitlines() if "|" in line}
        wanted = {self.leader: "primary", self.follower: "secondary"}
        return all([word.strip() for word in states.get(name, [])] == [state] * 2 for name, state in wanted.items())
