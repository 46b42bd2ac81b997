"""Whether a cluster is what is declared, and what keeps it from that, by what its API and its servers say."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import trial
from harmony_pulumi.kubernetes import made, objects, settled, waiting
from harmony_pulumi.kubernetes.pods import PodInstance
from tests.kubernetes.kept import Api

IMAGE = "registry.example/postgresql:16.4"
HBA = "hostssl all all 192.0.2.0/24 scram-sha-256"
CLUSTER: dict[str, Any] = {
    "metadata": {"name": "east-orders"},
    "spec": {
        "instances": 1,
        "imageName": IMAGE,
        "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}},
        "storage": {"size": "2Gi"},
        "postgresql": {"parameters": {"work_mem": "8MB"}, "pg_hba": [HBA]},
    },
    "status": {"currentPrimary": "east-orders-1", "readyInstances": 1},
}
CONTAINER = {"name": "postgres", "image": IMAGE, "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}
POD: dict[str, Any] = {
    "metadata": {"name": "east-orders-1", "labels": {"cnpg.io/instanceName": "east-orders-1"}},
    "spec": {"containers": [CONTAINER]},
    "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
}
CLAIM: dict[str, Any] = {
    "metadata": {"name": "east-orders-1", "labels": {"cnpg.io/pvcRole": "PG_DATA"}},
    "spec": {"resources": {"requests": {"storage": "2Gi"}}},
    "status": {"capacity": {"storage": "2048Mi"}},
}
DATABASE: dict[str, Any] = {
    "metadata": {"name": "east-orders-stock", "generation": 2, "annotations": {objects.OWNER: "o"}},
    "spec": {"name": "stock", "cluster": {"name": "east-orders"}},
    "status": {"applied": True, "observedGeneration": 2},
}
PENDING = "setting could not be applied"
SETTING = {"file": "8MB", "error": None, "restart": False}
SAID = {"settings": {"work_mem": SETTING}, "hba": f"# ours\n{HBA}\n", "loaded": True}
SEEN = settled.Seen(CLUSTER, [POD], [CLAIM], [DATABASE], {"east-orders-1": SAID})


def changed(thing: dict[str, Any], *path: str, to: Any) -> dict[str, Any]:
    """Return an object with another value somewhere."""
    first, *rest = path
    return {**thing, first: changed(thing.get(first, {}), *rest, to=to) if rest else to}


def job(number: int, phase: str) -> dict[str, Any]:
    """Return a pod that was to copy an instance."""
    about = {"name": f"east-orders-1-pgbasebackup-{number}", "creationTimestamp": f"2026-01-01T00:00:0{number}Z"}
    labels = {"cnpg.io/instanceName": "east-orders-1", "cnpg.io/jobRole": "pgbasebackup"}
    return {"metadata": {**about, "labels": labels}, "spec": {}, "status": {"phase": phase}}


def answering(**changes: Any) -> settled.Seen:
    return replace(SEEN, servers={"east-orders-1": {**SAID, **changes}})


def with_setting(**changes: Any) -> settled.Seen:
    return answering(settings={"work_mem": {**SETTING, **changes}})


def with_container(**status: Any) -> settled.Seen:
    return replace(SEEN, pods=[changed(POD, "status", "containerStatuses", to=[status])])


WANTED = {"containers": [{**CONTAINER, "image": "registry.example/postgresql:16.3"}]}
FOLLOWS = changed(CLUSTER, "spec", "replica", to={"self": "east-orders", "primary": "peer"})
UNMADE = changed(DATABASE, "status", to={"applied": False, "observedGeneration": 2, "message": "no such owner"})


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (SEEN, []),
        (replace(SEEN, cluster=changed(CLUSTER, "status", to={})), ["0 of 1 instances are ready"]),
        (replace(SEEN, pods=[changed(POD, "status", "conditions", to=[])]), ["0 of 1 instances are ready"]),
        (
            replace(SEEN, pods=[changed(POD, "spec", to=WANTED)]),
            [f"east-orders-1 runs registry.example/postgresql:16.3, and is to run {IMAGE}"],
        ),
        # Something else gave it other resources, or takes its image from elsewhere; its operator knows.
        (
            replace(
                SEEN,
                pods=[
                    changed(
                        changed(POD, "spec", to=WANTED),
                        *("metadata", "annotations", "cnpg.io/podSpec"),
                        to=json.dumps(POD["spec"]),
                    )
                ],
            ),
            [],
        ),
        (
            replace(SEEN, cluster=changed(CLUSTER, "spec", "resources", to={"limits": {"cpu": "1"}})),
            ["east-orders-1 has other resources than declared"],
        ),
        (
            replace(SEEN, cluster=changed(CLUSTER, "spec", "storage", to={"size": "3Gi"})),
            ["the volume east-orders-1 has 2048Mi, and is to have 3Gi"],
        ),
        (
            replace(
                SEEN,
                cluster=changed(CLUSTER, "spec", "storage", to={"size": "3Gi"}),
                claims=[changed(CLAIM, "metadata", "annotations", to={objects.VOLUME_STATUS: "detached"})],
            ),
            [],
        ),
        (replace(SEEN, databases=[UNMADE]), ["the database stock is not what is declared"]),
        (
            replace(SEEN, databases=[changed(DATABASE, "metadata", "generation", to=3)]),
            ["the database stock is not what is declared"],
        ),
        (replace(SEEN, cluster=FOLLOWS, databases=[UNMADE]), []),
        (with_setting(file="4MB"), ["east-orders-1: work_mem is not yet '8MB'"]),
        (
            with_setting(error="setting could not be applied", restart=True),
            ["east-orders-1: work_mem is not yet '8MB'"],
        ),
        (answering(hba="host all all all reject\n"), ["east-orders-1: pg_hba.conf is the one of before"]),
        (answering(loaded=False), ["east-orders-1: it has not loaded its files"]),
        (replace(SEEN, servers={"east-orders-1": {"unasked": "no answer"}}), ["east-orders-1: no answer"]),
    ],
)
def test_what_is_not_yet_as_declared_is_said(seen: settled.Seen, expected: list[str]) -> None:
    assert list(settled.missing(seen)) == expected


ENDED = {"name": "postgres", "ready": False, "restartCount": 3}
RETRIES = json.dumps({"level": "info", "msg": "DB not available, will retry", "err": "no route to host"})
LOG = "\n".join(
    json.dumps(line)
    for line in (
        {"level": "info", "msg": "record", "record": {"error_severity": "LOG", "message": "starting"}},
        {
            "level": "info",
            "msg": "record",
            "record": {"error_severity": "FATAL", "message": "could not map memory", "hint": "Have less."},
        },
        {"level": "error", "msg": "PostgreSQL process exited with errors", "error": "exit status 1"},
    )
)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (SEEN, []),
        (replace(SEEN, pods=[job(1, "Failed")]), []),
        (replace(SEEN, pods=[job(1, "Failed"), job(2, "Failed"), job(3, "Running")]), []),
        (
            replace(SEEN, pods=[job(1, "Running")], logs={"east-orders-1-pgbasebackup-1": RETRIES}),
            ["the pod east-orders-1-pgbasebackup-1 waits: no route to host"],
        ),
        (replace(SEEN, pods=[job(1, "Running")], logs={"east-orders-1-pgbasebackup-1": f"{RETRIES}\n{LOG}"}), []),
        (
            replace(
                SEEN,
                pods=[job(2, "Failed"), job(1, "Failed")],
                logs={"east-orders-1-pgbasebackup-2": json.dumps({"pipe": "stderr", "msg": "no route to host"})},
            ),
            ["the pod east-orders-1-pgbasebackup-2 failed, as 1 before it: no route to host"],
        ),
        (
            with_container(state={"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}),
            ["the pod east-orders-1: ImagePullBackOff: no such tag"],
        ),
        (with_container(state={"waiting": {"reason": "ContainerCreating"}}), []),
        (with_container(**{**ENDED, "restartCount": 2}), []),
        (with_container(**{**ENDED, "ready": True}), []),
        (
            replace(with_container(**ENDED), logs={"east-orders-1": LOG}),
            ["the pod east-orders-1 has ended 3 times: could not map memory Have less."],
        ),
        (replace(SEEN, databases=[UNMADE]), ["the database stock: no such owner"]),
        (
            replace(
                SEEN,
                databases=[
                    changed(
                        UNMADE, "status", "extensions", to=[{"name": "nix", "applied": False, "message": "not there"}]
                    )
                ],
            ),
            ["the database stock: no such owner; nix: not there"],
        ),
        (replace(SEEN, cluster=FOLLOWS, databases=[UNMADE]), []),
        (
            replace(
                SEEN,
                cluster=changed(
                    CLUSTER, "status", "managedRolesStatus", to={"cannotReconcile": {"app": ["is reserved"]}}
                ),
            ),
            ["the role app: is reserved"],
        ),
        (with_setting(error=PENDING, restart=True), []),
        (
            with_setting(error=PENDING),
            ["east-orders-1: work_mem = '8MB': setting could not be applied"],
        ),
    ],
)
def test_what_will_not_pass_by_waiting_is_said(seen: settled.Seen, expected: list[str]) -> None:
    assert [each.words for each in settled.hindrances(seen)] == expected


def test_a_log_says_why_a_program_ended() -> None:
    assert settled.why(LOG) == "could not map memory Have less."
    assert settled.why("no JSON") == "see its log"
    stderr = json.dumps({"level": "info", "pipe": "stderr", "msg": "pg_basebackup: error: connection refused"})
    ended = json.dumps({"level": "error", "msg": "Error while bootstrapping", "error": "exit status 1"})
    hint = json.dumps({"level": "info", "pipe": "stderr", "msg": "HINT:  Look at it."})
    assert settled.why(f"{stderr}\n{hint}\n{ended}") == "pg_basebackup: error: connection refused"


HANDLE = {"name": "east", "namespace": "shop", "cluster": "east-orders", "owner": "o"}
PATH = objects.path_of("shop", "east-orders")


def listed(*pods: dict[str, Any], databases: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return what an API server has of a cluster."""
    return {
        PATH: CLUSTER,
        objects.listed("shop", "pods", "east-orders"): {"items": list(pods)},
        objects.listed("shop", "persistentvolumeclaims", "east-orders"): {"items": [CLAIM]},
        objects.databases_in("shop"): {"items": databases or []},
    }


