"""Where the value of each key of an HDF5 store is, and how much the values take together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.keyed.hdf5.catalog import ForeignObject
from asyncckpt.keyed.values import PackedValue
from asyncckpt.runtime.pacing import Pacer, discard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncckpt.keyed.hdf5.catalog import Extent
    from asyncckpt.keyed.hdf5.native_file import NativeFile
    from asyncckpt.keyed.key_tree import KeyTree

OBJECT_NBYTES: Final = 512
"""An estimate of what a value takes in a file besides itself, until it has been written."""


class InFile(NamedTuple):
    """A value in a file of ours."""

    file: NativeFile
    extent: Extent


Source = InFile | PackedValue | ForeignObject
"""Where a value is. A `PackedValue` is in memory. A `ForeignObject` is in HDF5 objects that libhdf5 reads, in a file of
another program or in one of ours."""


class ValueTable:
    """The keys in their order, each with the source of its value.

    Attributes:
        sources: The sources. To be changed by `set` and `delete` only.
        key_trees: The keys, each with the key tree of its value; see `Store.entries`.
        file_nbytes: What the values take in a file, in bytes.
        payload_nbytes: How much of that is their arrays and nodes.
        memory_nbytes: How much of `file_nbytes` is of values in memory.
        held_nbytes: How much memory those take.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources: dict[str, Source] = {}
        self.key_trees: dict[str, KeyTree] = {}
        self.file_nbytes = self.payload_nbytes = self.memory_nbytes = self.held_nbytes = 0
        for key, source in sources.items():
            self.set(key, source)

    def set(self, key: str, source: Source) -> None:
        """Add a key, or replace its source; it keeps its position."""
        before = self.sources.get(key)
        if before is not None:
            self._count(before, -1)
        self._count(source, 1)
        self.sources[key] = source
        if isinstance(source, InFile):
            self.key_trees[key] = source.extent.key_tree
        else:
            self.key_trees[key] = source.key_tree if isinstance(source, PackedValue) else False

    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""
        source = self.sources.pop(key, None)
        if source is not None:
            self._count(source, -1)
            del self.key_trees[key]

    def clear(self) -> None:
        """Remove all keys, which may take long."""
        discard(self.sources, Pacer())

    def sizes(self, key: str | None) -> tuple[int, int]:
        """Return what the value of a key takes in a file, and how much of that is its payload; 0 if it is not there."""
        source = None if key is None else self.sources.get(key)
        return (0, 0) if source is None else _sizes(source)

    def _count(self, source: Source, sign: int) -> None:
        file_nbytes, payload_nbytes = _sizes(source)
        self.file_nbytes += sign * file_nbytes
        self.payload_nbytes += sign * payload_nbytes
        if isinstance(source, PackedValue):
            self.memory_nbytes += sign * file_nbytes
            self.held_nbytes += sign * (source.held_nbytes + OBJECT_NBYTES)


def _sizes(source: Source) -> tuple[int, int]:
    if isinstance(source, InFile):
        return source.extent.nbytes, source.extent.payload_nbytes
    if isinstance(source, ForeignObject):
        return source.nbytes, source.nbytes
    return source.stored_nbytes + OBJECT_NBYTES, source.stored_nbytes
