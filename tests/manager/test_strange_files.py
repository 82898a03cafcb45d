"""What stands in a checkpoint directory without being ours: links, pipes, other people's files."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from asyncckpt import CheckpointManager, CheckpointNotFoundError, CheckpointWarning, CorruptCheckpointError

if TYPE_CHECKING:
    from pathlib import Path


async def save(root: Path, *steps: int) -> None:
    """Save small checkpoints."""
    async with CheckpointManager(root) as manager:
        for step in steps:
            await manager.save(step, {"step": step}, training_info={"loss": step})


@pytest.mark.parametrize("kind", ["pipe", "endless", "loop"])
async def test_a_listing_waits_for_nobody(tmp_path: Path, kind: str) -> None:
    """A pipe without a writer, or a link to what never ends, in place of a training_info: listed without metrics."""
    await save(tmp_path, 1, 2)
    place = tmp_path / "step_2" / "training_info.json"
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero" if kind == "endless" else place.name)
    async with CheckpointManager(tmp_path, metric_name="loss") as manager:
        assert manager.steps() == [1, 2]
        with pytest.warns(CheckpointWarning, match="lack the metric"):
            assert manager.best_step() == 1
        with pytest.raises(CorruptCheckpointError, match=r"training_info\.json"):
            await manager.load(2)


async def test_a_listing_reads_nothing_outside(tmp_path: Path) -> None:
    """A training_info that is a link does not lend its metrics."""
    await save(tmp_path / "runs", 1)
    place = tmp_path / "runs" / "step_1" / "training_info.json"
    place.rename(tmp_path / "elsewhere.json")
    place.symlink_to(tmp_path / "elsewhere.json")
    async with CheckpointManager(tmp_path / "runs", metric_name="loss") as manager:
        with pytest.warns(CheckpointWarning, match="lack the metric|has the metric"):
            assert manager.best_step() == 1


async def test_a_link_is_no_checkpoint(tmp_path: Path) -> None:
    """A link to a checkpoint elsewhere is neither listed nor loaded."""
    root = tmp_path / "runs"
    await save(root, 1, 2)
    (root / "step_2").rename(tmp_path / "elsewhere")
    (root / "step_2").symlink_to(tmp_path / "elsewhere")
    async with CheckpointManager(root) as manager:
        assert manager.steps() == [1]
        with pytest.raises(CheckpointNotFoundError):
            await manager.load(2)


@pytest.mark.parametrize("name", ["step_2", "tmp_step_2", "old_step_2", "trash_step_2"])
async def test_what_a_link_leads_to_stays(tmp_path: Path, name: str) -> None:
    """Saving where a link stands takes the link away, and nothing below it."""
    root = tmp_path / "runs"
    await save(root, 1)
    shutil.copytree(root / "step_1", tmp_path / "elsewhere")
    before = sorted(path.name for path in (tmp_path / "elsewhere").iterdir())
    (root / name).symlink_to(tmp_path / "elsewhere")
    async with CheckpointManager(root) as manager:
        await manager.save(2, {"step": 2}, overwrite=True)
        await manager.flush()
        assert (await manager.load(2)).state == {"step": 2}
        await manager.delete(2)
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == before
