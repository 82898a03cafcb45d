"""What lies where in a file: the one thing that a format tells the block engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Span(NamedTuple):
    """Bytes of a captured array, in C order."""

    array: int
    """The array's number in the index."""
    start: int
    """The first of the bytes. They may go on behind the end of an array smaller than a page: there are zeros up to
    the next multiple of `asyncckpt.runtime.memory.SMALL_BOUNDARY`, and then the next array, if that is as small."""


class PlanEntry(NamedTuple):
    """A run of bytes in a file."""

    offset: int
    nbytes: int
    source: Span | bytes
    """The captured array it comes from, or the bytes themselves."""


class FilePlan(NamedTuple):
    """The layout of one state file. What no entry covers is zeros."""

    nbytes: int
    """Size of the file, a multiple of `asyncckpt.runtime.memory.PAGE_NBYTES`."""
    entries: Sequence[PlanEntry]
    """Sorted by offset, without overlaps."""
    index_offset: int
    """Where the index begins; its bytes lie together."""
    index_nbytes: int


def align(offset: int, boundary: int) -> int:
    """Return the next multiple of `boundary` at or after `offset`."""
    return -(-offset // boundary) * boundary
