"""A disk that is nearly full: looked at before a save is written, room is made, or the save is refused with numbers."""

from __future__ import annotations

import errno
import os
import pickle
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import asyncckpt
from asyncckpt.disk.names import Kind, name_of
from asyncckpt.disk.room import explain
from asyncckpt.saving.catalog import Catalog
from asyncckpt.saving.retention import RetentionPolicy
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    MakeDisk = Callable[..., Path]

MIB = 1 << 20
WAYS = ("staged", "frozen", "streamed")
"""How the arrays of a save reach the disk."""


def state_of(nbytes: int, fill: int = 1) -> dict[str, Any]:
    """Return a state of so many bytes."""
    return {"a": np.full(nbytes, fill, np.uint8)}


def free_in(root: Path) -> int:
    """Return what is free where a directory is."""
    found = os.statvfs(root)
    return found.f_bavail * found.f_frsize


async def save(
    manager: asyncckpt.CheckpointManager, step: int, nbytes: int, *, frozen: bool = False, **info: float
) -> None:
    """Save a state, and wait until it is durable, and others have been pruned for it."""
    await (await manager.save(step, state_of(nbytes, step), frozen=frozen, training_info=info or None))
    await manager.flush()


async def fail_to_save(manager: asyncckpt.CheckpointManager, step: int, nbytes: int, **info: float) -> OSError:
    """Save a state that there is no room for, and return the cause of the error, which the message holds."""
    with pytest.raises(asyncckpt.SaveFailedError) as caught:
        await save(manager, step, nbytes, **info)
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert str(cause) in str(caught.value)
    return cause


def numbers_in(error: OSError) -> list[int]:
    """Return the numbers of bytes that a message names, in their order."""
    return [int(number) for number in re.findall(r"(\d+) bytes\b", str(error))]


async def check_intact(manager: asyncckpt.CheckpointManager, *steps: int) -> None:
    """Check that these are the steps there are, and that they load as they were saved."""
    assert manager.steps() == list(steps)
    for step in steps:
        loaded = await manager.load(step)
        assert loaded is not None
        assert (loaded.state["a"] == step).all()


@pytest.mark.parametrize("format_name", ["msgpack", "hdf5"])
async def test_a_save_without_room_is_refused_before_it_is_written(make_disk: MakeDisk, format_name: str) -> None:
    """The error says where, how much it takes, how much is free, that older ones are intact, and what to do."""
    root = make_disk("size=4m") / "runs"
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(root, format=format_name, disk=disk) as manager:
        await save(manager, 1, MIB)
        error = await fail_to_save(manager, 2, 5 * MIB)
        assert error.errno == errno.ENOSPC
        assert error.filename == str(root)
        needed, free = numbers_in(error)
        assert 5 * MIB <= needed <= 5 * MIB + (64 << 10)
        assert free == free_in(root)
        assert str(root) in str(error)
        assert "what was saved before is intact" in str(error)
        assert "make room on that disk, delete() checkpoints or keep fewer" in str(error)
        assert not [each for each in disk.operations if "tmp_step_2" in str(each.path)]
        await check_intact(manager, 1)
        await save(manager, 2, MIB)
        await check_intact(manager, 1, 2)


