"""Looks at a state again after it was captured, and finds what another task or thread has changed meanwhile.

1. The state is encoded once more (`second_walk.py`), which compares all but the bytes of its arrays.
2. All bytes that a capture has read of arrays are hashed as they were copied, and again where the program has them now.
3. If nothing differs, what was captured is what the state was at the moment between the capture and the second look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from xxhash import xxh3_128_digest

from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.state.capture import Capture, LiveSnapshot, padded_nbytes
from asyncckpt.state.second_walk import CONTENTS, SecondWalk, changed_array, while_captured

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from asyncckpt.arrays.device import Moment
    from asyncckpt.arrays.meta import ArrayMeta
    from asyncckpt.runtime.buffers import BufferPool
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.state.capture import Snapshot
    from asyncckpt.state.flat import FlatState

    Bytes = NDArray[np.uint8]

_RANGE_NBYTES: Final = 1 << 20
_RANGE_ARRAYS: Final = _RANGE_NBYTES // PAGE_NBYTES  # small ones, which are read at once
_DIGEST_NBYTES: Final = 16


def copy_state(flat: FlatState, state: object, moment: Moment, pool: BufferPool | None, context: JobContext) -> Capture:
    """Copy the arrays of a state as `Capture.staged` does, and check that nothing has changed meanwhile.

    Args:
        flat: The encoded state, with the order of its sets.
        state: The state.
        moment: When the program called; without a pool, one without devices.
        pool: The pool of the buffers; None for a small state, on the loop.
        context: The context of the job.

    Raises:
        StateChangedError: A task or thread has changed the state; names the path.
        Stopped: The job was asked to stop.
    """
    capture = Capture.staged(flat, pool, context)
    try:
        look = _SecondLook(capture, state, moment)
        look.note_all(context)
        look.compare(context)
    except BaseException:
        capture.give_back()
        raise
    flat.sets = None
    return capture


def refer_to_state(flat: FlatState, state: object, moment: Moment, context: JobContext, *, is_frozen: bool) -> Capture:
    """Refer to the program's own arrays as `Capture.live` does, and let them be checked before the capture counts.

    The arguments and errors are those of `copy_state`. A frozen state is looked at twice at once, too.
    """
    snapshot = LiveSnapshot(flat, is_frozen=is_frozen)
    look = _SecondLook(Capture(flat, snapshot), state, moment)
    if is_frozen:
        look.note_all(context)
        look.compare(context)
        look.release_state()
    snapshot.on_copy = look.note
    return Capture(flat, snapshot, check=_LastLook(look, snapshot, is_frozen=is_frozen))


class _LastLook:
    """The check of a capture whose bytes are read while it is written; see `Check`."""

    def __init__(self, look: _SecondLook, snapshot: LiveSnapshot, *, is_frozen: bool) -> None:
        self._look = look
        self._snapshot = snapshot
        self._is_frozen = is_frozen

    def confirm(self, context: JobContext) -> None:
        """See `Check`."""
        self._snapshot.on_copy = None
        if self._is_frozen:
            self._look.compare_own(self._snapshot, context)
        else:
            self._look.compare(context)

    def release(self) -> None:
        """See `Check`."""
        self._look.release()


class _Range(NamedTuple):
    """A range of an array's bytes, or of consecutive small arrays with their padding, and its digests."""

    array: int
    start: int
    nbytes: int
    digests: bytes
    """One for each array."""


