"""The event that tells a loop that the program must leave soon (`CheckpointManager.preempted`).

1. Nothing is installed that the program did not ask for: handlers are set when it names the signals, or when it first
   looks at the event.
2. A signal sets the event at once, for a program that looks at it without an await between.
3. While the event is set, another signal changes nothing: schedulers repeat their notice, and end a program with
   SIGKILL. A second SIGINT interrupts the program as ever.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from asyncckpt.config import check_signals
from asyncckpt.saving.signals import SignalHandlers, is_main_thread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asyncckpt.config import Signal


class _PreemptionEvent(asyncio.Event):
    """An event that counts as set from the moment of a signal; who waits for it wakes up in the loop's next turn."""

    def __init__(self) -> None:
        super().__init__()
        self._is_told = False

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_told or super().is_set()

    def clear(self) -> None:
        """Go on as if there had been no signal."""
        self._is_told = False
        super().clear()

    def tell(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set it from a handler, or from another thread."""
        self._is_told = True
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._set_if_told)

    def _set_if_told(self) -> None:
        if self._is_told:
            self.set()


class Preemption:
    """The event of one manager, and the handlers that set it.

    Args:
        signals: The signals; SIGTERM if None.
    """

    def __init__(self, signals: Signal | Iterable[Signal] | None) -> None:
        self.event = _PreemptionEvent()
        self._signals = check_signals(signal.SIGTERM if signals is None else signals)
        self._handlers: SignalHandlers | None = None

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the handlers, unless they are set. Call this in the main thread; `loop` may run in another one.

        Raises:
            ManagerUsageError: This is not the main thread.
        """
        if self._handlers is not None or not self._signals:
            return

        def handle(number: int) -> None:
            was_set = self.event.is_set()
            self.event.tell(loop)
            if was_set and number == signal.SIGINT:
                handlers.call_earlier(number, None)

        handlers = SignalHandlers(loop, self._signals, handle, user="manager.preempted")
        self._handlers = handlers
        handlers.set()

    def stop(self) -> None:
        """Restore the earlier handlers; in another thread than the main one they stay, and pass the signals on."""
        if self._handlers is not None and is_main_thread():
            self._handlers.restore()
