"""A cancelled `save` leaves nothing behind; one that can no longer be cancelled is a save like any other."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, Self

import anyio
import numpy as np
import pytest
from helpers.gates import Gate, HeldPool, gone, hold, turns

import asyncckpt
from asyncckpt import CheckpointManager
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
POISON = -1.0


@asyncckpt.register_type(name="tests.Held")
class Held:
    """A leaf that holds the thread which encodes it."""

    def __init__(self, gate: Gate | None) -> None:
        self.gate = gate
        self.is_being_read = False

    def to_state(self) -> object:
        """Encode."""
        self.is_being_read = True
        if self.gate is not None:
            self.gate()
        self.is_being_read = False
        return 1

    @classmethod
    def from_state(cls, _: object) -> Self:
        """Decode."""
        return cls(None)


async def interrupted(task: asyncio.Task[Any], gate: Gate | None = None) -> None:
    """Cancel a task, which must not end before the gate is opened, and then must raise CancelledError."""
    task.cancel()
    if gate is not None:
        done, _ = await asyncio.wait({task}, timeout=0.02)
        assert not done, "a thread may still be looking at the caller's arrays"
        gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task


async def assert_nothing_happened(manager: CheckpointManager, step: int, path: Path) -> None:
    """Check that a step is free, nothing is staged or pending, and that it can be saved."""
    await manager.flush()
    assert manager.steps() == []
    assert step not in manager._session.use().steps.in_flight
    assert manager.statistics() == (0, 0, None, 0)
    assert list(path.glob("*step*")) == []
    with anyio.fail_after(30):
        handle = await manager.save(step, {"again": np.ones(MIB)})
        assert await handle is not None


async def test_while_waiting_for_the_turn(tmp_path: Path) -> None:
    """Cancelled behind another save that is being admitted."""
    manager = CheckpointManager(tmp_path)
    pool = manager._session.pool = HeldPool()
    async with manager:
        with Gate() as gate:
            pool.gate = gate
            first = asyncio.create_task(manager.save(1, np.ones(MIB)))
            await gate.reached()
            second = asyncio.create_task(manager.save(2, {"a": 1}))
            third = asyncio.create_task(manager.save(3, {"a": 1}))
            await turns(3)
            await interrupted(second)
            assert 2 not in manager._session.use().steps.in_flight
        assert await (await first) is not None
        assert await (await third) is not None
        assert manager.steps() == [1, 3]


async def test_while_waiting_for_room(tmp_path: Path) -> None:
    """Cancelled because the budget is full: the next in line takes the turn."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=9 * MIB) as manager:
        with hold(disk) as gate:
            first = await manager.save(1, np.ones(MIB))
            await gate.reached()
            second = asyncio.create_task(manager.save(2, np.ones(MIB)))
            done, _ = await asyncio.wait({second}, timeout=0.05)
            assert not done
            staged = manager.statistics().staged_nbytes
            await interrupted(second)
            assert manager.statistics() == (0, staged, None, 0)
            third = await manager.save(3, {})
            assert 2 not in manager._session.use().steps.in_flight
        await asyncio.gather(first, third)
        assert manager.steps() == [1, 3]


async def test_while_taking_the_directory(tmp_path: Path) -> None:
    """Cancelled while the lock is taken: nothing is queued, and the manager keeps the lock for the next save."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk, "open_lock", "") as gate:
            task = asyncio.create_task(manager.save(1, {}))
            await gate.reached()
            await interrupted(task)
        await assert_nothing_happened(manager, 1, tmp_path)


async def test_while_flattening(tmp_path: Path) -> None:
    """Cancelled while a thread walks the state: `save` raises when that thread has stopped."""
    async with CheckpointManager(tmp_path) as manager:
        with Gate() as gate:
            leaf = Held(gate)
            state: dict[str, Any] = {"big": np.ones(MIB), **dict.fromkeys(map(str, range(20_000))), "held": leaf}
            task = asyncio.create_task(manager.save(1, state))
            await gate.reached()
            await interrupted(task, gate)
            assert not leaf.is_being_read
        await assert_nothing_happened(manager, 1, tmp_path)


async def test_while_copying(tmp_path: Path) -> None:
    """Cancelled while a thread copies: the buffers go back to the pool, and nothing refers to the arrays any more."""
    manager = CheckpointManager(tmp_path)
    pool = manager._session.pool = HeldPool()
    async with manager:
        with Gate() as gate:
            pool.gate = gate
            array = np.ones(20 * MIB // 8)
            alive = weakref.ref(array)
            task = asyncio.create_task(manager.save(1, [array]))
            await gate.reached()
            await interrupted(task, gate)
        assert pool.taken_nbytes > 0
        assert pool.free_nbytes == pool.taken_nbytes
        del task, array
        await gone(alive)
        await assert_nothing_happened(manager, 1, tmp_path)


@pytest.mark.parametrize("operation", ["mkdir", "write"])
async def test_while_streaming(tmp_path: Path, operation: str) -> None:
    """Cancelled while the state streams: `save` raises when the writing has stopped, and what was written is gone."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=2 * MIB) as manager:
        after = 3 if operation == "write" else 0
        # All further ones are held: the other threads must not write the whole state before the cancellation comes.
        with hold(disk, operation, "tmp_step_1", after=after, lasting=True) as gate:
            array = np.ones(4 * MIB)
            task = asyncio.create_task(manager.save(1, array))
            await gate.reached()
            await interrupted(task, gate)
            written = sum(each.nbytes or 0 for each in disk.operations)
            array[:] = POISON
        assert written < array.nbytes / 2
        await assert_nothing_happened(manager, 1, tmp_path)


