"""A program's garbage beside saves and loads: it goes as ever, however often the library works."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.support import FORMATS

from asyncckpt import CheckpointManager

if TYPE_CHECKING:
    from pathlib import Path


class _Node:
    other: _Node


def _alive() -> int:
    return sum(type(each) is _Node for each in gc.get_objects())


@pytest.mark.usefixtures("thawed")
@pytest.mark.parametrize("format_name", FORMATS)
async def test_cycles_made_beside_saves_and_loads_go(tmp_path: Path, format_name: str) -> None:
    """They do not become old unseen, where only a collection of the whole heap would find them."""
    state = {"items": [{"number": number, "array": np.zeros(2)} for number in range(5000)]}
    made = 0
    is_done = False
    gc.collect()  # those of an earlier test

    async def program() -> None:
        nonlocal made
        while not is_done:
            for _ in range(50):
                first, second = _Node(), _Node()
                first.other, second.other = second, first
                made += 1
            await asyncio.sleep(0.001)  # its own pace

    async with CheckpointManager(tmp_path, format=format_name) as manager:
        running = asyncio.create_task(program())
        for step in itertools.count():
            await (await manager.save(step, state))
            if step >= 2 and made > 1000:
                break
        await manager.load(2)
        is_done = True
        await running
    gc.collect(1)
    assert _alive() < 200
