"""Warms a pool of buffers in the background, before they are needed.

Fresh memory costs three to four times as much to copy into as memory that has been used before. So the memory that the
next copy of a state will take is made ready as soon as its size is known. Buffers that nobody takes go back to the
system by the `IdleTimer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncckpt.runtime.pacing import StopFlag

if TYPE_CHECKING:
    from concurrent.futures import Future

    from asyncckpt.runtime.buffers import BufferPool
    from asyncckpt.runtime.jobs import Jobs


class PoolWarmer:
    """Used on the loop's thread only.

    Attributes:
        pending: The warming that was begun last.
    """

    def __init__(self, pool: BufferPool, jobs: Jobs, limit_nbytes: int) -> None:
        """Warm `pool` by the threads of `jobs`, so that it holds no more than `limit_nbytes` in all."""
        self._pool = pool
        self._jobs = jobs
        self._limit_nbytes = limit_nbytes
        self._stop = StopFlag()
        self.pending: Future[Any] | None = None

    def warm(self, nbytes: int) -> None:
        """Begin to make the memory ready for a copy of so many bytes, instead of what was begun before."""
        self.stop()
        self._stop = StopFlag()
        self.pending = self._jobs.spawn(self._pool.warm, nbytes, self._limit_nbytes, self._stop)

    def stop(self) -> None:
        """Make no more memory ready: somebody needs the bandwidth, or nobody the memory."""
        self._stop.set()
