"""check_topology accepts what keeps the rules of every topology, and names each rule that is broken."""

from __future__ import annotations

from typing import Any

import pytest

from harmony_pulumi import Docker, DockerConfig, DockerService, FailoverTopology, LinuxHostTopology, Topology
from harmony_pulumi.testing import ConformanceError, check_topology


class Good(Topology, Docker):
    def deploy_docker(self, name: str, config: DockerConfig) -> DockerService:
        raise NotImplementedError


class Abstract(Topology, Docker): ...


class Stolen(Good):
    token = "harmony:index:Stolen"


class Inherited(Good):
    token = Good.token


class Malformed(Good):
    token = "Malformed"


class Imitation(Topology):
    def deploy_docker(self, name: str, config: DockerConfig) -> None: ...


class Silent(Topology):
    def __getattr__(self, attribute: str) -> Any:
        raise AttributeError(attribute)


class Obliging(Topology):
    def __getattr__(self, attribute: str) -> Any:
        return None


@pytest.mark.parametrize("topology", [Good, LinuxHostTopology, FailoverTopology])
def test_a_topology_that_keeps_the_rules_passes(topology: type[Topology]) -> None:
    report = check_topology(topology)
    assert len(report.passed) == 4
    assert str(report).startswith(f"{topology.__name__}: 4 checks passed\n  - Every verb")


@pytest.mark.parametrize(
    ("topology", "found"),
    [
        (Abstract, "no deploy_docker\n  expected: all verbs of Docker"),
        (Stolen, "the token 'harmony:index:Stolen' in the package 'tests'"),
        (Inherited, "the token 'tests:index:Good', which is that of Good, too"),
        (Malformed, "the token 'Malformed'\n  expected: <package>:<module>:<class>"),
        (Imitation, "all of deploy_docker, and no Docker among the bases"),
        (Silent, "AttributeError('"),
        (Obliging, ": None\n  expected: a CapabilityError that names"),
    ],
)
def test_each_broken_rule_is_named_with_what_was_found(topology: type[Topology], found: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_topology(topology)
    assert str(caught.value).startswith(f"{topology.__name__}: this does not hold: ")
    assert found in str(caught.value)
