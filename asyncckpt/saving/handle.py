"""`SaveHandle`: a save, for its caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncckpt.saving.tracking import SaveProgress, SaveState, SaveTimings, SaveTracker

if TYPE_CHECKING:
    from collections.abc import Generator

    from asyncckpt.storage.results import CheckpointRecord


class SaveHandle:
    """A save that was accepted. Await it to wait until it is durable.

    ``await handle`` returns the committed checkpoint's `CheckpointRecord`, or None if the save was skipped, replaced or
    cancelled; it raises a fresh `SaveFailedError` if the save failed. It may be awaited any number of times, by any
    number of tasks of the manager's loop; cancelling an awaiter never cancels the save.
    """

    __slots__ = ("__weakref__", "_tracker")

    def __init__(self, tracker: SaveTracker) -> None:
        self._tracker = tracker

    @classmethod
    def skipped(cls, step: int) -> SaveHandle:
        """Return the handle of a save that was not captured."""
        return cls(SaveTracker(step, SaveState.SKIPPED))

    def __repr__(self) -> str:
        """Show the step and the state."""
        return f"<SaveHandle step={self.step} {self.state}>"

    def __await__(self) -> Generator[object, None, CheckpointRecord | None]:
        """Wait until the save has ended."""
        with self._tracker.waiting():
            yield from self._tracker.wait().__await__()
        if self.state is SaveState.FAILED:
            self._tracker.is_received = True
            raise self._tracker.error()
        return self._tracker.record

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

    def cancel(self) -> bool:
        """Drop the save if it still waits in the queue.

        Returns:
            Whether it was dropped. A save that is being written, or has ended, is not affected.
        """
        if self.state is not SaveState.QUEUED or self._tracker.on_cancel is None:
            return False
        self._tracker.on_cancel()
        return True
