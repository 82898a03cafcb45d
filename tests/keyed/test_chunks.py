"""What keeps the loop free beside files of very many keys: few objects for a collector, and work in chunks."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.support import assert_same, held_by

import asyncckpt
from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.keyed import async_session
from asyncckpt.keyed.values import PackedValue, build_captured, capture, capture_live, pack_index, unpack_index
from asyncckpt.runtime.buffers import BufferPool
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.encode import flatten

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = 600


@contextmanager
def _no_collections() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    threshold = gc.get_threshold()
    gc.set_threshold(1 << 30)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)


def _value(number: int) -> dict[str, Any]:
    return {"a": number, "b": np.full(4, number, float), "c": "text"}


async def _save_many(chk: Any) -> None:
    for number in range(KEYS):
        await chk.save_parameter(f"key {number}", _value(number))
    await chk.flush()


@pytest.mark.parametrize("name", ["x.h5", "x.msgpack", "x.json", "x.npz"])
@pytest.mark.anyio
async def test_a_flush_leaves_no_cycles(tmp_path: Path, name: str) -> None:
    """What was written is gone when nobody refers to it: a collector that has to find it stops everything."""
    async with asyncckpt.Checkpointer.from_file(tmp_path / name) as chk:
        await chk.save_parameter("first", _value(0))
        await chk.flush()
        with _no_collections():
            await _save_many(chk)
            assert _in_cycles_of_ours() < KEYS // 2


def _in_cycles_of_ours() -> int:
    """Collect, and count the objects that hang together with an object, or a call, of the library's."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        garbage = {id(each): each for each in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    beside: dict[int, set[int]] = {number: set() for number in garbage}
    for number, each in garbage.items():
        for other in map(id, gc.get_referents(each)):
            if other in garbage:
                beside[number].add(other)
                beside[other].add(number)
    left = [number for number, each in garbage.items() if _is_ours(each)]
    found = set()
    while left:
        if (number := left.pop()) not in found:
            found.add(number)
            left += beside[number]
    return len(found)


def _is_ours(thing: Any) -> bool:
    code = getattr(thing, "f_code", None) or getattr(thing, "cr_code", None) or getattr(thing, "__code__", None)
    is_called = isinstance(code, CodeType) and Path(code.co_filename).is_relative_to(Path(asyncckpt.__file__).parent)
    return is_called or type(thing).__module__.partition(".")[0] in ("asyncckpt", "numpy", "h5py")


@pytest.mark.parametrize(("name", "most"), [("x.h5", 2.5), ("x.msgpack", 4.5), ("x.json", 0.5), ("x.npz", 4.5)])
@pytest.mark.anyio
async def test_objects_that_a_collector_walks_over(tmp_path: Path, name: str, most: float) -> None:
    """So many for each key of an open file, whatever its value is."""
    async with asyncckpt.Checkpointer.from_file(tmp_path / name) as chk:
        await chk.save_parameter("first", _value(0))
        await chk.flush()
        with _no_collections():
            await _save_many(chk)
            await chk.load_parameter("first")  # behind the job that wrote, which still lets go of what it had
            gc.collect()
            assert len(held_by(chk, *_kept_by_modules())) < most * KEYS + 200


