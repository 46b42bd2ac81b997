"""The capability rule: a higher-order topology provides what all its members provide and it can derive, no more.

Topologies here are declared for the tests; Pulumi's engine is mocked, and tells what was registered.
"""

from __future__ import annotations

import inspect
import pydoc
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, ParamSpec, Protocol, cast, runtime_checkable

import pulumi
import pytest

from harmony_pulumi import (
    Capability,
    CapabilityError,
    Docker,
    DockerConfig,
    DockerService,
    FailoverTopology,
    HigherOrderTopology,
    InputError,
    LinuxHostTopology,
    PostgreSQL,
    PostgreSQLConfig,
    Topology,
)
from harmony_pulumi.capabilities.base import known_capabilities, verbs_of
from harmony_pulumi.failover import Failover, FailoverDocker, FailoverPostgreSQL
from harmony_pulumi.topologies.base import T

P = ParamSpec("P")


# -- a capability, its derivations and topologies, as a third party would write them ---------------------------------


@runtime_checkable
class Mailbox(Capability, Protocol):
    """Keeps mail."""

    @abstractmethod
    def deploy_mailbox(self, name: str) -> str: ...


class Post(Topology, Mailbox):
    def deploy_mailbox(self, name: str) -> str:
        return f"{name} at {self.name}"


class Workshop(Topology, Docker):
    def deploy_docker(self, name: str, config: DockerConfig) -> DockerService:
        del config
        return DockerService(f"{name} at {self.name}", pulumi.Output.from_input(name), self)


class Office(Post, Workshop):
    """Provides two capabilities."""


class Host(LinuxHostTopology, Docker):
    """Provides PostgreSQL and Docker."""

    def deploy_docker(self, name: str, config: DockerConfig) -> DockerService:
        del config
        return DockerService(f"{name} at {self.name}", pulumi.Output.from_input(name), self)


class Bare(Topology):
    """Provides nothing."""


class Imitation(Topology):
    """Has the methods of a mailbox, and does not say that it is one."""

    def deploy_mailbox(self, name: str) -> str:
        return name


class Ring(HigherOrderTopology[T]):
    """Any number of members."""

    def __init__(self, name: str, stations: Sequence[T], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, {f"stations.{index}": station for index, station in enumerate(stations)}, opts)


@Ring.derive(Mailbox)
class RingMailbox(Ring[T]):
    def deploy_mailbox(self: Ring[Mailbox], name: str) -> str:
        return " + ".join(member.deploy_mailbox(name) for member in self.members.values())


NGINX = DockerConfig(image="nginx:1.27")
KINDS: dict[str, Callable[[str], Topology]] = {
    "LinuxHost": LinuxHostTopology,
    "Workshop": Workshop,
    "Host": Host,
    "Office": Office,
    "Bare": Bare,
}


# -- running a program against a mocked engine -----------------------------------------------------------------------


class Engine(pulumi.runtime.Mocks):
    def __init__(self) -> None:
        self.registered: list[tuple[str, str]] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.registered.append((args.typ, args.name))
        return args.name, args.inputs

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[str, Any], None]:
        raise AssertionError(args.token)


def registered_by(program: Callable[[], object]) -> list[tuple[str, str]]:
    """Run a program to its end, and return the types and names of what it registered."""
    engine = Engine()
    pulumi.runtime.set_mocks(engine, project="project", stack="stack")

    def to_its_end() -> None:
        program()

    cast("Any", pulumi.runtime.test)(to_its_end)()
    return [(kind, name) for kind, name in engine.registered if kind != "pulumi:pulumi:Stack"]


def in_a_program(test: Callable[P, None]) -> Callable[P, None]:
    """Make a test's body a Pulumi program."""

    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        registered_by(lambda: test(*args, **kwargs))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    cast("Any", run).__signature__ = inspect.signature(test)
    return run


