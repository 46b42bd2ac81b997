"""Whether a PostgreSQL cluster is what is declared, and what keeps it from that. Pure: what is seen in, words out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import filterfalse
from typing import Any, NamedTuple

from kubernetes.utils.quantity import parse_quantity

from harmony_pulumi.kubernetes import objects

_JOB_LABEL = "cnpg.io/jobRole"
_VOLUME_LABEL, _DATA = "cnpg.io/pvcRole", "PG_DATA"
_POD_SPEC = "cnpg.io/podSpec"
_CONTAINER = "postgres"
_OFTEN = 3
"""How often a container has ended for that to be no accident."""
_TRIES = 2
"""How many pods that were to make an instance have failed for the same."""
_NEVER_STARTS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
}
"""Kubernetes, "Images", and kubelet: why a container waits that will not start by waiting."""
_RETRIES = "will retry"
_ADDRESS_SECONDS = 180
"""For a new load balancer of a cloud to be reached, and its name to be known."""
_BAD = {"error", "fatal"}
_GRAVE = {"FATAL", "PANIC"}
_ERROR = re.compile(r"\b(error|FATAL|PANIC): ")

SETTINGS = """
SELECT json_build_object(
  'settings', (SELECT json_object_agg(declared.key,
      json_build_object('file', file.setting, 'error', file.error, 'restart', coalesce(pending_restart, false)))
    FROM json_each_text({declared}) declared
    LEFT JOIN pg_settings s ON lower(s.name) = lower(declared.key)
    LEFT JOIN LATERAL (
      SELECT setting, error FROM pg_file_settings WHERE lower(name) = lower(declared.key) ORDER BY seqno DESC LIMIT 1
    ) file ON true),
  'hba', pg_read_file(current_setting('hba_file')),
  'loaded', pg_conf_load_time() >= (SELECT max((pg_stat_file(name)).modification) FROM unnest(ARRAY[
    current_setting('hba_file'), current_setting('data_directory') || '/custom.conf']) name))
