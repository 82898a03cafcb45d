"""What happens when captured states reach the budget, or too many saves wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import Gate, hold

from asyncckpt import CheckpointManager, QueueFullError
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
LIMITS = pytest.mark.parametrize("limit", ["bytes", "frozen bytes", "saves"])


class Full:
    """A manager whose first save is held at the disk and whose queue takes no more."""

    def __init__(self, manager: CheckpointManager, limit: str) -> None:
        self.manager = manager
        self.limit = limit
        self.handles: list[Any] = []

    async def save(self, step: int, **more: Any) -> Any:
        """Save a state; two of them fill the budget."""
        state = [] if self.limit == "saves" else np.full(MIB // 2, float(step))
        return await self.manager.save(step, state, frozen=self.limit == "frozen bytes", **more)

    async def fill(self, gate: Gate) -> int:
        """Fill the queue behind a save that is held, and return the next step."""
        self.handles = [await self.save(0)]
        await gate.reached()
        count = 65 if self.limit == "saves" else 2
        self.handles += [await self.save(step) for step in range(1, count)]
        return count


def make(tmp_path: Path, disk: FaultyDisk, limit: str, overflow: Any) -> CheckpointManager:
    """Make a manager whose budget holds two states."""
    budget = 1 << 30 if limit == "saves" else 17 * MIB // 2
    return CheckpointManager(tmp_path, disk=disk, overflow=overflow, max_staged_nbytes=budget)


@LIMITS
async def test_wait(tmp_path: Path, limit: str) -> None:
    """overflow="wait": `save` waits until one has been committed; `save_nowait` says that the queue is full."""
    disk = FaultyDisk()
    async with make(tmp_path, disk, limit, "wait") as manager:
        full = Full(manager, limit)
        with hold(disk) as gate:
            step = await full.fill(gate)
            task = asyncio.create_task(full.save(step))
            done, _ = await asyncio.wait({task}, timeout=0.05)
            assert not done
            with pytest.raises(QueueFullError, match=f"step {step + 1}"):
                manager.save_nowait(step + 1, np.zeros(MIB // 10))
            assert manager.statistics().queue_depth == step - 1
        assert await (await task) is not None
        assert manager.steps() == list(range(step + 1))
    assert {each.state for each in full.handles} == {"committed"}


@LIMITS
async def test_skip(tmp_path: Path, limit: str) -> None:
    """overflow="skip": a save without room is skipped; its handle resolves to None and its step is free."""
    disk = FaultyDisk()
    async with make(tmp_path, disk, limit, "skip") as manager:
        full = Full(manager, limit)
        with hold(disk) as gate:
            step = await full.fill(gate)
            before = manager.statistics()
            for _ in range(2):
                handle = await full.save(step)
                assert handle.state == "skipped"
                assert await handle is None
            assert manager.save_nowait(step, np.zeros(MIB // 10)).state == "skipped"
            assert manager.statistics() == before
        await asyncio.gather(*full.handles)
        assert manager.steps() == list(range(step))
        assert await (await full.save(step)) is not None


@LIMITS
async def test_replace(tmp_path: Path, limit: str) -> None:
    """overflow="replace": the newest takes the place of those not being written, whose steps are free again."""
    disk = FaultyDisk()
    async with make(tmp_path, disk, limit, "replace") as manager:
        full = Full(manager, limit)
        with hold(disk) as gate:
            step = await full.fill(gate)
            handle = await full.save(step)
            assert full.handles[0].state == "writing"
            assert {each.state for each in full.handles[1:]} == {"replaced"}
            assert [await each for each in full.handles[1:]] == [None] * (step - 1)
            assert handle.state == "queued"
            assert manager.statistics().queue_depth == 1
            newest = manager.save_nowait(step + 1, np.zeros(MIB // 10))
            if limit == "saves":
                assert handle.state == "queued", "there is room"
            else:
                assert handle.state == "replaced"
        assert await newest is not None
        await manager.flush()
        expected = [0, step + 1] if limit != "saves" else [0, step, step + 1]
        assert manager.steps() == expected
        with pytest.warns(match="delete"):
            again = await manager.save(1, {})
        assert await again is not None


async def test_replace_waits_for_the_one_being_written(tmp_path: Path) -> None:
    """overflow="replace": if what is being written fills the budget by itself, the newest waits for it."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, overflow="replace", max_staged_nbytes=9 * MIB) as manager:
        with hold(disk) as gate:
            first = await manager.save(1, np.zeros(MIB))
            await gate.reached()
            task = asyncio.create_task(manager.save(2, np.zeros(MIB)))
            done, _ = await asyncio.wait({task}, timeout=0.05)
            assert not done
            with pytest.raises(QueueFullError):
                manager.save_nowait(3, np.zeros(1000))
            assert first.state == "writing"
        assert await (await task) is not None
        assert await first is not None


