"""An event loop in a thread of its own, for programs that call its coroutines without `await`.

1. A call is one callback on the loop and one wake-up of the caller. (`BlockingPortal.call` takes twice as many.)
2. A call that raises has ended on the loop, too. An exception that a signal's handler raises while a thread waits
   (Ctrl-C) cancels the coroutine, as a task is cancelled, once for each such exception. When the coroutine has ended,
   the first of them is raised.
3. No exception leaves a coroutine on the loop, so that a KeyboardInterrupt or SystemExit does not end the thread.
4. The thread is a daemon. What is open when the interpreter exits is closed after the program's own exit handlers,
   which may use it.
5. In a forked child there is no such thread, and calls raise.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import select
import threading
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, overload

import anyio
from anyio.from_thread import BlockingPortal

from asyncckpt.errors import ManagerClosedError, ManagerUsageError
from asyncckpt.runtime.exiting import is_exiting, run_at_exit

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

ResultT = TypeVar("ResultT")

_YIELD_SECONDS: Final = 1e-6  # enough for a real sleep, in which the caller gets the GIL


class Portal:
    """The loop, its thread, and the calls that wait for it.

    Args:
        owner: What the loop is for, for messages.
        close: What closes it; called when the interpreter exits and the portal has not been stopped.

    Raises:
        ManagerUsageError: The interpreter is exiting, and starts no threads any more, as in Python 3.12.
        RuntimeError: No thread can be started.
    """

    def __init__(self, owner: str, close: Callable[[Portal], object]) -> None:
        self._owner = owner
        self.close = close
        self._process = os.getpid()
        self._calls: set[_Call[Any]] = set()
        self._started = queue.SimpleQueue[None]()
        self._stopping = threading.Event()  # set when it is unwanted before it runs
        self._loop: asyncio.AbstractEventLoop | None = None
        self._portal: BlockingPortal | None = None
        self._thread = threading.Thread(target=self._serve, name="asyncckpt blocking", daemon=True)
        try:
            self._thread.start()
            self._started.get()
            _open.add(self)
        except BaseException as error:
            self.stop()
            if isinstance(error, RuntimeError) and is_exiting():
                message = f"{owner} needs a thread, and this Python starts none in exit handlers: open it before"
                raise ManagerUsageError(message) from error
            raise

    @overload
    def call(
        self,
        function: Callable[[], Coroutine[Any, Any, ResultT]],
        *,
        context: Context | None = None,
        timeout: float | None = None,
        undo: Callable[[ResultT], object] | None = None,
        goes_first: bool = False,
    ) -> ResultT: ...
    @overload
    def call(
        self,
        function: Callable[[], ResultT],
        *,
        context: Context | None = None,
        timeout: float | None = None,
        undo: Callable[[ResultT], object] | None = None,
        goes_first: bool = False,
    ) -> ResultT: ...
    def call(
        self,
        function: Callable[[], Any],
        *,
        context: Context | None = None,
        timeout: float | None = None,
        undo: Callable[[Any], object] | None = None,
        goes_first: bool = False,
    ) -> Any:
        """Call a function on the loop, await the coroutine that it may return, and return the result.

        Args:
            function: The function.
            context: Its context; by default, a copy of the caller's.
            timeout: How long to wait, in seconds; None: without limit.
            undo: Called on the loop with the result, and awaited, if an exception interrupts this call when it is too
                late. What it returns becomes a note of the exception, unless it is None.
            goes_first: Whether the loop lets the caller go on before it does what this call has set going.

        Raises:
            TimeoutError: The time is over; the coroutine was cancelled, and has ended.
            ManagerClosedError: The loop has ended.
            ManagerUsageError: This is a forked child, or the loop's own thread.
        """
        self._check()
        call = _Call(function, copy_context() if context is None else context, goes_first=goes_first)
        self._calls.add(call)
        try:
            self._post(call, call.start)
            call.ended.get(timeout=timeout)
            if call.error is None:
                return call.value
        except queue.Empty:
            self._wait(call, call.cancel)
            if isinstance(call.error, asyncio.CancelledError):
                message = f"it has not ended after {timeout} s"
                raise TimeoutError(message) from None
        except BaseException as interruption:
            self._wait(call, call.cancel)
            if undo is not None and call.error is None:
                undoing = self._posted(partial(undo, call.value))
                self._wait(undoing, None)
                if undoing.value is not None:
                    interruption.add_note(f"asyncckpt: {undoing.value}")
            raise
        finally:
            self._calls.discard(call)
        return self._result(call)

    def post(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Call a function on the loop, and await what it returns there, without waiting for it."""
        self._posted(function)

    def stop(self) -> None:
        """End the loop when all calls have ended; from another thread, wait for the end of the thread."""
        _open.discard(self)
        if self.is_of_parent:
            return
        self._stopping.set()
        if self._portal is not None:
            self._posted(self._portal.stop)
        if threading.current_thread() is not self._thread and self._thread.ident is not None:
            self._thread.join()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""
        assert self._loop is not None  # noqa: S101 - it has started
        return self._loop

    @property
    def is_of_parent(self) -> bool:
        """Whether this process is a forked child, in which there is no such thread."""
        return self._process != os.getpid()

    @property
    def is_open(self) -> bool:
        """Whether it may be called, in this process."""
        return not self.is_of_parent and not self._stopping.is_set()

    @property
    def is_over(self) -> bool:
        """Whether the loop has ended, in this process."""
        return not self.is_of_parent and not self._thread.is_alive()

    # --- in the calling thread ----------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.is_of_parent:
            message = f"{self._owner} belongs to the parent process: a forked child may not use it; make one of its own"
            raise ManagerUsageError(message)
        if threading.current_thread() is self._thread:
            message = (
                f"{self._owner} is used in its own thread, which would wait for itself: a method that it calls while it"
                " saves or loads (such as `to_state`) may not use it"
            )
            raise ManagerUsageError(message)

    def _posted(self, function: Callable[[], Coroutine[Any, Any, object] | object]) -> _Call[object]:
        call = _Call(function, Context())
        self._calls.add(call)
        call.on_end = lambda: self._calls.discard(call)
        self._post(call, call.start)
        return call

    def _post(self, call: _Call[Any], callback: Callable[[], object]) -> None:
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:  # it is closed
            call.end(error=self._closed())

    def _closed(self) -> ManagerClosedError:
        return ManagerClosedError(f"{self._owner} is closed: make a new one")

    def _wait(self, call: _Call[Any], cancel: Callable[[], object] | None) -> None:
        """Cancel a call, and wait until it has ended; each exception that comes meanwhile cancels it once more."""
        while not call.is_over:
            try:
                if cancel is not None:
                    self._post(call, cancel)
                while not call.is_over:
                    call.ended.get()
            except BaseException:  # noqa: BLE001, S112 - the first one is raised when it has ended
                continue

    def _result(self, call: _Call[ResultT]) -> ResultT:
        """Return the result of a call that has ended, or raise its error, which does not stay there.

        The traceback of the error holds the call.
        """
        error, call.error = call.error, None
        try:
            if isinstance(error, asyncio.CancelledError):  # the loop is ending
                raise self._closed()
            if error is not None:
                raise error
            return cast("ResultT", call.value)
        finally:
            del error

    # --- in its thread ------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            with suppress(asyncio.CancelledError):  # if something has cancelled all tasks of the loop
                anyio.run(self._main)
        finally:
            for call in list(self._calls):
                call.end(error=self._closed())
            self._started.put(None)

    async def _main(self) -> None:
        async with BlockingPortal() as portal:
            self._loop = asyncio.get_running_loop()
            self._portal = portal
            self._started.put(None)
            if not self._stopping.is_set():
                await portal.sleep_until_stopped()
            while tasks := [call.task for call in self._calls if call.task is not None and not call.task.done()]:
                await asyncio.wait(tasks)


