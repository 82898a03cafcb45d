"""The pool of page-aligned buffers that snapshots are copied into, and what warms and trims it in the background.

1. Copying into fresh memory is several times slower than into memory that was used before, because the kernel must find
   and clear each page (docs/performance.md). So buffers are kept and reused, and warmed before they are needed.
2. A buffer belongs to one snapshot at a time, from `take` until the snapshot gives it back.
3. The pool may be used from any thread; `PoolWarmer` and `PoolTrimmer` on the loop's thread only.
4. Buffers that were free from one `trim` to the next are returned to the system, so a burst of saves does not hold its
   memory forever.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from asyncckpt.runtime.memory import aligned_buffer, populate
from asyncckpt.runtime.pacing import StopFlag

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from asyncckpt.runtime.jobs import Jobs

    Bytes = NDArray[np.uint8]

LARGE_NBYTES: Final = 16 << 20
SMALL_NBYTES: Final = 1 << 20
TRIM_SECONDS: Final = 60.0
"""The time between two trims: a buffer is returned to the system when it has been unused for one to two of these."""


class BufferPool:
    """Free buffers of two sizes: large ones, and small ones for the remainder."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._taken_nbytes = 0
        self._free: dict[int, list[Bytes]] = {LARGE_NBYTES: [], SMALL_NBYTES: []}
        self._idle = {LARGE_NBYTES: 0, SMALL_NBYTES: 0}  # how many have been free ever since the last trim

    def take(self, nbytes: int) -> list[Bytes]:
        """Return buffers of at least `nbytes` in total: large ones first, then small ones."""
        return [self._one(size) for size, count in _counts(nbytes).items() for _ in range(count)]

    def warm(self, nbytes: int, limit_nbytes: int, stop: StopFlag) -> None:
        """Add warm buffers until as many are free as `take(nbytes)` needs.

        After each buffer this rests for as long as the buffer took, because others need the memory bandwidth, too.

        Args:
            nbytes: How many bytes will be taken.
            limit_nbytes: The most that all buffers, free and taken, may hold together; beyond it, none are added.
            stop: Stops after the current buffer.
        """
        for size, count in _counts(nbytes).items():
            while len(self._free[size]) < count and not (stop.is_set or self._is_closed):
                if self._taken_nbytes + self.free_nbytes + size > limit_nbytes:
                    break
                began = time.perf_counter()
                buffer = aligned_buffer(size)
                populate(buffer)
                with self._lock:
                    if not (stop.is_set or self._is_closed):  # else a snapshot has begun to take buffers
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
        """Return the memory of all free buffers to the system, and of those given back from now on."""
        with self._lock:
            self._is_closed = True
            for free in self._free.values():
                free.clear()
            self._idle = dict.fromkeys(self._idle, 0)

    def trim(self) -> None:
        """Return the memory of the buffers that have not been used since the last call to the system."""
        with self._lock:
            unused = []
            for size, free in self._free.items():
                count = self._idle[size]
                unused.append(free[:count])  # the oldest: `_one` takes the newest first
                del free[:count]
                self._idle[size] = len(free)
        del unused  # outside the lock, because unmapping memory takes long

    @property
    def free_nbytes(self) -> int:
        """The size of all free buffers, in bytes."""
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
    """Return how many buffers of each size are needed for `nbytes`."""
    large, rest = divmod(nbytes, LARGE_NBYTES)
    return {LARGE_NBYTES: large, SMALL_NBYTES: -(-rest // SMALL_NBYTES)}


class PoolWarmer:
    """Warms a pool in a background thread, before the buffers are needed.

    Attributes:
        pending: The latest warming that was started.
    """

    def __init__(self, pool: BufferPool, jobs: Jobs, limit_nbytes: int) -> None:
        """Warm `pool` in the threads of `jobs`, up to `limit_nbytes` in all."""
        self._pool = pool
        self._jobs = jobs
        self._limit_nbytes = limit_nbytes
        self._stop = StopFlag()
        self.pending: Future[Any] | None = None

    def warm(self, nbytes: int) -> None:
        """Start warming buffers for `nbytes`, instead of any warming started before."""
        self.stop()
        self._stop = StopFlag()
        self.pending = self._jobs.spawn(self._pool.warm, nbytes, self._limit_nbytes, self._stop)

    def stop(self) -> None:
        """Stop warming, because a save needs the memory bandwidth, or nothing needs the memory."""
        self._stop.set()


class PoolTrimmer:
    """Trims a pool every `TRIM_SECONDS`, in a background thread, until it is stopped.

    Attributes:
        pending: The timer of the next trim.
    """

    def __init__(self, pool: BufferPool, jobs: Jobs) -> None:
        self._pool = pool
        self._jobs = jobs
        self._loop = asyncio.get_running_loop()
        self._start()

    def trim(self) -> None:
        """Trim the pool, and set the timer again; the timer calls this."""
        self._jobs.spawn(self._pool.trim)
        self._start()

    def _start(self) -> None:
        method = weakref.WeakMethod(self.trim)  # the loop must not keep a manager alive that was never closed

        def tick() -> None:
            if (trim := method()) is not None:
                trim()

        self.pending = self._loop.call_later(TRIM_SECONDS, tick)

    def stop(self) -> None:
        """Stop trimming."""
        self.pending.cancel()
