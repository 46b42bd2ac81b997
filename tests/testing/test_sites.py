"""The kit for sites passes the sites in memory, over which orchestration is tested, and finds those that break it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Fork, Roles, Token
from harmony_pulumi.errors import UnlockableError
from harmony_pulumi.orchestration.members import Pair
from harmony_pulumi.orchestration.replication import Member
from harmony_pulumi.testing import ConformanceError, Report, check_sites
from tests.orchestration.sites import PAIR, MemorySite, World


def check(site: type[MemorySite]) -> Report:
    world = World(busy=False, endpoints=())
    members = world.servers

    def make_pair() -> Pair:
        made = {r: Member(r, site(world, s), {"name": s.name, "slot": s.slot}) for r, s in members.items()}
        return Pair(PAIR, "orders", made, synchronous=False, deadline=5.0)

    def commit(_: Member) -> None:
        world.commit()

    def count(member: Member) -> int:
        world.go_on()
        return len(world.commits(members[member.role]))

    report = check_sites(make_pair, commit, count)
    world.check()
    assert world.leader == "primary"
    return report


def test_the_sites_in_memory_keep_the_contract() -> None:
    report = check(MemorySite)
    assert len(report.passed) == 13
    assert report.subject == "MemorySite"


class Crowded(MemorySite):
    @contextmanager
    def alone(self, operator: str) -> Generator[Callable[[str], None]]:
        self.server.holder, before = operator, self.server.holder
        try:
            yield self.record
        finally:
            self.server.holder = before


class Misleading(MemorySite):
    @contextmanager
    def alone(self, operator: str) -> Generator[Callable[[str], None]]:
        if self.server.holder:
            raise UnlockableError(f"{self.server.holder} holds it")
        with super().alone(operator) as write:
            yield write


class Forgetful(MemorySite):
    def record(self, lines: str) -> None:
        del lines


class Blank(MemorySite):
    def remembered(self) -> str:
        return ""


class Credulous(MemorySite):
    def tell(self, roles: Roles) -> None:
        self.server.roles = roles


class Hasty(MemorySite):
    def _to_lead(self) -> None:
        pass


class Proud(MemorySite):
    def demote(self) -> Token:
        found = super().demote()
        self.server.signal = False
        return found


class Fickle(MemorySite):
    def demote(self) -> Token:
        return {**super().demote(), "lsn": f"0/{self.world.count:X}"}


class Trusting(MemorySite):
    def verify(self, token: Token, *, deadline: float) -> None:
        del token, deadline


class Obstinate(MemorySite):
    def reinstate(self) -> None:
        pass


class Aimless(MemorySite):
    def follow(self, source: Mapping[str, Any]) -> None:
        super().follow({**source, "role": ""})


class Careless(MemorySite):
    def prepare(self, follower: str) -> None:
        del follower


class Gentle(MemorySite):
    def fence(self) -> str:
        return "it was asked"


class Wasteful(MemorySite):
    def archive(self, fork: Fork) -> str:
        del fork
        return ""


class Blind(MemorySite):
    def beyond(self, fork: Fork) -> Any:
        return {**super().beyond(fork), "transactions": []}


class Torn(MemorySite):
    def rewind(self, source: Mapping[str, Any]) -> str:
        del source
        return "it does not know how"


class Empty(MemorySite):
    def clone(self, source: Mapping[str, Any], show: Callable[[str], None]) -> None:
        super().clone(source, show)
        self.server.wal, self.server.replayed = self.server.wal[:1], 1
        self.server.linked = False


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (Crowded, "everybody else is refused"),
        (Misleading, "everybody else is refused"),
        (Forgetful, "What is recorded"),
        (Blank, "what is remembered is read back"),
        (Credulous, "refuses an older epoch"),
        (Hasty, "not told that it is to be active is not promoted"),
        (Proud, "gives one token"),
        (Fickle, "gives one token"),
        (Trusting, "no other is verified"),
        (Obstinate, "it can be taken back"),
        (Aimless, "Roles move by their primitives"),
        (Careless, "forgets that again"),
        (Gentle, "What a fenced primary alone has"),
        (Blind, "is told and put aside"),
        (Wasteful, "is told and put aside"),
        (Torn, "then it is rewound"),
        (Empty, "copied anew"),
    ],
)
def test_what_breaks_the_contract_is_found(site: type[MemorySite], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harmony_pulumi.testing.sites._DEADLINE", 0.2)
    monkeypatch.setattr("harmony_pulumi.testing.sites._SHORT", 0.1)
    with pytest.raises(ConformanceError) as found:
        check(site)
    assert said in str(found.value)
