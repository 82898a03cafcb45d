"""A region: values as HDF5 objects, and behind all of those, value by value, the bytes of its arrays and its index."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from xxhash import xxh3_128

from asyncckpt.arrays.strided import flat_bytes, scatter
from asyncckpt.disk.plan import FilePlan, PlanEntry, Span, align
from asyncckpt.formats.hdf5.layout import Mirror
from asyncckpt.formats.hdf5.metadata import MetadataFile
from asyncckpt.keyed.hdf5.catalog import Place, Region, link_name
from asyncckpt.runtime.memory import PAGE_NBYTES, SMALL_BOUNDARY
from asyncckpt.state.segments import Segment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from asyncckpt.arrays.meta import ArrayMeta
    from asyncckpt.disk.manifest import FileRecord
    from asyncckpt.disk.write_blocks import ArrayBytes
    from asyncckpt.keyed.values import Names
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state import index as ix

    Bytes = NDArray[np.uint8]


_ON_PAGES_NBYTES: Final = 1 << 16  # what the block engine writes from where it lies
_TINY_BOUNDARY: Final = 8
SMALL_NBYTES: Final = 1 << 18
"""A value of at most so much is read and verified as a whole, and has a digest of its own."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value to be written."""

    key: str
    index: ix.Index
    arrays: ArrayBytes
    names: Names

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays and of its tree."""
        return sum(meta.nbytes for meta in self.index.arrays) + sum(map(len, self.index.chunks))

    @property
    def is_small(self) -> bool:
        """Whether it has a digest of its own."""
        return self.nbytes <= SMALL_NBYTES


class RegionPlan:
    """Where values will lie."""

    def __init__(self, values: Sequence[Value], base: int, pacer: Pacer, *, max_leaves: int) -> None:
        """Lay out a region.

        Args:
            values: What goes into it.
            base: Where it begins in the file, a multiple of `PAGE_NBYTES` and not in the head.
            pacer: Paused between chunks.
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
        chunks: list[PlanEntry] = []
        self._indexes = []
        self._data_offsets = []
        for value, mirror, number in zip(values, mirrors, firsts, strict=True):
            segments = []
            end = align(end, 8)
            begin = None
            for array, meta in enumerate(value.index.arrays):
                if not meta.nbytes:
                    continue
                end = align(end, _boundary(meta.nbytes))
                mirror.datasets[array].place = end
                segments.append(Segment(array, end, meta.nbytes))
                begin = end if begin is None else begin
                chunks.append(PlanEntry(end, meta.nbytes, Span(number + array, 0)))
                end += meta.nbytes
                pacer.pause()
            index = b"".join(value.index.encode(segments, pacer))
            end = align(end, 8)
            self._indexes.append((end, len(index)))
            self._data_offsets.append(end if begin is None else begin)
            chunks.append(PlanEntry(end, len(index), index))
            end += len(index)
        chunks = [*file.render(None), *chunks]  # now that it is known where the arrays lie
        chunks = [chunk._replace(offset=chunk.offset - base) for chunk in chunks]
        self.plan = FilePlan(align(end, PAGE_NBYTES) - base, chunks, 0, 0)
        """The layout, counted from `base`."""
        self.arrays: ArrayBytes = _Together([value.arrays for value in values], firsts)
        """The bytes of all arrays, by their number in the plan."""

    def image(self, pacer: Pacer) -> Bytes:
        """Return the bytes of the region, which is made of small values."""
        image = np.zeros(self.plan.nbytes, np.uint8)
        for batch in pacer.batches(self.plan.entries):
            for offset, nbytes, source in batch:
                target = image[offset : offset + nbytes]
                if isinstance(source, Span):
                    self.arrays.copy_to(target, source.array, source.start)
                else:
                    target[:] = np.frombuffer(source, np.uint8)
        return image

    def places(self, record: FileRecord, image: Bytes | None, pacer: Pacer) -> Iterator[tuple[str, Place]]:
        """Yield each key and where its value lies, once the region has been written; with its image, if it was made."""
        region = Region(self._base, record)
        columns = zip(self._values, self._extents, self._indexes, self._addresses, self._data_offsets, strict=True)
        for value, (begin, end), (index_offset, index_nbytes), address, data_offset in columns:
            pacer.pause()
            digest = None
            if image is not None:
                runs = (begin, end), (data_offset, index_offset + index_nbytes)
                digest = digest_runs(*(image[start - self._base : stop - self._base].data for start, stop in runs))
            place = Place(
                region=region,
                begin=begin,
                end=end,
                index_offset=index_offset,
                index_nbytes=index_nbytes,
                address=address,
                array_nbytes=sum(meta.nbytes for meta in value.index.arrays),
                names=value.names,
                data_offset=None if image is None else data_offset,
                digest=digest,
            )
            yield value.key, place


def digest_runs(objects: bytes | memoryview, data: bytes | memoryview) -> bytes:
    """Return the digest of a small value: of its HDF5 objects, and of its arrays and its index."""
    digest = xxh3_128(objects)
    digest.update(data)
    return digest.digest()


def array_of(meta: ArrayMeta, source: ArrayBytes, number: int) -> NDArray[Any]:
    """Return an array of a source, as a copy."""
    made: NDArray[Any] = np.ndarray(meta.shape, meta.dtype)
    memory = flat_bytes(made)
    if memory is not None:
        source.copy_to(memory, number, 0)
    elif meta.nbytes:
        data = np.empty(meta.nbytes, np.uint8)
        source.copy_to(data, number, 0)
        scatter(made, 0, data)
    return made


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
