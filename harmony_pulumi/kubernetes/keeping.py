"""What a cluster's site keeps of its pair: in a ConfigMap beside the cluster, which is there while no pod is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.errors import SiteError
from harmony_pulumi.kubernetes import objects
from harmony_pulumi.kubernetes.api import Api, ConflictError

_TRIES = 20
_BYTES = 900_000
"""Of events; a ConfigMap holds up to 1 MiB: Kubernetes, "ConfigMaps"."""


@dataclass(frozen=True)
class Keeping:
    """One ConfigMap of a cluster, by what it keeps."""

    api: Api
    namespace: str
    cluster: str
    owner: str
    what: str
    """`roles` or `events`."""

    @property
    def _folder(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/configmaps"

    @property
    def _name(self) -> str:
        return f"{self.cluster}-{self.what}"

    def read(self, key: str) -> str | None:
        """Return a text, or None if none is kept."""
        found = self.api.get(f"{self._folder}/{self._name}")
        text = ((found or {}).get("data") or {}).get(key)
        return None if text is None else str(text)

    def change(self, key: str, changed: Callable[[str | None], str]) -> None:
        """Put another text in a text's place; what somebody else writes meanwhile is not overwritten.

        Args:
            key: of the text.
            changed: takes the text as it is now, and returns the new one. It may be called more than once.

        Raises:
            SiteError: it cannot be written.
        """
        for _ in range(_TRIES):
            found = self.api.get(f"{self._folder}/{self._name}")
            text = changed(((found or {}).get("data") or {}).get(key))
            try:
                if found is None:
                    self.api.create(self._folder, {**self._bare(), "data": {key: text}})
                else:
                    data = {**(found.get("data") or {}), key: text}
                    self.api.replace(f"{self._folder}/{self._name}", {**found, "data": data})
            except ConflictError:
                time.sleep(0.02)
            else:
                return
        msg = f"{self.api.name}: {self.namespace}/{self._name} is changed by somebody else all the while; try again"
        raise SiteError(msg)

    def append(self, key: str, lines: str) -> None:
        """Append whole lines to a text; of one that is too long, the oldest are left out."""

        def appended(before: str | None) -> str:
            if before and before.endswith(lines):  # It was done, and the answer to that was lost.
                return before
            text = (before or "") + lines
            while len(text.encode()) > _BYTES:
                text = text.partition("\n")[2]
            return text

        self.change(key, appended)

    def _bare(self) -> Mapping[str, Any]:
        about = objects.metadata(self._name, self.namespace, self.owner)
        # It goes with its cluster, whose successor of that name would take what it was told for its own.
        cluster = self.api.get(objects.path_of(self.namespace, self.cluster))
        if cluster is not None:
            about["ownerReferences"] = [objects.reference(cluster)]
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about}