@pytest.mark.parametrize("overflow", ["wait", "skip", "replace"])
async def test_a_state_beyond_the_budget_waits_its_turn(tmp_path: Path, overflow: Any) -> None:
    """Whatever `overflow` says, a state larger than the budget waits, drops no other save, and is saved."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, overflow=overflow, max_staged_nbytes=8 * MIB + 1000) as manager:
        with hold(disk) as gate:
            handles = [await manager.save(0, np.full(MIB // 2, 1.0))]
            await gate.reached()
            handles.append(await manager.save(1, np.full(MIB // 2, 1.0)))
            # Its leaves alone, which are encoded at once, pass the budget.
            task = asyncio.create_task(manager.save(2, {"a": np.full(2 * MIB, 2.0), "s": "x" * 2000}))
            done, _ = await asyncio.wait({task}, timeout=0.05)
            assert not done
            assert [each.state for each in handles] == ["writing", "queued"]
        handle = await task
        assert await handle is not None
        assert [each.state for each in handles] == ["committed", "committed"]
        loaded = await manager.load(2)
        assert loaded is not None
        assert (loaded.state["a"] == 2).all()


async def test_skip_while_a_state_streams(tmp_path: Path) -> None:
    """overflow="skip": beside a state that streams there is no room, so a save is skipped and does not wait."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, overflow="skip", max_staged_nbytes=2 * MIB) as manager:
        with hold(disk, "write", "state.msgpack") as gate:
            task = asyncio.create_task(manager.save(1, np.zeros(2 * MIB)))
            await gate.reached()
            assert (await manager.save(2, {})).state == "skipped"
            assert manager.save_nowait(2, {}).state == "skipped"
        assert await (await task) is not None


async def test_staged_bytes_stay_within_the_budget(tmp_path: Path) -> None:
    """However many saves are called at once, captured bytes never pass the budget, and end at zero."""
    disk = FaultyDisk()
    budget = 9 * MIB
    seen: list[int] = []
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=budget) as manager:
        queue = manager._session.use().queue
        disk.fail("write", lambda: seen.append(queue.staged_nbytes), lasting=True)
        tasks = [asyncio.create_task(manager.save(step, np.full(MIB // 2, float(step)))) for step in range(8)]
        await asyncio.gather(*await asyncio.gather(*tasks))
        assert max(seen) <= budget
        assert manager.statistics().staged_nbytes == 0
        assert manager._session.pool.free_nbytes <= budget, "buffers are used again"
        assert manager.steps() == list(range(8))


async def test_encoded_leaves_count(tmp_path: Path) -> None:
    """Leaves that are no arrays take part in the budget with what their encoding takes."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, overflow="skip", max_staged_nbytes=3 * MIB) as manager:
        with hold(disk) as gate:
            state = {str(number): f"{number:0100}" for number in range(20_000)}
            first = await manager.save(1, state)
            await gate.reached()
            assert first.captured_nbytes >= 2_000_000
            assert manager.statistics().staged_nbytes == first.captured_nbytes
            assert (await manager.save(2, state)).state == "skipped"
        assert await first is not None
