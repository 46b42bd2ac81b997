"""harmony_pulumi: deployed once by Pulumi, then its roles are moved by the command alone, from the sites."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.pairs.base import Pair

_COMMAND = str(Path(sys.executable).with_name("harmony"))


class Ours(Pair):
    """A pair on two hosts that are both this machine."""

    name = "ours"
    how = "deployed by Pulumi; `harmony switchover --to NAME --yes --site FILE`; `harmony failover`, `harmony rejoin`"

    @classmethod
    def lacking(cls) -> str:
        return "" if shutil.which("pulumi") else "the pulumi command is not on PATH; `scripts/demo` installs it"

    def version(self) -> str:
        return f"harmony_pulumi {importlib.metadata.version('harmony-pulumi')}"

    def start(self) -> None:
        self.folder.chmod(0o755)
        environment = {"BENCHMARK_FOLDER": str(self.folder)}
        self._project = common.Project(self.folder / "project", "benchmarks.programs.pair", environment)
        self._project.up()
        outputs = json.loads(self._project.pulumi("stack", "output", "--json", "--show-secrets"))
        self.ports = {member: int(port) for member, port in outputs["ports"].items()}
        self.authority.write_text(outputs["ca_certificate"], encoding="utf-8")
        self._site = self.folder / "site.json"
        keep_site(self._site, outputs)
        self.make_client()

    def switch_over(self) -> None:
        self._harmony("switchover", "--to", self.follower)
        self.leader = self.follower

    def fail_over(self) -> None:
        # Whatever is lost: what a writer had acknowledged and is not there, is counted afterwards.
        self._harmony("failover", "--to", self.follower, "--max-data-loss", str(2**40), "--accept-unknown-loss")
        self.leader = self.follower

    def rejoin(self, member: str) -> None:
        assert member == self.follower, "the one that does not lead is the only one that can"
        self._harmony("rejoin")

    def _harmony(self, *arguments: str) -> None:
        harmony(self._site, *arguments)


def keep_site(path: Path, outputs: Mapping[str, Any]) -> None:
    """Write the file by which the command finds a pair: it holds how its sites are reached, which is secret."""
    path.touch(mode=0o600)
    path.write_text(json.dumps({"site": outputs["site"]}), encoding="utf-8")


def harmony(site: Path, *arguments: str) -> None:
    """Run the command, which must succeed."""
    command = [_COMMAND, *arguments, "--yes", "--site", str(site)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
