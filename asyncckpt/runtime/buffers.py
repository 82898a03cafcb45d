"""The pool of page-aligned buffers that snapshots are copied into.

1. Fresh pages cost three to four times what warm ones do, so buffers are kept and used again.
2. A buffer belongs to one snapshot at a time, from `take` until that snapshot gives it back.
3. The pool may be used from any thread.
4. What has lain free from one `trim` to the next goes back to the system: a burst of saves does not hold its memory for
   ever.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from asyncckpt.runtime.memory import aligned_buffer, populate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from asyncckpt.runtime.pacing import StopFlag

    Bytes = NDArray[np.uint8]

LARGE_NBYTES: Final = 16 << 20
SMALL_NBYTES: Final = 1 << 20


class BufferPool:
    """Buffers of two sizes: large ones, and small ones for what is left over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._taken_nbytes = 0
        self._free: dict[int, list[Bytes]] = {LARGE_NBYTES: [], SMALL_NBYTES: []}
        self._idle = {LARGE_NBYTES: 0, SMALL_NBYTES: 0}  # how many were free all the time since the last trim

    def take(self, nbytes: int) -> list[Bytes]:
        """Return buffers that hold `nbytes` together: large ones first, then small ones."""
        return [self._one(size) for size, count in _counts(nbytes).items() for _ in range(count)]

    def warm(self, nbytes: int, limit_nbytes: int, stop: StopFlag) -> None:
        """Make buffers of warm memory until as many are free as `take(nbytes)` returns.

        It rests after each buffer for as long as that took: others use the memory's bandwidth, too.

        Args:
            nbytes: What will be taken.
            limit_nbytes: The rest is left cold where all buffers, free and taken, would be more than this.
            stop: Ends it after the buffer that is being made.
        """
        for size, count in _counts(nbytes).items():
            while len(self._free[size]) < count and not (stop.is_set or self._is_closed):
                if self._taken_nbytes + self.free_nbytes + size > limit_nbytes:
                    break
                began = time.perf_counter()
                buffer = aligned_buffer(size)
                populate(buffer)
                with self._lock:
                    if not (stop.is_set or self._is_closed):  # else somebody has begun to take, and counts on the rest
                        self._free[size].append(buffer)
                time.sleep(time.perf_counter() - began)

    def give(self, buffers: list[Bytes]) -> None:
        """Take buffers back."""
        with self._lock:
            for buffer in buffers:
                self._taken_nbytes -= len(buffer)
                if not self._is_closed:
                    self._free[len(buffer)].append(buffer)

    def close(self) -> None:
        """Return the memory of all free buffers to the system, and from now on of those that are given back."""
        with self._lock:
            self._is_closed = True
            for free in self._free.values():
                free.clear()
            self._idle = dict.fromkeys(self._idle, 0)

    def trim(self) -> None:
        """Return the memory to the system that nobody has used since the last call."""
        with self._lock:
            unused = []
            for size, free in self._free.items():
                count = self._idle[size]
                unused.append(free[:count])  # the oldest: `_one` takes the others first
                del free[:count]
                self._idle[size] = len(free)
        del unused  # outside the lock: it takes its time

    @property
    def free_nbytes(self) -> int:
        """Memory of the buffers that no snapshot holds, in bytes."""
        with self._lock:
            return sum(size * len(free) for size, free in self._free.items())

    def _one(self, size: int) -> Bytes:
        with self._lock:
            if free := self._free[size]:
                self._taken_nbytes += size
                buffer = free.pop()
                self._idle[size] = min(self._idle[size], len(free))
                return buffer
        buffer = aligned_buffer(size)
        with self._lock:
            self._taken_nbytes += size
        return buffer


def _counts(nbytes: int) -> dict[int, int]:
    """Return how many buffers of each size hold so many bytes."""
    large, rest = divmod(nbytes, LARGE_NBYTES)
    return {LARGE_NBYTES: large, SMALL_NBYTES: -(-rest // SMALL_NBYTES)}
