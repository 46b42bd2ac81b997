"""The server settings of PostgreSQL 13 to 18: which there are, what they take, which need a restart.

The table beside this module comes from real servers: `scripts/postgresql-settings` writes it. It knows
majors, not minors: what a later minor release of a major brought counts as there in all of them.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

Context = Literal["postmaster", "sighup", "superuser", "user", "backend", "superuser-backend", "internal"]
Kind = Literal["bool", "integer", "real", "string", "enum"]
Value = str | int | float | bool
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


@dataclass(frozen=True, slots=True)
class Setting:
    """A server setting, as the majors from `since` to `until` have it."""

    name: str
    context: Context
    """When it can change: `postmaster` only at a restart, `sighup` at a reload, `internal` never."""
    kind: Kind
    unit: str | None = None
    """What a number without a unit counts, for instance `kB`, `8kB` or `ms`."""
    values: tuple[str, ...] = ()
    """What an enum takes."""
    unsaid: tuple[str, ...] = ()
    """What an enum takes too, though PostgreSQL does not list it."""
    minimum: float | None = None
    maximum: float | None = None
    default: str | float | None = None
    """PostgreSQL's own default, where it is a bool, an enum or a number. `initdb` may write another one."""
    since: int | None = None
    """The first major that has it so; None if PostgreSQL 13 does."""
    until: int | None = None
    """The last major that has it so; None if the newest known one does."""


def setting(name: str, major: int | None = None) -> Setting | None:
    """Return a setting by its name, in any case, as `major` has it, or else as the newest that has it."""
    return next((found for found in reversed(_variants(name)) if _in(found, major)), None)


def needs_restart(name: str, major: int | None = None) -> bool:
    """Tell whether a change of a setting needs a restart; without `major`, whether it does in any of them."""
    return any(found.context == "postmaster" for found in _variants(name) if _in(found, major))


def suggest(name: str) -> str | None:
    """Return the setting whose name is the closest to `name`, if one is close."""
    close = difflib.get_close_matches(name.lower(), _table()[1], n=1, cutoff=0.7)
    return _table()[1][close[0]][-1].name if close else None


def quantity(name: str, value: Value, major: int | None = None) -> float | None:
    """Return a number in the setting's own unit: 16384 for shared_buffers and either '128MB' or 16384.

    Returns:
        An int for an integer setting, a float for a real one, None for what is not a number to PostgreSQL.
    """
    found = setting(name, major)
    if found is None or found.kind not in ("integer", "real"):
        return None
    parsed = _parse_number(found, value)
    return None if isinstance(parsed, str) else parsed


def meaning(name: str, value: Value) -> str:
    """Return a value in lower case; `on` or `off` for what PostgreSQL takes as one of them, such as `tr` or `0`."""
    text = _text(value).lower()
    found = setting(name)
    if found is not None and found.kind == "bool" and _is_bool(text):
        return "on" if text == "1" or any(word.startswith(text) for word in _TRUE) else "off"
    return "on" if text in ("1", *_TRUE) else "off" if text in ("0", *_FALSE) else text


def problem_with(name: str, value: Value, major: int | None = None) -> str | None:
    """Return what PostgreSQL would have against a setting in its configuration, as one sentence, or None.

    Settings of extensions (`pg_stat_statements.max`) are accepted: only their extension knows what they take.
    So are strings: PostgreSQL reads most of them when it uses them.

    Args:
        name: The setting's name, in any case, as PostgreSQL reads it.
        value: Its value: text as it stands in postgresql.conf without its quotes, or a Python number or bool.
        major: The major version that is to take it. Without it, one that takes it is enough.
    """
    if "." in name:
        if re.fullmatch(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", name, re.ASCII):
            return None
        return f"{name!r} is not a name of an extension's setting; it takes the form extension.setting"
    variants = _variants(name)
    if not variants:
        close = suggest(name)
        return f"{name!r} is not a setting of PostgreSQL" + (f"; did you mean {close}?" if close else "")
    fitting = [found for found in variants if _in(found, major)]
    if not fitting:
        since, until = variants[0].since, variants[-1].until
        when = f"it ended with PostgreSQL {until}" if until else f"it came with PostgreSQL {since}"
        return f"{name} does not exist in PostgreSQL {major}; {when}"
    problems = [_problem(found, value) for found in fitting]
    return None if None in problems else problems[-1]


def _problem(found: Setting, value: Value) -> str | None:
    if found.context == "internal":
        return f"{found.name} cannot be set; PostgreSQL only reports it"
    said: str | None = None
    match found.kind:
        case "bool":
            if not _is_bool(_text(value)):
                said = f"{value!r} is not on or off; {found.name} takes on or off, for instance True"
        case "enum":
            if _text(value).lower() not in {each.lower() for each in (*found.values, *found.unsaid)}:
                takes = _listed([each or "''" for each in found.values])
                said = f"{value!r} is not one of its values; {found.name} takes {takes}"
        case "integer" | "real":
            parsed = _parse_number(found, value)
            if isinstance(parsed, str):
                said = f"{value!r} {parsed}; {_takes_number(found)}"
        case "string":
            pass
    return said


def _is_bool(text: str) -> bool:
    # As in parse_bool_with_len: the words, and what can only be the beginning of one of them.
    words = (*_TRUE, *_FALSE)
    return text in ("1", "0") or (text not in ("", "o", "O") and any(w.startswith(text.lower()) for w in words))


_MEMORY = {"B": 1, "kB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_TIME = {
    "us": 1,
    "ms": 1000,
    "s": 1000_000,
    "min": 60 * 1000_000,
    "h": 3600 * 1000_000,
    "d": 86400 * 1000_000,
}
_SPACE = " \t\n\v\f\r"
_INTEGER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|[0-9]+)")
_REAL = re.compile(
    r"[+-]?(?:0[xX](?P<hex>[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)(?:[pP][+-]?[0-9]+)?"
    r"|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf(?:inity)?)",
    re.IGNORECASE,
)