def test_waiting_ends_early_where_it_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(1, 20)
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    waits = changed(POD, "status", "containerStatuses", to=[{"state": {"waiting": {"reason": "InvalidImageName"}}}])
    api, said = Api(changed(listed(waits), PATH, "status", to={})), list[str]()
    with pytest.raises(
        SiteError, match=r"does not become what is declared: the pod east-orders-1: InvalidImageName\. "
    ):
        waiting.Watch(HANDLE, api, said.append).until_settled(60)
    assert said == ["east: shop/east-orders: the pod east-orders-1: InvalidImageName"], "said once"


def test_waiting_ends_once_all_servers_have_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{**SAID, "loaded": False}, SiteError("it restarts"), SAID])
    asked: list[str] = []

    def look(server: PodInstance, query: str, **_: Any) -> Any:
        asked.append(query)
        if isinstance(answer := next(answers), SiteError):
            raise answer
        return answer

    monkeypatch.setattr(PodInstance, "look", look)
    going = changed(changed(POD, "metadata", "deletionTimestamp", to="now"), "metadata", "name", to="east-orders-2")
    others = [changed(UNMADE, "spec", "cluster", "name", to="west-orders"), changed(UNMADE, "metadata", to={})]
    api = Api(listed(POD, going, databases=[DATABASE, *others]))
    found = waiting.Watch(HANDLE, api, pytest.fail).until_settled(60)
    assert found == CLUSTER
    assert len(asked) == 3
    assert '"work_mem"' in asked[0]


