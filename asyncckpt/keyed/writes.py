"""The writes of an asynchronous view that wait for their job, and the budget that bounds them.

The queue belongs to the loop's thread. The thread of a job takes from its left what was there when the job was called,
and hands it back for the count of staged bytes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from asyncckpt.keyed.engine import Path
    from asyncckpt.keyed.values import Captured

_MAX_QUEUED: Final = 4096
"""Writes that may wait: as many small ones as are captured faster than the disk takes them."""


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """A change that waits for its job: a captured value, or a deletion."""

    number: int
    path: Path
    captured: Captured | None
    nbytes: int


class WriteQueue:
    """Writes in the order of the calls."""

    def __init__(self, max_staged_nbytes: int) -> None:
        self._writes: deque[Write] = deque()
        self._max_staged_nbytes = max_staged_nbytes
        self.number = 0
        """Of the last write."""
        self.staged_nbytes = 0
        """Bytes of memory that those take which wait, or are being written."""

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._writes)

    def __iter__(self) -> Iterator[Write]:
        """Iterate over those that wait."""
        return iter(self._writes)

    def fits(self, nbytes: int) -> bool:
        """Whether the budget holds a value of this size at all."""
        return nbytes <= self._max_staged_nbytes

    def has_room(self, nbytes: int) -> bool:
        """Whether it holds one now; a single value always has room."""
        if not self._writes:
            return True
        return len(self._writes) < _MAX_QUEUED and self.fits(self.staged_nbytes + nbytes)

    def add(self, path: Path, captured: Captured | None, nbytes: int) -> None:
        """Let a write wait."""
        self.number += 1
        self._writes.append(Write(self.number, path, captured, nbytes))
        self.staged_nbytes += nbytes

    def first(self, until: int) -> Write | None:
        """Return the first write, if its number is not above `until`."""
        return self._writes[0] if self._writes and self._writes[0].number <= until else None

    def take(self) -> Write:
        """Remove the first write, and give its memory back."""
        write = self._writes.popleft()
        if write.captured is not None:
            write.captured.release()
        return write

    def settle(self, done: Sequence[Write]) -> None:
        """Count off what was taken."""
        self.staged_nbytes -= sum(write.nbytes for write in done)

    def clear(self) -> None:
        """Drop all that wait."""
        while self._writes:
            self.take()
