"""What a caller holds of a save.

The states of a save and the moves between them:

    queued  -> writing | replaced | cancelled | failed
    writing -> committed | failed
    skipped, replaced, cancelled, committed, failed: final

A save that was skipped never was anything else.
"""

from __future__ import annotations

import asyncio
import threading
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.errors import SaveFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from asyncckpt.saving.catalog import CheckpointRecord


class SaveState(StrEnum):
    """Where a save stands."""

    QUEUED = "queued"
    """Captured, waiting for its turn."""
    WRITING = "writing"
    COMMITTED = "committed"
    """Durable, and listed."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """Not captured, because the queue was full or the manager is disabled."""
    REPLACED = "replaced"
    """Dropped for a newer one."""
    CANCELLED = "cancelled"
    """Dropped by `SaveHandle.cancel`."""


TRANSITIONS: Final[dict[SaveState, frozenset[SaveState]]] = {
    SaveState.QUEUED: frozenset({SaveState.WRITING, SaveState.REPLACED, SaveState.CANCELLED, SaveState.FAILED}),
    SaveState.WRITING: frozenset({SaveState.COMMITTED, SaveState.FAILED}),
    SaveState.COMMITTED: frozenset(),
    SaveState.FAILED: frozenset(),
    SaveState.SKIPPED: frozenset(),
    SaveState.REPLACED: frozenset(),
    SaveState.CANCELLED: frozenset(),
}


class SaveProgress(NamedTuple):
    """How far a save has come, in bytes of its state file."""

    written_nbytes: int
    total_nbytes: int
    """0 until the layout is known."""


class SaveTimings(NamedTuple):
    """When a save came how far, in seconds after `save` was called; None for what has not happened."""

    blocked: float | None = None
    """`save` returned: the caller could go on."""
    queued: float | None = None
    """It left the queue: writing began."""
    written: float | None = None
    """The last byte of its state was on the disk."""
    committed: float | None = None
    """It was durable, and listed."""


class SaveHandle:
    """A save that was accepted. Await it to learn that it is durable.

    ``await handle`` returns the committed checkpoint's `CheckpointRecord`, or None if the save was skipped, replaced or
    cancelled; it raises a fresh `SaveFailedError` if the save failed. It may be awaited any number of times, by any
    number of tasks of the manager's loop; cancelling an awaiter never cancels the save.

    Attributes:
        step: The step.
        captured_nbytes: Memory that the captured state takes while it waits, in bytes.
    """

    def __init__(self, step: int, *, state: SaveState = SaveState.QUEUED) -> None:
        self.step = step
        self.captured_nbytes = 0
        self._state = state
        self._record: CheckpointRecord | None = None
        self._cause: BaseException | None = None
        self._ended = asyncio.Event()
        self._counting = threading.Lock()
        self._written_nbytes = 0
        self._total_nbytes = 0
        self._timings = SaveTimings()
        self._called_at = time.perf_counter()
        self._waiters = 0
        self._is_received = False
        self._on_cancel: Callable[[], None] | None = None
        if not TRANSITIONS[state]:
            self._ended.set()

    def __repr__(self) -> str:
        """Show the step and the state."""
        return f"<SaveHandle step={self.step} {self._state}>"

    def __await__(self) -> Generator[object, None, CheckpointRecord | None]:
        """Wait until the save has come to its end."""
        self._waiters += 1
        try:
            yield from self._ended.wait().__await__()
        finally:
            self._waiters -= 1
        if self._state is SaveState.FAILED:
            self._is_received = True
            raise self._error()
        return self._record

    @property
    def state(self) -> SaveState:
        """Where the save stands; compares equal to its name, "queued" say."""
        return self._state

    @property
    def is_done(self) -> bool:
        """Whether the save has come to its end, good or bad."""
        return not TRANSITIONS[self._state]

    @property
    def timings(self) -> SaveTimings:
        """When the save came how far, in seconds after it was called for."""
        return self._timings

    def progress(self) -> SaveProgress:
        """Return how many bytes of the state file have been written, and of how many."""
        return SaveProgress(self._written_nbytes, self._total_nbytes)

    def cancel(self) -> bool:
        """Drop the save if it is still waiting for its turn.

        Returns:
            Whether it was dropped. A save that is being written, or has ended, goes on as it was.
        """
        if self._state is not SaveState.QUEUED or self._on_cancel is None:
            return False
        self._on_cancel()
        return True

    # --- for the writer -----------------------------------------------------------------------------------------------

    def _move(
        self, state: SaveState, *, record: CheckpointRecord | None = None, cause: BaseException | None = None
    ) -> None:
        if state not in TRANSITIONS[self._state]:
            message = f"a save cannot go from {self._state} to {state}"
            raise AssertionError(message)
        self._state = state
        self._record = record
        self._cause = cause
        if state is not SaveState.QUEUED:
            self._on_cancel = None  # it refers to the captured state
        if not TRANSITIONS[state]:
            self._ended.set()

    def _time(self, mark: str, at: float | None = None) -> None:
        now = time.perf_counter() if at is None else at
        self._timings = self._timings._replace(**{mark: now - self._called_at})

    def _add_written(self, nbytes: int) -> None:
        with self._counting:  # called from several threads
            self._written_nbytes += nbytes

    def _error(self) -> SaveFailedError:
        """Make a new error: one exception raised in two tasks would mix up their tracebacks."""
        reason = str(self._cause) or type(self._cause).__name__
        error = SaveFailedError(f"step {self.step} was not saved: {reason}", step=self.step)
        error.__cause__ = self._cause
        return error

    @property
    def _is_unreceived(self) -> bool:
        """Whether the save failed and nobody has heard of it, or is about to."""
        return self._state is SaveState.FAILED and not self._is_received and not self._waiters
