"""The time that a manager has left to write when it is shutting down.

1. On a normal exit, everything captured is written, however long it takes.
2. After a cancellation the writer has `grace` seconds left. A second cancellation of the same task leaves none.
3. When the time is over, each of the writer's jobs stops within one block.
4. `set_limit` bounds this time for all managers of a loop, for a program that must exit by some moment.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from asyncckpt.runtime.pacing import StopFlag

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncckpt.runtime.jobs import Jobs

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")

_POLL_SECONDS: Final = 0.5  # between two looks at whether a task has been left enough time to end
_PATIENCE_SECONDS: Final = 2.0  # for a task that was cancelled

_limits: WeakKeyDictionary[asyncio.AbstractEventLoop, float] = WeakKeyDictionary()


def set_limit(loop: asyncio.AbstractEventLoop, at: float) -> None:
    """Let no countdown that starts on `loop` from now on last beyond `at`, a time of the loop's clock."""
    _limits[loop] = at


def is_same_scope(first: str, again: str) -> bool:
    """Return whether two cancellations of a task, given their messages, come from the same anyio cancel scope.

    On asyncio, a cancelled scope cancels its tasks again and again until they have left it, which counts as one
    cancellation. Only the message tells such cancellations from others. anyio itself recognizes its own by it, in
    `is_anyio_cancellation`: https://github.com/agronholm/anyio/blob/4.12.0/src/anyio/_backends/_asyncio.py.
    """
    return first == again and "cancel scope" in first  # "Cancelled by" or, since anyio 4.11, "via cancel scope ID"


class _Cancelling(StopFlag):
    """Cancels a task instead of stopping a job; it is set on the loop's thread."""

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[Any]) -> None:
        super().__init__()
        self._task = task

    def set(self) -> None:
        """Cancel the task."""
        super().set()
        self._task.cancel()


class ShutdownDeadline:
    """The time left to a manager's writer, and the jobs to stop when it is over. Use it on the loop's thread only."""

    def __init__(self, jobs: Jobs, seconds: float) -> None:
        self._jobs = jobs
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._stops: set[StopFlag] = set()
        self._over_at: float | None = None  # None: no countdown; inf: counting down; finite: when the time ran out
        self._timer: asyncio.TimerHandle | None = None
        self._cancellations: WeakKeyDictionary[asyncio.Task[Any], str] = WeakKeyDictionary()  # the first of each task
        self.on_ending: Callable[[], None] = lambda: None
        """Called when a countdown starts, and when it is over."""

    @property
    def is_over(self) -> bool:
        """Whether the time has run out."""
        return self._over_at is not None and self._over_at < math.inf

    def is_over_since(self, seconds: float) -> bool:
        """Return whether the time ran out more than `seconds` ago, or the program should have exited by now."""
        over_at = math.inf if self._over_at is None else self._over_at
        return over_at < math.inf and self._loop.time() > min(over_at + seconds, self._must_leave_at)

    @property
    def _must_leave_at(self) -> float:
        return _limits.get(self._loop, math.inf)

    async def run(
        self, stop: StopFlag, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> ResultT:
        """Run a job of the writer to its end; `stop`, one of its arguments, is set when the time runs out."""
        if self.is_over:
            stop.set()
        self._stops.add(stop)
        try:
            return await self._jobs.run_stoppable(self.start_countdown, job, *args, **kwargs)
        finally:
            self._stops.discard(stop)

    async def see_through(self, task: asyncio.Task[Any]) -> None:
        """Wait for a task of the program's own, which a cancellation of this one does not affect.

        When the time runs out the task is cancelled, and if it does not end soon, it is left alone.
        """
        stop = _Cancelling(task)
        self._stops.add(stop)
        if self.is_over:
            stop.set()
        try:
            while not task.done() and not self.is_over_since(_PATIENCE_SECONDS):
                await self.wait_for(lambda: asyncio.wait((task,), timeout=_POLL_SECONDS))
        finally:
            self._stops.discard(stop)

    async def wait_for(self, wait: Callable[[], Awaitable[object]]) -> None:
        """Await `wait()` in a task that must go on when it is cancelled: a cancellation only starts the countdown."""
        try:
            await wait()
        except asyncio.CancelledError as error:
            self.start_countdown(error)

    def start_countdown(self, error: BaseException) -> None:
        """Handle a cancellation of the current task: the first starts the countdown, a task's second ends it.

        Cancellations are counted by task, because a loop that is shutting down cancels all tasks at once: the writer's,
        and that of the program which closes the manager.
        """
        self.on_ending()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - only tasks are cancelled
        first = self._cancellations.get(task)
        self._cancellations.setdefault(task, str(error))
        if self._over_at is None:
            self._over_at = math.inf
            over_at = min(self._loop.time() + self._seconds, self._must_leave_at)
            if over_at < math.inf:
                self._timer = self._loop.call_at(over_at, self.end)
        elif first is not None and not is_same_scope(first, str(error)):
            self.end()

    def end(self) -> None:
        """Stop writing: what is being written stops within one block, and what is queued fails."""
        if self._over_at in (None, math.inf):
            self._over_at = self._loop.time()
            for stop in self._stops:
                stop.set()
            self.on_ending()

    def forget(self) -> None:
        """Cancel the timer, because everything has ended."""
        if self._timer is not None:
            self._timer.cancel()
