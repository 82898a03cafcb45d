"""state.msgpack: a plain stream of msgpack objects, whose payload can be mapped."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import pytest
from helpers.support import assert_same, load_from, save_to, span_bytes
from hypothesis import given
from hypothesis import strategies as st

from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.disk.mapping import MappedFile
from asyncckpt.disk.plan import FilePlan, Span
from asyncckpt.formats import msgpack as form
from asyncckpt.formats.base import find_format
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.saving import commit
from asyncckpt.state.index import Index, decode_index

if TYPE_CHECKING:
    from pathlib import Path

sizes = st.lists(
    st.integers(0, 200) | st.integers(4000, 4200) | st.integers(0, 40_000) | st.sampled_from([4096, 8192, 16384]),
    max_size=12,
)
index_sizes = st.integers(0, 9000)


class SmallExtents:
    """The format with extents so small that ordinary arrays take several."""

    file_name = "state.msgpack"

    def plan(self, index: Index, pacer: Pacer) -> FilePlan:
        """Lay out the file."""
        return form.plan(index, pacer, extent_nbytes=2 * PAGE_NBYTES)


def render(plan: FilePlan, sizes: list[int]) -> bytes:
    """Put a plan's bytes together; array n is made of the byte n + 1."""
    data = bytearray(plan.nbytes)
    contents = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    end = 0
    for offset, nbytes, source in plan.entries:
        assert offset >= end, "chunks overlap"
        end = offset + nbytes
        if isinstance(source, Span):
            data[offset:end] = span_bytes(contents, source, nbytes)
        else:
            assert len(source) == nbytes
            data[offset:end] = source
    assert end <= plan.nbytes
    return bytes(data)


