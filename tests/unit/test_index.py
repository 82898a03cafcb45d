"""The index as bytes: what is written is read, what a later release wrote is refused by name, damage is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import pytest
from helpers.strategies import DTYPES
from helpers.support import describe_dtype
from hypothesis import given
from hypothesis import strategies as st

from asyncckpt import CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.runtime.pacing import CHUNK_ELEMENTS, Pacer, StopFlag, Stopped
from asyncckpt.state import dtypes
from asyncckpt.state.dtypes import dtype_from_plain, dtype_to_plain
from asyncckpt.state.index import (
    ARRAY,
    BYTES,
    LIST,
    NUMBERS_ARRAY,
    STRING,
    TUPLE,
    Index,
    argument_of,
    decode_index,
    ext,
    find_contents,
    pack_chunk,
)
from asyncckpt.state.segments import Segment

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNKS = [msgpack.packb([1, 2]), msgpack.packb(["x"])]


def encode(arrays: list[ArrayMeta], segments: list[Segment]) -> bytes:
    """Encode an index."""
    return b"".join(Index(chunks=CHUNKS, arrays=arrays).encode(segments, Pacer()))


def decode(data: bytes, file_nbytes: int = 1 << 40) -> tuple[Index, list[Segment]]:
    """Decode one."""
    return decode_index(memoryview(data), file_nbytes=file_nbytes, pacer=Pacer())


def many(count: int) -> tuple[list[ArrayMeta], list[Segment]]:
    """Make arrays and their segments."""
    arrays = [ArrayMeta(DTYPES[i % len(DTYPES)], (i % 3, 2)) for i in range(count)]
    segments, at = [], 4096
    for number, meta in enumerate(arrays):
        if meta.nbytes:
            segments.append(Segment(number, at, meta.nbytes))
            at += meta.nbytes
    return arrays, segments


@pytest.mark.parametrize("count", [0, 1, 100, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 3])
def test_what_is_written_is_read(count: int) -> None:
    """Chunks, dtypes, shapes and segments come back, however many; the whole is one msgpack map."""
    arrays, segments = many(count)
    data = encode(arrays, segments)
    index, found = decode(data)
    assert list(index.chunks) == CHUNKS
    assert found == segments
    assert [each.shape for each in index.arrays] == [each.shape for each in arrays]
    assert [describe_dtype(each.dtype) for each in index.arrays] == [describe_dtype(each.dtype) for each in arrays]
    content = msgpack.unpackb(data, strict_map_key=True)
    assert list(content) == ["asyncckpt", "features", "dtypes", "tree", "arrays", "segments"]
    assert content["asyncckpt"] == 1


NUMBERS = st.integers(0, 2**64 - 1)
LEAVES = st.none() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.builds(ext, st.just(ARRAY), NUMBERS)
MADE = st.builds(ext, st.sampled_from([BYTES, STRING]), NUMBERS) | st.builds(
    ext, st.just(NUMBERS_ARRAY), st.tuples(st.sampled_from([LIST, TUPLE]), NUMBERS)
)


@given(st.lists(st.lists(LEAVES | MADE, max_size=5), max_size=3))
def test_the_arrays_that_become_leaves_are_found(rows: list[list[Any]]) -> None:
    """Those of strings, bytes and runs of numbers, in any chunk, and no others."""
    made = [
        argument_of(node) for row in rows for node in row if isinstance(node, msgpack.ExtType) and node.code != ARRAY
    ]
    numbers = {argument if isinstance(argument, int) else argument[1] for argument in made}
    assert find_contents(map(pack_chunk, rows), Pacer()) == numbers


@pytest.mark.parametrize("argument", [{}, (), (1, {}), (1, ()), "x", None, 1.5, True])
def test_what_is_no_number_is_left_to_the_builder(argument: object) -> None:
    """It is damage, which is found where the leaf is made; meanwhile it breaks nothing, and slows nothing down."""
    assert find_contents([pack_chunk([ext(NUMBERS_ARRAY, argument)])], Pacer()) == set()


def test_to_find_them_pauses_and_stops() -> None:
    """As every walk over the nodes does, whether there are any or not."""
    stop = StopFlag()
    stop.set()
    with pytest.raises(Stopped):
        find_contents([pack_chunk(["w"])], Pacer(stop))


def test_the_length_does_not_depend_on_the_offsets() -> None:
    """An index can be laid out before the offsets in it are known."""
    arrays, segments = many(50)
    moved = [Segment(each.array, each.offset + (1 << 50), each.nbytes) for each in segments]
    assert len(encode(arrays, segments)) == len(encode(arrays, moved))


def test_an_array_may_have_several_segments_in_any_order_of_the_table() -> None:
    """Segments come back sorted by offset, and add up to their array."""
    meta = ArrayMeta(np.dtype("u1"), (30,))
    _, found = decode(encode([meta], [Segment(0, 90, 5), Segment(0, 10, 20), Segment(0, 50, 5)]))
    assert [(each.offset, each.nbytes) for each in found] == [(10, 20), (50, 5), (90, 5)]


@pytest.mark.parametrize(
    "segments",
    [
        [],
        [Segment(0, 0, 9)],
        [Segment(0, 0, 11)],
        [Segment(0, 0, 10), Segment(0, 20, 10)],
        [Segment(0, 0, 6), Segment(0, 5, 4)],
        [Segment(0, 0, 5), Segment(0, 0, 5)],
        [Segment(1, 0, 10)],
        [Segment(0, 91, 10)],
        [Segment(0, 2**63, 10)],
        [Segment(0, 0, 10), Segment(0, 50, 0)],
    ],
    ids=str,
)
def test_impossible_segments_are_corruption(segments: list[Segment]) -> None:
    """Segments that overlap, leave the file, or do not add up to their arrays are refused."""
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        decode(encode([ArrayMeta(np.dtype("u1"), (10,))], segments), file_nbytes=100)


def change(**changes: Any) -> bytes:
    """Encode an index of which some entries are others; None takes one out."""
    content = msgpack.unpackb(encode(*many(3)))
    content.update(changes)
    return msgpack.packb({key: value for key, value in content.items() if value is not None})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (lambda: change(asyncckpt=2), "format version 2"),
        (lambda: change(asyncckpt="next"), "next"),
        (lambda: change(features=["compression"]), "compression"),
        (lambda: change(features=["compression", "shared_blocks"], dtypes=7, tree="?"), "compression, shared_blocks"),
        (lambda: msgpack.packb({"asyncckpt": 3, "everything": "else"}), "format version 3"),
        (lambda: msgpack.packb({"asyncckpt": 1, "features": ["x"]}), "x"),
    ],
)
def test_a_later_format_is_named_and_not_called_corrupt(data: Callable[[], bytes], text: str) -> None:
    """An unknown version or feature is said before anything else of the index is looked at."""
    with pytest.raises(UnsupportedFormatError, match=text) as caught:
        decode(data())
    assert not isinstance(caught.value, CorruptCheckpointError)


@pytest.mark.parametrize(
    "data",
    [
        lambda: b"",
        lambda: b"\x80",
        lambda: b"\xc1",
        lambda: msgpack.packb([1]),
        lambda: msgpack.packb({"asyncckpt": 1}),
        lambda: change(tree=None),
        lambda: change(arrays=None),
        lambda: change(segments=None),
        lambda: change(dtypes=None),
        lambda: change(features=None),
        lambda: change(tree=["text"]),
        lambda: change(tree=5),
        lambda: change(dtypes=["|O"]),
        lambda: change(dtypes=["f8, f8"]),
        lambda: change(dtypes=["object"]),
        lambda: change(dtypes=[{"fields": [["a", "|O", 0, None]], "itemsize": 8, "aligned": False, "record": False}]),
        lambda: change(
            dtypes=[{"fields": [["a", "<f8", 100, None]], "itemsize": 8, "aligned": False, "record": False}]
        ),
        lambda: change(dtypes=[{"base": "<f8", "shape": [-1]}]),
        lambda: change(dtypes=[{"base": "<f8"}]),
        lambda: change(dtypes=[]),
        lambda: change(arrays=[msgpack.packb([[0, -1]])]),
        lambda: change(arrays=[msgpack.packb([[0, 1.5]])]),
        lambda: change(arrays=[msgpack.packb([[0] * 70])]),
        lambda: change(arrays=[msgpack.packb([[99, 1]])]),
        lambda: change(arrays=[b"\x91"]),
        lambda: change(arrays=[msgpack.packb(7)]),
        lambda: change(segments=[b"x"]),
        lambda: change()[:-1],
        lambda: change()[:40],
        lambda: b"\x82" + msgpack.packb("asyncckpt") + b"\x01" + msgpack.packb("asyncckpt") + b"\x01",
    ],
)
def test_damage_is_corruption(data: Callable[[], bytes]) -> None:
    """Whatever cannot have been written is a CorruptCheckpointError and nothing else."""
    with pytest.raises(CorruptCheckpointError):
        decode(data())


def test_no_single_changed_byte_breaks_the_reader() -> None:
    """Beyond the digests' care, the reader itself never fails otherwise than with its own two errors."""
    data = bytearray(encode(*many(20)))
    for position in range(len(data)):
        for flip in (0x01, 0xFF):
            data[position] ^= flip
            try:
                decode(bytes(data))
            except (CorruptCheckpointError, UnsupportedFormatError):
                pass
            finally:
                data[position] ^= flip


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_come_back_with_all_they_have(dtype: np.dtype[Any]) -> None:
    """Byte order, units, offsets, titles, alignment and record types survive as plain msgpack data."""
    plain = msgpack.unpackb(msgpack.packb(dtype_to_plain(dtype)))
    assert describe_dtype(dtype_from_plain(plain)) == describe_dtype(dtype)


@pytest.mark.parametrize("name", ["float7_e1m1", "uint7", "int6"])
def test_a_dtype_that_ml_dtypes_lacks_is_named(name: str) -> None:
    """A dtype of a later ml_dtypes is a matter of what is installed, not of damage."""
    with pytest.raises(UnsupportedFormatError, match=name):
        dtype_from_plain(name)


def test_missing_ml_dtypes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, the error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(UnsupportedFormatError, match="install the package ml_dtypes"):
        dtypes.dtype_from_plain("bfloat16")
