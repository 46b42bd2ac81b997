"""What an API server does with objects, as far as tests of what acts on them need it."""

from __future__ import annotations

import copy
import threading
from typing import Any

from harmony_pulumi.kubernetes.api import ConflictError, NotThereError


class Api:
    """Keeps objects as an API server does: who has not seen the last change of one, changes nothing."""

    name, address = "east", "https://192.0.2.1"

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()

    def get(self, path: str) -> dict[str, Any] | None:
        return copy.deepcopy(self.kept.get(path))

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            at = f"{path}/{body['metadata']['name']}"
            if at in self.kept:
                raise ConflictError("AlreadyExists")
            return self._put(at, body, 1)

    def replace(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            if path not in self.kept:
                raise NotThereError(path)
            version = self.kept[path]["metadata"]["resourceVersion"]
            if body["metadata"]["resourceVersion"] != version:
                raise ConflictError("the object has been modified")
            return self._put(path, body, version + 1)

    def _put(self, path: str, body: dict[str, Any], version: int) -> dict[str, Any]:
        self.kept[path] = copy.deepcopy({**body, "metadata": {**body["metadata"], "resourceVersion": version}})
        return self.kept[path]


class Lossy(Api):
    """Does what it is asked to, and the first answer to a change gets lost; the client then tries again."""

    def replace(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        lost = not getattr(self, "answered", False)
        self.answered = True
        done = super().replace(path, body)
        return super().replace(path, body) if lost else done
