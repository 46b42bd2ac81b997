"""Where the parts of one server are, below its own folder. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_LONGEST_SOCKET_PATH = 107  # sun_path less its end: unix(7).
_SOCKET_NAME = ".s.PGSQL.65535"


@dataclass(frozen=True)
class Layout:
    """The paths of one server."""

    root: str
    """The server's folder."""
    data: str
    """Its data directory (PGDATA): `<root>/data`, or that of an adopted server."""

    @property
    def marker(self) -> str:
        """Whose folder this is, and how far its making has come."""
        return f"{self.root}/harmony.json"

    @property
    def roles(self) -> str:
        """What the site was told of its pair's roles: JSON, a `Roles`."""
        return f"{self.root}/roles.json"

    @property
    def original(self) -> str:
        """What the pair looked like in the roles that it was deployed with, for `harmony revert`: JSON, by field."""
        return f"{self.root}/original.json"

    @property
    def peers(self) -> str:
        """The handles of its own site and of those of its peers, for starts without Pulumi: JSON, a `boot.Sites`."""
        return f"{self.root}/peers.json"

    @property
    def standby_signal(self) -> str:
        """The file that makes the server start as a standby: PostgreSQL, "Standby Server Operation"."""
        return f"{self.data}/standby.signal"

    @property
    def credentials(self) -> str:
        """Passwords by role, JSON, mode 0600."""
        return f"{self.root}/credentials.json"

    @property
    def config(self) -> str:
        """The folder of postgresql.conf and pg_hba.conf. Not the data directory: see `Server`."""
        return f"{self.root}/config"

    @property
    def altered(self) -> str:
        """Where ALTER SYSTEM writes. PostgreSQL reads it last, so it beats every file in `config`."""
        return f"{self.data}/postgresql.auto.conf"

    @property
    def altered_before(self) -> str:
        """That file of a server that was taken over, as it was before."""
        return f"{self.kept}/postgresql.auto.conf"

    @property
    def tls(self) -> str:
        """The folder of keys and certificates."""
        return f"{self.root}/tls"

    @property
    def socket(self) -> str:
        """The folder of the Unix socket."""
        return f"{self.root}/run"

    @property
    def log(self) -> str:
        """The server's log."""
        return f"{self.root}/log/postgresql.log"

    @property
    def events(self) -> str:
        """The log of every step, one JSON object a line."""
        return f"{self.root}/log/events.jsonl"

    @property
    def lock(self) -> str:
        """The file that an operation holds a lock on while it is at work."""
        return f"{self.root}/lock"

    @property
    def kept(self) -> str:
        """Where data directories that were replaced are kept."""
        return f"{self.root}/kept"

    def folders(self) -> tuple[str, ...]:
        """Return the folders to make, the first first."""
        return (self.root, self.config, self.tls, self.socket, f"{self.root}/log", self.kept)


def socket_problem(root: str) -> str | None:
    """Return what is wrong with a folder's path as the place of a Unix socket."""
    longest = _LONGEST_SOCKET_PATH - len("/run/") - len(_SOCKET_NAME)
    if (size := len(root.encode())) > longest:
        return (
            f"{root} has {size} bytes; a server's Unix socket is inside it, so it may have at most {longest}; "
            f"choose a shorter path"
        )
    return None


def slot_name(owner: str) -> str:
    """Return the name of the replication slot of a replica, unique to its owner.

    PostgreSQL takes lower-case letters, digits and underscores, 63 bytes at most: "Replication Slots".
    """
    words = re.sub(r"[^a-z0-9]+", "_", owner.lower().rpartition("/")[2]).strip("_")
    return f"harmony_{words[:40]}_{hashlib.sha256(owner.encode()).hexdigest()[:8]}"
