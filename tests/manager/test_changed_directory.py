"""A directory that is removed, replaced, or may not be written while a manager has it open."""

from __future__ import annotations

import asyncio
import errno
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.support import FORMATS

from asyncckpt import CheckpointManager, SaveFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GONE = "was removed, or replaced by another one, .* put it back, or make a new CheckpointManager"


async def save(manager: CheckpointManager, step: int, **options: Any) -> None:
    """Save a small state, durably."""
    await (await manager.save(step, {"step": step}, **options))


@pytest.fixture
def mount() -> Iterator[Callable[..., Path]]:
    """Mount file systems for a test; each call takes the target, and the options of `mount`."""
    mounted: list[Path] = []

    def run(*command: object) -> int:
        return subprocess.run([*map(str, command)], capture_output=True, check=False).returncode  # noqa: S603

    def mount_at(target: Path, *options: object) -> Path:
        program = shutil.which("mount")
        if program is None or run(program, *options, target):
            pytest.skip("mounting takes root's rights")
        if not str(options[-1]).startswith("remount"):
            mounted.append(target)
        return target

    yield mount_at
    for target in reversed(mounted):
        assert run(shutil.which("umount"), target) == 0


# --- removed, or replaced ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
async def test_a_directory_that_is_removed(tmp_path: Path, form: Any) -> None:
    """Whatever would change it says that it is gone and what to do, and does nothing; put back, it goes on."""
    root, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    async with CheckpointManager(root, format=form, keep_latest_k=2) as manager:
        await save(manager, 1)
        pending = await manager.init_tmp_checkpoint(7)
        await asyncio.to_thread(root.rename, elsewhere)
        with pytest.raises(SaveFailedError, match=GONE) as failed:
            await save(manager, 2)
        assert isinstance(failed.value.__cause__, FileNotFoundError)
        assert failed.value.__cause__.filename == str(root)
        with pytest.raises(SaveFailedError, match=GONE):
            await manager.save_nowait(2, {})
        for use in (manager.delete(1), manager.init_tmp_checkpoint(3), manager.finalize_checkpoint(pending)):
            with pytest.raises(FileNotFoundError, match=GONE):
                await use
        assert not root.exists()
        await asyncio.to_thread(elsewhere.rename, root)
        await manager.refresh()
        await save(manager, 2)
        await manager.finalize_checkpoint(pending)
        await manager.flush()
        assert manager.steps() == [2, 7]
        await manager.delete(2)
        assert manager.steps() == [7]


async def test_a_directory_that_is_removed_for_good(tmp_path: Path) -> None:
    """A new manager makes it again, while the old one is still open."""
    root = tmp_path / "runs"
    async with CheckpointManager(root) as old:
        await save(old, 1)
        await asyncio.to_thread(shutil.rmtree, root)
        with pytest.raises(SaveFailedError, match=GONE):
            await save(old, 2)
        async with CheckpointManager(root) as new:
            await save(new, 2)
            assert new.steps() == [2]


async def test_a_directory_that_is_replaced(tmp_path: Path) -> None:
    """Another writer's directory in its place is not touched: nothing is saved, pruned, deleted or discarded in it."""
    root = tmp_path / "runs"
    async with CheckpointManager(root, keep_latest_k=1) as first, CheckpointManager(root) as second:
        await save(first, 1)
        await first.init_tmp_checkpoint(5)
        await asyncio.to_thread(root.rename, tmp_path / "elsewhere")
        await save(second, 1)
        theirs = await second.init_tmp_checkpoint(5)
        with pytest.raises(SaveFailedError, match=GONE):
            await save(first, 1, overwrite=True)
        with pytest.raises(FileNotFoundError, match=GONE):
            await first.delete(1)
        with pytest.raises(FileNotFoundError, match=GONE):
            await first.finalize_checkpoint(theirs)
        await first.remove_old_checkpoints()
        await second.finalize_checkpoint(theirs)
        await second.verify(1)
        assert second.steps() == [1, 5]


# --- not to be written ------------------------------------------------------------------------------------------------


READ_ONLY = r"Read-only file system \(nothing can be saved.*read_only=True"


@pytest.fixture
def disk(tmp_path: Path, mount: Callable[..., Path]) -> Callable[[str], Path]:
    """Return a function that mounts a directory of checkpoints on a disk of its own, or mounts it again: rw or ro."""
    root = mount(tmp_path, "-t", "tmpfs", "tmpfs") / "runs"

    def remount(mode: str) -> Path:
        if not root.is_mount():
            root.mkdir(exist_ok=True)
            mount(root, "--bind", root)
        return mount(root, "-o", f"remount,{mode},bind")

    return remount


@pytest.mark.parametrize("form", FORMATS)
async def test_a_read_only_file_system(disk: Callable[[str], Path], form: Any) -> None:
    """A manager loads from one, and its first save says that read_only=True is for that."""
    root = disk("rw")
    async with CheckpointManager(root, format=form) as manager:
        await save(manager, 1)
    disk("ro")
    async with CheckpointManager(root, format=form) as manager:
        for use in (manager.save(2, {"a": np.ones(9)}), manager.delete(1), manager.init_tmp_checkpoint(2)):
            with pytest.raises(OSError, match=READ_ONLY) as caught:
                await use
            assert caught.value.errno == errno.EROFS
            assert str(root) in str(caught.value)
        with pytest.raises(SaveFailedError, match="read_only=True"):
            await manager.save_nowait(2, {})
        assert (await manager.load("latest")).step == 1  # type: ignore[union-attr]
    async with CheckpointManager(root / "below", format=form) as manager:
        with pytest.raises(OSError, match=r"read_only=True.*below"):
            await manager.save(2, {})
    async with CheckpointManager(root, read_only=True) as reader:
        assert (await reader.load("latest")).state == {"step": 1}  # type: ignore[union-attr]


@pytest.mark.parametrize("form", FORMATS)
async def test_a_file_system_that_becomes_read_only(disk: Callable[[str], Path], form: Any) -> None:
    """A save that meets it later fails with the same words, and the next one works when it may be written again."""
    async with CheckpointManager(disk("rw"), format=form) as manager:
        await save(manager, 1)
        disk("ro")
        with pytest.raises(SaveFailedError, match=READ_ONLY):
            await save(manager, 2)
        disk("rw")
        await save(manager, 2)
        assert manager.steps() == [1, 2]
