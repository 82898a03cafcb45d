"""Directories that cannot be written, and disks that are full: each its own clear error, and nothing lost."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOLDER = """
import asyncio, sys
import asyncckpt

async def main():
    async with asyncckpt.CheckpointManager(sys.argv[1]) as manager:
        await (await manager.save(1, {"a": 1}))
        print("held", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await (await manager.save(2, {"a": 2}))

asyncio.run(main())
"""

VISITOR = """
import asyncio, os, sys
import asyncckpt

async def main():
    for options in ({}, {"read_only": True}):
        async with asyncckpt.CheckpointManager(sys.argv[1], **options) as manager:
            assert (await manager.load("latest")).state == {"a": 1}
            try:
                await manager.save(2, {"a": 2})
            except PermissionError as error:
                assert sys.argv[1] in str(error), error
                assert "this process may not write here" in str(error), error
                assert "read_only=True" in str(error), error
            except asyncckpt.ReadOnlyError:
                assert options
            else:
                raise AssertionError
            assert manager.steps() == [1]
    async with asyncckpt.CheckpointManager(os.path.join(sys.argv[1], "below")) as manager:
        try:
            await manager.save(2, {"a": 2})
        except PermissionError as error:
            assert "below" in str(error), error
        else:
            raise AssertionError

asyncio.run(main())
"""


def names_in(root: Path) -> list[str]:
    """List a directory."""
    return sorted(path.name for path in root.iterdir())


async def test_a_second_writer_here(tmp_path: Path) -> None:
    """The second manager may load; its first mutation is refused, says so, and the first goes on undisturbed."""
    async with (
        asyncckpt.CheckpointManager(tmp_path) as first,
        asyncckpt.CheckpointManager(tmp_path) as second,
    ):
        await (await first.save(1, {"a": 1}))
        path = await first.init_tmp_checkpoint(5, {})
        with pytest.raises(asyncckpt.DirectoryLockedError, match="read_only=True") as caught:
            await second.save(2, {"a": 2})
        assert str(tmp_path) in str(caught.value)
        with pytest.raises(asyncckpt.DirectoryLockedError):
            await second.delete(1)
        with pytest.raises(asyncckpt.DirectoryLockedError):
            await second.init_tmp_checkpoint(5, {})
        with pytest.raises(asyncckpt.DirectoryLockedError):
            await second.finalize_checkpoint(path)
        with pytest.raises(asyncckpt.DirectoryLockedError):
            await second.remove_old_checkpoints()
        handle = second.save_nowait(3, {"a": 3})
        with pytest.raises(asyncckpt.SaveFailedError) as failed:
            await handle
        assert isinstance(failed.value.__cause__, asyncckpt.DirectoryLockedError)
        await second.refresh()
        loaded = await second.load("latest")
        assert loaded is not None
        assert loaded.state == {"a": 1}
        await first.finalize_checkpoint(path)
        await first.aclose()
        with pytest.warns(asyncckpt.CheckpointWarning, match="below the latest"):
            handle = await second.save(2, {"a": 2})  # the first has given the lock back
        await handle
        assert second.steps() == [1, 2, 5]


async def test_a_second_writer_elsewhere(tmp_path: Path) -> None:
    """A writer in another process is respected while it lives; both lose nothing."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        assert manager.steps() == [1]
        with pytest.raises(asyncckpt.DirectoryLockedError):
            await manager.save(2, {"a": 0})
        await holder.communicate(b"")
        assert holder.returncode == 0
        with pytest.raises(asyncckpt.StepExistsError):  # the other one's, seen when the directory is taken over
            await manager.save(2, {"a": 0})
        await (await manager.save(3, {"a": 3}))
        assert manager.steps() == [1, 2, 3]


async def test_opening_takes_no_lock(tmp_path: Path) -> None:
    """Listing and loading take no lock and make no directory: that comes with the first mutation."""
    root = tmp_path / "a" / "b"
    async with asyncckpt.CheckpointManager(root) as manager:
        assert manager.steps() == []
        assert await manager.load("latest", missing_ok=True) is None
        await manager.refresh()
        assert not root.parent.exists()
        await (await manager.save(1, {"a": 1}))
    async with asyncckpt.CheckpointManager(root) as idle:
        await idle.load("latest")
        async with asyncckpt.CheckpointManager(root) as other:
            await (await other.save(2, {"a": 2}))


@pytest.mark.parametrize("name", ["file", "file/below", "file/below/it"])
async def test_a_file_in_the_way(tmp_path: Path, name: str) -> None:
    """A directory that is a file, or lies in one, is said to be so when the manager is opened."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=str(tmp_path / "file")):
        async with asyncckpt.CheckpointManager(tmp_path / name):
            pass
    assert (tmp_path / "file").read_text() == "mine"


async def test_a_file_that_comes_into_the_way(tmp_path: Path) -> None:
    """It may be found at the first save only; the step is free, and all is well when the file has gone."""
    async with asyncckpt.CheckpointManager(tmp_path / "a" / "b") as manager:
        (tmp_path / "a").touch()
        with pytest.raises(NotADirectoryError, match="a is not a directory"):
            await manager.save(1, {"a": 1})
        (tmp_path / "a").unlink()
        await (await manager.save(1, {"a": 1}))
        assert manager.steps() == [1]


@pytest.mark.parametrize("operation", ["mkdir", "open_lock"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
async def test_no_permission(tmp_path: Path, operation: str, code: int) -> None:
    """`save` raises what the system says, with the path; nothing was queued, the step is free, and all can heal."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path / "a", disk=disk) as manager:
        disk.fail(operation, code, lasting=True)
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            await manager.save(1, {"a": 1})
        assert caught.value.errno == code
        assert str(tmp_path / "a") in str(caught.value)
        with pytest.raises(OSError, match=os.strerror(code)):
            await manager.init_tmp_checkpoint(1, {})
        handle = manager.save_nowait(2, {"a": 2})
        with pytest.raises(asyncckpt.SaveFailedError, match=os.strerror(code)):
            await handle
        assert manager.statistics().queue_depth == manager.statistics().staged_nbytes == 0
        disk.heal()
        for step in (1, 2):
            await (await manager.save(step, {"a": step}))
        assert manager.steps() == [1, 2]


def lose_roots_rights() -> None:
    """Let permissions count for root, too, in the program that is started next."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of another user")
def test_no_permission_for_real(tmp_path: Path) -> None:
    """A user who may read the directory but not write to it can load; the first save raises the error."""
    root = tmp_path / "runs"

    async def fill() -> None:
        async with asyncckpt.CheckpointManager(root) as manager:
            await (await manager.save(1, {"a": 1}))

    asyncio.run(fill())
    (root / "tmp_step_9").mkdir()  # a leftover that the visitor may not clear
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.chown(path, 65534, 65534)
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", VISITOR, root],
        preexec_fn=lose_roots_rights,  # no threads run here
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (root / "tmp_step_9").is_dir()


@pytest.mark.parametrize("format_name", ["msgpack", "hdf5"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("min_free_nbytes", [None, 0])
async def test_a_full_disk(
    make_disk: Callable[..., Path], format_name: str, min_free_nbytes: int | None, *, frozen: bool
) -> None:
    """The save fails and says that there is no space; its half is removed, the old ones load, a smaller one goes in."""
    big = {"a": np.ones(6 << 20, np.uint8)}
    root = make_disk("size=4m") / "runs"
    async with asyncckpt.CheckpointManager(root, format=format_name, min_free_nbytes=min_free_nbytes) as manager:
        await (await manager.save(1, {"a": np.arange(100)}))
        for overwrite in (False, True):
            handle = await manager.save(1 if overwrite else 2, big, overwrite=overwrite, frozen=frozen)
            with pytest.raises(asyncckpt.SaveFailedError, match="No space left") as caught:
                await handle
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.ENOSPC
            assert manager.steps() == [1]
            assert names_in(root) == [".lock", "step_1"]
        loaded = await manager.load(1)
        assert loaded is not None
        np.testing.assert_array_equal(loaded.state["a"], np.arange(100))
        await (await manager.save(2, {"a": np.ones(1 << 20, np.uint8)}))
        assert manager.steps() == [1, 2]


@pytest.mark.parametrize("format_name", ["msgpack", "hdf5"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_disk_that_fills_up(tmp_path: Path, format_name: str, code: int) -> None:
    """Wherever in a large file it happens, the half is removed, and the save works when there is space again."""
    state = {"a": np.arange(5 << 20, dtype=np.uint8), "b": np.arange(40 << 20, dtype=np.uint8)}
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk, format=format_name) as manager:
        await (await manager.save(1, {"a": 1}))
        disk.fail("write", code, path_part="state.", after=2, lasting=True)
        handle = await manager.save(2, state)
        with pytest.raises(asyncckpt.SaveFailedError, match=os.strerror(code)):
            await handle
        assert names_in(tmp_path) == [".lock", "step_1"]
        disk.heal()
        await (await manager.save(2, state))
        await manager.verify(2)
        assert manager.steps() == [1, 2]


async def test_a_failure_that_no_caller_awaits(tmp_path: Path) -> None:
    """It is raised once, by the next `save` before it captures, by `flush`, or on leaving; several as a group."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        disk.fail("mkdir", errno.ENOSPC, path_part="tmp_step_1")
        await manager.save(1, {"a": 1})
        with pytest.raises(asyncckpt.SaveFailedError, match="step 1 was not saved"):
            await manager.flush()
        await manager.flush()
        disk.fail("mkdir", errno.ENOSPC, path_part="tmp_step_", lasting=True)
        for step in (2, 3):
            await manager.save(step, {"a": 1})
        with pytest.raises(ExceptionGroup, match="2 saves failed") as caught:
            await manager.aclose()
        assert [each.step for each in caught.value.exceptions] == [2, 3]  # type: ignore[attr-defined]
    assert names_in(tmp_path) == [".lock"]
