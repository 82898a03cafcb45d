"""When retired checkpoints are deleted: while no save is in progress, and before the disk fills up."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.gates import hold, turns

from asyncckpt import CheckpointManager
from asyncckpt.saving.pruning import MAX_WAITING
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path

STATE = {"x": np.arange(1000)}


def trash_in(root: Path) -> list[str]:
    """Name what waits to be deleted."""
    return sorted(path.name for path in root.iterdir() if path.name.startswith("trash"))


def unlinked(disk: FaultyDisk) -> list[str]:
    """Name the checkpoints whose files were unlinked, in order, each once."""
    return list(dict.fromkeys(each.path.parent.name for each in disk.operations if each.name == "unlink"))


async def test_no_file_is_unlinked_while_a_save_is_on_its_way(tmp_path: Path) -> None:
    """What the first of two saves retires is deleted when the second has ended."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, keep_latest_k=1) as manager:
        await (await manager.save(1, STATE))
        with hold(disk, "mkdir", "tmp_step_2") as first, hold(disk, "mkdir", "tmp_step_3") as second:
            saves = [await manager.save(2, STATE), await manager.save(3, STATE)]
            first.open()
            await second.reached()
            await turns(20)
            assert trash_in(tmp_path) == ["trash_step_1"]
            assert unlinked(disk) == []
        for save in saves:
            await save
    assert trash_in(tmp_path) == []
    assert unlinked(disk) == ["trash_step_1", "trash_step_2"]


async def test_a_save_stops_a_deletion_after_the_file_that_is_being_unlinked(tmp_path: Path) -> None:
    """The save does not wait for that file, and the next file waits for the save."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, STATE))
        with hold(disk, "unlink", "trash_step_1") as unlinking:
            await manager.delete(1)
            await unlinking.reached()
            with hold(disk, "rename", "tmp_step_2") as renaming:
                save = await manager.save(2, STATE)
                await renaming.reached()  # written, while the unlink still goes on
                deleting = manager._session.use().pruner.task
                assert deleting is not None
                unlinking.open()
                await deleting
                assert disk.names().count("unlink") == 1
            await save
    assert disk.names().count("unlink") == 3
    assert trash_in(tmp_path) == []


async def test_back_to_back_saves_cannot_fill_the_disk(tmp_path: Path) -> None:
    """With always a save on its way, no more than so many retired checkpoints wait; the oldest go first."""
    disk = FaultyDisk()
    most = 0
    async with CheckpointManager(tmp_path, disk=disk, keep_latest_k=1) as manager:
        previous = await manager.save(0, STATE)
        for step in range(1, 4 * MAX_WAITING):
            following = await manager.save(step, STATE)
            await previous
            most = max(most, len(trash_in(tmp_path)))
            previous = following
        assert most <= MAX_WAITING + 1
        assert unlinked(disk)
        await previous
    names = unlinked(disk)
    assert names == sorted(names, key=lambda name: int(name.removeprefix("trash_step_")))
    assert trash_in(tmp_path) == []


async def test_on_a_disk_that_is_nearly_full_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is retired is gone before the next save is written, when it holds more than half of what is left."""
    monkeypatch.setattr("asyncckpt.storage.local.outcomes.free_nbytes", lambda _: 10_000)
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, keep_latest_k=1) as manager:
        await (await manager.save(1, STATE))
        with hold(disk, "mkdir", "tmp_step_2") as gate:
            saves = [await manager.save(2, STATE)]
            await gate.reached()
            saves.append(await manager.save(3, STATE))
        for save in saves:
            await save
    words = [(each.name, each.path.name) for each in disk.operations]
    assert words.index(("rmdir", "trash_step_1")) < words.index(("mkdir", "tmp_step_3"))


async def test_a_save_that_fails_lets_deletion_go_on(tmp_path: Path) -> None:
    """Deletion waits for saves only as long as there are any."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, STATE))
        with hold(disk, "unlink", "trash_step_1") as unlinking:
            await manager.delete(1)
            await unlinking.reached()
            disk.fail("mkdir", errno.ENOSPC)
            save = await manager.save(2, STATE)
            unlinking.open()
            with pytest.raises(Exception, match="No space"):
                await save
        with hold(disk, "rmdir", "trash_step_1") as removing:
            await removing.reached()
    assert trash_in(tmp_path) == []


async def test_a_background_warning_that_is_an_error_does_not_end_the_writer(tmp_path: Path) -> None:
    """The loop's exception handler gets it instead; the save is committed, and the next ones are."""
    messages: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: messages.append(context["message"]))
    disk = FaultyDisk()
    try:
        async with CheckpointManager(tmp_path, disk=disk, keep_latest_k=1) as manager:
            await (await manager.save(1, STATE))
            disk.fail("rename", errno.EBUSY, path_part="step_1")
            await (await manager.save(2, STATE))  # where warnings are errors, as in all tests
            assert ["step 1 cannot be pruned" in each for each in messages] == [True]
            assert await (await manager.save(3, STATE)) is not None
            assert manager.steps() == [3]
    finally:
        loop.set_exception_handler(None)
