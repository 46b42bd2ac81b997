"""Topology and HigherOrderTopology: where things run, and topologies made of topologies.

This module holds the capability rule. It knows no capability and no topology in particular.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

import pulumi

from harmony_pulumi.capabilities.base import (
    Capability,
    capabilities_of,
    is_capability,
    known_capabilities,
    names,
    verbs_of,
)
from harmony_pulumi.input_errors import CapabilityError, InputError, Problem

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

    def capabilities(self) -> frozenset[type]:
        """Return the capabilities that this topology provides."""
        return capabilities_of(type(self))

    @property
    def _kind(self) -> str:
        """The name of the class as its author wrote it."""
        return self.token.rpartition(":")[2]

    def _description(self) -> dict[str, Any]:
        """Return what `harmony graph` shows of this topology."""
        return {
            "topology": self.name,
            "kind": self._kind,
            "capabilities": sorted(c.__name__ for c in self.capabilities()),
        }

    def _lack(self, capability: type) -> list[str]:
        """Return in words which topologies are the reason that a capability is missing here."""
        if all(hasattr(type(self), verb) for verb in verbs_of(capability)):
            what = capability.__name__
            return [
                f"'{self.name}' has the methods of {what} but does not inherit it (`class {self._kind}(..., {what})`)"
            ]
        return [f"'{self.name}' lacks {capability.__name__}"]

    def _why_missing(self, capability: type) -> str:
        """Return why this topology does not provide a capability, and what to do."""
        return (
            f"It provides {names(self.capabilities())}. Use a topology that provides {capability.__name__}, or inherit "
            f"{capability.__name__} in {self._kind} and implement it."
        )

    if not TYPE_CHECKING:  # A checker that saw this would accept every attribute.

        def __getattr__(self, attribute: str) -> Any:
            """Explain an attribute that belongs to a capability which this topology lacks."""
            for capability in known_capabilities():
                if attribute in verbs_of(capability):
                    msg = (
                        f"{self._kind} '{self.__dict__.get('name', '?')}' does not provide {capability.__name__}, "
                        f"so it has no {attribute}(). {self._why_missing(capability)}"
                    )
                    raise CapabilityError(msg)
            msg = f"'{type(self).__name__}' object has no attribute '{attribute}'"
            verbs = sorted(verb for capability in capabilities_of(type(self)) for verb in verbs_of(capability))
            if close := get_close_matches(attribute, verbs, n=1):
                msg += f"; did you mean {close[0]}?"
            raise AttributeError(msg)


# A member is something that provides capabilities: with the bound, a checker refuses a name where a topology belongs.
T = TypeVar("T", bound=Capability, covariant=True)  # noqa: PLC0105 -- users read it in signatures.
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

    def __init__(self, name: str, members: Mapping[str, T], opts: pulumi.ResourceOptions | None = None) -> None:
        """Compose the class from what the members provide, and register the component.

        Raises:
            InputError: a member is not a topology, there is none, or one is given twice.
            TypeError: the class has a capability's verb of its own, whatever its members provide.
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
            raise InputError(f"{self._kind} '{name}'", problems)
        self.members = dict(members)
        common = frozenset[type].intersection(*(member.capabilities() for member in members.values()))
        self.__class__ = cast("type[Self]", self._compose(common))
        super().__init__(name, opts)

    @classmethod
    def derive(cls, capability: type) -> Callable[[D], D]:
        """Return a decorator that registers a class as this topology's derivation of a capability.

        The derivation is a subclass of the higher-order class that implements the capability's methods, each with
        `self: <HigherOrder>[<Capability>]`, by calling the members' methods. It has no constructor and no state.
        A subclass of the higher-order class may refine a derivation by one that inherits it.

        Raises:
            TypeError: `capability` is none, the derivation lacks one of its verbs, or another one is registered.
        """

        def register(derivation: D) -> D:
            if not is_capability(capability):
                what = capability.__name__
                msg = f"{what} is not a capability; expected a protocol: `class {what}(Capability, Protocol)`"
                raise TypeError(msg)
            abstract: frozenset[str] = getattr(capability, "__abstractmethods__", frozenset())
            if absent := sorted(verb for verb in abstract if not hasattr(derivation, verb)):
                missing = ", ".join(absent)
                msg = f"{derivation.__qualname__} lacks {missing} of {capability.__name__}: implement every verb"
                raise TypeError(msg)
            own = vars(cls).get("_derivations", {})
            known = cls._all_derivations().get(capability, derivation)
            same = (known.__module__, known.__qualname__) == (derivation.__module__, derivation.__qualname__)
            if not same and (capability in own or not issubclass(derivation, known)):
                msg = (
                    f"{cls.__name__} derives {capability.__name__} by {known.__qualname__} already; "
                    f"{derivation.__qualname__} would make a second way. To have another, subclass {cls.__name__}, and "
                    f"derive for the subclass by a class that inherits {known.__qualname__}."
                )
                raise TypeError(msg)
            cls._derivations = {**own, capability: derivation}
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
        """Return this class with the derivations of the capabilities that its members have in common."""
        cls._refuse_verbs_of_its_own()
        derived = {c: d for c, d in cls._all_derivations().items() if c in common}
        key = (cls, tuple(derived.values()))
        if key not in cls._composed:
            body = {"__module__": cls.__module__, "__doc__": cls.__doc__, "token": cls.token}
            label = f"{cls.__name__}[{names(frozenset(derived))}]"
            bases = (*_heirs_first(derived.values()), cls, *_heirs_first(derived))
            HigherOrderTopology._composed[key] = type(label, bases, body)
        return cls._composed[key]

    @classmethod
    def _refuse_verbs_of_its_own(cls) -> None:
        """Refuse a class that has a verb whatever its members provide: `hasattr` would lie.

        Type checkers are to see derivations among the bases of the class, and Python is not: see
        `harmony_pulumi.failover` for how.
        """
        provided = capabilities_of(cls)
        known = frozenset[str]().union(*map(verbs_of, provided))
        for capability in set(known_capabilities()) - provided:
            verbs = verbs_of(capability) - known
            found = [(verb, base) for base in cls.__mro__ for verb in sorted(verbs & vars(base).keys())]
            for verb, base in found[:1]:
                what = capability.__name__
                msg = (
                    f"{cls.__name__} has {verb}() of {what} from {base.__qualname__}, whatever its members provide. "
                    f"Let that be in a derivation, registered with `derive({what})`, and the derivation a base of "
                    f"{cls.__name__} `if TYPE_CHECKING` only (docs: write your own capability)."
                )
                raise TypeError(msg)

    def _description(self) -> dict[str, Any]:
        return {**super()._description(), "members": {role: m.name for role, m in self._topologies.items()}}

    @property
    def _topologies(self) -> dict[str, Topology]:
        """The members, as what they are beside what they provide."""
        return {role: cast("Topology", member) for role, member in self.members.items()}

    def _reasons(self, capability: type) -> list[str]:
        lacking = (m for m in self._topologies.values() if capability not in m.capabilities())
        return [reason for member in lacking for reason in member._lack(capability)]

    def _lack(self, capability: type) -> list[str]:
        reasons = self._reasons(capability) or [f"{self._kind} has no derivation of {capability.__name__}"]
        return [f"{reason} (inside '{self.name}')" for reason in reasons]

    def _why_missing(self, capability: type) -> str:
        what = capability.__name__
        reasons = self._reasons(capability)
        if not reasons:
            return (
                f"Every member provides {what}, but {self._kind} has no derivation of it: import the package that has "
                f"one, or write it (docs: write your own capability)."
            )
        provided = "; ".join(
            f"{role} '{m.name}' ({m._kind}) provides {names(m.capabilities())}" for role, m in self._topologies.items()
        )
        return (
            f"It provides what all its members provide, and {' and '.join(reasons)}: {provided}; "
            f"together {names(self.capabilities())}. Use members that provide {what}, or do not ask for it here."
        )


def _heirs_first(classes: Iterable[type]) -> list[type]:
    """Sort classes as Python wants bases: one that inherits another has more ancestors, and comes before it."""
    return sorted(classes, key=lambda cls: -len(cls.__mro__))
