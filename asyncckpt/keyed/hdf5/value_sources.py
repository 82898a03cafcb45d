"""Where a value of an HDF5 keyed file comes from: a file of ours, memory, or a file that others made."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np

from asyncckpt.keyed.hdf5.data_file import DataFile, MemoryArrays
from asyncckpt.keyed.hdf5.region import Value, array_of
from asyncckpt.keyed.values import build_value, condense, expand, runs_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncckpt.keyed.hdf5.catalog import Place
    from asyncckpt.keyed.values import CapturedValue, Found, Names
    from asyncckpt.runtime.pacing import Pacer

    Bytes = NDArray[np.uint8]

OBJECT_NBYTES: Final = 512
"""What a value takes in a file besides itself: a guess, until it is placed."""


class Placed:
    """A value in a file."""

    __slots__ = ("file", "place")

    def __init__(self, file: DataFile, place: Place) -> None:
        self.file = file
        self.place = place

    @property
    def nbytes(self) -> int:
        """What it takes in the file, in bytes."""
        return self.place.nbytes

    @property
    def payload_nbytes(self) -> int:
        """What of that is its arrays and its index."""
        return self.place.payload_nbytes

    @property
    def names(self) -> Names:
        """The keys of its dicts."""
        return self.place.names


class Held:
    """A small value in memory, in few objects of those that a garbage collection walks over: there may be many."""

    __slots__ = ("_data", "_index", "names", "nbytes", "payload_nbytes")

    def __init__(self, captured: CapturedValue) -> None:
        index = captured.index
        self._index = condense(index)
        self._data: Bytes = np.empty(sum(meta.nbytes for meta in index.arrays), np.uint8)
        start = 0
        for number in range(len(index.arrays)):
            for run in runs_of(captured, number):
                self._data[start : start + len(run)] = run
                start += len(run)
        self.names = captured.names
        self.payload_nbytes = captured.stored_nbytes
        self.nbytes = self.payload_nbytes + OBJECT_NBYTES

    def value(self, key: str) -> Value:
        """Return it as it is to be written."""
        index = expand(self._index)
        ends = accumulate((meta.nbytes for meta in index.arrays), initial=0)
        return Value(key, index, MemoryArrays(self._data, dict(enumerate(ends))), self.names)

    def read(self, pacer: Pacer) -> Found:
        """Return it as a copy."""
        value = self.value("")
        arrays = {number: array_of(meta, value.arrays, number) for number, meta in enumerate(value.index.arrays)}
        return build_value(value.index, arrays, pacer)


class Foreign:
    """An object that others made, in a file of theirs or in one of ours."""

    names = False

    def __init__(self, nbytes: int) -> None:
        self.nbytes = self.payload_nbytes = nbytes


Source = Placed | Held | Foreign
