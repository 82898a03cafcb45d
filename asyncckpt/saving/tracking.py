"""A save under way: its state, for the library (`SaveTracker`) and for its caller (`SaveHandle`)."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.errors import SaveFailedError, StateChangedError
from asyncckpt.saving.files import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from asyncckpt.storage.results import CheckpointRecord


class SaveState(StrEnum):
    """The state of a save."""

    QUEUED = "queued"
    """Captured, and waiting to be written."""
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
"""What each state may become; none may become "skipped"."""


class SaveProgress(NamedTuple):
    """The progress of a save, in bytes of its state file."""

    written_nbytes: int
    total_nbytes: int
    """0 until the layout is known."""


class SaveTimings(NamedTuple):
    """When the phases of a save ended, in seconds after the call of `save`; None for what has not happened."""

    blocked: float | None = None
    """`save` returned."""
    queued: float | None = None
    """It left the queue, and writing began."""
    written: float | None = None
    """The last byte of its state was on the disk."""
    committed: float | None = None
    """It was durable and listed."""


class SaveTracker:
    """The state of one save, for the library; the caller of `save` gets a `SaveHandle` of it.

    Used on the loop's thread only, except for `add_written`.

    Attributes:
        step: The step.
        state: The state of the save.
        record: The committed checkpoint, for the caller.
        captured_nbytes: Memory that the captured state takes while it waits, in bytes.
        total_nbytes: Size of the state file, in bytes; 0 until the layout is known.
        written_nbytes: How many of them have been written.
        timings: When its phases ended.
        on_cancel: Drops the save while it waits in the queue.
        is_received: Whether a caller has received its error.
    """

    def __init__(self, step: int, state: SaveState = SaveState.QUEUED) -> None:
        self.step = step
        self.state = state
        self.record: CheckpointRecord | None = None
        self.captured_nbytes = self.written_nbytes = self.total_nbytes = 0
        self.timings = SaveTimings()
        self.on_cancel: Callable[[], None] | None = None
        self.is_received = False
        self._cause: BaseException | None = None
        self._called_at = time.perf_counter()
        self._waiters = 0
        self._counting = threading.Lock()
        self._ended = asyncio.Event()
        if self.is_done:
            self._ended.set()

    @property
    def is_done(self) -> bool:
        """Whether the save has ended, in whatever state."""
        return not TRANSITIONS[self.state]

    @property
    def is_unreceived(self) -> bool:
        """Whether the save failed, and no caller has received the error or waits for it."""
        return self.state is SaveState.FAILED and not self.is_received and not self._waiters

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a caller who waits for the end within the block, and receives the error if the save fails."""
        self._waiters += 1
        try:
            yield
        finally:
            self._waiters -= 1

    async def wait(self) -> None:
        """Wait until the save has ended."""
        await self._ended.wait()

    def move(
        self, state: SaveState, *, record: CheckpointRecord | None = None, cause: BaseException | None = None
    ) -> None:
        """Change the state; `TRANSITIONS` must allow it."""
        if state not in TRANSITIONS[self.state]:
            message = f"a save cannot go from {self.state} to {state}"
            raise AssertionError(message)
        self.record = record
        self._cause = cause
        self.state = state  # last: other threads may look at it, and a forked child may begin here
        if state is not SaveState.QUEUED:
            self.on_cancel = None  # it refers to the captured state
        if self.is_done:
            self._ended.set()

    def time(self, mark: str, at: float | None = None) -> None:
        """Set a mark of the timings to a time of `time.perf_counter`; by default, to now."""
        now = time.perf_counter() if at is None else at
        self.timings = self.timings._replace(**{mark: now - self._called_at})

    def add_written(self, nbytes: int) -> None:
        """Count bytes of the state file that have been written; called from several threads."""
        with self._counting:
            self.written_nbytes += nbytes

    def cancel(self) -> bool:
        """Drop the save if it still waits in the queue; return whether it did."""
        if self.state is not SaveState.QUEUED or self.on_cancel is None:
            return False
        self.on_cancel()
        return True

    def result(self) -> CheckpointRecord | None:
        """Return what the caller gets from a save that has ended, or raise its error."""
        if self.state is SaveState.FAILED:
            self.is_received = True
            raise self.error()
        return self.record

    @property
    def is_state_changed(self) -> bool:
        """Whether it failed because the state changed while it was captured."""
        return isinstance(self._cause, StateChangedError)

    def take_cause(self) -> BaseException:
        """Return the cause of the failure, to be raised by the only caller who knows of the save."""
        cause, self._cause, self.is_received = self._cause, None, True
        return cause or self.error()

    def error(self) -> SaveFailedError:
        """Return a new error: one exception raised in two tasks would mix up their tracebacks."""
        cause, place = self._cause, ""
        if isinstance(cause, SourceError):
            place, cause = f"files[{cause.name!r}]: ", cause.__cause__
        reason = str(cause) or type(cause).__name__
        error = SaveFailedError(f"step {self.step} was not saved: {place}{reason}", step=self.step)
        error.__cause__ = cause
        return error


