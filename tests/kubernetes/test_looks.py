"""How often a server in a pod is asked: each command there takes as long as all the queries of a look together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.commands import Commands, Completed
from harmony_pulumi.hosts.postgresql import instance
from harmony_pulumi.kubernetes import objects, site
from harmony_pulumi.kubernetes.pods import DATA, PodInstance

HANDLE = {"name": "montreal", "namespace": "shop", "cluster": "montreal-orders", "owner": "o"}
SEEN = {"role": "primary", "replicas": [{"name": "toronto"}, {"name": "montreal-orders-2"}]}


class Asked(PodInstance):
    """A server whose answers are given, the same for each query that is in one of them."""

    def look(self, query: str, *, port: int, database: str = "postgres", socket: str | None = None) -> Any:
        self.connection.queries.append(query)  # type: ignore[attr-defined]
        return {
            "seen": dict(SEEN),
            "which": ["15.18", "7"],
            "major": 14,
            "databases": ["orders"],
            "available": [],
            "limits": {},
            "logical_slots": [],
            "replay": {"paused": True, "delay": 3},
            "extensions": ["plpgsql"],
            "collations": {},
        }

    def control_data(self) -> dict[str, str]:
        return dict.fromkeys(instance._BUILD, "1")  # pyright: ignore[reportPrivateUsage]


class Stopped(PodInstance):
    """A server that does not run."""

    state = ""

    def look(self, query: str, *, port: int, database: str = "postgres", socket: str | None = None) -> Any:
        raise SiteError("no server is running")

    def control_data(self) -> dict[str, str]:
        return {
            "Database cluster state": self.state,
            "Database system identifier": "7",
            "pg_control last modified": "Sunday",
            "Latest checkpoint location": "0/28",
        }


class Disk(Commands):
    """Where nothing but the free space, and these files, are asked for."""

    name = "montreal"

    def __init__(self, files: Mapping[str, str] = {}) -> None:
        self.queries: list[str] = []
        self.files = {f"/var/lib/postgresql/data/{path}": text for path, text in files.items()}

    def conversing(self, *_: Any, **__: Any) -> Any:
        raise AssertionError

    def read_files(self, paths: Sequence[str], user: str | None = None) -> dict[str, str | None]:
        del user
        return {path: self.files.get(path) for path in paths}

    def exists(self, path: str, user: str | None = None) -> bool:
        del user
        return path == DATA

    def run(self, argv: Sequence[str], **_: Any) -> Completed:
        return Completed(0, "Avail\n4096\n", "")


class Api:
    """Where there is nothing but a cluster that runs."""

    address = "https://montreal"

    def __init__(self, **annotations: str) -> None:
        self.annotations = annotations

    def get(self, path: str) -> dict[str, Any] | None:
        there = {
            "metadata": {"annotations": self.annotations},
            "spec": {"instances": 1},
            "status": {"currentPrimary": "montreal-orders-1"},
        }
        return there if path.endswith("/clusters/montreal-orders") else None


def test_a_server_in_a_pod_is_looked_at_by_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    monkeypatch.setattr(site, "instance", lambda *_: Asked(disk))  # type: ignore[arg-type]
    cluster = site.ClusterPostgreSQL({**HANDLE, "endpoint": {"host": "h", "port": 5432}})
    cluster.__dict__["api"] = Api()
    seen = cluster.observe()
    assert (seen["state"], seen["role"], seen["version"], seen["system_identifier"]) == (
        "running",
        "primary",
        "15.18",
        "7",
    )
    assert [replica["name"] for replica in seen["replicas"]] == ["toronto"]
    assert len(disk.queries) == 1


def test_a_survey_asks_once_and_once_in_each_database() -> None:
    disk = Disk()
    found = instance.survey(Asked(disk), 5432)  # type: ignore[arg-type]
    assert (found["major"], found["replay_paused"], found["apply_delay_ms"], found["free_bytes"]) == (14, True, 3, 4096)
    assert found["extensions"] == {"orders": ["plpgsql"]}
    assert len(disk.queries) == 2


CUT_OFF = ("", False)


@pytest.mark.parametrize(
    ("state", "files", "left"),
    [
        ("shut down", {}, ("primary", True)),
        ("in production", {}, ("primary", False)),
        ("shut down", {"pgdata/standby.signal": ""}, ("standby", True)),
        ("in archive recovery", {"pgdata/standby.signal": ""}, ("standby", False)),
        # A rewind was cut off: in its middle, and before it was told that it is a standby.
        ("shut down", {"pgdata/standby.signal": "", "harmony/rewinding": "Sunday, 0/28"}, CUT_OFF),
        ("shut down", {"harmony/rewinding": "Sunday, 0/28"}, CUT_OFF),
        ("in archive recovery", {"harmony/rewinding": "Saturday, 0/28"}, CUT_OFF),
        # Somebody has started it since.
        ("in production", {"harmony/rewinding": "Saturday, 0/28"}, ("primary", False)),
    ],
)
def test_of_what_a_rewind_left_that_was_cut_off_nothing_can_be_told(
    state: str, files: dict[str, str], left: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Stopped(Disk(files))  # type: ignore[arg-type]
    object.__setattr__(stopped, "state", state)
    monkeypatch.setattr(site, "instance", lambda *_: stopped)
    cluster = site.ClusterPostgreSQL({**HANDLE, "endpoint": {"host": "h", "port": 5432}})
    cluster.__dict__["api"] = Api(**{objects.FENCED: '["*"]'})
    seen = cluster.observe()
    assert (seen["state"], seen["left_as"], seen["ended_cleanly"]) == ("stopped", *left), seen
