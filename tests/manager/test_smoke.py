"""The main path, end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import asyncckpt

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("format_name", ["msgpack", "hdf5"])
async def test_saves_and_loads(tmp_path: Path, format_name: str) -> None:
    """What was saved is loaded equal, from both formats."""
    async with asyncckpt.CheckpointManager(tmp_path / "a", format=format_name) as manager:
        state = {"w": np.arange(1_000_000.0), "b": [1, "x", None], "r": np.random.default_rng(3)}
        handle = await manager.save(3, state, training_info={"loss": np.float32(0.5)}, run_config={"lr": 1e-5})
        state["w"][:] = 0
        record = await handle
        assert record is not None
        assert record.step == 3
        loaded = await manager.load("latest")
        assert loaded is not None
        np.testing.assert_array_equal(loaded.state["w"], np.arange(1_000_000.0))
        assert loaded.state["b"] == [1, "x", None]
        assert loaded.state["r"].random() == np.random.default_rng(3).random()
        assert loaded.training_info == {"loss": 0.5}
        await manager.verify(3)
