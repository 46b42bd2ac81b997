"""What was seen is judged: healthy only if it is, and every finding says what and what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from harmony_pulumi.cli.deployed import Database, Resources
from harmony_pulumi.cli.report import Finding, Report, report, size
from tests.cli.sites import endpoint, replica, seen, slot
from tests.cli.states import handle, one_pair, pair_of_pairs
from tests.orchestration.test_roles import operation as under_way

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
PRIMARY = seen("montreal", replicas=[replica("toronto")], slots=[slot("harmony_toronto")])
STANDBY = seen("toronto", "standby")
LONELY = seen("montreal")
STOPPED: dict[str, Any] = {"name": "toronto", "state": "stopped", "detail": "no server process in /srv/toronto/data"}


def judge(*observations: dict[str, Any], resources: Sequence[dict[str, Any]] = ()) -> Report:
    databases = Resources.of(resources or one_pair()).databases()
    assert len(databases) == 1
    return report([(databases[0], observations)], now=NOW, project="shop", stack="dev")


def only(judged: Report) -> Finding:
    assert len(judged.findings) == 1, judged.findings
    return judged.findings[0]


def test_a_streaming_pair_is_healthy_and_its_lag_is_what_its_source_sees() -> None:
    judged = judge(PRIMARY, STANDBY)
    assert (judged.healthy, judged.findings) == (True, [])
    (database,) = judged.databases
    assert (database.declared_active, database.observed_active) == ("primary", "primary")
    montreal, toronto = database.members
    assert (montreal.active, montreal.replication) == (True, None)
    assert toronto.replication is not None
    assert (toronto.replication.source, toronto.replication.lag_bytes) == ("montreal", 2048)


@pytest.mark.parametrize("state", ["stopped", "absent", "unreachable", "unknown"])
def test_a_member_that_does_not_run_is_a_problem_that_names_it_and_its_reason(state: str) -> None:
    judged = judge(LONELY, {**STOPPED, "state": state})
    finding = only(judged)
    assert (judged.healthy, finding.severity, finding.code, finding.member) == (False, "problem", state, "toronto")
    assert "no server process in /srv/toronto/data" in finding.message
    assert judged.databases[0].members[1].replication is None
    assert ("`harmony start /srv/toronto-orders` on its host" in finding.message) == (state == "stopped")


def test_without_a_primary_nobody_takes_writes() -> None:
    judged = judge({**STOPPED, "name": "montreal"}, STANDBY)
    assert {f.code for f in judged.findings} == {"no_primary", "stopped", "not_streaming"}
    assert judged.databases[0].observed_active == ""


def test_a_slot_never_keeps_less_than_nothing() -> None:
    judged = judge({**PRIMARY, "slots": [slot("s", retained_bytes=-(2**21))]}, STANDBY)
    assert judged.databases[0].members[0].slots[0].retained_bytes == 0


def test_an_unreachable_member_proves_nothing_about_who_takes_writes() -> None:
    judged = judge({**STOPPED, "name": "montreal", "state": "unreachable"}, STANDBY)
    message = next(f.message for f in judged.findings if f.code == "no_primary")
    assert "not all could be asked" in message


def test_what_was_begun_is_finished_with_the_terms_that_were_accepted() -> None:
    terms = {"max_data_loss": 8, "accept_unknown_loss": True, "fenced": ""}
    told = {"epoch": 1, "operation": under_way(kind="failover", terms=terms), "away": None}
    (finding,) = (f for f in judge({**PRIMARY, "roles": told}, STANDBY).findings if f.code == "unfinished")
    assert "run `harmony failover --to toronto --max-data-loss 8 --accept-unknown-loss` to finish it" in finding.message


def test_a_role_change_that_was_cut_off_is_a_problem_that_says_how_to_finish_it() -> None:
    operation = under_way(operator="`harmony switchover` by ops@db1")
    told = {"epoch": 1, "operation": operation, "away": None}
    judged = judge({**PRIMARY, "roles": told}, {**STANDBY, "roles": told})
    finding = only(judged)
    assert (finding.code, judged.healthy) == ("unfinished", False)
    assert "a switchover to toronto is under way, or was cut off: `harmony switchover` by ops@db1" in finding.message
    assert "run `harmony switchover --to toronto` to finish it" in finding.message


def test_a_synchronous_pair_whose_commits_wait_for_nobody_is_a_problem() -> None:
    resources = one_pair()
    for resource in resources:
        handle = resource["outputs"].get("site")
        if handle and "members" in handle:
            handle["synchronous"] = True
    judged = judge(PRIMARY, STANDBY, resources=resources)
    assert only(judged).code == "not_synchronous"
    assert "`harmony switchover --to montreal`, which moves nothing" in only(judged).message
    away = {"member": "replica", "since": "today", "fenced": "off", "fork": "0/1"}
    told = {"epoch": 1, "active": "primary", "me": "primary", "operation": None, "away": away}
    left = judge({**PRIMARY, "roles": told}, STANDBY, resources=resources)
    assert "commits wait for nobody. `harmony rejoin` restores that" in left.findings[1].message
    assert "switchover" not in left.findings[1].message
    assert judge({**PRIMARY, "waits_for": "FIRST 1 (toronto)"}, STANDBY, resources=resources).healthy is False


def test_two_primaries_are_a_problem_that_names_both_and_the_declared_one() -> None:
    judged = judge(LONELY, seen("toronto"))
    finding = only(judged)
    assert finding.code == "two_primaries"
    assert "montreal and toronto take writes" in finding.message
    assert "montreal is declared" in finding.message
    assert judged.databases[0].observed_active == ""


def test_a_primary_that_is_not_the_declared_one_is_a_problem() -> None:
    judged = judge(seen("montreal", "standby"), seen("toronto", replicas=[replica("montreal")]))
    assert only(judged).code == "active_differs"
    assert "somebody promoted it by hand. If it is to stay, run `harmony accept`; if mont" in only(judged).message
    assert judged.databases[0].observed_active == "replica"


def told(epoch: int, active: str, me: str, pair: str = "shop/dev/orders", **changes: Any) -> dict[str, Any]:
    known = {"pair": pair, "epoch": epoch, "active": active, "me": me, "operation": None, "away": None, "outer": None}
    return {"roles": {**known, **changes}}


@pytest.mark.parametrize(
    ("montreal", "toronto", "ways"),
    [
        (
            told(1, "replica", "primary"),
            told(1, "replica", "replica"),
            "`harmony switchover --to toronto`, which",
        ),
        (
            told(0, "primary", "primary"),
            told(1, "replica", "replica"),
            "`harmony switchover --to toronto`, which",
        ),
        ({}, told(1, "replica", "replica"), "`harmony switchover --to toronto`, which"),
        (told(2, "primary", "primary"), told(1, "replica", "replica"), "`harmony accept`"),
        (told(0, "primary", "primary"), told(0, "primary", "replica"), "`harmony accept`"),
    ],
)
def test_whether_the_stack_alone_is_behind_is_told_by_what_the_sites_know_last(
    montreal: dict[str, Any], toronto: dict[str, Any], ways: str
) -> None:
    leader = seen("toronto", replicas=[replica("montreal")])
    judged = judge({**seen("montreal", "standby"), **montreal}, {**leader, **toronto})
    assert only(judged).message.startswith("toronto takes the writes, but montreal is declared to be active: ")
    assert ways in only(judged).message


def test_in_a_pair_of_pairs_the_command_that_tells_the_stack_names_the_pair_that_differs() -> None:
    resources = pair_of_pairs()
    for resource in resources:
        site = resource["outputs"].get("site", {})
        for inner in (site, *site.get("members", {}).values()):
            if "members" in inner and inner["members"]["replica"]["name"] == "toronto":
                inner["pair"] = "shop/dev/east-orders"
    outer = told(0, "primary", "primary", pair="shop/dev/world-orders")["roles"]
    leader = seen("toronto", replicas=[replica("montreal"), replica("dublin")])
    led = {**leader, **told(1, "replica", "replica", "shop/dev/east-orders", outer=outer)}
    judged = judge(seen("montreal", "standby"), led, seen("dublin", "standby"), resources=resources)
    assert "`harmony switchover east-orders --to toronto`, which moves nothing" in only(judged).message
    dublin = seen("dublin", replicas=[replica("montreal"), replica("toronto")])
    leads = {**dublin, **told(1, "replica", "replica", "shop/dev/world-orders")}
    judged = judge(seen("montreal", "standby"), seen("toronto", "standby"), leads, resources=resources)
    assert "`harmony switchover --to dublin`, which moves nothing" in only(judged).message


def test_a_server_whose_pair_was_not_deployed_is_a_problem() -> None:
    resources = one_pair()[:-1]
    for resource in resources:
        if "site" in resource["outputs"]:
            resource["outputs"]["peers"] = [{"name": "the other one"}]
    databases = Resources.of(resources).databases()
    judged = report([(database, [seen("montreal")]) for database in databases], now=NOW)
    assert [finding.code for finding in judged.findings] == ["no_pair", "no_pair"]
    assert not judged.healthy
    assert "Run `pulumi up` again" in judged.findings[0].message
    whole = [*resources, one_pair()[-1]]
    assert [database.lacks_its_pair for database in Resources.of(whole).databases()] == [False]


def test_a_standby_that_no_member_sees_streaming_is_a_problem_and_its_timeline_is_told() -> None:
    finding = only(judge(seen("montreal", timeline=2), seen("toronto", "standby", receiver="")))
    assert finding.code == "not_streaming"
    assert "does not stream from montreal" in finding.message
    assert "1 and 2. If it does not catch up, `harmony rejoin` has it follow" in finding.message
    assert "/srv/toronto-orders" in finding.message


def test_replication_that_is_catching_up_is_not_streaming_yet() -> None:
    source = seen("montreal", replicas=[replica("toronto", state="catchup")])
    assert only(judge(source, STANDBY)).code == "not_streaming"


def test_replication_without_tls_is_a_problem() -> None:
    assert only(judge(seen("montreal", replicas=[replica("toronto", tls="")]), STANDBY)).code == "not_encrypted"


def test_members_that_are_not_one_database_are_a_problem() -> None:
    other = seen("toronto", "standby", system_identifier="7000000000000000002")
    assert only(judge(PRIMARY, other)).code == "different_database"


def test_commits_that_wait_for_a_replica_that_is_away_are_a_problem_of_the_primary() -> None:
    waiting = seen("montreal", waits_for='FIRST 1 ("toronto")')
    judged = judge(waiting, STOPPED)
    assert [(f.code, f.member) for f in judged.findings] == [("commits_wait", "montreal"), ("stopped", "toronto")]
    synchronous = {**waiting, "replicas": [replica("toronto", sync_state="sync")]}
    assert judge(synchronous, STANDBY).healthy


@pytest.mark.parametrize(
    ("state", "severity"),
    [
        (slot("s", retained_bytes=2**30), None),
        (slot("s", retained_bytes=9 * 2**30), "warning"),
        (slot("s", active=False), None),
        (slot("s", active=False, retained_bytes=2**20), "warning"),
        (slot("s", wal_status="unreserved"), "problem"),
        (slot("s", wal_status="lost"), "problem"),
        (slot("s", retained_bytes=2**40, bound_bytes=None), None),
    ],
)
def test_a_slot_is_judged_by_what_it_has_lost_and_by_what_it_keeps(state: dict[str, Any], severity: str) -> None:
    judged = judge({**PRIMARY, "slots": [state]}, STANDBY)
    assert [f.severity for f in judged.findings] == ([severity] if severity else [])
    assert judged.healthy == (severity != "problem")


@pytest.mark.parametrize(
    ("left", "severity"),
    [
        (timedelta(days=30), None),
        (timedelta(days=29, hours=23), "warning"),
        (timedelta(days=7), "warning"),
        (timedelta(days=6, hours=23), "problem"),
        (timedelta(seconds=-1), "problem"),
    ],
)
def test_a_certificate_is_judged_by_the_days_it_has_left(left: timedelta, severity: str | None) -> None:
    judged = judge({**PRIMARY, "certificates": {"server": (NOW + left).isoformat()}}, STANDBY)
    assert [f.severity for f in judged.findings] == ([severity] if severity else [])
    assert judged.databases[0].members[0].certificates[0].days_left == left.days
    assert judged.healthy == (severity != "problem")


@pytest.mark.parametrize("left", [timedelta(days=300), timedelta(days=1)])
def test_a_certificate_that_nobody_trusts_is_a_problem_whenever_it_expires(left: timedelta) -> None:
    flaws = {"server": "does not belong to its key"}
    judged = judge({**PRIMARY, "certificates": {"server": (NOW + left).isoformat()}, "flaws": flaws}, STANDBY)
    (finding,) = judged.findings
    assert (finding.severity, finding.code, finding.member) == ("problem", "certificate", "montreal")
    assert finding.message == (
        "has the certificate 'server', which does not belong to its key; `harmony rotate-certificates` makes a new one"
    )
    assert judged.databases[0].members[0].flaws == flaws


def test_a_server_that_stands_alone_is_healthy_as_a_primary_and_as_a_streaming_standby() -> None:
    alone = Database("audit", handle("dublin", "audit"))
    for observation, healthy in ((seen("dublin"), True), (seen("dublin", "standby"), True)):
        assert report([(alone, [observation])], now=NOW).healthy == healthy
    assert not report([(alone, [seen("dublin", "standby", receiver="")])], now=NOW).healthy


def test_in_a_pair_of_pairs_each_standby_is_judged_by_the_member_it_streams_from() -> None:
    montreal = seen("montreal", replicas=[replica("toronto"), replica("dublin", lag_bytes=7)])
    judged = judge(montreal, STANDBY, seen("dublin", "standby"), resources=pair_of_pairs())
    assert judged.healthy
    assert [m.replication and m.replication.lag_bytes for m in judged.databases[0].members] == [None, 2048, 7]
    assert judged.databases[0].observed_active == "primary/primary"


def test_in_a_pair_of_pairs_what_is_left_open_is_told_of_the_pair_that_it_is_of() -> None:
    operation = under_way(operator="ada")
    away = {"member": "replica", "since": "today", "fenced": "off", "fork": "0/1"}
    world = {"pair": "shop/prod/world-orders", "epoch": 1, "active": "primary", "operation": None, "away": away}
    east = {"pair": "shop/prod/east-orders", "epoch": 3, "active": "replica", "operation": operation, "away": None}
    montreal = {**east, "me": "primary", "outer": {**world, "me": "primary", "outer": None}}
    toronto = {**east, "me": "replica", "outer": {**world, "me": "primary", "outer": None}}
    dublin = {**world, "me": "replica", "outer": None}
    judged = judge(
        {**PRIMARY, "roles": montreal, "replicas": [replica("toronto"), replica("dublin")]},
        {**STANDBY, "roles": toronto},
        {**seen("dublin", "standby"), "roles": dublin},
        resources=pair_of_pairs(),
    )
    said = {f.code: (f.member, f.message) for f in judged.findings}
    assert set(said) == {"unfinished", "left_behind"}
    assert "run `harmony switchover east-orders --to toronto` to finish it" in said["unfinished"][1]
    assert said["left_behind"][0] == "dublin"
    assert "Run `harmony rejoin` once it is back" in said["left_behind"][1]


def test_a_site_of_another_package_may_leave_out_what_it_does_not_know() -> None:
    judged = judge({"name": "montreal", "state": "running", "role": "primary"}, STOPPED)
    assert judged.databases[0].members[0].timeline is None
    assert only(judged).code == "stopped"


def with_endpoints(*endpoints: dict[str, Any], members: Sequence[dict[str, Any]] = (PRIMARY, STANDBY)) -> Report:
    (database,) = Resources.of(one_pair()).databases()
    return report([(database, members)], now=NOW, endpoints=[endpoints])


def test_an_endpoint_that_leads_to_the_active_member_is_healthy() -> None:
    judged = with_endpoints(endpoint("kingston"), endpoint("ottawa"))
    assert (judged.healthy, judged.findings) == (True, [])
    kingston, ottawa = judged.databases[0].endpoints
    assert (kingston.name, kingston.leads_to, kingston.points_to) == ("kingston", "montreal", "montreal.example:5432")
    assert (ottawa.clients, ottawa.waiting, ottawa.paused, ottawa.version) == (3, 1, False, "1.25.0")
    assert [(c.name, c.days_left) for c in ottawa.certificates] == [("ca", 3287), ("server", 334)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"state": "stopped", "detail": "no PgBouncer"},
            "is stopped: no PgBouncer. `harmony start` on its host",
        ),
        ({"state": "absent", "detail": "nothing there"}, "is gone: nothing there. `pulumi up --refresh` makes it anew"),
        ({"state": "unreachable", "detail": ""}, "is unreachable, so it may lead clients anywhere or nowhere: no rea"),
        ({"state": "unknown", "detail": "oops"}, "could not be looked at: oops"),
        ({"points_to": "toronto.example:5432"}, "leads to toronto, and montreal is active; `harmony switchover --to m"),
        ({"points_to": "dublin.example:1"}, "leads to dublin.example:1, and montreal is active; `harmony switchover "),
        ({"points_to": ""}, "leads to no server that is known, and montreal is active"),
        (
            {"paused": True},
            "is paused, and has 1 of 3 clients wait. That lasts as long as roles move; if they do not",
        ),
    ],
)
def test_an_endpoint_that_does_not_serve_the_active_member_is_a_problem(changes: dict[str, Any], message: str) -> None:
    judged = with_endpoints(endpoint("kingston", **changes), endpoint("ottawa"))
    finding = only(judged)
    assert (judged.healthy, finding.severity, finding.code) == (False, "problem", "endpoint")
    assert (finding.member, finding.endpoint) == ("", "kingston")
    assert finding.message.startswith(f"the endpoint on kingston {message}")


def test_where_an_endpoint_leads_is_judged_only_where_one_member_is_known_to_be_active() -> None:
    stopped = {**STOPPED, "name": "montreal"}
    judged = with_endpoints(endpoint("kingston", points_to="toronto.example:5432"), members=(stopped, STANDBY))
    assert "endpoint" not in {finding.code for finding in judged.findings}
    assert judged.databases[0].endpoints[0].leads_to == "toronto"
    ipv6 = seen("montreal", endpoint="0:0:0:0:0:0:0:1:5432", replicas=[replica("toronto")])
    assert with_endpoints(endpoint("kingston", points_to="[::1]:5432"), members=(ipv6, STANDBY)).healthy
    nowhere = {"name": "montreal", "state": "running", "role": "primary", "replicas": [replica("toronto")]}
    assert with_endpoints(endpoint("kingston"), members=(nowhere, STANDBY)).healthy


@pytest.mark.parametrize(
    ("name", "changed"), [("server", "certificate_lifetime_days"), ("ca", "directory"), ("other", "a change of")]
)
def test_a_certificate_of_an_endpoint_is_judged_by_the_days_it_has_left(name: str, changed: str) -> None:
    for left, severity in ((31, []), (29, ["warning"]), (6, ["problem"])):
        judged = with_endpoints(endpoint("kingston", certificates={name: (NOW + timedelta(left)).isoformat()}))
        assert [finding.severity for finding in judged.findings] == severity
        assert all((f.code, f.endpoint) == ("certificate", "kingston") for f in judged.findings)
        assert all(changed in finding.message for finding in judged.findings)


def test_the_json_document_has_iso_times_in_utc_and_plain_numbers() -> None:
    source = {**PRIMARY, "certificates": {"server": "2030-12-01T07:00:00-05:00"}}
    document = json.loads(json.dumps(asdict(judge(source, STANDBY))))
    assert (document["schema"], document["time"]) == (1, "2030-01-01T12:00:00.000+00:00")
    montreal, toronto = document["databases"][0]["members"]
    assert montreal["certificates"] == [{"name": "server", "expires": "2030-12-01T12:00:00+00:00", "days_left": 334}]
    assert montreal["slots"][0]["bound_bytes"] == 10 * 2**30
    assert toronto["replication"]["lag_seconds"] == 0.25
    assert toronto["replayed_at"] == "2030-01-01T11:59:30+00:00"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 kB"), (10 * 2**30, "10 GB"), (5 * 2**50, "5120 TB")]
)
def test_sizes_read_as_postgresql_writes_them(count: int, text: str) -> None:
    assert size(count) == text
