"""A region: values as HDF5 objects at their places in a file, their indexes, and the bytes of their arrays.

libhdf5 writes the objects into memory, at the addresses that they will have in the file; it never sees the file itself.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from asyncckpt.disk.plan import FilePlan, Piece, Span, align
from asyncckpt.formats._hdf5_file import MetadataFile
from asyncckpt.formats._sparse import SparseFile
from asyncckpt.formats.hdf5 import Mirror, merge
from asyncckpt.keyed._hdf5_catalog import Place, Region, link_name
from asyncckpt.memory import PAGE_NBYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from asyncckpt.disk.blocks import ArrayBytes
    from asyncckpt.disk.manifest import FileRecord
    from asyncckpt.keyed.values import Names
    from asyncckpt.state.index import Index
    from asyncckpt.workers import Pacer

    Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Value:
    """A value to be written."""

    key: str
    index: Index
    arrays: ArrayBytes
    names: Names


class _Extent(NamedTuple):
    begin: int
    end: int
    index_offset: int
    index_nbytes: int
    address: int | None


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
        self._pacer = pacer
        self.leaves_left = max_leaves
        self._pieces: list[Piece] = []
        self._extents: list[_Extent] = []
        file = SparseFile(pacer)
        indexes = self._mirror(file)
        offset = file.nbytes
        for number, (extent, index) in enumerate(zip(self._extents, indexes, strict=True)):
            offset = align(offset, 8)
            nbytes = len(index)
            self._extents[number] = extent._replace(index_offset=offset, index_nbytes=nbytes)
            self._pieces.append(Piece(offset, nbytes, index))
            offset += nbytes
        self._pieces.sort(key=lambda piece: piece.offset)
        merged = merge(self._runs(file), self._pieces, pacer)
        pieces = [piece._replace(offset=piece.offset - base) for piece in merged]
        self.plan = FilePlan(align(offset, PAGE_NBYTES) - base, pieces, 0, 0)
        """The layout, counted from `base`."""
        self.arrays: ArrayBytes = _Together([value.arrays for value in values], self._firsts)
        """The bytes of all arrays, by their number in the plan."""

    def places(self, record: FileRecord) -> Iterator[tuple[str, Place]]:
        """Yield each key and where its value lies, once the region has been written."""
        region = Region(self._base, record)
        for value, extent in zip(self._values, self._extents, strict=True):
            array_nbytes = sum(meta.nbytes for meta in value.index.arrays)
            yield (
                value.key,
                Place(region=region, array_nbytes=array_nbytes, names=value.names, **extent._asdict()),
            )

    def _mirror(self, file: SparseFile) -> list[bytes]:
        """Write the HDF5 objects; return the encoded indexes."""
        indexes = []
        self._firsts = []
        first = 0
        metadata = MetadataFile(file, begin=self._base)
        try:
            for value in self._values:
                begin = metadata.end
                name = link_name(value.key)
                mirror = Mirror(metadata, value.index, self._pacer, entry=name, max_leaves=self.leaves_left)
                mirror.write_tree()
                self.leaves_left = mirror.leaves_left
                self._extents.append(_Extent(begin, metadata.end, 0, 0, metadata.address_of(name)))
                self._firsts.append(first)
                for piece in mirror.spans:
                    assert isinstance(piece.source, Span)  # noqa: S101 - a mirror's spans are
                    self._pieces.append(piece._replace(source=Span(first + piece.source.array, piece.source.start)))
                first += len(value.index.arrays)
                indexes.append(b"".join(value.index.encode(mirror.segments, self._pacer)))
        finally:
            metadata.close()
        return indexes

    def _runs(self, file: SparseFile) -> Iterator[tuple[int, bytes]]:
        """Yield what HDF5 wrote into the region; the rest is only its own idea of the head."""
        for start, data in file.runs():
            skipped = max(self._base - start, 0)
            if skipped < len(data):
                yield start + skipped, data[skipped:]


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
