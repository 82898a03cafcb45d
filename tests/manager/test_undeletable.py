"""What a real file system does not let go of: it is named once, with who or what is in the way, and stops nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asyncckpt import CheckpointManager, CheckpointWarning, SaveFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Command = Callable[..., bool]

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")


async def save(root: Path, *steps: int, **options: object) -> list[int]:
    """Save small checkpoints, and list what there is then."""
    async with CheckpointManager(root, **options) as manager:  # type: ignore[arg-type]
        for step in steps:
            await (await manager.save(step, {"a": step}, overwrite=True))
        return manager.steps()


def texts(caught: pytest.WarningsRecorder) -> list[str]:
    """Give the texts of warnings."""
    return [str(each.message) for each in caught]


def run(*command: str | Path) -> bool:
    """Run one of the system's tools."""
    tool = shutil.which(str(command[0]))
    return tool is not None and not subprocess.run([tool, *command[1:]], capture_output=True, check=False).returncode  # noqa: S603


@pytest.fixture
def after() -> Iterator[ExitStack]:
    """Give what is undone after a test."""
    with ExitStack() as stack:
        yield stack


def bind(path: Path, after: ExitStack, source: Path | None = None) -> None:
    """Make a directory a mount point, of itself or of another one."""
    if not run("mount", "--bind", source or path, path):
        pytest.skip("mounting takes root's rights")
    after.callback(run, "umount", path)


# --- mount points -----------------------------------------------------------------------------------------------------


async def test_a_mounted_step(tmp_path: Path, after: ExitStack) -> None:
    """It keeps no other from being pruned, is named once, cannot be deleted or replaced, and goes when it can."""
    root = tmp_path / "runs"
    await save(root, 1, 2)
    bind(root / "step_1", after)
    with pytest.warns(CheckpointWarning) as caught:
        async with CheckpointManager(root, keep_latest_k=2) as manager:
            for step in range(10, 16):
                await (await manager.save(step, {"a": step}))
                assert manager.steps() == [1, *([2, *range(10, step + 1)][-2:])]
            with pytest.raises(OSError, match=r"step 1 cannot be deleted: .*mounted at .*step_1: unmount it"):
                await manager.delete(1)
            with pytest.raises(SaveFailedError, match=r"step 1 cannot be replaced: .*mounted at .*step_1: unmount it"):
                await (await manager.save(1, {"a": 100}, overwrite=True))
            loaded = await manager.load(1)
            assert loaded is not None
            assert loaded.state == {"a": 1}
            (text,) = (each for each in texts(caught) if "below the latest" not in each)
            assert text == (
                f"{root}: step 1 cannot be pruned: step_1: Device or resource busy: a file system is mounted at"
                f" {root / 'step_1'}: unmount it; it is tried again later"
            )
            after.close()
            await (await manager.save(16, {"a": 16}))
            assert manager.steps() == [15, 16]
    assert sorted(path.name for path in root.iterdir()) == [".lock", "step_15", "step_16"]


