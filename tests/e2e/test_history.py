"""The history checker itself: it finds what it is there to find."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.e2e.conftest import Stack, port_of, superuser
from tests.e2e.history import Attempt, Clients, Row, account
from tests.e2e.test_lifecycle import data
from tests.e2e.test_repair import server_program


def attempts(count: int = 20) -> list[Attempt]:
    """Return what two clients remember of a history without any fault, in which roles moved once."""
    made: list[Attempt] = []
    for number in range(count):
        client, sequence = number % 2, number // 2
        position = (1 if number < count // 2 else 2, 1000 + number)
        value = f"{client}-{sequence}"
        made.append(Attempt(client, sequence, value, "acknowledged", number, number + 0.5, position))
    return made


def rows(made: list[Attempt]) -> list[Row]:
    return [Row(a.client, a.sequence, a.value) for a in made]


def test_a_history_without_faults_has_no_problems_and_its_longest_gap_is_told() -> None:
    made = attempts()
    found = account([*made[:10], *(replace(a, began=a.began + 5, ended=a.ended + 5) for a in made[10:])], rows(made))
    assert (found.problems, found.acknowledged, found.longest_gap) == ([], 20, 6.0)


def test_what_is_unknown_may_be_there_or_not_and_what_was_refused_may_not() -> None:
    made = attempts()
    made[3] = replace(made[3], outcome="unknown", position=(0, 0))
    made[4] = replace(made[4], outcome="failed", position=(0, 0))
    there = rows(made)
    assert account(made, [*there[:3], *there[5:]]).problems == []
    assert account(made, [*there[:4], *there[5:]]).problems == []
    assert account(made, there).problems == ["refused, and there: 0-2"]


def test_a_loss_a_duplicate_a_stranger_and_a_wrong_order_are_found() -> None:
    made = attempts()
    there = rows(made)
    assert account(made, there[:-1]).problems == ["lost: 1-9 of client 1, at (2, 1019)"]
    assert account(made, [*there, there[-1]]).problems == ["2 times: 1-9"]
    assert account(made, [*there, Row(7, 0, "7-0")]).problems == ["written by nobody: 7-0"]
    there[2], there[4] = there[4], there[2]
    assert account(made, there).problems == ["out of order: 0-1 of client 0, 1 after 2"]


def test_a_second_writer_is_found_even_if_nothing_is_missing() -> None:
    made = attempts()
    behind = replace(made[-1], position=(1, 5000))
    assert account([*made[:-1], behind], rows(made)).problems == [
        "two writers: 1-9 at (1, 5000), after 0-9 at (2, 1018)"
    ]
    # On one timeline, as two members have it that were both promoted by hand.
    behind = replace(made[-1], position=(2, 1012))
    assert account([*made[:-1], behind], rows(made)).problems == [
        "two writers: 1-9 at (2, 1012), after 0-9 at (2, 1018)"
    ]


def test_what_two_inserts_at_once_say_of_their_order_proves_nothing() -> None:
    one = Attempt(0, 0, "0-0", "acknowledged", 0.0, 2.0, (1, 200))
    other = Attempt(1, 0, "1-0", "acknowledged", 1.0, 3.0, (1, 100))
    assert account([one, other], rows([one, other])).problems == []


@pytest.mark.e2e
def test_seeded_faults_are_found_in_a_real_database(stack: Stack) -> None:
    stack.pair()
    stack.up()
    outputs = stack.outputs()
    ca = stack.folder / "ca.crt"
    ca.write_text(outputs["ca_certificate"])
    root, port = data(stack, "montreal").parent, port_of(outputs["primary_uri"])
    with Clients([outputs["uri"]] * 2, ca) as clients:
        clients.wait_until_served()
    found = clients.insist(outputs["primary_uri"], outputs["replica_uri"])
    assert found.failed == found.unknown == 0

    def after(sql: str) -> list[str]:
        superuser(root, f"BEGIN; CREATE TABLE before AS TABLE history; {sql}; COMMIT", port, "orders")
        problems = clients.check(outputs["primary_uri"]).problems
        superuser(root, "TRUNCATE history; INSERT INTO history TABLE before; DROP TABLE before", port, "orders")
        return problems

    last = "client = 1 AND sequence = (SELECT max(sequence) FROM history WHERE client = 1)"
    assert [p.split(":")[0] for p in after(f"DELETE FROM history WHERE {last}")] == ["lost"]
    assert [p.split(":")[0] for p in after(f"INSERT INTO history SELECT * FROM history WHERE {last}")] == ["2 times"]
    moved = after(f"UPDATE history SET place = 0 WHERE {last}")
    assert [p.split(":")[0] for p in moved] == ["out of order"]
    assert after("SELECT 1") == []

    server_program(stack, "toronto", "pg_ctl", "promote", "-s", "-D", "{root}/data")
    with Clients([outputs["primary_uri"], outputs["replica_uri"]], ca) as clients:
        clients.wait_until_served()
    problems = clients.check(outputs["primary_uri"]).problems
    assert {p.split(":")[0] for p in problems} == {"lost", "two writers"}
