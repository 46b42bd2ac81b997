"""repmgr, from the distribution: commands only, without its daemon."""

from __future__ import annotations

import shutil

from benchmarks.pairs.base import MEMBERS, install
from benchmarks.pairs.by_hand import BarePair

_SSH = """#!/bin/sh
# What repmgr asks of ssh: options, a host, a command.
while [ "${1#-}" != "$1" ]; do
  if [ "$1" = -o ]; then shift; fi
  shift
done
shift
exec sh -c "$*"
"""


class Repmgr(BarePair):
    """Two bare servers that are registered with it."""

    name = "repmgr"
    how = (
        "defaults, without repmgrd; `repmgr standby switchover`, `repmgr standby promote`, `repmgr node rejoin "
        "--force-rewind`; in place of ssh, which it needs, a shell on this machine, which is quicker"
    )

    @classmethod
    def lacking(cls) -> str:
        return install("apt-get install postgresql-15-repmgr", programs={"repmgr": bool(shutil.which("repmgr"))})

    def version(self) -> str:
        return self.run("repmgr", "--version").strip()

    def start(self) -> None:
        super().start()
        self.run("mkdir", str(self.folder / "bin"))
        ssh = self.folder / "bin" / "ssh"
        self.write(ssh, _SSH)
        ssh.chmod(0o700)
        self.sql("ALTER ROLE replicator SUPERUSER")
        self.sql("CREATE DATABASE repmgr OWNER replicator")
        for member in MEMBERS:
            hba = self.data(member) / "pg_hba.conf"
            self.write(hba, f"hostssl all,replication replicator all cert\n{hba.read_text()}")
            self.sql("SELECT pg_reload_conf()", member)
            self.write(self.folder / f"{member}.conf", self._config(member))
        self._repmgr(self.leader, "primary", "register")
        self._repmgr(self.follower, "standby", "register")

    def switch_over(self) -> None:
        self._repmgr(self.follower, "standby", "switchover")
        self.leader = self.follower

    def fail_over(self) -> None:
        self._repmgr(self.follower, "standby", "promote")
        self.leader = self.follower

    def rejoin(self, member: str) -> None:
        self.sql("CHECKPOINT")  # pg_rewind goes by the timeline of the last one, and repmgr does not see to that.
        files = "--config-files=postgresql.conf,postgresql.auto.conf,pg_hba.conf"
        self._repmgr(member, "node", "rejoin", "-d", self._conninfo(self.leader), "--force-rewind", files)

    def environment(self) -> dict[str, str]:
        inherited = super().environment()
        return {**inherited, "PATH": f"{self.folder}/bin:{inherited['PATH']}"}

    def _repmgr(self, member: str, *command: str) -> None:
        self.run("repmgr", "-f", str(self.folder / f"{member}.conf"), *command, timeout=180)

    def _conninfo(self, member: str) -> str:
        return f"{self.replication_conninfo(member)} dbname=repmgr"

    def _config(self, member: str) -> str:
        settings = {
            "node_id": str(1 + MEMBERS.index(member)),
            "node_name": member,
            "conninfo": self._conninfo(member),
            "data_directory": str(self.data(member)),
            "pg_bindir": self.binaries.path,
            "use_replication_slots": "true",
            "pg_ctl_options": f"-l {self.folder}/{member}/log",
        }
        return "".join(f"{name}='{value}'\n" for name, value in settings.items())
