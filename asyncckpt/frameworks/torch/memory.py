"""The memory of tensors on the CPU, as sources and as targets.

1. It is seen through a numpy view that is made of the storage's address. `tensor.numpy()` would make the storage
   impossible to resize, for ever.
2. The view keeps the storage alive, and not the tensor, which may get another storage (`tensor.data = ...`). A storage
   that is resized frees its memory even so: each read checks its address and size first. What a restore fills is
   checked when it begins, because no task may use the state until it has ended.
3. The version of a tensor that was filled is counted up, so that a backward pass that needs its former contents fails.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from torch.autograd.graph import increment_version

from asyncckpt.arrays.source import copy_bytes
from asyncckpt.arrays.strided import flat_bytes, scatter
from asyncckpt.frameworks.torch.dtypes import tensor_of
from asyncckpt.frameworks.torch.parts import freed, reach

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from asyncckpt.arrays.source import Buffer

    Bytes = NDArray[np.uint8]

_VIEWS: Final = {1: "|u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: "<c16"}
"""By the size of an element, a dtype of numpy in which memory is moved unchanged."""


Place: TypeAlias = "tuple[int, torch.dtype, torch.Size] | tuple[int, torch.dtype, torch.Size, tuple[int, ...]]"
"""Where the elements of a tensor lie: address, dtype, shape, and strides in elements if it is not contiguous."""


def place_of(tensor: torch.Tensor) -> Place:
    """Return where the elements of a tensor on the CPU lie."""
    place = (tensor.data_ptr(), tensor.dtype, tensor.shape)
    return place if tensor.is_contiguous() else (*place, tensor.stride())


class Memory:
    """Memory of a storage, as numpy's array interface describes it. Arrays that show it keep the storage alive."""

    __slots__ = ("__array_interface__", "_storage")

    def __init__(self, storage: torch.UntypedStorage, place: Place) -> None:
        address, dtype, shape, *strided = place
        itemsize = dtype.itemsize
        # The stride of a dimension of at most one element is not used, and may be any number.
        strides = [
            stride * itemsize if size > 1 else itemsize
            for strides in strided
            for stride, size in zip(strides, shape, strict=True)
        ]
        self._storage = storage
        self.__array_interface__ = {
            "version": 3,
            "typestr": _VIEWS[itemsize],
            "shape": tuple(shape),
            "strides": tuple(strides) if strided else None,
            "data": (address, False),
        }


class TensorSource(NamedTuple):
    """The memory of a tensor on the CPU.

    One is made for each tensor of each save, so it is a tuple, and as little as possible is done before it is read.
    """

    nbytes: int
    storage: torch.UntypedStorage
    base: int
    """The address of the storage."""
    place: Place

    def _array(self) -> NDArray[Any]:
        _, dtype, shape, *strided = self.place
        self._check(reach(shape, strided[0]) * dtype.itemsize if strided else self.nbytes)
        return np.asarray(Memory(self.storage, self.place))

    def _check(self, length: int) -> None:
        """Check that the storage still has the memory, in which the elements take so many bytes."""
        nbytes, storage, base, place = self
        if storage.data_ptr() != base or (nbytes and storage.nbytes() < place[0] - base + length):
            raise freed(self, place[2])

    def view(self, start: int, nbytes: int) -> Bytes | None:
        data = flat_bytes(self._array())
        return None if data is None else data[start : start + nbytes]

    def copy_to(self, target: Bytes, start: int) -> None:
        copy_bytes(self._array(), start, target)

    def buffer(self) -> Buffer:
        nbytes, storage, base, place = self
        if len(place) != _CONTIGUOUS or not nbytes:
            return self._array().tobytes()
        # As `view` does, and many times faster than to make an array.
        if storage.data_ptr() != base or storage.nbytes() < place[0] - base + nbytes:
            self._check(nbytes)
        memory: Buffer = _type_of_memory(nbytes).from_address(place[0])
        return memory


_CONTIGUOUS: Final = 3  # the length of a place without strides
_type_of_memory: Final[Callable[[int], Any]] = lru_cache(maxsize=256)(ctypes.c_char.__mul__)
"""Returns the ctypes type of so many bytes of memory."""


class FilledTarget:
    """A tensor on the CPU that is filled in place."""

    def __init__(self, tensor: torch.Tensor, array: NDArray[Any], *, is_swapped: bool) -> None:
        self._tensor = tensor
        self._filled = array
        self._is_swapped = is_swapped

    @property
    def array(self) -> NDArray[Any] | None:
        return self._filled

    def memory(self) -> Bytes | None:
        return flat_bytes(self._filled)

    def store(self, start: int, data: Bytes) -> None:
        scatter(self._filled, start, data)

    def finish(self) -> torch.Tensor:
        if self._is_swapped:
            self._filled.byteswap(inplace=True)
        increment_version(self._tensor)
        return self._tensor


class CopiedTarget:
    """A tensor that numpy cannot show, whose new contents are collected on the CPU first."""

    def __init__(self, tensor: torch.Tensor, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._tensor = tensor
        self._filled = array
        self._data = np.empty(shape, dtype)

    @property
    def array(self) -> NDArray[Any] | None:
        """Its elements' places, not to be read: on the CPU or a device, addresses tell what shares memory."""
        return self._filled

    def memory(self) -> Bytes | None:
        return flat_bytes(self._data)

    def store(self, start: int, data: Bytes) -> None:
        scatter(self._data, start, data)

    def finish(self) -> torch.Tensor:
        with torch.no_grad():
            self._tensor.copy_(tensor_of(self._data, self._tensor.dtype))
        return self._tensor
