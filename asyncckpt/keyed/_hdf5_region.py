"""A region: values as HDF5 objects, the bytes of their arrays, and their indexes, each of the three together."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.plan import FilePlan, Piece, Span, align
from asyncckpt.formats._hdf5_file import MetadataFile
from asyncckpt.formats.hdf5 import Mirror
from asyncckpt.keyed._hdf5_catalog import Place, Region, link_name
from asyncckpt.memory import PAGE_NBYTES, SMALL_BOUNDARY
from asyncckpt.state import index as ix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from asyncckpt.disk.blocks import ArrayBytes
    from asyncckpt.disk.manifest import FileRecord
    from asyncckpt.keyed.values import Names
    from asyncckpt.workers import Pacer

    Bytes = NDArray[np.uint8]


_ON_PAGES_NBYTES: Final = 1 << 16  # what the block engine writes from where it lies
_TINY_BOUNDARY: Final = 8


@dataclass(frozen=True, slots=True)
class Value:
    """A value to be written."""

    key: str
    index: ix.Index
    arrays: ArrayBytes
    names: Names


class RegionPlan:
    """Where values will lie."""

    def __init__(self, values: Sequence[Value], base: int, pacer: Pacer, *, max_leaves: int) -> None:
        """Lay out a region.

        Args:
            values: What goes into it.
            base: Where it begins in the file, a multiple of `PAGE_NBYTES` and not in the head.
            pacer: Paused between pieces.
            max_leaves: How many Python leaves are shown as HDF5 objects.

        Raises:
            UnsupportedLeafError: HDF5 cannot hold a value.
        """
        self._values = values
        self._base = base
        self.leaves_left = max_leaves
        file = MetadataFile(pacer, has_root=False)
        starts, mirrors, firsts = [0], [], []
        first = 0
        for value in values:
            name = link_name(value.key)
            mirror = Mirror(file, value.index, pacer, entry=name, max_leaves=self.leaves_left)
            mirror.write_tree()
            self.leaves_left = mirror.leaves_left
            mirrors.append(mirror)
            starts.append(file.count)
            firsts.append(first)
            first += len(value.index.arrays)
        end = file.arrange(base)
        self._extents = [(file.address(begin), file.address(stop)) for begin, stop in pairwise(starts)]
        linked = {name: node.address for name, node in file.root.links or ()}
        self._addresses = [linked.get(link_name(value.key)) for value in values]
        spans: list[Piece] = []
        indexes = []
        for value, mirror, number in zip(values, mirrors, firsts, strict=True):
            segments = []
            for array, meta in enumerate(value.index.arrays):
                if not meta.nbytes:
                    continue
                end = align(end, _boundary(meta.nbytes))
                mirror.datasets[array].place = end
                segments.append(ix.Segment(array, end, meta.nbytes))
                spans.append(Piece(end, meta.nbytes, Span(number + array, 0)))
                end += meta.nbytes
                pacer.pause()
            indexes.append(b"".join(value.index.encode(segments, pacer)))
        pieces = [*file.render(None), *spans]
        self._indexes = []
        for index in indexes:
            end = align(end, 8)
            self._indexes.append((end, len(index)))
            pieces.append(Piece(end, len(index), index))
            end += len(index)
        pieces = [piece._replace(offset=piece.offset - base) for piece in pieces]
        self.plan = FilePlan(align(end, PAGE_NBYTES) - base, pieces, 0, 0)
        """The layout, counted from `base`."""
        self.arrays: ArrayBytes = _Together([value.arrays for value in values], firsts)
        """The bytes of all arrays, by their number in the plan."""

    def places(self, record: FileRecord) -> Iterator[tuple[str, Place]]:
        """Yield each key and where its value lies, once the region has been written."""
        region = Region(self._base, record)
        columns = zip(self._values, self._extents, self._indexes, self._addresses, strict=True)
        for value, (begin, end), (index_offset, index_nbytes), address in columns:
            place = Place(
                region=region,
                begin=begin,
                end=end,
                index_offset=index_offset,
                index_nbytes=index_nbytes,
                address=address,
                array_nbytes=sum(meta.nbytes for meta in value.index.arrays),
                names=value.names,
            )
            yield value.key, place


def _boundary(nbytes: int) -> int:
    """Return what the place of an array is a multiple of. Tiny ones are packed closely: they may be very many."""
    if nbytes >= _ON_PAGES_NBYTES:
        return PAGE_NBYTES
    return SMALL_BOUNDARY if nbytes >= SMALL_BOUNDARY else _TINY_BOUNDARY


class _Together:
    """The arrays of several values, numbered through."""

    def __init__(self, sources: Sequence[ArrayBytes], firsts: Sequence[int]) -> None:
        self._sources = sources
        self._firsts = firsts

    def view(self, array: int, start: int, nbytes: int) -> Sequence[Bytes] | None:
        source, number = self._find(array)
        return source.view(number, start, nbytes)

    def copy_to(self, target: Bytes, array: int, start: int) -> None:
        source, number = self._find(array)
        source.copy_to(target, number, start)

    def _find(self, array: int) -> tuple[ArrayBytes, int]:
        which = bisect_right(self._firsts, array) - 1
        return self._sources[which], array - self._firsts[which]
