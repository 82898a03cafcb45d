"""state.msgpack: a plain stream of msgpack objects, which any msgpack reader takes to the end.

1. The stream is the index, then `bin`s: the payload, in extents of at most 1 GiB, and padding.
2. The payload holds the arrays in order, each on a 64-byte boundary, from 4 KiB on a 4096-byte one, so that it can be
   mapped. Padding inside an extent is zeros; between extents it is a `bin` of its own.
3. An extent begins on a page. An array that does not fit into what is left of one goes on in the next: only arrays over
   1 GiB have more than one segment.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np

from asyncckpt.disk.plan import FilePlan, Piece, Span, align
from asyncckpt.memory import PAGE_NBYTES, SMALL_BOUNDARY
from asyncckpt.state.index import IndexEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from asyncckpt.state.index import Index
    from asyncckpt.workers import Pacer

EXTENT_NBYTES: Final = 1 << 30
_RUN: Final = 256
"""Small arrays that are one piece of the plan, at most."""
_BIN_HEADER_NBYTES: Final = 5  # a bin32


class _Msgpack:
    file_name = "state.msgpack"

    def plan(self, index: Index, pacer: Pacer, *, extent_nbytes: int = EXTENT_NBYTES) -> FilePlan:
        """Lay out the file; see `asyncckpt.formats.base.Format`."""
        encoder = IndexEncoder(index, pacer)
        sizes = [meta.nbytes for meta in index.arrays]
        pacer.pause()
        # An array has as many segments as it fills extents: known before any of them has its place.
        index_nbytes = encoder.nbytes(sum(-(-nbytes // extent_nbytes) for nbytes in sizes if nbytes))
        base = _extent_start(index_nbytes)
        payload = _Payload(base, extent_nbytes)
        payload.place(sizes, pacer)
        pieces, offset = [], 0
        for chunk in encoder.encode(payload.segments()):
            pieces.append(Piece(offset, len(chunk), chunk))
            offset += len(chunk)
        for begin, end, runs in payload.extents:
            header = _padding(begin - _BIN_HEADER_NBYTES - offset) + _bin_header(end - begin)
            pieces.append(Piece(offset, len(header), header))
            pieces += runs
            offset = end
        if not payload.extents:
            tail = _padding(base - offset)  # the base leaves room for a header, and so for a bin
            pieces.append(Piece(offset, len(tail), tail))
            offset = base
        return FilePlan(nbytes=offset, pieces=pieces, index_offset=0, index_nbytes=index_nbytes)


class _Payload:
    """Arrays placed one behind the other, from a page boundary on."""

    def __init__(self, base: int, extent_nbytes: int) -> None:
        self._extent_nbytes = extent_nbytes
        self._begin = self._end = base
        self._runs: list[Piece] = []
        self._columns: tuple[list[int], list[int], list[int]] = ([], [], [])
        self.extents: list[tuple[int, int, list[Piece]]] = []
        """Their begins and ends, and the pieces in them."""

    def segments(self) -> NDArray[np.uint64]:
        """Return the segments, one a row."""
        return np.array(self._columns, np.uint64).T

    def place(self, sizes: Sequence[int], pacer: Pacer) -> None:
        """Place arrays of these sizes, in bytes; small ones in a row are one piece."""
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
            # The last page is filled inside the extent, so that a file of a single extent needs no padding behind it.
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
        self._runs.append(Piece(place, end - place, Span(first, 0)))
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
            self._runs.append(Piece(place, self._end - place, Span(array, start)))
            for column, value in zip(self._columns, (array, place, self._end - place), strict=True):
                column.append(value)

    def _close(self) -> None:
        """End an extent; what follows goes into the next."""
        self.extents.append((self._begin, self._end, self._runs))
        self._runs = []
        self._begin = self._end = _extent_start(self._end)


def _extent_start(offset: int) -> int:
    """Return the first page boundary before which the header of an extent and its padding fit, from `offset` on."""
    start = align(offset + _BIN_HEADER_NBYTES, PAGE_NBYTES)
    return start + PAGE_NBYTES if start - _BIN_HEADER_NBYTES - offset == 1 else start  # a bin has two bytes or more


def _padding(nbytes: int) -> bytes:
    """Return `bin`s of zeros that fill exactly so many bytes: none, or from 2 to two pages."""
    if nbytes == 0:
        return b""
    if nbytes <= 2 + 0xFF:
        return bytes((0xC4, nbytes - 2)) + bytes(nbytes - 2)
    return b"\xc5" + (nbytes - 3).to_bytes(2, "big") + bytes(nbytes - 3)


def _bin_header(nbytes: int) -> bytes:
    return b"\xc6" + nbytes.to_bytes(4, "big")


FORMAT: Final = _Msgpack()
