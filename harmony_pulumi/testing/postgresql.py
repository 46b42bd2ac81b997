"""Checks that an implementation keeps the contract of the PostgreSQL capability, with real servers.

A primary and a replica of it are deployed on two topologies of the implementation, looked at as clients, replicas and
orchestration do, destroyed, deployed again, and removed. One function a check; its docstring says what is to hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psycopg
import pulumi
from cryptography import x509
from cryptography.x509.oid import NameOID
from psycopg.conninfo import conninfo_to_dict

from harmony_pulumi.capabilities.postgresql import PostgreSQL, PostgreSQLCluster, PostgreSQLPlan, Replication
from harmony_pulumi.capabilities.postgresql_config import Deadlines, MemberPlacement, PostgreSQLConfig
from harmony_pulumi.capabilities.site import Observation, load_site
from harmony_pulumi.errors import SiteError
from harmony_pulumi.input_errors import InputError
from harmony_pulumi.orchestration.wait import wait_for
from harmony_pulumi.testing.report import Report, expect
from harmony_pulumi.testing.sandbox import Sandbox

MakeTopology = Callable[[str], PostgreSQL]

_DATABASE = "kit"
_PRIMARY, _REPLICA = "kit-one", "kit-two"
_ROWS = 1000
_DEADLINE = 60.0
_SECRET = ("uri", "credentials", "replication_certs", "certs")


def check_postgresql(make_topology: MakeTopology) -> Report:
    """Check that a topology keeps the contract of the PostgreSQL capability, by deploying with it.

    It takes a minute or so. Whatever happens, what was deployed is destroyed, data included (`on_destroy="delete"`).

    Args:
        make_topology: makes a topology of a name, for instance `MyCloudTopology`. It is called within a Pulumi program,
            several times with each of two names; the two are to be able to reach each other, and this process both.

    Returns:
        The checks that it passed.

    Raises:
        ConformanceError: one that it did not pass: what was found, and what is expected.
        RuntimeError: the Pulumi CLI is missing.
    """
    report = Report(getattr(make_topology, "__qualname__", str(make_topology)))
    with Sandbox() as sandbox:
        trial = _Trial(sandbox, make_topology)
        report.run(_planning_registers_nothing, trial)
        report.run(_planning_lists_the_problems, trial)
        report.run(_a_refused_deployment_registers_nothing, trial)
        _check_primary(report, trial)
        _check_replica(report, trial)
        _check_lifecycle(report, trial)
    return report


# -- deploying ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Server:
    """A deployed cluster, as those see it who use it."""

    outputs: Mapping[str, Any]
    secrets: Mapping[str, bool]
    folder: Path
    """For files that clients need."""

    @contextmanager
    def client(self, **overrides: str) -> Generator[psycopg.Connection[tuple[Any, ...]]]:
        """Connect to the endpoint as the owner of the database, or as `overrides` say."""
        authority = self.folder / f"{self.outputs['name']}.ca.crt"
        authority.write_text(self.outputs["ca_certificate"])
        endpoint = self.outputs["endpoint"]
        options: dict[str, Any] = {
            **conninfo_to_dict(self.outputs["uri"]),
            "host": endpoint["host"],
            "port": str(int(endpoint["port"])),
            "sslrootcert": str(authority),
            "sslcert": str(self.folder / "none.crt"),  # Not the one that this user may have for other servers.
            "connect_timeout": "10",
            **overrides,
        }
        options.pop("target_session_attrs", None)
        with psycopg.connect(**options, autocommit=True) as client:
            yield client

    def replication_login(self) -> dict[str, str]:
        """Return how a replica connects with the replication certificates."""
        certs = self.outputs["certs"]
        files = {"sslcert": self.folder / "replication.crt", "sslkey": self.folder / "replication.key"}
        for path, name in zip(files.values(), ("client_certificate", "client_key"), strict=True):
            path.touch(mode=0o600)
            path.write_text(certs[name])
        subject = x509.load_pem_x509_certificate(certs["client_certificate"].encode()).subject
        role = str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        return {key: str(path) for key, path in files.items()} | {"user": role, "replication": "true"}

    def observe(self) -> Observation:
        """Look at the server as orchestration does."""
        return load_site(json.loads(json.dumps(self.outputs["site"]))).observe()


@dataclass
class _Trial:
    """The programs of the trial, and what they have deployed."""

    sandbox: Sandbox
    make_topology: MakeTopology
    with_replica: bool = False

    def plan(self, name: str, config: PostgreSQLConfig) -> tuple[PostgreSQLPlan, list[str]]:
        """Return what a topology plans, and what the engine was told to do meanwhile."""
        plans: list[PostgreSQLPlan] = []
        steps = self.sandbox.preview(
            lambda: plans.append(self.make_topology(_PRIMARY).plan_postgresql(name, config)),
        )
        return plans[0], steps

    def alone(self) -> list[str]:
        """Return what the engine does for a topology on which nothing is deployed."""

        def program() -> None:
            self.make_topology(_PRIMARY)

        return self.sandbox.preview(program)

    def up(self) -> tuple[dict[str, _Server], list[str]]:
        """Deploy; return the servers by their topologies' names, and what changed."""
        self.sandbox.before_removal = lambda: self._program(on_destroy="delete")
        outputs, steps = self.sandbox.up(lambda: self._program(on_destroy="keep"))
        found: dict[str, _Server] = {}
        for name in (_PRIMARY, _REPLICA):
            own = {key.partition(".")[2]: value for key, value in outputs.items() if key.startswith(f"{name}.")}
            values = {key: output.value for key, output in own.items()}
            secrets = {key: bool(output.secret) for key, output in own.items()}
            found[name] = _Server({**values, "name": name}, secrets, self.sandbox.folder)
        return found, steps

    def destroy(self) -> None:
        """Destroy what is deployed."""
        self.sandbox.destroy()

    def _program(self, on_destroy: Literal["keep", "delete"]) -> None:
        primary = self.make_topology(_PRIMARY)
        config = self._config(primary, on_destroy)
        cluster = primary.deploy_postgresql(_DATABASE, config)
        _export(_PRIMARY, primary, cluster)
        if self.with_replica:
            replica = self.make_topology(_REPLICA)
            homes = primary.plan_postgresql(_DATABASE, config).homes
            replication = Replication(cluster, primary.get_replication_certs(cluster), homes)
            config = self._config(replica, on_destroy)
            copy = replica.deploy_postgresql(_DATABASE, config, replication=replication)
            _export(_REPLICA, replica, copy)

    def _config(self, topology: PostgreSQL, on_destroy: Literal["keep", "delete"]) -> PostgreSQLConfig:
        """Return the configuration: in folders of the sandbox, unless the topology says that it cannot be there."""
        deadlines = Deadlines(start=int(_DEADLINE), clone=int(_DEADLINE), stream=int(_DEADLINE))
        anywhere = PostgreSQLConfig(databases=[_DATABASE], on_destroy=on_destroy, deadlines=deadlines)
        members = topology.plan_postgresql(_DATABASE, anywhere).members
        folders = {member: MemberPlacement(directory=f"{self.sandbox.folder}/{member}") for member in members}
        here = anywhere.model_copy(update={"members": folders})
        return anywhere if topology.plan_postgresql(_DATABASE, here).problems else here


