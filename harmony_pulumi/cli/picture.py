"""What `harmony graph` draws, whatever it is drawn in: boxes in boxes, servers in boxes, arrows. Pure.

A topology is drawn inside every higher-order topology that it is a member of, with the servers that it runs for that
one; a server that stands alone is drawn where its topology comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harmony_pulumi.capabilities.addresses import address
from harmony_pulumi.cli.deployed import (
    Database,
    Handle,
    Member,
    Resources,
    TopologyFound,
    active_server,
    is_group,
)


@dataclass(frozen=True)
class Server:
    """A database's server in a box."""

    id: str
    """Unique in the picture."""
    database: str
    row: int
    """The number of its database, which the others of the same database share."""
    endpoint: str
    version: str
    active: bool


@dataclass(frozen=True)
class Box:
    """A topology where it is drawn."""

    id: str
    role: str
    """What it is in the box around it, for instance `primary`; empty at the top."""
    name: str
    kind: str
    capabilities: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    servers: tuple[Server, ...] = ()

    def placed(self) -> Iterator[tuple[Server, Box]]:
        """Iterate over the servers here and in the boxes inside, each with its box."""
        for server in self.servers:
            yield server, self
        for box in self.boxes:
            yield from box.placed()


@dataclass(frozen=True)
class Arrow:
    """WAL that flows from a server to one that follows it."""

    source: str
    target: str
    slot: str
    """At the source, keeps WAL for the target; empty if the target's handle does not say."""


@dataclass(frozen=True)
class Picture:
    """Everything to draw."""

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]

    def placed(self) -> list[tuple[Server, Box]]:
        """Return every server with its box, in the order of the boxes."""
        return [placed for box in self.boxes for placed in box.placed()]

    def description(self) -> str:
        """Return in words what is drawn, for who cannot see it."""
        where = {server.id: (server, box) for server, box in self.placed()}
        sentences = [
            f"Clients of {server.database} write to {box.name}{f' at {server.endpoint}' if server.endpoint else ''}."
            for server, box in where.values()
            if server.active
        ]
        for arrow in self.arrows:
            (source, there), (_, here) = where[arrow.source], where[arrow.target]
            slot = f", with the slot {arrow.slot}" if arrow.slot else ""
            sentences.append(f"{here.name} replicates {source.database} from {there.name}{slot}.")
        return " ".join(sentences) or "Nothing is deployed on these topologies."


def picture(resources: Resources, title: str) -> Picture:
    """Return the picture of a stack's resources."""
    drawing = _Drawing(resources)
    boxes = drawing.boxes()
    return Picture(title, boxes, drawing.arrows())


@dataclass(frozen=True)
class _ToPlace:
    database: Database
    member: Member
    home: str
    """The URN of its topology; empty if the state does not have it."""
    outputs: Mapping[str, Any]
    row: int


class _Drawing:
    """Places servers in boxes, and remembers where each went."""

    def __init__(self, resources: Resources) -> None:
        self.topologies = list(resources.topologies().values())
        self.databases = resources.databases()
        self.placed: dict[tuple[int, tuple[str, ...]], str] = {}
        self.drawn = 0
        self.to_place: list[_ToPlace] = []
        for row, database in enumerate(self.databases):
            for member in database.members:
                home = resources.topology_of(member.handle)
                outputs = resources.server_outputs(member.handle)
                self.to_place.append(_ToPlace(database, member, home.urn if home else "", outputs, row))

    def boxes(self) -> tuple[Box, ...]:
        inner = {member.urn for topology in self.topologies for _, member in self._members(topology)}
        tops = [topology for topology in self.topologies if topology.urn not in inner] or self.topologies
        drawn = [self._box(t, "", ()) for t in sorted(tops, key=lambda t: not t.members)]
        lost = [one for one in self.to_place if (one.row, one.member.path) not in self.placed]
        return (*drawn, *(self._lost(one) for one in lost))

    def arrows(self) -> tuple[Arrow, ...]:
        return tuple(
            arrow
            for row, database in enumerate(self.databases)
            for arrow in self._arrows_in(row, database.handle, (), database.recorded_active)
        )

    def _box(self, topology: TopologyFound, role: str, around: tuple[str, ...]) -> Box:
        inside = (*around, topology.urn)
        number = self._next()
        return Box(
            f"t{number}",
            role,
            topology.name,
            topology.kind,
            topology.capabilities,
            tuple(self._box(m, role, inside) for role, m in self._members(topology) if m.urn not in inside),
            tuple(self._server(one) for one in self.to_place if self._belongs(one, inside)),
        )

    def _members(self, topology: TopologyFound) -> Iterator[tuple[str, TopologyFound]]:
        """Iterate over the members of a topology with their roles; one that the state does not have is left out."""
        for role, name in topology.members:
            named = [other for other in self.topologies if other.name == name and other.urn != topology.urn]
            yield from ((role, member) for member in named[:1])

    def _belongs(self, one: _ToPlace, inside: tuple[str, ...]) -> bool:
        deployed_by = one.database.topology.urn if one.database.topology else one.home
        unplaced = (one.row, one.member.path) not in self.placed
        return unplaced and one.home == inside[-1] and deployed_by in inside

    def _lost(self, one: _ToPlace) -> Box:
        """Return a box for a server that a group names and the state does not have."""
        name = f"t{self._next()}"
        return Box(name, one.member.position, one.member.name, "not in the state", servers=(self._server(one),))

    def _server(self, one: _ToPlace) -> Server:
        database = one.database
        active = active_server(database.handle, database.recorded_active)
        follows = not database.is_group and one.outputs.get("source")  # A replica of something that is not here.
        identifier = self.placed[one.row, one.member.path] = f"s{self._next()}"
        return Server(
            id=identifier,
            database=database.name,
            row=one.row,
            endpoint=_address(one.outputs.get("endpoint")),
            version=f"PostgreSQL {v}" if (v := one.outputs.get("postgresql_version")) else "",
            active=active is one.member.handle and not follows,
        )

    def _arrows_in(self, row: int, handle: Handle, path: tuple[str, ...], recorded: str) -> Iterator[Arrow]:
        if not is_group(handle):
            return
        inner = handle["members"]
        source_role = recorded if recorded in inner else handle.get("active", "")
        for role, follower in inner.items():
            if source_role in inner and role != source_role:
                source = self.placed[row, _active_path(inner[source_role], (*path, source_role))]
                at = _active_path(follower, (*path, role))
                target = self.placed[row, at]
                yield Arrow(source, target, str((active_server(follower) or {}).get("slot", "")))
            yield from self._arrows_in(row, follower, (*path, role), "")

    def _next(self) -> int:
        self.drawn += 1
        return self.drawn


def _active_path(handle: Handle, path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path of the server by which a member takes part in its group."""
    while is_group(handle):
        inner = handle["members"]
        role = handle.get("active", "") if handle.get("active", "") in inner else next(iter(inner))
        handle, path = inner[role], (*path, role)
    return path


def _address(endpoint: Any) -> str:
    if not (isinstance(endpoint, Mapping) and "host" in endpoint and "port" in endpoint):
        return ""
    return address(endpoint["host"], endpoint["port"])
