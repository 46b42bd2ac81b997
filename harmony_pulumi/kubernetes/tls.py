"""The certificates of a cluster: kept in secrets, taken over by its operator, used by its instances.

The authority's key is kept in a secret of its own and nowhere else: in no state of Pulumi's, no log, no pod, at no
other site. Who signs with it (`pulumi up`, `harmony rotate-certificates`) makes it or reads it there, and has it in
memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import eq
from typing import Any

from harmony_pulumi.capabilities.postgresql_facts import OPERATOR_ROLE
from harmony_pulumi.capabilities.site import Rotation
from harmony_pulumi.hosts.postgresql import certificates, files, renewal
from harmony_pulumi.kubernetes import objects
from harmony_pulumi.kubernetes.api import Api
from harmony_pulumi.kubernetes.facts import api_of
from harmony_pulumi.kubernetes.pods import PORT, PodInstance
from harmony_pulumi.orchestration.journal import operator
from harmony_pulumi.orchestration.wait import wait_for

_PLACES: Mapping[str, Sequence[tuple[str, str]]] = {
    "trusted.crt": (("server-ca", "ca.crt"), ("client-ca", "ca.crt")),
    "ca.crt": (("authority", "ca.crt"),),
    "ca.key": (("authority", "ca.key"),),
    "rotation.json": (("authority", "rotation.json"),),
    "server.crt": (("server", "tls.crt"),),
    "server.key": (("server", "tls.key"),),
    "replication.crt": (("replication", "tls.crt"),),
    "replication.key": (("replication", "tls.key"),),
}
"""In which secrets, by what keys, what a host has in files is."""
_IN_POD = {"server.crt": "server.crt", "trusted.crt": "client-ca.crt", "replication.crt": "streaming_replica.crt"}
"""Where the operator has an instance put them: CloudNativePG 1.27, internal to it, so tests on clusters hold it."""
_FOLDER = "/controller/certificates"
_PEER_FOLDER = "/controller/external"
_DEADLINE = 180
"""Seconds."""
_AGAIN = 2
"""Seconds after which an instance is made to look once more."""


@dataclass(frozen=True)
class ClusterFiles:
    """The files of the certificates of a cluster."""

    api: Api
    namespace: str
    cluster: str
    owner: str

    @property
    def name(self) -> str:
        """What messages call the Kubernetes cluster."""
        return self.api.name

    @property
    def folder(self) -> str:
        """What messages call the place."""
        return f"the secrets of {self.namespace}/{self.cluster}"

    def read(self, names: Sequence[str]) -> dict[str, str | None]:
        """Return the texts of files, by their names; None for those that are not there."""
        places = {name: _PLACES[name][0] for name in names}
        there = {kind: self.api.get(self._path(kind)) for kind in dict.fromkeys(kind for kind, _ in places.values())}
        return {name: objects.decoded(there[kind], key) or None for name, (kind, key) in places.items()}

    def write(self, texts: Mapping[str, str]) -> None:
        """Write files, by their names, in this order."""
        for kind, data in _by_secret(texts):
            if self.api.get(self._path(kind)) is None:
                about = objects.metadata(objects.secret_names(self.cluster)[kind], self.namespace, self.owner)
                secret = {"apiVersion": "v1", "kind": "Secret", "metadata": about, "stringData": data}
                self.api.create(self._path(), secret)
            else:
                self.api.patch(self._path(kind), {"stringData": data})

    def served(self) -> str:
        """Return which cluster of this name has served; empty if none has."""
        there = self.api.get(self._path("authority")) or {"metadata": {}}
        return str((there["metadata"].get("annotations") or {}).get(objects.SERVED) or "")

    def serves(self, uid: str) -> None:
        """Keep which cluster serves: no other one is to be made in its place unasked."""
        if self.served() != uid:
            self.api.patch(self._path("authority"), {"metadata": {"annotations": {objects.SERVED: uid}}})

    def forget(self) -> None:
        """Remove the authority, after the cluster and its data."""
        self.api.delete(self._path("authority"))

    def _path(self, kind: str = "") -> str:
        name = f"/{objects.secret_names(self.cluster)[kind]}" if kind else ""
        return f"/api/v1/namespaces/{self.namespace}/secrets{name}"


def files_of(props: Mapping[str, Any]) -> ClusterFiles:
    """Return the files of the cluster that inputs, or a handle, speak of."""
    return ClusterFiles(api_of(props), props["namespace"], props["cluster"], props["owner"])


def _by_secret(texts: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Iterate over the secrets that hold texts, in the order of these, and what each gets."""
    found: dict[str, dict[str, str]] = {}
    for name, text in texts.items():
        for kind, key in _PLACES[name]:
            found.setdefault(kind, {})[key] = text
    yield from found.items()


def renew_as_declared(
    kept: ClusterFiles, props: Mapping[str, Any], address: str, *, moved: bool, authority: bool
) -> None:
    """Write new certificates, as inputs ask for them; once, also where a run was cut off.

    Args:
        kept: the certificates of before.
        props: the inputs.
        address: that clients connect to.
        moved: whether that has changed, too.
        authority: whether the authority is to be another, too.

    Raises:
        SiteError: certificates are missing, or the authority has expired and is to stay.
    """
    by_input = renewal.id_by_input(props) + (f" address={address}" if moved else "")
    rotation = Rotation(id=by_input, authority=authority, operator=operator("`pulumi up`"), ended=False)
    renewal.renew(kept, rotation, address, int(props["certificate_lifetime_days"]))


