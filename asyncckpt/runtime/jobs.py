"""Run blocking jobs in threads, and await each one to its end.

1. A job is a plain function that runs in one thread of a small executor. Awaiting it waits until it has ended: a
   cancellation asks the job to stop, is held back until it has stopped, and is raised then. So once the await is over,
   no thread uses the caller's memory, files or locks.
2. What a failed job held in its variables is freed in the job's thread, because freeing large objects takes time that
   the loop does not have.
3. A loop that is always busy running Python would starve the jobs: each time a job needs the GIL, it would wait for at
   least the interpreter's switch interval. So while a job runs, a callback on the loop releases the GIL periodically:
   more often for a job that is awaited than for one in the background, because each release costs the loop a little.
   A loop that sleeps releases the GIL by itself, and waking it takes time from threads that copy; so the less CPU time
   the loop's thread has used, the less often the callback runs.
"""

from __future__ import annotations

import asyncio
import select
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from asyncckpt.errors import ManagerClosedError
from asyncckpt.runtime.cancellation import DeferredCancellation
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.exiting import ExitSafeThreadPool
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
_IDLE_YIELD_INTERVAL: Final = 0.005  # the interpreter's default switch interval
_BUSY_SHARE: Final = 0.5  # of a core
_YIELD_SECONDS: Final = 1e-6  # enough for a real sleep, in which the system runs the thread that waits for the GIL


class Jobs:
    """The worker threads of one manager or keyed file. Use it on the loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = threads = list[threading.Thread]()  # the threads refer to this list, and not to `self`
        self._executor = ExitSafeThreadPool(
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
        """The executor, for libraries that take one."""
        return self._executor

    def context(self, helpers: int = 1, *, stop: StopFlag | None = None) -> JobContext:
        """Return a job's context: up to `helpers` other threads may help it, and `stop` ends it early."""
        return JobContext(self._executor, helpers=helpers, stop=stop)

    async def run(self, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs) -> ResultT:
        """Run a job to its end. A cancellation does not stop it; it is raised afterwards, and the result is lost."""
        return await self.run_stoppable(None, job, *args, **kwargs)

    async def run_in_context(
        self,
        helpers: int,
        job: Callable[..., ResultT],
        /,
        *args: object,
        discard: Callable[[ResultT], object] | None = None,
    ) -> ResultT:
        """Run `job(*args, context)` to its end; up to `helpers` other threads may help.

        A cancellation asks the job to stop and is raised when it has. If the job returns a result nevertheless, the
        result is passed to `discard`.

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
        """Run `job(*args, **kwargs)` to its end.

        Args:
            on_cancel: What to do when the awaiting task is cancelled. A flag is set, and the cancellation is raised
                when the job has ended. A function is called with the cancellation, which is then considered handled;
                such a job runs in the background and can be given up. None does nothing but raise the cancellation
                when the job has ended.
            job: The function to run in a thread.
            args: Its arguments.
            kwargs: Its keyword arguments.

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
        cancellation = DeferredCancellation()
        try:
            await cancellation.wait(
                waiter, (lambda _: on_cancel.set()) if isinstance(on_cancel, StopFlag) else on_cancel
            )
        finally:
            self._background.discard(waiter)
            if future.done():
                self._running.discard(future)
        try:
            if waiter.cancelled():
                raise ManagerClosedError("a thread is stuck in a system call, so its work was abandoned")
            if cancellation and not callable(on_cancel):
                # `exception()` also marks the exception as retrieved, so that asyncio does not report it.
                if waiter.exception() is None and discard is not None:
                    discard(waiter.result())
                cancellation.reraise()
            return waiter.result()
        finally:
            # A future refers to its exception, whose traceback refers to this frame. If the frame referred back, the
            # cycle would keep the caller's state alive until a garbage collection.
            del waiter, future

    def spawn(self, job: Callable[..., object], /, *args: object) -> Future[Any] | None:
        """Start a job without waiting for it; if the threads are being ended, do nothing and return None."""
        return None if self._is_closed else self._executor.submit(job, *args)

    def when_idle(self, action: Callable[[], None]) -> None:
        """Call `action` when every job has ended: now if none is running, else in the thread of the last one."""
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
        """Stop waiting for the background jobs, whose threads are stuck: awaiting them raises ManagerClosedError."""
        self._is_given_up = True
        for waiter in list(self._background):
            waiter.cancel()

    async def close(self, *, is_stuck: bool) -> None:
        """Wait for the jobs and end the threads, ignoring cancellations; if `is_stuck`, do not wait for the jobs."""
        self._is_closed = True
        self._executor.shutdown(wait=False, cancel_futures=is_stuck)
        while not is_stuck and any(thread.is_alive() for thread in self._threads):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(_POLL_INTERVAL)

    def _start_yielding(self) -> None:
        if self._yielding is None:
            self._is_loop_busy()  # starts the measurement
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
        """Return whether the loop's thread has used a core for most of the time since the last call."""
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
        del job, args, kwargs  # `drop_locals` cannot clear this frame, which is still running
        raise
