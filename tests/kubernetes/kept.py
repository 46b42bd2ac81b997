"""What an API server does with objects, as far as tests of what acts on them need it."""

from __future__ import annotations

import base64
import copy
import json
import threading
from collections.abc import Mapping
from typing import Any

from harmony_pulumi.kubernetes import api
from harmony_pulumi.kubernetes.api import ConflictError, NotThereError


class Api(api.Api):
    """The client, with an API server that keeps objects: who has not seen the last change of one, changes nothing.

    A collection is what is kept at its path: `{"items": [...]}`.
    """

    def __init__(self, kept: Mapping[str, Any] | None = None) -> None:
        """Keep these, by their paths."""
        self.name, self.address = "east", "https://192.0.2.1"
        self.kept: dict[str, Any] = copy.deepcopy(dict(kept or {}))
        self.asked: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def _answered(self, method: str, path: str, body: Mapping[str, Any] | None = None, **how: Any) -> bytes:
        with self.lock:
            self.asked.append((method, path))
            there, name = self.kept.get(path), (body or {}).get("metadata", {}).get("name")
            if method == "POST":
                path = f"{path}/{name}"
                if path in self.kept:
                    raise ConflictError("AlreadyExists")
            elif there is None:
                raise NotThereError(path)
            if method == "DELETE":
                del self.kept[path]
            if method in {"GET", "DELETE"}:
                return there.encode() if isinstance(there, str) else json.dumps(there).encode()
            body = {"metadata": {}, **(body or {})}
            version = there["metadata"].get("resourceVersion", 0) if there else 0
            if (known := body["metadata"].get("resourceVersion")) != version and (known is not None or method == "PUT"):
                raise ConflictError("the object has been modified")
            made = merged(there, body) if method == "PATCH" else copy.deepcopy(dict(body))
            for key, text in made.pop("stringData", {}).items():  # Kubernetes, "Secrets": it is only written.
                made.setdefault("data", {})[key] = encoded(text)
            made["metadata"]["resourceVersion"] = version + 1
            if "dryRun" not in how["query"]:
                self.kept[path] = made
            return json.dumps(made).encode()


def encoded(text: str) -> str:
    """Return a text as the data of a secret has it."""
    return base64.b64encode(text.encode()).decode()


def merged(there: Any, change: Any) -> Any:
    """Return an object with a change: RFC 7396, "JSON Merge Patch"."""
    if not isinstance(change, Mapping):
        return copy.deepcopy(change)
    found: dict[str, Any] = copy.deepcopy(dict(there)) if isinstance(there, Mapping) else {}
    found |= {key: merged(found.get(key), value) for key, value in change.items()}
    return {key: value for key, value in found.items() if change.get(key, value) is not None}


class Lossy(Api):
    """Does what it is asked to, and the first answer to a change gets lost; the client then tries again."""

    def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        lost = not getattr(self, "answered", False)
        self.answered = True
        done = super().replace(path, body)
        return super().replace(path, body) if lost else done