class _SecondLook:
    """What was read of a state, and where it can be read again."""

    def __init__(self, capture: Capture, state: object, moment: Moment) -> None:
        self._flat = capture.flat
        self._snapshot = capture.snapshot
        self._metas = capture.flat.arrays
        self._state: Any = state
        self._moment = moment
        self._ranges: list[_Range] = []
        self._spare: list[Bytes] = []  # scratch memory, for each thread

    def note(self, array: int, start: int, data: Bytes) -> None:
        """Note bytes that were read, from any thread."""
        at = 0
        for number, begin, nbytes in _split(self._metas, array, start, len(data)):
            digests = _digests(self._metas, number, begin, data[at : at + nbytes])
            self._ranges.append(_Range(number, begin, nbytes, digests))
            at += nbytes

    def note_all(self, context: JobContext) -> None:
        """Note all bytes that a program can change, as the snapshot has them."""
        self._note_from_snapshot(_all_ranges(self._metas, self._flat.stable), context)

    def compare(self, context: JobContext) -> None:
        """Compare the capture with the state.

        Raises:
            StateChangedError: They differ.
            Stopped: The job was asked to stop.
        """
        is_inline = not context.pacer.yields
        walk = SecondWalk(self._flat, self._snapshot, context.pacer, is_inline=is_inline)
        with young_collections_only(), self._moment.entered():
            again = walk.compare(self._state)
        for array in sorted(self._flat.stable - walk.made):  # another one may have taken the place of an immutable one
            self._note_from_snapshot(_split(self._metas, array, 0, self._metas[array].nbytes), context)
        live = LiveSnapshot(again, is_frozen=True)
        self._compare_bytes(live, context, while_captured(CONTENTS))

    def compare_own(self, snapshot: LiveSnapshot, context: JobContext) -> None:
        """Compare what was read of frozen arrays with what they are now.

        Raises:
            StateChangedError: They differ.
            Stopped: The job was asked to stop.
        """
        promise = "with frozen=True no task or thread may change the arrays until then; save it without frozen=True"
        self._compare_bytes(snapshot, context, f"before the save was committed: {promise}")

    def release_state(self) -> None:
        """Drop the reference to the state."""
        self._state = self._flat.sets = None

    def release(self) -> None:
        """Drop all references."""
        self.release_state()
        self._ranges, self._spare = [], []

    def _note_from_snapshot(self, ranges: Iterable[tuple[int, int, int]], context: JobContext) -> None:
        def note(each: tuple[int, int, int]) -> None:
            context.pacer.pause()
            self._ranges.append(_Range(*each, self._digests_in(self._snapshot, *each)))

        context.run(note, ranges)

    def _compare_bytes(self, snapshot: Snapshot, context: JobContext, message: str) -> None:
        """Compare what was read with what the arrays of a snapshot are now."""

        def compare(each: _Range) -> None:
            context.pacer.pause()
            array, start, nbytes, digests = each
            found = self._digests_in(snapshot, array, start, nbytes)
            if found != digests:
                while found[:_DIGEST_NBYTES] == digests[:_DIGEST_NBYTES]:
                    found, digests = found[_DIGEST_NBYTES:], digests[_DIGEST_NBYTES:]
                    array += 1
                raise changed_array(self._flat, array, message)

        context.run(compare, self._ranges)

    def _digests_in(self, snapshot: Snapshot, array: int, start: int, nbytes: int) -> bytes:
        """Return the digests of a range as a snapshot has it."""
        views = snapshot.view(array, start, nbytes)
        if views is not None and len(views) == 1:
            return _digests(self._metas, array, start, views[0])
        try:
            scratch = self._spare.pop()
        except IndexError:
            scratch = np.empty(_RANGE_NBYTES, np.uint8)
        data = scratch[:nbytes]
        if views is None:
            snapshot.copy_to(data, array, start)
        else:
            np.concatenate(views, out=data)
        found = _digests(self._metas, array, start, data)
        self._spare.append(scratch)
        return found


# --- ranges of bytes --------------------------------------------------------------------------------------------------


def _all_ranges(metas: Sequence[ArrayMeta], without: set[int]) -> Iterator[tuple[int, int, int]]:
    """Yield ranges of all arrays except some large ones: array, start and size."""
    first, nbytes = 0, 0
    for array, meta in enumerate(metas):
        is_small = meta.nbytes < PAGE_NBYTES
        if nbytes and (not is_small or array - first == _RANGE_ARRAYS):
            yield first, 0, nbytes
            nbytes = 0
        if is_small:
            first = first if nbytes else array
            nbytes += padded_nbytes(meta.nbytes)
        elif array not in without:
            yield from _split(metas, array, 0, meta.nbytes)
    if nbytes:
        yield first, 0, nbytes


def _split(metas: Sequence[ArrayMeta], array: int, start: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
    """Split a range as snapshots have it into ranges of limited size: each array, start and size."""
    while nbytes:
        size = metas[array].nbytes
        if size >= PAGE_NBYTES:
            found = min(_RANGE_NBYTES, size - start, nbytes)
            yield array, start, found
            start += found
        elif start >= (padded := padded_nbytes(size)):
            start -= padded
            array += 1
            continue
        else:
            stop, found = array + 1, padded - start
            while found < nbytes and stop - array < _RANGE_ARRAYS:
                found += padded_nbytes(metas[stop].nbytes)
                stop += 1
            found = min(found, nbytes)
            yield array, start, found
            array, start = stop, 0
        nbytes -= found


def _digests(metas: Sequence[ArrayMeta], array: int, start: int, data: Bytes) -> bytes:
    """Return the digests of a range, one for each array; the padding of small ones does not count."""
    if metas[array].nbytes >= PAGE_NBYTES:
        return xxh3_128_digest(data)  # type: ignore[arg-type] # arrays are buffers
    memory = memoryview(data)  # type: ignore[arg-type] # as above
    found = []
    at = -start
    while at < len(memory):
        size = metas[array].nbytes
        found.append(xxh3_128_digest(memory[max(at, 0) : max(at + size, 0)]))
        at += padded_nbytes(size)
        array += 1
    return b"".join(found)
