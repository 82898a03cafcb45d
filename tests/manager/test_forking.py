"""A run that starts from another run's checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import hold

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # it decides nothing here


def content(root: Path) -> dict[str, tuple[bytes, int]]:
    """Return all files of a directory, with the times of their last change."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


async def fill(root: Path, **options: Any) -> None:
    """Save two steps, the first of which is the best; and a directory of the caller's own."""
    async with asyncckpt.CheckpointManager(root, metric_name="score", **options) as manager:
        for step, score in ((1, 9.0), (2, 3.0)):
            state = {"w": np.full(5_000_000, step, np.float64), "step": step}
            await (await manager.save(step, state, training_info={"score": score}, run_config={"lr": step}))
        async with manager.checkpoint(3, {"score": 1.0}) as path:
            await asyncio.to_thread((path / "sub" / "deep").mkdir, parents=True)
            await asyncio.to_thread((path / "sub" / "deep" / "mine").write_bytes, b"mine")
            await asyncio.to_thread((path / "empty").write_bytes, b"")


@pytest.mark.parametrize("format_name", ["msgpack", "hdf5"])
async def test_a_fork_has_the_same_files_and_leaves_the_source_alone(tmp_path: Path, format_name: str) -> None:
    """By step, best and latest; every file but the manifest is the same; the copies are whole checkpoints."""
    source, root = tmp_path / "a", tmp_path / "b"
    await fill(source, format=format_name)
    before = content(source)
    async with asyncckpt.CheckpointManager(root) as manager:
        best = await manager.fork(source, "best")
        assert (best.step, best.training_info) == (1, {"score": 9.0})
        assert best.path == root / "step_1"
        assert (await manager.fork(str(source), "latest")).step == 3
        await manager.fork(source, 2)
        assert manager.steps() == [1, 2, 3]
        for step in manager.steps():
            await manager.verify(step)
        assert np.array_equal((await manager.load(2)).state["w"], np.full(5_000_000, 2.0))
        await (await manager.save(4, {"w": 1}))
    assert content(source) == before
    for name, (data, _) in before.items():
        if name.startswith("step_") and not name.endswith("manifest.json"):
            assert (root / name).read_bytes() == data
    async with asyncckpt.CheckpointManager(root) as manager:
        assert manager.steps() == [1, 2, 3, 4]


async def test_a_damaged_source_commits_nothing(tmp_path: Path) -> None:
    """One flipped bit in the middle of an array: the error names the source, and nothing is left here."""
    source, root = tmp_path / "a", tmp_path / "b"
    await fill(source)
    file = source / "step_1" / "state.msgpack"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    async with asyncckpt.CheckpointManager(root) as manager:
        with pytest.raises(asyncckpt.CorruptCheckpointError, match=f"{source}: step 1: state.msgpack"):
            await manager.fork(source, 1)
        assert manager.steps() == []
        assert [path.name for path in root.iterdir()] == [".lock"]
        await manager.fork(source, 2)


async def test_what_cannot_be_forked_is_refused(tmp_path: Path) -> None:
    """A step that exists, that is missing, the own directory, a path, a reader."""
    source, root = tmp_path / "a", tmp_path / "b"
    await fill(source)
    async with asyncckpt.CheckpointManager(root) as manager:
        await (await manager.save(1, {"mine": 1}))
        with pytest.raises(asyncckpt.StepExistsError):
            await manager.fork(source, 1)
        assert (await manager.load(1)).state == {"mine": 1}
        with pytest.raises(asyncckpt.CheckpointNotFoundError, match="step 7"):
            await manager.fork(source, 7)
        with pytest.raises(asyncckpt.CheckpointNotFoundError, match="no checkpoint"):
            await manager.fork(tmp_path / "none", "latest")
        with pytest.raises(asyncckpt.ManagerUsageError, match="own directory"):
            await manager.fork(root, 1)
        with pytest.raises(TypeError, match="is a path"):
            await manager.fork(source, source / "step_1")
    async with asyncckpt.CheckpointManager(root, read_only=True) as manager:
        with pytest.raises(asyncckpt.ReadOnlyError):
            await manager.fork(source, 2)
    assert not (tmp_path / "none").exists()


async def test_a_cancelled_fork_commits_nothing(tmp_path: Path) -> None:
    """What was copied is gone when the cancellation is raised, and the step can be forked again."""
    source, root = tmp_path / "a", tmp_path / "b"
    await fill(source)
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(root, disk=disk) as manager:
        with hold(disk, "write", "state.msgpack") as gate:
            task = asyncio.create_task(manager.fork(source, 2))
            await gate.reached()
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [path.name for path in root.iterdir()] == [".lock"]
        assert manager.steps() == []
        await manager.fork(source, 2)
        assert manager.steps() == [2]


async def test_a_failing_disk_leaves_nothing(tmp_path: Path) -> None:
    """A fault at any operation raises, and a repeated fork works."""
    source = tmp_path / "a"
    async with asyncckpt.CheckpointManager(source) as manager, manager.checkpoint(3) as path:
        await asyncio.to_thread((path / "sub").mkdir)
        await asyncio.to_thread((path / "sub" / "mine").write_bytes, b"mine")
    for position in range(3, 100):  # the directory and its lock come first
        disk = FaultyDisk()
        disk.fail(None, errno.EIO, after=position)
        root = tmp_path / str(position)
        async with asyncckpt.CheckpointManager(root, disk=disk) as manager:
            with contextlib.suppress(OSError):
                await manager.fork(source, 3)
            if manager.steps() == []:
                disk.heal()
                await manager.fork(source, 3)
            await manager.verify(3)
        if len(disk.operations) <= position:
            break
    assert position > 8
