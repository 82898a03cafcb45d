"""SIGTERM becomes "save and leave".

1. The signal cancels the task that is inside, at its next await; nothing else is interrupted. So the state is as the
   program left it at an await, and its own `finally` blocks have run before it is saved.
2. When the deadline has passed, counted from the signal, nothing is waited for any more: not the last save, not what
   the loop's managers still have to write (`grace.py`). What was committed stays.
3. The exit status is 128 + the signal's number, as shells and schedulers expect. A last save that fails is raised
   instead.
4. A signal is noted in the instant in which Python hears of it, and not in a later turn of the loop: so none is lost
   between the end of the block and the return of the handlers that were there before.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from asyncckpt.errors import CheckpointWarning, ManagerUsageError
from asyncckpt.saving import grace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from types import FrameType


@asynccontextmanager
async def leave_on_sigterm(
    save: Callable[[], Awaitable[Any]],
    *,
    deadline: float = 25.0,
    signals: Sequence[signal.Signals] = (signal.SIGTERM,),
) -> AsyncIterator[None]:
    """On SIGTERM, cancel the block, save, wait until that is durable, and exit with status 143.

    Use it inside the manager's block, in the program's main thread::

        async with CheckpointManager("runs/a") as manager:
            async with leave_on_sigterm(lambda: manager.save(run.step, run.state, overwrite=True)):
                await train(run)

    A second signal ends the waiting at once, and so does the deadline. `asyncio.run` then ends with `SystemExit`.

    Args:
        save: Called when the block has ended because of the signal. What it returns is awaited, and the `SaveHandle` or
            other awaitable that comes of that is awaited, too.
        deadline: Seconds from the signal to the end, the closing of all managers on this loop included, whatever their
            `grace`. A thread that hangs in a system call then is left to itself within half a second more for each
            manager. `asyncio.run` then ends; Python itself waits for the thread before the process does.
        signals: Which signals.

    Raises:
        SystemExit: A signal came; the last save is durable, or a `CheckpointWarning` says that time ran out.
        ManagerUsageError: This is not the main thread, which alone receives signals.
        Exception: What the block raised, or else what the last save raised.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ManagerUsageError("leave_on_sigterm works in the main thread only: no other receives signals")
    leaving = _Leaving(deadline)
    leaving.listen(signals)
    try:
        try:
            yield
        except asyncio.CancelledError:
            if not leaving.has_cancelled or leaving.task.uncancel():
                raise  # somebody else's
        finally:
            leaving.is_in_block = False
        if leaving.signal is None:
            leaving.unlisten()
        if leaving.signal is not None:
            await leaving.save(save)
            raise SystemExit(128 + leaving.signal)
    finally:
        leaving.unlisten()


class _Leaving:
    """What a signal begins."""

    def __init__(self, deadline: float) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self.task = task
        self.loop = asyncio.get_running_loop()
        self.signal: int | None = None
        self.is_in_block = True
        self.has_cancelled = False
        self._deadline = deadline
        self._before: dict[signal.Signals, Any] = {}
        self._is_over = False

    def listen(self, signals: Sequence[signal.Signals]) -> None:
        """Take the signals over."""
        for each in signals:
            self._before[each] = signal.getsignal(each)
            # For what it does besides: a signal that another thread gets wakes the loop, too.
            self.loop.add_signal_handler(each, lambda: None)
            signal.signal(each, self._hear)

    def unlisten(self) -> None:
        """Give the signals back."""
        while self._before:
            each, handler = self._before.popitem()
            self.loop.remove_signal_handler(each)
            signal.signal(each, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; the second is the end."""
        del frame  # any
        if self.signal is None:
            self.signal = number
            self.loop.call_soon_threadsafe(self._begin)
        else:
            self.loop.call_soon_threadsafe(self._end)

    def _begin(self) -> None:
        over_at = self.loop.time() + self._deadline
        grace.leave_by(self.loop, over_at)
        # It stays armed while the manager closes behind us.
        self.loop.call_at(over_at, self._end)
        if self.is_in_block:
            self.has_cancelled = True
            self.task.cancel("SIGTERM: save and leave")

    def _end(self) -> None:
        self._is_over = True
        grace.leave_by(self.loop, self.loop.time())
        self.task.cancel("SIGTERM: no time is left")

    async def save(self, save: Callable[[], Awaitable[Any]]) -> None:
        """Save until it is durable, or time is over."""
        try:
            if not self._is_over:
                handle = await save()
                if inspect.isawaitable(handle):
                    await handle
        except asyncio.CancelledError:
            if not self._is_over:
                raise
            self.task.uncancel()
        if self._is_over:
            message = (
                f"time ran out {self._deadline} s after the signal, or a second one came: the last save may be missing"
            )
            warnings.warn(message, CheckpointWarning, stacklevel=2)
