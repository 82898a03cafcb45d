"""Threads, awaited.

1. A job is one plain function in one thread of the manager's own small executor. Whoever awaits it waits for its end: a
   cancellation asks the job to stop, is held back until it has, and is raised then. So no thread uses anybody's
   memory, files or lock after the await is over. What a job that failed had in its hands is freed in its thread: on
   the loop's, that would take time, too.
2. A loop that is always busy with Python would starve the jobs: each time one needs the GIL it waits for the
   interpreter's switch interval, or longer. So while a job runs, a callback on the loop gives the GIL away: about once
   a millisecond while somebody awaits the job, half as often for the writer's, because each time costs the loop about
   50 microseconds. A loop that sleeps gives the GIL away by itself, and to wake it takes time from those who copy: the
   less of the time its thread has had a core, the more seldom the callback comes.
"""

from __future__ import annotations

import asyncio
import select
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from asyncckpt.errors import ManagerClosedError
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.exiting import Threads
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.runtime.tracebacks import drop_locals

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future, ThreadPoolExecutor


ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")

_THREADS: Final = 6
_YIELD_INTERVAL: Final = 0.001
_BACKGROUND_YIELD_INTERVAL: Final = 0.002
_POLL_INTERVAL: Final = 0.001
_IDLE_YIELD_INTERVAL: Final = 0.005  # the interpreter's own switch interval
_BUSY_SHARE: Final = 0.5  # of a core
_YIELD_SECONDS: Final = 1e-6  # long enough to be a real sleep: the system then runs the thread that waits for the GIL


