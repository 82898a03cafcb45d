"""Memory that a save will need is made ready before: after a load, and when the first state has been seen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import Gate, hold

from asyncckpt import CheckpointManager
from asyncckpt.runtime import buffers
from asyncckpt.runtime.buffers import LARGE_NBYTES, SMALL_NBYTES, BufferPool
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
STATE = {"a": np.arange(5 * MIB, dtype=np.uint8), "b": np.arange(18 * MIB, dtype=np.uint8)}
NBYTES = 23 * MIB


async def warmed(manager: CheckpointManager) -> int:
    """Wait for the warming that was begun, and return how much memory is ready."""
    here = manager._session.use()
    if here.warmer.pending is not None:
        await asyncio.wrap_future(here.warmer.pending)
    return here.pool.free_nbytes


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the sizes of all buffers that are made from now on."""
    sizes: list[int] = []
    plain = buffers.aligned_buffer

    def counting(nbytes: int) -> Any:
        sizes.append(nbytes)
        return plain(nbytes)

    monkeypatch.setattr(buffers, "aligned_buffer", counting)
    return sizes


@pytest.mark.parametrize("how", ["load", "like", "restore", "path"])
async def test_the_first_save_after_a_load_finds_its_memory_ready(tmp_path: Path, how: str, made: list[int]) -> None:
    """It makes no buffers of its own."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, STATE))
    async with CheckpointManager(tmp_path) as manager:
        if how == "restore":
            await manager.restore(1, into={key: np.zeros_like(value) for key, value in STATE.items()})
        else:
            await manager.load(
                tmp_path / "step_1" if how == "path" else 1, **({"like": STATE} if how == "like" else {})
            )
        assert NBYTES <= await warmed(manager) <= NBYTES + SMALL_NBYTES
        before = len(made)
        await manager.save(2, STATE)
        assert len(made) == before


@pytest.mark.parametrize("how", ["read_only", "disabled", "select", "lazy", "small", "larger than the budget"])
async def test_nothing_is_made_ready_that_no_save_would_use(tmp_path: Path, how: str) -> None:
    """A reader, a part of a state, a state that is captured without buffers: no memory is taken."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"x": np.zeros(1000)} if how == "small" else STATE))
    options: dict[str, Any] = {
        "read_only": {"read_only": True},
        "disabled": {"enabled": False},
        "larger than the budget": {"max_staged_nbytes": 20 * MIB},
    }.get(how, {})
    async with CheckpointManager(tmp_path, **options) as manager:
        await manager.load(1, select="a" if how == "select" else None, lazy=how == "lazy")
        assert await warmed(manager) == 0


async def test_a_second_save_finds_its_memory_ready_beside_the_first(tmp_path: Path) -> None:
    """When the first state has been seen, as much again is made ready; later ones find what is there."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, STATE))
        assert await warmed(manager) >= NBYTES
        first = manager._session.use().warmer.pending
        await (await manager.save(2, STATE))
        assert manager._session.use().warmer.pending is first


async def test_the_budget_bounds_it(tmp_path: Path) -> None:
    """Captured states and ready memory together stay within it."""
    disk = FaultyDisk()
    async with CheckpointManager(
        tmp_path, max_staged_nbytes=NBYTES + LARGE_NBYTES + SMALL_NBYTES, disk=disk
    ) as manager:
        with hold(disk):
            await manager.save(1, STATE)
            assert await warmed(manager) == LARGE_NBYTES + SMALL_NBYTES
    async with CheckpointManager(tmp_path, max_staged_nbytes=NBYTES + SMALL_NBYTES - 1, disk=disk) as manager:
        with hold(disk):
            await manager.save(2, STATE)
            assert await warmed(manager) == 0


async def test_closing_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the buffer that is being made, no other is."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, STATE))
    with Gate() as gate:
        populated: list[int] = []

        def populate(memory: Any) -> None:
            populated.append(memory.nbytes)
            gate()

        monkeypatch.setattr(buffers, "populate", populate)
        manager = CheckpointManager(tmp_path)
        async with manager:
            await manager.load(1)
            await gate.reached()
            closing = asyncio.create_task(manager.aclose())
            while not manager._session._open.warmer._stop.is_set:  # type: ignore[union-attr]
                await asyncio.sleep(0)
            gate.open()
            await closing
        assert len(populated) == 1


def test_a_pool_is_warmed_to_what_will_be_taken(made: list[int]) -> None:
    """Buffers of both sizes, each made once; what is free already counts."""
    pool = BufferPool()
    pool.give(pool.take(LARGE_NBYTES))
    pool.warm(2 * LARGE_NBYTES + 3 * SMALL_NBYTES, 1 << 40, StopFlag())
    assert sorted(made) == [SMALL_NBYTES] * 3 + [LARGE_NBYTES] * 2
    pool.take(2 * LARGE_NBYTES + 3 * SMALL_NBYTES)
    assert len(made) == 5
    assert pool.free_nbytes == 0


def test_a_closed_pool_is_not_warmed(made: list[int]) -> None:
    """Nor is one whose warming was stopped, or that has no room."""
    stopped = StopFlag()
    stopped.set()
    BufferPool().warm(LARGE_NBYTES, 1 << 40, stopped)
    BufferPool().warm(LARGE_NBYTES, LARGE_NBYTES - 1, StopFlag())
    pool = BufferPool()
    pool.close()
    pool.warm(LARGE_NBYTES, 1 << 40, StopFlag())
    assert made == []


def test_a_buffer_that_is_made_while_the_warming_is_stopped_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stopped it counts with what was free."""
    stop, pool = StopFlag(), BufferPool()
    monkeypatch.setattr(buffers, "populate", lambda _: stop.set())
    pool.warm(2 * LARGE_NBYTES, 1 << 40, stop)
    assert pool.free_nbytes == 0
