"""Bytes of arrays that are not one run of memory, by ranges that begin and end anywhere."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
from helpers.strategies import DTYPES, LAYOUTS, make_array
from hypothesis import given
from hypothesis import strategies as st

from asyncckpt.arrays.strided import flat_bytes, gather, scatter


def raw_bytes(array: np.ndarray) -> np.ndarray:
    """Return an array's bytes in C order, padding included, by numpy alone."""
    if array.nbytes == 0:
        return np.empty(0, np.uint8)
    raw = np.ascontiguousarray(array.view(np.dtype((np.void, array.itemsize))))
    return raw.reshape(-1).view(np.uint8)


cases = st.tuples(
    st.sampled_from([dtype for dtype in DTYPES if dtype.itemsize]),
    st.lists(st.integers(1, 4), max_size=4).map(tuple),
    st.sampled_from(LAYOUTS),
    st.integers(0, 99),
)


@given(case=cases, cuts=st.lists(st.floats(0, 1), max_size=4))
def test_gathers_any_ranges(case: Any, cuts: list[float]) -> None:
    """Ranges that follow each other, cut wherever, inside elements too, give the array's bytes."""
    array = make_array(*case)
    expected = raw_bytes(array)
    edges = sorted({0, array.nbytes, *(int(cut * array.nbytes) for cut in cuts)})
    found = np.zeros(array.nbytes, np.uint8)
    for low, high in itertools.pairwise(edges):
        gather(array, low, found[low:high])
    assert found.tobytes() == expected.tobytes()


@given(case=cases, cuts=st.lists(st.floats(0, 1), max_size=4), order=st.randoms(use_true_random=False))
def test_scatters_any_ranges_in_any_order(case: Any, cuts: list[float], order: Any) -> None:
    """What was gathered can be put into an array of another layout, range by range in any order."""
    source = raw_bytes(make_array(*case))
    dtype, shape, layout, seed = case
    target = make_array(dtype, shape, layout if layout in ("C", "F", "strided", "reversed") else "F", seed + 1)
    edges = sorted({0, target.nbytes, *(int(cut * target.nbytes) for cut in cuts)})
    ranges = list(itertools.pairwise(edges))
    order.shuffle(ranges)
    for low, high in ranges:
        scatter(target, low, source[low:high])
    assert raw_bytes(target).tobytes() == source.tobytes()


def test_scattering_touches_nothing_else() -> None:
    """The gaps between a view's elements keep what they held."""
    base = np.full((8, 8), 7, "i4")
    scatter(base[::2, 1::3], 3, np.arange(20, dtype=np.uint8))
    mask = np.ones((8, 8), bool)
    mask[::2, 1::3] = False
    assert (base[mask] == 7).all()


def test_two_threads_may_fill_the_two_parts_of_one_element() -> None:
    """An element cut by the border of two blocks is put together rightly, whoever comes first, however they mix."""
    dtype = np.dtype([("a", "V1000")])
    target = np.zeros((2, 2), dtype).T
    source = np.frombuffer(np.random.default_rng(0).bytes(target.nbytes), np.uint8)
    barrier = threading.Barrier(4)

    def fill(low: int, high: int) -> None:
        for _ in range(300):
            barrier.wait()
            scatter(target, low, source[low:high])

    edges = [0, 500, 1700, 3300, 4000]
    threads = [threading.Thread(target=fill, args=pair) for pair in itertools.pairwise(edges)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raw_bytes(target).tobytes() == source.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (2, 3), (0,), (2, 0)])
def test_flat_bytes_is_the_memory_itself(shape: tuple[int, ...]) -> None:
    """An array that is one run of memory is used where it lies, whatever its dtype; others are not."""
    for dtype in DTYPES:
        array = np.zeros(shape, dtype)
        found = flat_bytes(array)
        assert found is not None
        assert len(found) == array.nbytes
        if array.nbytes:
            assert np.shares_memory(found, array)
    assert flat_bytes(np.zeros((2, 3)).T) is None
    assert flat_bytes(np.zeros(6)[::2]) is None