@pytest.mark.parametrize(
    ("size", "grows", "expected"),
    [
        ("2048Mi", True, []),
        ("1Gi", True, [("storage", "none can be made smaller")]),
        ("4Gi", True, []),
        ("4Gi", False, [("storage", "cannot be raised from 2Gi to 4Gi: forbidden")]),
    ],
)
def test_what_a_cluster_would_not_take_is_found_before_it_is_changed(
    size: str, grows: bool, expected: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/api/v1/namespaces/shop/persistentvolumeclaims/east-orders-1"
    api = Api({**listed(POD), path: CLAIM})
    monkeypatch.setattr(made, "api_of", lambda _: api)
    tried: list[dict[str, str]] = []

    def refused(_connection: object, _program: str, _user: str, settings: dict[str, str]) -> dict[str, str]:
        tried.append(settings)
        return dict.fromkeys(settings, "no such thing")

    def cannot_grow(*_: Any, **__: Any) -> None:
        raise SiteError("forbidden")

    monkeypatch.setattr(trial, "refused", refused)
    if not grows:
        monkeypatch.setattr(api, "patch", cannot_grow)
    props = {**HANDLE, "parameters": {"work_mem": "8MB", "jit": "maybe"}, "storage": {"size": size}}
    first, *others = made.refused(props, CLUSTER)
    assert first == ("settings.jit", "is refused by PostgreSQL: no such thing")
    assert tried == [{"jit": "maybe"}], "what it has already is not tried again"
    found = [(where, message[-len(end) :]) for (where, message), (_, end) in zip(others, expected, strict=True)]
    assert found == expected
    assert api.kept[path] == CLAIM
    asleep = changed(CLUSTER, "metadata", "annotations", to={objects.HIBERNATION: "on"})
    assert not [*made.refused(props, None), *made.refused(props, asleep)]
