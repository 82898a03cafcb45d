"""Pacing of Python work in threads, so that the loop's thread gets the GIL and a job can be stopped.

1. Python work in a thread is divided into chunks of about a millisecond (`Pacer`), and the loop's thread gets the GIL
   between them. Objects that are handled one by one come in batches of `BATCH_OBJECTS`; a single call into C, which
   cannot be interrupted, handles at most `CHUNK_ELEMENTS` elements.
2. A job checks its `StopFlag` between chunks, so it stops within one chunk.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ItemT = TypeVar("ItemT")

CHUNK_SECONDS: Final = 0.001
BATCH_OBJECTS: Final = 256  # handled by Python code between two checks of the clock
CHUNK_ELEMENTS: Final = 4096  # handled by one call into C
_HANDOVER_SECONDS: Final = 5e-5
"""About as long as another thread takes to wake. After a shorter sleep, this thread often gets the GIL back first."""


class Stopped(Exception):  # noqa: N818 - internal control flow, never an error that a user sees
    """The job stopped because it was asked to."""


class StopFlag:
    """Asks a running job to stop. Any thread may set it; the job checks it between chunks."""

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
    """Releases the GIL between chunks of Python work, and raises `Stopped` if the work should stop."""

    __slots__ = ("_next", "_stop", "yields")

    def __init__(self, stop: StopFlag | None = None, *, yields: bool = True) -> None:
        """Make a pacer; `yields=False` is for work on the loop's own thread, which is small by construction."""
        self._stop = stop
        self.yields = yields
        self._next = time.perf_counter() + CHUNK_SECONDS

    def pause(self) -> None:
        """Check the stop flag, and sleep briefly if the current chunk has lasted long enough."""
        if self._stop is not None:
            self._stop.check()
        if self.yields and time.perf_counter() >= self._next:
            time.sleep(_HANDOVER_SECONDS)
            self._next = time.perf_counter() + CHUNK_SECONDS

    def batches(self, items: Iterable[ItemT], size: int = BATCH_OBJECTS) -> Iterator[list[ItemT]]:
        """Yield the items in lists of at most `size`, and pause after each list."""
        source = iter(items)
        while batch := list(islice(source, size)):
            yield batch
            self.pause()


def discard(items: dict[Any, Any], pacer: Pacer) -> None:
    """Empty a large dict in batches; freeing all of its objects in one call would hold the GIL for too long."""
    for batch in pacer.batches(list(items)):
        for key in batch:
            del items[key]
