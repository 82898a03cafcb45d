"""The payload of a state file: the arrays one after the other, in every format.

1. An array of a page or more begins on a page, so that it can be mapped, and written from its own memory. A smaller one
   begins on a multiple of `SMALL_BOUNDARY`. Consecutive small arrays are one entry of the plan.
2. An extent begins on a page. An array that does not fit into the rest of an extent begins the next one. Only arrays
   that are larger than an extent have several segments.
"""

from __future__ import annotations

from array import array as Column  # noqa: N812 - it is a class
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np

from asyncckpt.disk.plan import PlanEntry, Span, align
from asyncckpt.runtime.memory import PAGE_NBYTES, SMALL_BOUNDARY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from asyncckpt.runtime.pacing import Pacer

EXTENT_HEADER_NBYTES: Final = 5
"""Room before an extent: a msgpack `bin 32`."""
_RUN: Final = 256  # small arrays in one entry, at most


class Payload:
    """The layout of arrays from a page boundary on."""

    def __init__(self, base: int, extent_nbytes: int) -> None:
        self._extent_nbytes = extent_nbytes
        self._begin = self._end = base
        self._runs: list[PlanEntry] = []
        self._columns = Column("Q"), Column("Q"), Column("Q")
        self.extents: list[tuple[int, int, list[PlanEntry]]] = []
        """The begin, the end and the entries of each extent."""

    def segments(self) -> NDArray[np.uint64]:
        """Return the segments as rows of array number, offset and size."""
        return np.stack([np.array(each, np.uint64) for each in self._columns], axis=1)

    def place(self, sizes: Sequence[int], pacer: Pacer) -> None:
        """Place arrays of these sizes, in bytes."""
        first = 0
        for array, nbytes in enumerate(sizes):
            if nbytes < PAGE_NBYTES and array - first < _RUN:
                continue
            self._place_small(sizes, first, array)
            pacer.pause()
            first = array
            if nbytes >= PAGE_NBYTES:
                self._place_large(array, nbytes)
                first += 1
        self._place_small(sizes, first, len(sizes))
        if self._end > self._begin:
            # The extent fills its last page, so that a file of a single extent needs no padding after it.
            self._end = align(self._end, PAGE_NBYTES)
            self._close()

    def _place_small(self, sizes: Sequence[int], first: int, stop: int) -> None:
        place = align(self._end, SMALL_BOUNDARY)
        lengths = sizes[first:stop]
        rooms = (-(-nbytes // SMALL_BOUNDARY) * SMALL_BOUNDARY for nbytes in lengths)
        *offsets, end = accumulate(rooms, initial=place)
        if end == place:  # nothing but empty arrays
            return
        if end > self._begin + self._extent_nbytes:
            if stop - first > 1:
                middle = (first + stop) // 2
                self._place_small(sizes, first, middle)
                self._place_small(sizes, middle, stop)
            else:
                self._close()
                self._place_small(sizes, first, stop)
            return
        self._runs.append(PlanEntry(place, end - place, Span(first, 0)))
        rows = zip(range(first, stop), offsets, lengths, strict=True)
        columns = zip(*(row for row in rows if row[2]), strict=True)  # empty arrays have no segment
        for column, values in zip(self._columns, columns, strict=True):
            column.extend(values)
        self._end = end

    def _place_large(self, array: int, nbytes: int) -> None:
        place = align(self._end, PAGE_NBYTES)
        if place > self._begin and place + nbytes > self._begin + self._extent_nbytes:
            self._close()
            place = self._begin
        for start in range(0, nbytes, self._extent_nbytes):
            if start:
                self._close()
                place = self._begin
            self._end = place + min(nbytes - start, self._extent_nbytes)
            self._runs.append(PlanEntry(place, self._end - place, Span(array, start)))
            for column, value in zip(self._columns, (array, place, self._end - place), strict=True):
                column.append(value)

    def _close(self) -> None:
        """End the extent, and begin the next one."""
        self.extents.append((self._begin, self._end, self._runs))
        self._runs = []
        self._begin = self._end = extent_start(self._end)


def extent_start(offset: int) -> int:
    """Return the first page boundary after `offset` that leaves room for padding and the header of an extent."""
    start = align(offset + EXTENT_HEADER_NBYTES, PAGE_NBYTES)
    return start + PAGE_NBYTES if start - EXTENT_HEADER_NBYTES - offset == 1 else start  # a bin has two bytes or more
