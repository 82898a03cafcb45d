"""How long a manager that is ending may still write.

1. On a normal exit what was captured is written, however long it takes.
2. On a cancellation the writer has `grace` seconds left; a task's second cancellation leaves none.
3. When time has run out, every job of the writer's stops within one block.
4. A program that must leave by some time (`leaving.py`) leaves no manager of its loop more than until then.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncckpt.runtime.jobs import Jobs
    from asyncckpt.runtime.pacing import StopFlag

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")

_limits: WeakKeyDictionary[asyncio.AbstractEventLoop, float] = WeakKeyDictionary()


def set_limit(loop: asyncio.AbstractEventLoop, at: float) -> None:
    """Bound every grace on a loop that begins from now on: none outlasts `at`, a time of the loop's clock."""
    _limits[loop] = at


class ShutdownDeadline:
    """The time that is left, and the jobs that it ends. Used on the loop's thread only."""

    def __init__(self, jobs: Jobs, seconds: float) -> None:
        self._jobs = jobs
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._stops: set[StopFlag] = set()
        self._over_at: float | None = None  # inf: counting
        self._timer: asyncio.TimerHandle | None = None
        self._cancellations: WeakKeyDictionary[asyncio.Task[Any], str] = WeakKeyDictionary()
        self.on_ending: Callable[[], None] = lambda: None
        """Called when the end has begun, and when it is over."""

    @property
    def is_over(self) -> bool:
        """Whether time has run out."""
        return self._over_at is not None and self._over_at < math.inf

    def is_over_since(self, seconds: float) -> bool:
        """Whether time ran out more than so many seconds ago, or the program should have left by now."""
        over_at = math.inf if self._over_at is None else self._over_at
        return over_at < math.inf and self._loop.time() > min(over_at + seconds, self._must_leave_at)

    @property
    def _must_leave_at(self) -> float:
        return _limits.get(self._loop, math.inf)

    async def run(
        self, stop: StopFlag, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> ResultT:
        """Run a job of the writer's to its end; `stop`, which is among its arguments, is set when time runs out."""
        if self.is_over:
            stop.set()
        self._stops.add(stop)
        try:
            return await self._jobs.run_stoppable(self.start_countdown, job, *args, **kwargs)
        finally:
            self._stops.discard(stop)

    async def wait_for(self, wait: Callable[[], Awaitable[object]]) -> None:
        """Wait once, in a task that must not end by its cancellation, which is dealt with."""
        try:
            await wait()
        except asyncio.CancelledError as error:
            self.start_countdown(error)

    def start_countdown(self, error: BaseException) -> None:
        """Deal with what has cancelled the current task: the first leaves `grace` seconds, a task's second none.

        Counted by task, because one ending loop cancels every task at once: the writer, and whoever closes it.
        """
        self.on_ending()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a cancellation is met in a task
        first = self._cancellations.get(task)
        self._cancellations.setdefault(task, str(error))
        if self._over_at is None:
            self._over_at = math.inf
            over_at = min(self._loop.time() + self._seconds, self._must_leave_at)
            if over_at < math.inf:
                self._timer = self._loop.call_at(over_at, self.end)
        elif first is not None and not ("cancel scope" in first and first == str(error)):
            self.end()  # anyio's scopes alone cancel on and on, and mean it once

    def end(self) -> None:
        """Write no more: what is being written stops within one block, what waits fails."""
        if self._over_at in (None, math.inf):
            self._over_at = self._loop.time()
            for stop in self._stops:
                stop.set()
            self.on_ending()

    def forget(self) -> None:
        """Let go of the timer: everything has ended."""
        if self._timer is not None:
            self._timer.cancel()
