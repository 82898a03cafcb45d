"""Find arrays that share memory, and cannot be filled with different contents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.lib.array_utils import byte_bounds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from asyncckpt.arrays.target import ArrayTarget
    from asyncckpt.runtime.pacing import Pacer

_MAX_ELEMENTS: Final = 1 << 20  # of an array whose elements are looked at one by one
_MAX_WORK: Final[Any] = 10_000  # for np.shares_memory; usual views take less than a hundred


def overlaps_itself(array: NDArray[Any]) -> bool:
    """Whether elements of an array share memory, as `as_strided` makes them; True also if it is hard to tell."""
    flags = array.flags
    if flags.c_contiguous or flags.f_contiguous or array.size <= 1:
        return False
    extent = array.itemsize
    is_nested = True
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        is_nested &= stride >= extent  # the reach of all dimensions of smaller strides
        extent += stride * (length - 1)
    if is_nested:
        return False
    if array.size > _MAX_ELEMENTS:
        return True
    places = np.zeros(1, np.int64)
    for stride, length in zip(array.strides, array.shape, strict=True):
        places = (places[:, None] + np.arange(length, dtype=np.int64) * stride).ravel()
    places.sort()
    return bool((np.diff(places) < array.itemsize).any())


def find_overlap(targets: Iterable[tuple[int, ArrayTarget, str]], pacer: Pacer) -> tuple[str, str] | None:
    """Find two arrays that share memory, as far as numpy can see it, and will not be filled with the same elements.

    Args:
        targets: For each array: the number of the array to fill in, the array itself, and its path.
        pacer: Paused between chunks.

    Returns:
        The paths of both arrays, or None.
    """
    placed: list[tuple[int, int, int, NDArray[Any], str]] = []
    for batch in pacer.batches(targets):
        placed += [
            (*byte_bounds(array), number, array, path)
            for number, target, path in batch
            if (array := target if isinstance(target, np.ndarray) else target.array) is not None and array.nbytes
        ]
    placed.sort(key=lambda each: each[0])
    reaching: list[tuple[int, int, int, NDArray[Any], str]] = []  # those that end after this one begins
    for each in placed:
        low, _, number, array, path = each
        reaching = [other for other in reaching if other[1] > low]
        for _, _, other_number, other, other_path in reaching:
            if not (number == other_number and _is_one(array, other)) and _share(array, other):
                return other_path, path
        if reaching:
            pacer.pause()
        reaching.append(each)
    return None


def _is_one(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two views are of the same elements in the same order."""
    begin, other_begin = (view.__array_interface__["data"][0] for view in (one, other))
    return bool(begin == other_begin) and one.shape == other.shape and one.strides == other.strides


def _share(one: NDArray[Any], other: NDArray[Any]) -> bool:
    try:
        return bool(np.shares_memory(one, other, max_work=_MAX_WORK))
    except np.exceptions.TooHardError:
        return True