def _parse_number(found: Setting, value: Value) -> float | str:
    """Return a value in the setting's base unit, or what is wrong with it, as parse_int and parse_real do."""
    try:
        return _parse_text(found, "" if isinstance(value, bool) else str(value))
    except (OverflowError, ValueError):
        return "is out of range"


def _parse_text(found: Setting, text: str) -> float | str:
    number = _leading_number(text, whole=found.kind == "integer")
    if number is None:
        return "is not a number"
    amount, unit = number[0], number[1].strip(_SPACE)
    if unit:
        units, base = _units(found.unit)
        if not units:
            return "has a unit, and this setting has none"
        if unit not in units:
            return f"does not end in a unit that fits ({_listed(list(units), 'or')})"
        amount = amount * (units[unit] / base)
        # A fraction, such as 30.1GB, is rounded to a multiple of the next smaller unit, if there is one.
        smaller = [size for size in units.values() if size < units[unit]]
        if smaller:
            amount = round(amount / (smaller[-1] / base)) * (smaller[-1] / base)
    if found.minimum is None or found.maximum is None:
        return amount
    if found.kind == "integer" and abs(amount) < 2**63:
        amount = round(amount)
    return amount if found.minimum <= amount <= found.maximum else "is out of range"


def _leading_number(text: str, *, whole: bool) -> tuple[float, str] | None:
    """Split a number from what follows it, as strtol and strtod do."""
    text = text.lstrip(_SPACE)
    if whole:
        integer = _INTEGER.match(text)
        rest = text[integer.end() :] if integer else text
        if integer and rest[:1].lower() not in (".", "e"):
            return _integer(integer[0], rest)
        if not integer and rest[:1] != ".":
            return None
    real = _REAL.match(text)
    if real is None:
        return None
    amount = float.fromhex(real[0]) if real["hex"] else float(real[0])
    if abs(amount) == float("inf") and "inf" not in real[0].lower():
        return None
    return amount, text[real.end() :]


def _integer(digits: str, rest: str) -> tuple[float, str] | None:
    bare = digits.lstrip("+-").lower()
    if bare.startswith("0x"):
        return int(digits, 16), rest
    if bare.startswith("0"):  # octal, and what is no octal digit ends it
        octal = re.match(r"[+-]?[0-7]+", digits)
        return (int(octal[0], 8), digits[octal.end() :] + rest) if octal else None
    return int(digits), rest


def _units(unit: str | None) -> tuple[dict[str, int], int]:
    """Return the units that fit a base unit, smallest first, and the base unit in the smallest of them."""
    for units in (_MEMORY, _TIME):
        for name, size in units.items():
            if unit and unit.lstrip("0123456789") == name:
                return units, size * int(unit.removesuffix(name) or 1)
    return {}, 1


def _takes_number(found: Setting) -> str:
    units, base = _units(found.unit)
    unit = f" units of {found.unit}" if found.unit == "8kB" else f" {found.unit}" if found.unit else ""
    low, high = found.minimum or 0, found.maximum or 0
    span = f"{low:.15g} to {high:.15g}" if high < 1e300 else f"{low:.15g} or more"
    span = f"{high:.15g} only" if low == high else span
    example = found.default if isinstance(found.default, int | float) else low
    if not units:
        return f"{found.name} takes {span}{unit}, for instance {example:g}"
    if example <= 0:
        example = min(1024 if units is _MEMORY else 60, high)
    name, size = next((n, s) for n, s in reversed(units.items()) if example * base % s == 0)
    with_unit = f"{example * base / size:.15g}{name}"
    return f"{found.name} takes {span}{unit}, for instance {example:.15g} or '{with_unit}'"


def _text(value: Value) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _listed(words: list[str], last: str = "or") -> str:
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "nothing"


def _in(found: Setting, major: int | None) -> bool:
    # A newer major than the table knows is taken for its newest, an older one for its oldest.
    if major is None:
        return True
    oldest, newest = _table()[0]
    major = min(max(major, oldest), newest)
    return (found.since or oldest) <= major <= (found.until or newest)


def _variants(name: str) -> list[Setting]:
    return _table()[1].get(name.lower(), [])


@cache
def _table() -> tuple[tuple[int, int], dict[str, list[Setting]]]:
    """Return the oldest and newest major, and the variants, oldest first, by their name in lower case."""
    text = resources.files(__package__ or "").joinpath("postgresql_settings.json").read_text("utf-8")
    content = json.loads(text)
    return (content["majors"][0], content["majors"][-1]), {
        name.lower(): [_read(name, entry) for entry in entries] for name, entries in content["settings"].items()
    }


def _read(name: str, entry: dict[str, Any]) -> Setting:
    return Setting(
        name=name,
        context=entry["context"],
        kind=entry["type"],
        unit=entry.get("unit"),
        values=tuple(entry.get("values", ())),
        unsaid=tuple(entry.get("unsaid", ())),
        minimum=entry.get("min"),
        maximum=entry.get("max"),
        default=entry.get("default"),
        since=entry.get("since"),
        until=entry.get("until"),
    )
