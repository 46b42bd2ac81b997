"""New certificates of one server: decided once, also where a run is cut off, and counted once they are used."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Rotation
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import certificates
from harmony_pulumi.hosts.postgresql.renewal import (
    changed_inputs,
    distrust,
    id_by_input,
    is_by_input,
    last_rotation,
    renew,
    settle,
    write_begun,
)
from tests.orchestration.sites import Killed

TLS, ADDRESS, DAYS = "/srv/orders/tls", "db.example", 90
AUTHORITY = certificates.make_authority("harmony shop/prod/orders")
SHOWN = certificates.make_server(AUTHORITY, ADDRESS, DAYS)
ISSUED = certificates.make_client(AUTHORITY, "replicator", DAYS)
BEFORE = {
    "trusted.crt": AUTHORITY.certificate,
    "ca.crt": AUTHORITY.certificate,
    "ca.key": AUTHORITY.key,
    "server.crt": SHOWN.certificate,
    "server.key": SHOWN.key,
    "replication.crt": ISSUED.certificate,
    "replication.key": ISSUED.key,
}


@dataclass
class Folder:
    """The files of a server. A run is cut off before one of the writes of a file."""

    files: dict[str, str] = field(default_factory=lambda: dict(BEFORE))
    writes: int = 0
    cut_at: int = 0
    name: str = "montreal"
    folder: str = TLS

    def read(self, names: Sequence[str]) -> dict[str, str | None]:
        return {name: self.files.get(name) for name in names}

    def write(self, texts: Mapping[str, str]) -> list[str]:
        changed: list[str] = []
        for name, text in texts.items():
            if self.files.get(name) != text:
                self.writes += 1
                if self.writes == self.cut_at:
                    raise Killed
                self.files[name] = text
                changed.append(name)
        return changed

    @property
    def serials(self) -> tuple[str, ...]:
        return tuple(certificates.serial(self.files[name]) for name in ("ca.crt", "server.crt", "replication.crt"))

    @property
    def trusts(self) -> int:
        return self.files["trusted.crt"].count("BEGIN CERTIFICATE")

    def insist_on_whole(self, *, trusts: int) -> None:
        """What is shown and issued is signed by the authority of now, and that and those of before are trusted."""
        for name in ("server", "replication"):
            pair = certificates.KeyPair(self.files[f"{name}.crt"], self.files[f"{name}.key"])
            assert certificates.flaw(pair, self.files["ca.crt"]) == ""
        assert self.files["ca.crt"] in self.files["trusted.crt"]
        assert self.trusts == trusts


def rotation(id_: str = "one", *, authority: bool = False) -> Rotation:
    return {"id": id_, "authority": authority, "operator": "a test", "ended": False}


@contextmanager
def days_ago(days: float) -> Generator[None]:
    """Have certificates be made as of then."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) - timedelta(days=days)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "datetime", Then)
        yield


def cut_off(folder: Folder, wanted: Rotation, at: int, **options: int) -> None:
    """Renew, and be cut off before this write from now on."""
    folder.cut_at = folder.writes + at
    with pytest.raises(Killed):
        renew(folder, wanted, ADDRESS, **options)
    folder.cut_at = 0


def writes_of(wanted: Rotation) -> int:
    whole = Folder()
    renew(whole, wanted, ADDRESS)
    return whole.writes


@pytest.mark.parametrize("authority", [False, True])
def test_new_certificates_last_as_long_and_count_once_they_are_settled(authority: bool) -> None:
    folder = Folder()
    assert last_rotation(folder) == (None, False)
    renew(folder, rotation(authority=authority), ADDRESS)
    made = folder.serials
    assert not set(made) & {certificates.serial(SHOWN.certificate), certificates.serial(ISSUED.certificate)}
    assert (made[0] != certificates.serial(AUTHORITY.certificate)) is authority
    assert certificates.lifetime_days(folder.files["server.crt"]) == DAYS
    folder.insist_on_whole(trusts=1 + authority)
    assert last_rotation(folder) == (rotation(authority=authority), False)
    settle(folder)
    assert last_rotation(folder) == (rotation(authority=authority), True)
    assert "PRIVATE KEY" not in folder.files["rotation.json"]
    renew(folder, rotation(authority=authority), ADDRESS)
    settle(folder)
    assert (folder.serials, last_rotation(folder)) == (made, (rotation(authority=authority), True))
    distrust(folder)
    folder.insist_on_whole(trusts=1)
    assert last_rotation(folder) == ({**rotation(authority=authority), "ended": True}, True)
    renew(folder, rotation("two"), ADDRESS, days=7)
    assert folder.serials[1:] != made[1:]
    assert certificates.lifetime_days(folder.files["server.crt"]) == 7