async def test_the_least_that_must_be_free(make_disk: MakeDisk) -> None:
    """With `min_free_nbytes`, that much must be free before, whatever the checkpoint takes; the message names it."""
    root = make_disk("size=8m")
    async with asyncckpt.CheckpointManager(root, min_free_nbytes=6 * MIB) as manager:
        await save(manager, 1, MIB)
        await save(manager, 2, MIB // 2)
        await save(manager, 3, MIB)
        error = await fail_to_save(manager, 4, MIB // 4)
        assert f"min_free_nbytes={6 * MIB}" in str(error)
        needed, free = numbers_in(error)
        assert MIB // 4 <= needed < MIB
        assert free == free_in(root) < 6 * MIB
        await check_intact(manager, 1, 2, 3)


@pytest.mark.parametrize("format_name", ["msgpack", "hdf5"])
async def test_a_disk_that_fills_up_meanwhile_says_the_same(make_disk: MakeDisk, format_name: str) -> None:
    """With 0 the disk is not looked at before: the write fails, with the same numbers, and nothing of it is left."""
    root = make_disk("size=4m")
    async with asyncckpt.CheckpointManager(root, format=format_name, min_free_nbytes=0) as manager:
        await save(manager, 1, MIB)
        before = free_in(root)
        error = await fail_to_save(manager, 2, 5 * MIB)
        assert error.errno == errno.ENOSPC
        assert numbers_in(error)[0] > 5 * MIB
        assert numbers_in(error)[1] == free_in(root) == before
        await check_intact(manager, 1)


@pytest.mark.parametrize("format_name", ["msgpack", "hdf5"])
@pytest.mark.parametrize("operation", ["mkdir", "create", "write", "sync", "rename", "sync_directory"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
async def test_wherever_it_happens(tmp_path: Path, format_name: str, operation: str, code: int) -> None:
    """Each operation that may lack room, a quota or a limit says what is needed, what is free, and the way out."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, format=format_name, disk=disk) as manager:
        await save(manager, 1, MIB)
        disk.fail(operation, code, after=operation == "sync_directory")
        error = await fail_to_save(manager, 2, MIB)
        assert error.errno == code
        assert os.strerror(code) in str(error)
        assert str(tmp_path) in str(error)
        needed, free = numbers_in(error)
        assert needed > MIB
        assert free > MIB
        words = {errno.ENOSPC: "make room on that disk", errno.EDQUOT: "quota", errno.EFBIG: "ulimit -f"}
        assert words[code] in str(error)
        await check_intact(manager, 1)


@pytest.mark.parametrize("operation", ["open_lock", "write", "sync_directory"])
async def test_before_the_first_save(tmp_path: Path, operation: str) -> None:
    """`save` itself raises what keeps the directory from being made, with the numbers where that is a lack of room."""
    disk = FaultyDisk()
    root = tmp_path / "runs"
    disk.fail(operation, errno.ENOSPC, lasting=True)
    async with asyncckpt.CheckpointManager(root, disk=disk) as manager:
        if operation == "write":
            error = await fail_to_save(manager, 1, MIB)
        else:
            with pytest.raises(OSError, match="No space left") as caught:
                await manager.save(1, state_of(MIB))
            error = caught.value
        assert error.filename == str(root)
        assert numbers_in(error)[-1] > MIB
        disk.heal()
        await save(manager, 1, MIB)


async def test_files_of_the_callers_own(tmp_path: Path) -> None:
    """Both ends of a pending directory say the same, and it may be finalized when there is room."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        for operation in ("mkdir", "write"):
            disk.fail(operation, errno.EDQUOT)
            with pytest.raises(OSError, match="the quota is used up") as caught:
                await manager.init_tmp_checkpoint(1)
            assert len(numbers_in(caught.value)) == 2
        path = await manager.init_tmp_checkpoint(1)
        (path / "own").write_bytes(bytes(MIB))
        disk.fail("write", errno.ENOSPC, path_part="manifest")
        with pytest.raises(OSError, match="make room on that disk") as caught:
            await manager.finalize_checkpoint(path)
        assert numbers_in(caught.value)[0] >= MIB
        await manager.finalize_checkpoint(path)
        assert manager.steps() == [1]


async def test_a_disk_without_inodes_says_so(make_disk: MakeDisk) -> None:
    """Bytes are free then, and would be puzzling by themselves."""
    root = make_disk("size=4m", "nr_inodes=20")
    async with asyncckpt.CheckpointManager(root) as manager:
        await save(manager, 1, 1000)
        while (left := os.statvfs(root).f_favail) > 1:
            (root / f"file {left}").touch()
        assert "and 1 inodes are free" in str(await fail_to_save(manager, 2, 1000))
        await check_intact(manager, 1)


async def test_a_file_system_that_does_not_say_is_taken_to_have_room(make_disk: MakeDisk) -> None:
    """A tmpfs without a limit reports no sizes at all."""
    root = make_disk("size=0")
    assert os.statvfs(root).f_blocks == 0
    async with asyncckpt.CheckpointManager(root, min_free_nbytes=1 << 60) as manager:
        await save(manager, 1, MIB)
        await check_intact(manager, 1)


async def test_trash_goes_first(make_disk: MakeDisk) -> None:
    """What was retired, now or in another life, and only waits to be deleted, makes room; nothing else goes."""
    root = make_disk("size=10m")
    async with asyncckpt.CheckpointManager(root, keep_latest_k=2) as manager:
        for step in (1, 2):
            await save(manager, step, MIB)
        leftover = root / name_of(Kind.TRASH, 9)
        leftover.mkdir()
        (leftover / "state.msgpack").write_bytes(bytes(3 * MIB))
        handles = [await manager.save(step, state_of(nbytes, step)) for step, nbytes in ((3, MIB), (4, 6 * MIB))]
        for handle in handles:
            await handle
        await manager.flush()
        assert not leftover.exists()
        await check_intact(manager, 3, 4)


async def test_what_could_not_be_deleted_is_tried_again(make_disk: MakeDisk) -> None:
    """A save that needs the room deletes what stayed earlier, and `trash_nbytes` says that it is gone."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(make_disk("size=10m"), disk=disk) as manager:
        for step in (1, 2):
            await save(manager, step, 3 * MIB)
        disk.fail("unlink", errno.EBUSY, path_part="trash_step_1/state", lasting=True)
        with pytest.warns(asyncckpt.CheckpointWarning, match="trash_step_1 cannot be removed"):
            await manager.delete(1)
            await manager.flush()
        assert manager.statistics().trash_nbytes >= 3 * MIB
        disk.heal()
        await save(manager, 3, 6 * MIB)
        assert manager.statistics().trash_nbytes == 0
        await check_intact(manager, 2, 3)


@pytest.mark.parametrize("format_name", ["msgpack", "hdf5"])
@pytest.mark.parametrize("way", WAYS)
async def test_what_a_save_will_displace_goes_before_it(make_disk: MakeDisk, format_name: str, way: str) -> None:
    """A disk with room for as many as are kept, and not for one more, takes save after save."""
    root = make_disk("size=7m")
    budget = MIB if way == "streamed" else 8 * MIB
    async with asyncckpt.CheckpointManager(
        root, format=format_name, keep_latest_k=2, max_staged_nbytes=budget
    ) as manager:
        for step in range(1, 6):
            await save(manager, step, 5 * MIB // 2, frozen=way == "frozen")
            await check_intact(manager, *range(max(step - 1, 1), step + 1))


async def test_nothing_goes_in_vain(make_disk: MakeDisk) -> None:
    """What would go for a save stays if that would not make enough room."""
    root = make_disk("size=8m")
    async with asyncckpt.CheckpointManager(root, keep_latest_k=2) as manager:
        for step in (1, 2):
            await save(manager, step, MIB)
        await fail_to_save(manager, 3, 7 * MIB + MIB // 2)
        await check_intact(manager, 1, 2)
        await save(manager, 3, 6 * MIB + MIB // 2)
        await check_intact(manager, 2, 3)


@pytest.mark.parametrize("fails", [False, True])
async def test_the_latest_and_the_best_stay_until_there_is_a_better_one(make_disk: MakeDisk, *, fails: bool) -> None:
    """They are not pruned for a save that is not committed yet; what else it displaces is."""
    root = make_disk("size=8m")
    async with asyncckpt.CheckpointManager(root, metric_name="score", keep_top_k=1) as manager:
        await save(manager, 1, 2 * MIB, score=9)
        await save(manager, 2, 2 * MIB, score=1)
        await check_intact(manager, 1, 2)
        if fails:
            await fail_to_save(manager, 3, 5 * MIB, score=10)
            await check_intact(manager, 1, 2)
        else:
            await save(manager, 3, 3 * MIB, score=10)
            await check_intact(manager, 3)


async def test_retention_that_was_changed_makes_room(make_disk: MakeDisk) -> None:
    """What the policy does not keep any more goes, though no commit has pruned it yet."""
    root = make_disk("size=8m")
    async with asyncckpt.CheckpointManager(root) as manager:
        for step in range(1, 7):
            await save(manager, step, MIB)
    async with asyncckpt.CheckpointManager(root, keep_latest_k=2) as manager:
        await save(manager, 7, 3 * MIB)
        await check_intact(manager, 6, 7)


async def test_what_is_overwritten_stays_until_then(make_disk: MakeDisk) -> None:
    """An overwrite needs room beside the old one, which is intact when there is none."""
    root = make_disk("size=4m")
    async with asyncckpt.CheckpointManager(root) as manager:
        await save(manager, 1, 2 * MIB)
        with pytest.raises(asyncckpt.SaveFailedError, match="No space left"):
            await (await manager.save(1, state_of(3 * MIB, 7), overwrite=True))
        await check_intact(manager, 1)


async def test_a_step_that_is_being_loaded_stays(make_disk: MakeDisk) -> None:
    """It would have to go for the save, which is refused instead; afterwards it goes."""
    root = make_disk("size=5m")
    async with asyncckpt.CheckpointManager(root, keep_latest_k=2) as manager:
        for step in (1, 2):
            await save(manager, step, 2 * MIB)
        with manager._session.use().steps.reading(1):
            await fail_to_save(manager, 3, 2 * MIB)
        await check_intact(manager, 1, 2)
        await save(manager, 3, 2 * MIB)
        await check_intact(manager, 2, 3)


def test_what_a_save_would_displace_leaves_the_catalog_as_it_was() -> None:
    """To ask changes nothing, for a new step, one that is there, and one that is corrupt."""
    policy = RetentionPolicy(metric_name="m", keep_top_k=1)
    catalog = Catalog(policy)
    for step, metric in ((1, 5.0), (2, 9.0), (3, 1.0), (4, 2.0)):
        catalog.add(asyncckpt.CheckpointRecord(step=step, directory=f"step_{step}", training_info={"m": metric}))
    catalog.mark_corrupt(4)
    before = (catalog.ranking.best(), catalog.ranking.to_prune(), catalog.steps())
    assert catalog.to_prune_after(5, {"m": 10.0}, protect=()) == [1]
    assert catalog.to_prune_after(5, {"m": 10.0}, protect={1}) == []
    assert catalog.to_prune_after(2, {"m": 0.0}, protect=()) == []
    assert catalog.to_prune_after(4, {"m": 0.0}, protect=()) == [1]
    after = (catalog.ranking.best(), catalog.ranking.to_prune(), catalog.steps())
    assert after == before


def test_an_error_that_is_explained_can_be_copied(tmp_path: Path) -> None:
    """Its text goes with it to another process; errors that are no lack of room stay as they are."""
    error = OSError(errno.EDQUOT, "Disk quota exceeded", "/a", None, "/b")
    explain(error, tmp_path / "not" / "there", "it takes 5 bytes")
    assert "it takes 5 bytes" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own bytes
    other = OSError(errno.EIO, "Input/output error", "/a")
    explain(other, tmp_path, "it takes 5 bytes")
    assert str(other) == "[Errno 5] Input/output error: '/a'"
