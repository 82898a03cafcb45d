"""SIGTERM becomes "save and leave".

1. The signal cancels the task that is inside, at its next await; nothing else is interrupted. So the state is as the
   program left it at an await, and its own `finally` blocks have run before it is saved.
2. When the deadline has passed, counted from the signal, nothing is waited for any more: not the last save, not what
   the loop's managers still have to write (`grace.py`). What was committed stays.
3. The exit status is 128 + the signal's number, as shells and schedulers expect. A last save that fails is raised
   instead.
4. A signal is noted in the instant in which Python hears of it, and not in a later turn of the loop: so none is lost
   between the end of the block and the return of the handlers that were there before.
5. The loop's own handlers stay registered, and a signal is heard by them or by us, never by both and never by neither.
   So what we take over is below the loop: Python's handler, and the descriptor by which a signal wakes the loop.
6. A forked child has no part in it: its signals do what they did before the block, and its parent hears none of them.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import threading
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from asyncckpt.errors import ManagerUsageError, warn
from asyncckpt.runtime import deadline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
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

    After the block the signals do what they did before, also where the program had its handler by the loop's
    `add_signal_handler`; meanwhile that handler is not called. On the stock loop, a call of `add_signal_handler` or
    `remove_signal_handler` within the block, for whatever signal, can undo this until the block ends: the program's
    handler is then called as well as ours, or a signal that the system gives to another thread waits for the loop's
    next turn. A handler that is set for one of our signals within the block replaces ours, and stays.

    In a child that is forked within the block the signals do what they did before it; those that the loop would have
    handled end the child, since the loop is its parent's.

    Args:
        save: Called when the block has ended because of the signal. What it returns is awaited, and the `SaveHandle` or
            other awaitable that comes of that is awaited, too.
        deadline: Seconds from the signal to the end, the closing of all managers on this loop included, whatever their
            `grace`. A thread that hangs in a system call then is left to itself within half a second more for each
            manager. `asyncio.run` then ends; Python itself waits for the thread before the process does.
        signals: Which signals.

    Raises:
        SystemExit: A signal came; the last save is durable, or a `CheckpointWarning` says that time ran out.
        ManagerUsageError: This is not the main thread, which alone receives signals; or another such block is open:
            the program leaves once, so that one block has to save everything.
        Exception: What the block raised, or else what the last save raised.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ManagerUsageError("leave_on_sigterm works in the main thread only: no other receives signals")
    if _open:
        message = "a block of leave_on_sigterm is open: the program leaves once, so save everything in one, around all"
        raise ManagerUsageError(message)
    leaving = _Leaving(deadline)
    listener = _Listener(leaving.loop, signals, leaving.hear)
    try:
        listener.listen()
        try:
            yield
        except asyncio.CancelledError:
            if not leaving.has_cancelled or leaving.task.uncancel():
                raise  # somebody else's
        finally:
            leaving.is_in_block = False
        if leaving.signal is None:
            listener.close()
        if leaving.signal is not None:
            await leaving.save(save)
            raise SystemExit(128 + leaving.signal)
    finally:
        listener.close()


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
        self._is_over = False

    def hear(self, number: int) -> None:
        """Note a signal; the second is the end."""
        if self.signal is None:
            self.signal = number
            self.loop.call_soon_threadsafe(self._begin)
        else:
            self.loop.call_soon_threadsafe(self._end)

    def _begin(self) -> None:
        over_at = self.loop.time() + self._deadline
        deadline.set_limit(self.loop, over_at)
        # It stays armed while the manager closes behind us.
        self.loop.call_at(over_at, self._end)
        if self.is_in_block:
            self.has_cancelled = True
            self.task.cancel("SIGTERM: save and leave")

    def _end(self) -> None:
        self._is_over = True
        deadline.set_limit(self.loop, self.loop.time())
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
            warn(message)


class _Listener:
    """Signals, taken over from whoever had them.

    For each signal, Python calls a handler and writes the number to the wake-up descriptor. The first is how we hear of
    it; by the second the loop wakes up, whichever thread got the signal, and hears of those it has handlers for.
    So we read the numbers, and pass on to the loop those that were not ours.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, signals: Sequence[signal.Signals], hear: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._tell = hear
        self._has_heard = False
        self._handlers_before = {each: signal.getsignal(each) for each in signals}
        self._descriptor_before = -1
        self._numbers, self._descriptor = socket.socketpair()
        self._numbers.settimeout(0)
        self._descriptor.settimeout(0)

    @property
    def signals(self) -> Collection[signal.Signals]:
        """Which signals."""
        return self._handlers_before.keys()

    def listen(self) -> None:
        """Take the signals over."""
        _open.append(self)
        self._loop.add_reader(self._numbers, self._pass_on)
        self._descriptor_before = signal.set_wakeup_fd(self._descriptor.fileno())
        for each in self._handlers_before:
            signal.signal(each, self._hear)

    def close(self) -> None:
        """Give the signals back, but for those that somebody has taken from us."""
        if self not in _open:  # closed, or in a child
            return
        for each, handler in self._taken():
            signal.signal(each, handler)
            if self._is_loops(handler):
                signal.siginterrupt(each, False)  # noqa: FBT003 - as the loop had it, positional only
        ours = self._descriptor.fileno()
        current = signal.set_wakeup_fd(ours)  # the one way to ask, and nothing is lost in between
        signal.set_wakeup_fd(self._descriptor_before if current == ours else current)
        self._loop.remove_reader(self._numbers)
        self._pass_on()
        self._forget()

    def close_in_child(self) -> None:
        """Leave the signals to a forked child, and let the loop be: what it watches is shared with the parent."""
        for each, handler in self._taken():
            signal.signal(each, signal.SIG_DFL if self._is_loops(handler) else handler)
        signal.set_wakeup_fd(-1)  # whosever it was: the parent reads there
        self._forget()

    def _forget(self) -> None:
        self._numbers.close()
        self._descriptor.close()
        _open.clear()

    def _taken(self) -> list[tuple[signal.Signals, Any]]:
        return [item for item in self._handlers_before.items() if signal.getsignal(item[0]) == self._hear]

    def _is_loops(self, handler: object) -> bool:
        """Whether a handler does nothing by itself: `add_signal_handler` has set it."""
        # The stock loop's is a function of its module, uvloop's a method of the loop.
        return getattr(handler, "__module__", "") == asyncio.SelectorEventLoop.__module__ or (
            getattr(handler, "__self__", None) is self._loop
        )

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame  # any
        self._has_heard = True
        self._tell(number)

    def _pass_on(self) -> None:
        """Pass on what was not ours: other signals, and ours that came before or after we were the handler."""
        with suppress(OSError):  # nothing to read, or nobody to read it
            numbers = self._numbers.recv(1 << 16)
            # Python has called the handler by now: that is due before the number can be read.
            others = bytes(each for each in numbers if not (self._has_heard and each in self._handlers_before))
            if others and self._descriptor_before != -1:
                os.write(self._descriptor_before, others)


_open: list[_Listener] = []  # at most one
_blocked = threading.local()


def _before_fork() -> None:
    """Let our signals wait: a child must get none before it is told that they are not ours."""
    for listener in _open:
        signals = set(listener.signals)
        _blocked.signals = signals - signal.pthread_sigmask(signal.SIG_BLOCK, signals)


def _after_fork() -> None:
    if signals := vars(_blocked).pop("signals", None):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _after_fork_in_child() -> None:
    for listener in _open.copy():
        listener.close_in_child()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