# -- what is provided ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", [PostgreSQL, Docker])
@pytest.mark.parametrize(("first", "second"), list(product(KINDS, KINDS)))
@in_a_program
def test_a_pair_provides_exactly_what_both_provide_however_it_is_asked(
    capability: type, first: str, second: str
) -> None:
    a, b = KINDS[first]("a"), KINDS[second]("b")
    pair = FailoverTopology("pair", primary=a, replica=b)
    expected = isinstance(a, capability) and isinstance(b, capability)
    assert isinstance(pair, capability) == expected
    assert (capability in pair.capabilities()) == expected
    described = pydoc.render_doc(type(pair), renderer=cast("Any", pydoc).plaintext)
    for verb in verbs_of(capability):
        assert hasattr(pair, verb) == expected
        assert hasattr(type(pair), verb) == expected
        assert (verb in dir(pair)) == expected
        assert (f" {verb}(" in described) == expected


def test_every_capability_of_the_package_has_a_derivation_and_is_in_the_test_above() -> None:
    own = {c for c in known_capabilities() if c.__module__.startswith("harmony_pulumi.")}
    assert own == {PostgreSQL, Docker} == set(FailoverTopology._all_derivations())  # pyright: ignore[reportPrivateUsage]


@in_a_program
def test_members_of_different_kinds_share_what_they_share() -> None:
    pair: FailoverTopology[Docker] = FailoverTopology("pair", primary=Host("a"), replica=Office("b"))
    assert pair.capabilities() == {Docker}
    assert pair.deploy_docker("web", NGINX).name == "web at a"


@in_a_program
def test_a_pair_of_pairs_provides_what_all_four_provide() -> None:
    left = FailoverTopology("left", primary=Workshop("a"), replica=Workshop("b"))
    right = FailoverTopology("right", primary=Host("c"), replica=Workshop("d"))
    both = FailoverTopology("both", primary=left, replica=right)
    assert both.capabilities() == {Docker}
    assert both.deploy_docker("web", NGINX).name == "web at a"
    assert not hasattr(both, "deploy_postgresql")


@pytest.mark.parametrize("count", [1, 2, 5])
@in_a_program
def test_a_topology_of_any_number_of_members_works_by_the_same_rule(count: int) -> None:
    ring: Ring[Mailbox] = Ring("ring", [Post(f"p{index}") for index in range(count)])
    assert cast("Mailbox", ring).deploy_mailbox("m") == " + ".join(f"m at p{index}" for index in range(count))
    mixed = Ring("mixed", [*(Post(f"q{index}") for index in range(count)), Bare("r")])
    assert mixed.capabilities() == frozenset()


@in_a_program
def test_only_members_count_and_not_other_topologies_among_the_arguments() -> None:
    class Watched(Failover[T]):
        def __init__(self, name: str, *, primary: T, replica: T, witness: Topology) -> None:
            self.witness = witness
            super().__init__(name, primary=primary, replica=replica)

    watched = Watched("w", primary=Workshop("a"), replica=Workshop("b"), witness=Bare("c"))
    assert watched.capabilities() == {Docker}


@in_a_program
def test_topologies_of_the_same_capabilities_are_of_one_class() -> None:
    one = FailoverTopology("one", primary=Workshop("a"), replica=Workshop("b"))
    two = FailoverTopology[Docker]("two", primary=Host("c"), replica=Workshop("d"))
    assert type(one) is type(two)
    assert isinstance(one, FailoverTopology)
    assert type(one).__name__ == "FailoverTopology[Docker]"
    assert type(one).__doc__ == FailoverTopology.__doc__


def test_help_shows_the_parameters_that_there_are() -> None:
    assert list(inspect.signature(FailoverTopology).parameters) == ["name", "primary", "replica", "opts"]


# -- what is not -----------------------------------------------------------------------------------------------------


@in_a_program
def test_a_missing_capability_is_explained() -> None:
    pair = FailoverTopology("orders", primary=LinuxHostTopology("montreal"), replica=Host("toronto"))
    with pytest.raises(CapabilityError) as caught:
        cast("Any", pair).deploy_docker("web", NGINX)
    assert str(caught.value) == (
        "FailoverTopology 'orders' does not provide Docker, so it has no deploy_docker(). It provides what all its "
        "members provide, and 'montreal' lacks Docker: primary 'montreal' (LinuxHostTopology) provides PostgreSQL; "
        "replica 'toronto' (Host) provides Docker, PostgreSQL; together PostgreSQL. Use members that provide Docker, "
        "or do not ask for it here."
    )
    assert isinstance(caught.value, AttributeError)
    assert isinstance(caught.value, pulumi.RunError)