@given(sizes=sizes, tree_nbytes=index_sizes, extent_pages=st.sampled_from([1, 2, 5, 1 << 18]))
def test_every_layout_is_a_stream_that_a_stock_unpacker_reads(
    sizes: list[int], tree_nbytes: int, extent_pages: int
) -> None:
    """Whatever the sizes, the file is msgpack to the end, and payload lies on its boundaries inside its extents."""
    chunks = [msgpack.packb(["x" * tree_nbytes])]
    arrays = [ArrayMeta(np.dtype("u1"), (nbytes,)) for nbytes in sizes]
    index = Index(chunks=chunks, arrays=arrays)
    extent_nbytes = extent_pages * PAGE_NBYTES
    plan = form.plan(index, Pacer(), extent_nbytes=extent_nbytes)
    data = render(plan, sizes)
    assert plan.nbytes % PAGE_NBYTES == 0
    unpacker = msgpack.Unpacker(max_buffer_size=len(data))
    unpacker.feed(data)
    objects = list(unpacker)
    assert unpacker.tell() == len(data), "the stream ends with the file"
    assert objects[0]["asyncckpt"] == 1
    assert all(type(each) is bytes for each in objects[1:])
    assert max(map(len, objects[1:]), default=0) <= extent_nbytes + PAGE_NBYTES
    _, segments = decode_index(memoryview(data)[: plan.index_nbytes], file_nbytes=plan.nbytes, pacer=Pacer())
    counts = [0] * len(sizes)
    for array, offset, nbytes in ((each.array, each.offset, each.nbytes) for each in segments):
        assert data[offset : offset + nbytes] == bytes([array + 1]) * nbytes
        is_large = sizes[array] >= PAGE_NBYTES
        assert offset % (PAGE_NBYTES if is_large else 64) == 0
        counts[array] += 1
    for size, count in zip(sizes, counts, strict=True):
        assert count == (0 if size == 0 else max(1, -(-size // extent_nbytes)))
    total = sum(-(-size // PAGE_NBYTES) * PAGE_NBYTES for size in sizes)
    assert plan.nbytes <= plan.index_nbytes + total + PAGE_NBYTES * (4 + 2 * len(segments))


@pytest.mark.parametrize("sizes", [[], [1], [5000, 3]])
def test_every_remainder_of_a_page_is_padded(sizes: list[int]) -> None:
    """Wherever in a page the index ends, objects fill the file up to the payload; no gap is a single byte."""
    arrays = [ArrayMeta(np.dtype("u1"), (nbytes,)) for nbytes in sizes]
    for tree_nbytes in range(3700, 4200):
        plan = form.plan(Index(chunks=[b"x" * tree_nbytes], arrays=arrays), Pacer())
        data = render(plan, sizes)
        unpacker = msgpack.Unpacker(max_buffer_size=len(data))
        unpacker.feed(data)
        assert {type(each) for each in list(unpacker)[1:]} == {bytes}
        assert unpacker.tell() == len(data)


def test_a_terabyte_is_planned_without_touching_it() -> None:
    """Plans are made from sizes alone: 5 TB of arrays cost nothing, and have segments of at most 1 GiB."""
    arrays = [ArrayMeta(np.dtype("u1"), (1 << 40,)) for _ in range(5)] + [ArrayMeta(np.dtype("<f8"), (3,))]
    plan = form.plan(Index(chunks=[b"\x90"], arrays=arrays), Pacer())
    spans = [chunk for chunk in plan.entries if isinstance(chunk.source, Span)]
    assert len(spans) == 5 * 1024 + 1
    assert max(chunk.nbytes for chunk in spans) == 1 << 30
    assert plan.nbytes > 5 << 40


@pytest.fixture
def small_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write files of small extents."""
    monkeypatch.setattr(commit, "find_format", lambda _: SmallExtents())


STATE: Any = {
    "small": np.arange(5),
    "exact": np.arange(2048, dtype="u4"),
    "large": np.arange(40_000, dtype="<i4").reshape(100, 400),
    "more": [np.arange(9000, dtype="u1"), np.arange(1100, dtype=">f8")],
    "long": "text " * 9000,
    "empty": np.zeros((0, 3)),
    "end": np.arange(8193, dtype="u1"),
}


@pytest.mark.usefixtures("small_extents")
def test_arrays_in_several_extents(tmp_path: Path) -> None:
    """Arrays in several segments load, restore into any layout, select and map as if they were one run."""
    save_to(tmp_path, 1, STATE)
    assert_same(load_from(tmp_path, 1), STATE)
    target = {
        **STATE,
        "large": np.zeros((400, 100), "<i4").T,
        "more": [np.zeros(9000, "u1"), np.zeros(2200, ">f8")[::2]],
    }
    large = target["large"]
    found = load_from(tmp_path, 1, template=target, in_place=True)
    assert_same(found, STATE)
    assert found["large"] is large
    assert_same(load_from(tmp_path, 1, select="large"), {"large": STATE["large"]})
    lazy = load_from(tmp_path, 1, lazy=True)
    assert_same(lazy, STATE)


@pytest.mark.usefixtures("small_extents")
def test_segments_are_mapped_into_one_range_of_addresses(tmp_path: Path) -> None:
    """A lazy array over several extents is one read-only run of the file's own pages, freed with its last view."""
    path = save_to(tmp_path, 1, STATE)
    lazy = load_from(tmp_path, 1, lazy=True)["large"]
    assert lazy.flags.c_contiguous
    assert not lazy.flags.writeable
    assert lazy.ctypes.data % PAGE_NBYTES == 0
    with pytest.raises(ValueError, match="read-only"):
        lazy[0, 0] = 1
    address, nbytes = lazy.ctypes.data, lazy.nbytes
    assert _mapped(address, nbytes) == -(-nbytes // (2 * PAGE_NBYTES))
    for each in path.iterdir():
        each.unlink()
    path.rmdir()
    row = lazy[50:51]
    del lazy
    assert row[0, 0] == 50 * 400
    del row
    assert _mapped(address, nbytes) == 0


def _mapped(address: int, nbytes: int) -> int:
    """Count this process's mappings of a state file in a range of addresses."""
    maps = pathlib.Path("/proc/self/maps").read_text(encoding="utf-8")
    lines = [line for line in maps.splitlines() if "state.msgpack" in line and " r--s " in line]
    begins = [int(line.split("-", 1)[0], 16) for line in lines]
    return sum(address <= begin < address + nbytes for begin in begins)


def test_a_mapping_outlives_its_descriptor(tmp_path: Path) -> None:
    """A mapped file needs neither its descriptor nor its name."""
    (tmp_path / "f").write_bytes(bytes(range(256)) * 64)
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    mapped = MappedFile(fd)
    one, two = mapped.memory[5:8], mapped.join([(4096, 4096), (0, 100)])
    os.close(fd)
    del mapped
    (tmp_path / "f").unlink()
    assert one.tolist() == [5, 6, 7]
    assert two.tobytes() == bytes(range(256)) * 16 + bytes(range(100))


def test_formats_are_found_by_name() -> None:
    """Each format is found by its option's name."""
    assert find_format("msgpack").file_name == "state.msgpack"
    assert find_format("hdf5").file_name == "state.h5"
