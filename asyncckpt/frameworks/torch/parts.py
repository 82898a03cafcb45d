"""Tensors whose bytes PyTorch must move: on devices, or to be conjugated or negated. They are copied part by part.

A source keeps the storage alive, and not the tensor, which may get another one. Before each copy it checks that the
storage was not resized, which frees its memory all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from asyncckpt.arrays.source import SourceChangedError, copied
from asyncckpt.arrays.strided import boxes
from asyncckpt.errors import UnsupportedLeafError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from asyncckpt.arrays.source import ForeignSource

    Bytes = NDArray[np.uint8]

_RAW: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the size of an element, a dtype whose elements PyTorch can always move."""


def freed(source: ForeignSource, shape: Sequence[int]) -> SourceChangedError:
    """Return the error about a tensor whose memory is not there any more."""
    message = (
        f"the storage of a tensor of shape {tuple(shape)} was freed, or made smaller than the tensor: no task may do"
        " that until the state has been captured"
    )
    return SourceChangedError(message, source)


def reach(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return from the first element of a tensor to behind the last in memory, in elements; it has at least one."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


class PartSource:
    """A tensor that is copied in parts, each of which is made where the tensor is; see `ForeignSource`."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.nbytes = tensor.nbytes
        plain = tensor.detach()
        if not (plain.is_complex() or plain.is_neg()):
            plain = plain.view(_RAW[plain.itemsize])
        self.tensor: torch.Tensor = plain.view(-1) if plain.is_contiguous() else plain
        self._shape = tensor.shape
        self._storage = tensor.untyped_storage()
        self._base = self._storage.data_ptr()
        end = tensor.storage_offset() + reach(tensor.shape, tensor.stride())
        self._end = end * tensor.itemsize if self.nbytes else 0
        if self._storage.nbytes() < self._end:
            raise UnsupportedLeafError(f"a tensor of shape {tuple(tensor.shape)} whose storage was freed", path="")

    def view(self, start: int, nbytes: int) -> Bytes | None:  # noqa: ARG002 - none of its bytes can be seen
        """See `ForeignSource`."""
        return None

    def copy_to(self, target: Bytes, start: int) -> None:
        """See `ForeignSource`; waits for the device."""
        self.check()
        with torch.no_grad():
            torch.from_numpy(target).copy_(self.part(start, len(target)))

    def buffer(self) -> Bytes:
        """See `ForeignSource`."""
        return copied(self)

    def check(self) -> None:
        """Check that the memory is still there.

        Raises:
            SourceChangedError: It was freed.
        """
        if self._storage.data_ptr() != self._base or self._storage.nbytes() < self._end:
            raise freed(self, self._shape)

    def part(self, start: int, nbytes: int) -> torch.Tensor:
        """Return a range of the bytes, of shape (nbytes,) and dtype uint8, on the tensor's device."""
        size = self.tensor.itemsize
        first, last = start // size, -(-(start + nbytes) // size)
        places = boxes(self.tensor.shape, first, last)
        parts = [_flat(self.tensor[tuple(slice(*each) for each in place)]) for place in places]
        if not parts:
            return self.tensor.new_empty(0, dtype=torch.uint8)
        data = parts[0] if len(parts) == 1 else torch.cat(parts)
        return data[start - first * size :][:nbytes]


def _flat(tensor: Any) -> torch.Tensor:
    plain = tensor.resolve_conj().resolve_neg().contiguous()
    # A single element may have any stride, but must have the stride 1 to be viewed as bytes.
    made: torch.Tensor = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)
    return made