def _export(name: str, topology: PostgreSQL, cluster: PostgreSQLCluster) -> None:
    outputs = {
        "endpoint": cluster.endpoint,
        "uri": cluster.uri,
        "ca_certificate": cluster.ca_certificate,
        "data_directory": cluster.data_directory,
        "version": cluster.version,
        "site": cluster.site,
        "credentials": cluster.credentials,
        "replication_certs": cluster.replication_certs,
        "system_identifier": cluster.system_identifier,
        "certs": topology.get_replication_certs(cluster),
        "asked_endpoint": topology.get_endpoint(cluster),
        "asked_ca_certificate": topology.get_ca_certificate(cluster),
    }
    for key, value in outputs.items():
        pulumi.export(f"{name}.{key}", value)


def _refused(server: _Server, what: str, **overrides: str) -> None:
    """Expect that the server itself refuses a connection, as opposed to being away."""
    try:
        with server.client(**overrides):
            found = f"{what} was let in"
    except psycopg.OperationalError as error:
        found = f"{what}: {error}"
    expect("FATAL" in found, found=found, expected="the server refuses it (FATAL)")


def _eventually(what: str, look: Callable[[], Any], good: Callable[[Any], bool]) -> None:
    try:
        wait_for(what, look, good, deadline=_DEADLINE, advice="")
    except SiteError as error:
        expect(holds=False, found=error, expected=f"{what} within {_DEADLINE:g} s")


