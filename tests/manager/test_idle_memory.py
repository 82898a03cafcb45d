"""Memory for captured states goes back to the system when no save needs it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from asyncckpt import CheckpointManager

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_timer_gives_idle_buffers_back(tmp_path: Path) -> None:
    """Buffers that no save has used between two ticks are gone after the second; closing ends the timer."""
    async with CheckpointManager(tmp_path) as manager:
        here = manager._here()
        await (await manager.save(1, {"x": np.zeros(3 << 20, np.uint8)}))
        assert here.pool.free_nbytes > 0
        ticks = [here._trimming]
        async with asyncio.timeout(30):
            while here.pool.free_nbytes:
                here.trim()  # what the timer calls
                ticks.append(here._trimming)
                await asyncio.sleep(0)
        for tick in ticks[:-1]:
            tick.cancel()
    assert ticks[-1].cancelled()
