"""Indexes that name several files, and arrays that consist of boxes: decoded as encoded, or refused."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import numpy as np
import pytest
from helpers.layouts import Layout, layouts
from hypothesis import given
from hypothesis import strategies as st

from asyncckpt import CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.boxes import Box
from asyncckpt.state.index import Index, IndexEncoder, decode_index
from asyncckpt.state.segments import Segment

BYTE = np.dtype("u1")


def decode(data: bytes, sizes: dict[str, int] | None = None, nbytes: int = 1 << 20) -> tuple[Index, list[Segment]]:
    """Decode an index of a checkpoint that has other files of these sizes."""
    return decode_index(memoryview(data), file_nbytes=nbytes, pacer=Pacer(), other_files=sizes or {})


def encode(index: Index, segments: list[Segment]) -> bytes:
    """Encode one."""
    return b"".join(index.encode(segments, Pacer()))


@given(layouts())
def test_files_and_boxes_come_back(layout: Layout) -> None:
    """Names, boxes and segments are those encoded, sorted by file and offset, and each says where it begins."""
    state = layout.files["state"]
    sizes = {name: len(data) for name, data in layout.files.items() if name != "state"}
    index, segments = decode(state[: layout.index_nbytes], sizes, len(state))
    assert tuple(index.files) == tuple(layout.index.files)
    assert index.boxes == layout.index.boxes
    assert [(each.dtype, each.shape) for each in index.arrays] == [
        (each.dtype, each.shape) for each in layout.index.arrays
    ]
    filled: dict[int, int] = {}
    expected = []
    for segment in layout.segments:
        start = filled.get(segment.array, 0)
        expected.append(segment._replace(start=start))
        filled[segment.array] = start + segment.nbytes
    assert segments == sorted(expected, key=lambda each: (each.file, each.offset))


@given(layouts())
def test_a_file_that_uses_neither_is_what_it_always_was(layout: Layout) -> None:
    """The entries and the features are written where they are needed only."""
    content = msgpack.unpackb(layout.files["state"][: layout.index_nbytes], unicode_errors="surrogatepass")
    added = {
        "files": ["files", "segment_files"] * bool(layout.index.files),
        "boxes": ["boxes"] * bool(layout.index.boxes),
    }
    assert content["features"] == [name for name, entries in added.items() if entries]
    usual = {"asyncckpt", "features", "dtypes", "tree", "arrays", "segments"}
    assert content.keys() - usual == {*added["files"], *added["boxes"]}


@given(layouts(), st.data())
def test_no_changed_byte_breaks_the_reader(layout: Layout, data: st.DataObject) -> None:
    """Whatever the bytes are, the reader decodes them or raises its own errors."""
    encoded = bytearray(layout.files["state"][: layout.index_nbytes])
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    sizes = {name: len(content) for name, content in layout.files.items() if name != "state"}
    with contextlib.suppress(CorruptCheckpointError, UnsupportedFormatError):
        decode(bytes(encoded), sizes, len(layout.files["state"]))


@pytest.mark.parametrize(
    ("index", "feature"),
    [
        (Index([], [ArrayMeta(BYTE, (1,))], files=["pack"]), "files"),
        (Index([], [ArrayMeta(BYTE, (1,))] * 2, boxes={1: Box(0, (0,))}), "boxes"),
    ],
)
def test_readers_of_single_files_refuse_both_by_name(index: Index, feature: str) -> None:
    """A keyed file's index has neither: its reader knows no other files, and reads each array by itself."""
    data = encode(index, [Segment(0, 0, 1)])
    with pytest.raises(UnsupportedFormatError, match=f"needs {feature}, which this asyncckpt cannot read"):
        decode_index(memoryview(data), file_nbytes=100, pacer=Pacer())


def two_files(*segments: tuple[int, ...], files: tuple[Any, ...] = ("pack",)) -> bytes:
    """Encode an index of an array of 10 bytes, whose segments lie in several files."""
    return encode(Index([], [ArrayMeta(BYTE, (10,))], files=files), [Segment(*each) for each in segments])


def changed(data: bytes, **changes: Any) -> bytes:
    """Change entries of an index; None takes one out."""
    content = msgpack.unpackb(data) | changes
    return msgpack.packb({key: value for key, value in content.items() if value is not None})


WHOLE = (0, 0, 10, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (two_files(WHOLE, files=("other",)), "names the file 'other', which the checkpoint does not have"),
        (two_files(WHOLE, files=("pack", "pack")), "names a file twice"),
        (two_files((0, 0, 10, 2)), "file 2 of 2"),
        (two_files((0, 91, 10, 1)), "leaves the file"),
        (two_files((0, 0, 6, 1), (0, 5, 4, 1)), "overlaps"),
        (two_files((0, 0, 6, 0), (0, 0, 5, 1)), "segments of 11 bytes"),
        (changed(two_files(WHOLE), segment_files=[]), "1 segments have 0 numbers of files"),
        (changed(two_files(WHOLE), segment_files=None), "segment_files"),
        (changed(two_files(WHOLE), files=None), "files"),
        (changed(two_files(WHOLE), files=[7]), "files holds a int"),
    ],
)
def test_impossible_files_are_corruption(data: bytes, reason: str) -> None:
    """Files that are not there, segments outside of them, and tables that do not fit together are refused."""
    with pytest.raises(CorruptCheckpointError, match=reason):
        decode(data, {"pack": 100})


