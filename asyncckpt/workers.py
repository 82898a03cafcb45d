"""Work in threads, shared fairly: the pieces every blocking job is made of.

1. A job is a plain function that runs in one thread. It may ask its `Crew` for company; whoever is free helps, and the
   job never depends on help arriving, so jobs cannot wait for each other.
2. Python work in a thread goes in pieces of at most about a millisecond (`Pacer`), and the loop's thread gets the GIL
   between them. Objects that are handled one by one are looked at `BATCH_OBJECTS` at a time, and what one call into C
   does, which nothing interrupts, is at most `PIECE_ELEMENTS` elements.
3. A job looks at its `StopFlag` between pieces and ends within one of them.
4. An error leads to the frames that it came through, and they to whatever the job had in its hands. So no frame leads
   back to an error that came through it, which would keep all that until a garbage collection; and an error that leaves
   its thread, or is kept for later, leaves the memory behind (`drop_locals`).
"""

from __future__ import annotations

import inspect
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

ItemT = TypeVar("ItemT")

PIECE_SECONDS: Final = 0.001
BATCH_OBJECTS: Final = 256  # handled by Python code between two looks at the clock
PIECE_ELEMENTS: Final = 4096  # handled by one call into C
_HANDOVER_SECONDS: Final = 5e-5
"""As long as another thread takes to wake: after a shorter sleep this one would often have the GIL back before it."""
_MAY_GO_ON: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Stopped(Exception):  # noqa: N818 - a signal between our own functions, never an error that a user sees
    """The job was asked to stop, and did."""


class StopFlag:
    """Asks a running job to stop. Set from any thread; read by the job between pieces."""

    __slots__ = ("_is_set",)

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Ask the job to stop."""
        self._is_set = True

    @property
    def is_set(self) -> bool:
        """Whether the job was asked to stop."""
        return self._is_set

    def check(self) -> None:
        """Raise `Stopped` if the job was asked to stop."""
        if self._is_set:
            raise Stopped


class Pacer:
    """Gives the GIL away between pieces of Python work, and ends the work when it is asked to stop."""

    __slots__ = ("_next", "_stop", "_yields")

    def __init__(self, stop: StopFlag | None = None, *, yields: bool = True) -> None:
        """`yields=False` is for work on the loop's own thread, which is small by construction."""
        self._stop = stop
        self._yields = yields
        self._next = time.perf_counter() + PIECE_SECONDS

    def pause(self) -> None:
        """Call between pieces of work."""
        if self._stop is not None:
            self._stop.check()
        if self._yields and time.perf_counter() >= self._next:
            time.sleep(_HANDOVER_SECONDS)
            self._next = time.perf_counter() + PIECE_SECONDS

    def batches(self, items: Iterable[ItemT], size: int = BATCH_OBJECTS) -> Iterator[list[ItemT]]:
        """Cut items into lists of at most `size`, and pause after each."""
        source = iter(items)
        while batch := list(islice(source, size)):
            yield batch
            self.pause()


def discard(items: dict[Any, Any], pacer: Pacer) -> None:
    """Empty a dict of many objects that nobody else has: to drop them all in one call would hold the GIL for long."""
    for batch in pacer.batches(list(items)):
        for key in batch:
            del items[key]


def drop_locals(error: BaseException) -> None:
    """Let go of what the functions had in their hands that an error, or one that led to it, came through.

    So had their callers, which a frame refers to. The memory is freed here, and not when the error is. The traceback
    still names every function and line; only the coroutines that it begins with, which awaited the rest, are taken off.
    What a closure has closed over stays: work with much memory in its hands is a method, or a `functools.partial`.
    """
    while (outer := error.__traceback__) is not None and outer.tb_frame.f_code.co_flags & inspect.CO_COROUTINE:
        error.__traceback__ = outer.tb_next
    errors: list[BaseException | None] = [error]
    seen: set[object] = set()
    while errors:
        each = errors.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        errors += (each.__cause__, each.__context__)
        if isinstance(each, BaseExceptionGroup):
            errors += each.exceptions
        for place, _ in traceback.walk_tb(each.__traceback__):
            frame: FrameType | None = place
            while frame is not None and frame not in seen:
                seen.add(frame)
                # To clear a coroutine or a generator that only waits would close it, and an error may be an old one.
                if not frame.f_code.co_flags & _MAY_GO_ON:
                    with suppress(RuntimeError):  # it is still running
                        frame.clear()
                frame = frame.f_back


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
