"""When to save, as a program asks for it: the manager tells the rules what becomes of its saves."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import hold

import asyncckpt
from asyncckpt import CheckpointManager, SaveReason
from asyncckpt.runtime.buffers import BufferPool
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path

NONE = SaveReason(0)


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.time


class SlowPool(BufferPool):
    """A pool that takes its time: a save of a large state is held for so long."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self._clock, self._seconds = clock, seconds

    def take(self, nbytes: int) -> list[Any]:
        """Hand out buffers."""
        self._clock.time += self._seconds
        return super().take(nbytes)


async def test_an_accepted_save_restarts_the_interval(tmp_path: Path) -> None:
    """By `save` or `save_nowait`, with steps of any kind of int; the answer is a bool."""
    clock = Clock()
    async with CheckpointManager(tmp_path, save_interval=60, clock=clock) as manager:
        assert manager.should_save(np.int64(1)) is False
        clock.time = 60
        assert manager.should_save(np.int64(1)) is True
        assert manager.save_reason(1) == SaveReason.INTERVAL
        handle = await manager.save(1, {})
        assert manager.should_save(1) is False
        await handle
        clock.time = 120
        assert manager.should_save(np.uint8(2)) is True
        manager.save_nowait(2, {})
        assert manager.should_save(3) is False


async def test_a_save_that_is_refused_or_fails_leaves_the_step_due(tmp_path: Path) -> None:
    """It is due again as soon as the failure is known."""
    clock, disk = Clock(), FaultyDisk()
    async with CheckpointManager(tmp_path, save_interval=60, clock=clock, disk=disk) as manager:
        clock.time = 60
        with pytest.raises(asyncckpt.UnsupportedLeafError):
            await manager.save(1, {"a": object()})
        assert manager.should_save(1)
        disk.fail("sync", errno.EIO)
        handle = await manager.save(1, {})
        assert not manager.should_save(1)
        with pytest.raises(asyncckpt.SaveFailedError):
            await handle
        assert manager.should_save(1)
        await (await manager.save(1, {}))
        assert not manager.should_save(2)


async def test_a_save_that_is_skipped_or_cancelled_leaves_the_step_due(tmp_path: Path) -> None:
    """What the queue had no room for was not saved; and a save that a newer one replaced was."""
    clock, disk = Clock(), FaultyDisk()
    state = {"a": np.zeros(100)}
    async with CheckpointManager(
        tmp_path, save_interval=60, clock=clock, disk=disk, overflow="skip", max_staged_nbytes=1500
    ) as manager:
        with hold(disk) as gate:
            await manager.save(1, state)
            await gate.reached()
            clock.time = 60
            skipped = await manager.save(2, state)
            assert skipped.state == "skipped"
            assert manager.should_save(2)
            handle = await manager.save(3, {})
            assert not manager.should_save(3)
            assert handle.cancel()
            assert manager.should_save(3)


async def test_a_disabled_manager_is_due_as_another_would_be(tmp_path: Path) -> None:
    """So a loop does not put a state together at every step for nothing."""
    clock = Clock()
    async with CheckpointManager(tmp_path, save_interval=60, clock=clock, enabled=False) as manager:
        clock.time = 60
        assert manager.should_save(1)
        await manager.save(1, {})
        assert not manager.should_save(2)
        clock.time = 120
        assert manager.should_save(2)
        manager.save_nowait(2, {})
        assert not manager.should_save(2)


async def test_a_checkpoint_of_own_files_counts_when_it_is_committed(tmp_path: Path) -> None:
    """From the time at which its directory was made."""
    clock = Clock()
    async with CheckpointManager(tmp_path, save_interval=60, clock=clock) as manager:
        clock.time = 60
        async with manager.checkpoint(1) as path:
            (path / "weights").write_bytes(b"...")
            assert manager.should_save(1)
            clock.time = 80
        assert not manager.should_save(2)
        clock.time = 119
        assert not manager.should_save(2)
        clock.time = 120
        assert manager.should_save(2)


async def test_the_overhead_is_measured_in_time_that_callers_are_held(tmp_path: Path) -> None:
    """The copy of a large state takes a second here, and a tenth of the time is allowed."""
    clock = Clock()
    manager = CheckpointManager(tmp_path, max_overhead=0.1, clock=clock, keep_latest_k=1)
    manager._session.pool = SlowPool(clock, 1.0)
    blocked, saves = 0.0, []
    async with manager:
        for step in range(200):
            clock.time += 0.5
            if manager.should_save(step):
                before = clock.time
                await (await manager.save(step, np.zeros(1 << 18)))
                blocked += clock.time - before
                saves.append(step)
        assert saves[0] == 0
        assert blocked == len(saves)
        assert blocked / clock.time == pytest.approx(0.1, abs=0.005)


async def test_the_rules_of_time_count_from_the_opening(tmp_path: Path) -> None:
    """Before, only the period is known."""
    clock = Clock()
    manager = CheckpointManager(tmp_path, save_interval=60, save_period=5, clock=clock)
    clock.time = 100
    assert [manager.should_save(step) for step in (4, 5)] == [False, True]
    async with manager:
        assert manager.save_reason(4) == NONE
        clock.time = 160
        assert manager.save_reason(5) == SaveReason.INTERVAL | SaveReason.PERIOD


async def test_without_a_clock_the_system_s_is_used(tmp_path: Path) -> None:
    """A deadline that has passed, and one that is far away."""
    async with CheckpointManager(tmp_path / "a", save_by=1.6e9) as late:
        assert late.save_reason(1) == SaveReason.DEADLINE
    async with CheckpointManager(tmp_path / "b", save_by=1e11, save_interval=1e9) as early:
        assert not early.should_save(1)


async def test_retention_that_prunes_what_the_rules_of_time_save_is_no_mistake(tmp_path: Path) -> None:
    """All multiples of ten stay here, but the saves between them do not."""
    async with CheckpointManager(tmp_path, save_period=10, save_interval=60, keep_latest_k=1) as manager:
        for step in (10, 11, 12):
            await (await manager.save(step, {}))
        assert manager.steps() == [10, 12]
    with pytest.warns(asyncckpt.CheckpointWarning, match="keeps every step"):
        manager = CheckpointManager(tmp_path, save_interval=60, keep_every=1, keep_latest_k=1)
    async with manager:
        pass