def use(server: PodInstance, kept: ClusterFiles) -> None:
    """Have a running instance use what was written, and have that count once it does.

    Raises:
        SiteError: it does not, in time.
    """
    take_over(server, kept)
    words = {
        "host": "127.0.0.1",
        "port": PORT,
        "user": OPERATOR_ROLE,
        "sslmode": "verify-ca",  # Its certificate is for the address outside, which a pod need not reach.
        "sslrootcert": f"{_FOLDER}/server-ca.crt",
        "sslcert": f"{_FOLDER}/streaming_replica.crt",
        "sslkey": f"{_FOLDER}/streaming_replica.key",
        "connect_timeout": 10,
    }
    conninfo = " ".join(f"{key}={files.quote_conninfo(value)}" for key, value in words.items())
    wait_for(
        f"{server.connection.name}: a connection with its new certificates",
        lambda: server.replication_command(conninfo, "IDENTIFY_SYSTEM"),
        lambda answer: answer[0],
        deadline=_DEADLINE,
        words=lambda answer: answer[1],
        advice=f"See the log of the pod {server.connection.namespace}/{server.connection.pod}.",
    )
    renewal.settle(kept)


def take_over(server: PodInstance, kept: ClusterFiles) -> None:
    """Wait until an instance has the files that were written, and have it reload.

    Raises:
        SiteError: it has not, in time.
    """
    wanted = kept.read([*_IN_POD])
    _until_there(server, kept.cluster, {f"{_FOLDER}/{_IN_POD[name]}": text or "" for name, text in wanted.items()})
    server.sql("SELECT pg_reload_conf()", port=PORT)


def insist_on_peer(server: PodInstance, cluster: str, certificate: str) -> None:
    """Wait until a running instance would show this certificate to the one that it follows.

    Raises:
        SiteError: it would not, in time.
    """
    # CloudNativePG 1.27 writes over the file of before: where that was longer, its end stays, which PostgreSQL ignores.
    _until_there(server, cluster, {_of_peer(cluster): certificate}, is_there=str.startswith)


def held(server: PodInstance, cluster: str) -> str:
    """Return the serial number of what a running instance would show to the one that it follows; empty if nothing."""
    path = _of_peer(cluster)
    return certificates.serial(server.connection.read_files([path], server.user)[path] or "")


def _of_peer(cluster: str) -> str:
    return f"{_PEER_FOLDER}/{objects.PEER}/{objects.secret_names(cluster)[objects.PEER]}_tls.crt"


def _until_there(
    server: PodInstance, cluster: str, wanted: Mapping[str, str], *, is_there: Callable[[str, str], bool] = eq
) -> None:
    asked = float("-inf")

    def differing() -> list[str]:
        nonlocal asked
        # An instance looks at secrets when its cluster changes, and for one of another cluster's nothing there does.
        # What it may not read yet, as its operator is slow to let it, it tries again by itself: ever later.
        if time.monotonic() - asked > _AGAIN:
            now = {"metadata": {"annotations": {objects.LOOK_AGAIN: datetime.now(UTC).isoformat()}}}
            server.connection.api.patch(objects.path_of(server.connection.namespace, cluster), now)
            asked = time.monotonic()
        there = server.connection.read_files([*wanted], server.user)
        return [path for path, text in wanted.items() if not is_there((there[path] or "").strip(), text.strip())]

    wait_for(
        f"{server.connection.name}: new certificates",
        differing,
        lambda paths: not paths,
        deadline=_DEADLINE,
        words=lambda paths: f"{', '.join(paths)} is still that of before",
        advice=f"Does the operator run? See the log of the pod {server.connection.namespace}/{server.connection.pod}.",
    )


def shown(kept: ClusterFiles) -> dict[str, str]:
    """Return the certificates of a cluster as they are, as what is declared has them; nothing if one is missing."""
    names = {
        "ca": "ca.crt",
        "trusted": "trusted.crt",
        "server_certificate": "server.crt",
        "server_key": "server.key",
        "replication_certificate": "replication.crt",
        "replication_key": "replication.key",
    }
    there = kept.read([*names.values()])
    found = {part: there[name] for part, name in names.items()}
    return {part: text for part, text in found.items() if text} if all(found.values()) else {}


def make(kept: ClusterFiles, address: str, days: int) -> dict[str, str]:
    """Make the certificates of a cluster that is to be declared, by its authority, which is made if there is none.

    Args:
        kept: where the authority is.
        address: that clients connect to, a host name or an IP.
        days: for which the certificates are valid.
    """
    names = ("ca.crt", "ca.key")
    certificate, key = (kept.read(names)[name] for name in names)
    if certificate and key:
        authority = certificates.KeyPair(certificate, key)
    else:
        authority = certificates.make_authority(f"{kept.cluster} PostgreSQL")
        kept.write({"ca.crt": authority.certificate, "ca.key": authority.key})
    return issued(authority, address, days)


def issued(authority: certificates.KeyPair, address: str, days: int) -> dict[str, str]:
    """Return the certificates of a cluster, by an authority that is trusted alone."""
    server = certificates.make_server(authority, address, days)
    replication = certificates.make_client(authority, OPERATOR_ROLE, days)
    return {
        "ca": authority.certificate,
        "trusted": authority.certificate,
        "server_certificate": server.certificate,
        "server_key": server.key,
        "replication_certificate": replication.certificate,
        "replication_key": replication.key,
    }