async def test_while_queued_to_stream(tmp_path: Path) -> None:
    """Cancelled while a state that is to stream waits in the queue: it leaves the queue at once."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=2 * MIB) as manager:
        with hold(disk) as gate:
            first = await manager.save(1, {})
            await gate.reached()
            task = asyncio.create_task(manager.save(2, np.ones(MIB)))
            while manager.statistics().queue_depth != 1:
                assert not task.done()
                await asyncio.sleep(0)
            await interrupted(task)
            assert manager.statistics().queue_depth == 0
        await first
        await manager.flush()
        assert manager.steps() == [1]


@pytest.mark.parametrize("budget", [1 << 30, 2 * MIB], ids=["staged", "streamed"])
@pytest.mark.parametrize("way", ["cancel", "timeout", "scope"])
async def test_at_any_moment(tmp_path: Path, budget: int, way: str) -> None:
    """Wherever a cancellation strikes: either `save` raises and nothing of it is kept, or the save is whole.

    After it raised, no thread looks at the arrays: they are poisoned, and no poison is ever committed.
    """
    async with CheckpointManager(tmp_path, max_staged_nbytes=budget) as manager:
        pool = manager._session.pool
        expected = {}
        for step in range(40):
            array = np.full(MIB // 2, float(step))
            task = asyncio.create_task(_cancelled_save(way, manager, step, array))
            await turns(step)
            if way == "cancel":
                task.cancel()
            try:
                handle = await task
            except (asyncio.CancelledError, TimeoutError):
                assert step not in manager._session.use().steps.in_flight
                array[:] = POISON
            else:
                array[:] = POISON
                expected[step] = float(step)
                await handle
        await manager.flush()
        assert manager.steps() == sorted(expected)
        assert manager.statistics().staged_nbytes == 0
        assert pool.free_nbytes <= 2 * (5 * MIB)
        for step, value in expected.items():
            loaded = await manager.load(step)
            assert loaded is not None
            assert (loaded.state == value).all()
    assert not list(tmp_path.glob("tmp_*"))


async def _cancelled_save(way: str, manager: CheckpointManager, step: int, array: Any) -> asyncckpt.SaveHandle:
    if way == "timeout":
        async with asyncio.timeout(step * 0.0002):
            return await manager.save(step, array)
    if way == "scope":
        with anyio.fail_after(step * 0.0002):
            return await manager.save(step, array)
    return await manager.save(step, array)


class LateCancel:
    """Cancels a task between the capture of the last block and the return of `save`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, strike: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()

        def copied(progress: Any) -> None:
            def set_and_strike() -> None:
                progress._item.captured.set()
                strike()

            loop.call_soon_threadsafe(set_and_strike)

        monkeypatch.setattr("asyncckpt.saving.writer._Progress.copied", copied)


async def test_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled when everything is captured: `save` returns its handle, and the next await is cancelled."""
    async with CheckpointManager(tmp_path, max_staged_nbytes=2 * MIB) as manager:
        events: list[object] = []

        async def body() -> None:
            events.append(await manager.save(1, np.ones(MIB)))
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                events.append("cancelled")
                task = asyncio.current_task()
                assert task is not None
                assert task.cancelling() == 1
                raise

        task = asyncio.create_task(body())
        LateCancel(monkeypatch, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        handle = events[0]
        assert isinstance(handle, asyncckpt.SaveHandle)
        assert events[1:] == ["cancelled"]
        assert await handle is not None
        assert manager.steps() == [1]


async def test_too_late_and_nothing_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that does nothing but save, cancelled when everything is captured, gives its handle all the same."""
    async with CheckpointManager(tmp_path, max_staged_nbytes=2 * MIB) as manager:
        task = asyncio.create_task(manager.save(1, np.ones(MIB)))
        LateCancel(monkeypatch, task.cancel)
        handle = await task
        assert await handle is not None


@pytest.mark.parametrize("has_await", [True, False])
async def test_a_timeout_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_await: bool) -> None:
    """An `asyncio.timeout` that strikes too late becomes TimeoutError at the block's next await, or nothing at all.

    Whichever: the task is not cancelled afterwards.
    """
    async with CheckpointManager(tmp_path, max_staged_nbytes=2 * MIB) as manager:
        handle = None
        is_timed_out = False
        try:
            async with asyncio.timeout(None) as scope:
                LateCancel(monkeypatch, lambda: scope.reschedule(0))
                LateCancel(monkeypatch, scope._on_timeout)  # type: ignore[attr-defined]
                handle = await manager.save(1, np.ones(MIB))
                if has_await:
                    await asyncio.sleep(10)
        except TimeoutError:
            is_timed_out = True
        assert is_timed_out == has_await
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0.01)
        assert handle is not None
        assert await handle is not None


async def test_a_cancelled_load_stops_its_threads(tmp_path: Path) -> None:
    """A load that is cancelled raises when its threads have stopped, and the manager works on."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, np.ones(4 * MIB)))
        for count in range(20):
            task = asyncio.create_task(manager.load("latest"))
            await turns(count)
            task.cancel()
            await asyncio.wait({task})
            assert not manager._session.use().jobs._running
        loaded = await manager.load("latest")
        assert loaded is not None


async def test_flush_and_delete_may_be_cancelled(tmp_path: Path) -> None:
    """A cancelled `flush` or `delete` raises at once; the deletion keeps its place in the queue."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, {}))
        with hold(disk) as gate:
            handle = await manager.save(2, {})
            await gate.reached()
            tasks = [asyncio.create_task(manager.flush()), asyncio.create_task(manager.delete(1))]
            await turns(2)
            for task in tasks:
                await interrupted(task)
        await handle
        await manager.flush()
        assert manager.steps() == [2]
