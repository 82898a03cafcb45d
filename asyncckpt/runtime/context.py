"""The context of a job: a plain function that runs in one thread, with what it may use there.

A job may ask for help; whichever thread is free helps, and the job never depends on help arriving, so jobs cannot wait
for each other.
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
    """What a job may use: threads that help it, a flag that ends it early, and the pacer of its Python work.

    Attributes:
        stop: Ends the job early.
        pacer: The pacer of the job. There is one, because a job of many short parts must pause between them, too.
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
            executor: Where helping threads come from. Without one the calling thread works alone.
            helpers: At most so many threads help.
            stop: Ends the job early; by default nothing does.
            yields: Whether the pacer gives the GIL away. JobContext on the loop's own thread, which is small, does not.
        """
        self._executor = executor
        self._helpers = helpers if executor is not None else 0
        self.stop = StopFlag() if stop is None else stop
        self.pacer = Pacer(self.stop, yields=yields)

    def run(self, work: Callable[[ItemT], None], items: Iterable[ItemT], *, threads: int | None = None) -> None:
        """Call `work(item)` for each item and return when all calls have ended.

        The calling thread and those that help claim the items one at a time and in order. A helper that has not begun
        when the items are used up is withdrawn, so a full executor slows a job down and never blocks it.

        Args:
            work: Called from several threads.
            items: Claimed by one thread at a time.
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

    def uninterruptible(self) -> JobContext:
        """Return the context of a part of the job that must be done to its end."""
        return JobContext(self._executor, helpers=self._helpers, yields=self.pacer.yields)


def _no_work(_: object) -> None:
    """Do nothing."""


_NOTHING: Final = object()
_MANY: Final = 1 << 30
