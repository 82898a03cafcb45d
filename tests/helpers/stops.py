"""Stops: what holds a worker thread at a chosen point, for tests without an event loop."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from asyncckpt.testing import FaultyDisk

_PATIENCE = 60.0


class Stop:
    """A point that worker threads do not pass until it is opened; leaving its block opens it."""

    def __init__(self, on_reach: Callable[[], object] = lambda: None) -> None:
        self._on_reach = on_reach
        self._reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        """Stop here. Called by a worker thread."""
        self._reached.set()
        self._on_reach()
        assert self._opened.wait(_PATIENCE), "nobody opened it"

    def reached(self) -> None:
        """Wait until a thread stands here."""
        assert self._reached.wait(_PATIENCE), "nobody came"

    def open(self) -> None:
        """Let all pass, now and later."""
        self._opened.set()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Open it."""
        self.open()


def stop_at(
    disk: FaultyDisk,
    operation: str = "mkdir",
    path_part: str = "tmp_step_",
    on_reach: Callable[[], object] = lambda: None,
) -> Stop:
    """Hold the next such operation of a disk; the default is a save that begins to write."""
    stop = Stop(on_reach)
    disk.fail(operation, stop, path_part=path_part)
    return stop


def press_ctrl_c() -> None:
    """Send the signal of Ctrl-C to the main thread."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
