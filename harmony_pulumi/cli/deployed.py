"""What a stack has deployed: its topologies and databases, found in its state. Pure: no Pulumi, no file, no host.

A topology is a component whose outputs have `harmony`; a database is a resource whose outputs have `site`, the handle
by which orchestration finds it. A handle with `members` is a group's (a pair's), and holds the handles of its members.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard, cast

Handle = Mapping[str, Any]


@dataclass(frozen=True)
class TopologyFound:
    """A topology of the stack."""

    urn: str
    name: str
    kind: str
    """The class as its author named it, for instance `LinuxHostTopology`."""
    capabilities: tuple[str, ...] = ()
    members: tuple[tuple[str, str], ...] = ()
    """Of a higher-order topology: the names of its members with their role before each."""


@dataclass(frozen=True)
class Member:
    """One server of a database."""

    name: str
    path: tuple[str, ...]
    """Its role in the group, after those of the groups around it; empty for a server that stands alone."""
    declared_active: bool
    """Whether the handles name it, or it stands alone."""
    handle: Handle

    @property
    def position(self) -> str:
        """The path as a word: `primary`, or `replica/primary` in a pair of pairs."""
        return "/".join(self.path)


@dataclass(frozen=True)
class Database:
    """A group of servers that hold one database, or a server that stands alone."""

    name: str
    handle: Handle
    urn: str = ""
    """Of the resource; empty if the handle came from a file."""
    topology: TopologyFound | None = None
    """The topology that deployed it."""
    recorded_active: str = ""
    """Of a group: the role that was active when the stack last looked."""
    inside: tuple[Database, ...] = ()
    """The pairs that are its members, and theirs; each has the name of its resource."""
    around: tuple[str, ...] = ()
    """Of one of those: the URN of the database that it is in."""
    lacks_its_pair: bool = False
    """Of a server: whether it was deployed as a member of a pair that the stack does not have."""
    outermost: Handle | None = None
    """Of one of those: the handle of that database."""

    @property
    def is_group(self) -> bool:
        """Whether it is a pair, or another group."""
        return is_group(self.handle)

    @property
    def endpoints(self) -> list[Handle]:
        """The handles of its endpoints: what forwards clients to its active member."""
        return [*(self.handle.get("endpoints") or ())]

    @property
    def members(self) -> list[Member]:
        """The servers, in the order of the handles."""
        return list(_leaves(self.handle, (), active=True))


@dataclass(frozen=True)
class Resources:
    """The resources of a state, by URN, without those that are only waiting to be deleted."""

    by_urn: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, resources: Sequence[Mapping[str, Any]]) -> Resources:
        """Take the resources as `pulumi stack export` has them."""
        return cls({r["urn"]: r for r in resources if not r.get("delete")})

    def topologies(self) -> dict[str, TopologyFound]:
        """Return the topologies by URN."""
        found = {urn: _topology(urn, r) for urn, r in self.by_urn.items()}
        return {urn: topology for urn, topology in found.items() if topology}

    def databases(self) -> list[Database]:
        """Return the databases, by name: groups, and servers that are in no group."""
        topologies = self.topologies()
        found = [
            Database(
                name=str(_outputs(r).get("name") or handle["name"]),
                handle=handle,
                urn=urn,
                topology=self._topology_of(urn, topologies),
                recorded_active=str(_outputs(r).get("observed_active") or ""),
                # Those that are members of others, and have their pair, are left out below.
                lacks_its_pair=not is_group(handle) and bool(_outputs(r).get("peers")),
            )
            for urn, r, handle in self._handles()
        ]
        return sorted(_distinctly_named(_outermost(found)), key=lambda d: (d.name, d.urn))

    def server_outputs(self, handle: Handle) -> Mapping[str, Any]:
        """Return the outputs of the resource with a handle; nothing if there is none."""
        return next((_outputs(r) for _, r, found in self._handles() if found == handle), {})

    def topology_of(self, handle: Handle) -> TopologyFound | None:
        """Return the topology that runs the server of a handle."""
        urn = next((urn for urn, _, found in self._handles() if found == handle), "")
        return self._topology_of(urn, self.topologies())

    def _handles(self) -> Iterator[tuple[str, Mapping[str, Any], Handle]]:
        # Only custom resources: the stack and components may output the handle of what is inside them once more.
        for urn, resource in self.by_urn.items():
            handle = _outputs(resource).get("site")
            if resource.get("custom") and is_handle(handle):
                yield urn, resource, handle

    def _topology_of(self, urn: str, topologies: Mapping[str, TopologyFound]) -> TopologyFound | None:
        while urn and urn not in topologies:
            urn = str(self.by_urn.get(urn, {}).get("parent") or "")
        return topologies.get(urn)


def databases_in(document: object) -> list[Database]:
    """Return the databases whose handles are in a JSON document.

    Args:
        document: a handle, a list of handles, or a mapping whose values are handles among other things, as
            `pulumi stack output --json` prints it.
    """
    if is_handle(document):
        return [Database(str(document["name"]), document)]
    values: list[Any] = []
    if isinstance(document, Mapping):
        values = [*cast("Mapping[str, Any]", document).values()]
    elif isinstance(document, list):
        values = document
    return _outermost([Database(str(value["name"]), value) for value in values if is_handle(value)])


def is_handle(value: Any) -> TypeGuard[Handle]:
    """Tell whether a value is the handle of a site or of a group."""
    return isinstance(value, Mapping) and isinstance(value.get("kind"), str) and isinstance(value.get("name"), str)


def is_group(handle: Handle) -> bool:
    """Tell whether a handle is a group's."""
    return isinstance(handle.get("members"), Mapping)