# -- before anything is deployed ---------------------------------------------------------------------------------------


def _planning_registers_nothing(trial: _Trial) -> None:
    """plan_postgresql registers nothing, and has no problem with a plain configuration."""
    plan, steps = trial.plan(_DATABASE, PostgreSQLConfig(databases=[_DATABASE]))
    expect(not plan.problems, found=f"the problems {[str(p) for p in plan.problems]}", expected="none")
    alone = trial.alone()
    expect(sorted(steps) == sorted(alone), found=steps, expected=f"what the topology alone registers: {alone}")


def _planning_lists_the_problems(trial: _Trial) -> None:
    """plan_postgresql lists the problems of a bad name, with its path, and names its members."""
    plan, _ = trial.plan("no/name at all", PostgreSQLConfig(databases=[_DATABASE]))
    found = [str(problem) for problem in plan.problems]
    expect(any(p.path == "name" for p in plan.problems), found=found or "no problem", expected="one of the path `name`")
    expect(plan.members, found="no members in the plan", expected="the names of the topologies that run servers")


def _a_refused_deployment_registers_nothing(trial: _Trial) -> None:
    """deploy_postgresql raises InputError with every problem before it registers anything."""
    bad = PostgreSQLConfig(databases=[_DATABASE], members={"nobody": MemberPlacement()})
    raised: list[Exception] = []

    def program() -> None:
        try:
            trial.make_topology(_PRIMARY).deploy_postgresql("no/name at all", bad)
        except Exception as error:  # noqa: BLE001 -- of whatever kind, it is what is looked at.
            raised.append(error)

    steps, alone = trial.sandbox.preview(program), trial.alone()
    error = raised[0] if raised else None
    paths = {problem.path for problem in error.problems} if isinstance(error, InputError) else set[str]()
    expect({"name", "members.nobody"} <= paths, found=repr(error), expected="InputError: `name` and `members.nobody`")
    expect(sorted(steps) == sorted(alone), found=steps, expected=f"what the topology alone registers: {alone}")


# -- the primary -------------------------------------------------------------------------------------------------------


def _check_primary(report: Report, trial: _Trial) -> None:
    servers, _ = trial.up()
    for check in (
        _the_uri_connects_with_verify_full,
        _outputs_are_what_the_server_says,
        _secrets_are_marked,
        _queries_answer_as_the_cluster_does,
        _the_site_reports_a_running_primary,
        _tls_is_required,
        _a_wrong_password_is_refused,
        _replication_without_a_certificate_is_refused,
        _replication_with_the_certificates_is_accepted_over_tls_1_3,
        _the_owner_can_write,
    ):
        report.run(check, servers[_PRIMARY])


def _the_uri_connects_with_verify_full(server: _Server) -> None:
    """The uri asks for sslmode=verify-full, names no file, and connects with the CA certificate."""
    options = conninfo_to_dict(server.outputs["uri"])
    found = {key: value for key, value in options.items() if key != "password"}
    expect(options.get("sslmode") == "verify-full", found=found, expected="sslmode=verify-full")
    expect(not any(key.startswith("sslroot") for key in options), found=found, expected="no sslrootcert in it")
    authority = server.folder / "ca.crt"
    authority.write_text(server.outputs["ca_certificate"])
    try:
        with psycopg.connect(server.outputs["uri"], sslrootcert=str(authority), connect_timeout=10) as client:
            answer = client.execute("SELECT current_database(), pg_is_in_recovery()").fetchone()
    except psycopg.Error as error:
        expect(holds=False, found=error, expected="a connection by the uri")
    else:
        expect(answer == (_DATABASE, False), found=answer, expected=f"the database {_DATABASE!r} of a primary")