class SaveStatus:
    """What the handle of a save shows, in any thread."""

    __slots__ = ("__weakref__", "_tracker")

    def __init__(self, tracker: SaveTracker) -> None:
        self._tracker = tracker

    def __repr__(self) -> str:
        """Show the step and the state."""
        return f"<SaveHandle step={self.step} {self.state}>"

    @property
    def step(self) -> int:
        """The step."""
        return self._tracker.step

    @property
    def state(self) -> SaveState:
        """The state; it compares equal to its name, such as "queued"."""
        return self._tracker.state

    @property
    def is_done(self) -> bool:
        """Whether the save has ended, in whatever state."""
        return self._tracker.is_done

    @property
    def captured_nbytes(self) -> int:
        """The memory that the captured state takes while it waits, in bytes."""
        return self._tracker.captured_nbytes

    @property
    def timings(self) -> SaveTimings:
        """When the phases of the save ended, in seconds after the call of `save`."""
        return self._tracker.timings

    def progress(self) -> SaveProgress:
        """Return how many bytes of the state file have been written, and its size."""
        return SaveProgress(self._tracker.written_nbytes, self._tracker.total_nbytes)


class SaveHandle(SaveStatus):
    """A save that was accepted. Await it to wait until it is durable.

    ``await handle`` returns the committed checkpoint's `CheckpointRecord`, or None if the save was skipped, replaced or
    cancelled; it raises a fresh `SaveFailedError` if the save failed. It may be awaited any number of times, by any
    number of tasks of the manager's loop; cancelling an awaiter never cancels the save.
    """

    __slots__ = ()

    @classmethod
    def skipped(cls, step: int) -> SaveHandle:
        """Return the handle of a save that was not captured."""
        return cls(SaveTracker(step, SaveState.SKIPPED))

    def __await__(self) -> Generator[object, None, CheckpointRecord | None]:
        """Wait until the save has ended."""
        with self._tracker.waiting():
            yield from self._tracker.wait().__await__()
        return self._tracker.result()

    def cancel(self) -> bool:
        """Drop the save if it still waits in the queue.

        Returns:
            Whether it was dropped. A save that is being written, or has ended, is not affected.
        """
        return self._tracker.cancel()


class UnreceivedFailures:
    """The failed saves whose error no caller has received yet."""

    def __init__(self) -> None:
        self._failed: list[SaveTracker] = []

    def add(self, tracker: SaveTracker) -> None:
        """Add a save that has failed."""
        self._failed.append(tracker)

    def receive(self) -> list[Exception]:
        """Return the errors; each is returned once, here or by its save's handle."""
        errors: list[Exception] = []
        for tracker in self._failed:
            if tracker.is_unreceived:
                tracker.is_received = True
                errors.append(tracker.error())
        self._failed = [tracker for tracker in self._failed if not tracker.is_received]
        return errors

    def raise_any(self) -> None:
        """Raise the error, or an ExceptionGroup of several; do nothing if there is none."""
        errors = self.receive()
        if len(errors) == 1:
            raise errors.pop()  # its traceback refers to this frame, which must not refer to it
        if errors:
            message = f"{len(errors)} saves failed"
            raise ExceptionGroup(message, errors)
