"""SIGTERM, or another signal, as a last save and an exit.

1. The signal cancels the task of the block at its next await; nothing else is interrupted. So the state is as the
   program left it at an await, and the program's own `finally` blocks have run before it is saved.
2. When the deadline has passed, counted from the signal, nothing is waited for any more: not the last save, not what
   the managers of the loop still have to write (`runtime/deadline.py`). What was committed stays.
3. The exit status is 128 + the signal's number, as shells and schedulers expect. A last save that fails is raised
   instead.
4. No signal is lost between the end of the block and the return of the earlier handler (`signals.py`).
"""

from __future__ import annotations

import asyncio
import inspect
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from asyncckpt.config import check_signals, signal_name
from asyncckpt.errors import ManagerUsageError, warn
from asyncckpt.runtime.deadline import set_limit
from asyncckpt.saving.signals import SignalHandlers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from asyncckpt.config import Signal

_active: list[_Exit] = []  # at most one


@asynccontextmanager
async def leave_on_sigterm(
    save: Callable[[], Awaitable[Any]],
    *,
    deadline: float = 25.0,
    signals: Signal | Iterable[Signal] = (signal.SIGTERM,),
) -> AsyncIterator[None]:
    """On SIGTERM, cancel the block, save, wait until that is durable, and exit with status 143.

    Use it inside the manager's block, in the program's main thread::

        async with CheckpointManager("runs/a") as manager:
            async with leave_on_sigterm(lambda: manager.save(run.step, run.state, overwrite=True)):
                await train(run)

    A second signal ends the waiting at once, and so does the deadline. `asyncio.run` then ends with `SystemExit`.

    After the block the signals do what they did before, except where C code or the loop's `add_signal_handler` had set
    the handler. A handler of the loop is removed with a warning: it cannot be put back, and one that cancels the task
    would cancel the last save. A handler that is set for one of the signals within the block replaces this one, and
    stays. A child that is forked within the block handles the signals as if there were no block.

    Args:
        save: Called when the block has ended because of the signal. Its result is awaited, and so is the `SaveHandle`
            or other awaitable that it returns.
        deadline: Seconds from the signal to the end, including the closing of all managers on this loop, whatever their
            ``grace``. A thread that hangs in a system call is abandoned within half a second more for each manager.
            `asyncio.run` then ends; Python itself waits for the thread before the process ends.
        signals: The signals to handle, such as ``(signal.SIGTERM, signal.SIGUSR1)``: one, or several; each a signal,
            its number or its name.

    Raises:
        SystemExit: A signal came; the last save is durable, or a `CheckpointWarning` says that time ran out. The exit
            status is 128 + the signal's number.
        ConfigError: `signals` has something that is no signal.
        ManagerUsageError: This is not the main thread, which alone receives signals; one of the signals cannot be
            caught; or another such block is active:
            the program exits once, so one block has to save everything.
        Exception: What the block raised, or else what the last save raised.

    Warns:
        CheckpointWarning: The loop had a handler for one of the signals, which was removed.
    """
    if _active:
        message = "a block of leave_on_sigterm is active: the program exits once, so save everything in one, around all"
        raise ManagerUsageError(message)
    leaving = _Exit(deadline, check_signals(signals))
    _active.append(leaving)
    try:
        leaving.handlers.set()
        try:
            yield
        except asyncio.CancelledError:
            if not leaving.has_cancelled or leaving.task.uncancel():
                raise  # another cancellation
        finally:
            leaving.is_in_block = False
        if leaving.signal is None:
            leaving.handlers.restore()  # until this is done, a signal may come
        if leaving.signal is not None:
            await leaving.save(save)
            raise SystemExit(128 + leaving.signal)
    finally:
        leaving.handlers.restore()
        _active.remove(leaving)


class _Exit:
    """Handles the signals of one block, and ends the program."""

    def __init__(self, deadline: float, signals: Iterable[int]) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self.task = task
        self.signal: int | None = None
        self.is_in_block = True
        self.has_cancelled = False
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._is_over = False
        self.handlers = SignalHandlers(self._loop, signals, self._handle, user="leave_on_sigterm")

    def _handle(self, number: int) -> None:
        if self.signal is None:
            self.signal = number
            self._loop.call_soon_threadsafe(self._begin)
        else:
            self._loop.call_soon_threadsafe(self._end)

    def _begin(self) -> None:
        over_at = self._loop.time() + self._deadline
        set_limit(self._loop, over_at)
        self._loop.call_at(over_at, self._end)  # also while the managers around the block close
        if self.is_in_block:
            self.has_cancelled = True
            self.task.cancel(f"{self._signal_name()}: save and leave")

    def _end(self) -> None:
        self._is_over = True
        set_limit(self._loop, self._loop.time())
        self.task.cancel(f"{self._signal_name()}: no time is left")

    def _signal_name(self) -> str:
        return signal_name(self.signal or signal.SIGTERM)

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
            times = f"{self._deadline} s after the signal, or a second one came"
            warn(f"time ran out {times}: the last save may be missing")
