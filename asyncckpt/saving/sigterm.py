"""SIGTERM as a last save and an exit.

1. The signal cancels the task of the block at its next await; nothing else is interrupted. So the state is as the
   program left it at an await, and the program's own `finally` blocks have run before it is saved.
2. When the deadline has passed, counted from the signal, nothing is waited for any more: not the last save, not what
   the managers of the loop still have to write (`runtime/deadline.py`). What was committed stays.
3. The exit status is 128 + the signal's number, as shells and schedulers expect. A last save that fails is raised
   instead.
4. Python's handler notes the signal at once, and not in a later turn of the loop; handlers are set and restored while
   the signals are blocked. So no signal is lost between the end of the block and the return of the earlier handler.
   They are blocked in this thread only: if another thread receives one while handlers are set, the loop's notes it.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from asyncckpt.errors import ManagerUsageError, warn
from asyncckpt.runtime.deadline import set_limit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
    from types import FrameType

_active: list[_Exit] = []  # at most one
_forking = threading.local()


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
        signals: The signals to handle.

    Raises:
        SystemExit: A signal came; the last save is durable, or a `CheckpointWarning` says that time ran out.
        ManagerUsageError: This is not the main thread, which alone receives signals; or another such block is active:
            the program exits once, so one block has to save everything.
        Exception: What the block raised, or else what the last save raised.

    Warns:
        CheckpointWarning: The loop had a handler for one of the signals, which was removed.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ManagerUsageError("leave_on_sigterm works in the main thread only: no other receives signals")
    if _active:
        message = "a block of leave_on_sigterm is active: the program exits once, so save everything in one, around all"
        raise ManagerUsageError(message)
    leaving = _Exit(deadline, signals)
    try:
        leaving.set_handlers()
        try:
            yield
        except asyncio.CancelledError:
            if not leaving.has_cancelled or leaving.task.uncancel():
                raise  # another cancellation
        finally:
            leaving.is_in_block = False
        if leaving.signal is None:
            leaving.restore_handlers()  # until this is done, a signal may come
        if leaving.signal is not None:
            await leaving.save(save)
            raise SystemExit(128 + leaving.signal)
    finally:
        leaving.restore_handlers()


class _Exit:
    """Handles the signals of one block, and ends the program."""

    def __init__(self, deadline: float, signals: Sequence[signal.Signals]) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self.task = task
        self.signal: int | None = None
        self.is_in_block = True
        self.has_cancelled = False
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._is_over = False
        self.signals = frozenset(signals)
        self._handlers_before: dict[signal.Signals, Any] = {}

    def set_handlers(self) -> None:
        _active[:] = [self]
        removed = []
        with _blocked(self.signals):
            for number in self.signals:
                if self._loop.remove_signal_handler(number):
                    removed.append(signal.Signals(number).name)
                before = self._handlers_before[number] = signal.getsignal(number)
                if not callable(before):
                    # The loop then wakes up whichever thread the system gives the signal to.
                    self._loop.add_signal_handler(number, self._handle_if_missed, number)
                signal.signal(number, self._handle)
        if removed:
            warn(
                f"the loop's handler for {', '.join(sorted(removed))} is removed, because leave_on_sigterm handles the"
                " signal: remove it before the block, and register it after the block if it is needed there"
            )

    def restore_handlers(self) -> None:
        """Restore the earlier handlers, except where the program has replaced this one."""
        if self not in _active:
            return
        _active.clear()
        with _blocked(self.signals):
            for number, before in self._handlers_before.items():
                if signal.getsignal(number) == self._handle:
                    if not callable(before):
                        self._loop.remove_signal_handler(number)
                    signal.signal(number, before or signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is None:
            self.signal = number
            self._loop.call_soon_threadsafe(self._begin)
        else:
            self._loop.call_soon_threadsafe(self._end)

    def _handle_if_missed(self, number: int) -> None:
        """Handle a signal that another thread has received before our handler was set; the loop calls this for all."""
        if self.signal is None and signal.getsignal(number) == self._handle:
            self._handle(number, None)

    def _begin(self) -> None:
        over_at = self._loop.time() + self._deadline
        set_limit(self._loop, over_at)
        self._loop.call_at(over_at, self._end)  # also while the managers around the block close
        if self.is_in_block:
            self.has_cancelled = True
            self.task.cancel("SIGTERM: save and leave")

    def _end(self) -> None:
        self._is_over = True
        set_limit(self._loop, self._loop.time())
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
            times = f"{self._deadline} s after the signal, or a second one came"
            warn(f"time ran out {times}: the last save may be missing")


@contextmanager
def _blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Deliver the signals after the block."""
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)


def _before_fork() -> None:
    """Block the signals: a child must receive none before the earlier handlers are restored in it."""
    if _active:
        _forking.blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, _active[0].signals)


def _after_fork() -> None:
    if (blocked_before := vars(_forking).pop("blocked_before", None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)


def _after_fork_in_child() -> None:
    for leaving in _active.copy():
        leaving.restore_handlers()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
