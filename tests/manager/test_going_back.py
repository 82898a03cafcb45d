"""Going back to an earlier step: what stays until when, and what a kill leaves."""

from __future__ import annotations

import errno
import shutil
from typing import TYPE_CHECKING, Any

import pytest

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # it decides nothing here

STEPS = (10, 20, 30, 40, 50)


async def fill(root: Path, **options: Any) -> None:
    """Save the steps of a first run."""
    async with asyncckpt.CheckpointManager(root, **options) as manager:
        for step in STEPS:
            await (await manager.save(step, {"run": 1}, training_info={"score": step}))


async def runs_of(root: Path, **options: Any) -> dict[int, int]:
    """Load everything that is listed, and return which run saved it; the latest comes last."""
    found = {}
    async with asyncckpt.CheckpointManager(root, **options) as manager:
        for step in manager.steps():
            found[step] = (await manager.load(step)).state["run"]
        latest = await manager.load("latest")
        assert latest.step == manager.steps()[-1]
    return found


@pytest.mark.parametrize("step", [35, 40, 45, 60])
async def test_later_steps_go_with_the_first_commit(tmp_path: Path, step: int) -> None:
    """They stay until then; the new step needs no `overwrite` and no warning; nothing comes back afterwards."""
    await fill(tmp_path)
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        assert (await manager.load(30, discard_later=True)).step == 30
        assert manager.steps() == list(STEPS)
        assert await runs_of(tmp_path, read_only=True) == dict.fromkeys(STEPS, 1)
        await (await manager.save(step, {"run": 2}))
        assert manager.steps() == [10, 20, 30, step]
        assert await runs_of(tmp_path, read_only=True) == {10: 1, 20: 1, 30: 1, step: 2}
        await (await manager.save(70, {"run": 2}))
        with pytest.raises(asyncckpt.StepExistsError):
            await manager.save(70, {"run": 2})
    assert await runs_of(tmp_path) == {10: 1, 20: 1, 30: 1, step: 2, 70: 2}


async def test_restore_goes_back_too(tmp_path: Path) -> None:
    """`restore` takes the same argument."""
    await fill(tmp_path)
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await manager.restore(40, into={"run": 0}, discard_later=True)
        await (await manager.save(45, {"run": 2}))
        assert manager.steps() == [10, 20, 30, 40, 45]


async def test_what_counts_is_the_step_that_was_loaded_after_a_fallback(tmp_path: Path) -> None:
    """The damaged step goes, too: it is later than the one that was loaded."""
    await fill(tmp_path)
    (tmp_path / "step_50" / "manifest.json").write_bytes(b"damaged")
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        with pytest.warns(asyncckpt.CheckpointWarning, match="falling back"):
            assert (await manager.load("latest", discard_later=True)).step == 40
        await (await manager.save(45, {"run": 2}))
    assert await runs_of(tmp_path) == {10: 1, 20: 1, 30: 1, 40: 1, 45: 2}


async def test_a_failed_save_discards_nothing_and_the_next_one_does(tmp_path: Path) -> None:
    """Nothing goes before the successor is committed."""
    await fill(tmp_path)
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        await manager.load(30, discard_later=True)
        disk.fail("rename", errno.EIO, path_part="tmp_step_35")
        with pytest.raises(asyncckpt.SaveFailedError):
            await (await manager.save(35, {"run": 2}))
        await manager.refresh()
        assert manager.steps() == list(STEPS)
        await (await manager.save(36, {"run": 2}))
        assert manager.steps() == [10, 20, 30, 36]


async def test_the_loaded_step_is_not_pruned_before_the_commit_and_the_best_is_none_that_went(tmp_path: Path) -> None:
    """Retention keeps the step to go on from, and counts without the discarded ones afterwards."""
    await fill(tmp_path)
    options: Any = {"keep_latest_k": 2, "metric_name": "score"}
    async with asyncckpt.CheckpointManager(tmp_path, **options) as manager:
        await manager.load(30, discard_later=True)
        await manager.remove_old_checkpoints()
        assert manager.steps() == [30, 40, 50]
        await (await manager.save(35, {"run": 2}, training_info={"score": 1}))
        assert manager.steps() == [30, 35]
        assert manager.best_step() == 30


async def test_the_last_load_counts(tmp_path: Path) -> None:
    """A second load with discard_later replaces the first; one without it changes nothing."""
    await fill(tmp_path)
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await manager.load(10, discard_later=True)
        await manager.load(40, discard_later=True)
        await manager.load(20)
        await (await manager.save(45, {"run": 2}))
        assert manager.steps() == [10, 20, 30, 40, 45]