@pytest.mark.parametrize("name", ["tmp_step_2", "trash_step_1", "trash_step_1/sub"])
async def test_nothing_is_deleted_through_a_mount_point(tmp_path: Path, after: ExitStack, name: str) -> None:
    """Recovery names it once, and leaves it and all below it; a step whose pending name it has gets another one."""
    root = tmp_path / "runs"
    await save(root, 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (root / name).mkdir(parents=True)
    bind(root / name, after, tmp_path / "mine")
    with pytest.warns(CheckpointWarning) as caught:
        async with CheckpointManager(root) as manager:
            await (await manager.save(2, {"a": 2}))
            assert (await manager.init_tmp_checkpoint(3)).name == "tmp_step_3"
            await manager.delete(1)
            assert manager.steps() == [2]
    (text,) = texts(caught)
    assert f"{name.partition('/')[0]} cannot be removed: Device or resource busy" in text
    assert f"mounted at {root / name}: unmount it" in text
    assert (tmp_path / "mine" / "file").exists()
    after.close()
    assert await save(root) == [2]
    assert sorted(path.name for path in root.iterdir()) == [".lock", "step_2"]


# --- overlayfs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def layered(tmp_path: Path, after: ExitStack) -> Path:
    """Give a directory whose checkpoints 1 and 2 lie in a lower layer, where no directory can be renamed."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    asyncio.run(save(tmp_path / "lower" / "runs", 1, 2))
    layers = ",".join(f"{name}={tmp_path / name.removesuffix('dir')}" for name in ("lowerdir", "upperdir", "workdir"))
    if not run("mount", "-t", "overlay", "overlay", "-o", f"{layers},redirect_dir=off", tmp_path / "merged"):
        pytest.skip("overlayfs takes root's rights, and a kernel that has it")
    after.callback(run, "umount", tmp_path / "merged")
    return tmp_path / "merged" / "runs"


@pytest.mark.parametrize("form", ["msgpack", "hdf5"])
async def test_a_lower_layer(layered: Path, form: str) -> None:
    """Checkpoints of a lower layer are replaced, deleted and pruned like others, and nothing is left of them."""
    async with CheckpointManager(layered, format=form) as manager:
        assert manager.steps() == [1, 2]
        lazy = await manager.load(1, lazy=True)
        for version in (1, 2):
            record = await (await manager.save(2, {"version": version}, overwrite=True))
            assert record.path == layered / "step_2"
            loaded = await manager.load(2)
            assert loaded is not None
            assert loaded.state == {"version": version}
        await manager.verify(2)
        await manager.delete(1)
        assert manager.steps() == [2]
        await (await manager.save(2, {"again": 2}, overwrite=True))
        await manager.delete(2)
        await (await manager.save(1, {"again": 1}))
    assert lazy is not None
    assert lazy.state == {"a": 1}
    assert await save(layered, 3, 4, keep_latest_k=1) == [4]
    assert sorted(path.name for path in layered.iterdir()) == [".lock", "step_4"]


async def test_a_lower_layer_is_pruned(layered: Path) -> None:
    """What was not overwritten before is deleted in place."""
    assert await save(layered, 3, keep_latest_k=1) == [3]
    assert sorted(path.name for path in layered.iterdir()) == [".lock", "step_3"]


# --- other users, and immutable files ---------------------------------------------------------------------------------

AS_USER = """
import asyncio, os, pathlib, sys, tempfile, warnings
import asyncckpt

async def save(root, *steps, **options):
    async with asyncckpt.CheckpointManager(root, **options) as manager:
        for step in steps:
            await (await manager.save(step, {"a": step}))
        return manager

with tempfile.TemporaryDirectory() as other:
    asyncio.run(save(other, 1, 2, keep_latest_k=1))  # imports what only root may read
root, body = pathlib.Path(sys.argv[1]), sys.argv[2]
os.setgroups([]); os.setgid(1001); os.setuid(1001)

async def main():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        namespace = {}
        exec("async def body():\\n" + body, globals(), namespace)
        await namespace["body"]()
    print(*(each.message for each in caught), sep="\\n")

asyncio.run(main())
"""


@pytest.fixture
def shared(after: ExitStack) -> Path:
    """Give a directory that other users can reach, with a checkpoint of root's in it."""
    above = Path(after.enter_context(tempfile.TemporaryDirectory()))
    above.chmod(0o755)
    asyncio.run(save(above / "runs", 1))
    (above / "runs" / ".lock").chmod(0o666)
    return above / "runs"


def as_user(root: Path, body: str) -> list[str]:
    """Run a program as another user, and return its warnings."""
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", AS_USER, root, body],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@ROOT_ONLY
def test_a_sticky_directory(shared: Path) -> None:
    """Another user's step stays, and the others go; the message says whose it is."""
    shared.chmod(0o1777)
    body = """
    async with asyncckpt.CheckpointManager(root, keep_latest_k=1) as manager:
        for step in (10, 11, 12):
            await (await manager.save(step, {"a": step}))
        assert manager.steps() == [1, 12], manager.steps()
        try:
            await manager.delete(1)
        except PermissionError as error:
            assert "step 1 cannot be deleted" in str(error) and "it belongs to root (uid 0)" in str(error), error
        else:
            raise AssertionError
        try:
            await (await manager.save(1, {"a": 1}, overwrite=True))
        except asyncckpt.SaveFailedError as error:
            assert "step 1 cannot be replaced" in str(error) and "it belongs to root (uid 0)" in str(error), error
        else:
            raise AssertionError
"""
    found = [each for each in as_user(shared, body) if "below the latest" not in each]
    assert len(found) == 1
    assert "step 1 cannot be pruned: step_1: Operation not permitted: it belongs to root (uid 0)" in found[0]
    assert f"{shared} is sticky" in found[0]
    assert sorted(path.name for path in shared.iterdir()) == [".lock", "step_1", "step_12"]


@ROOT_ONLY
def test_trash_of_another_user(shared: Path) -> None:
    """A step that may be renamed and not deleted is gone as a step; what stays is named at each start, and counted."""
    os.chown(shared, 1001, 1001)
    body = """
    async with asyncckpt.CheckpointManager(root, keep_latest_k=1) as manager:
        for step in steps:
            await (await manager.save(step, {"a": step}))
        await manager.flush()
        assert manager.steps() == list(steps[-1:])
        while manager._session.use().pruner._trash:
            await asyncio.sleep(0)
        assert (manager.statistics().trash_nbytes > 0) == (steps[0] == 10)
"""
    for steps in ((10, 11), (20, 21)):
        (text,) = as_user(shared, f"    steps = {steps}\n{body}")
        assert "trash_step_1 cannot be removed: Permission denied (manifest.json)" in text
        assert f"{shared / 'trash_step_1'} belongs to root (uid 0), mode 755" in text
        assert "this process runs as uid 1001" in text
    assert asyncio.run(save(shared)) == [21]
    assert sorted(path.name for path in shared.iterdir()) == [".lock", "step_21"]


async def test_an_immutable_step(tmp_path: Path, after: ExitStack) -> None:
    """It stays, and the others go; the message says that it is immutable."""
    root = tmp_path / "runs"
    await save(root, 1)
    if not run("chattr", "+i", root / "step_1"):
        pytest.skip("chattr takes root's rights, and a file system that has attributes")
    after.callback(run, "chattr", "-i", root / "step_1")
    with pytest.warns(CheckpointWarning) as caught:
        assert await save(root, 10, 11, 12, keep_latest_k=1) == [1, 12]
    (text,) = texts(caught)
    assert f"{root / 'step_1'} is immutable or append-only: chattr -ia" in text


# --- room -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["delete", "remove_old_checkpoints"])
async def test_what_is_deleted_is_gone_when_space_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Where a deleted checkpoint holds much of what the disk has left, its files have gone when the call returns."""
    monkeypatch.setattr("asyncckpt.storage.local.outcomes.free_nbytes", lambda _: 10_000)
    await save(tmp_path, 1, 2)
    async with CheckpointManager(tmp_path, keep_latest_k=1) as manager:
        await (manager.delete(1) if way == "delete" else manager.remove_old_checkpoints())
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step_2"]
        assert manager.statistics().trash_nbytes == 0
