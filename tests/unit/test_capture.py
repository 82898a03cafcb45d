"""Snapshots: arrays, and small ones in a row, come out as they went in, whatever holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from asyncckpt.runtime.buffers import SMALL_NBYTES, BufferPool
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.memory import PAGE_NBYTES, SMALL_BOUNDARY
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.capture import LiveSnapshot, Snapshot, StagedSnapshot
from asyncckpt.state.encode import flatten

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from asyncckpt.state.flat import FlatState


def make_arrays() -> list[NDArray[Any]]:
    """Make arrays in whose row everything occurs: empty, strided, odd sizes, no buffers, large ones between."""
    numbers = np.arange(900, dtype=np.float32)
    small = [
        numbers[:256],
        numbers[:7],
        numbers[::3],
        np.empty((0, 3)),
        numbers[:100].astype("<M8[s]"),
        np.array(3.5),
        np.asfortranarray(numbers[:24].reshape(4, 6)),
        numbers[:1].astype(">i2"),
    ]
    arrays = [*small, np.arange(5000.0), *small, np.arange(4096, dtype=np.uint8), *(small * 600)]
    return [array[...] for array in arrays]  # views: an array that occurs twice would be listed once


def staged(flat: FlatState) -> Snapshot:
    """Copy into buffers that held something else before."""
    pool = BufferPool()
    dirty = pool.take(8 * SMALL_NBYTES)
    for buffer in dirty:
        buffer.fill(0xFF)
    pool.give(dirty)
    snapshot = StagedSnapshot(flat, pool)
    snapshot.capture(JobContext())
    return snapshot


SNAPSHOTS: list[Callable[[FlatState], Snapshot]] = [
    staged,
    lambda flat: LiveSnapshot(flat, is_frozen=True),
    lambda flat: LiveSnapshot(flat, is_frozen=False),
]


def read(snapshot: Snapshot, array: int, start: int, nbytes: int) -> bytes:
    """Return a range of bytes as the block engine gets them."""
    views = snapshot.view(array, start, nbytes)
    if views is not None:
        return b"".join(view.tobytes() for view in views)
    target = np.full(nbytes, 0xFF, np.uint8)
    snapshot.copy_to(target, array, start)
    return target.tobytes()


@pytest.mark.parametrize("make", SNAPSHOTS)
def test_small_arrays_in_a_row_come_as_one_range(make: Callable[[FlatState], Snapshot]) -> None:
    """Each lies on the next boundary behind the one before, zeros between them, however the range is cut."""
    arrays = make_arrays()
    snapshot = make(flatten(arrays, pacer=Pacer()))
    first = 0
    while first < len(arrays):
        expected, last = b"", first
        while last < len(arrays) and arrays[last].nbytes < PAGE_NBYTES and last - first < 256:
            expected += arrays[last].tobytes()
            expected += bytes(-len(expected) % SMALL_BOUNDARY)
            last += 1
        if last == first:
            expected, last = arrays[first].tobytes(), first + 1
        assert read(snapshot, first, 0, len(expected)) == expected
        middle = len(expected) // 2 + 1
        assert read(snapshot, first, 0, middle) + read(snapshot, first, middle, len(expected) - middle) == expected
        first = last


@pytest.mark.parametrize("make", SNAPSHOTS)
def test_every_array_comes_as_it_was(make: Callable[[FlatState], Snapshot]) -> None:
    """Arrays are had one by one, too; immutable leaves among them are never copied."""
    arrays = make_arrays()
    text = "x" * (SMALL_BOUNDARY * 100)
    flat = flatten([*arrays, text], pacer=Pacer())
    snapshot = make(flat)
    for number, content in enumerate(array.tobytes() for array in arrays):
        assert read(snapshot, number, 0, len(content)) == content
    (stable,) = flat.stable
    assert read(snapshot, stable, 10, 100) == b"x" * 100
