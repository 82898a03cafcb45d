"""A timer that gives memory back which nobody needs at the moment."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncckpt.runtime.buffers import BufferPool
    from asyncckpt.runtime.jobs import Jobs

IDLE_SECONDS: Final = 60.0
"""Buffers that nobody has used for this long, and at most for twice as long, go back to the system."""


class IdleTimer:
    """Trims a pool of buffers now and then, in a thread, until it is stopped."""

    def __init__(self, pool: BufferPool, jobs: Jobs) -> None:
        self._pool = pool
        self._jobs = jobs
        self._loop = asyncio.get_running_loop()
        self._start()

    def trim(self) -> None:
        """Give back the buffers that have lain idle since the last time; called by the loop."""
        self._jobs.spawn(self._pool.trim)
        self._start()

    def _start(self) -> None:
        method = weakref.WeakMethod(self.trim)  # the loop must not keep a manager that was never closed

        def tick() -> None:
            if (trim := method()) is not None:
                trim()

        self.pending = self._loop.call_later(IDLE_SECONDS, tick)
        """The next time."""

    def stop(self) -> None:
        """Trim no more."""
        self.pending.cancel()
