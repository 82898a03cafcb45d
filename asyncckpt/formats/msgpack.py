"""The format msgpack: state.msgpack is a plain stream of msgpack objects, which any msgpack reader can read to the end.

1. The stream is the index, followed by `bin`s: the payload, in extents of at most 1 GiB, and padding.
2. The payload is the arrays in order, each on a 64-byte boundary. Those of 4 KiB or more are on a 4096-byte boundary,
   so that they can be mapped. Padding inside an extent is zeros; between extents it is a `bin`.
3. An extent begins on a page. An array that does not fit into the rest of an extent begins the next one. Only arrays of
   more than 1 GiB have several segments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asyncckpt.disk.plan import FilePlan, PlanEntry
from asyncckpt.formats.payload import EXTENT_HEADER_NBYTES, Payload, extent_start
from asyncckpt.state.index import IndexEncoder

if TYPE_CHECKING:
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state.index import Index

EXTENT_NBYTES: Final = 1 << 30


file_name: Final = "state.msgpack"


def plan(index: Index, pacer: Pacer, *, extent_nbytes: int = EXTENT_NBYTES) -> FilePlan:
    """Lay out the file; see `asyncckpt.formats.base.Format`."""
    encoder = IndexEncoder(index, pacer)
    sizes = [meta.nbytes for meta in index.arrays]
    pacer.pause()
    # The number of segments of an array is known before they are placed.
    index_nbytes = encoder.nbytes(
        sum(-(-nbytes // extent_nbytes) for batch in pacer.batches(sizes) for nbytes in batch if nbytes)
    )
    base = extent_start(index_nbytes)
    payload = Payload(base, extent_nbytes)
    payload.place(sizes, pacer)
    chunks, offset = [], 0
    for chunk in encoder.encode(payload.segments()):
        chunks.append(PlanEntry(offset, len(chunk), chunk))
        offset += len(chunk)
    for begin, end, runs in payload.extents:
        header = padding(begin - EXTENT_HEADER_NBYTES - offset) + bin_header(end - begin)
        chunks.append(PlanEntry(offset, len(header), header))
        chunks += runs
        offset = end
    if not payload.extents:
        tail = padding(base - offset)  # there is room for a bin
        chunks.append(PlanEntry(offset, len(tail), tail))
        offset = base
    return FilePlan(nbytes=offset, entries=chunks, index_offset=0, index_nbytes=index_nbytes)


def padding(nbytes: int) -> bytes:
    """Return `bin`s of zeros that fill exactly `nbytes` bytes: none, or from 2 bytes to two pages."""
    if nbytes == 0:
        return b""
    if nbytes <= 2 + 0xFF:
        return bytes((0xC4, nbytes - 2)) + bytes(nbytes - 2)
    return b"\xc5" + (nbytes - 3).to_bytes(2, "big") + bytes(nbytes - 3)


def bin_header(nbytes: int) -> bytes:
    """Return what comes before the bytes of a `bin 32`."""
    return b"\xc6" + nbytes.to_bytes(4, "big")
