"""Topology and HigherOrderTopology: where things run, and topologies made of topologies.

This module holds the capability rule. It knows no capability and no topology in particular.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

import pulumi

from harmony_pulumi.capabilities.base import capabilities_of, known_capabilities, names
from harmony_pulumi.errors import CapabilityError, InputError, Problem

_NAMESPACES = {"harmony_pulumi": "harmony"}


class Topology(pulumi.ComponentResource):
    """Where things run. A subclass provides capabilities by inheriting them.

    The type token of the component is a constant of the class as its author wrote it: `<package>:index:<class>`, so
    moving the class between modules of its package changes nothing. Moving it to another package changes the parent's
    type, thus the URN of every child, thus would replace them: set `token` in the class body to keep the old one.
    """

    token: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Give the class its own token, unless its author did."""
        super().__init_subclass__()
        if "token" not in vars(cls):
            package = cls.__module__.partition(".")[0]
            cls.token = f"{_NAMESPACES.get(package, package.strip('_'))}:index:{cls.__name__}"

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        """Register the component `name`; what is deployed on the topology becomes its children."""
        super().__init__(self.token, name, {}, opts)
        self.name = name
        self.register_outputs({"harmony": self._description()})

    def _description(self) -> dict[str, Any]:
        """Return what `harmony graph` shows of this topology."""
        return {
            "topology": self.name,
            "kind": self.token.rpartition(":")[2],
            "capabilities": sorted(c.__name__ for c in capabilities_of(type(self))),
        }

    def _why_missing(self, capability: type) -> str:
        """Return why this topology does not provide a capability, and what to do."""
        return (
            f"It provides {names(capabilities_of(type(self)))}. Use a topology that provides {capability.__name__}, "
            f"or inherit {capability.__name__} in {self.token.rpartition(':')[2]} and implement it."
        )

    if not TYPE_CHECKING:  # A checker that saw this would accept every attribute.

        def __getattr__(self, attribute: str) -> Any:
            """Explain an attribute that belongs to a capability which this topology lacks."""
            if not attribute.startswith("_"):
                for capability in known_capabilities():
                    if attribute in vars(capability):
                        msg = (
                            f"{self.token.rpartition(':')[2]} '{self.__dict__.get('name', '?')}' does not provide "
                            f"{capability.__name__}, so it has no {attribute}(). {self._why_missing(capability)}"
                        )
                        raise CapabilityError(msg)
            msg = f"'{type(self).__name__}' object has no attribute '{attribute}'"
            raise AttributeError(msg)


T = TypeVar("T", covariant=True)  # noqa: PLC0105 -- users read it in signatures.
D = TypeVar("D", bound=type)


