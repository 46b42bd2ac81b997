"""Whether a switchover would go well: one test a problem, and one where there is none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from harmony_pulumi.capabilities.endpoint_site import EndpointObservation
from harmony_pulumi.capabilities.site import LogicalSlot, Observation, Survey
from harmony_pulumi.orchestration.preflight import Check, checks, echo_deadline, endpoint_checks, problems
from tests.orchestration.sites import MemoryEndpoint, World, pair_site, survey

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
MB = 1024 * 1024


def seen(member: str, /, **changes: Any) -> Observation:
    """Return what is seen of a member of a pair that streams, with some of it changed."""
    return Observation(**{**pair_site(World(busy=False), member).observe(), **changes})  # type: ignore[typeddict-item]


def looked_at(
    source: Observation | None = None, target: Observation | None = None, surveys: tuple[Survey, Survey] | None = None
) -> list[Check]:
    both = surveys or (survey(), survey())
    return checks(source or seen("primary"), target or seen("replica"), both, now=NOW)


def replica(**changes: Any) -> dict[str, Any]:
    return {**seen("primary")["replicas"][0], **changes}


def slot(status: str) -> dict[str, Any]:
    return {**seen("primary")["slots"][0], "wal_status": status}


def test_where_all_is_well_everything_that_was_looked_at_is_told() -> None:
    found = looked_at()
    assert problems(found) == []
    assert {check.verdict for check in found} == {"ok"}
    seen_of_both = ["montreal", "toronto", "timeline", "streaming", "lag", "certificate", "certificate"]
    surveyed = ["replay", "major version", "build", "extensions", "collations", "settings", "disk", "disk"]
    assert [check.name for check in found] == [*seen_of_both, *surveyed]


def test_without_surveys_only_what_is_seen_is_judged() -> None:
    found = checks(seen("primary"), seen("replica"), None, now=NOW)
    assert [check.name for check in found][-1] == "certificate"


def test_what_the_primary_writes_must_come_to_the_standby() -> None:
    def found(why: str) -> list[Check]:
        return checks(seen("primary"), seen("replica"), (survey(), survey()), now=NOW, no_echo=why)

    assert problems(found("")) == []
    assert "link" in [check.name for check in found("")]
    assert problems(found("no word: not within 5 s")) == [
        "link: no word: not within 5 s, though toronto is taken to be connected"
    ]


def test_a_record_is_waited_for_only_where_nothing_else_stands_in_the_way_and_longer_where_replay_lags() -> None:
    both = (survey(), survey())
    source, target = seen("primary"), seen("replica")
    assert echo_deadline(source, target, both) == 5
    assert echo_deadline(source, target, None) == 0
    assert echo_deadline(seen("primary", role="standby"), target, both) == 0
    for lag, deadline in ((1.5, 8), (5.0, 15), (3600.0, 15)):
        assert echo_deadline(seen("primary", replicas=[replica(lag_seconds=lag)]), target, both) == deadline
    assert echo_deadline(seen("primary", replicas=[replica(lag_bytes=64 * MB)]), target, both) == 5
    for none in ([], [replica(state="catchup")], [replica(name="ottawa")], [replica(lag_bytes=64 * MB + 1)]):
        assert echo_deadline(seen("primary", replicas=none), target, both) == 0
    for changes in ({"replay_paused": True}, {"apply_delay_ms": 5}):
        assert echo_deadline(source, target, (survey(), survey(**changes))) == 0


STOPPED: dict[str, Any] = {"state": "stopped", "role": "", "detail": "no server process"}
EXPIRED = "2030-01-01T12:00:00+00:00"
ALMOST = "2030-01-01T13:00:01+01:00"
"""A second later, said in another time zone."""

OF_THE_SOURCE: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"role": "standby"},
        ["montreal: a running standby; a primary that runs is needed; if it is dead, `harmony failover --to toronto"],
    ),
    (STOPPED, ["montreal: stopped: no server process; a primary that runs is needed; if it is dead, `harmony f"]),
    ({"system_identifier": "8"}, ["database: montreal is database 8, toronto is another one, 7000000000000000001; "]),
    ({"timeline": 2}, ["timeline: 2 and 1 differ; let toronto catch up, or run `harmony rejoin`"]),
    ({"replicas": []}, ["streaming: toronto is not connected; its log says why"]),
    ({"replicas": [replica(state="catchup")]}, ["streaming: toronto is catchup; its log says why"]),
    ({"replicas": [replica(name="ottawa")]}, ["streaming: toronto is not connected; its log says why"]),
    ({"replicas": [replica(lag_bytes=64 * MB)]}, []),
    (
        {"replicas": [replica(lag_bytes=64 * MB + 1)]},
        ["lag: toronto is 67108865 bytes behind, more than 67108864; wait until it has caught up"],
    ),
    ({"slots": [slot("lost")]}, ["slot: for_toronto is lost; `harmony rejoin` copies its replica anew"]),
    ({"slots": [slot("unreserved")]}, ["slot: for_toronto is unreserved; `harmony rejoin` copies its replica anew"]),
    ({"slots": [slot("extended")]}, []),
    (
        {"flaws": {"server": "does not belong to its key", "replication": "was signed by nobody"}},
        ["certificate: 'server' of montreal does not belong to its key, so it may not start again; `harmony"],
    ),
]

OF_THE_TARGET: list[tuple[dict[str, Any], list[str]]] = [
    ({"role": "primary"}, ["toronto: a running primary; a standby that runs is needed; somebody promoted it: stop "]),
    (STOPPED, ["toronto: stopped: no server process; a standby that runs is needed; start it, or run `harmony r"]),
    (
        {"state": "unreachable", "role": "", "detail": "no answer"},
        ["toronto: unreachable: no answer; a standby that runs is needed; start it, or run `harmony rejoin`"],
    ),
    (
        {"certificates": {"replication": EXPIRED}},
        [
            "certificate: toronto has no certificate 'server'; run `pulumi up`",
            f"certificate: 'replication' of toronto expired {EXPIRED}; `harmony rotate-certificates` makes a new",
        ],
    ),
    ({"certificates": {"server": ALMOST, "replication": ALMOST, "ca": EXPIRED}}, []),
    (
        {"flaws": {"replication": "was signed by nobody", "ca": "is not asked for"}},
        ["certificate: 'replication' of toronto was signed by nobody; `harmony rotate-certificates` makes a new one"],
    ),
    (
        {"clock": "2030-01-01T12:00:01+00:00", "certificates": {"server": ALMOST, "replication": ALMOST}},
        ["certificate: 'server' of toronto expired", "certificate: 'replication' of toronto expired"],
    ),
    ({"clock": "2030-01-01T11:00:00+00:00", "certificates": {"server": EXPIRED, "replication": EXPIRED}}, []),
    (
        {"clock": "", "certificates": {"server": EXPIRED, "replication": ALMOST}},
        ["certificate: 'server' of toronto expired"],
    ),
]
CLOCKS = [
    ("2030-01-01T12:01:00+00:00", []),
    ("2030-01-01T11:59:00+00:00", []),
    ("", []),
    ("2030-01-01T12:01:01+00:00", ["that of toronto is 61 s ahead of that of montreal: one may take the other's "]),
    ("2029-12-31T12:00:00+00:00", ["that of montreal is 86400 s ahead of that of toronto: one may take the other's "]),
]


@pytest.mark.parametrize(("clock", "expected"), CLOCKS)
def test_clocks_that_differ_are_a_warning(clock: str, expected: list[str]) -> None:
    found = looked_at(target=seen("replica", clock=clock))
    assert problems(found) == []
    warnings = [check.found for check in found if check.verdict == "warning"]
    assert [warning[: len(start)] for warning, start in zip(warnings, expected, strict=True)] == expected
    assert problems(looked_at(source=seen("primary", clock=""), target=seen("replica", clock=clock or EXPIRED))) == []


@pytest.mark.parametrize(("changes", "expected"), OF_THE_SOURCE)
def test_what_is_wrong_with_the_member_that_steps_down(changes: dict[str, Any], expected: list[str]) -> None:
    found = problems(looked_at(source=seen("primary", **changes)))
    assert len(found) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found


@pytest.mark.parametrize(("changes", "expected"), OF_THE_TARGET)
def test_what_is_wrong_with_the_member_that_takes_over(changes: dict[str, Any], expected: list[str]) -> None:
    found = problems(looked_at(target=seen("replica", **changes)))
    assert len(found) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found


BEHIND = {"collations": {"orders": ["2.36", "2.31"]}}
OF_A_COLUMN = '"sv-x-icu" (in orders)'
UNLIKE: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"major": 16}, {}, ["major version: 16 on montreal, 17 on toronto: they must be equal"]),
    (
        {},
        {"build": {"Database block size": "4096"}},
        ["build: Database block size 8192 on montreal, 4096 on toronto: they must be equal"],
    ),
    (
        {"extensions": {"orders": ["postgis", "plpgsql"], "a": ["postgis"]}},
        {},
        ["extensions: toronto lacks the files of postgis (in a), postgis (in orders); install them"],
    ),
    (
        {},
        BEHIND,
        ["collations: orders 2.36 on montreal, 2.31 on toronto: indexes on text would be wrong there; install the"],
    ),
    (
        BEHIND,
        {},
        ["collations: orders 2.31 on montreal, 2.36 on toronto: indexes on text would be wrong there; install the"],
    ),
    (
        {"collations": {"orders": ["2.36", "2.36"], OF_A_COLUMN: ["153.120", "153.120"]}},
        {"collations": {"orders": ["2.36", "2.36"], OF_A_COLUMN: ["153.120", "153.112"]}},
        [f"collations: {OF_A_COLUMN} 153.120 on montreal, 153.112 on toronto: indexes on text would be wrong"],
    ),
    (
        {"collations": {OF_A_COLUMN: ["153.120", "153.120"]}},
        {"collations": {}},
        [f"collations: {OF_A_COLUMN} 153.120 on montreal, none on toronto: indexes on text would be wrong there"],
    ),
    ({}, {"replay_paused": True}, ["replay: paused on toronto: its log says so if a setting is lower than the"]),
    ({}, {"apply_delay_ms": 1}, ["replay: toronto delays it by 1 ms, and clients would wait for that; set recovery"]),
    ({"replay_paused": True, "apply_delay_ms": 1}, {}, []),
    ({"limits": {"max_connections": 101}}, {}, []),
    ({"free_bytes": 256 * MB}, {"free_bytes": 256 * MB}, []),
    ({"free_bytes": 256 * MB - 1}, {}, ["disk: montreal has 268435455 bytes free; expected at least 268435456"]),
    ({}, {"free_bytes": 0}, ["disk: toronto has 0 bytes free; expected at least 268435456"]),
]


@pytest.mark.parametrize(("source", "target", "expected"), UNLIKE)
def test_members_that_are_not_alike(source: dict[str, Any], target: dict[str, Any], expected: list[str]) -> None:
    found = problems(looked_at(surveys=(survey(**source), survey(**target))))
    assert len(found) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found


def test_where_no_version_of_a_collation_is_recorded_it_is_said_that_none_was_compared() -> None:
    for collations, said in (({}, "no version is recorded, so none was compared"), (survey()["collations"], "alike")):
        like = survey(collations=collations)
        assert [c.found for c in looked_at(surveys=(like, like)) if c.name == "collations"] == [said]


def test_a_collation_that_is_outdated_alike_on_both_is_a_warning() -> None:
    found = looked_at(surveys=(survey(**BEHIND), survey(**BEHIND)))
    assert problems(found) == []
    warnings = [check.found for check in found if check.verdict == "warning"]
    assert warnings == [
        "orders was made with 2.36 and is 2.31, alike on both: REINDEX what depends on it, then ALTER … REFRESH VERSION"
    ]


def logical(name: str, **changes: bool) -> LogicalSlot:
    slot = {"failover": True, "synced": False, "temporary": False, "lost": False, **changes}
    return LogicalSlot(name=name, **slot)  # type: ignore[typeddict-item]


def copied(**changes: bool) -> LogicalSlot:
    return logical("feed", synced=True, **changes)


NO_COPY = "logical slot: feed has no copy on toronto that would outlive the promotion yet"


@pytest.mark.parametrize(
    ("major", "slot", "copies", "expected"),
    [
        (16, logical("feed", failover=False), [], "logical slot: feed would not be on toronto, as only PostgreSQL 17"),
        (17, logical("feed", failover=False), [copied()], "logical slot: feed would not be on toronto: ALTER SUBSC"),
        (17, logical("feed"), [], NO_COPY),
        (17, logical("feed"), [logical("feed")], NO_COPY),
        (17, logical("feed"), [copied(temporary=True)], NO_COPY),
        (17, logical("feed"), [copied(lost=True)], NO_COPY),
        (17, logical("feed"), [copied()], ""),
        (16, logical("feed", failover=False, temporary=True), [], ""),
        (16, logical("feed", failover=False, lost=True), [], ""),
    ],
)
def test_a_subscriber_that_could_not_go_on_is_no_price_of_a_switchover(
    major: int, slot: LogicalSlot, copies: list[LogicalSlot], expected: str
) -> None:
    source, target = survey(major=major, logical_slots=[slot]), survey(major=major, logical_slots=copies)
    found = problems(looked_at(surveys=(source, target)))
    assert len(found) == bool(expected), found
    assert all(problem.startswith(expected) for problem in found), found


def test_limits_that_the_old_primary_must_be_given_are_a_warning() -> None:
    found = looked_at(surveys=(survey(), survey(limits={"max_connections": 101})))
    assert problems(found) == []
    warnings = [check.found for check in found if check.verdict == "warning"]
    assert warnings == [
        "max_connections 101 on toronto, 100 on montreal: montreal gets those of toronto, since a standby needs no less"
    ]


# -- endpoints ---------------------------------------------------------------------------------------------------------


def endpoint(**changes: Any) -> EndpointObservation:
    """Return what is seen of an endpoint that leads to the primary, with some of it changed."""
    world = World(busy=False)
    found = MemoryEndpoint(world, world.endpoints["kingston"]).observe()
    return EndpointObservation(**{**found, **changes})  # type: ignore[typeddict-item]


OF_AN_ENDPOINT: list[tuple[dict[str, Any], str, str]] = [
    ({}, "ok", "kingston leads to montreal; 1 client"),
    ({"paused": True}, "warning", "kingston is paused, and has 1 client wait until the switchover is over"),
    (
        {"state": "stopped", "detail": "no PgBouncer runs in /srv"},
        "problem",
        "kingston is stopped, so nobody gets through: no PgBouncer runs in /srv; `harmony start` on its host starts",
    ),
    (
        {"state": "absent", "detail": "no endpoint of shop in /srv"},
        "problem",
        "kingston is gone: no endpoint of shop in /srv; `pulumi up --refresh` makes it anew",
    ),
    (
        {"state": "unreachable", "detail": "no answer", "points_to": ""},
        "problem",
        "kingston does not answer, so its clients can be neither held back nor led on: no answer; have it answer, or",
    ),
    (
        {"points_to": "toronto.example:5432"},
        "problem",
        "kingston leads to toronto.example:5432, and montreal, at montreal.example:5432, is active; `harmony switch",
    ),
    ({"points_to": ""}, "problem", "kingston leads to no server that is known, and montreal, at montreal.example"),
]


@pytest.mark.parametrize(("changes", "verdict", "found"), OF_AN_ENDPOINT)
def test_every_endpoint_is_to_lead_to_the_member_that_steps_down(
    changes: dict[str, Any], verdict: str, found: str
) -> None:
    other = endpoint(name="ottawa")
    one, second = endpoint_checks({"kingston": endpoint(**changes), "ottawa": other}, seen("primary"))
    assert (one.name, one.verdict) == ("endpoint", verdict)
    assert one.found.startswith(found)
    assert (second.verdict, second.found) == ("ok", "ottawa leads to montreal; 1 client")


def test_an_address_of_the_member_that_is_written_in_another_way_is_its_address() -> None:
    source = seen("primary", endpoint="[0:0:0:0:0:0:0:1]:5432")
    (found,) = endpoint_checks({"kingston": endpoint(points_to="[::1]:5432")}, source)
    assert found.verdict == "ok"


def test_where_an_endpoint_is_to_lead_is_not_judged_while_that_member_does_not_answer() -> None:
    silent = seen("primary", state="unreachable", role="", detail="no answer", endpoint="")
    (found,) = endpoint_checks({"kingston": endpoint(points_to="toronto.example:5432")}, silent)
    assert found.verdict == "ok"
