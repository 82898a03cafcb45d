"""Segments: the table of an index that says where the bytes of its arrays are.

1. Segments lie within their files, overlap no other segment of the same file, and add up to their arrays.
2. Where an index names several files, an array's bytes are its segments in the order of the table. Otherwise they are
   in the order of their offsets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from asyncckpt.runtime.pacing import BATCH_OBJECTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from asyncckpt.runtime.pacing import Pacer

TABLE_ROWS: Final = 2048
ROW: Final = np.dtype([("array", "<u8"), ("offset", "<u8"), ("nbytes", "<u8")])
FILE: Final = np.dtype("<u4")
_MAX_NBYTES: Final = (1 << 63) - 1


class Segment(NamedTuple):
    """A run of an array's bytes in a file."""

    array: int
    offset: int
    nbytes: int
    file: int = 0
    """The number of the file: 0 is the one that holds the index, and 1 the first of `Index.files`."""
    start: int = 0
    """The position of the segment in the bytes of its array. Not stored: an index that is decoded has it."""


def encode_segments(
    segments: Sequence[Segment] | NDArray[np.uint64], pacer: Pacer, *, has_files: bool
) -> tuple[list[bytes], list[bytes]]:
    """Return the tables of segments, and those of the numbers of their files where there are several."""
    tables, files = [], []
    for first in range(0, len(segments), TABLE_ROWS):
        rows = np.asarray(segments[first : first + TABLE_ROWS], "<u8")
        tables.append(rows[:, :3].tobytes())
        if has_files:
            files.append(rows[:, 3].astype(FILE).tobytes())
        pacer.pause()
    return tables, files


def decode_segments(
    tables: Sequence[bytes],
    file_tables: Sequence[bytes] | None,
    array_sizes: list[int],
    file_sizes: Sequence[int],
    pacer: Pacer,
) -> list[Segment]:
    """Decode segments and check what they claim.

    Args:
        tables: The table of segments, in parts.
        file_tables: The numbers of their files, in parts; None if there is only one file.
        array_sizes: The size of the segments of each array, in bytes.
        file_sizes: The size of each file, in bytes.
        pacer: Paused between chunks.

    Returns:
        The segments, sorted by file and offset.

    Raises:
        ValueError: They break a rule.
    """
    if sum(file_sizes) > _MAX_NBYTES:
        raise ValueError(f"files of {sum(file_sizes)} bytes")
    table = np.frombuffer(b"".join(tables), ROW)
    files = np.zeros(len(table), FILE) if file_tables is None else np.frombuffer(b"".join(file_tables), FILE)
    if len(files) != len(table):
        raise ValueError(f"{len(table)} segments have {len(files)} numbers of files")
    if file_tables and (files >= len(file_sizes)).any():
        raise ValueError(f"a segment is in file {files.max()} of {len(file_sizes)}")
    order = np.lexsort((table["offset"], files)) if file_tables else np.argsort(table["offset"], kind="stable")
    table, files = table[order], files[order]
    pacer.pause()
    array, offset, nbytes = (table[name] for name in ROW.names or ())
    size = np.array(file_sizes, np.uint64)[files] if file_tables else np.uint64(file_sizes[0])
    is_wrong = (
        (array >= len(array_sizes)) | (nbytes == 0) | (offset > size) | (nbytes > size - np.minimum(offset, size))
    )
    # Sums beyond 64 bits are wrong already.
    is_before = offset[1:] < offset[:-1] + nbytes[:-1]
    is_wrong[1:] |= is_before & (files[1:] == files[:-1]) if file_tables else is_before
    if is_wrong.any():
        number = int(is_wrong.argmax())
        reason = f"at {offset[number]} with {nbytes[number]} bytes overlaps or leaves the file"
        raise ValueError(f"a segment of array {array[number]} {reason}")
    pacer.pause()
    held = np.zeros(len(array_sizes), np.uint64)
    np.add.at(held, array, nbytes)  # no sum exceeds the size of all files
    pacer.pause()
    for first in range(0, len(array_sizes), TABLE_ROWS):
        expected, found = array_sizes[first : first + TABLE_ROWS], held[first : first + TABLE_ROWS].tolist()
        if expected != found:
            number = next(i for i, size in enumerate(expected) if size != found[i])
            raise ValueError(
                f"array {first + number} of {expected[number]} bytes has segments of {found[number]} bytes"
            )
        pacer.pause()
    if (nbytes == np.array(array_sizes, np.uint64)[array]).all():  # each of them is all of its array
        starts = np.zeros(len(array), np.uint64)
    else:
        starts = _starts(array, nbytes, order if file_tables is not None else None)
    pacer.pause()
    segments: list[Segment] = []
    for first in range(0, len(table), BATCH_OBJECTS):
        columns = (each[first : first + BATCH_OBJECTS].tolist() for each in (array, offset, nbytes, files, starts))
        segments += map(Segment._make, zip(*columns, strict=True))
        pacer.pause()
    return segments


def _starts(
    array: NDArray[np.uint64], nbytes: NDArray[np.uint64], positions: NDArray[np.intp] | None
) -> NDArray[np.uint64]:
    """Return where each segment begins in its array; `positions` are those in the table, if their order counts."""
    by_array = np.argsort(array, kind="stable") if positions is None else np.lexsort((positions, array))
    begins = np.cumsum(nbytes[by_array], dtype=np.uint64) - nbytes[by_array]
    firsts = np.searchsorted(array[by_array], array[by_array])
    starts = np.empty(len(array), np.uint64)
    starts[by_array] = begins - begins[firsts]
    return starts