class Jobs:
    """The threads of one manager. Used on the loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = threads = list[threading.Thread]()  # the threads keep the list, and must not keep `self`
        self._executor = Threads(
            _THREADS,
            thread_name_prefix="asyncckpt",
            initializer=lambda: threads.append(threading.current_thread()),
        )
        self._running: set[Future[Any]] = set()
        self._background: set[asyncio.Future[Any]] = set()
        self._is_closed = False
        self._is_given_up = False
        self._yielding: asyncio.TimerHandle | None = None
        self._yielded_at = self._loop_used = self._yield_delay = 0.0

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The threads themselves, for libraries that take an executor."""
        return self._executor

    def context(self, helpers: int = 1, *, stop: StopFlag | None = None) -> JobContext:
        """Return the context of a job that at most so many other threads help, and that `stop` ends early."""
        return JobContext(self._executor, helpers=helpers, stop=stop)

    async def run(self, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs) -> ResultT:
        """Run a job to its end. Cancelling does not shorten it: it is raised afterwards, and the result is lost."""
        return await self.run_stoppable(None, job, *args, **kwargs)

    async def run_in_context(
        self,
        helpers: int,
        job: Callable[..., ResultT],
        /,
        *args: object,
        discard: Callable[[ResultT], object] | None = None,
    ) -> ResultT:
        """Run `job(*args, context)` to its end, which a cancellation hastens; at most `helpers` other threads help.

        A cancellation that comes when the job has its result already loses it: `discard` is called with it.

        Raises:
            ManagerClosedError: The threads have been ended.
        """
        context = self.context(helpers, stop=StopFlag())
        return await self._wait(self._submit(job, (*args, context), {}), context.stop, discard)

    async def run_stoppable(
        self,
        on_cancel: Callable[[asyncio.CancelledError], None] | StopFlag | None,
        job: Callable[Params, ResultT],
        /,
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> ResultT:
        """Run a job to its end, which a cancellation hastens.

        Args:
            on_cancel: A flag, set when the awaiting task is cancelled; the cancellation is raised when the job has
                ended. Or a function, called instead, after which the cancellation counts as dealt with; such a job
                can be given up.
            job: The function, and
            args: its arguments, and
            kwargs: its keyword arguments.

        Raises:
            ManagerClosedError: The threads have been ended, or this job was given up.
        """
        if callable(on_cancel) and self._is_given_up:
            raise ManagerClosedError("the manager is closed")
        return await self._wait(self._submit(job, args, kwargs), on_cancel)

    def _submit(
        self, job: Callable[..., ResultT], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Future[ResultT]:
        if self._is_closed:
            raise ManagerClosedError("the manager is closed")
        future = self._executor.submit(_run, job, args, kwargs)
        self._running.add(future)
        return future

    async def _wait(
        self,
        future: Future[ResultT],
        on_cancel: Callable[[asyncio.CancelledError], None] | StopFlag | None,
        discard: Callable[[ResultT], object] | None = None,
    ) -> ResultT:
        waiter = asyncio.wrap_future(future, loop=self._loop)
        if callable(on_cancel):
            self._background.add(waiter)
        self._start_yielding()
        cancelled: asyncio.CancelledError | None = None
        try:
            while not waiter.done():
                try:
                    await asyncio.wait((waiter,))
                except asyncio.CancelledError as error:
                    if callable(on_cancel):
                        on_cancel(error)
                    else:
                        cancelled = error
                        if on_cancel is not None:
                            on_cancel.set()
        finally:
            self._background.discard(waiter)
            if future.done():
                self._running.discard(future)
        try:
            if waiter.cancelled():
                raise ManagerClosedError("a thread is stuck in a system call, and its work was given up")
            if cancelled is not None:
                # Its exception is looked at, so that it is not reported as never retrieved.
                if waiter.exception() is None and discard is not None:
                    discard(waiter.result())
                raise cancelled.with_traceback(None)  # without the frames of `asyncio.wait`, which hold the result
            return waiter.result()
        finally:
            # Whatever is raised leads to this frame, and through it to the caller's state: it must not lead back.
            del waiter, future, cancelled

    def spawn(self, job: Callable[..., object], /, *args: object) -> Future[Any] | None:
        """Run a job that nobody waits for; return None, and do nothing, once the threads are being ended."""
        return None if self._is_closed else self._executor.submit(job, *args)

    def when_idle(self, action: Callable[[], None]) -> None:
        """Call `action` when every job has ended: at once, or from the thread of the last one."""
        left = {future for future in self._running if not future.done()}
        if not left:
            action()
            return
        counting = threading.Lock()

        def ended(future: Future[Any]) -> None:
            with counting:
                left.discard(future)
                is_last = not left
            if is_last:
                action()

        for future in list(left):
            future.add_done_callback(ended)

    def give_up(self) -> None:
        """Let go of the background jobs, whose threads do not end: whoever awaits them goes on without."""
        self._is_given_up = True
        for waiter in list(self._background):
            waiter.cancel()

    async def close(self, *, is_stuck: bool) -> None:
        """Wait for the jobs and end the threads, whoever cancels; with `is_stuck`, leave them to themselves."""
        self._is_closed = True
        self._executor.shutdown(wait=False, cancel_futures=is_stuck)
        while not is_stuck and any(thread.is_alive() for thread in self._threads):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(_POLL_INTERVAL)

    def _start_yielding(self) -> None:
        if self._yielding is None:
            self._is_loop_busy()  # from now on
            self._yield_delay = self._yield_interval
            self._yielding = self._loop.call_later(self._yield_delay, self._yield)

    def _yield(self) -> None:
        if not self._running or self._is_given_up:
            self._yielding = None
            return
        is_busy = self._is_loop_busy()
        self._yield_delay = self._yield_interval if is_busy else min(2 * self._yield_delay, _IDLE_YIELD_INTERVAL)
        self._yielding = self._loop.call_later(self._yield_delay, self._yield)
        if is_busy:
            select.select((), (), (), _YIELD_SECONDS)

    def _is_loop_busy(self) -> bool:
        """Return whether the loop's thread has had a core for most of the time since the last call."""
        now, used = time.perf_counter(), time.thread_time()
        is_busy = used - self._loop_used > (now - self._yielded_at) * _BUSY_SHARE
        self._yielded_at, self._loop_used = now, used
        return is_busy

    @property
    def _yield_interval(self) -> float:
        is_awaited = len(self._running) > len(self._background)
        return _YIELD_INTERVAL if is_awaited else _BACKGROUND_YIELD_INTERVAL


def _run(job: Callable[..., ResultT], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ResultT:
    try:
        return job(*args, **kwargs)
    except BaseException as error:
        drop_locals(error)
        del job, args, kwargs  # of this frame, which is running still
        raise
