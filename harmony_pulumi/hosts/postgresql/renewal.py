"""New certificates for one server while it runs: made once for each rotation, wherever that is cut off. Thin.

Wherever these are kept: on a host in files, on Kubernetes in secrets, by the same names.

All texts are decided first and kept in one file; only then the server's own files are written, from that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from harmony_pulumi.capabilities.postgresql_facts import REPLICATION_ROLE
from harmony_pulumi.capabilities.site import Rotation
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import certificates, files
from harmony_pulumi.hosts.postgresql.server import Server
from harmony_pulumi.orchestration.wait import wait_for

INPUTS = ("certificate_lifetime_days", "certificate_generation", "authority_generation")
"""The inputs of a server whose change makes new certificates."""
_FILES = ("ca.crt", "ca.key", "server.crt", "server.key", "replication.crt", "replication.key", "trusted.crt")
_DEADLINE = 30


class Files(Protocol):
    """The files of a server's certificates, wherever they are kept."""

    @property
    def name(self) -> str:
        """What messages call the site."""
        ...

    @property
    def folder(self) -> str:
        """What messages call the place."""
        ...

    def read(self, names: Sequence[str]) -> dict[str, str | None]:
        """Return the texts of files, by their names; None for those that are not there."""
        ...

    def write(self, texts: Mapping[str, str]) -> object:
        """Write the files whose texts differ, by their names, in this order."""
        ...


@dataclass(frozen=True)
class FilesOnHost:
    """The files of a server on a host."""

    server: Server

    @property
    def name(self) -> str:
        """What messages call the host."""
        return self.server.connection.name

    @property
    def folder(self) -> str:
        """The folder in which they are."""
        return self.server.layout.tls

    def read(self, names: Sequence[str]) -> dict[str, str | None]:
        """Return the texts of files."""
        return self.server.read(self.folder, names)

    def write(self, texts: Mapping[str, str]) -> object:
        """Write files."""
        return self.server.write({f"{self.folder}/{name}": text for name, text in texts.items()})


def _asked(props: Mapping[str, Any]) -> dict[str, int]:
    return {key: int(props[key]) if props.get(key) else 0 for key in INPUTS}


def changed_inputs(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """Return which of the inputs that ask for new certificates have changed."""
    before = _asked(old)
    return {key for key, value in _asked(new).items() if value != before[key]}


def id_by_input(props: Mapping[str, Any]) -> str:
    """Return which rotation inputs ask for: the same for every member of a pair, which finishes it for all as one."""
    return " ".join(f"{key}={value}" for key, value in _asked(props).items())


def is_by_input(rotation: Rotation) -> bool:
    """Tell whether a rotation was asked for by inputs, and not by command."""
    return rotation["id"].startswith(f"{INPUTS[0]}=")


def renew(kept: Files, rotation: Rotation, address: str, days: int | None = None) -> None:
    """Write new certificates, unless this rotation did so before; then have the server `use` them.

    Args:
        kept: the certificates of before.
        rotation: which one it is.
        address: that clients connect to.
        days: for which they are valid; by default as long as those that they replace.

    Raises:
        SiteError: files are missing, or the authority has expired and is to stay.
    """
    record = _record(kept)
    begun: dict[str, str] | None = record.get("texts")
    if record.get("id") == rotation["id"]:
        if begun is None:
            return
        if _is_new(begun, address):  # Decided by a run that was cut off.
            kept.write(begun)
            return
    write_begun(kept)
    there = {name: text for name, text in kept.read(_FILES).items() if text}
    if missing := [name for name in _FILES if name not in there]:
        msg = f"{kept.name}: {kept.folder} lacks {', '.join(missing)}; run `pulumi up`"
        raise SiteError(msg)
    if not rotation["authority"] and (when := certificates.expires(there["ca.crt"])) <= datetime.now(UTC):
        msg = (
            f"{kept.name}: the authority in {kept.folder} expired {when:%Y-%m-%d}, so it can "
            f"sign none; rotate it, too: `harmony rotate-certificates --authority`, or a raised authority_generation"
        )
        raise SiteError(msg)
    days = days or certificates.lifetime_days(there["server.crt"])
    texts = certificates.renewed(there, address, days, authority=rotation["authority"])
    # In whose place this comes may have replaced the authority, and not have ended: others may have that of before.
    replaced = bool(record) and not record["ended"] and record["authority"]
    _write_record(kept, {**rotation, "authority": rotation["authority"] or replaced, "texts": texts})
    kept.write(texts)


def _is_new(texts: Mapping[str, str], address: str) -> bool:
    """Tell whether certificates are for an address, and made within a day: others would soon have to be renewed."""
    shown = texts["server.crt"]
    if not certificates.serves(certificates.KeyPair(shown, texts["server.key"]), address):
        return False
    made = certificates.expires(shown) - timedelta(days=certificates.lifetime_days(shown))
    return abs(datetime.now(UTC) - made) < timedelta(days=1)


def write_begun(kept: Files) -> None:
    """Write what was decided and may not have been written, as a run was cut off; the server may use it or not."""
    if texts := _record(kept).get("texts"):
        kept.write(texts)


def settle(kept: Files) -> None:
    """Have what was decided, and written, count as used, now that the server does."""
    record = _record(kept)
    if "texts" in record:
        _write_record(kept, {key: value for key, value in record.items() if key != "texts"})


def last_rotation(kept: Files) -> tuple[Rotation | None, bool]:
    """Return the last rotation that the server was given certificates by, and whether it uses them."""
    record = _record(kept)
    if not record:
        return None, False
    known = Rotation(id=record["id"], authority=record["authority"], operator=record["operator"], ended=record["ended"])
    return known, "texts" not in record


def distrust(kept: Files) -> None:
    """Trust the authority of now alone. The server, which uses what was decided, must then reload."""
    authority = kept.read(["ca.crt"])["ca.crt"]
    if authority:
        kept.write({"trusted.crt": authority})
    if record := _record(kept):
        _write_record(kept, {**record, "ended": True})


def use(server: Server, address: str, port: int) -> None:
    """Have the running server use what was written, and have that count once it does.

    Raises:
        SiteError: it does not; the message holds what PostgreSQL said.
    """
    server.take_over_files(port)
    _insist_on_use(server, address, port)
    settle(FilesOnHost(server))


def _insist_on_use(server: Server, address: str, port: int) -> None:
    """Insist that the running server shows the certificate that it has, and takes the one that it issues.

    Raises:
        SiteError: it does not; the message holds what PostgreSQL said.
    """
    tls = server.layout.tls
    words = {
        "host": address,
        "port": port,
        "user": REPLICATION_ROLE,
        "sslmode": "verify-full",
        "sslrootcert": f"{tls}/ca.crt",
        "sslcert": f"{tls}/replication.crt",
        "sslkey": f"{tls}/replication.key",
        "connect_timeout": 10,
    }
    conninfo = " ".join(f"{key}={files.quote_conninfo(value)}" for key, value in words.items())
    wait_for(
        f"{server.connection.name}: a connection to the server in {server.layout.root} with its new certificates",
        lambda: server.replication_command(conninfo, "IDENTIFY_SYSTEM"),
        lambda answer: answer[0],
        deadline=_DEADLINE,
        advice=f"Look at the end of {server.layout.log}.",
    )


def _record(kept: Files) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kept.read(["rotation.json"])["rotation.json"] or "{}")
    return found


def _write_record(kept: Files, record: Mapping[str, Any]) -> None:
    kept.write({"rotation.json": json.dumps(record, indent=1) + "\n"})
