"""What the rigs have found, each fixed since: the failing case, by itself."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.gates import hold
from helpers.kinds import FILES, Place

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_pending_directory_whose_maker_is_cancelled_is_removed(tmp_path: Path) -> None:
    """`init_tmp_checkpoint`, cancelled while its thread makes the directory, leaves none, and the step is free."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            task = asyncio.ensure_future(manager.init_tmp_checkpoint(1, {}))
            await gate.reached()
            task.cancel()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        await (await manager.save(1, {"a": 1}))
        assert manager.steps() == [1]


@pytest.mark.parametrize("kind", FILES)
def test_a_leftover_that_cannot_be_removed_hinders_nobody(kind: str, tmp_path: Path) -> None:
    """A writer that met an error on its way in once went on with a descriptor that could only read."""
    file = Place(kind, tmp_path)
    with file.open() as chk:
        chk["a"] = 1
    disk = FaultyDisk()
    with file.open(disk=disk) as chk:
        disk.fail("unlink", errno.EFBIG)
        for value in (2, 3):
            try:
                chk["a"] = value
            except OSError as error:
                assert error.errno == errno.EFBIG  # noqa: PT017 - it need not be raised
        chk.flush()
    assert file.contents() == {"a": 3}


def test_a_damaged_name_of_a_member_is_no_other_key(tmp_path: Path) -> None:
    """The CRC-32 of a zip file covers no names: each stands in two places, which must agree."""
    file = Place("npz", tmp_path)
    with file.open() as chk:
        chk["a"], chk["b"] = np.arange(3), {"x": 1}
    data = file.path.read_bytes()
    for name in (b"a.npy", b"__asyncckpt__.npy"):
        for at in (data.index(name), data.rindex(name)):
            file.path.write_bytes(data[:at] + b"z" + data[at + 1 :])
            with pytest.raises(asyncckpt.CorruptCheckpointError):
                file.contents()


async def test_what_a_failed_save_has_left_is_deleted_with_its_step(tmp_path: Path) -> None:
    """A save whose name was neither durable nor moved back once came to light at the next start, though deleted."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, {"a": 1}))
        disk.fail("sync_directory", errno.EIO, after=1)  # behind that of the pending directory
        disk.fail("rename", errno.EIO, after=1)
        handle = await manager.save(2, {"a": 2})
        with pytest.raises(asyncckpt.SaveFailedError):
            await handle
        assert (tmp_path / "step_2").exists()
        disk.operations.clear()
        with pytest.raises(asyncckpt.CheckpointNotFoundError):
            await manager.delete(2)
        assert not (tmp_path / "step_2").exists()
        assert disk.names()[:2] == ["rename", "sync_directory"]
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        assert manager.steps() == [1]


@pytest.mark.parametrize("kind", FILES)
def test_what_follows_a_name_that_is_not_durable_leaves_its_file_alone(kind: str, tmp_path: Path) -> None:
    """What was set after a flush that could not sync the directory once went into the file of that flush."""
    file = Place(kind, tmp_path)
    with file.open() as chk:
        chk["a"], chk["b"] = 1, np.arange(2)
    disk = FaultyDisk()
    with file.open(disk=disk) as chk:
        chk["a"] = np.arange(10)
        disk.fail("sync_directory", errno.EIO, lasting=True)
        with contextlib.suppress(OSError):  # a kind that appends syncs no directory
            chk.flush()
        chk["b"] = np.arange(300)
        assert file.contents()["b"].size == 2
        with contextlib.suppress(OSError):
            chk.flush()
        chk["c"] = 4
        assert file.contents()["b"].size in (2, 300)
        disk.heal()
    found = file.contents()
    assert (found["a"].size, found["b"].size, found["c"]) == (10, 300, 4)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_a_link_to_itself(kind: str, tmp_path: Path) -> None:
    """What pathlib says of it once came through: a RuntimeError."""
    file = Place(kind, tmp_path)
    file.path.symlink_to(file.path)
    with pytest.raises(OSError, match="symbolic links"):
        file.contents()


@pytest.mark.parametrize("kind", FILES)
def test_a_file_whose_first_write_failed_is_whole_in_the_end(kind: str, tmp_path: Path) -> None:
    """A log whose head could not be written once went on without it: flushed, acknowledged, and no log."""
    file = Place(kind, tmp_path)
    disk = FaultyDisk()
    with file.open(disk=disk) as chk:
        disk.fail("write", errno.EFBIG)
        for value in (1, 2):
            with contextlib.suppress(OSError):
                chk["a"] = value
                chk.flush()
        chk["b"] = 3
    assert file.contents() == {"a": 2, "b": 3}
