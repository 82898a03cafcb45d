"""Arrays as targets of bytes: what a load needs of the arrays that it fills, whichever library they belong to.

1. A target is a numpy array, or an object with the methods of `ForeignTarget`.
2. Its bytes are those of the array in C order. They may come in any order and from several threads, each of them once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from asyncckpt.arrays.strided import flat_bytes, scatter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


class ForeignTarget(Protocol):
    """An array of another library than numpy, while it is filled."""

    @property
    def array(self) -> NDArray[Any] | None:
        """A numpy array of its memory; None if it has none that numpy can show."""

    def memory(self) -> Bytes | None:
        """Return the memory of its bytes, to be filled directly, or None if they must be handed to `store`."""

    def store(self, start: int, data: Bytes) -> None:
        """Take bytes, the first of which is at the position `start`."""

    def finish(self) -> Any:
        """Return the array; called when all bytes have come."""


ArrayTarget: TypeAlias = "NDArray[Any] | ForeignTarget"


def memory_of(target: ArrayTarget) -> Bytes | None:
    """Return the memory of a target's bytes if it is one run, in their order."""
    return flat_bytes(target) if isinstance(target, np.ndarray) else target.memory()


def store_bytes(target: ArrayTarget, start: int, data: Bytes) -> None:
    """Put bytes into a target, the first of them at the position `start`."""
    if isinstance(target, np.ndarray):
        scatter(target, start, data)
    else:
        target.store(start, data)


def copy_into(target: ArrayTarget, array: NDArray[Any]) -> None:
    """Fill a target with the contents of an array of its dtype and shape."""
    if isinstance(target, np.ndarray):
        np.copyto(target, array)
    else:
        target.store(0, np.frombuffer(array.tobytes(), np.uint8))


def finished(target: ArrayTarget) -> Any:
    """Return the array that a target has become."""
    return target if isinstance(target, np.ndarray) else target.finish()
