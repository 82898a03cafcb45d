"""Python handlers for signals, set for a while.

1. Python's handler notes a signal at once, and not in a later turn of the loop; handlers are set and restored while the
   signals are blocked. So no signal is lost in between. They are blocked in this thread only: if another thread
   receives one while handlers are set, the loop's notes it.
2. Handlers of this module may be set on top of each other. A signal reaches all of them, the last one first. They are
   restored in any order; a handler of the program's that has replaced one stays.
3. A forked child handles the signals as if none of this module's handlers had been set.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from asyncckpt.config import signal_name
from asyncckpt.errors import ManagerUsageError, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

_active: list[SignalHandlers] = []  # in the order in which they were set
_forking = threading.local()


def is_main_thread() -> bool:
    """Whether this is the main thread, which alone may set handlers, and runs them."""
    return threading.current_thread() is threading.main_thread()


class SignalHandlers:
    """Handlers for some signals, from `set` to `restore`. Used in the main thread only.

    Args:
        loop: The loop to wake up for a signal.
        signals: The signals.
        handle: Called for each signal with its number, between two instructions of the main thread.
        user: What handles them, for messages.

    Attributes:
        before: The earlier handlers.
        waking: The signals for which the loop has a handler of ours, so that it wakes up.

    Raises:
        ManagerUsageError: This is not the main thread.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, signals: Iterable[int], handle: Callable[[int], None], *, user: str
    ) -> None:
        if not is_main_thread():
            message = f"{user} works in the main thread only: no other receives signals"
            raise ManagerUsageError(message)
        self.signals = frozenset(signals)
        self._loop = loop
        self._on_signal = handle
        self._user = user
        self._heard: set[int] = set()
        self.before: dict[int, Any] = {}
        self.waking: set[int] = set()

    def set(self) -> None:
        """Set the handlers; warn if one of the loop's was removed for this."""
        _active.append(self)
        removed = []
        is_loop_here = _is_running(self._loop)
        with _blocked(self.signals):
            for number in self.signals:
                is_free = is_loop_here and not _is_ours(signal.getsignal(number))
                if is_free and self._loop.remove_signal_handler(number):
                    removed.append(signal_name(number))
                before = self.before[number] = signal.getsignal(number)
                if is_loop_here and not callable(before):
                    # The loop then wakes up whichever thread the system gives the signal to.
                    self._loop.add_signal_handler(number, self._handle_if_missed, number)
                    self.waking.add(number)
                signal.signal(number, self._handle)
        if removed:
            warn(
                f"the loop's handler for {', '.join(sorted(removed))} is removed, because {self._user} handles the"
                " signal: remove it before the block, and register it after the block if it is needed there"
            )

    def restore(self) -> None:
        """Restore the earlier handlers, except where the program has replaced this one."""
        if self not in _active:
            return
        _active.remove(self)
        with _blocked(self.signals):
            for number, before in self.before.items():
                if signal.getsignal(number) == self._handle:
                    if number in self.waking:
                        self._loop.remove_signal_handler(number)
                    signal.signal(number, before or signal.SIG_DFL)
                for above in _active:
                    if above.before.get(number) == self._handle:
                        above.before[number] = before
                        above.waking |= self.waking & {number}

    def call_earlier(self, number: int, frame: FrameType | None) -> None:
        """Call the handler that there was before, if it is a function."""
        if callable(before := self.before.get(number)):
            before(number, frame)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._heard.add(number)
        if self in _active:
            self._on_signal(number)
        if self not in _active or _is_ours(self.before.get(number)):
            self.call_earlier(number, frame)

    def _handle_if_missed(self, number: int) -> None:
        """Handle a signal that another thread has received before our handler was set; the loop calls this for all."""
        if number not in self._heard and signal.getsignal(number) == self._handle:
            self._handle(number, None)


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop runs in this thread."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _is_ours(handler: object) -> bool:
    return isinstance(getattr(handler, "__self__", None), SignalHandlers)


@contextmanager
def _blocked(signals: Iterable[int]) -> Iterator[None]:
    """Deliver the signals after the block."""
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)


def _before_fork() -> None:
    """Block the signals: a child must receive none before the earlier handlers are restored in it."""
    if _active:
        signals = {number for each in _active for number in each.signals}
        _forking.blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)


def _after_fork() -> None:
    if (blocked_before := vars(_forking).pop("blocked_before", None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)


def _after_fork_in_child() -> None:
    for handlers in reversed(_active.copy()):
        handlers.restore()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