def test_the_same_offsets_in_two_files_do_not_overlap() -> None:
    """An array's bytes are its segments in the order of the table, wherever they lie."""
    _, segments = decode(two_files((0, 50, 6, 1), (0, 50, 4, 0)), {"pack": 100})
    assert segments == [Segment(0, 50, 4, 0, 6), Segment(0, 50, 6, 1, 0)]


def test_sizes_beyond_all_files_are_corruption() -> None:
    """Sizes whose sum is beyond 63 bits could add up to anything."""
    with pytest.raises(CorruptCheckpointError, match="files of"):
        decode(two_files(WHOLE), {"pack": (1 << 64) - 1})


def boxed(*boxes: tuple[Any, ...], shape: tuple[int, ...] = (4, 6), dtype: np.dtype[Any] = BYTE) -> bytes:
    """Encode a whole of this shape and boxes in it, each a start and a shape, whose segments lie behind each other."""
    arrays = [ArrayMeta(BYTE, shape), *(ArrayMeta(dtype, lengths) for _, lengths in boxes)]
    index = Index([], arrays, boxes={number: Box(0, start) for number, (start, _) in enumerate(boxes, 1)})
    sizes = [(number, meta.nbytes) for number, meta in enumerate(arrays) if number and meta.nbytes]
    return encode(index, [Segment(number, 100 * number, nbytes) for number, nbytes in sizes])


def rows(*found: list[Any]) -> list[bytes]:
    """Encode a table of boxes."""
    return [msgpack.packb(list(found))]


HALVES = (((0, 0), (2, 6)), ((2, 0), (2, 6)))


def test_halves_are_accepted() -> None:
    """What the refused ones are changed from is right."""
    index, _ = decode(boxed(*HALVES))
    assert index.boxes == {1: Box(0, (0, 0)), 2: Box(0, (2, 0))}
    assert index.whole_arrays == {0}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (boxed(HALVES[0]), "do not cover it"),
        (boxed(*HALVES, ((0, 0), (1, 1))), "do not cover it, or overlap"),
        (boxed(((0, 0), (2, 6)), ((1, 0), (2, 6))), "overlap"),
        (boxed(((0, 0), (4, 3)), ((0, 2), (4, 3))), "overlap"),
        (boxed(((0, 0), (2, 6)), ((3, 0), (2, 6))), "leaves array 0"),
        (boxed(*HALVES, ((0, 0), (0, 6))), "is empty"),
        (boxed(*HALVES, dtype=np.dtype("i1")), "another dtype"),
        (boxed(((0,), (2, 6)), HALVES[1]), "number of dimensions"),
        (boxed(((), ()), ((), ()), shape=()), "overlap"),
        (changed(boxed(*HALVES), boxes=rows([1, 0, 0, 0], [1, 0, 2, 0])), "array 1 has two boxes"),
        (changed(boxed(*HALVES), boxes=rows([1, 0, 0, 0])), "do not cover it"),
        (changed(boxed(*HALVES), boxes=rows([1, 1, 0, 0])), "has a box, and holds boxes"),
        (changed(boxed(*HALVES), boxes=rows([1, 0, 0, 0], [2, 1, 0, 0])), "has a box, and holds boxes"),
        (changed(boxed(*HALVES), boxes=rows([9, 0, 0, 0])), "range"),
        (changed(boxed(*HALVES), boxes=rows([1, 0, -1, 0])), "a box is"),
        (changed(boxed(*HALVES), boxes=rows([True, 0, 0, 0])), "a box is"),
        (changed(boxed(*HALVES), boxes=rows([1])), "unpack"),
        (changed(boxed(*HALVES), boxes=[msgpack.packb([7])]), "a box is"),
        (changed(boxed(*HALVES), boxes=[b"\x91"]), "elements"),
        (changed(boxed(*HALVES), boxes=None), "boxes"),
    ],
)
def test_impossible_boxes_are_corruption(data: bytes, reason: str) -> None:
    """Boxes that overlap, leave their array or do not cover it would leave memory that nothing has filled."""
    with pytest.raises(CorruptCheckpointError, match=reason):
        decode(data)


def test_very_many_boxes_are_refused_before_they_are_compared() -> None:
    """The check compares each with each in the worst case."""
    count = 20_000
    arrays = [ArrayMeta(BYTE, (count,)), *[ArrayMeta(BYTE, (1,))] * count]
    index = Index([], arrays, boxes={number + 1: Box(0, (number,)) for number in range(count)})
    data = encode(index, [Segment(number + 1, number, 1) for number in range(count)])
    with pytest.raises(CorruptCheckpointError, match="more than 16384"):
        decode(data)


def test_the_length_of_an_index_is_known_before_its_segments() -> None:
    """With files as well: a format lays out the file before it knows where in it anything lies."""
    index = Index([], [ArrayMeta(BYTE, (5000,))], files=["a"])
    encoder = IndexEncoder(index, Pacer())
    segments = [Segment(0, 1 << 40, 1, 1)] * 5000
    assert encoder.nbytes(5000) == len(b"".join(encoder.encode(segments)))
    assert encoder.nbytes(0) == len(b"".join(encoder.encode([])))