def _kept_by_modules() -> list[object]:
    """Return the values of all names of the library's modules, which might keep what a keyed file has let go."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "asyncckpt"]
    return [value for module in modules for value in vars(module).values()]


def test_a_packed_value_is_two_objects() -> None:
    """One that waits is what it was, and of all that it holds a collector walks over the outermost object alone."""
    value = {"a": [1, (2.5, None)], "b": np.arange(12).reshape(3, 4).T, "long": "x" * 70_000, "none": np.zeros((0, 2))}
    expected = value | {"b": value["b"].copy()}
    packed = PackedValue.of_flat(flatten(value, root="key", pacer=Pacer(yields=False)))
    value["b"][:] = 0
    gc.collect()
    assert not gc.is_tracked(packed._index)
    for made in (packed, packed.share(), packed.unpack().pack()):
        captured = made.unpack()
        assert captured.stored_nbytes == packed.stored_nbytes
        assert_same(build_captured(captured, Pacer()).value, expected)


@pytest.mark.parametrize("capturing", ["live", "pooled"])
def test_any_captured_value_can_be_packed(capturing: str) -> None:
    """A store may keep a small value in memory, however it was captured."""
    value = {"a": np.arange(6).reshape(2, 3).T, "b": np.ones(3000), "c": np.arange(5, dtype="u1"), "d": "x" * 70_000}
    expected = value | {"a": value["a"].copy(), "b": value["b"].copy()}
    pool = BufferPool()
    if capturing == "live":
        captured = capture_live(value, "key", JobContext())
    else:
        captured = capture(flatten(value, root="key", pacer=Pacer()), pool, JobContext())
    packed = captured.pack()
    captured.release()
    value["a"][:] = value["b"][:] = 0
    assert_same(build_captured(packed.unpack(), Pacer()).value, expected)
    pool.close()


def test_a_released_packed_value_holds_no_memory() -> None:
    """What a write has taken goes when it is written, though the change itself is told of later."""
    packed = PackedValue.of_flat(flatten(np.arange(1000), root="key", pacer=Pacer(yields=False)))
    shared = packed.share()
    packed.release()
    assert sum(map(sys.getsizeof, gc.get_referents(packed))) < 8000
    assert_same(build_captured(shared.unpack(), Pacer()).value, np.arange(1000))


def test_packing_an_index() -> None:
    """Nothing of it is lost, whatever dtypes and shapes it has."""
    metas = [ArrayMeta(np.dtype("f8"), ()), ArrayMeta(np.dtype([("x", "i4")]), (3, 0, 2))]
    index = unpack_index(pack_index(ix.Index([b"a", b"b"], metas)))
    assert list(index.chunks) == [b"a", b"b"]
    assert [(meta.dtype, meta.shape) for meta in index.arrays] == [(meta.dtype, meta.shape) for meta in metas]
    assert unpack_index(pack_index(ix.Index([], []))) == ix.Index([], [])


def test_parts_of_a_job_share_a_pacer() -> None:
    """A job of many short parts pauses between them, for none of them takes long by itself."""
    work = JobContext()
    assert work.pacer is work.pacer


@pytest.mark.anyio
async def test_deletions_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who deletes many keys in a row lets the loop run between them."""
    monkeypatch.setattr(async_session, "_YIELD_SECONDS", 0.0)
    async with asyncckpt.Checkpointer.from_file(tmp_path / "x.msgpack") as chk:
        for number in range(8):
            await chk.save_parameter(f"key {number}", number)
        await chk.flush()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await asyncio.sleep(0)
        before = turns
        for number in range(8):
            await chk.delete_parameter(f"key {number}")
        assert turns - before >= 8
        counting.cancel()


@pytest.mark.anyio
async def test_json_that_another_program_rewrites_in_its_place(tmp_path: Path) -> None:
    """What somebody writes there meanwhile is never taken for what was opened, which the next flush writes again."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": 1, "c": [2, 3], "b": "b" * (4 << 20)}))
    async with asyncckpt.Checkpointer.from_file(path, rewrite=True) as chk:
        assert await chk.load_parameter("c") == [2, 3]
        await chk.save_parameter("d", 4)
        with path.open("r+b") as file:
            file.seek(1 << 20)
            file.write(b"x")
        assert await chk.load_parameter("b") == "b" * (4 << 20)
        with path.open("r+b") as file:
            file.truncate(1 << 20)
        await chk.flush()
    assert json.loads(path.read_text()) == {"a": 1, "c": [2, 3], "b": "b" * (4 << 20), "d": 4}


@pytest.mark.anyio
async def test_json_that_another_program_touches_or_appends_to(tmp_path: Path) -> None:
    """What was opened is still there, so nothing is refused or lost."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": 1, "b": "b" * (4 << 20), "c": [2, 3]}))
    async with asyncckpt.Checkpointer.from_file(path, rewrite=True) as chk:
        await chk.save_parameter("d", 4)
        await chk.load_parameter("d")
        os.utime(path, (1, 1))
        with path.open("ab") as file:
            file.write(b"  and more")
        assert await chk.load_parameter("b") == "b" * (4 << 20)
    assert list(json.loads(path.read_text())) == ["a", "b", "c", "d"]


@pytest.mark.anyio
async def test_json_keeps_the_text_of_what_did_not_change(tmp_path: Path) -> None:
    """A flush writes it back as it was, beside what is new."""
    path = tmp_path / "x.json"
    path.write_text('{"foreign":   [1,   2]}')
    async with asyncckpt.Checkpointer.from_file(path, rewrite=True) as chk:
        await chk.save_parameter("own", np.arange(300_000))
        await chk.flush()
        assert '"foreign": [1,   2]' in path.read_text()
        assert_same(await chk.load_parameter("own"), np.arange(300_000))
        assert await chk.load_parameter("foreign") == [1, 2]