@pytest.mark.parametrize("authority", [False, True])
def test_cut_off_at_any_write_and_run_again_nothing_is_decided_twice(authority: bool) -> None:
    for number in range(1, writes_of(rotation(authority=authority)) + 1):
        folder = Folder()
        cut_off(folder, rotation(authority=authority), number)
        known, in_use = last_rotation(folder)
        assert known == (rotation(authority=authority) if number > 1 else None), "the first is the decision"
        assert not in_use
        decided = folder.files.get("rotation.json")
        for again in (write_begun, lambda kept: renew(kept, rotation(authority=authority), ADDRESS)):
            again(folder)
            assert decided in (None, folder.files.get("rotation.json"))
        folder.insist_on_whole(trusts=1 + authority)
        settle(folder)
        assert last_rotation(folder)[1]


@pytest.mark.parametrize("authority", [False, True])
@pytest.mark.parametrize("then", [False, True])
def test_what_takes_the_place_of_one_that_was_cut_off_trusts_what_that_did_and_replaces_what_that_would_have(
    authority: bool, then: bool
) -> None:
    for number in range(2, writes_of(rotation(authority=authority)) + 1):
        folder = Folder()
        cut_off(folder, rotation(authority=authority), number)
        renew(folder, rotation("two", authority=then), ADDRESS)
        folder.insist_on_whole(trusts=1 + authority + then)
        assert last_rotation(folder) == (rotation("two", authority=authority or then), False)
        settle(folder)
        distrust(folder)
        renew(folder, rotation("three"), ADDRESS)
        assert last_rotation(folder) == (rotation("three"), False), "that has ended"


def test_what_was_decided_long_ago_is_decided_anew() -> None:
    for days, is_kept in ((0.9, True), (1.1, False), (400, False)):
        folder = Folder()
        with days_ago(days):
            cut_off(folder, rotation(authority=True), 3)
        decided = folder.files["rotation.json"]
        renew(folder, rotation(authority=True), ADDRESS)
        assert (folder.files["rotation.json"] == decided) is is_kept
        folder.insist_on_whole(trusts=2 if is_kept else 3)
        shown = certificates.KeyPair(folder.files["server.crt"], folder.files["server.key"])
        assert certificates.serves(shown, ADDRESS)
        assert last_rotation(folder) == (rotation(authority=True), False)


def test_what_was_decided_for_another_address_is_decided_anew() -> None:
    folder = Folder()
    cut_off(folder, rotation(), 3)
    renew(folder, rotation(), "new.example")
    folder.insist_on_whole(trusts=1)
    shown = certificates.KeyPair(folder.files["server.crt"], folder.files["server.key"])
    assert certificates.serves(shown, "new.example")


def test_what_is_missing_or_expired_is_said_and_nothing_is_touched() -> None:
    folder = Folder()
    del folder.files["ca.key"]
    folder.files["replication.crt"] = ""
    with pytest.raises(SiteError, match=rf"montreal: {TLS} lacks ca.key, replication.crt; run `pulumi up`"):
        renew(folder, rotation(), ADDRESS)
    with days_ago(10 * 366):
        old = certificates.make_authority("harmony shop/prod/orders")
    folder = Folder({**BEFORE, "ca.crt": old.certificate, "ca.key": old.key, "trusted.crt": old.certificate})
    with pytest.raises(SiteError, match=r"expired \d{4}-\d\d-\d\d, so it can sign none; rotate it, too: `harmony rot"):
        renew(folder, rotation(), ADDRESS)
    assert folder.writes == 0
    renew(folder, rotation(authority=True), ADDRESS)
    folder.insist_on_whole(trusts=1)


def test_without_a_rotation_there_is_nothing_to_settle_and_what_is_trusted_is_the_authority() -> None:
    folder = Folder()
    for act in (write_begun, settle):
        act(folder)
    assert folder.writes == 0
    other = certificates.make_authority("another")
    folder.files["trusted.crt"] += other.certificate
    distrust(folder)
    assert (folder.trusts, folder.writes) == (1, 1)
    folder.files = {}
    distrust(folder)
    assert folder.files == {}


def test_inputs_ask_for_the_same_rotation_wherever_a_member_is() -> None:
    asked = id_by_input({"certificate_lifetime_days": 30.0, "authority_generation": 2, "address": "other"})
    assert asked == "certificate_lifetime_days=30 certificate_generation=0 authority_generation=2"
    rotation = Rotation(id=asked, authority=True, operator="a test", ended=False)
    assert is_by_input(rotation)
    assert not is_by_input({**rotation, "id": "5f0c"})


def test_what_is_not_given_is_as_it_was_where_it_is_none() -> None:
    before = {"certificate_lifetime_days": 365, "certificate_generation": None, "address": "one"}
    after = {"certificate_lifetime_days": 365.0, "authority_generation": 0, "address": "other"}
    assert changed_inputs(before, after) == set()
    assert changed_inputs(before, {**after, "certificate_generation": 1}) == {"certificate_generation"}
    assert changed_inputs({}, before) == {"certificate_lifetime_days"}
