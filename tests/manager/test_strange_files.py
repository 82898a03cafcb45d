"""Foreign entries of a checkpoint directory: links, pipes, other programs' files."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from asyncckpt import (
    CheckpointManager,
    CheckpointNotFoundError,
    CheckpointWarning,
    CorruptCheckpointError,
    SaveFailedError,
)

if TYPE_CHECKING:
    from pathlib import Path


async def save(root: Path, *steps: int) -> None:
    """Save small checkpoints."""
    async with CheckpointManager(root) as manager:
        for step in steps:
            await manager.save(step, {"step": step}, training_info={"loss": step})


@pytest.mark.parametrize("kind", ["pipe", "endless", "loop"])
async def test_a_listing_does_not_block(tmp_path: Path, kind: str) -> None:
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


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_link_is_no_checkpoint(tmp_path: Path, *, read_only: bool) -> None:
    """A link to a checkpoint elsewhere is neither listed nor loaded, which is said once."""
    root = tmp_path / "runs"
    await save(root, 1, 2)
    (root / "step_2").rename(tmp_path / "elsewhere")
    (root / "step_2").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(CheckpointWarning, match="step_2 is not a checkpoint: it is a symbolic link") as caught:
        async with CheckpointManager(root, read_only=read_only) as manager:
            assert manager.steps() == [1]
            await manager.refresh()
            with pytest.raises(CheckpointNotFoundError):
                await manager.load(2)
            if not read_only:
                await (await manager.save(3, {}))
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore:.*is not a checkpoint")
@pytest.mark.parametrize("leads_to", ["elsewhere", "nowhere"])
@pytest.mark.parametrize("overwrite", [False, True])
async def test_a_link_in_the_place_of_a_step_is_never_replaced(
    tmp_path: Path, leads_to: str, *, overwrite: bool
) -> None:
    """To save or delete such a step is an error that names the link, which stays, like all that it leads to."""
    root = tmp_path / "runs"
    await save(root, 1)
    shutil.copytree(root / "step_1", tmp_path / "elsewhere")
    before = sorted(path.name for path in (tmp_path / "elsewhere").iterdir())
    (root / "step_2").symlink_to(tmp_path / leads_to)
    async with CheckpointManager(root, keep_latest_k=1) as manager:
        with pytest.raises(SaveFailedError, match="step_2: it is a symbolic link"):
            await (await manager.save(2, {"step": 2}, overwrite=overwrite))
        with pytest.raises(NotADirectoryError, match=r"step 2 cannot be deleted: .*symbolic link"):
            await manager.delete(2)
        with pytest.raises(NotADirectoryError, match="step_2: it is a symbolic link"):
            await manager.init_tmp_checkpoint(2, {})
        await (await manager.save(3, {}))
        assert manager.steps() == [3]
    assert (root / "step_2").is_symlink()
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == before


@pytest.mark.filterwarnings("ignore:.*(is not a checkpoint|cannot be removed)")
@pytest.mark.parametrize("name", ["tmp_step_2", "old_step_2", "trash_step_2", "deleted_step_2"])
@pytest.mark.parametrize("kind", ["link", "file"])
async def test_what_has_another_name_of_ours_is_not_in_the_way(tmp_path: Path, name: str, kind: str) -> None:
    """A link, or a file, stays; saving, overwriting and deleting the step go on beside it."""
    root = tmp_path / "runs"
    await save(root, 1)
    if kind == "link":
        shutil.copytree(root / "step_1", tmp_path / "elsewhere")
        (root / name).symlink_to(tmp_path / "elsewhere")
    else:
        (root / name).write_text("mine")
    async with CheckpointManager(root) as manager:
        for version in (1, 2):
            await (await manager.save(2, {"version": version}, overwrite=True))
        assert (await manager.load(2)).state == {"version": 2}
        async with manager.checkpoint(3) as path:
            (path / "file").touch()
        await manager.delete(2)
    assert sorted(path.name for path in root.iterdir()) == sorted([".lock", name, "step_1", "step_3"])
    if kind == "link":
        assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == sorted(
            path.name for path in (root / "step_1").iterdir()
        )
