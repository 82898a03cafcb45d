"""What type checkers must accept and refuse of the blocking manager, whose signatures are the asynchronous one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import asyncckpt
from asyncckpt import CheckpointRecord, LoadedCheckpoint, SaveState
from asyncckpt.blocking import CheckpointManager, PendingCheckpoint, SaveHandle


def train(config: asyncckpt.CheckpointingConfig) -> None:
    CheckpointManager(config)
    CheckpointManager("runs", keep_topk=3)  # type: ignore[call-arg]
    with CheckpointManager(Path("runs"), metric_name="return", save_period=10, keep_top_k=3) as manager:
        assert_type(manager, CheckpointManager)
        last = manager.load("latest", missing_ok=True)
        if last is not None:
            assert_type(last, LoadedCheckpoint)
            assert_type(last.state, Any)
        manager.load("newest")  # type: ignore[arg-type]
        manager.load(3, select=["params", "opt/*"], lazy=True)
        manager.load(3, lasy=True)  # type: ignore[call-arg]
        assert_type(manager.restore("best", into={}), LoadedCheckpoint)
        if assert_type(manager.should_save(3), bool):
            handle = manager.save(3, {"w": [1.0]}, training_info={"return": 187.0}, run_config={"lr": 1e-3})
            use(handle)
            assert_type(manager.save_nowait(4, None), SaveHandle)
        manager.save(5)  # type: ignore[call-arg]
        manager.save(5, {}, None)  # type: ignore[call-arg]
        assert_type(manager.flush(), None)
        assert_type(manager.steps(), list[int])
        assert_type(manager.latest_step(), int | None)
        assert_type(manager.statistics().staged_nbytes, int)
        with manager.checkpoint(6, {"loss": 0.5}) as path:
            assert_type(path, PendingCheckpoint)
            assert_type(path / "file", Path)
            assert_type(path.save({"a": 1}), None)
        assert_type(manager.get_best_checkpoint_path(), str | None)
        assert_type(manager.load_training_info(), dict[str, Any] | None)
    assert_type(asyncckpt.blocking.CheckpointManager("runs").open(), CheckpointManager)


def use(handle: SaveHandle) -> None:
    assert_type(handle.wait(), CheckpointRecord | None)
    assert_type(handle.wait(timeout=0.5), CheckpointRecord | None)
    assert_type(handle.state, SaveState)
    assert_type(handle.timings.committed, float | None)
    assert_type(handle.cancel(), bool)


async def wrong(manager: CheckpointManager, handle: SaveHandle) -> None:
    await handle  # type: ignore[misc]
    async with manager:  # type: ignore[attr-defined]
        pass


assert_type(asyncckpt.load("runs"), LoadedCheckpoint)
