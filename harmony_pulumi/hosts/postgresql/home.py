"""The home of a server on a host: where it is, whose it is, and how far its making has come. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.connection import Connection
from harmony_pulumi.hosts.postgresql.layout import Layout
from harmony_pulumi.hosts.postgresql.roles import is_to_lead, read_roles
from harmony_pulumi.hosts.postgresql.server import major_of
from harmony_pulumi.orchestration.roles import last_epoch

WAITING = "waiting: this was a primary, and its peer had not answered when it was started\n"
"""What is in `standby.signal` of a primary that waits. PostgreSQL looks only whether the file is there."""


@dataclass
class Marker:
    """Whose folder it is, and how far its making has come."""

    owner: str
    """`<project>/<stack>/<resource>`."""
    state: str
    """`making` until the data directory is `whole`, `ready` once it has served, `kept` once `destroy` has left it."""
    port: int
    data: str
    version: str
    """The version of PostgreSQL that made the data directory."""
    locale: str
    machine_id: str
    system_identifier: str = ""
    incarnation: str = ""
    """Of the deployment that has it, to tell that from one before."""
    revision: str = ""
    """Of its last change, to tell one that the engine did not live to record."""
    format: int = 1

    @classmethod
    def read(cls, connection: Connection, layout_root: str, user: str) -> Marker | None:
        """Return the marker of a folder, or None if it has none."""
        text = connection.read_file(f"{layout_root}/harmony.json", user)
        if text is None:
            return None
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            msg = (
                f"{connection.name}: {layout_root}/harmony.json is not a marker of this version of harmony ({error}); "
                f"look at what the folder holds, and move it away if it is not needed"
            )
            raise SiteError(msg) from error

    @property
    def text(self) -> str:
        """As it is kept."""
        return json.dumps(self.__dict__, indent=1) + "\n"

    @property
    def major(self) -> int:
        """The major version of the data directory."""
        return major_of(self.version)


def os_user(connection: Connection, host: Mapping[str, Any]) -> str:
    """Return the OS user that runs servers: the host's own for PostgreSQL where we are root, else the login user."""
    if connection.is_root():
        return str(host["user"])
    return connection.check(["id", "-un"]).strip()


def base_folder(connection: Connection) -> str:
    """Return the folder below which a host keeps its servers by default: file-hierarchy(7), XDG base directories."""
    if connection.is_root():
        return "/var/lib/harmony"
    script = 'echo "${XDG_STATE_HOME:-$HOME/.local/state}/harmony"'
    return connection.check(["sh", "-c", script]).strip()


def is_on_host(home: Mapping[str, Any]) -> bool:
    """Tell whether a home is a folder of a host, and not something that another kind of topology makes."""
    return "host" in home


def is_on_machine(home: Mapping[str, Any], machine: str) -> bool:
    """Tell whether a home is on this machine. A host that does not say on which it is, is on that of who asks."""
    return is_on_host(home) and home["host"].get("machine_id", machine) == machine


def root_of(connection: Connection, home: Mapping[str, Any]) -> str:
    """Return the folder of a server, or where it would be."""
    return str(home.get("directory") or f"{base_folder(connection)}/{home['owner']}")


def markers_below(connection: Connection, name: str = "harmony.json") -> list[str]:
    """Return the markers, of servers or by another name, below the folder where a host keeps them by default."""
    find = ["find", base_folder(connection), "-maxdepth", "5", "-name", name]
    return sorted(connection.run(find).stdout.splitlines())


def make_root(connection: Connection, root: str, user: str) -> None:
    """Make a folder for an OS user as root, and those above it that are missing."""
    missing: list[str] = []
    parent = root.rpartition("/")[0]
    while parent and not connection.exists(parent):
        missing.insert(0, parent)
        parent = parent.rpartition("/")[0]
    if missing:  # One by one: the mode is the last one's only. Another server's deployment may make them meanwhile.
        connection.check(["mkdir", "-p", "-m", "755", "--", *missing])
    group = connection.check(["id", "-gn", user]).strip()
    connection.check(["install", "-d", "-m", "700", "-o", user, "-g", group, "--", root])