"""
"""What a server is asked; `declared` is a JSON object. What a file has that is refused, or takes a restart, is an error
there: PostgreSQL, "pg_file_settings"."""


class Hindrance(NamedTuple):
    """What keeps a cluster from being as declared."""

    words: str
    seconds: int = 30
    """For which it may last before that is taken to be so for good: a registry is busy, a role is not there yet."""


@dataclass(frozen=True)
class Seen:
    """What is seen of a cluster. All but the words of servers is as the API has it."""

    cluster: Mapping[str, Any]
    pods: Sequence[Mapping[str, Any]] = ()
    """Of its instances, and of the jobs that make these."""
    claims: Sequence[Mapping[str, Any]] = ()
    """Of its volumes."""
    databases: Sequence[Mapping[str, Any]] = ()
    servers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """By the name of its pod, what a server answers to `SETTINGS`; `unasked` with the reason if it does not."""
    logs: Mapping[str, str] = field(default_factory=dict[str, str])
    """By the name of a pod, the end of its log."""


def serves(cluster: Mapping[str, Any]) -> bool:
    """Tell whether the instance that leads in a cluster serves, and all others run."""
    status = cluster.get("status") or {}
    return bool(status.get("currentPrimary")) and status.get("readyInstances") == cluster["spec"]["instances"]


def missing(seen: Seen) -> Iterator[str]:
    """Iterate over what is not yet as declared."""
    spec, status = seen.cluster["spec"], seen.cluster.get("status") or {}
    # Its operator takes its time to say that one is ready no more.
    ready = min(len(ready_instances(seen.pods)), status.get("readyInstances", 0))
    if ready < spec["instances"] or not serves(seen.cluster):
        yield f"{ready} of {spec['instances']} instances are ready"
    for pod in filterfalse(_is_going, filter(_is_instance, seen.pods)):
        name = pod["metadata"]["name"]
        container = _container(pod)
        if spec.get("imageName") not in {None, container["image"]}:
            yield f"{name} runs {container['image']}, and is to run {spec['imageName']}"
        if _amounts(container) != _amounts(spec):
            yield f"{name} has other resources than declared"
    for claim in volumes(seen.claims):
        has, wanted = (claim.get("status") or {}).get("capacity", {}).get("storage", "0"), spec["storage"]["size"]
        if quantity(has) < quantity(wanted):
            yield f"the volume {claim['metadata']['name']} has {has}, and is to have {wanted}"
    for database in _unmade(seen):
        yield f"the database {database['spec']['name']} is not what is declared"
    for name, said in seen.servers.items():
        yield from (f"{name}: {words}" for words in _missing_of_server(spec["postgresql"], said))


def _missing_of_server(declared: Mapping[str, Any], said: Mapping[str, Any]) -> Iterator[str]:
    if "unasked" in said:
        yield str(said["unasked"])
        return
    for name, value in (declared.get("parameters") or {}).items():
        found = said["settings"][name]
        if found["file"] != value or found["error"]:
            yield f"{name} is not yet {value!r}"
    lines = {line.strip() for line in said["hba"].splitlines()}
    if not lines.issuperset(declared.get("pg_hba") or ()):
        yield "pg_hba.conf is the one of before"
    if not said["loaded"]:
        yield "it has not loaded its files"


def hindrances(seen: Seen) -> Iterator[Hindrance]:
    """Iterate over what keeps a cluster from being as declared, and will not pass by waiting if it lasts."""
    makers = [pod for pod in seen.pods if _JOB_LABEL in pod["metadata"]["labels"]]
    failed = sorted((pod for pod in makers if _phase(pod) == "Failed"), key=_began)
    if len(failed) >= _TRIES and len(failed) == len(makers):  # None is at it, or has done it.
        name = failed[-1]["metadata"]["name"]
        yield Hindrance(f"the pod {name} failed, as {len(failed) - 1} before it: {why(seen.logs.get(name, ''))}")
    for pod in makers:
        name = pod["metadata"]["name"]
        if _phase(pod) == "Running" and (reason := waits_for(seen.logs.get(name, ""))):
            yield Hindrance(f"the pod {name} waits: {reason}", _ADDRESS_SECONDS)
    for pod in filterfalse(_is_going, seen.pods):
        yield from _of_pod(pod, seen.logs.get(pod["metadata"]["name"], ""))
    for database in _unmade(seen):
        if reason := _reason(database):
            yield Hindrance(f"the database {database['spec']['name']}: {reason}")
    refused = ((seen.cluster.get("status") or {}).get("managedRolesStatus") or {}).get("cannotReconcile") or {}
    for role, reasons in refused.items():
        yield Hindrance(f"the role {role}: {'; '.join(reasons)}")
    for server, said in seen.servers.items():
        for name, found in (said.get("settings") or {}).items():
            if found["error"] and not found["restart"]:
                yield Hindrance(f"{server}: {name} = {found['file']!r}: {found['error']}")


def _of_pod(pod: Mapping[str, Any], log: str) -> Iterator[Hindrance]:
    status, name = pod["status"], pod["metadata"]["name"]
    for each in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waits = (each.get("state") or {}).get("waiting") or {}
        if waits.get("reason") in _NEVER_STARTS:
            yield Hindrance(f"the pod {name}: {': '.join(filter(None, (waits['reason'], waits.get('message'))))}")
        elif _is_ending(each):
            yield Hindrance(f"the pod {name} has ended {each['restartCount']} times: {why(log)}")


def volumes(claims: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Iterate over the volumes with data among those of a cluster."""
    for claim in claims:
        about = claim["metadata"]
        detached = (about.get("annotations") or {}).get(objects.VOLUME_STATUS) == "detached"
        if about["labels"].get(_VOLUME_LABEL) == _DATA and not detached:
            yield claim


