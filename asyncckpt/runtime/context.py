"""The threads that help a job.

A job is a plain function that runs in one thread. It may ask for help; whichever thread is free helps, and the job
never depends on help arriving, so jobs cannot wait for each other.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from operator import length_hint
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from asyncckpt.runtime.pacing import StopFlag

ItemT = TypeVar("ItemT")


class Crew:
    """Threads that help a job with its items.

    `run` works through the items in the calling thread and in up to `helpers` more threads of the executor. Items are
    claimed one at a time and in order. A helper that has not begun when the items are used up is withdrawn, so a full
    executor slows a job down and never blocks it.
    """

    def __init__(self, executor: ThreadPoolExecutor | None = None, *, helpers: int = 1) -> None:
        """Without an executor the calling thread works alone."""
        self._executor = executor
        self._helpers = helpers if executor is not None else 0

    def run(
        self,
        work: Callable[[ItemT], None],
        items: Iterable[ItemT],
        *,
        stop: StopFlag | None = None,
        threads: int | None = None,
    ) -> None:
        """Call `work(item)` for each item and return when all calls have ended.

        Args:
            work: Called from several threads.
            items: Claimed by one thread at a time.
            stop: Looked at before each item is claimed.
            threads: At most so many work at the same time; None for as many as there are.

        Raises:
            Stopped: `stop` was set; items not yet claimed were left out.
            BaseException: The first exception of a call; no item is claimed after it.
        """
        # Nobody is woken for nothing: with a single item the helper would only take the GIL away.
        helpers = min(self._helpers, length_hint(items, _MANY) - 1, (threads or _MANY) - 1)
        source = iter(items)
        claim = threading.Lock()
        failures: list[BaseException] = []

        def labour() -> None:
            try:
                while not failures:
                    if stop is not None:
                        stop.check()
                    with claim:
                        item = next(source, _NOTHING)
                    if item is _NOTHING:
                        return
                    work(item)  # type: ignore[arg-type]
            except BaseException as error:  # noqa: BLE001 - carried to the caller's thread and raised there
                failures.append(error)

        helping = []
        if self._executor is not None:
            try:
                helping = [self._executor.submit(labour) for _ in range(helpers)]
            except RuntimeError:  # the executor is shutting down: this thread works alone
                helping = []
        labour()
        wait([future for future in helping if not future.cancel()])
        try:
            if failures:
                raise failures[0]
        finally:
            failures.clear()  # in a cycle with this frame, they would keep the memory of the job until a collection
            work, items, source = _no_work, (), iter(())  # an executor may know `labour` for longer


def _no_work(_: object) -> None:
    """Do nothing."""


_NOTHING: Final = object()
_MANY: Final = 1 << 30
