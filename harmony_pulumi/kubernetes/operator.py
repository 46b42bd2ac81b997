"""CloudNativePG in a Kubernetes cluster: found, or installed from the manifest of its release."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import urllib3
import yaml

from harmony_pulumi.errors import SiteError
from harmony_pulumi.kubernetes import objects
from harmony_pulumi.kubernetes.api import Api, Paths
from harmony_pulumi.orchestration.wait import wait_for

OLDEST = (1, 26)
"""The first release whose databases have extensions: CloudNativePG, "Release notes"."""
NEWEST = (1, 27)
"""The last release that the tests run with: parts of what is relied upon are internal to it."""
_DEPLOYMENT = "cnpg-controller-manager"
_KIND = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/clusters.postgresql.cnpg.io"
_READY_SECONDS = 300


def deployments(api: Api) -> list[dict[str, Any]]:
    """Return the operator's deployments, in whatever namespace."""
    return api.items("/apis/apps/v1/deployments?labelSelector=app.kubernetes.io%2Fname%3Dcloudnative-pg")


def version_of(deployment: Mapping[str, Any]) -> str:
    """Return the release that a deployment runs; empty if nothing there says it.

    Its image does, unless that is one by digest. Then what has installed it may: the Operator Lifecycle Manager of
    OpenShift (OperatorHub) by the name of its ClusterServiceVersion, `cloudnative-pg.v1.27.0`; Helm by its usual label.
    """
    [container, *_] = deployment["spec"]["template"]["spec"]["containers"]
    labels = deployment["metadata"].get("labels") or {}
    said = (
        (r":v?(\d+\.\d+\.\d+)", container["image"]),
        (r"\.v(\d+\.\d+\.\d+)", labels.get("olm.owner", "")),
        (r"^v?(\d+\.\d+\.\d+)", labels.get("app.kubernetes.io/version", "")),
    )
    return next((found[1] for pattern, text in said if (found := re.search(pattern, text))), "")


def problem(found: str) -> str | None:
    """Return why a release that is there cannot be worked with, or None."""
    if not found or _minor(found) >= OLDEST:  # Of one that nothing is said of, its API decides.
        return None
    return f"has CloudNativePG {found}; expected {_words(OLDEST)} or newer: upgrade it, then run this again"


def warning(found: str) -> str | None:
    """Return what is not known of a release that is there, or None."""
    if not found:
        return (
            f"has a CloudNativePG that does not say its release, neither by a tag of its image nor by a label of its "
            f"deployment (olm.owner, app.kubernetes.io/version); see that it is {_words(OLDEST)} or newer, and that it "
            f"is no newer than {_words(NEWEST)}, which this package was tested with"
        )
    if _minor(found) <= NEWEST:
        return None
    return (
        f"has CloudNativePG {found}, and {_words(NEWEST)} is the newest that this package was tested with: try "
        f"`harmony switchover` there and back on a pair that holds nothing before one that does gets it"
    )


def _minor(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")[:2]))


def _words(release: Sequence[int]) -> str:
    return ".".join(map(str, release))


def insist_on_none(api: Api, owner: str) -> None:
    """Insist that there is no operator, of which no deployment was found.

    Args:
        api: of the cluster.
        owner: who installs it, and may have begun to.

    Raises:
        SiteError: the cluster knows the kind that it works on, so there is one by other labels, or there was one.
    """
    kind = api.get(_KIND)
    ours = kind is not None and (kind["metadata"].get("annotations") or {}).get(objects.OWNER) == owner
    if api.get(f"/apis/{objects.API_VERSION}") is not None and not ours:
        msg = (
            f"{api.name}: {objects.API_VERSION} is known there, and no deployment with the label "
            f"app.kubernetes.io/name=cloudnative-pg is; expected both, or neither: give the operator's deployment that "
            f"label, or, where it is gone, install it again"
        )
        raise SiteError(msg)


def read_manifest(source: str) -> list[dict[str, Any]]:
    """Return the objects of a manifest, which is a file, or an address that is fetched.

    Raises:
        SiteError: it cannot be read, or is none of the operator's.
    """
    advice = "give the manifest of a release of CloudNativePG, as a file or an address, with `operator_manifest`"
    try:
        if re.match(r"https?://", source):
            answer = urllib3.PoolManager().request("GET", source, timeout=urllib3.Timeout(connect=10, read=60))
            if answer.status != 200:
                raise SiteError(f"{source} answered {answer.status}; {advice}")
            text = answer.data.decode()
        else:
            text = Path(source).read_text()
        found: list[dict[str, Any]] = [document for document in yaml.safe_load_all(text) if document]
    except (OSError, urllib3.exceptions.HTTPError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SiteError(f"{source} cannot be read: {error}; {advice}") from error
    if not any(thing.get("metadata", {}).get("name") == _DEPLOYMENT for thing in found):
        raise SiteError(f"{source} has no deployment {_DEPLOYMENT}; {advice}")
    return found


def install(api: Api, manifest: list[dict[str, Any]], owner: str, show: Callable[[str], None]) -> None:
    """Install the operator, and wait until it is at work.

    Raises:
        SiteError: it does not come to be, in time.
    """
    paths = Paths(api)
    # Namespaces and kinds first: the rest is in them, and of them.
    order = {"Namespace": 0, "CustomResourceDefinition": 1}
    for thing in sorted(manifest, key=lambda each: order.get(each["kind"], 2)):
        about = thing["metadata"]
        owned = {**thing, "metadata": {**about, "annotations": {**about.get("annotations", {}), objects.OWNER: owner}}}
        api.apply(paths.of(owned), owned, manager=objects.MANAGER)
    show(f"{api.name}: CloudNativePG is installed")
    wait_until_ready(api)


def wait_until_ready(api: Api) -> None:
    """Wait until the operator is at work.

    Raises:
        SiteError: it is not, in time.
    """

    def ready() -> list[str]:
        return [
            f"{each['metadata']['namespace']}/{each['metadata']['name']}"
            for each in deployments(api)
            if (each.get("status") or {}).get("readyReplicas")
        ]

    wait_for(
        f"{api.name}: the operator CloudNativePG",
        ready,
        bool,
        deadline=_READY_SECONDS,
        words=lambda _: "no deployment of it is ready",
        advice="See its pods: `kubectl get pods --all-namespaces -l app.kubernetes.io/name=cloudnative-pg`.",
    )
