"""Indexes that no writer makes yet: arrays whose bytes lie in several files, and arrays that consist of boxes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.boxes import Box
from asyncckpt.state.encode import flatten
from asyncckpt.state.index import Index, IndexEncoder
from asyncckpt.state.segments import Segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FILES = ("pack_1", "parts/pack_2")


class Layout(NamedTuple):
    """A state, and the contents of the files that hold it."""

    state: dict[str, NDArray[Any]]
    index: Index
    segments: list[Segment]
    """In the order of the table."""
    index_nbytes: int
    files: dict[str, bytes]
    """By name; that of the index is "state"."""


def bytes_of(array: NDArray[Any]) -> bytes:
    """Return an array's bytes in C order."""
    return np.ascontiguousarray(array).tobytes()


def cut_boxes(draw: Callable[[Any], Any], shape: tuple[int, ...], depth: int = 3) -> list[tuple[Any, Any]]:
    """Cut a shape into boxes at random: the start and the shape of each."""
    found = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, depth))):
        start, lengths = found.pop(draw(st.integers(0, len(found) - 1)))
        axes = [axis for axis, length in enumerate(lengths) if length > 1]
        if not axes:
            found.append((start, lengths))
            continue
        axis = draw(st.sampled_from(axes))
        cut = draw(st.integers(1, lengths[axis] - 1))
        second = (*start[:axis], start[axis] + cut, *start[axis + 1 :])
        found.append((start, (*lengths[:axis], cut, *lengths[axis + 1 :])))
        found.append((second, (*lengths[:axis], lengths[axis] - cut, *lengths[axis + 1 :])))
    return found


@st.composite
def layouts(draw: Callable[[Any], Any]) -> Layout:
    """Draw arrays, cut into boxes and into segments that are dealt out to up to three files."""
    shapes = draw(st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=5))
    dtypes = st.sampled_from([np.dtype("u1"), np.dtype("<f4"), np.dtype(">i8"), np.dtype("<U2")])
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    state = {}
    for number, shape in enumerate(shapes):
        dtype = draw(dtypes)
        count = int(np.prod(shape)) * dtype.itemsize
        raw = rng.integers(0, 256, count, np.uint8) if dtype.kind != "U" else np.full(count // 4, 97, "<u4")
        state[f"a{number}"] = np.ndarray(shape, dtype, raw.tobytes() or None)
    flat = flatten(state, pacer=Pacer())
    arrays, contents, boxes = list(flat.arrays), [bytes_of(each) for each in flat.sources], {}
    for whole, array in enumerate(flat.sources):
        if array.size and draw(st.booleans()):
            contents[whole] = b""
            for start, lengths in cut_boxes(draw, array.shape):
                box = boxes[len(arrays)] = Box(whole, start)
                arrays.append(ArrayMeta(flat.arrays[whole].dtype, lengths))
                contents.append(bytes_of(array[box.slices(lengths)]))
    names = FILES[: draw(st.integers(0, len(FILES)))]
    runs = []
    for number, content in enumerate(contents):
        cuts = draw(st.lists(st.integers(1, len(content) - 1), max_size=2, unique=True)) if len(content) > 1 else []
        ends = [0, *sorted(cuts), len(content)]
        runs += [(number, content[low:high]) for low, high in pairwise(ends) if low < high]
    index = Index(flat.chunks, arrays, names, boxes)
    encoder = IndexEncoder(index, Pacer())
    datas = [bytearray(encoder.nbytes(len(runs))), *(bytearray() for _ in names)]
    placed: list[Segment] = []
    order = draw(st.permutations(range(len(runs)))) if names else range(len(runs))
    rows: dict[int, Segment] = {}
    for number in order:  # with several files, the order in a file says nothing
        array, content = runs[number]
        file = draw(st.integers(0, len(names)))
        datas[file] += bytes(draw(st.integers(0, 3)))
        rows[number] = Segment(array, len(datas[file]), len(content), file)
        datas[file] += content
    placed = [rows[number] for number in range(len(runs))]
    encoded = b"".join(encoder.encode(placed))
    assert len(encoded) == encoder.nbytes(len(runs))
    datas[0][: len(encoded)] = encoded
    files = dict(zip(("state", *names), map(bytes, datas), strict=True))
    return Layout(state, index, placed, len(encoded), files)
