"""What becomes of changes that come to nothing, of callers that are cancelled, and of the index that shows them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import Gate, turns
from helpers.kinds import Place
from helpers.support import own_threads

import asyncckpt
from asyncckpt.disk.ops import DiskOps
from asyncckpt.keyed.memory import MemoryStore
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Sequence

MANY = {f"k{n}": n for n in range(300)}
"""More names than the index holds of one value."""


class Held:
    """A serializer that holds the job that reads a value, in any kind."""

    def __init__(self) -> None:
        self.gate: Gate | None = None

    def to_state(self, value: Any) -> Any:
        """Return the value."""
        return value

    def from_state(self, state: Any) -> Any:
        """Return the value when the gate is open."""
        if self.gate is not None:
            self.gate()
        return state


async def contents(place: Place) -> dict[str, Any]:
    """Read everything, as a new process would."""
    return await asyncio.to_thread(place.contents)


async def hold(chk: asyncckpt.AsyncCheckpointer, held: Held) -> asyncio.Future[Any]:
    """Let a job begin that lasts until its gate is opened."""
    held.gate = Gate()
    load = asyncio.ensure_future(chk.load_parameter("held"))
    await held.gate.reached()
    return load


@pytest.mark.parametrize("rounds", [1, 2, 5])
async def test_leaving_flushes_though_all_tasks_are_cancelled(place: Place, rounds: int) -> None:
    """As at the end of `asyncio.run`: the view's own tasks are cancelled, too, each time while they wait."""
    held = Held()
    chk = place.open(serializer=held)
    loads = []

    async def program() -> None:
        async with chk as view:
            view["held"] = 0
            await view.flush()
            loads.append(await hold(view, held))
            view["a"] = np.zeros(1000)

    before = asyncio.all_tasks()
    task = asyncio.ensure_future(program())
    while not (loads and chk.is_open and len(asyncio.all_tasks() - before) >= 3):
        await asyncio.sleep(0)
    assert held.gate is not None
    for _ in range(rounds):
        await turns(5)
        for each in asyncio.all_tasks() - before:
            each.cancel()
    await turns(5)
    held.gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    with contextlib.suppress(asyncio.CancelledError):
        await loads[0]
    assert not chk.is_open
    assert asyncio.all_tasks() == before
    assert list(await contents(place)) == ["held", "a"]
    async with place.open() as view:  # the lock is free
        view["b"] = 1


async def test_a_pop_that_is_cancelled_changes_nothing(place: Place) -> None:
    """Neither while it waits nor while it reads; what the index shows of it reaches neither store nor file."""
    held = Held()
    async with place.open(serializer=held) as chk:
        chk["a"] = {"b": 1, "c": 2}
        chk["held"] = 0
        await chk.flush()
        load = await hold(chk, held)
        assert held.gate is not None
        with held.gate:
            waiting = asyncio.ensure_future(chk.pop(("a", "b")))
            await turns(3)
            assert ("a", "b") not in chk
            chk["a", "d"] = 2
            chk["a", "d"] = 3
            late = asyncio.ensure_future(chk.pop("a"))
            await turns(3)
            assert "a" not in chk
            for each in (waiting, late):
                each.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await each
            assert ("a", "b") in chk
            assert ("a", "d") in chk
        await load
        assert await chk["a", "d"] == 3
        del chk["a", "d"]
        held.gate = gate = Gate()
        reading = asyncio.ensure_future(chk.pop("a"))
        with gate:
            await gate.reached()
            reading.cancel()
            await turns(3)
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert list(chk) == ["a", "held"]
        assert ("a", "d") not in chk
        assert await chk["a"] == {"b": 1, "c": 2}
        chk["held"] = 1
    async with place.open() as chk:
        assert ("a", "b") in chk
        assert ("a", "c") in chk
        assert await chk["a"] == {"b": 1, "c": 2}


async def test_a_file_has_the_names_of_its_flush(file: Place) -> None:
    """And not those that were set while it was written."""
    disk = FaultyDisk()
    async with file.open(disk=disk) as chk:
        chk["a"] = {"b": 1}
        await chk.flush()
        chk["a"] = {"b": 2}
        gate = Gate()
        disk.fail(None, gate)
        flush = asyncio.ensure_future(chk.flush())
        with gate:
            await gate.reached()
            chk["a", "c"] = 2
            assert ("a", "c") in chk
        await flush
        killed = Place(file.kind, file.directory, "killed")
        await asyncio.to_thread(shutil.copy, file.path, killed.path)
    async with killed.open() as chk:
        value = await chk["a"]
        assert (("a", "c") in chk) == ("c" in value)
        assert value["b"] == 2