class _Call(Generic[ResultT]):
    """A call on the loop. The caller makes it and waits for `ended`; everything else happens on the loop."""

    def __init__(
        self,
        function: Callable[[], Coroutine[Any, Any, ResultT] | ResultT],
        context: Context,
        *,
        goes_first: bool = False,
    ) -> None:
        self._goes_first = goes_first
        self._function = function
        self._context = context
        self.task: asyncio.Task[None] | None = None
        self.ended = queue.SimpleQueue[None]()
        self.on_end: Callable[[], object] = lambda: None
        self.is_over = False
        self.value: ResultT | None = None
        self.error: BaseException | None = None

    def start(self) -> None:
        if not self.is_over:
            self.task = asyncio.get_running_loop().create_task(self._run(), context=self._context)
            self.task.add_done_callback(self._cancelled)

    async def _run(self) -> None:
        try:
            found: Any = self._function()
            self.end(value=await found if inspect.iscoroutine(found) else found)
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            self.end(error=error)

    def _cancelled(self, _: asyncio.Task[None]) -> None:
        if not self.is_over:  # it was cancelled before it began
            self.end(error=asyncio.CancelledError())

    def cancel(self) -> None:
        if self.task is None:
            self.end(error=asyncio.CancelledError())
        else:
            self.task.cancel()

    def end(self, *, value: ResultT | None = None, error: BaseException | None = None) -> None:
        if not self.is_over:
            self.value, self.error = value, error
            self.is_over = True  # first: the caller may have been interrupted just when it took what follows
            self.ended.put(None)
            if self._goes_first:
                select.select((), (), (), _YIELD_SECONDS)
            self.on_end()


_open: Final[set[Portal]] = set()


def _close_all() -> None:
    for portal in list(_open):
        portal.close(portal)


os.register_at_fork(after_in_child=_open.clear)
run_at_exit(_close_all)
