"""The Kubernetes API of one cluster, by the official client: connected to once, and its errors told as a site's."""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import urlencode

import urllib3
import yaml
from kubernetes.config import ConfigException
from kubernetes.config.kube_config import new_client_from_config_dict

from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.kubernetes import login

_CONNECT_SECONDS = 5
_READ_SECONDS = 15
"""An API server gives its webhooks 10 s, by default, and answers then: Kubernetes, "Dynamic Admission Control"."""
AGAIN_SECONDS = 5
"""For which a call is tried again that the API server could not take just then; shorter than a lease is held for."""
_AGAIN_AFTER = 0.25
_NOT_NOW = (429, 502, 503, 504)
"""Of the API server that has too much to do, or of what balances to it while it begins or ends."""
_EARLY = timedelta(seconds=10)
"""By which a credential is taken for expired, so that it holds for a call."""
_AS_HARMONY = {"fieldManager": "harmony"}
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"

_WEBHOOK = "failed calling webhook"
_OPERATOR_DOWN = (
    "No change of such an object is taken while its operator does not answer: have that run (`kubectl get pods "
    "--all-namespaces` shows its pod), then run this again"
)
_NO_RIGHT = re.compile(r"User \".*\" cannot ")
"""Of what is forbidden for want of a right, and not by a quota, say: Kubernetes, "Using RBAC Authorization"."""
_RIGHTS = 'Give its login that right; "Rights" in "Clusters of k3s, OpenShift and clouds" has all that it needs'
_WHO = "It does not take the login of its kubeconfig, or not any more: give it one that it takes"


