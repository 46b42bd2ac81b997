"""The base of every configuration: frozen, no unknown fields, all problems in one clean message."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harmony_pulumi.input_errors import InputError, Problem


class Config(BaseModel):
    """A declared intent. Values are checked as it is made, all together."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    if not TYPE_CHECKING:  # Checkers derive the constructor from the fields.

        def __init__(self, **data: Any) -> None:
            """Check the values.

            Raises:
                InputError: every problem found, each with its path.
            """
            try:
                super().__init__(**data)
            except ValidationError as error:
                raise InputError(type(self).__name__, problems_of(error, type(self).model_fields)) from None


def problems_of(error: ValidationError, fields: Collection[str]) -> list[Problem]:
    """Return pydantic's findings as problems, without the values: a value can be a secret."""
    problems: list[Problem] = []
    for found in error.errors(include_url=False):
        cause = found.get("ctx", {}).get("error")
        path = ".".join(str(part) for part in found["loc"])
        if isinstance(cause, InputError):
            problems += [Problem(f"{path}.{p.path}" if p.path else path, p.message) for p in cause.problems]
        elif isinstance(cause, ValueError) and cause.args and isinstance(cause.args[0], list):
            problems += [Problem(f"{path}.{p.path}".strip("."), p.message) for p in cause.args[0]]
        elif found["type"] == "extra_forbidden":
            problems.append(Problem(path, f"there is no such field in {error.title}; {_nearest(path, fields)}"))
        else:
            problems.append(Problem(path, str(cause) if cause else found["msg"]))
    return problems


def _nearest(name: str, fields: Collection[str]) -> str:
    close = difflib.get_close_matches(name, fields, n=1)
    return f"did you mean {close[0]}?" if close else f"its fields are {', '.join(sorted(fields))}"