class HigherOrderTopology(Topology, Generic[T]):
    """A topology made of topologies: provides what all members provide and what it knows how to derive.

    A subclass gives its constructor the members it wants (two for failover, any number for others) and hands them to
    `__init__` by role. `derive` registers how a capability is made of the members' capability. The class of each
    instance is composed from the members' capabilities, so `isinstance`, `hasattr`, `dir` and `help` tell the truth.
    """

    members: Mapping[str, T]
    """The members by their role, in order."""

    _derivations: ClassVar[dict[type, type]] = {}
    _composed: ClassVar[dict[tuple[type, tuple[type, ...]], type]] = {}

    def __new__(cls, name: str, *args: Any, **kwargs: Any) -> Self:
        """Compose the class from the capabilities of the topologies among the arguments."""
        del name
        members = list(_topologies_in((*args, *kwargs.values())))
        common = frozenset[type]()
        if members:
            common = frozenset.intersection(*(capabilities_of(type(member)) for member in members))
        return cast("Self", object.__new__(cls._compose(common)))

    def __init__(self, name: str, members: Mapping[str, T], opts: pulumi.ResourceOptions | None = None) -> None:
        """Register the component.

        Raises:
            InputError: a member is not a topology, there is none, or one is given twice.
        """
        problems = [
            Problem(role, f"{member!r} is not a topology; give an instance of a Topology")
            for role, member in members.items()
            if not isinstance(member, Topology)
        ]
        if not members:
            problems.append(Problem("members", "there are none; give at least one topology"))
        if len({id(member) for member in members.values()}) < len(members):
            found = ", ".join(f"{role}={getattr(m, 'name', m)!r}" for role, m in members.items())
            problems.append(Problem("members", f"one topology is given twice ({found}); each member is its own place"))
        if problems:
            raise InputError(f"{self.token.rpartition(':')[2]} '{name}'", problems)
        self.members = dict(members)
        super().__init__(name, opts)

    @classmethod
    def derive(cls, capability: type) -> Callable[[D], D]:
        """Return a decorator that registers a class as this topology's derivation of a capability.

        The derivation is a subclass of the higher-order class that implements the capability's methods, each with
        `self: <HigherOrder>[<Capability>]`, by calling the members' methods.

        Raises:
            TypeError: another derivation of the same capability is registered.
        """

        def register(derivation: D) -> D:
            known = cls._all_derivations().get(capability, derivation)
            if (known.__module__, known.__qualname__) != (derivation.__module__, derivation.__qualname__):
                msg = (
                    f"{cls.__name__} derives {capability.__name__} by {known.__qualname__} already; "
                    f"{derivation.__qualname__} would make a second way. Subclass {cls.__name__} to have another."
                )
                raise TypeError(msg)
            cls._derivations = {**vars(cls).get("_derivations", {}), capability: derivation}
            return derivation

        return register

    @classmethod
    def _all_derivations(cls) -> dict[type, type]:
        found: dict[type, type] = {}
        for base in reversed(cls.__mro__):
            found.update(vars(base).get("_derivations", {}))
        return found

    @classmethod
    def _compose(cls, common: frozenset[type]) -> type:
        derived = {c: d for c, d in cls._all_derivations().items() if c in common}
        key = (cls, tuple(derived.values()))
        if key not in cls._composed:
            bases = [base for pair in derived.items() for base in reversed(pair)]
            label = ", ".join(c.__name__ for c in derived)
            body = {"__module__": cls.__module__, "__doc__": cls.__doc__, "token": cls.token}
            HigherOrderTopology._composed[key] = type(f"{cls.__name__}[{label}]", (cls, *bases), body)
        return cls._composed[key]

    def _description(self) -> dict[str, Any]:
        members = {role: cast("Topology", member).name for role, member in self.members.items()}
        return {**super()._description(), "members": members}

    def _why_missing(self, capability: type) -> str:
        kind = self.token.rpartition(":")[2]
        lacking = [m for m in map(_as_topology, self.members.values()) if not isinstance(m, capability)]
        if not lacking:
            return (
                f"Every member provides {capability.__name__}, but {kind} has no derivation for it: import the "
                f"package that has one, or write it (docs: write your own capability)."
            )
        provided = "; ".join(
            f"{role} '{m.name}' ({m.token.rpartition(':')[2]}) provides {names(capabilities_of(type(m)))}"
            for role, m in zip(self.members, map(_as_topology, self.members.values()), strict=True)
        )
        missing = " and ".join(f"'{member.name}'" for member in lacking)
        return (
            f"{kind} provides what all its members provide, and {missing} "
            f"{'lacks' if len(lacking) == 1 else 'lack'} {capability.__name__}: {provided}. "
            f"Use members that provide {capability.__name__}, or do not ask for it here."
        )


def _as_topology(member: object) -> Topology:
    return cast("Topology", member)


def _topologies_in(values: Iterable[object]) -> Iterable[Topology]:
    """Iterate over the topologies among arguments, also those inside a sequence or a mapping of members."""
    for value in values:
        if isinstance(value, Topology):
            yield value
        elif isinstance(value, Mapping):
            yield from _topologies_in(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield from _topologies_in(value)
