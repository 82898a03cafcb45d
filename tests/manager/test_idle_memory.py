"""Memory for captured states goes back to the system when no save needs it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncckpt import Checkpointer, CheckpointManager

if TYPE_CHECKING:
    from pathlib import Path


async def _wait_until_idle(here: Any) -> None:
    assert here.pool.free_nbytes > 0
    ticks = [here.idle.pending]
    async with asyncio.timeout(30):
        while here.pool.free_nbytes:
            here.idle.trim()  # what the timer calls
            ticks.append(here.idle.pending)
            await asyncio.sleep(0)
    for tick in ticks[:-1]:
        tick.cancel()


async def test_the_timer_gives_idle_buffers_back(tmp_path: Path) -> None:
    """Buffers that no save has used between two ticks are gone after the second; closing ends the timer."""
    async with CheckpointManager(tmp_path) as manager:
        here = manager._session.use()
        await (await manager.save(1, {"x": np.zeros(3 << 20, np.uint8)}))
        await _wait_until_idle(here)
    assert here.idle.pending.cancelled()


async def test_so_does_that_of_a_keyed_file(tmp_path: Path) -> None:
    """Also while the file stays open."""
    chk = Checkpointer.from_file(tmp_path / "x.msgpack")
    async with chk as view:
        jobs = chk._session._jobs  # type: ignore[union-attr] # it is open
        await view.save_parameter("x", np.zeros(3 << 20, np.uint8))
        await view.flush()
        await _wait_until_idle(jobs)
    assert jobs.idle is not None
    assert jobs.idle.pending.cancelled()
