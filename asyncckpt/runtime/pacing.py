"""Pacing of work in threads, so that the loop's thread gets the GIL and a job can be stopped.

1. Python work in a thread goes in chunks of at most about a millisecond (`Pacer`), and the loop's thread gets the GIL
   between them. Objects that are handled one by one are looked at `BATCH_OBJECTS` at a time, and what one call into C
   does, which nothing interrupts, is at most `CHUNK_ELEMENTS` elements.
2. A job looks at its `StopFlag` between chunks and ends within one of them.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ItemT = TypeVar("ItemT")

CHUNK_SECONDS: Final = 0.001
BATCH_OBJECTS: Final = 256  # handled by Python code between two looks at the clock
CHUNK_ELEMENTS: Final = 4096  # handled by one call into C
_HANDOVER_SECONDS: Final = 5e-5
"""About the time in which another thread wakes up. After a shorter sleep this thread often takes the GIL back first."""


class Stopped(Exception):  # noqa: N818 - a signal between our own functions, never an error that a user sees
    """The job was asked to stop, and did."""


class StopFlag:
    """Asks a running job to stop. Set from any thread; read by the job between chunks."""

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
    """Gives the GIL away between chunks of Python work, and ends the work when it is asked to stop."""

    __slots__ = ("_next", "_stop", "yields")

    def __init__(self, stop: StopFlag | None = None, *, yields: bool = True) -> None:
        """`yields=False` is for work on the loop's own thread, which is small by construction."""
        self._stop = stop
        self.yields = yields
        self._next = time.perf_counter() + CHUNK_SECONDS

    def pause(self) -> None:
        """Call between chunks of work."""
        if self._stop is not None:
            self._stop.check()
        if self.yields and time.perf_counter() >= self._next:
            time.sleep(_HANDOVER_SECONDS)
            self._next = time.perf_counter() + CHUNK_SECONDS

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
