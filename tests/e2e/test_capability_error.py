"""A program that asks for a capability that is not there: one clean message, and nothing is deployed."""

from __future__ import annotations

import socket

import pytest

from tests.e2e.conftest import Stack

pytestmark = pytest.mark.e2e

PROGRAM = """
class Workshop(LinuxHostTopology, Docker):
    def deploy_docker(self, name, config):
        raise AssertionError("nobody may get here")

site = FailoverTopology("orders", primary=LinuxHostTopology("montreal"), replica=Workshop("toronto"))
site.deploy_docker("web", DockerConfig(image="nginx:1.27"))
site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))
"""
MESSAGE = (
    "FailoverTopology 'orders' does not provide Docker, so it has no deploy_docker(). It provides what all its members "
    "provide, and 'montreal' lacks Docker: primary 'montreal' (LinuxHostTopology) provides PostgreSQL; replica "
    "'toronto' (Workshop) provides Docker, PostgreSQL; together PostgreSQL. Use members that provide Docker, or do not "
    "ask for it here."
)
CLUSTERS = """
kubeconfig = {kubeconfig!r}
east, west = (K8sAnywhereTopology(name, kubeconfig=kubeconfig, address="127.0.0.1") for name in ("east", "west"))
site = FailoverTopology("orders", primary=east, replica=west)
site.deploy_docker("web", DockerConfig(image="nginx:1.27"))
site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))
"""
MESSAGE_OF_CLUSTERS = (
    "FailoverTopology 'orders' does not provide Docker, so it has no deploy_docker(). It provides what all its members "
    "provide, and 'east' lacks Docker and 'west' lacks Docker: primary 'east' (K8sAnywhereTopology) provides "
    "PostgreSQL; replica 'west' (K8sAnywhereTopology) provides PostgreSQL; together PostgreSQL. Use members that "
    "provide Docker, or do not ask for it here."
)
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: one
clusters: [{{name: one, cluster: {{server: 'https://127.0.0.1:{port}'}}}}]
contexts: [{{name: one, context: {{cluster: one, user: one}}}}]
users: [{{name: one, user: {{token: none}}}}]
"""
TOPOLOGIES = {
    "pulumi:pulumi:Stack",
    "harmony:index:LinuxHostTopology",
    "harmony:index:K8sAnywhereTopology",
    "main:index:Workshop",
    "harmony:index:FailoverTopology",
}


def assert_one_clean_message(shown: str, message: str = MESSAGE) -> None:
    diagnostics = shown.rpartition("Diagnostics:")[2]  # `up` shows a message as it happens, and in the end.
    assert diagnostics.count("does not provide Docker") == 1, shown
    assert message in " ".join(diagnostics.split())
    assert "Traceback" not in shown
    assert "__main__.py" not in shown


def test_preview_ends_with_one_clean_message_and_a_failing_status(stack: Stack) -> None:
    stack.program(PROGRAM)
    assert_one_clean_message(stack.preview(expect=1))
    assert stack.resources() == []


def test_up_without_a_preview_deploys_nothing(stack: Stack) -> None:
    stack.program(PROGRAM)
    assert_one_clean_message(stack.up(expect=1))
    assert {resource["type"] for resource in stack.resources()} <= TOPOLOGIES
    assert not list(stack.markers())


def test_a_pair_of_clusters_is_refused_before_anything_is_asked_of_one(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as api_server:
        api_server.setblocking(False)
        stack.program(CLUSTERS.format(kubeconfig=KUBECONFIG.format(port=api_server.getsockname()[1])))
        assert_one_clean_message(stack.preview(expect=1), MESSAGE_OF_CLUSTERS)
        assert stack.resources() == []
        assert_one_clean_message(stack.up(expect=1), MESSAGE_OF_CLUSTERS)
        assert {resource["type"] for resource in stack.resources()} <= TOPOLOGIES
        with pytest.raises(BlockingIOError):  # Nobody has come.
            api_server.accept()


def test_what_is_deployed_already_stays_as_it_is(stack: Stack) -> None:
    working = PROGRAM.replace("site.deploy_docker", "# site.deploy_docker")
    stack.program(working)
    stack.up()
    before = {resource["urn"] for resource in stack.resources()}
    stack.program(PROGRAM)
    assert_one_clean_message(stack.up(expect=1))
    assert {resource["urn"] for resource in stack.resources()} == before, "a program that ends early removes nothing"
    stack.program(working)
    stack.preview("--expect-no-changes")


def test_a_program_may_ask_before_it_insists(stack: Stack) -> None:
    stack.program(
        PROGRAM.replace(
            'site.deploy_docker("web", DockerConfig(image="nginx:1.27"))',
            'pulumi.export("docker", isinstance(site, Docker) or hasattr(site, "deploy_docker"))',
        )
    )
    stack.preview()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ('primary="montreal", replica=None', "primary: 'montreal' is not a topology"),
        ("primary=host, replica=host", "one topology is given twice (primary='a', replica='a')"),
    ],
)
def test_wrong_members_are_one_clean_message_too(stack: Stack, members: str, message: str) -> None:
    stack.program(f'host = LinuxHostTopology("a")\nFailoverTopology("orders", {members})\n')
    shown = stack.preview(expect=1)
    assert message in shown
    assert "Traceback" not in shown
