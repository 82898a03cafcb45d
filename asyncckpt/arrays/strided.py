"""Move bytes from and to arrays that are not contiguous, without a copy of the whole array."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


def flat_bytes(array: NDArray[Any]) -> Bytes | None:
    """Return an array's memory as bytes in C order, or None if it is not contiguous."""
    if not array.flags.c_contiguous:
        return None
    if array.nbytes == 0:
        return np.empty(0, np.uint8)
    return array.reshape(-1).view(np.uint8)


def gather(array: NDArray[Any], start: int, target: Bytes) -> None:
    """Copy an array's bytes in C order, from byte `start` on, until `target` is full."""
    for own, place in _paired(array, start, len(target)):
        np.copyto(target[place].view(own.dtype).reshape(own.shape), own)


def scatter(array: NDArray[Any], start: int, source: Bytes) -> None:
    """Put bytes into an array, in C order from its byte `start` on."""
    for own, place in _paired(array, start, len(source)):
        np.copyto(own, source[place].view(own.dtype).reshape(own.shape))


def _paired(array: NDArray[Any], start: int, nbytes: int) -> Iterator[tuple[NDArray[Any], slice]]:
    """Split a byte range of an array into sub-arrays, and the bytes of an element that is cut at either end."""
    size = array.itemsize
    end = start + nbytes
    first, last = -(-start // size), end // size
    if first > last:  # inside one element
        yield _element(array, last)[start - last * size : end - last * size], slice(0, nbytes)
        return
    if first * size > start:
        yield _element(array, first - 1)[start - first * size :], slice(0, first * size - start)
    at = first * size - start
    for part in _runs(_as_raw(array), first, last):
        yield part, slice(at, at + part.nbytes)
        at += part.nbytes
    if at < nbytes:
        yield _element(array, last)[: nbytes - at], slice(at, nbytes)


def _as_raw(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view whose elements are copied whole, including the padding of structures."""
    if array.dtype.names is None:
        return array
    return array.view(np.dtype(f"V{array.itemsize}"))


def _element(array: NDArray[Any], position: int) -> Bytes:
    """Return the memory of one element, not a copy: two threads may write its parts at the same time."""
    index: Any = (*(slice(int(i), int(i) + 1) for i in np.unravel_index(position, array.shape)), ...)
    element: NDArray[Any] = array[index]
    return element.reshape(-1).view(np.uint8)


def _runs(array: NDArray[Any], first: int, last: int) -> Iterator[NDArray[Any]]:
    """Split a range of elements, in C order, into sub-arrays."""
    if first == 0 and last == array.size:  # the usual case, for small arrays
        yield array
        return
    for box in boxes(array.shape, first, last):
        place: Any = (*(slice(*each) for each in box), ...)  # with ..., it is an array even without dimensions
        yield array[place]


def boxes(shape: Sequence[int], first: int, last: int) -> Iterator[list[tuple[int, int]]]:
    """Split a range of elements, in C order, into boxes: for each dimension where it begins and ends.

    They are at most two and one block of rows for each dimension.
    """
    if first >= last:
        return
    if not shape:
        yield []
        return
    row = math.prod(shape[1:])
    (i, head), (j, tail) = divmod(first, row), divmod(last, row)
    if i == j:
        yield from ([(i, i + 1), *box] for box in boxes(shape[1:], head, tail))
        return
    if head:
        yield from ([(i, i + 1), *box] for box in boxes(shape[1:], head, row))
        i += 1
    if i < j:
        yield [(i, j), *((0, size) for size in shape[1:])]
    if tail:
        yield from ([(j, j + 1), *box] for box in boxes(shape[1:], 0, tail))