def _outputs_are_what_the_server_says(server: _Server) -> None:
    """Endpoint, version and system identifier are those of the server."""
    outputs = server.outputs
    endpoint = outputs["endpoint"]
    known = {"host", "port", "direct"}
    expect(known - {"direct"} <= set(endpoint) <= known, found=endpoint, expected="an endpoint of host and port")
    with server.client() as client:
        version, major = client.info.parameter_status("server_version"), client.info.server_version // 10000
        identifier = client.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    expect(
        re.match(rf"{major}\b", str(outputs["version"])),
        found=f"the version {outputs['version']!r}",
        expected=f"that of the server, {version}",
    )
    expect(
        identifier == (outputs["system_identifier"],),
        found=f"the system identifier {outputs['system_identifier']!r}",
        expected=f"that of the server, {identifier}",
    )
    expect(outputs["data_directory"], found="no data directory", expected="the path of PGDATA")


def _secrets_are_marked(server: _Server) -> None:
    """What holds a password or a key is a secret of the stack."""
    plain = [key for key in _SECRET if not server.secrets[key]]
    expect(not plain, found=f"in the clear: {', '.join(plain)}", expected="secret outputs")


def _queries_answer_as_the_cluster_does(server: _Server) -> None:
    """get_endpoint and get_ca_certificate return what the cluster holds."""
    asked, held = server.outputs["asked_endpoint"], server.outputs["endpoint"]
    expect(asked == held, found=f"get_endpoint: {asked}", expected=held)
    asked, held = server.outputs["asked_ca_certificate"], server.outputs["ca_certificate"]
    expect(asked in held, found=f"get_ca_certificate: {asked}", expected=f"one of {held}")


def _the_site_reports_a_running_primary(server: _Server) -> None:
    """The site handle is JSON, and load_site makes a site of it that observes a running primary."""
    seen = server.observe()
    found = {key: seen[key] for key in ("state", "role", "detail")}
    expect((seen["state"], seen["role"]) == ("running", "primary"), found=found, expected="a running primary")
    identifier = server.outputs["system_identifier"]
    expect(seen["system_identifier"] == identifier, found=seen["system_identifier"], expected=identifier)


def _tls_is_required(server: _Server) -> None:
    """A client without TLS is refused."""
    _refused(server, "a client with sslmode=disable", sslmode="disable")


def _a_wrong_password_is_refused(server: _Server) -> None:
    """A wrong password is refused."""
    _refused(server, "a client with a wrong password", password="wrong")  # noqa: S106 -- it is to be refused.


def _replication_without_a_certificate_is_refused(server: _Server) -> None:
    """Replication without a client certificate is refused, for the replication role and for the owner."""
    role = server.replication_login()["user"]
    _refused(server, f"replication as {role} without a certificate", user=role, replication="true")
    _refused(server, "replication as the owner with its password", replication="true")


def _replication_with_the_certificates_is_accepted_over_tls_1_3(server: _Server) -> None:
    """Replication with the certificates of get_replication_certs is accepted, over TLS 1.3, as the client they name."""
    login = server.replication_login()
    with server.client(**login, application_name="kit-replica") as client:
        identified = client.pgconn.exec_(b"IDENTIFY_SYSTEM").get_value(0, 0)
        expect(identified, found="no answer to IDENTIFY_SYSTEM", expected="a replication connection")
        seen = [replica for replica in server.observe()["replicas"] if replica["name"] == "kit-replica"]
    expect(seen, found="no replica of the connection's name", expected="the site observes the replication connection")
    expect(seen[0]["tls"] == "TLSv1.3", found=f"TLS {seen[0]['tls'] or 'off'}", expected="TLSv1.3 in pg_stat_ssl")
    named = f"CN={login['user']}"
    expect(named in seen[0]["client"], found=f"the client {seen[0]['client']!r}", expected=f"{named} in pg_stat_ssl")


