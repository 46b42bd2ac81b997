"""What every topology's class must keep, told from the class alone: nothing is registered, no engine is needed."""

from __future__ import annotations

import inspect
import re

from harmony_pulumi.capabilities.base import capabilities_of, known_capabilities, names, verbs_of
from harmony_pulumi.input_errors import CapabilityError
from harmony_pulumi.testing.report import Report, expect
from harmony_pulumi.topologies.base import Topology


def check_topology(topology_class: type[Topology]) -> Report:
    """Check that a topology's class keeps the rules of every topology.

    Returns:
        The checks that it passed.

    Raises:
        ConformanceError: one that it did not pass: what was found, and what is expected.
    """
    report = Report(topology_class.__qualname__)
    for check in (_implements_every_verb, _has_a_token_of_its_own, _imitates_no_capability, _explains_what_it_lacks):
        report.run(check, topology_class)
    return report


def _implements_every_verb(cls: type[Topology]) -> None:
    """Every verb of every capability that it provides is implemented."""
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    expect(
        not inspect.isabstract(cls),
        found=f"no {', '.join(missing)}",
        expected=f"all verbs of {names(capabilities_of(cls))}",
    )


def _has_a_token_of_its_own(cls: type[Topology]) -> None:
    """Its type token is its own, in its author's namespace: a token that changes replaces all that is deployed."""
    package = cls.__module__.partition(".")[0]
    expect(
        re.fullmatch(r"[A-Za-z][\w.-]*:[A-Za-z][\w/.-]*:[A-Za-z]\w*", cls.token),
        found=f"the token {cls.token!r}",
        expected="<package>:<module>:<class>: give `token` in the class body, if the module's name cannot be one",
    )
    expect(
        package == "harmony_pulumi" or not cls.token.startswith("harmony:"),
        found=f"the token {cls.token!r} in the package {package!r}",
        expected="a token that does not begin with 'harmony:', which is harmony_pulumi's own",
    )
    shared = [base.__qualname__ for base in cls.__mro__[1:] if getattr(base, "token", None) == cls.token]
    expect(
        not shared,
        found=f"the token {cls.token!r}, which is that of {', '.join(shared)}, too",
        expected="a token that no base has",
    )


def _imitates_no_capability(cls: type[Topology]) -> None:
    """What has the verbs of a capability inherits it: a look-alike is not composed."""
    provided = capabilities_of(cls)
    for capability in set(known_capabilities()) - provided:
        verbs = verbs_of(capability)
        expect(
            not all(hasattr(cls, verb) for verb in verbs),
            found=f"all of {', '.join(sorted(verbs))}, and no {capability.__name__} among the bases",
            expected=f"class {cls.__name__}(..., {capability.__name__})",
        )


def _explains_what_it_lacks(cls: type[Topology]) -> None:
    """A verb that it lacks is no attribute, and asking for it names the capability."""
    instance = object.__new__(cls)
    vars(instance).update(name="checked", members={})  # What its constructor would have set; it registers, though.
    for capability in set(known_capabilities()) - capabilities_of(cls):
        for verb in (verb for verb in verbs_of(capability) if not hasattr(cls, verb)):
            try:
                found: object = getattr(instance, verb)
            except AttributeError as error:
                found = error
            expect(
                isinstance(found, CapabilityError) and capability.__name__ in str(found),
                found=f"{verb}: {found!r}",
                expected=f"a CapabilityError that names {capability.__name__}: leave __getattr__ to Topology",
            )
