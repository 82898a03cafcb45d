"""A region: the HDF5 objects of values and, behind all of those, the arrays and the index of each value in turn."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np
from xxhash import xxh3_128

from asyncckpt.disk.manifest import FileRecord
from asyncckpt.disk.plan import FilePlan, PlanEntry, Span, align
from asyncckpt.formats.hdf5.layout import Mirror
from asyncckpt.formats.hdf5.metadata import MetadataFile
from asyncckpt.keyed.hdf5.catalog import Extent, Region, link_name
from asyncckpt.runtime.memory import PAGE_NBYTES, SMALL_BOUNDARY
from asyncckpt.state.segments import Segment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from asyncckpt.disk.write_blocks import ArrayBytes
    from asyncckpt.keyed.values import CapturedValue
    from asyncckpt.runtime.pacing import Pacer

    Bytes = NDArray[np.uint8]


_ON_PAGES_NBYTES: Final = 1 << 16  # arrays from this size on are written from where they are, without a copy
_TINY_BOUNDARY: Final = 8
SMALL_NBYTES: Final = 1 << 18
"""The size up to which a value is read and verified as a whole, and has a digest of its own."""


class RegionPlan:
    """The layout of a region."""

    def __init__(self, values: Mapping[str, CapturedValue], base: int, pacer: Pacer, *, max_leaves: int) -> None:
        """Lay out a region.

        Args:
            values: Its values, by their keys.
            base: Its offset in the file, a multiple of `PAGE_NBYTES` behind the head.
            pacer: Paused between chunks.
            max_leaves: How many Python leaves get HDF5 objects at most.

        Raises:
            UnsupportedLeafError: HDF5 cannot hold a value.
        """
        self._base = base
        self.leaves_left = max_leaves
        file = MetadataFile(pacer, has_root=False)
        starts, mirrors, names = [0], [], [link_name(key).encode() for key in values]
        indexes = [value.index for value in values.values()]
        firsts = list(accumulate((len(index.arrays) for index in indexes), initial=0))
        for name, index in zip(names, indexes, strict=True):
            mirror = Mirror(file, index, pacer, entry=name, max_leaves=self.leaves_left)
            mirror.write_tree()
            self.leaves_left = mirror.leaves_left
            mirrors.append(mirror)
            starts.append(file.count)
        end = file.arrange(base)
        addresses = {name: node.address for name, node in file.root.links or ()}
        chunks: list[PlanEntry] = []
        self._extents: list[tuple[str, Extent, int]] = []
        for number, (key, value) in enumerate(values.items()):
            index, segments, begin = indexes[number], list[Segment](), None
            end = align(end, 8)
            for array, meta in enumerate(index.arrays):
                if not meta.nbytes:
                    continue
                end = align(end, _boundary(meta.nbytes))
                mirrors[number].datasets[array].data_address = end
                segments.append(Segment(array, end, meta.nbytes))
                begin = end if begin is None else begin
                chunks.append(PlanEntry(end, meta.nbytes, Span(firsts[number] + array, 0)))
                end += meta.nbytes
                pacer.pause()
            encoded = b"".join(index.encode(segments, pacer))
            end = align(end, 8)
            extent = Extent(
                region=Region(base, FileRecord(0, b"")),  # not known yet
                begin=file.address(starts[number]),
                end=file.address(starts[number + 1]),
                index_offset=end,
                index_nbytes=len(encoded),
                address=addresses.get(names[number]),
                array_nbytes=sum(meta.nbytes for meta in index.arrays),
                key_tree=value.key_tree,
                data_offset=None,
                digest=None,
            )
            self._extents.append((key, extent, end if begin is None else begin))
            chunks.append(PlanEntry(end, len(encoded), encoded))
            end += len(encoded)
        chunks = [*file.render(None), *chunks]  # now that the offsets of the arrays are known
        chunks = [chunk._replace(offset=chunk.offset - base) for chunk in chunks]
        self.plan = FilePlan(align(end, PAGE_NBYTES) - base, chunks, 0, 0)
        """The layout, with offsets relative to `base`."""
        self.arrays: ArrayBytes = _JoinedArrays([value.snapshot for value in values.values()], firsts[:-1])
        """The bytes of all arrays, by their numbers in the plan."""

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

    def extents(self, record: FileRecord, image: Bytes | None, pacer: Pacer) -> Iterator[tuple[str, Extent]]:
        """Yield each key and the extent of its value, once the region has been written.

        Args:
            record: The size and the digests of the region.
            image: The bytes of a region of small values.
            pacer: Paused between values.
        """
        region = Region(self._base, record)
        for key, extent, data_offset in self._extents:
            pacer.pause()
            digest = None
            if image is not None:
                runs = (extent.begin, extent.end), (data_offset, extent.index_offset + extent.index_nbytes)
                digest = digest_runs(*(image[begin - self._base : end - self._base].data for begin, end in runs))
            small_offset = None if image is None else data_offset
            yield key, extent._replace(region=region, data_offset=small_offset, digest=digest)


def digest_runs(objects: bytes | memoryview, data: bytes | memoryview) -> bytes:
    """Return the digest of a small value, which covers its HDF5 objects, its arrays and its index."""
    digest = xxh3_128(objects)
    digest.update(data)
    return digest.digest()


def _boundary(nbytes: int) -> int:
    """Return the alignment of an array. Tiny ones are packed closely, because there may be very many."""
    if nbytes >= _ON_PAGES_NBYTES:
        return PAGE_NBYTES
    return SMALL_BOUNDARY if nbytes >= SMALL_BOUNDARY else _TINY_BOUNDARY


class _JoinedArrays:
    """The arrays of several values, with consecutive numbers."""

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