class Api:
    """One cluster's API."""

    def __init__(self, name: str, kubeconfig: str, context: str | None = None) -> None:
        """Read a kubeconfig; nothing is asked yet.

        Args:
            name: what messages call the cluster.
            kubeconfig: its text.
            context: of that, if not its current one.

        Raises:
            SiteError: the kubeconfig is none, or what it names to log in with fails.
        """
        self.name = name
        try:
            parsed = yaml.safe_load(kubeconfig)
        except yaml.YAMLError:  # Its text quotes the kubeconfig, which holds keys.
            raise self._unusable("it is no YAML") from None
        if not isinstance(parsed, dict):
            raise self._unusable("it has no keys; expected the text of one, not its path")
        self._kubeconfig, self._context = cast("dict[str, Any]", parsed), context
        self._client, self._expires = self._log_in()
        self.address = str(self._client.configuration.host)
        """The URL of the API server."""

    @property
    def client(self) -> Any:
        """The official client, which logs in anew once what it has logged in with has expired."""
        if self._expires is not None and datetime.now(UTC) > self._expires - _EARLY:
            self._client, self._expires = self._log_in()
        return self._client

    def _log_in(self) -> tuple[Any, datetime | None]:
        make: Any = new_client_from_config_dict  # It has no types.
        try:
            kubeconfig, expires = login.with_credential(self._kubeconfig, self._context)
            return make(kubeconfig, context=self._context, persist_config=False), expires
        except SiteError as error:
            raise SiteError(f"{self.name}: {error}") from None
        except (ConfigException, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise self._unusable(str(error)) from None

    def _unusable(self, what: str) -> SiteError:
        prints = "`kubectl config view --raw --minify --flatten` prints one"
        return SiteError(f"{self.name}: its kubeconfig cannot be used: {what}; {prints}")

    def get(self, path: str) -> dict[str, Any] | None:
        """Return what is at a path of the API, or None if nothing is."""
        try:
            return self._call("GET", path)
        except NotThereError:
            return None

    def items(self, path: str) -> list[dict[str, Any]]:
        """Return the objects of a collection; none if there is no such collection."""
        return list((self.get(path) or {"items": []})["items"])

    def text(self, path: str) -> str:
        """Return what is at a path that holds text: a log.

        Raises:
            NotThereError: nothing is.
        """
        return self._answered("GET", path).decode(errors="replace")

    def apply(
        self, path: str, body: Mapping[str, Any], *, manager: str, force: bool = True, dry_run: bool = False
    ) -> dict[str, Any]:
        """Have an object be as described, as far as that goes: Kubernetes, "Server-Side Apply"."""
        query = {"fieldManager": manager, "force": str(force).lower(), **({"dryRun": "All"} if dry_run else {})}
        return self._call("PATCH", path, body, content=_APPLY, query=query)

    def patch(self, path: str, body: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """Change an object: RFC 7396, "JSON Merge Patch"."""
        query = {**_AS_HARMONY, **({"dryRun": "All"} if dry_run else {})}
        return self._call("PATCH", path, body, content=_MERGE, query=query)

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object in a collection."""
        return self._call("POST", path, body, query=_AS_HARMONY)

    def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Put an object in another's place; refused if that has changed since, by its `resourceVersion`."""
        return self._call("PUT", path, body, query=_AS_HARMONY)

    def delete(self, path: str) -> None:
        """Delete an object; one that is not there is no error."""
        with suppress(NotThereError):
            self._call("DELETE", path)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **how: Any) -> dict[str, Any]:
        said = self._answered(method, path, body, **how)
        return json.loads(said) if said else {}

    def _answered(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> bytes:
        what = f"{method} {path}"
        url = f"{self.address}{path}{'?' if query else ''}{urlencode(query or {})}"
        headers = {"Content-Type": content, "Accept": "application/json, */*", **self._login()}
        answer = self._answer(method, url, headers, None if body is None else json.dumps(body).encode())
        if answer.status < 400:
            return bytes(answer.data)
        said = _said(answer.data)
        if answer.status == 404:
            raise NotThereError(f"{self.name}: {what}: {said}")
        if answer.status == 409:
            raise ConflictError(f"{self.name}: {what}: {said}")
        msg = f"{self.name}: {what}: the API server at {self.address} answered {answer.status}: {said}"
        if advice := _advice(answer.status, said):
            msg += f". {advice}"
        raise SiteError(msg)

    def _answer(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Any:
        """Return what the API server answers, tried again for some seconds where it only could not just then.

        What was changed by a try whose answer was lost may be found changed by the next: whoever creates or replaces
        has a ConflictError then.
        """
        end = time.monotonic() + AGAIN_SECONDS
        while True:
            wait = _AGAIN_AFTER
            try:
                answer = self.client.rest_client.pool_manager.request(
                    method,
                    url,
                    body=body,
                    headers=headers,
                    timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
                    retries=False,
                )
                if answer.status not in _NOT_NOW:
                    return answer
                with suppress(urllib3.exceptions.InvalidHeader):
                    wait = max(wait, urllib3.Retry().get_retry_after(answer) or 0)
                if time.monotonic() + wait > end:
                    return answer
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if not _is_cut_off(error) or time.monotonic() + wait > end:
                    msg = f"{self.name}: the API server at {self.address} does not answer: {error}"
                    raise UnreachableError(msg) from error
            time.sleep(wait)

    def _login(self) -> dict[str, str]:
        settings = self.client.configuration.auth_settings().values()
        return {s["key"]: s["value"] for s in settings if s.get("in") == "header" and s.get("value")}


class Paths:
    """Where objects are in the API, by their kind."""

    def __init__(self, api: Api) -> None:
        """Know nothing yet; each version of the API is asked once."""
        self._api = api
        self._known: dict[tuple[str, str], tuple[str, bool]] = {}

    def of(self, thing: Mapping[str, Any]) -> str:
        """Return the path of an object.

        Raises:
            NotThereError: the cluster does not know its kind.
        """
        version, kind, about = thing["apiVersion"], thing["kind"], thing["metadata"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if (version, kind) not in self._known:
            self._known |= {(version, kind): where for kind, where in self._kinds(root)}
        if (version, kind) not in self._known:
            raise NotThereError(f"{self._api.name}: there is no {kind} in {version} at {self._api.address}")
        plural, namespaced = self._known[version, kind]
        within = f"/namespaces/{about.get('namespace', 'default')}" if namespaced else ""
        return f"{root}{within}/{plural}/{about['name']}"

    def _kinds(self, root: str) -> Iterator[tuple[str, tuple[str, bool]]]:
        for resource in (self._api.get(root) or {"resources": []})["resources"]:
            if "/" not in resource["name"]:
                yield resource["kind"], (resource["name"], resource["namespaced"])


class NotThereError(SiteError):
    """There is no such object, or no such kind."""


class ConflictError(SiteError):
    """Somebody else has made or changed the object, or owns the field."""


def _is_cut_off(error: Exception) -> bool:
    """Tell whether a connection ended before its answer. One that cannot be made takes its time already."""
    ended = any(isinstance(each, ssl.SSLEOFError) for each in error.args)
    return ended or isinstance(error, urllib3.exceptions.ProtocolError)


def _advice(status: int, said: str) -> str:
    """Return what to do about an answer, as far as that can be told."""
    if _WEBHOOK in said:
        return _OPERATOR_DOWN
    if status == 401:
        return _WHO
    return _RIGHTS if status == 403 and _NO_RIGHT.search(said) else ""


def _said(body: bytes) -> str:
    """Return the message of the API server."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500] or "it said nothing"