async def test_the_index_after_a_refusal_shows_what_waits(place: Place) -> None:
    """All of it: what is queued, what is popped, and what is written without being queued."""
    held = Held()
    async with place.open(serializer=held, max_staged_nbytes=100_000) as chk:
        await chk.update(many=MANY, p=1, held=0)
        await chk.flush()
        load = await hold(chk, held)
        assert held.gate is not None
        with held.gate:
            chk["many", "k7", "x"] = 2  # no dict, which only its job will find
            pop = asyncio.ensure_future(chk.pop("p"))
            save = asyncio.ensure_future(chk.save_parameter("big", np.zeros(50_000)))
            while "big" not in chk:
                await asyncio.sleep(0)
            assert list(chk) == ["many", "held", "big"]
        assert await pop == 1
        assert list(chk) == ["many", "held", "big"]
        await asyncio.gather(load, save)
        assert list(chk) == ["many", "held", "big"]
        with pytest.raises(asyncckpt.CheckpointKeyError, match="is of type int, not a dict"):
            await chk.flush()
    assert list(await contents(place)) == ["many", "held", "big"]


async def test_a_large_save_that_fails_leaves_the_index_as_it_was(file: Place) -> None:
    """The key is shown while it is written, and has its old place when nothing came of it."""
    disk = FaultyDisk()
    async with file.open(disk=disk, max_staged_nbytes=10_000) as chk:
        chk["a"] = {"x": 1}
        chk["b"] = 2
        await chk.flush()
        disk.fail(None, errno.ENOSPC, lasting=True)
        with contextlib.suppress(OSError):  # kinds that write at the flush only keep it
            await chk.save_parameter("a", np.zeros(1 << 17))
        disk.heal()
        assert list(chk) == ["a", "b"]
        assert (("a", "x") in chk) == isinstance(await chk["a"], dict)


async def test_paths_that_the_index_does_not_know(place: Place) -> None:
    """What waits may ask the file; what does not says so."""
    async with place.open() as chk:
        await chk.save_parameter("many", MANY)
        await chk.delete_parameter(("many", "k1"))
        assert await chk.pop(("many", "k2")) == 2
        assert await chk.pop(("many", "k2"), 7) == 7
        with pytest.raises(asyncckpt.CheckpointKeyError, match="k1"):
            await chk.delete_parameter(("many", "k1"))
        with pytest.raises(asyncckpt.CheckpointerUsageError, match="`await chk"):
            ("many", "k1") in chk  # noqa: B015 - it raises
        with pytest.raises(asyncckpt.CheckpointerUsageError, match="delete_parameter"):
            del chk["many", "k3"]
    assert await contents(place) == {"many": {k: v for k, v in MANY.items() if k not in {"k1", "k2"}}}


async def test_cached_eval_has_a_condition_for_each_caller(place: Place) -> None:
    """What another caller computes at the same time may not do for this one."""
    gate = asyncio.Event()

    async def small() -> int:
        await gate.wait()
        return 1

    async def large() -> int:
        gate.set()
        await asyncio.sleep(0)
        return 10

    async with place.open() as chk:
        calls = (chk.cached_eval("k", small), chk.cached_eval("k", large, condition=lambda v: v > 5))
        tasks = [asyncio.ensure_future(each) for each in calls]
        await turns(10)
        gate.set()
        assert await asyncio.gather(*tasks) == [1, 10]
        assert await chk["k"] == 10


async def test_cached_eval_in_its_own_generator(place: Place) -> None:
    """It would wait for itself; of another key it may be used there."""
    async with place.open() as chk:

        async def generator(key: str) -> int:
            return await chk.cached_eval(key, lambda: 5)

        with pytest.raises(asyncckpt.CheckpointerUsageError, match="'k' waits for 'k'"):
            await asyncio.wait_for(chk.cached_eval("k", generator, args=("k",)), 60)
        assert await chk.cached_eval("k", generator, args=("other",)) == 5


async def test_cached_evals_that_wait_for_each_other(place: Place) -> None:
    """Through tasks of their own, too: the one that closes the circle is told, and nobody waits for ever."""
    async with place.open() as chk:
        together = asyncio.Barrier(3)
        needs = {"a": "b", "b": ("c", 1), ("c", 1): "a"}

        async def generator(key: Any) -> int:
            if key in first:
                first.discard(key)
                await together.wait()
            return await asyncio.gather(chk.cached_eval(needs[key], generator, args=(needs[key],)))  # type: ignore[return-value]

        first = set(needs)
        calls = [chk.cached_eval(key, generator, args=(key,)) for key in needs]
        errors = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
        assert {type(error) for error in errors} == {asyncckpt.CheckpointerUsageError}
        assert all(repr(key) in str(errors[0]) for key in needs)
        assert list(chk) == []
        assert await chk.cached_eval("a", lambda: 5) == 5


async def test_generators_may_need_the_same_key(place: Place) -> None:
    """One computes it, the other waits; there is no circle in that."""
    async with place.open() as chk:
        gate = asyncio.Event()

        async def shared() -> int:
            await gate.wait()
            return 3

        async def generator() -> int:
            return 2 * int(await chk.cached_eval("shared", shared))

        tasks = [asyncio.ensure_future(chk.cached_eval(key, generator)) for key in "abc"]
        await turns(10)
        gate.set()
        assert await asyncio.gather(*tasks) == [6, 6, 6]


