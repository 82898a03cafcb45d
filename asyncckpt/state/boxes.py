"""Boxes: arrays that are parts of larger arrays, as processes that share a global array write them.

1. An array with a box has bytes and a shape of its own, and lies at the box's start in another array, the whole. The
   whole has the global shape and no bytes.
2. The boxes of a whole have its dtype, lie within its shape, are not empty, and tile it: every element is in exactly
   one of them. So nothing of a whole is left unwritten when it is read.
"""

from __future__ import annotations

import math
import reprlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
import numpy as np

from asyncckpt.state.packed import read_row
from asyncckpt.state.segments import TABLE_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from asyncckpt.arrays.meta import ArrayMeta
    from asyncckpt.runtime.pacing import Pacer

_MAX_BOXES: Final = 1 << 14
"""Boxes in one whole: the check that they do not overlap may compare each with each."""
_MAX_ROW: Final = 66  # the two arrays and 64 dimensions


class Box(NamedTuple):
    """Where an array lies in another one."""

    whole: int
    """The number of the array that it is a part of."""
    start: tuple[int, ...]
    """The position of its first element there, one number for each dimension."""

    def slices(self, shape: Sequence[int]) -> tuple[Any, ...]:
        """Return the index of a part of this shape in the whole; it selects an array also where that is 0-d."""
        return (*(slice(low, low + length) for low, length in zip(self.start, shape, strict=True)), ...)


def encode_boxes(boxes: Mapping[int, Box], pacer: Pacer) -> list[bytes]:
    """Return the tables of boxes: rows of the part's number, the whole's, and the start."""
    rows = [(part, box.whole, *box.start) for part, box in boxes.items()]
    tables = []
    for first in range(0, len(rows), TABLE_ROWS):
        tables.append(msgpack.packb(rows[first : first + TABLE_ROWS]))
        pacer.pause()
    return tables


def decode_boxes(tables: Sequence[bytes], arrays: Sequence[ArrayMeta], pacer: Pacer) -> dict[int, Box]:
    """Decode boxes and check what they claim.

    Raises:
        ValueError: They break a rule.
        msgpack.exceptions.UnpackException: A table cannot be decoded.
    """
    boxes: dict[int, Box] = {}
    parts: dict[int, list[int]] = {}
    for row in _rows(tables, pacer):
        part, box = _box(row, arrays)
        if part in boxes:
            raise ValueError(f"array {part} has two boxes")
        boxes[part] = box
        parts.setdefault(box.whole, []).append(part)
    if nested := parts.keys() & boxes.keys():
        raise ValueError(f"array {min(nested)} has a box, and holds boxes")
    for whole, members in parts.items():
        _check_tiling(whole, arrays[whole].shape, [(boxes[part].start, arrays[part].shape) for part in members], pacer)
    return boxes


def _rows(tables: Sequence[bytes], pacer: Pacer) -> Iterator[Any]:
    for table in tables:
        pacer.pause()
        for batch in pacer.batches(read_row(table, pacer, max_array_len=_MAX_ROW)):
            yield from batch


def _box(row: Any, arrays: Sequence[ArrayMeta]) -> tuple[int, Box]:
    if not isinstance(row, list | tuple) or any(type(n) is not int or n < 0 for n in row):
        raise ValueError(f"a box is {reprlib.repr(row)}")
    part, whole, *start = row
    meta, target = arrays[part], arrays[whole]
    if meta.dtype is not target.dtype or not len(start) == len(meta.shape) == len(target.shape):
        raise ValueError(f"array {part} has another dtype or number of dimensions than array {whole}, which it is in")
    ends = map(int.__add__, start, meta.shape)
    if 0 in meta.shape or any(end > length for end, length in zip(ends, target.shape, strict=True)):
        raise ValueError(f"the box of array {part} is empty, or leaves array {whole}")
    return part, Box(whole, tuple(start))


def _check_tiling(
    whole: int, shape: tuple[int, ...], boxes: list[tuple[tuple[int, ...], tuple[int, ...]]], pacer: Pacer
) -> None:
    """Check that boxes, each a start and a shape within that of the whole, cover all of it and do not overlap."""
    if len(boxes) > _MAX_BOXES:
        raise ValueError(f"array {whole} has {len(boxes)} boxes, more than {_MAX_BOXES}")
    if sum(math.prod(lengths) for _, lengths in boxes) != math.prod(shape):
        raise ValueError(f"the boxes of array {whole} do not cover it, or overlap")
    if not shape:
        return
    starts, lengths = (np.array(column, np.int64) for column in zip(*boxes, strict=True))
    axis = max(range(len(shape)), key=lambda number: len(np.unique(starts[:, number])))
    order = np.argsort(starts[:, axis])
    starts, ends = starts[order], (starts + lengths)[order]
    # A box can only overlap those that begin before its end on the axis.
    stops = np.searchsorted(starts[:, axis], ends[:, axis]).tolist()
    for batch in pacer.batches(enumerate(stops, 1)):
        for first, stop in batch:
            is_before = (starts[first:stop] < ends[first - 1]).all(axis=1)
            if (is_before & (ends[first:stop] > starts[first - 1]).all(axis=1)).any():
                raise ValueError(f"boxes of array {whole} overlap")
            pacer.pause()
