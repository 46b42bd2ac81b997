"""Calls that may hang, run side by side with a bound on each. Knows nothing of what they do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from queue import Empty, SimpleQueue
from typing import TypeVar

R = TypeVar("R")

_WORKERS = 16


def run_all(calls: Sequence[Callable[[], R]], *, seconds: float) -> list[Future[R]]:
    """Run calls side by side, and return their futures in the same order.

    A call that takes longer than `seconds` is left behind, and its future is not done. Its thread is a daemon's, so it
    does not keep the process from ending; a pool of `concurrent.futures` would.
    """
    futures: list[Future[R]] = [Future() for _ in calls]
    work: SimpleQueue[tuple[Future[R], Callable[[], R]]] = SimpleQueue()
    for pair in zip(futures, calls, strict=True):
        work.put(pair)
    for _ in range(min(_WORKERS, len(calls))):
        threading.Thread(target=_work, args=(work,), daemon=True).start()
    rounds = -(-len(calls) // _WORKERS)
    wait(futures, timeout=seconds * rounds)
    return futures


def _work(work: SimpleQueue[tuple[Future[R], Callable[[], R]]]) -> None:
    while True:
        try:
            future, call = work.get_nowait()
        except Empty:
            return
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 -- whoever asks the future gets it.
            future.set_exception(error)
