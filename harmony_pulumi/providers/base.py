"""What every dynamic provider here needs: clean errors, plain values, unknowns, a voice.

Provider classes are small, stateless and at module level, and never move: the state of every stack refers to them by
module and name.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

from pulumi.dynamic import ResourceProvider
from pulumi.output import Unknown

from harmony_pulumi.errors import SiteError

P = ParamSpec("P")
R = TypeVar("R")


class OperationError(Exception):
    """What a failed operation tells the user."""


def show(line: str) -> None:
    """Say a line in the display of `pulumi up`, as it happens."""
    print(line, file=sys.stderr, flush=True)


def clean_errors(operation: Callable[P, R]) -> Callable[P, R]:
    """Have a provider's operation fail with the message of its error and no traceback.

    Pulumi's dynamic provider host formats whatever is raised with its traceback. For an error that tells the user what
    to do, the frames are noise, so they are left out, until that one error has been formatted and is gone.
    """

    @functools.wraps(operation)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        end_with_engine()
        try:
            return operation(*args, **kwargs)
        except SiteError as error:
            failure = OperationError(str(error))
        _without_frames(failure)
        raise failure

    return wrapped


_frameless = 0
"""How many errors live that are to be formatted without frames: four calls may run, and fail, at once."""
_counting = threading.RLock()  # A collection, and with it `_restore_frames`, may come at any time.


def _without_frames(failure: OperationError) -> None:
    global _frameless  # noqa: PLW0603 -- `sys.tracebacklimit` is one for the process, and so is this.
    with _counting:
        _frameless += 1
        sys.tracebacklimit = 0
    weakref.finalize(failure, _restore_frames)


def _restore_frames() -> None:
    global _frameless  # noqa: PLW0603
    with _counting:
        _frameless -= 1
        if not _frameless:
            sys.tracebacklimit = 1000  # Python's own default.


@functools.cache
def end_with_engine() -> None:
    """Have this process end once the engine that started it is gone.

    A plugin whose engine was killed would go on with its operation, unseen, while the next `up` begins its own. The
    engine's address is a plugin's argument; a plugin's process ends all that it runs.
    """
    plugin = getattr(sys.modules["__main__"], "__spec__", None)
    host, _, port = sys.argv[-1].rpartition(":")
    # Anything else calls the provider itself: a test, the conformance kit, a script of somebody's.
    if plugin is None or not plugin.name.startswith("pulumi.dynamic") or not port.isdigit():
        return
    threading.Thread(target=_watch, args=(host, int(port)), name="watch the engine", daemon=True).start()


def _watch(host: str, port: int) -> None:
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except ConnectionRefusedError:
            os.kill(os.getpid(), signal.SIGKILL)
        except OSError as error:
            show(f"warning: the engine at {host}:{port} does not answer: {error}")
        time.sleep(1)


def plain(value: Any) -> Any:
    """Return a property as Python has it: whole numbers are ints again, and Pulumi's own keys are gone."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {k: plain(v) for k, v in items if not k.startswith("__")}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in cast("list[Any]", value)]
    return value


def is_known(value: Any) -> bool:
    """Tell whether a property, and all that is in it, is known at preview."""
    if isinstance(value, Mapping):
        return all(is_known(v) for v in cast("Mapping[str, Any]", value).values())
    if isinstance(value, (list, tuple)):
        return all(is_known(v) for v in cast("list[Any]", value))
    return not isinstance(value, Unknown)


class Provider(ResourceProvider):
    """Base of the providers. Its serialised form is a reference and holds no secret, so it is kept in the clear."""

    serialize_as_secret_always = False