def nearest(connection: Connection, path: str) -> str:
    """Return the path, or the nearest folder above it that is there."""
    while not connection.exists(path) and path != "/":
        path = parent_of(path)
    return path


def mount_of(connection: Connection, path: str) -> str:
    """Return where the file system is mounted that a path is on, or would be on."""
    return connection.check(["stat", "-c", "%m", "--", nearest(connection, path)]).strip()


def parent_of(path: str) -> str:
    """Return the folder that a path is in."""
    return path.rpartition("/")[0] or "/"


def listening_ports(connection: Connection) -> set[int]:
    """Return the TCP ports that something listens on: proc(5), `/proc/net/tcp`."""
    ports: set[int] = set()
    for table in connection.read_files(["/proc/net/tcp", "/proc/net/tcp6"]).values():
        for line in (table or "").splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                ports.add(int(words[1].rpartition(":")[2], 16))
    return ports


def unfit(marker: Marker, props: Mapping[str, Any]) -> str | None:
    """Return why a data directory that was made before is not what is declared, or None if it is."""
    version, source = props.get("version"), props.get("source")
    if version and marker.major != version:
        return f"it is of PostgreSQL {marker.version}, and {version} is declared"
    if marker.locale != props["locale"] and not source:
        return f"its locale is {marker.locale}, and {props['locale']} is declared"
    if source and marker.system_identifier != source["system_identifier"]:
        return f"it is a copy of database {marker.system_identifier}, and its source is {source['system_identifier']}"
    return None


def left_as(connection: Connection, layout: Layout, user: str) -> str:
    """Return what a data directory is left as: `primary`, `standby`, or `waiting`, a primary that is not to lead yet.

    One that waits was a primary until it was started without an answer from its peer. So its data is that of one: once
    it is known to be active, it goes on as before. That of another standby may lack what its primary wrote.
    """
    text = connection.read_file(layout.standby_signal, user)
    return "primary" if text is None else "waiting" if text == WAITING else "standby"


def role_problem(connection: Connection, props: Mapping[str, Any], root: str, user: str, marker: Marker) -> str | None:
    """Return why a data directory is not started in the role that is wanted: two primaries could come of it.

    What its site was told of its pair counts, if it was told anything; else what the program declares.
    """
    layout = Layout(root, marker.data)
    roles = read_roles(connection, layout.roles, user)
    has = "standby" if left_as(connection, layout, user) == "standby" else "primary"
    wanted = "primary" if is_to_lead(roles, props.get("source")) else "standby"
    if has == wanted:
        return None
    if roles and (epoch := last_epoch(roles)):
        by = f"its site was told, at epoch {epoch}, that it is to be a {wanted}"
        return f"{marker.data} was left as a {has}, and {by}. See `harmony status`, then finish what was begun"
    way = "`harmony switchover` moves them then"
    if has == "primary":
        way = "or, where its pair is deployed, `harmony rejoin` has it follow, and keeps what it alone has"
    return (
        f"{marker.data} was left as a {has}, and the program declares a {wanted}. Roles are moved by orchestration, "
        f"not by deployment: declare the roles as they were left; {way}"
    )


def ownership_problems(
    connection: Connection, props: Mapping[str, Any], root: str, user: str, marker: Marker | None
) -> list[str]:
    """Return what is wrong with the folder as the place of this server."""
    if marker is not None and marker.owner != props["owner"]:
        return [f"{root} belongs to {marker.owner}, not to {props['owner']}; choose another directory"]
    if marker is None:
        content = connection.run(["ls", "-A", "--", root], user=user).stdout.split()
        # `lost+found` is in every new file system; the others are ours, made before the marker.
        if not set(content) <= {"lost+found", "config", "tls", "run", "log", "kept", "lock"}:
            found = ", ".join(content[:5])
            return [f"{root} is not empty and is not harmony's ({found}); choose another directory, or empty it"]
    return []
