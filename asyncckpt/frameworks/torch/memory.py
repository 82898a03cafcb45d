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
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch.autograd.graph import increment_version

from asyncckpt.arrays.source import copy_bytes
from asyncckpt.arrays.strided import flat_bytes, scatter
from asyncckpt.frameworks.torch.dtypes import tensor_of
from asyncckpt.frameworks.torch.parts import freed, reach

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from asyncckpt.arrays.source import Buffer

    Bytes = NDArray[np.uint8]

_VIEWS: Final = {1: "|u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: "<c16"}
"""By the size of an element, a dtype of numpy in which memory is moved unchanged."""


class _Memory:
    """Memory of a storage, as numpy's array interface describes it. Arrays that show it keep the storage alive."""

    __slots__ = ("__array_interface__", "_storage")

    def __init__(self, storage: torch.UntypedStorage, interface: dict[str, object]) -> None:
        self._storage = storage
        self.__array_interface__ = interface


def memory_of(
    storage: torch.UntypedStorage, address: int, itemsize: int, shape: Sequence[int], strides: Sequence[int] | None
) -> NDArray[Any]:
    """Return a view of elements in a storage, the first of which has an address.

    Args:
        storage: The storage.
        address: The address of the first element.
        itemsize: The size of an element, in bytes.
        shape: The shape.
        strides: The strides, in elements; None if the elements are contiguous.
    """
    if strides is not None:
        # The stride of a dimension of at most one element is not used, and may be any number.
        strides = tuple(itemsize * (stride if size > 1 else 1) for stride, size in zip(strides, shape, strict=True))
    interface = {
        "version": 3,
        "typestr": _VIEWS[itemsize],
        "shape": tuple(shape),
        "strides": strides,
        "data": (address, False),
    }
    return np.asarray(_Memory(storage, interface))


class TensorSource(NamedTuple):
    """The memory of a tensor on the CPU.

    One is made for each tensor of each save, so it is a tuple, and as little as possible is done before it is read.
    """

    nbytes: int
    storage: torch.UntypedStorage
    base: int
    """The address of the storage."""
    address: int
    """The address of the first element."""
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """The strides, in elements; None if the elements are contiguous."""

    def _array(self) -> NDArray[Any]:
        nbytes, storage, base, address, itemsize, shape, strides = self
        length = nbytes if strides is None else reach(shape, strides) * itemsize
        if storage.data_ptr() != base or (nbytes and storage.nbytes() < address - base + length):
            raise freed(self, shape)
        return memory_of(storage, address, itemsize, shape, strides)

    def view(self, start: int, nbytes: int) -> Bytes | None:
        data = flat_bytes(self._array())
        return None if data is None else data[start : start + nbytes]

    def copy_to(self, target: Bytes, start: int) -> None:
        copy_bytes(self._array(), start, target)

    def buffer(self) -> Buffer:
        nbytes, storage, base, address, _, _, strides = self
        # `len` is a storage's size in bytes, in half the time. Where something is wrong, `_array` finds it, too.
        if strides is not None or not nbytes or storage.data_ptr() != base or len(storage) < address - base + nbytes:
            return self._array().tobytes()
        # As `view` does, and many times faster than to make an array.
        memory: Buffer = _type_of_memory(nbytes).from_address(address)
        return memory


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
