"""Checkpoints whose arrays lie in several files and in boxes: no writer makes them yet, and every load reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.layouts import Layout, bytes_of, layouts
from helpers.support import assert_same, load_from, verify
from hypothesis import given

from asyncckpt import CorruptCheckpointError
from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.disk.manifest import IndexLocation, Manifest, digest_bytes
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.boxes import Box
from asyncckpt.state.encode import flatten
from asyncckpt.state.index import Index, IndexEncoder
from asyncckpt.state.segments import Segment

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 4096


def write(root: Path, step: int, layout: Layout) -> Path:
    """Write a checkpoint."""
    path = root / f"step_{step}"
    for name, data in layout.files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    files = {name: digest_bytes(data) for name, data in layout.files.items()}
    place = IndexLocation("state", 0, layout.index_nbytes)
    (path / "manifest.json").write_bytes(Manifest(step=step, created=0.0, files=files, index=place).encode())
    return path


@pytest.fixture
def layout() -> Layout:
    """Make a matrix of two halves in two files, and an array of blocks that lie in both in another order."""
    matrix = np.arange(2048 * 6, dtype="<f4").reshape(2048, 6)
    blocks = np.arange(4 * PAGE, dtype="<u8")
    small = np.arange(5, dtype="<i2")
    flat = flatten({"matrix": matrix, "blocks": blocks, "small": small}, pacer=Pacer())
    halves = {3: Box(0, (0, 0)), 4: Box(0, (0, 2))}
    arrays = [*flat.arrays, ArrayMeta(matrix.dtype, (2048, 2)), ArrayMeta(matrix.dtype, (2048, 4))]
    index = Index(flat.chunks, arrays, ["pack"], halves)
    runs = {
        "state": [(3, bytes_of(matrix[:, :2])), (1, blocks[PAGE : 2 * PAGE].tobytes()), (2, small.tobytes())],
        "pack": [(1, blocks[2 * PAGE :].tobytes()), (4, bytes_of(matrix[:, 2:])), (1, blocks[:PAGE].tobytes())],
    }
    encoder = IndexEncoder(index, Pacer())
    contents = {"state": bytearray(PAGE * -(-encoder.nbytes(6) // PAGE)), "pack": bytearray()}
    segments = []
    for file, (name, own) in enumerate(runs.items()):
        for array, content in own:
            segments.append((Segment(array, len(contents[name]), len(content), file), content))
            contents[name] += content + bytes(-len(content) % PAGE)
    order = [5, 1, 3, 0, 2, 4]  # the rows of array 1 follow each other as its bytes do
    table = [segments[number][0] for number in order]
    encoded = b"".join(encoder.encode(table))
    contents["state"][: len(encoded)] = encoded
    state = {"matrix": matrix, "blocks": blocks, "small": small}
    return Layout(state, index, table, len(encoded), {name: bytes(data) for name, data in contents.items()})


@given(layouts())
def test_any_layout_is_loaded(tmp_path_factory: pytest.TempPathFactory, layout: Layout) -> None:
    """New arrays, mapped ones, a template's own and some of them have the contents that were written."""
    root = tmp_path_factory.mktemp("run")
    write(root, 1, layout)
    verify(root, 1)
    assert_same(load_from(root, 1), layout.state)
    found = load_from(root, 1, lazy=True)
    assert {name: bytes_of(array) for name, array in found.items()} == {
        name: bytes_of(array) for name, array in layout.state.items()
    }
    template: dict[str, Any] = {
        name: np.zeros(array.shape, array.dtype, order="F") for name, array in layout.state.items()
    }
    arrays = list(template.values())
    assert load_from(root, 1, template=template, in_place=True) is template
    assert all(own is array for own, array in zip(arrays, template.values(), strict=True))
    for name, array in layout.state.items():
        assert bytes_of(template[name]) == bytes_of(array)
    assert_same(load_from(root, 1, select="a0"), {"a0": layout.state["a0"]})


def test_only_the_wanted_files_are_opened(tmp_path: Path, layout: Layout) -> None:
    """A file of which nothing is wanted may be missing."""
    (write(tmp_path, 1, layout) / "pack").unlink()
    assert_same(load_from(tmp_path, 1, select="small"), {"small": layout.state["small"]})
    with pytest.raises(CorruptCheckpointError, match="pack cannot be opened"):
        load_from(tmp_path, 1, select="blocks")


def test_an_array_in_the_template_twice_is_filled_in_both_places(tmp_path: Path) -> None:
    """An array that consists of boxes, too, is read once and is then in each place."""
    whole = np.arange(12, dtype="<i4").reshape(3, 4)
    flat = flatten([whole, whole], pacer=Pacer())
    metas = [*flat.arrays, ArrayMeta(whole.dtype, (3, 1)), ArrayMeta(whole.dtype, (3, 3))]
    index = Index(flat.chunks, metas, boxes={1: Box(0, (0, 0)), 2: Box(0, (0, 1))})
    data = bytes_of(whole[:, :1]) + bytes_of(whole[:, 1:])
    encoder = IndexEncoder(index, Pacer())
    base = encoder.nbytes(2)
    segments = [Segment(1, base, 12), Segment(2, base + 12, 36)]
    files = {"state": b"".join(encoder.encode(segments)) + data}
    write(tmp_path, 1, Layout({}, index, segments, base, files))
    first, second = np.zeros((3, 4), "<i4"), np.zeros((3, 4), "<i4", order="F")
    load_from(tmp_path, 1, template=[first, second], in_place=True)
    assert_same([first, np.ascontiguousarray(second)], [whole, whole])


@pytest.mark.parametrize("lazy", [False, True])
def test_nothing_of_a_damaged_file_is_used(tmp_path: Path, layout: Layout, lazy: bool) -> None:
    """The bytes of every file are verified where they are read, and the error names the file."""
    file = write(tmp_path, 1, layout) / "pack"
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match="pack is damaged"):
        load_from(tmp_path, 1, lazy=lazy)


def test_an_error_names_what_lies_in_all_files_that_were_read(tmp_path: Path, layout: Layout) -> None:
    """Arrays of a file that was whole have been overwritten, too."""
    file = write(tmp_path, 1, layout) / "pack"
    file.write_bytes(bytes(len(layout.files["pack"])))
    template = {name: np.ones_like(array) for name, array in layout.state.items()}
    with pytest.raises(CorruptCheckpointError) as caught:
        load_from(tmp_path, 1, template=template, in_place=True)
    assert caught.value.overwritten == ("blocks", "matrix", "small")


def test_a_leaf_that_is_a_part_of_another_array_is_damage(tmp_path: Path) -> None:
    """Its memory would be that of another leaf."""
    flat = flatten([np.zeros(2)], pacer=Pacer())
    metas = [ArrayMeta(np.dtype("<f8"), (2,)), ArrayMeta(np.dtype("<f8"), (2,))]
    index = Index(flat.chunks, metas, boxes={0: Box(1, (0,))})
    encoder = IndexEncoder(index, Pacer())
    base = encoder.nbytes(1)
    segments = [Segment(0, base, 16)]
    write(tmp_path, 1, Layout({}, index, segments, base, {"state": b"".join(encoder.encode(segments)) + bytes(16)}))
    for request in ({}, {"lazy": True}, {"template": [np.zeros(2)]}):
        with pytest.raises(CorruptCheckpointError, match="part of another array"):
            load_from(tmp_path, 1, **request)
