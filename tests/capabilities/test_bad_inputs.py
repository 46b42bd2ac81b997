"""Bad inputs: each with its clear message and its path, all of them together, and nothing registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pulumi
import pytest

from harmony_pulumi import (
    Authentication,
    Database,
    FailoverTopology,
    InputError,
    LinuxHostTopology,
    MemberPlacement,
    PostgreSQL,
    PostgreSQLConfig,
)

OUTPUTS: dict[str, Any] = {
    "endpoint": {"host": "localhost", "port": 5432},
    "credentials": {"orders": "a password"},
    "ca_certificate": "PEM",
    "identity": "identity",
    "serving": "primary",
}
"""What a deployment looks at in the outputs of its servers and its pair."""


class Recorder(pulumi.runtime.Mocks):
    """Records what a program registers."""

    def __init__(self) -> None:
        self.registered: list[str] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[Any, Any]]:
        self.registered.append(args.typ)
        return args.name, {**args.inputs, **OUTPUTS}

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise AssertionError(args.token)


def registered_by(program: Callable[[], object]) -> list[str]:
    """Run a program under mocks to its end, and return the types of what it registered, in order of their names."""
    recorder = Recorder()
    pulumi.runtime.set_mocks(recorder, project="project", stack="stack")

    def to_its_end() -> None:  # What a program returns would be awaited.
        program()

    cast("Any", pulumi.runtime.test)(to_its_end)()
    return sorted(kind for kind in recorder.registered if kind != "pulumi:pulumi:Stack")


TOPOLOGIES = ["harmony:index:FailoverTopology", "harmony:index:LinuxHostTopology", "harmony:index:LinuxHostTopology"]
DEPLOYMENT = [
    "pulumi-python:dynamic/harmony:PostgreSQLPair",
    "pulumi-python:dynamic/harmony:PostgreSQLServer",
    "pulumi-python:dynamic/harmony:PostgreSQLServer",
]


def a_pair() -> FailoverTopology[PostgreSQL]:
    return FailoverTopology("o", primary=LinuxHostTopology("montreal"), replica=LinuxHostTopology("toronto"))


def refusal_of(make: Callable[[], object]) -> InputError:
    """Return what is wrong with a configuration that a program deploys; check that only the topology was registered."""
    caught: list[InputError] = []

    def program() -> None:
        site = a_pair()
        with pytest.raises(InputError) as error:
            site.deploy_postgresql("orders", cast("Any", make()))
        caught.append(error.value)

    assert registered_by(program) == TOPOLOGIES
    return caught[0]


def test_what_is_registered_is_seen() -> None:
    def program() -> None:
        a_pair().deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))

    assert registered_by(program) == sorted([*TOPOLOGIES, *DEPLOYMENT])


def config(**values: Any) -> Callable[[], object]:
    given: dict[str, Any] = {"databases": ["orders"], **values}
    return lambda: PostgreSQLConfig(**given)


BAD_VALUES: dict[str, tuple[Callable[[], object], str, str]] = {
    "no database": (config(databases=[]), "databases", "there are none; name at least one"),
    "an empty name": (config(databases=[""]), "databases.0.name", "is empty; expected a name of 1 to 63 bytes"),
    "a long name": (config(databases=["é" * 32]), "databases.0.name", "has 64 bytes; PostgreSQL takes at most 63"),
    "a control character": (config(databases=["a\nb"]), "databases.0.name", "has a control character"),
    "PostgreSQL's own database": (config(databases=["template1"]), "databases.0.name", "is PostgreSQL's own"),
    "a database twice": (config(databases=["a", "b", "a"]), "databases.2.name", "is databases.0 already"),
    "a reserved owner": (
        lambda: PostgreSQLConfig(databases=(Database(name="a", owner="pg_monitor"),)),
        "owner",
        "is a reserved role",
    ),
    "a default owner that is reserved": (config(databases=["pg_x"]), "databases.0.owner", "is a reserved role"),
    "an unknown field": (config(database="orders"), "database", "did you mean databases?"),
    "a privileged port": (config(port=80), "port", "greater than or equal to 1024"),
    "a port beyond the last": (config(port=70000), "port", "less than or equal to 65535"),
    "an unsupported version": (config(version=12), "version", "greater than or equal to 13"),
    "an unknown setting": (config(settings={"work_men": "8MB"}), "settings.work_men", "work_mem"),
    "a setting of another version": (
        config(version=14, settings={"recovery_prefetch": "try"}),
        "settings.recovery_prefetch",
        "15",
    ),
    "a value that is no number": (config(settings={"work_mem": "lots"}), "settings.work_mem", "'lots' is not a"),
    "a value out of range": (config(settings={"max_connections": 0}), "settings.max_connections", "1"),
    "a managed setting": (config(settings={"port": 5433}), "settings.port", "use the field `port`"),
    "fsync off": (config(settings={"fsync": False}), "settings.fsync", "a crash of the host would corrupt the data"),
    "fsync off, cut short": (config(settings={"fsync": "f"}), "settings.fsync", "would corrupt the data"),
    "a failed write that is tried again": (
        config(settings={"data_sync_retry": "on"}),
        "settings.data_sync_retry",
        "never have reached the disk",
    ),
    "nothing but broken TLS": (
        config(settings={"ssl_max_protocol_version": "TLSv1.1"}),
        "settings.ssl_max_protocol_version",
        "TLS below 1.2 is broken",
    ),
    "no TLS at all": (
        config(settings={"ssl_min_protocol_version": "TLSv1.3", "ssl_max_protocol_version": "TLSv1.2"}),
        "settings.ssl_max_protocol_version",
        "leaves no version of TLS: it is tlsv1.2, below ssl_min_protocol_version, which is tlsv1.3",
    ),
    "no connection for clients": (
        config(settings={"superuser_reserved_connections": 100}),
        "settings.superuser_reserved_connections",
        "leaves no connection to clients: 100 are reserved, and max_connections is 100; reserve fewer",
    ),
    "no connection for clients, of two reserves": (
        config(settings={"max_connections": 20, "reserved_connections": 17}),
        "settings.reserved_connections",
        "20 are reserved, and max_connections is 20",
    ),
    "a log that is collected": (
        config(settings={"logging_collector": True}),
        "settings.logging_collector",
        "it takes the log elsewhere, and harmony reads the server's log file",
    ),
    "a log that goes elsewhere": (
        config(settings={"log_destination": "csvlog, syslog"}),
        "settings.log_destination",
        "is 'csvlog, syslog'; expected stderr, alone or among others: harmony reads the server's log file",
    ),
    "a log in another language": (
        config(settings={"lc_messages": "fr_FR.UTF-8"}),
        "settings.lc_messages",
        "expected C, POSIX or an English one",
    ),
    "a log in whatever language": (config(settings={"lc_messages": ""}), "settings.lc_messages", "is ''; expected C"),
    "a restore's command": (config(settings={"restore_command": "cp"}), "settings.restore_command", "a restore"),
    "a restore's last command": (config(settings={"recovery_end_command": "x"}), "settings.recovery_end_command", "a"),
    "a command after a restore's point": (
        config(settings={"archive_cleanup_command": "x"}),
        "settings.archive_cleanup_command",
        "belongs to a restore",
    ),
    "a command that archives": (
        config(settings={"archive_command": "cp %p /srv/%f"}),
        "settings.archive_command",
        "has a shell run it, and nothing that is declared here reaches a shell; use archive_library",
    ),
    "a command that knows a passphrase": (
        config(settings={"SSL_passphrase_command": "echo x"}),
        "settings.SSL_passphrase_command",
        "has a shell run it",
    ),
    "a setting twice": (
        config(settings={"work_mem": "8MB", "Work_Mem": "9MB"}),
        "settings.Work_Mem",
        "is work_mem again",
    ),
    "full_page_writes off": (config(settings={"full_page_writes": "no"}), "settings.full_page_writes", "corrupt"),
    "wal_level minimal": (config(settings={"wal_level": "minimal"}), "settings.wal_level", "no replica can be made"),
    "broken TLS": (
        config(settings={"ssl_min_protocol_version": "TLSv1.1"}),
        "settings.ssl_min_protocol_version",
        "TLS below 1.2 is broken",
    ),
    "no senders for replicas": (
        config(settings={"max_wal_senders": 0}),
        "settings.max_wal_senders",
        "expected at least 4",
    ),
    "a restore's setting": (
        config(settings={"recovery_target_lsn": "0/0"}),
        "settings.recovery_target_lsn",
        "belongs to a restore",
    ),
    "a new line in a setting": (config(settings={"search_path": "a\nfsync=off"}), "settings.search_path", "control"),
    "synchronous that is not": (
        config(replication="synchronous", settings={"synchronous_commit": "local"}),
        "settings.synchronous_commit",
        "acknowledges a commit before the replica has it",
    ),
    "an unknown mode": (config(replication="semi"), "replication", "'asynchronous' or 'synchronous'"),
    "a relative directory": (config(directory="data"), "directory", "expected an absolute path"),
    "a directory that a shell would read": (config(directory="/srv/$(id)"), "directory", "expected an absolute path"),
    "a directory with ..": (config(directory="/srv/../etc"), "directory", "without a trailing slash, '.' or '..'"),
    "a network that is none": (
        lambda: PostgreSQLConfig(databases=("a",), authentication=Authentication(networks=("10.0.0.0/33",))),
        "networks.0",
        "is not a network",
    ),
    "a small slot bound": (config(slot_size_bound="1MB"), "slot_size_bound", "is not a size of at least 64MB"),
    "a slot bound that is no size": (config(slot_size_bound="big"), "slot_size_bound", "is not a size"),
    "a short password": (
        config(passwords={"orders": "abc"}),
        "passwords.orders",
        "has 3 characters; expected at least",
    ),
    "a password of nobody": (config(passwords={"nobody": "long enough"}), "passwords.nobody", "owns no database"),
    "a lifetime of nothing": (config(certificate_lifetime_days=0), "certificate_lifetime_days", "greater than"),
    "a locale with a shell's text": (config(locale="C; rm"), "locale", "is not a locale's name"),
    "a deadline of nothing": (config(deadlines={"start": 0}), "deadlines.start", "greater than or equal to 1"),
    "an adopted folder inside the own": (
        config(adopt="/srv/a/data", directory="/srv/a"),
        "directory",
        "overlap; keep them apart",
    ),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_is_refused_with_its_path_and_what_to_do(case: str) -> None:
    make, path, message = BAD_VALUES[case]
    error = refusal_of(make)
    found = [problem for problem in error.problems if problem.path == path]
    assert len(found) == 1, error
    assert message in found[0].message
    assert "nothing was registered" in str(error)


def test_the_bad_values_are_many_and_no_two_are_told_alike() -> None:
    told: list[str] = []
    for make, _, _ in BAD_VALUES.values():
        with pytest.raises(InputError) as caught:
            make()
        told.append("\n".join(map(str, caught.value.problems)))
    assert len(told) >= 20
    assert len(set(told)) == len(told)


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(InputError) as caught:
        PostgreSQLConfig(databases=("orders",), passwords={"orders": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(PostgreSQLConfig.model_construct(passwords={"orders": "hunter2"}))


def test_all_problems_are_told_together() -> None:
    with pytest.raises(InputError) as caught:
        PostgreSQLConfig(
            databases=["template1", "x" * 64],
            port=1,
            settings={"fsync": False, "work_men": 1},
        )
    assert {p.path for p in caught.value.problems} == {
        "databases.0.name",
        "databases.1.name",
        "port",
        "settings.fsync",
        "settings.work_men",
    }
    with pytest.raises(InputError) as caught:
        PostgreSQLConfig(databases=["a", "a"], settings={"fsync": False, "work_men": 1})
    assert [p.path for p in caught.value.problems] == ["databases.1.name", "settings.fsync", "settings.work_men"]


def test_problems_of_fields_together_are_told_with_those_of_fields_alone() -> None:
    with pytest.raises(InputError) as caught:
        PostgreSQLConfig(
            databases=["orders"],
            passwords={"nobody": "long enough", "orders": "short"},
            port=80,
            adopt="/srv/a/data",
            directory="/srv/a",
            replication="synchronous",
            settings={"Synchronous_Commit": "off", "fsync": False},
        )
    assert {p.path for p in caught.value.problems} == {
        "passwords.nobody",
        "passwords.orders",
        "port",
        "directory",
        "settings.Synchronous_Commit",
        "settings.fsync",
    }


def test_what_depends_on_a_bad_field_is_not_held_against_the_others() -> None:
    with pytest.raises(InputError) as caught:
        config(databases=["template1"], passwords={"orders": "long enough"})()
    assert [p.path for p in caught.value.problems] == ["databases.0.name"]
    with pytest.raises(InputError) as caught:
        config(replication="semi", settings={"synchronous_commit": "off"})()
    assert [p.path for p in caught.value.problems] == ["replication"]


GOOD_SETTINGS: list[dict[str, Any]] = [
    {"log_destination": "stderr,syslog"},
    {"log_destination": '"STDERR", csvlog'},
    *({"lc_messages": name} for name in ("C", "C.UTF-8", "POSIX", "en_US.UTF-8", "en_GB")),
    {"superuser_reserved_connections": 150, "max_connections": 200},
    {"archive_mode": "on", "archive_library": "basic_archive"},
    {"ssl_min_protocol_version": "TLSv1.3", "ssl_max_protocol_version": ""},
    {"ssl_min_protocol_version": "TLSv1.2", "ssl_max_protocol_version": "TLSv1.3"},
    {"data_sync_retry": "off", "logging_collector": "no", "fsync": "t"},
    {"recovery_min_apply_delay": "1h"},
]


@pytest.mark.parametrize("settings", GOOD_SETTINGS, ids=str)
def test_a_setting_that_does_no_harm_is_taken(settings: dict[str, Any]) -> None:
    config(settings=settings)()


def test_what_an_adopted_server_may_have_set_is_not_guessed() -> None:
    config(adopt="/srv/data", settings={"superuser_reserved_connections": 150})()
    with pytest.raises(InputError):
        config(adopt="/srv/data", settings={"superuser_reserved_connections": 150, "max_connections": 150})()
    with pytest.raises(InputError) as caught:
        config(settings={"superuser_reserved_connections": 150, "max_connections": 0})()
    assert [p.path for p in caught.value.problems] == ["settings.max_connections"]


BAD_PAIRS: dict[str, tuple[dict[str, Any], str, str]] = {
    "one port for both": ({"port": 5499}, "port", "two members on one host cannot both have port 5499"),
    "one directory for both": (
        {"directory": "/srv/pg"},
        "directory",
        "two members on one host cannot both have directory",
    ),
    "one port for both, by member": (
        {"members": {"montreal": MemberPlacement(port=5499), "toronto": MemberPlacement(port=5499)}},
        "members.toronto.port",
        "which members.montreal.port asks for, too",
    ),
    "one port for both, from two places": (
        {"port": 5499, "members": {"toronto": MemberPlacement(port=5499)}},
        "members.toronto.port",
        "which port asks for, too",
    ),
    "a directory inside the other's": (
        {
            "members": {
                "montreal": MemberPlacement(directory="/srv/pg"),
                "toronto": MemberPlacement(directory="/srv/pg/toronto"),
            }
        },
        "members.toronto.directory",
        "cannot both have directory /srv/pg/toronto, which overlaps /srv/pg of members.montreal.directory; give each",
    ),
    "a directory around the other's": (
        {
            "members": {
                "montreal": MemberPlacement(directory="/srv/pg/montreal"),
                "toronto": MemberPlacement(directory="/srv/pg"),
            }
        },
        "members.toronto.directory",
        "which overlaps /srv/pg/montreal of members.montreal.directory",
    ),
    "an adopted folder inside the replica's": (
        {"adopt": "/srv/pg/data", "members": {"toronto": MemberPlacement(directory="/srv/pg")}},
        "members.toronto.directory",
        "which overlaps /srv/pg/data of adopt",
    ),
    "an adopted folder inside the primary's own": (
        {"adopt": "/srv/pg/data", "members": {"montreal": MemberPlacement(directory="/srv/pg")}},
        "members.montreal.directory",
        "/srv/pg and adopt=/srv/pg/data overlap; keep them apart",
    ),
    "a member that is not there": (
        {"members": {"ottawa": MemberPlacement(port=5499)}},
        "members.ottawa",
        "no topology of that name runs this database; known: montreal, toronto",
    ),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_a_bad_pair_is_refused_before_anything_is_registered(case: str) -> None:
    values, path, message = BAD_PAIRS[case]
    error = refusal_of(lambda: PostgreSQLConfig(databases=["orders"], **values))
    found = [problem for problem in error.problems if problem.path == path]
    assert len(found) == 1, error
    assert message in found[0].message


@pytest.fixture
def mocks() -> Iterator[Recorder]:
    recorder = Recorder()
    pulumi.runtime.set_mocks(recorder, project="project", stack="stack")
    yield recorder
    pulumi.runtime.set_mocks(Recorder(), project="project", stack="stack")


HERE, ELSEWHERE = "d" * 32, "e" * 32


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ((None, None), "two members on one host cannot both have port 5499;"),
        ((HERE, HERE), "two members on one host cannot both have port 5499;"),
        ((HERE, None), "two members that may be on one host cannot both have port 5499;"),
        ((None, HERE), "or say which machine each is on (LinuxHostTopology: `machine_id`)"),
        ((HERE, ELSEWHERE), None),
    ],
)
def test_members_whose_machines_are_not_told_apart_may_be_on_one_host(
    machines: tuple[str | None, str | None], message: str | None, mocks: Recorder
) -> None:
    del mocks
    primary, replica = (LinuxHostTopology(f"host{n}", machine_id=machine) for n, machine in enumerate(machines))
    site = FailoverTopology("o", primary=primary, replica=replica)
    plan = site.plan_postgresql("orders", PostgreSQLConfig(databases=["orders"], port=5499))
    assert [problem.path for problem in plan.problems] == (["port"] if message else [])
    assert all(message in problem.message for problem in plan.problems if message)


def test_the_claims_of_pairs_of_pairs_clash_like_those_of_a_pair(mocks: Recorder) -> None:
    del mocks
    names = iter("abcd")

    def pair(name: str) -> FailoverTopology[LinuxHostTopology]:
        return FailoverTopology(name, primary=LinuxHostTopology(next(names)), replica=LinuxHostTopology(next(names)))

    site = FailoverTopology("both", primary=pair("left"), replica=pair("right"))
    placements = {
        "a": MemberPlacement(directory="/srv/a"),
        "b": MemberPlacement(directory="/srv/b"),
        "d": MemberPlacement(directory="/srv/a/d", port=5499),
    }
    plan = site.plan_postgresql("orders", PostgreSQLConfig(databases=["orders"], members=placements, adopt="/srv/b/x"))
    assert [problem.path for problem in plan.problems] == ["members.b.directory", "members.d.directory"]


def test_a_replica_elsewhere_may_have_the_directory_that_the_primary_takes_over(mocks: Recorder) -> None:
    placements = {"toronto": MemberPlacement(directory="/srv/pg")}
    config = PostgreSQLConfig(databases=["orders"], members=placements, adopt="/srv/pg/data")

    def program() -> None:
        primary = LinuxHostTopology("montreal", machine_id=HERE)
        replica = LinuxHostTopology("toronto", machine_id=ELSEWHERE)
        FailoverTopology("o", primary=primary, replica=replica).deploy_postgresql("orders", config)

    cast("Any", pulumi.runtime.test)(program)()
    assert len([kind for kind in mocks.registered if "dynamic" in kind]) == 3


def test_claims_are_told_together_with_all_else_that_is_wrong_with_a_pair(mocks: Recorder) -> None:
    site = FailoverTopology("o", primary=LinuxHostTopology("montreal"), replica=LinuxHostTopology("toronto"))
    placements = {"ottawa": MemberPlacement(port=5500)}
    config = PostgreSQLConfig(databases=["orders"], port=5499, directory="/srv/pg", members=placements)
    with pytest.raises(InputError) as caught:
        site.deploy_postgresql("my orders", config)
    assert [p.path for p in caught.value.problems] == ["name", "port", "directory", "members.ottawa"]


def test_members_with_their_own_places_are_taken() -> None:
    placements = {"montreal": MemberPlacement(port=5498), "toronto": MemberPlacement(port=5499)}
    config = PostgreSQLConfig(databases=("orders",), members=placements)

    def program() -> None:
        plan = a_pair().plan_postgresql("orders", config)
        assert not plan.problems
        assert {claim.value for claim in plan.claims} == {"5498", "5499"}

    assert registered_by(program) == TOPOLOGIES


BAD_HOSTS: dict[str, tuple[Callable[[], object], str, str]] = {
    "a name with spaces": (lambda: LinuxHostTopology("my host"), "name", "'my host' is not taken"),
    "an address that is none": (lambda: LinuxHostTopology("a", address="http://x"), "address", "neither a host name"),
    "root as the server's user": (
        lambda: LinuxHostTopology("a", user="root"),
        "user",
        "PostgreSQL refuses to run as root",
    ),
    "a machine-id that is none": (
        lambda: LinuxHostTopology("a", machine_id="x"),
        "machine_id",
        "32 hexadecimal digits",
    ),
}


@pytest.mark.parametrize("case", BAD_HOSTS)
def test_a_bad_host_is_refused_before_anything_is_registered(case: str) -> None:
    make, path, message = BAD_HOSTS[case]

    def program() -> None:
        with pytest.raises(InputError) as caught:
            make()
        assert [p.path for p in caught.value.problems] == [path]
        assert message in caught.value.problems[0].message

    assert registered_by(program) == []
