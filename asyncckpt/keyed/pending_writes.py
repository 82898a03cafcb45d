"""The changes of an asynchronous view that are not in the store yet, the budget that bounds them, and the index.

1. All that were called are pending until they are settled, on the loop's thread: they were stored, or refused, or given
   up. Most are writes that wait in the queue for whatever job comes next; a few are made by a job of their own.
2. There are two indexes: what is in the store as of the last job that was settled, and that with all that is pending,
   which callers see. When a change comes to nothing, the second is made from the first again.
3. The thread of a job takes from the left of the queue what was there when the job was called, and touches nothing else
   here.
4. What the disk refuses waits, and so does all behind it: a deletion that became durable without the write before it
   might be all that is left of a value that was moved. But a write that a later change of its whole key has overtaken
   is dropped, so that a deletion takes back what the disk does not take.
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
"""What a write takes beside its bytes, in Python objects: a small one has 1.5 KB (measured)."""
OF_ALL_CHANGES: Final = (FileLockedError, ReadOnlyFileError)
"""The errors of a file that cannot be changed at all."""
_BATCH_WRITES: Final = 512  # of one job: settling what it did costs the loop 2 microseconds each


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A captured value to be stored, or a deletion."""

    number: int
    path: Path
    captured: CapturedValue | PackedValue | None
    nbytes: int


@dataclass(slots=True)
class Outcome:
    """What a job did: filled in its thread, looked at when it has ended."""

    done: list[Change] = field(default_factory=list)
    dropped: list[Change] = field(default_factory=list)
    """What the store never saw, because a later change overtakes it."""
    refused: list[tuple[Change, Exception]] = field(default_factory=list)
    found: KeyIndex | None = None
    """What the store had before that, if it was not what it was known to have."""


class Refusals:
    """Errors of changes that were called before, until somebody can be told."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._errors: list[BaseException] = []

    def add(self, error: BaseException) -> None:
        """Keep an error, without the value that it is about; one of those that refuse every change, once."""
        drop_locals(error)
        if not (isinstance(error, OF_ALL_CHANGES) and any(type(each) is type(error) for each in self._errors)):
            self._errors.append(error)

    def take(self) -> list[BaseException]:
        """Return them, once."""
        errors, self._errors = self._errors, []
        return errors

    def tell(self) -> None:
        """Raise them, if there are any: one by itself, more as a group."""
        errors = self.take()
        if len(errors) == 1:
            raise errors.pop()  # it leads to this frame, which must not lead back
        if errors:
            message = f"{self._place}: {len(errors)} changes failed"
            raise BaseExceptionGroup(message, errors)


class WriteQueue:
    """Changes in the order of the calls."""

    def __init__(self, max_staged_nbytes: int, stored: KeyIndex) -> None:
        self._writes: deque[Change] = deque()
        self._pending: dict[int, Change] = {}
        self._last: dict[str, int] = {}
        self._max_staged_nbytes = max_staged_nbytes
        self._stored = stored
        self.names = stored.copy()
        """What there is, all that is pending included."""
        self.number = 0
        """Of the last change."""
        self.staged_nbytes = 0
        """Bytes of memory that those take which wait, or are being written."""

    def __len__(self) -> int:
        """Return how many wait in the queue."""
        return len(self._writes)

    def last_of(self, key: str) -> int:
        """Return the number of the last write of a top-level key that waits, or 0."""
        return self._last.get(key, 0)

    def fits(self, nbytes: int) -> bool:
        """Whether the budget holds a value of this size at all."""
        return nbytes <= self._max_staged_nbytes

    def has_room(self, nbytes: int) -> bool:
        """Whether it holds one now; a single value always has room."""
        return not self._writes or self.fits(self.staged_nbytes + nbytes + _WRITE_NBYTES)

    def announce(self, path: Path, captured: CapturedValue | PackedValue | None, nbytes: int = 0) -> Change:
        """Let a change be pending, which a job of its own makes, and show it."""
        self.names.note(path, captured)
        self.number += 1
        change = Change(self.number, path, captured, nbytes)
        self._pending[self.number] = change
        self.staged_nbytes += nbytes
        return change

    def add(self, path: Path, captured: CapturedValue | PackedValue | None, nbytes: int) -> Change:
        """Let a write wait, and show it."""
        change = self.announce(path, captured, nbytes + _WRITE_NBYTES)
        self._writes.append(change)
        self._last[path[0]] = change.number
        return change

    def drain(self, until: int, needed: int, store: Callable[[Change], None], outcome: Outcome) -> bool:
        """Store what waits, or as much of it as one job shall; in its thread.

        Args:
            until: The number of the last write that is to be stored, and
            needed: of the last that has to be.
            store: Stores one.
            outcome: Is told.

        Returns:
            Whether there is more to be stored.

        Raises:
            OSError: The disk failed before all that is needed was stored; what was not stays in the queue.
            MemoryError: So did the memory.
        """
        while self._writes and self._writes[0].number <= until:
            if len(outcome.done) >= _BATCH_WRITES:
                return True
            try:
                store(self._writes[0])
            except OF_ALL_CHANGES as error:  # nor will any other do
                while self._writes and self._writes[0].number <= until:
                    outcome.refused.append((self._take(), error))
            except (OSError, MemoryError):
                if self._is_overtaken(self._writes[0], until):
                    outcome.dropped.append(self._take())
                    continue
                if self._writes[0].number <= needed:
                    raise
                return False
            except Exception as error:  # noqa: BLE001 - it will never do: others shall not wait behind it
                drop_locals(error)  # which may be a large value: it is freed in this thread, not in the loop's
                outcome.refused.append((self._take(), error))
            else:
                outcome.done.append(self._take())
        return False

    def _is_overtaken(self, write: Change, until: int) -> bool:
        """Whether a later write, of those until that number, leaves nothing of this one."""
        whole = write.path[:1]
        later = self._writes.copy()  # in one call: the loop's thread may add more
        return any(write.number < each.number <= until and each.path == whole for each in later)

    def _take(self) -> Change:
        """Remove the first write, and give its memory back."""
        write = self._writes.popleft()
        if write.captured is not None:
            write.captured.release()
        return write

    def settle(self, outcome: Outcome, change: Change | None = None) -> None:
        """Count off what a job, which has ended, was to do, and let the index show what has come of it.

        Args:
            outcome: What it did.
            change: The change that it was to make itself.
        """
        if outcome.found is not None:
            self._stored = outcome.found
        for done in outcome.done:
            self._stored.note(done.path, done.captured)
        refused = [write for write, _ in outcome.refused]
        own = [] if change is None else [change]
        for each in (*outcome.done, *outcome.dropped, *refused, *own):
            if self._pending.pop(each.number, None) is not None:
                self.staged_nbytes -= each.nbytes
                if self._last.get(each.path[0]) == each.number:
                    del self._last[each.path[0]]
        if outcome.found is not None or outcome.dropped or refused or (own and outcome.done[-1:] != own):
            self.names = self._stored.copy()
            for pending in self._pending.values():
                self.names.note(pending.path, pending.captured)

    def clear(self) -> None:
        """Drop all that wait."""
        while self._writes:
            self._take()
