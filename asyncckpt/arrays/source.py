"""Arrays as sources of bytes: what a capture needs of the arrays in a state, whichever library they belong to.

1. A source is a numpy array, or an object with the methods of `ForeignSource`. It keeps its memory alive, or raises a
   `SourceChangedError` if that has been freed.
2. Its bytes are those of the array in C order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from asyncckpt.arrays.strided import flat_bytes, gather

if TYPE_CHECKING:
    import ctypes

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Buffer = bytes | Bytes | ctypes.Array[ctypes.c_char]


class SourceError(Exception):
    """A source could not be copied; `source` is the source."""

    def __init__(self, message: str, source: ForeignSource) -> None:
        super().__init__(message)
        self.source = source


class SourceChangedError(SourceError):
    """The memory of a source was freed."""


class ForeignSource(Protocol):
    """An array of another library than numpy, to be captured. Its methods may be called from several threads."""

    @property
    def nbytes(self) -> int:
        """Its size in C order."""

    def view(self, start: int, nbytes: int) -> Bytes | None:
        """Return the memory of a range of its bytes, or None if they must be copied out."""

    def copy_to(self, target: Bytes, start: int) -> None:
        """Copy its bytes, from `start` on, until `target` is full."""

    def buffer(self) -> Buffer:
        """Return all its bytes, which are read at once; for a small one."""


ArraySource: TypeAlias = "NDArray[Any] | ForeignSource"


def view_bytes(source: ArraySource, start: int, nbytes: int) -> Bytes | None:
    """Return the memory of a range of a source's bytes, or None if they must be copied out."""
    if not isinstance(source, np.ndarray):
        return source.view(start, nbytes)
    data = flat_bytes(source)
    return None if data is None else data[start : start + nbytes]


def copy_bytes(source: ArraySource, start: int, target: Bytes) -> None:
    """Copy a source's bytes, from `start` on, until `target` is full."""
    if not isinstance(source, np.ndarray):
        source.copy_to(target, start)
        return
    data = flat_bytes(source)
    if data is None:
        gather(source, start, target)
    else:
        np.copyto(target, data[start : start + len(target)])


def bytes_of(source: ArraySource) -> bytes:
    """Return a copy of all bytes of a small source."""
    return source.tobytes() if isinstance(source, np.ndarray) else bytes(source.buffer())


def copied(source: ForeignSource) -> Bytes:
    """Return a copy of all bytes of a source that has no faster way."""
    data = np.empty(source.nbytes, np.uint8)
    source.copy_to(data, 0)
    return data
