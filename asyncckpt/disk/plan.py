"""The layout of a file, which a format makes and `write_blocks` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Span(NamedTuple):
    """Bytes of a captured array, in C order."""

    array: int
    """The array's number in the index."""
    start: int
    """The position of the first byte. The span may extend beyond an array of less than a page: to zeros up to the next
    multiple of `asyncckpt.runtime.memory.SMALL_BOUNDARY`, and then to the next array, if that is small, too."""


class PlanEntry(NamedTuple):
    """A run of bytes in a file."""

    offset: int
    nbytes: int
    source: Span | bytes
    """Bytes of a captured array, or the bytes themselves."""


class FilePlan(NamedTuple):
    """The layout of one file. Gaps between entries are zeros."""

    nbytes: int
    """Size of the file; that of a state file is a multiple of `asyncckpt.runtime.memory.PAGE_NBYTES`."""
    entries: Sequence[PlanEntry]
    """Sorted by offset, without overlaps."""
    index_offset: int
    """The offset of the index, which is contiguous."""
    index_nbytes: int


def align(offset: int, boundary: int) -> int:
    """Return the next multiple of `boundary` at or after `offset`."""
    return -(-offset // boundary) * boundary
