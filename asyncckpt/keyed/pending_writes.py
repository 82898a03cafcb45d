"""The pending changes of an asynchronous view, the budget that bounds them, and the index that shows them.

1. A change is pending from the call until it has been settled on the loop's thread: stored, refused or dropped. Most
   are writes that wait in the queue for the next job; a few are made by a job of their own.
2. There are two indexes: one of what is in the store as of the last settled job, and one with all pending changes,
   which callers see. When a change fails, the second is made from the first again.
3. The thread of a job takes from the left of the queue what was there when the job was requested, and touches nothing
   else here.
4. A write that the disk refuses stays in the queue, and so does everything behind it: if a deletion became durable
   without the write before it, a value that was moved would be lost. But a write is dropped if a later change replaces
   its whole key, so a deletion cancels a write that the disk does not take.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from asyncckpt.errors import FileLockedError, ReadOnlyFileError
from asyncckpt.runtime.tracebacks import drop_locals

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.keyed.engine import Path
    from asyncckpt.keyed.key_index import KeyIndex
    from asyncckpt.keyed.values import CapturedValue, PackedValue

_WRITE_NBYTES: Final = 2048
"""An estimate of the Python objects of a write, in bytes; a small one has 1.5 KB (measured)."""
OF_ALL_CHANGES: Final = (FileLockedError, ReadOnlyFileError)
"""The errors of a file that cannot be changed at all."""
_BATCH_WRITES: Final = 512  # per job, because the loop settles each of them


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A captured value to be stored, or a deletion."""

    number: int
    path: Path
    captured: CapturedValue | PackedValue | None
    nbytes: int


@dataclass(slots=True)
class Outcome:
    """What a job did: filled in its thread, read on the loop's when it has ended."""

    done: list[Change] = field(default_factory=list)
    dropped: list[Change] = field(default_factory=list)
    """Changes that never reached the store: a later one replaces them, or the job that they were for has failed."""
    refused: list[tuple[Change, Exception]] = field(default_factory=list)
    found: KeyIndex | None = None
    """What the store contained before that, if it was not what the index has."""


class Refusals:
    """Errors of earlier changes, until they can be raised."""

    def __init__(self, file_name: str) -> None:
        self._file_name = file_name
        self._errors: list[BaseException] = []

    def add(self, error: BaseException) -> None:
        """Keep an error, without the value that it is about. Of those that refuse every change, one is kept."""
        drop_locals(error)
        if not (isinstance(error, OF_ALL_CHANGES) and any(type(each) is type(error) for each in self._errors)):
            self._errors.append(error)

    def take(self) -> list[BaseException]:
        """Return them, once."""
        errors, self._errors = self._errors, []
        return errors

    def raise_all(self) -> None:
        """Raise them, if there are any: one by itself, several as a group."""
        errors = self.take()
        if len(errors) == 1:
            raise errors.pop()  # it refers to this frame, which must not refer to it
        if errors:
            message = f"{self._file_name}: {len(errors)} changes failed"
            raise BaseExceptionGroup(message, errors)


class WriteQueue:
    """Pending changes, in the order of the calls."""

    def __init__(self, max_staged_nbytes: int, stored: KeyIndex) -> None:
        self._writes: deque[Change] = deque()
        self._pending: dict[int, Change] = {}
        self._last: dict[str, int] = {}
        self._max_staged_nbytes = max_staged_nbytes
        self._stored = stored
        self.index = stored.copy()
        """The index with all pending changes."""
        self.number = 0
        """The number of the last change."""
        self.staged_nbytes = 0
        """Memory of the pending changes, in bytes."""

    def __len__(self) -> int:
        """Return the number of writes in the queue."""
        return len(self._writes)

    def last_of(self, key: str) -> int:
        """Return the number of the last write of a top-level key in the queue, or 0."""
        return self._last.get(key, 0)

    def fits(self, nbytes: int) -> bool:
        """Tell whether the whole budget is enough for a value of this size."""
        return nbytes <= self._max_staged_nbytes

    def has_room(self, nbytes: int) -> bool:
        """Tell whether the budget has room for one now; a single value always has."""
        return not self._writes or self.fits(self.staged_nbytes + nbytes + _WRITE_NBYTES)

    def announce(self, path: Path, captured: CapturedValue | PackedValue | None, nbytes: int = 0) -> Change:
        """Register a change that a job of its own makes, and show it in the index."""
        self.index.note(path, captured)
        self.number += 1
        change = Change(self.number, path, captured, nbytes)
        self._pending[self.number] = change
        self.staged_nbytes += nbytes
        return change

    def add(self, path: Path, captured: CapturedValue | PackedValue | None, nbytes: int) -> Change:
        """Queue a write, and show it in the index."""
        change = self.announce(path, captured, nbytes + _WRITE_NBYTES)
        self._writes.append(change)
        self._last[path[0]] = change.number
        return change

    def drain(self, until: int, needed: int, store: Callable[[Change], None], outcome: Outcome) -> bool:
        """Store writes of the queue, as many as one job may; in its thread.

        Args:
            until: The number of the last write to store.
            needed: The number of the last write that must be stored.
            store: Stores one.
            outcome: Gets what was done.

        Returns:
            Whether there is more to store.

        Raises:
            OSError: The disk failed before all that is needed was stored. What was not stored stays in the queue.
            MemoryError: Likewise, because memory was lacking.
        """
        while self._writes and self._writes[0].number <= until:
            if len(outcome.done) >= _BATCH_WRITES:
                return True
            try:
                store(self._writes[0])
            except OF_ALL_CHANGES as error:  # it refuses all the others, too
                while self._writes and self._writes[0].number <= until:
                    outcome.refused.append((self._take(), error))
            except (OSError, MemoryError):
                if self._is_overtaken(self._writes[0], until):
                    outcome.dropped.append(self._take())
                    continue
                if self._writes[0].number <= needed:
                    raise
                return False
            except Exception as error:  # noqa: BLE001 - it will always fail, and must not hold up those behind it
                drop_locals(error)  # they may hold a large value, which is to be freed in this thread
                outcome.refused.append((self._take(), error))
            else:
                outcome.done.append(self._take())
        return False

    def _is_overtaken(self, write: Change, until: int) -> bool:
        """Tell whether a later write, up to that number, replaces the whole key of this one."""
        whole = write.path[:1]
        later = self._writes.copy()  # one atomic call, because the loop's thread may add more
        return any(write.number < each.number <= until and each.path == whole for each in later)

    def _take(self) -> Change:
        """Remove the first write, and release its memory."""
        write = self._writes.popleft()
        if write.captured is not None:
            write.captured.release()
        return write

    def settle(self, outcome: Outcome) -> None:
        """Remove the changes of a job that has ended, and let the indexes show its outcome."""
        if outcome.found is not None:
            self._stored = outcome.found
        for done in outcome.done:
            self._stored.note(done.path, done.captured)
        undone = [*outcome.dropped, *(write for write, _ in outcome.refused)]
        for each in (*outcome.done, *undone):
            if self._pending.pop(each.number, None) is not None:
                self.staged_nbytes -= each.nbytes
                if self._last.get(each.path[0]) == each.number:
                    del self._last[each.path[0]]
        if outcome.found is not None or undone:
            self.index = self._stored.copy()
            for pending in self._pending.values():
                self.index.note(pending.path, pending.captured)

    def clear(self) -> None:
        """Drop all writes in the queue."""
        while self._writes:
            self._take()