async def test_a_save_that_was_queued_before_is_no_first_save(tmp_path: Path) -> None:
    """It is one of the later steps, which go."""
    await fill(tmp_path)
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await manager.save(60, {"run": 1})
        await manager.load(30, discard_later=True)
        assert manager.steps() == [*STEPS, 60]
        await (await manager.save(35, {"run": 2}))
        assert manager.steps() == [10, 20, 30, 35]


async def test_a_directory_that_the_program_fills_counts(tmp_path: Path) -> None:
    """`checkpoint` commits the first save, in the place of a later step."""
    await fill(tmp_path)
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await manager.load(30, discard_later=True)
        async with manager.checkpoint(40):
            pass
        assert manager.steps() == [10, 20, 30, 40]


async def test_who_may_not_go_back_is_told(tmp_path: Path) -> None:
    """Readers, disabled managers, paths and a second writer are refused before anything is loaded."""
    await fill(tmp_path)
    target = {"run": 0}
    async with asyncckpt.CheckpointManager(tmp_path, read_only=True) as manager:
        with pytest.raises(asyncckpt.ReadOnlyError):
            await manager.restore(30, into=target, discard_later=True)
    async with asyncckpt.CheckpointManager(tmp_path, enabled=False) as manager:
        with pytest.raises(asyncckpt.ManagerUsageError, match="disabled"):
            await manager.restore(30, into=target, discard_later=True)
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        with pytest.raises(asyncckpt.ManagerUsageError, match="pass its step"):
            await manager.load(tmp_path / "step_30", discard_later=True)
        await (await manager.save(60, {"run": 1}))
        async with asyncckpt.CheckpointManager(tmp_path) as other:
            with pytest.raises(asyncckpt.DirectoryLockedError):
                await other.restore(30, into=target, discard_later=True)
    assert target == {"run": 0}


async def test_a_step_that_cannot_be_deleted_is_listed_no_more(tmp_path: Path) -> None:
    """Neither here nor by a reader, even if the successor is gone by then; the next writer deletes it."""
    await fill(tmp_path)
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        await manager.load(30, discard_later=True)
        disk.fail("rename", errno.EACCES, path_part="step_50", lasting=True)
        with pytest.warns(asyncckpt.CheckpointWarning, match="step 35 has discarded failed"):
            await (await manager.save(35, {"run": 2}))
        await manager.refresh()
        assert manager.steps() == [10, 20, 30, 35]
        await manager.delete(35)
    assert (tmp_path / "step_50").is_dir()
    assert await runs_of(tmp_path, read_only=True) == {10: 1, 20: 1, 30: 1}
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(36, {"run": 2}))
    assert not (tmp_path / "step_50").exists()


CHANGES = ("mkdir", "create", "write", "sync", "sync_directory", "rename", "exchange", "unlink", "rmdir")


class Snapshots(FaultyDisk):
    """A disk that copies the directory before each operation: what a SIGKILL at that moment leaves."""

    def __init__(self, root: Path, copies: Path) -> None:
        super().__init__()
        self.root, self.copies, self.taken = root, copies, 0
        self.is_on = False


def _copying(name: str) -> Any:
    def operation(self: Snapshots, *args: Any, **kwargs: Any) -> Any:
        if self.is_on:
            shutil.copytree(self.root, self.copies / str(self.taken))
            self.taken += 1
        return getattr(FaultyDisk, name)(self, *args, **kwargs)

    return operation


for _name in CHANGES:
    setattr(Snapshots, _name, _copying(_name))


@pytest.mark.parametrize("step", [35, 40])
async def test_a_kill_at_any_operation_leaves_the_one_run_or_the_other(tmp_path: Path, step: int) -> None:
    """Before the commit everything is there; after it, the later steps are listed by no reader and no next writer."""
    root, copies = tmp_path / "run", tmp_path / "copies"
    await fill(root)
    copies.mkdir()
    disk = Snapshots(root, copies)
    async with asyncckpt.CheckpointManager(root, disk=disk) as manager:
        await manager.load(30, discard_later=True)
        disk.is_on = True
        await (await manager.save(step, {"run": 2}))
    before, after = dict.fromkeys(STEPS, 1), {10: 1, 20: 1, 30: 1, step: 2}
    outcomes = []
    for number in range(disk.taken):
        found = await runs_of(copies / str(number), read_only=True)
        assert found in (before, after)
        outcomes.append(found == after)
        async with asyncckpt.CheckpointManager(copies / str(number)) as manager:
            await (await manager.save(70, {"run": 3}))
            assert manager.steps() == [*found, 70]
        assert {int(path.name[5:]) for path in (copies / str(number)).glob("step_*")} == {*found, 70}
    assert outcomes == sorted(outcomes)
    assert {False, True} == set(outcomes)
