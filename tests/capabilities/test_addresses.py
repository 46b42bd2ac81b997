"""Addresses: written in one way, and compared as what they are."""

from __future__ import annotations

import pytest

from harmony_pulumi.capabilities.addresses import address, is_same


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("a.example", 5432, "a.example:5432"),
        ("::1", 5432.0, "[::1]:5432"),
        ("0:0:0:0:0:0:0:1", "5432", "[::1]:5432"),
        ("2001:DB8::0:1", 1, "[2001:db8::1]:1"),
        ("fe80::1%eth0", 1, "[fe80::1%eth0]:1"),
        ("127.0.0.1", 5432, "127.0.0.1:5432"),
    ],
)
def test_an_address_is_written_in_one_way(host: str, port: object, text: str) -> None:
    assert address(host, port) == text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("[::1]:5432", "0:0:0:0:0:0:0:1:5432"),
        ("[::1]:5432", "[0:0:0:0:0:0:0:1]:5432"),
        ("[2001:DB8::1]:1", "[2001:db8:0::1]:1"),
        ("a.example:5432", "a.example:5432"),
        ("", ""),
    ],
)
def test_two_texts_of_one_address_are_the_same(one: str, other: str) -> None:
    assert is_same(one, other)
    assert is_same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("[::1]:5432", "[::1]:5433"),
        ("[::1]:5432", "[::2]:5432"),
        ("a.example:5432", "b.example:5432"),
        ("", "a.example:5432"),
        ("localhost:5432", "127.0.0.1:5432"),
    ],
)
def test_different_addresses_are_not(one: str, other: str) -> None:
    assert not is_same(one, other)