def _the_owner_can_write(server: _Server) -> None:
    """The owner can make a table and write rows."""
    with server.client() as client:
        client.execute("CREATE TABLE kit (value int)")
        client.execute("INSERT INTO kit SELECT generate_series(1, %s)", [_ROWS])
    expect(_rows(server) == _ROWS, found=_rows(server), expected=f"{_ROWS} rows")


def _rows(server: _Server) -> object:
    """Return how many rows there are, or why that cannot be told."""
    try:
        with server.client() as client:
            row = client.execute("SELECT count(*) FROM kit").fetchone()
            return row and row[0]
    except psycopg.Error as error:
        return error


# -- the replica -------------------------------------------------------------------------------------------------------


def _check_replica(report: Report, trial: _Trial) -> None:
    trial.with_replica = True
    servers, _ = trial.up()
    report.run(_a_replica_streams, servers[_PRIMARY], servers[_REPLICA])
    report.run(_a_replica_has_the_rows_and_refuses_writes, servers[_REPLICA])


def _a_replica_streams(primary: _Server, replica: _Server) -> None:
    """A deployment with Replication(source=...) streams from the source, over TLS 1.3, and is the same database."""
    copy = replica.observe()
    found = {key: copy[key] for key in ("state", "role", "receiver", "detail")}
    expect((copy["state"], copy["role"]) == ("running", "standby"), found=found, expected="a running standby")
    expect(
        copy["system_identifier"] == primary.outputs["system_identifier"],
        found=f"the system identifier {copy['system_identifier']}",
        expected=f"that of the source, {primary.outputs['system_identifier']}",
    )
    _eventually(
        f"{copy['name']} streaming from its source, over TLS 1.3",
        lambda: primary.observe()["replicas"],
        lambda seen: (copy["name"], "streaming", "TLSv1.3") in [(r["name"], r["state"], r["tls"]) for r in seen],
    )


def _a_replica_has_the_rows_and_refuses_writes(replica: _Server) -> None:
    """A replica has the rows of its source, and refuses writes."""
    _eventually(f"{_ROWS} rows on the replica", lambda: _rows(replica), lambda rows: rows == _ROWS)
    try:
        with replica.client() as client:
            client.execute("INSERT INTO kit VALUES (0)")
    except psycopg.errors.ReadOnlySqlTransaction:
        return
    expect(holds=False, found="the replica took a row", expected="it refuses to write (ReadOnlySqlTransaction)")


# -- again, and away ---------------------------------------------------------------------------------------------------


def _check_lifecycle(report: Report, trial: _Trial) -> None:
    report.run(_a_second_up_changes_nothing, trial)
    report.run(_destroy_keeps_the_data, trial)


def _a_second_up_changes_nothing(trial: _Trial) -> None:
    """A second up of the same program changes nothing."""
    _, steps = trial.up()
    expect(not steps, found=steps, expected="no change")


def _destroy_keeps_the_data(trial: _Trial) -> None:
    """destroy stops the servers and keeps the data: a further up brings the rows back, on both."""
    before, _ = trial.up()
    trial.destroy()
    try:
        with before[_PRIMARY].client():
            found = "it still answers"
    except psycopg.OperationalError:
        found = ""
    expect(not found, found=found, expected="a destroyed server does not answer")
    after, _ = trial.up()
    rows = _rows(after[_PRIMARY])
    expect(rows == _ROWS, found=f"on the primary: {rows}", expected=f"{_ROWS} rows")
    replica = after[_REPLICA]
    _eventually(f"{_ROWS} rows on the replica", lambda: _rows(replica), lambda rows: rows == _ROWS)