@in_a_program
def test_of_nested_topologies_the_innermost_reason_is_named() -> None:
    inner = FailoverTopology("inner", primary=Host("a"), replica=LinuxHostTopology("b"))
    outer = FailoverTopology("outer", primary=inner, replica=Office("c"))
    with pytest.raises(CapabilityError, match=r"and 'b' lacks Docker \(inside 'inner'\): primary 'inner'"):
        cast("Any", outer).deploy_docker("web", NGINX)


@in_a_program
def test_both_members_are_named_if_both_lack_it() -> None:
    pair = FailoverTopology("pair", primary=Bare("a"), replica=Bare("b"))
    with pytest.raises(CapabilityError, match=r"'a' lacks Docker and 'b' lacks Docker.*together nothing"):
        cast("Any", pair).deploy_docker("web", NGINX)


@in_a_program
def test_a_topology_itself_explains_what_it_lacks() -> None:
    with pytest.raises(CapabilityError, match=r"Bare 'a' does not provide Docker.*inherit Docker in Bare"):
        cast("Any", Bare("a")).deploy_docker("web", NGINX)


@in_a_program
def test_a_capability_without_a_derivation_is_explained_also_inside_another() -> None:
    pair = FailoverTopology("pair", primary=Post("a"), replica=Post("b"))
    with pytest.raises(CapabilityError, match="Every member provides Mailbox, but FailoverTopology has no derivation"):
        cast("Any", pair).deploy_mailbox("m")
    ring = Ring("ring", [pair, Post("c")])
    with pytest.raises(CapabilityError, match=r"FailoverTopology has no derivation of Mailbox \(inside 'pair'\)"):
        cast("Any", ring).deploy_mailbox("m")


@in_a_program
def test_a_look_alike_does_not_count_and_is_told_what_to_inherit() -> None:
    assert Imitation("i").capabilities() == frozenset()
    ring = Ring("ring", [Post("a"), Imitation("b")])
    assert not isinstance(ring, Mailbox)
    with pytest.raises(CapabilityError, match=r"'b' has the methods of Mailbox but does not inherit it \(`class Imita"):
        cast("Any", ring).deploy_mailbox("m")


@pytest.mark.parametrize("attribute", ["deploy_dokcer", "capability", "_deploy_docker", "__deepcopy__"])
@in_a_program
def test_any_other_missing_attribute_is_an_ordinary_error(attribute: str) -> None:
    pair = FailoverTopology("pair", primary=Host("a"), replica=Host("b"))
    with pytest.raises(AttributeError, match=rf"'FailoverTopology\[Docker, PostgreSQL\]' .* '{attribute}'") as caught:
        getattr(pair, attribute)
    assert not isinstance(caught.value, CapabilityError)


@in_a_program
def test_a_verb_that_is_misspelt_is_told_with_the_one_that_the_topology_has() -> None:
    for topology in (LinuxHostTopology("a"), FailoverTopology("pair", primary=Bare("b"), replica=Host("c"))):
        with pytest.raises(AttributeError) as caught:
            cast("Any", topology).deploy_postgres("orders")
        assert str(caught.value).endswith("; did you mean deploy_postgresql?") == (topology.name == "a")
        assert not hasattr(topology, "deploy_postgres")


def test_a_missing_capability_registers_nothing() -> None:
    def program() -> None:
        pair = FailoverTopology("pair", primary=LinuxHostTopology("a"), replica=Host("b"))
        with pytest.raises(CapabilityError):
            cast("Any", pair).deploy_docker("web", NGINX)

    assert registered_by(program) == [
        ("harmony:index:LinuxHostTopology", "a"),
        ("tests:index:Host", "b"),
        ("harmony:index:FailoverTopology", "pair"),
    ]


