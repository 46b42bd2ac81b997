"""Certificates: what is wrong with one, and which of two is newer, whatever the clock of who made them said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from harmony_pulumi.hosts.postgresql import certificates
from harmony_pulumi.hosts.postgresql.certificates import KeyPair

OURS, OTHERS = certificates.make_authority("ours"), certificates.make_authority("ours")
SERVER, CLIENT = certificates.make_server(OURS, "localhost", 30), certificates.make_client(OURS, "ada", 30)


class Shifted(datetime):
    """A clock that is wrong."""

    by = timedelta()

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        assert tz is UTC
        return datetime.now(UTC) + cls.by


@pytest.mark.parametrize(
    ("pair", "trusted", "said"),
    [
        (SERVER, OURS.certificate, ""),
        (CLIENT, OURS.certificate, ""),
        (SERVER, OTHERS.certificate + OURS.certificate, ""),
        (certificates.make_server(OURS, "localhost", 0), OURS.certificate, ""),
        (SERVER, OTHERS.certificate, "was signed by no authority that is trusted there"),
        (SERVER, "", "was signed by no authority that is trusted there"),
        (KeyPair(SERVER.certificate, CLIENT.key), OURS.certificate, "does not belong to its key"),
        (KeyPair(SERVER.certificate[:100], SERVER.key), OURS.certificate, "cannot be read, or its key cannot"),
        (KeyPair(SERVER.certificate, ""), OURS.certificate, "cannot be read, or its key cannot"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_told(pair: KeyPair, trusted: str, said: str) -> None:
    assert certificates.flaw(pair, trusted) == said


def test_a_certificate_that_is_not_valid_yet_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shifted, "by", timedelta(days=3))
    monkeypatch.setattr(certificates, "datetime", Shifted)
    made = certificates.make_server(OURS, "localhost", 30)
    assert certificates.flaw(made, OURS.certificate) == ""
    monkeypatch.setattr(Shifted, "by", timedelta())
    begin = x509.load_pem_x509_certificate(made.certificate.encode()).not_valid_before_utc
    assert certificates.flaw(made, OURS.certificate) == f"is not valid before {begin:%Y-%m-%d %H:%M} UTC"


def test_what_is_no_certificate_has_neither_a_number_nor_a_lifetime() -> None:
    assert certificates.serial("nonsense") == ""
    assert certificates.lifetime_days("nonsense") == 365
    assert certificates.lifetime_days(SERVER.certificate) == 30


@pytest.mark.parametrize("days", [-1.0, -1 / 24, 0.0, 1 / 24, 1.0])
def test_a_certificate_of_an_operator_with_a_wrong_clock_is_valid_now_and_newer(
    days: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = certificates.make_client(OURS, "ada", 30)
    monkeypatch.setattr(Shifted, "by", timedelta(days=days))
    monkeypatch.setattr(certificates, "datetime", Shifted)
    made = certificates.make_client(OURS, "ada", 30, before=before.certificate)
    found = x509.load_pem_x509_certificate(made.certificate.encode())
    assert found.not_valid_before_utc <= datetime.now(UTC) - timedelta(hours=12)
    assert found.not_valid_after_utc >= datetime.now(UTC) + timedelta(days=28)
    assert certificates.is_newer(made.certificate, before.certificate)
    assert not certificates.is_newer(before.certificate, made.certificate)


def test_a_certificate_in_the_place_of_one_from_the_future_is_valid_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shifted, "by", timedelta(days=100))
    monkeypatch.setattr(certificates, "datetime", Shifted)
    before = certificates.make_client(OURS, "ada", 30)
    monkeypatch.undo()
    made = certificates.make_client(OURS, "ada", 30, before=before.certificate)
    found = x509.load_pem_x509_certificate(made.certificate.encode())
    assert found.not_valid_before_utc <= datetime.now(UTC)
    assert certificates.make_client(OURS, "ada", 30, before="nonsense").certificate
