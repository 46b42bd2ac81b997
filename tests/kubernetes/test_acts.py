"""What a site does to a cluster, in which order, and what it refuses before it has done anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from harmony_pulumi.errors import SiteError
from harmony_pulumi.kubernetes import lease, objects, site
from harmony_pulumi.kubernetes.keeping import Keeping
from harmony_pulumi.kubernetes.pods import Pod, PodInstance
from tests.kubernetes.kept import Api, Lossy

HANDLE = {"name": "montreal", "namespace": "shop", "cluster": "montreal-orders", "owner": "o"}
PATH = objects.path_of("shop", "montreal-orders")
LED = {"instances": 1}


class Acting(Api):
    """Keeps one cluster, and what is done to it and to its server, in order."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        about = {"name": "montreal-orders", "uid": "a-b-c", "annotations": {}, "resourceVersion": 0}
        status = {"currentPrimary": "montreal-orders-1", "readyInstances": spec["instances"]}
        super().__init__({PATH: {"metadata": about, "spec": dict(spec), "status": status}})
        self.done: list[str] = []

    def _answered(self, method: str, path: str, body: Mapping[str, Any] | None = None, **how: Any) -> bytes:
        said = super()._answered(method, path, body, **how)
        if method == "PATCH" and body and "dryRun" not in how["query"]:
            applied = "apply" in how["content"]
            self.done.append(
                f"applied {body['spec']['replica']['primary']}" if applied else f"patched {json.dumps(body)}"
            )
        return said


class Server(PodInstance):
    """One that has ended, or answers that these follow."""

    replicas = ()

    def left_at_its_end(self) -> Mapping[str, str]:
        return {"Database cluster state": "shut down"}

    def write(self, texts: Mapping[str, str]) -> bool:
        self.connection.api.done.append(f"wrote {' '.join(texts)}")  # type: ignore[attr-defined]
        return True

    def remove(self, path: str) -> None:
        self.connection.api.done.append(f"removed {path}")  # type: ignore[attr-defined]

    def look(self, query: str, *, port: int, database: str = "postgres", socket: str | None = None) -> Any:
        return {"seen": {"replicas": list(self.replicas)}}


def cluster(api: Acting, monkeypatch: pytest.MonkeyPatch) -> site.ClusterPostgreSQL:
    monkeypatch.setattr(site, "instance", lambda *_: Server(Pod(api, "shop", "montreal-orders-1")))  # type: ignore[arg-type]
    made = site.ClusterPostgreSQL(HANDLE)
    made.__dict__["api"] = api
    return made


def test_what_is_fenced_is_left_a_standby_by_its_files_before_it_is_declared_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Acting(LED)
    cluster(api, monkeypatch).fence()
    fenced, wrote, applied = api.done
    assert "fencedInstances" in fenced
    assert wrote == "wrote /var/lib/postgresql/data/pgdata/standby.signal"
    assert applied == f"applied {objects.PEER}"
    known = {each["name"] for each in api.kept[PATH]["spec"]["externalClusters"]}
    assert known == {"montreal-orders", objects.PEER}
    api.done.clear()
    cluster(api, monkeypatch).fence()
    assert not [each for each in api.done if each.startswith("applied")], "it is declared to follow"


def test_what_is_a_primary_by_its_files_for_a_while_is_not_declared_to_follow_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its operator would demote it in its own way, and lift the fence."""
    api = Acting(LED)
    made = cluster(api, monkeypatch)
    made.fence()
    api.done.clear()
    made.retire()
    assert api.done[1:] == [
        "applied montreal-orders",
        "wrote /var/lib/postgresql/data/pgdata/standby.signal",
    ]
    made.fence()
    api.done.clear()
    monkeypatch.setattr(site.ClusterPostgreSQL, "_once_it_answers", lambda self: (self._serving(), {}))
    monkeypatch.setattr(site.ClusterPostgreSQL, "_to_lead", lambda *_: None)
    monkeypatch.setattr(site.ClusterPostgreSQL, "_until", lambda *_, **__: None)
    made.reinstate()
    declared, removed, unfenced = api.done
    assert declared == "applied montreal-orders"
    assert removed.startswith("removed ")
    assert "fencedInstances" in unfenced


def test_nothing_is_done_by_who_lost_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Acting(LED)
    made = cluster(api, monkeypatch)
    made._held.append(lease.Held("montreal: shop/montreal-orders-operation", taken=True))  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(SiteError, match="somebody else may be at work"):
        made.fence()
    assert not api.done


class Busy(Acting):
    """One that others change right before it would be changed."""

    times = 1
    held: lease.Held | None = None

    def patch(self, path: str, body: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        if self.times:
            self.times -= 1
            self.kept[path]["metadata"]["resourceVersion"] += 1
            if self.held:
                self.held.taken = True
        return super().patch(path, body, dry_run=dry_run)


def test_a_cluster_that_its_operator_changes_meanwhile_is_changed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Busy(LED)
    cluster(api, monkeypatch).fence()
    assert [each.partition(" ")[0] for each in api.done] == ["patched", "wrote", "applied"]
    api.times = 99
    with pytest.raises(SiteError, match="is changed by others all the while"):
        cluster(api, monkeypatch).fence()


def test_what_comes_late_changes_nothing_once_somebody_else_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Busy(LED)
    made = cluster(api, monkeypatch)
    api.held = lease.Held("montreal: shop/montreal-orders-operation")
    made._held.append(api.held)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(SiteError, match="somebody else may be at work"):
        made.fence()
    assert not api.done


@pytest.mark.parametrize(
    ("states", "refused"), [(("streaming", "streaming"), False), (("streaming", "startup"), True), ((), True)]
)
def test_a_local_replica_that_does_not_stream_is_not_counted_on(
    states: tuple[str, ...], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("montreal-orders-2", "montreal-orders-3")
    replicas = [{"name": name, "state": state} for name, state in zip(names, states, strict=False)]
    monkeypatch.setattr(Server, "replicas", [*replicas, {"name": "toronto", "state": "streaming"}])
    surveyed: list[object] = []
    monkeypatch.setattr(site, "survey", lambda *args: surveyed.append(args))
    made = cluster(Acting({"instances": 3}), monkeypatch)
    if refused:
        with pytest.raises(SiteError, match=r"of 2 local replicas of shop/montreal-orders stream from montreal-order"):
            made.survey()
    else:
        made.survey()
    assert bool(surveyed) is not refused


def test_how_far_a_copy_is_pushes_no_event_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = cluster(Acting(LED), monkeypatch)
    lines = [json.dumps({"state": state}) + "\n" for state in ("started", "progress", "progress", "done")]
    for line in lines:
        made.record(line)
    assert made.events() == lines[0] + lines[-1]


def test_an_event_whose_writing_was_not_answered_is_there_once() -> None:
    kept = Keeping(Lossy(), "shop", "montreal-orders", "o", "events")  # type: ignore[arg-type]
    for line in ("first\n", "second\n", "third\n"):
        kept.append("events", line)
    assert kept.read("events") == "first\nsecond\nthird\n"