async def test_another_writer_is_told_alone(file: Place) -> None:
    """However many jobs it has refused, `except FileLockedError` catches it."""
    async with file.open() as first:
        await first.save_parameter("a", 1)
        async with file.open() as second:
            second["b"] = 2
            await asyncio.sleep(0)
            second["c"] = 3
            with pytest.raises(asyncckpt.FileLockedError):
                await second.flush()
        with pytest.raises(asyncckpt.FileLockedError):
            async with file.open() as second:
                second["b"] = 2
                await asyncio.sleep(0)
                second["c"] = 3


async def test_the_budget_is_of_bytes() -> None:
    """Any number of small writes waits while it has room for what they take."""
    async with asyncckpt.DictCheckpointer() as chk:
        for number in range(5000):
            chk[f"{number}"] = number
        await chk.flush()
        assert len(chk) == 5000
    async with asyncckpt.DictCheckpointer(max_staged_nbytes=1 << 20) as chk:
        with pytest.raises(asyncckpt.QueueFullError, match="save_parameter"):
            for number in range(5000):
                chk[f"{number}"] = number
        assert 300 < len(chk) < 1000
        await chk.save_parameter("waits", 1)
        chk["again"] = 2


async def test_a_full_disk_keeps_nobody_from_loading(file: Place) -> None:
    """What is there is read; only the key that waits for room is not."""
    disk = FaultyDisk()
    async with file.open() as chk:
        chk["a"] = 1
    async with file.open(disk=disk) as chk:
        disk.fail(None, errno.ENOSPC, lasting=True)
        chk["b"] = 2
        assert await chk["a"] == 1
        assert await chk.get("z", 7) == 7
        with pytest.raises(OSError, match="No space"):
            await chk["b"]
        with pytest.raises(OSError, match="No space"):
            await chk.flush()
        chk["a"] = 3
        with pytest.raises(OSError, match="No space"):
            await chk["a"]
        disk.heal()
        assert await chk["a"] == 3
    assert await contents(file) == {"a": 3, "b": 2}


class FullDisk(DiskOps):
    """A disk whose files end at so many bytes."""

    limit = 2 << 20

    def write(self, fd: int, buffers: Sequence[Any], offset: int) -> int:
        """Write, where there is room."""
        if offset + sum(memoryview(part).nbytes for part in buffers) > self.limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(fd, buffers, offset)


async def test_a_deletion_takes_back_what_the_disk_refused(file: Place) -> None:
    """Until then flush tells of it each time, and what was called after it waits: all keys count together."""
    async with file.open(disk=FullDisk()) as chk:
        chk["old"], chk["kept"] = 1, 2
        await chk.flush()
        big = np.ones(1 << 19)
        await chk.save_parameter("big", big)
        del chk["old"]
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                await chk.flush()
            assert list(chk) == ["kept", "big"]
            assert await contents(file) == {"old": 1, "kept": 2}
        del chk["big"]
        chk["new"] = 3
        await chk.flush()
        assert list(chk) == ["kept", "new"]
        assert await contents(file) == {"kept": 2, "new": 3}
        await chk.save_parameter("kept", big)
        with pytest.raises(OSError, match="No space"):
            await chk.flush()
        chk["kept"] = 4
        await chk.flush()
    assert await contents(file) == {"kept": 4, "new": 3}


async def test_what_is_listed_after_a_refused_change_is_what_the_file_will_have(file: Place) -> None:
    """In that order, whatever of it was dropped for the sake of a later change."""
    disk = FaultyDisk()
    async with file.open(disk=disk) as chk:
        chk["a"], chk["b"] = 1, 2
        await chk.flush()
        disk.fail("write", errno.ENOSPC, lasting=True)
        del chk["a"]
        chk["a"] = 3
        chk["new"] = 4
        chk["c"] = 5
        chk["new"] = 6
        with pytest.raises(OSError, match="No space"):
            await chk.flush()
        disk.heal()
        await chk.flush()
        listed = list(chk)
    assert list(await contents(file)) == listed
    assert await contents(file) == {"a": 3, "b": 2, "new": 6, "c": 5}


async def test_a_path_that_is_none_is_refused_at_once(place: Place) -> None:
    """Before anything waits, and once."""
    async with place.open() as chk:
        for path in (("a", []), ("a", [], "b")):
            with pytest.raises(TypeError, match="hashable"):
                chk[path] = 1
            with pytest.raises(TypeError, match="hashable"):
                await chk.save_parameter(path, 1)
        await chk.flush()
        assert list(chk) == []


async def test_no_thread_is_left_if_the_file_cannot_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes out of the block."""

    def close(_: MemoryStore) -> None:
        raise OSError(errno.EIO, "not closed")

    monkeypatch.setattr(MemoryStore, "close", close)
    with pytest.raises(OSError, match="not closed"):
        async with asyncckpt.DictCheckpointer() as chk:
            chk["a"] = 1
            await chk.flush()
    assert own_threads() == []
