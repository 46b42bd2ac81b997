"""What a capability is. Knows no capability, no topology."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from typing_extensions import is_protocol


class Capability(Protocol):
    """Base of every capability: a runtime-checkable Protocol of verbs over declared intent.

    A topology provides a capability by inheriting it. A look-alike, which has methods of the same names, does not:
    composition needs to be told, not to guess. Name the verbs after the capability (`deploy_docker`): a topology that
    provides two capabilities has the verbs of both.
    """

    def capabilities(self) -> frozenset[type]:
        """Return the capabilities that this topology provides."""
        return capabilities_of(type(self))


def capabilities_of(cls: type) -> frozenset[type]:
    """Return the capabilities that a class provides: the capability protocols that it inherits."""
    return frozenset(c for c in cls.__mro__ if is_capability(c))


def is_capability(cls: type) -> bool:
    """Tell whether a class is a capability's protocol, as opposed to something that provides one."""
    return cls is not Capability and is_protocol(cls) and Capability in cls.__mro__


def verbs_of(capability: type) -> frozenset[str]:
    """Return the names of the methods that a capability adds to those that it extends."""
    return frozenset(name for name in vars(capability) if not name.startswith("_"))


def known_capabilities(root: type = Capability) -> Iterator[type]:
    """Iterate over every capability that this process has loaded, also those of other packages."""
    subclasses: list[type] = type.__subclasses__(root)
    for cls in subclasses:
        if is_capability(cls):
            yield cls
            yield from known_capabilities(cls)


def names(capabilities: frozenset[type]) -> str:
    """Return capabilities as words for a message: `Docker, PostgreSQL`, or `nothing`."""
    return ", ".join(sorted(c.__name__ for c in capabilities)) or "nothing"