def active_server(handle: Handle, active: str = "") -> Handle | None:
    """Return the handle of the server that is active.

    Args:
        handle: a group's or a server's.
        active: the active role in the group, if it is known better than by the handle.
    """
    while is_group(handle):
        role, active = active or handle.get("active", ""), ""
        if role not in handle["members"]:
            return None
        handle = handle["members"][role]
    return handle


def _leaves(handle: Handle, path: tuple[str, ...], *, active: bool) -> Iterator[Member]:
    if not is_group(handle):
        yield Member(str(handle["name"]), path, active, handle)
        return
    for role, inner in handle["members"].items():
        yield from _leaves(inner, (*path, role), active=active and role == handle.get("active"))


def _members_of(handle: Handle) -> Iterator[Handle]:
    if is_group(handle):
        for inner in handle["members"].values():
            yield inner
            yield from _members_of(inner)


def _outermost(found: Sequence[Database]) -> list[Database]:
    """Return the databases that are no members of others, with the pairs that are theirs."""
    inner = [handle for database in found for handle in _members_of(database.handle)]
    deployed = {_pair_id(d.handle): d for d in found if "pair" in d.handle}
    return [
        replace(
            database,
            inside=tuple(
                replace(
                    deployed.get(_pair_id(handle), Database(str(handle["name"]), handle)),
                    name=_pair_id(handle).rpartition("/")[2],
                    around=(database.urn,),
                    outermost=database.handle,
                )
                for handle in _members_of(database.handle)
                if "pair" in handle
            ),
        )
        for database in found
        if database.handle not in inner
    ]


def _pair_id(handle: Handle) -> str:
    return str(handle.get("pair", ""))


def _distinctly_named(databases: Sequence[Database]) -> list[Database]:
    """Name databases that share a name after their resources, whose names are unique."""
    names = Counter(d.name for d in databases)
    return [replace(d, name=d.urn.rpartition("::")[2]) if names[d.name] > 1 else d for d in databases]


def _topology(urn: str, resource: Mapping[str, Any]) -> TopologyFound | None:
    described = _outputs(resource).get("harmony")
    if not (isinstance(described, Mapping) and "topology" in described and "kind" in described):
        return None
    about = cast("Mapping[str, Any]", described)
    return TopologyFound(
        urn,
        str(about["topology"]),
        str(about["kind"]),
        tuple(str(c) for c in about.get("capabilities") or ()),
        tuple((str(role), str(name)) for role, name in (about.get("members") or {}).items()),
    )


def hides_handles(resources: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a handle is encrypted in a state as it was exported: it holds what one logs in with."""
    return any(_is_secret(value := _raw(r).get("site")) and "plaintext" not in value for r in resources)


_SIGNATURE, _SECRET = "4dabf18193072939515e22adb298388d", "1b47061264138c4ac30d75fd1eb44270"
"""The mark of a secret in a state, and that of secrets among marks: Pulumi, "Deployment schema"."""


def _is_secret(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping) and value.get(_SIGNATURE) == _SECRET


def _raw(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    return resource.get("outputs") or {}


def _outputs(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    found = _raw(resource)
    if _is_secret(site := found.get("site")) and "plaintext" in site:
        return {**found, "site": json.loads(site["plaintext"])}
    return found
