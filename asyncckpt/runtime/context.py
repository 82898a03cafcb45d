"""The context of a job: its stop flag, its pacer, and other threads that may help it.

A job runs in one thread. Other threads help it if they are free; it never depends on their help, so jobs cannot
deadlock waiting for each other.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from operator import length_hint
from typing import TYPE_CHECKING, Final, TypeVar

from asyncckpt.runtime.pacing import Pacer, StopFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ItemT = TypeVar("ItemT")


class JobContext:
    """What a job may use while it runs.

    Attributes:
        stop: Asks the job to stop early.
        pacer: Pauses the job's Python work. All parts of a job share one pacer, so that many short parts are paused
            between, too.
    """

    __slots__ = ("_executor", "_helpers", "pacer", "stop")

    def __init__(
        self,
        executor: ThreadPoolExecutor | None = None,
        *,
        helpers: int = 1,
        stop: StopFlag | None = None,
        yields: bool = True,
    ) -> None:
        """Make the context of one job.

        Args:
            executor: Provides the helping threads. If None, the calling thread works alone.
            helpers: The greatest number of helping threads.
            stop: Asks the job to stop early. If None, the job has a flag of its own.
            yields: Whether the pacer releases the GIL. Work on the loop's own thread, which is small, does not.
        """
        self._executor = executor
        self._helpers = helpers if executor is not None else 0
        self.stop = StopFlag() if stop is None else stop
        self.pacer = Pacer(self.stop, yields=yields)

    def run(self, work: Callable[[ItemT], None], items: Iterable[ItemT], *, threads: int | None = None) -> None:
        """Call `work(item)` for each item, in several threads, and return when all calls have ended.

        The calling thread and its helpers claim the items one at a time, in order. A helper that has not started when
        no items are left is cancelled, so a full executor slows a job down but never blocks it.

        Args:
            work: Called from several threads.
            items: Iterated by one thread at a time.
            threads: The greatest number of threads that work at the same time. If None, all helpers do.

        Raises:
            Stopped: `stop` was set; items not yet claimed were skipped.
            BaseException: The first exception of a call; no item is claimed after it.
        """
        # A helper without an item to work on would only compete for the GIL.
        helpers = min(self._helpers, length_hint(items, _MANY) - 1, (threads or _MANY) - 1)
        source = iter(items)
        claim = threading.Lock()
        failures: list[BaseException] = []

        def work_on_items() -> None:
            try:
                while not failures:
                    self.stop.check()
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
                helping = [self._executor.submit(work_on_items) for _ in range(helpers)]
            except RuntimeError:  # the executor is shutting down, so this thread works alone
                helping = []
        work_on_items()
        if helping:
            wait([future for future in helping if not future.cancel()])
        try:
            if failures:
                raise failures[0]
        finally:
            # A failure refers to this frame, and a cycle would keep the job's memory until a garbage collection. The
            # executor may keep `work_on_items`, and so these variables, for longer.
            failures.clear()
            work, items, source = _no_work, (), iter(())

    def uninterruptible(self) -> JobContext:
        """Return a context for a part of the job that must not be stopped."""
        return JobContext(self._executor, helpers=self._helpers, yields=self.pacer.yields)


def _no_work(_: object) -> None:
    """Do nothing."""


_NOTHING: Final = object()
_MANY: Final = 1 << 30
