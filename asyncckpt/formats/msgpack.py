"""state.msgpack: a plain stream of msgpack objects, which any msgpack reader takes to the end.

1. The stream is the index, then `bin`s: the payload, in extents of at most 1 GiB, and padding.
2. The payload holds the arrays in order, each on a 64-byte boundary, from 4 KiB on a 4096-byte one, so that it can be
   mapped. Padding inside an extent is zeros; between extents it is a `bin` of its own.
3. An extent begins on a page. An array that does not fit into what is left of one goes on in the next: only arrays over
   1 GiB have more than one segment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asyncckpt.disk.plan import FilePlan, Piece, Span, align
from asyncckpt.memory import PAGE_NBYTES
from asyncckpt.state.index import IndexEncoder, Segment

if TYPE_CHECKING:
    from asyncckpt.state.index import Index
    from asyncckpt.workers import Pacer

EXTENT_NBYTES: Final = 1 << 30
_SMALL_BOUNDARY: Final = 64
_BIN_HEADER_NBYTES: Final = 5  # a bin32


class _Msgpack:
    file_name = "state.msgpack"

    def plan(self, index: Index, pacer: Pacer, *, extent_nbytes: int = EXTENT_NBYTES) -> FilePlan:
        """Lay out the file; see `asyncckpt.formats.base.Format`."""
        encoder = IndexEncoder(index, pacer)
        sizes = [meta.nbytes for meta in index.arrays]
        # An array has as many segments as it fills extents: known before any of them has its place.
        index_nbytes = encoder.nbytes(sum(-(-nbytes // extent_nbytes) for nbytes in sizes))
        base = _extent_start(index_nbytes)
        segments, extents = _lay_out(sizes, base, extent_nbytes, pacer)
        pieces, offset = [], 0
        for chunk in encoder.encode(segments):
            pieces.append(Piece(offset, len(chunk), chunk))
            offset += len(chunk)
        starts: dict[int, int] = {}  # bytes placed so far of the arrays in more than one segment
        following = iter(segments)
        segment = next(following, None)
        for begin, end in extents:
            header = _padding(begin - _BIN_HEADER_NBYTES - offset) + _bin_header(end - begin)
            pieces.append(Piece(offset, len(header), header))
            while segment is not None and segment.offset < end:
                start = starts.get(segment.array, 0)
                pieces.append(Piece(segment.offset, segment.nbytes, Span(segment.array, start)))
                starts[segment.array] = start + segment.nbytes
                segment = next(following, None)
            offset = end
            pacer.pause()
        if not extents:
            tail = _padding(base - offset)  # the base leaves room for a header, and so for a bin
            pieces.append(Piece(offset, len(tail), tail))
            offset = base
        return FilePlan(nbytes=offset, pieces=pieces, index_offset=0, index_nbytes=index_nbytes)


def _lay_out(
    sizes: list[int], base: int, extent_nbytes: int, pacer: Pacer
) -> tuple[list[Segment], list[tuple[int, int]]]:
    """Place arrays of these sizes, in bytes, from the page boundary `base` on.

    Returns:
        The segments, and the extents as (begin, end).
    """
    segments: list[Segment] = []
    extents: list[tuple[int, int]] = []
    begin = end = base
    for array, nbytes in enumerate(sizes):
        if nbytes == 0:
            continue
        if not array % 4096:
            pacer.pause()
        place = align(end, PAGE_NBYTES if nbytes >= PAGE_NBYTES else _SMALL_BOUNDARY)
        left = nbytes
        if place > begin and place + nbytes > begin + extent_nbytes:
            extents.append((begin, end))
            place = begin = _extent_start(end)
        while left > extent_nbytes:
            segments.append(Segment(array, place, extent_nbytes))
            extents.append((begin, place + extent_nbytes))
            left -= extent_nbytes
            place = begin = _extent_start(place + extent_nbytes)
        segments.append(Segment(array, place, left))
        end = place + left
    if end > begin:
        # The last page is filled inside the extent, so that a file of a single extent needs no padding behind it.
        end = align(end, PAGE_NBYTES)
        extents.append((begin, end))
    return segments, extents


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