# -- members ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("primary", "replica", "problems"),
    [
        ("montreal", "toronto", {"primary": "'montreal' is not a topology", "replica": "'toronto' is not a topology"}),
        (None, LinuxHostTopology, {"primary": "None is not a topology", "replica": "LinuxHostTopology'> is not"}),
        (NGINX, {"a": 1}, {"primary": "DockerConfig(", "replica": "{'a': 1} is not a topology"}),
    ],
)
def test_what_is_not_a_topology_is_refused_by_its_path(primary: Any, replica: Any, problems: dict[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        FailoverTopology("pair", primary=primary, replica=replica)
    assert str(caught.value).startswith("FailoverTopology 'pair': 2 problems, nothing was registered")
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert found.keys() == problems.keys()
    for path, message in problems.items():
        assert message in found[path]


def test_the_same_topology_twice_is_refused_and_so_are_no_members() -> None:
    def program() -> None:
        one = Workshop("one")
        with pytest.raises(InputError, match=r"members: one topology is given twice \(primary='one', replica='one'\)"):
            FailoverTopology("pair", primary=one, replica=one)
        with pytest.raises(InputError, match="members: there are none; give at least one topology"):
            Ring[Any]("ring", [])

    assert registered_by(program) == [("tests:index:Workshop", "one")]


# -- type tokens: contracts with the state of every stack ------------------------------------------------------------


def test_tokens_do_not_change_with_capabilities_or_derivations() -> None:
    def program() -> None:
        FailoverTopology("docker", primary=Workshop("a"), replica=Workshop("b"))
        FailoverTopology("nothing", primary=Bare("c"), replica=Bare("d"))
        nested = FailoverTopology("both", primary=Host("e"), replica=Host("f"))
        FailoverTopology("nested", primary=nested, replica=Host("g"))

    def tokens() -> set[str]:
        return {kind for kind, _ in registered_by(program) if "Failover" in kind}

    assert tokens() == {"harmony:index:FailoverTopology"}

    class Fresh(Failover[T]):
        """Gains a derivation after its first instance was made."""

    def fresh() -> None:
        Fresh("fresh", primary=Post("a"), replica=Post("b"))

    before = registered_by(fresh)

    @Fresh.derive(Mailbox)
    class FreshMailbox(Fresh[T]):  # pyright: ignore[reportUnusedClass]
        def deploy_mailbox(self: Fresh[Mailbox], name: str) -> str:
            return self.primary.deploy_mailbox(name)

    assert registered_by(fresh) == before
    assert ("tests:index:Fresh", "fresh") in before


def test_a_token_is_of_the_package_and_the_author_may_keep_an_old_one() -> None:
    class Moved(LinuxHostTopology):
        token = "acme:index:OldName"

    class Heir(Moved):
        """Is another class, with a token of its own."""

    assert LinuxHostTopology.token == "harmony:index:LinuxHostTopology"
    assert FailoverTopology.token == "harmony:index:FailoverTopology"
    assert Moved.token == "acme:index:OldName"
    assert Heir.token == "tests:index:Heir"


# -- derivations -----------------------------------------------------------------------------------------------------


@in_a_program
def test_a_derivation_of_another_package_is_enough() -> None:
    class Mine(FailoverTopology[T]):
        """A third party's own kind of failover."""

    assert Mine("before", primary=Office("a"), replica=Office("b")).capabilities() == {Docker}

    @Mine.derive(Mailbox)
    class MineMailbox(Failover[T]):  # pyright: ignore[reportUnusedClass]
        def deploy_mailbox(self: Failover[Mailbox], name: str) -> str:
            return self.replica.deploy_mailbox(name)

    mine = Mine("after", primary=Office("c"), replica=Office("d"))
    assert mine.capabilities() == {Docker, Mailbox}
    assert cast("Any", mine).deploy_mailbox("m") == "m at d"
    assert mine.deploy_docker("web", NGINX).name == "web at c"
    plain = FailoverTopology("plain", primary=Office("e"), replica=Office("f"))
    assert plain.capabilities() == {Docker}, "what is registered on a subclass is the subclass's"


def test_a_second_derivation_is_refused() -> None:
    class Second(Failover[T]):
        def deploy_docker(self: Failover[Docker], name: str, config: DockerConfig) -> DockerService:
            return self.replica.deploy_docker(name, config)

    for topology in (Failover, FailoverTopology):
        with pytest.raises(
            TypeError, match=r"derives Docker by FailoverDocker already; .*Second would make a second way"
        ):
            topology.derive(Docker)(Second)
    assert Failover.derive(Docker)(FailoverDocker) is FailoverDocker, (
        "the same again, as a reload does, is no second one"
    )


@in_a_program
def test_a_subclass_may_refine_a_derivation_for_itself() -> None:
    class Eager(FailoverTopology[T]):
        """Starts the service at the replica, too."""

    @Eager.derive(Docker)
    class EagerDocker(FailoverDocker[T]):  # pyright: ignore[reportUnusedClass]
        def deploy_docker(self: Failover[Docker], name: str, config: DockerConfig) -> DockerService:
            self.replica.deploy_docker(name, config)
            return self.primary.deploy_docker(f"eager {name}", config)

    eager = Eager("eager", primary=Workshop("a"), replica=Workshop("b"))
    assert eager.deploy_docker("web", NGINX).name == "eager web at a"
    lazy = FailoverTopology("lazy", primary=Workshop("c"), replica=Workshop("d"))
    assert lazy.deploy_docker("web", NGINX).name == "web at c"


def test_what_derives_nothing_or_too_little_is_refused() -> None:
    class Half(Failover[T]):
        def deploy_postgresql(self, name: str, config: PostgreSQLConfig) -> None: ...

    class NoProtocol(Mailbox): ...

    class Fresh(HigherOrderTopology[T]): ...

    with pytest.raises(
        TypeError, match=r"Half lacks get_ca_certificate, get_endpoint, get_replication_certs of PostgreSQL"
    ):
        Fresh.derive(PostgreSQL)(Half)
    for wrong in (Post, NoProtocol, Capability):
        with pytest.raises(TypeError, match=rf"{wrong.__name__} is not a capability; expected a protocol"):
            Fresh.derive(wrong)(Half)


@in_a_program
def test_a_capability_that_extends_another_composes_with_it() -> None:
    @runtime_checkable
    class Archive(Mailbox, Protocol):
        @abstractmethod
        def deploy_archive(self, name: str) -> str: ...

    class Library(Post, Archive):
        def deploy_archive(self, name: str) -> str:
            return f"{name} kept at {self.name}"

    class Circle(Ring[T]): ...

    @Circle.derive(Archive)
    class CircleArchive(RingMailbox[T]):  # pyright: ignore[reportUnusedClass]
        def deploy_archive(self: Ring[Archive], name: str) -> str:
            return next(iter(self.members.values())).deploy_archive(name)

    circle = Circle("c", [Library("a"), Library("b")])
    assert circle.capabilities() == {Mailbox, Archive}
    assert cast("Any", circle).deploy_archive("x") == "x kept at a"
    assert cast("Any", circle).deploy_mailbox("x") == "x at a + x at b"
    assert Circle("d", [Library("e"), Post("f")]).capabilities() == {Mailbox}


@in_a_program
def test_a_class_that_would_have_a_verb_whatever_its_members_provide_is_refused() -> None:
    class FailoverMailbox(Failover[T]):
        def deploy_mailbox(self: Failover[Mailbox], name: str) -> str:
            return self.primary.deploy_mailbox(name)

    class Split(FailoverTopology[T], FailoverMailbox[T]):
        """Inherits a derivation at run time, as only checkers should see it."""

    class Override(FailoverTopology[T]):
        def deploy_docker(self, name: str, config: DockerConfig) -> DockerService:
            raise NotImplementedError

    for cls, verb, origin in (
        (Split, "deploy_mailbox", "FailoverMailbox"),
        (Override, "deploy_docker", "Override"),
        (FailoverPostgreSQL, "deploy_postgresql", "FailoverPostgreSQL"),
    ):
        for member in (Bare, Office):
            with pytest.raises(
                TypeError, match=rf"{cls.__name__} has {verb}\(\) of \w+ from .*{origin}, whatever its members"
            ):
                cast("Any", cls)("x", primary=member("a"), replica=member("b"))


@in_a_program
def test_a_higher_order_topology_may_provide_a_capability_of_its_own() -> None:
    class Reception(FailoverTopology[T], Mailbox):
        def deploy_mailbox(self, name: str) -> str:
            return f"{name} at reception"

    reception = Reception("r", primary=Workshop("a"), replica=Workshop("b"))
    assert reception.capabilities() == {Docker, Mailbox}
    assert reception.deploy_mailbox("m") == "m at reception"