def telling(pods: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, bool]]:
    """Iterate over the pods whose logs say what hinders, by name, and whether it is the log of the container before."""
    for pod in pods:
        if any(map(_is_ending, pod["status"].get("containerStatuses") or ())):
            yield pod["metadata"]["name"], True
        elif _JOB_LABEL in pod["metadata"]["labels"] and _phase(pod) in {"Running", "Failed"}:
            yield pod["metadata"]["name"], False


def _is_ending(container: Mapping[str, Any]) -> bool:
    """Tell whether a container, by its status, ends again and again."""
    return bool(container.get("restartCount", 0) >= _OFTEN and not container.get("ready"))


def ready_instances(pods: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the pods of a cluster whose servers can be asked, by name."""
    return [pod["metadata"]["name"] for pod in pods if _is_instance(pod) and _is_ready(pod)]


def _is_instance(pod: Mapping[str, Any]) -> bool:
    """Tell whether a pod is an instance of a cluster, and not a job that makes one."""
    labels = pod["metadata"]["labels"]
    return "cnpg.io/instanceName" in labels and _JOB_LABEL not in labels


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions") or ()}
    return conditions.get("Ready") == "True" and not _is_going(pod)


def waits_for(log: str) -> str:
    """Return what a program of CloudNativePG waits for, if that is the last that its log says; its source, say."""
    said = next(_said(reversed(log.splitlines())), {})
    return str(said.get("err") or said["msg"]) if _RETRIES in (said.get("msg") or "") else ""


def why(log: str) -> str:
    """Return why a program of CloudNativePG ended, by the end of its log: the last grave thing that it said."""
    found = ""
    for said in _said(log.splitlines()):
        record = said.get("record") or {}
        if record.get("error_severity") in _GRAVE:
            found = " ".join(filter(None, (record.get("message"), record.get("hint"))))
        elif said.get("pipe") == "stderr" or said.get("level") in _BAD:
            message = ": ".join(filter(None, (said.get("msg"), said.get("error"))))
            # Around that there are hints, and at last that what it ran has ended.
            found = message if not found or _ERROR.search(message) else found
    return found or "see its log"


def _said(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Iterate over what is said in lines of a log, as far as it is in JSON."""
    for line in lines:
        with suppress(ValueError):
            yield json.loads(line)


def _unmade(seen: Seen) -> Iterator[Mapping[str, Any]]:
    """Iterate over the databases that are not what is declared. Of a cluster that follows, its operator makes none."""
    for database in seen.databases if objects.leads(seen.cluster) else ():
        status = database.get("status") or {}
        if not (status.get("applied") and status.get("observedGeneration") == database["metadata"]["generation"]):
            yield database


def _reason(database: Mapping[str, Any]) -> str:
    """Return why a database is not what is declared, as its operator says."""
    status = database.get("status") or {}
    parts = [each for each in status.get("extensions") or () if not each.get("applied")]
    return "; ".join(
        filter(None, (status.get("message"), *(f"{each['name']}: {each.get('message')}" for each in parts)))
    )


def _container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the container of a server, as its operator wanted it: others may have had a say since (a LimitRange)."""
    wanted = (pod["metadata"].get("annotations") or {}).get(_POD_SPEC)
    spec = json.loads(wanted) if wanted else pod["spec"]
    return next(each for each in spec["containers"] if each["name"] == _CONTAINER)


def quantity(text: str) -> Decimal:
    """Return what Kubernetes has written: "Quantity"."""
    parse: Any = parse_quantity  # It has no types.
    return Decimal(parse(text))


def _amounts(thing: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Return the resources of a cluster or container, as numbers: the same one is written in more than one way."""
    declared = thing.get("resources") or {}
    return {
        (kind, name): quantity(amount)
        for kind in ("requests", "limits")
        for name, amount in (declared.get(kind) or {}).items()
    }


def _phase(pod: Mapping[str, Any]) -> str:
    return str(pod["status"].get("phase"))


def _is_going(pod: Mapping[str, Any]) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _began(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"].get("creationTimestamp"))
