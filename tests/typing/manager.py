"""What type checkers must accept and refuse of a manager, a handle and register_type."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, assert_type

import asyncckpt
from asyncckpt import CheckpointManager, CheckpointRecord, LoadedCheckpoint, SaveHandle, SaveState, register_type


async def train(config: asyncckpt.CheckpointingConfig) -> None:
    CheckpointManager(config)
    CheckpointManager("runs", keep_topk=3)  # type: ignore[call-arg]
    CheckpointManager("runs", format="pickle")  # type: ignore[arg-type]
    async with CheckpointManager(Path("runs"), metric_name="return", save_period=10, keep_top_k=3) as manager:
        assert_type(manager, CheckpointManager)
        last = await manager.load("latest", missing_ok=True)
        if last is not None:
            assert_type(last, LoadedCheckpoint)
            assert_type(last.state, Any)
            assert_type(last.training_info, dict[str, Any])
        await manager.load("newest")  # type: ignore[arg-type]
        await manager.load(3, select=["params", "opt/*"], lazy=True)
        assert_type(await manager.restore("best", into={}), LoadedCheckpoint)
        if manager.should_save(3):
            handle = await manager.save(3, {"w": [1.0]}, training_info={"return": 187.0}, run_config={"lr": 1e-3})
            await use(handle)
            assert_type(manager.save_nowait(4, None), SaveHandle)
        await manager.save(5)  # type: ignore[call-arg]
        await manager.save(5, {}, None)  # type: ignore[call-arg]
        assert_type(manager.steps(), list[int])
        assert_type(manager.latest_step(), int | None)
        assert_type(manager.statistics().staged_nbytes, int)
        async with manager.checkpoint(6, {"loss": 0.5}) as path:
            assert_type(path, asyncckpt.PendingCheckpoint)
            assert_type(path / "weights", Path)
            await path.save({"a": 1}, frozen=True)
        assert_type(await manager.get_best_checkpoint_path(), str | None)
        assert_type(await manager.load_training_info(), dict[str, Any] | None)


async def use(handle: SaveHandle) -> None:
    assert_type(await handle, CheckpointRecord | None)
    assert_type(handle.state, SaveState)
    assert_type(handle.timings.committed, float | None)
    assert_type(handle.progress().total_nbytes, int)
    assert_type(handle.cancel(), bool)
    handle.state = SaveState.FAILED  # type: ignore[misc]


@register_type
class Phase(enum.Enum):
    WARM = 1


@register_type(name="replay")
class Replay:
    def __init__(self, items: list[int]) -> None:
        self.items = items

    def to_state(self) -> list[int]:
        return self.items

    @classmethod
    def from_state(cls, state: list[int]) -> Replay:
        return cls(state)


assert_type(Phase(1), Phase)
assert_type(Replay([1]).items, list[int])
assert_type(register_type(Path, to_state=str, from_state=Path), type[Path])
register_type(Phase.WARM)  # type: ignore[call-overload]
