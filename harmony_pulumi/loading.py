"""Classes by the names that handles have of them: whoever reads a handle may have other packages than who wrote it."""

from __future__ import annotations

import importlib
from typing import Any

from harmony_pulumi.errors import SiteError


def load_class(kind: str, words: str) -> Any:
    """Return the class that `module:class` names.

    Args:
        kind: that name.
        words: what it is of, up to `a`, for the message.

    Raises:
        SiteError: there is no such class here.
    """
    module, _, name = kind.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        msg = f"{words} a {kind}, which is not installed here ({error}); install the package that deployed it"
        raise SiteError(msg) from error
