"""Addresses as text, `host:port`, written in one way, so that two that are the same are equal; how TLS begins there.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any


def address(host: object, port: Any) -> str:
    """Return `host:port` as in a URI: an IPv6 address in brackets, and in its shortest form."""
    name = str(host)
    with suppress(ValueError):  # A name, or a form that only a resolver knows.
        name = str(ip_address(name))
    return f"[{name}]:{int(port)}" if ":" in name else f"{name}:{int(port)}"


def is_host(text: str) -> bool:
    """Tell whether a text is a host name or an IP address."""
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", text):
        return True
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_same(one: str, other: str) -> bool:
    """Tell whether two texts `host:port` are one address, however each of them writes it.

    No name is resolved: one of a host and an address of it are two.
    """
    return _canonical(one) == _canonical(other)


def negotiation(*endpoints: Mapping[str, Any]) -> dict[str, str]:
    """Return how libpq, and what goes by its words, is to begin TLS with servers: libpq, `sslnegotiation`.

    Nothing where it need not be said: no libpq before 17 knows the word. Servers that know it take direct TLS anywhere.
    """
    return {"sslnegotiation": "direct"} if any(endpoint.get("direct") for endpoint in endpoints) else {}


def _canonical(text: str) -> str:
    host, _, port = text.rpartition(":")
    return address(host.removeprefix("[").removesuffix("]"), port) if port.isdecimal() else text
