"""Committed means durable, and old before new is safe: every operation of the disk recorded, failed, and killed at.

The scenarios below are run

- on a disk that fails at one operation, once or from then on, for every operation there is;
- in a child process that kills itself with SIGKILL before one operation, for every operation there is. For that, this
  file is also a script.

What a power cut leaves is tried in tests/reliability, on a model of a disk that loses whatever was not synced.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest
from helpers.gates import Gate, hold

import asyncckpt
from asyncckpt.storage.local import store as listing
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from asyncckpt.testing import Operation


class NoExchange(FaultyDisk):
    """A disk that cannot exchange two names."""

    def exchange(self, first: Path, second: Path) -> bool:  # noqa: ARG002 - it does nothing
        """Say no."""
        return False


def content(step: int, version: int) -> dict[str, Any]:
    """Make a state that tells its step and version, small but of two kinds of leaves."""
    return {"a": np.arange(100) * step + version, "step": step, "version": version}


Ack = "Callable[[int, int], object]"


async def save(manager: asyncckpt.CheckpointManager, ack: Any, step: int, version: int) -> None:
    """Save, wait, acknowledge."""
    handle = await manager.save(
        step, content(step, version), training_info={"version": version}, run_config={"lr": 0.1}, overwrite=version > 0
    )
    await handle
    ack(step, version)


USERS_FILES = ("mine", "sub", "sub/deep", "sub/deep/file")


async def scene_save(manager: asyncckpt.CheckpointManager, ack: Any) -> None:
    """Save a new step."""
    await save(manager, ack, 4, 0)


async def scene_overwrite(manager: asyncckpt.CheckpointManager, ack: Any) -> None:
    """Overwrite the newest step."""
    await save(manager, ack, 3, 1)


async def scene_prune(manager: asyncckpt.CheckpointManager, ack: Any) -> None:
    """Save with a retention that keeps two."""
    await save(manager, ack, 4, 0)
    await manager.flush()


async def scene_delete(manager: asyncckpt.CheckpointManager, ack: Any) -> None:
    """Delete a step."""
    await manager.delete(2)
    ack(2, -1)


async def scene_finalize(manager: asyncckpt.CheckpointManager, ack: Any) -> None:
    """Commit a directory that was filled by hand, in the place of a step that exists."""
    path = await manager.init_tmp_checkpoint(3, {"version": 1}, {"lr": 0.1})

    def fill() -> None:
        (path / "sub" / "deep").mkdir(parents=True)
        for name in USERS_FILES:
            if not (path / name).is_dir():
                (path / name).write_bytes(b"3 1")

    await asyncio.to_thread(fill)
    await manager.finalize_checkpoint(path)
    ack(3, 1)


async def scene_files(manager: asyncckpt.CheckpointManager, ack: Any) -> None:
    """Overwrite a step with a state and files: some are copied, some moved, and some written by a function."""
    root = manager._settings.checkpoint_dir
    source = root.with_name(f"{root.name}.source")

    def make() -> None:
        for name in ("copied", "moved"):
            (source / name / "sub").mkdir(parents=True)
            (source / name / "sub" / "file").write_bytes(b"3 1")
            (source / name / "more").write_bytes(b"more")

    async def fill(path: Path) -> None:
        await asyncio.to_thread((path / "file").write_bytes, b"3 1")

    await asyncio.to_thread(make)
    files = {
        "moved": asyncckpt.FileSource(source / "moved", move=True),
        "made": fill,
        "below/copied": source / "copied",
    }
    handle = await manager.save(3, content(3, 1), training_info={"version": 1}, overwrite=True, files=files)
    await handle
    ack(3, 1)


async def scene_pending(manager: asyncckpt.CheckpointManager, ack: Any) -> None:
    """Save a state into a directory that was filled by hand."""
    async with manager.checkpoint(4, {"version": 0}, {"lr": 0.1}) as pending:
        await asyncio.to_thread((pending / "file").write_bytes, b"4 0")
        await pending.save(content(4, 0))
    ack(4, 0)


MOVED = {"sub/file": b"3 1", "more": b"more"}


def find_moved(root: Path, *, is_over: bool = False) -> None:
    """Check that what the scene moves is whole, at its old place or in the checkpoint; at one, if it is over."""
    source = root.with_name(f"{root.name}.source")
    for name, data in MOVED.items() if source.exists() else ():
        found = [path for path in (source / "moved" / name, root / "step_3" / "moved" / name) if path.exists()]
        assert found, name
        assert not is_over or len(found) == 1
        assert all(path.read_bytes() == data for path in found)


@dataclass(frozen=True)
class Scene:
    """What is done to a directory with the steps 1, 2 and 3, or to none."""

    act: Callable[[asyncckpt.CheckpointManager, Any], Awaitable[None]]
    options: dict[str, Any] = field(default_factory=dict)
    disk: type[FaultyDisk] = FaultyDisk
    steps: tuple[int, ...] = (1, 2, 3)
    leftovers: tuple[str, ...] = ()
    below: str = ""
    """Directories that must be made."""
    gone: tuple[int, ...] = ()
    """Steps that may be missing in the end."""

    async def run(self, root: Path, disk: FaultyDisk, ack: Any) -> None:
        """Play it."""
        async with asyncckpt.CheckpointManager(root / self.below, disk=disk, **self.options) as manager:
            await self.act(manager, ack)


SCENES = {
    "first": Scene(scene_save, steps=(), below="a/b/c"),
    "save": Scene(scene_save),
    "save-hdf5": Scene(scene_save, {"format": "hdf5"}),
    "recover": Scene(scene_save, leftovers=("tmp_step_9", "trash_step_8", "old_step_2", "old_step_7")),
    "overwrite": Scene(scene_overwrite),
    "overwrite-hdf5": Scene(scene_overwrite, {"format": "hdf5"}),
    "overwrite-no-exchange": Scene(scene_overwrite, disk=NoExchange),
    "prune": Scene(scene_prune, {"keep_latest_k": 2}, gone=(1, 2)),
    "prune-hdf5": Scene(scene_prune, {"keep_latest_k": 2, "format": "hdf5"}, gone=(1, 2)),
    "delete": Scene(scene_delete, gone=(2,)),
    "files": Scene(scene_files),
    "files-no-exchange": Scene(scene_files, disk=NoExchange),
    "pending": Scene(scene_pending),
    "finalize": Scene(scene_finalize),
    "finalize-no-exchange": Scene(scene_finalize, disk=NoExchange),
}
MSGPACK = [name for name in SCENES if "hdf5" not in name]  # the operations are the same in both formats
KILLED = [  # the others are parts of these
    name for name in SCENES if name not in ("save", "save-hdf5", "files-no-exchange", "finalize-no-exchange")
]
BY_NAME = pytest.mark.parametrize("name", SCENES)


@cache
def template(name: str, home: Path) -> Path:
    """Make the directory that a scene begins with, once."""
    scene = SCENES[name]
    root = home / f"template-{name}"
    root.mkdir()

    async def fill() -> None:
        async with asyncckpt.CheckpointManager(root, format=scene.options.get("format", "msgpack")) as manager:
            for step in scene.steps:
                await save(manager, lambda *_: None, step, 0)

    asyncio.run(fill())
    for each in scene.leftovers:
        shutil.copytree(root / "step_1", root / each)
    if "old_step_7" in scene.leftovers:
        shutil.rmtree(root / "old_step_7")
        (root / "step_3").rename(root / "old_step_3")
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a directory for templates and hundreds of runs: in memory if possible, where a sync costs nothing."""
    memory = Path("/dev/shm")  # noqa: S108 - the directory made there is private
    if os.access(memory, os.W_OK):
        with tempfile.TemporaryDirectory(dir=memory) as made:
            yield Path(made)
    else:
        yield tmp_path_factory.mktemp("durability")


@pytest.fixture
def place(home: Path) -> Iterator[Path]:
    """Give a directory for one test's runs."""
    with tempfile.TemporaryDirectory(dir=home) as made:
        yield Path(made)


async def look(root: Path, **options: Any) -> dict[int, int]:
    """Open a directory and load everything in it, bit for bit; give the versions."""
    found = {}
    async with asyncckpt.CheckpointManager(root, **options) as manager:
        for step in manager.steps():
            found[step] = await version_of(manager, step)
    return found


async def version_of(manager: asyncckpt.CheckpointManager, step: int) -> int:
    """Load a step and check that it is what was saved under one of its versions; give that."""
    path = manager._session.use().catalog.get(step).path  # where the catalog thinks it is
    info = await manager.load_training_info(path)
    if await asyncio.to_thread((path / "mine").exists):
        await manager.verify(step)
        assert await asyncio.to_thread((path / "mine").read_bytes) == f"{step} 1".encode()
        version = 1
    else:
        loaded = await manager.load(step)
        assert loaded is not None
        version = int(loaded.state["version"])
        expected = content(step, version)
        assert loaded.state["step"] == step
        assert np.array_equal(loaded.state["a"], expected["a"])
        assert loaded.training_info == info
        if loaded.files:
            await manager.verify(step)
            wanted = ["file"] if step == 4 else ["below/copied/more", "below/copied/sub/file", "made/file"]
            wanted += [f"moved/{name}" for name in MOVED] if step == 3 else []
            assert [file.name for file in loaded.files] == sorted(wanted)
    assert info == {"version": version}
    return version


# --- the order --------------------------------------------------------------------------------------------------------


def in_words(disk: FaultyDisk, root: Path) -> list[str]:
    """Write the recorded operations in words, with names relative to the root."""
    return [
        " ".join([each.name, os.path.relpath(each.path, root), *([each.target.name] if each.target else [])])
        for each in disk.operations
    ]


def names_in(root: Path) -> list[str]:
    """List a directory."""
    return sorted(path.name for path in root.iterdir())


def before(lines: list[str], *wanted: str) -> None:
    """Check that lines stand in this order, each at its first place."""
    places = [lines.index(line) for line in wanted]
    assert places == sorted(places), lines


@pytest.mark.parametrize("format_name", ["msgpack", "hdf5"])
async def test_the_order_of_a_save(tmp_path: Path, format_name: str) -> None:
    """The manifest written last; each file synced once, after its last write; then directory, name, parent."""
    disk = FaultyDisk()
    root = tmp_path / "r"
    async with asyncckpt.CheckpointManager(root, disk=disk, format=format_name) as manager:
        state = {"big": np.zeros(3 << 20, np.uint8), "small": 1}
        await (await manager.save(5, state, training_info={"x": 1}, run_config={"y": 2}))
        assert manager.steps() == [5]
        lines = in_words(disk, root)
    file = "state.h5" if format_name == "hdf5" else "state.msgpack"
    before(lines, "mkdir .", "sync_directory ..", "open_lock .lock", "mkdir tmp_step_5")
    for name in ("training_info.json", "config.yaml", file, "manifest.json"):
        path = f"tmp_step_5/{name}"
        before(lines, f"create {path}", f"write {path}", f"sync {path}", "sync_directory tmp_step_5")
        last_write = len(lines) - 1 - lines[::-1].index(f"write {path}")
        assert last_write < lines.index(f"sync {path}")
        assert lines.count(f"sync {path}") == 1
        if name != "manifest.json":
            assert last_write < lines.index("create tmp_step_5/manifest.json")
    assert lines[-3:] == ["sync_directory tmp_step_5", "rename tmp_step_5 step_5", "sync_directory ."]


async def test_not_listed_before_the_parent_is_synced(tmp_path: Path) -> None:
    """Between the rename and the parent's sync the step is not listed, reported, chosen or loaded, and nothing goes."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk, keep_latest_k=1) as manager:
        await (await manager.save(1, content(1, 0)))
        disk.operations.clear()
        with hold(disk, "sync_directory", "", after=1) as gate:  # the first is the pending directory's
            handle = await manager.save(2, content(2, 0))
            await gate.reached()
            assert await asyncio.to_thread((tmp_path / "step_2").is_dir)
            assert manager.steps() == [1]
            assert manager.latest_step() == manager.best_step() == manager.statistics().last_committed_step == 1
            assert not handle.is_done
            assert [each.path.name for each in disk.operations if each.name == "rename"] == ["tmp_step_2"]
            loaded = await manager.load("latest")
            assert loaded is not None
            assert loaded.step == 1
            with pytest.raises(asyncckpt.CheckpointNotFoundError, match="await its handle"):
                await manager.load(2)
            await manager.refresh()
            assert manager.steps() == [1]
        await handle
        assert manager.latest_step() == 2


async def test_a_listing_does_not_lose_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `refresh` that listed the directory before a commit does not take the commit out of the catalog again."""
    listed = listing.read_listed
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(0, content(0, 0)))
        gate = Gate()

        def late(*given: Any) -> list[asyncckpt.CheckpointRecord]:
            records = listed(*given)
            gate()
            return records

        monkeypatch.setattr(listing, "read_listed", late)
        with gate:
            refreshing = asyncio.create_task(manager.refresh())
            await gate.reached()
            await (await manager.save(1, content(1, 0)))
        await refreshing
        assert manager.steps() == [0, 1]


async def test_a_victim_is_unlinked_after_the_parents_sync(tmp_path: Path) -> None:
    """Commit, rename to trash, sync, unlink: in this order, for pruning and for deleting; nothing is truncated."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk, keep_latest_k=2) as manager:
        for step in (1, 2, 3):
            await (await manager.save(step, content(step, 0)))
        await manager.delete(2)
    lines = in_words(disk, tmp_path)
    committed = lines.index("rename tmp_step_3 step_3")
    for step in (1, 2):
        victim = lines.index(f"rename step_{step} trash_step_{step}")
        first = next(at for at, line in enumerate(lines) if line.startswith(f"unlink trash_step_{step}/"))
        assert committed < victim
        assert "sync_directory ." in lines[committed:victim]
        assert "sync_directory ." in lines[victim:first]
    assert names_in(tmp_path) == [".lock", "step_3"]


async def test_what_was_overwritten_is_deleted_at_once(tmp_path: Path) -> None:
    """The old version of a step does not stay on the disk until something is pruned."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, content(1, 0)))
        await (await manager.save(1, content(1, 1), overwrite=True))
    assert names_in(tmp_path) == [".lock", "step_1"]


async def test_deleting_does_not_hold_up_saves(tmp_path: Path) -> None:
    """While a large checkpoint is being unlinked, saves go on and are committed."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, content(1, 0)))
        with hold(disk, "unlink", "") as gate:
            await manager.delete(1)
            await gate.reached()
            await (await manager.save(1, content(1, 0)))
            await manager.delete(1)
            await (await manager.save(2, content(2, 0)))
            await manager.flush()
            assert manager.steps() == [2]
    assert names_in(tmp_path) == [".lock", "step_2"]


# --- faults -----------------------------------------------------------------------------------------------------------

CODES = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT)


def no_sync_is_repeated(disk: FaultyDisk, failed: Operation) -> None:
    """Check that the file whose sync failed was not synced again before it was created again."""
    if failed.name != "sync":
        return
    at = next(number for number, each in enumerate(disk.operations) if each is failed)
    for operation in disk.operations[at + 1 :]:
        if operation.path == failed.path:
            assert operation.name != "sync"
            if operation.name in ("create", "unlink"):
                return


async def play_with_fault(scene: Scene, root: Path, position: int, *, lasting: bool) -> tuple[bool, Operation | None]:
    """Play a scene on a disk that fails; check what it promises, and that all is well afterwards.

    Returns:
        Whether the failure was reported, and the operation that failed, if there were so many.
    """
    disk = scene.disk()
    disk.fail(None, CODES[position % len(CODES)], after=position, lasting=lasting)
    done: dict[int, int] = {}
    reported: BaseException | None = None
    where = root / scene.below
    before = dict.fromkeys(scene.steps, 0)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            async with asyncckpt.CheckpointManager(where, disk=disk, **scene.options) as manager:
                try:
                    await scene.act(manager, done.__setitem__)
                except (OSError, asyncckpt.SaveFailedError) as error:
                    reported = error
                if len(disk.operations) <= position:
                    return False, None
                failed = disk.operations[position]
                now = {step: await version_of(manager, step) for step in manager.steps()}
                await asyncio.to_thread(find_moved, where)
                await manager.refresh()
                assert manager.steps() == sorted(now)
                for step in {**before, **done}.keys() - set(scene.gone):
                    wanted = done.get(step, before.get(step))
                    # If the disk refuses to move names back, the whole new version may stand in the old one's place.
                    assert now.get(step) == wanted or (lasting and wanted is not None and now[step] > wanted)
                disk.heal()
                await save(manager, done.__setitem__, 9, 0)
                await save(manager, done.__setitem__, 3, 7)
                assert {3, 9} <= set(manager.steps())
        except OSError as error:  # from entering: nothing to read, or recovery
            reported = reported or error
            failed = disk.operations[position]
    no_sync_is_repeated(disk, failed)
    cause: BaseException | None = reported.__cause__ if isinstance(reported, asyncckpt.SaveFailedError) else reported
    if reported is not None:
        assert isinstance(cause, OSError)
        assert cause.errno == CODES[position % len(CODES)]
    warned = [each for each in warned if "below the latest" not in str(each.message)]
    assert all(issubclass(each.category, asyncckpt.CheckpointWarning) for each in warned)
    found = await look(where)
    for step, version in {**before, **done}.items():
        if step not in scene.gone and "keep_latest_k" not in scene.options:
            assert found[step] == version
    leftovers = [path.name for path in where.iterdir() if path.name != ".lock" and not path.name.startswith("step_")]
    assert leftovers == []
    return reported is not None or bool(warned), failed


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("name", MSGPACK)
def test_a_fault_at_any_operation(name: str, home: Path, place: Path, *, lasting: bool) -> None:
    """It reaches an awaiter, warns, or is harmless; what was committed loads; the healed disk takes the next save."""
    scene = SCENES[name]
    harmless = set()
    for position in range(200):
        root = place / str(position)
        shutil.copytree(template(name, home), root)
        was_told, failed = asyncio.run(play_with_fault(scene, root, position, lasting=lasting))
        if failed is None:
            assert position > 4
            break
        if not was_told:
            harmless.add(failed.name)
    # To open a directory that cannot be tidied is harmless, and so is a name or a directory above that is not ours.
    assert harmless <= {"open_lock", "sync_directory", "rename", "exchange", "unlink", "rmdir", "mkdir"}


async def test_a_failed_parents_sync_prunes_nothing(tmp_path: Path) -> None:
    """The step is not listed, nothing is pruned for it, no file is unlinked, and the same step may be saved again."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk, keep_latest_k=1) as manager:
        await (await manager.save(1, content(1, 0)))
        disk.operations.clear()
        disk.fail("sync_directory", errno.EIO, after=1)
        handle = await manager.save(2, content(2, 0))
        with pytest.raises(asyncckpt.SaveFailedError):
            await handle
        assert "unlink" not in disk.names()
        assert manager.steps() == [1]
        await manager.refresh()
        assert manager.steps() == [1]
        assert await manager.load(2, missing_ok=True) is None
        await (await manager.save(2, content(2, 0), training_info={"version": 0}))
        await manager.flush()
        assert manager.steps() == [2]
        assert await version_of(manager, 2) == 0


@pytest.mark.parametrize("kind", [FaultyDisk, NoExchange])
async def test_a_failed_overwrite_leaves_the_old_version(tmp_path: Path, kind: type[FaultyDisk]) -> None:
    """If the exchanged names cannot be made durable, the step is what it was, here and for a reader."""
    disk = kind()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, content(1, 0), training_info={"version": 0}))
        disk.fail("sync_directory", errno.EIO, after=1)
        handle = await manager.save(1, content(1, 1), training_info={"version": 1}, overwrite=True)
        with pytest.raises(asyncckpt.SaveFailedError):
            await handle
        assert await version_of(manager, 1) == 0
        assert await look(tmp_path, read_only=True) == {1: 0}
        await (await manager.save(1, content(1, 2), training_info={"version": 2}, overwrite=True))
        assert await version_of(manager, 1) == 2
    assert names_in(tmp_path) == [".lock", "step_1"]


async def test_a_failed_finalize_is_not_synced_again(tmp_path: Path) -> None:
    """After a failed sync the user's files are discarded: syncing them again might report what is not so."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        path = await manager.init_tmp_checkpoint(1, {})
        await asyncio.to_thread((path / "mine").write_bytes, b"x")
        disk.fail("sync", errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            await manager.finalize_checkpoint(path)
        with pytest.raises(FileNotFoundError, match="init_tmp_checkpoint"):
            await manager.finalize_checkpoint(path)
        assert manager.steps() == []


async def test_a_failed_prune_only_warns(tmp_path: Path) -> None:
    """The save is committed; the victim stays listed and loads; the next commit prunes it."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk, keep_latest_k=1) as manager:
        await (await manager.save(1, content(1, 0), training_info={"version": 0}))
        disk.fail("rename", errno.EIO, path_part="step_1")
        with pytest.warns(asyncckpt.CheckpointWarning, match="step 1 cannot be pruned: step_1: Input/output error"):
            await (await manager.save(2, content(2, 0)))
        assert manager.steps() == [1, 2]
        assert await version_of(manager, 1) == 0
        await (await manager.save(3, content(3, 0)))
        await manager.flush()
        assert manager.steps() == [3]


async def test_a_prune_that_fails_behind_a_finalize_only_warns(tmp_path: Path) -> None:
    """`finalize_checkpoint` does not report its commit as failed because an old checkpoint could not go."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk, keep_latest_k=1) as manager:
        await (await manager.save(1, content(1, 0)))
        disk.fail("rename", errno.EIO, path_part="step_1")
        with pytest.warns(asyncckpt.CheckpointWarning, match="step 1 cannot be pruned"):
            await manager.finalize_checkpoint(await manager.init_tmp_checkpoint(2, {}))
        assert manager.steps() == [1, 2]


async def test_a_failed_sweep_only_warns(tmp_path: Path) -> None:
    """Files that cannot be unlinked are out of the way, and the next start tries again."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, content(1, 0)))
        disk.fail("unlink", errno.EIO)
        await manager.delete(1)
        with pytest.warns(asyncckpt.CheckpointWarning, match="trash_step_1 cannot be removed: Input/output error"):
            await manager.aclose()
        assert manager.statistics().trash_nbytes > 0
    assert (tmp_path / "trash_step_1").exists()
    assert await look(tmp_path) == {}
    assert names_in(tmp_path) == [".lock"]


@pytest.mark.parametrize("kind", [FaultyDisk, NoExchange])
async def test_a_failed_delete_leaves_the_step(tmp_path: Path, kind: type[FaultyDisk]) -> None:
    """A delete that raises has deleted nothing, and can be repeated."""
    disk = kind()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, content(1, 0), training_info={"version": 0}))
        for operation in ("rename", "sync_directory"):
            disk.fail(operation, errno.EIO)
            with pytest.raises(OSError, match="Input/output"):
                await manager.delete(1)
            assert manager.steps() == [1]
            assert await version_of(manager, 1) == 0
        await manager.delete(1)
        assert manager.steps() == []


async def test_a_finalize_that_fails_after_its_caller_was_cancelled_warns(tmp_path: Path) -> None:
    """When the awaiter of a finalize was cancelled, its failure is not silent."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        path = await manager.init_tmp_checkpoint(1, {})
        with hold(disk, "sync_directory", "") as gate:
            disk.fail("rename", errno.EIO)
            task = asyncio.create_task(manager.finalize_checkpoint(path))
            await gate.reached()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.warns(asyncckpt.CheckpointWarning, match="whose caller was cancelled has failed"):
            await manager.flush()
        assert manager.steps() == []


async def test_a_pending_step_of_another_writer_is_left_alone(tmp_path: Path) -> None:
    """Opening a second manager while the first is writing clears nothing of the first's."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk, "sync", "") as gate:
            handle = await manager.save(1, content(1, 0), training_info={"version": 0})
            await gate.reached()
            assert await look(tmp_path) == {}
            assert "tmp_step_1" in names_in(tmp_path)
        await handle
        assert await version_of(manager, 1) == 0


async def test_without_locks_opening_clears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks, another process may be writing what looks like a leftover: only a first save clears it."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "tmp_step_1").mkdir()
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        assert names_in(tmp_path) == [".lock", "tmp_step_1"]
        with pytest.warns(asyncckpt.CheckpointWarning, match="no file locks"):
            await (await manager.save(2, content(2, 0)))
        assert names_in(tmp_path) == [".lock", "step_2"]


async def test_what_cannot_be_cleared_does_not_keep_readers_out(tmp_path: Path) -> None:
    """A leftover that this process may not remove is no reason not to load, or to save; a warning names it once."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, content(1, 0), training_info={"version": 0}))
    (tmp_path / "tmp_step_4").mkdir()
    disk = FaultyDisk()
    disk.fail("rmdir", errno.EACCES, lasting=True, path_part="tmp_step_4")
    with pytest.warns(asyncckpt.CheckpointWarning, match="tmp_step_4 cannot be removed: Permission denied") as caught:
        async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
            assert len(caught) == 1
            assert await version_of(manager, 1) == 0
            await (await manager.save(3, content(3, 0)))
            await (await manager.save(4, content(4, 0)))
    assert len(caught) == 1
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(5, content(5, 0)))
        assert manager.steps() == [1, 3, 4, 5]
    assert not (tmp_path / "tmp_step_4").exists()


async def test_an_overwrite_cut_short_is_read_before_recovery(tmp_path: Path) -> None:
    """A lone `old_step_N` is step N to a reader that changes nothing, and to the primitives."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, content(1, 0), training_info={"version": 0}))
    (tmp_path / "step_1").rename(tmp_path / "old_step_1")
    assert await look(tmp_path, read_only=True) == {1: 0}
    history = await asyncio.to_thread(asyncckpt._load_checkpoint_history, tmp_path)
    assert history == [(1, tmp_path / "old_step_1", {"version": 0})]
    assert (tmp_path / "old_step_1").is_dir()
    assert await look(tmp_path) == {1: 0}
    assert (tmp_path / "step_1").is_dir()


async def test_a_corrupt_step_is_saved_again(tmp_path: Path) -> None:
    """A step found corrupt needs no `overwrite`, and is whole afterwards."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, content(1, 0), training_info={"version": 0}))
        data = bytearray((tmp_path / "step_1" / "state.msgpack").read_bytes())
        data[-1] ^= 1
        (tmp_path / "step_1" / "state.msgpack").write_bytes(data)
        with pytest.raises(asyncckpt.CorruptCheckpointError):
            await manager.load(1)
        assert manager.latest_step() is None
        await (await manager.save(1, content(1, 0), training_info={"version": 0}))
        assert manager.latest_step() == 1
        assert await version_of(manager, 1) == 0


# --- kills ------------------------------------------------------------------------------------------------------------


def play_and_die(scene: Scene, root: Path, position: int) -> NoReturn:
    """Play a scene with a kill before an operation, writing down what was acknowledged."""
    acks = os.open(root.with_suffix(".acks"), os.O_WRONLY | os.O_CREAT)
    disk = scene.disk()
    disk.fail(None, lambda: os.kill(os.getpid(), signal.SIGKILL), after=position)
    asyncio.run(scene.run(root, disk, lambda step, version: os.write(acks, f"{step} {version}\n".encode())))
    os._exit(0)


def kill_points(name: str, root: Path, source: Path) -> None:
    """Play a scene in one child after another; each kills itself one operation later. Run as a script."""
    scene = SCENES[name]
    # Played once to its end, so that not every child imports for itself what is imported when it is needed.
    shutil.copytree(source, root / "whole")
    asyncio.run(scene.run(root / "whole", scene.disk(), lambda *_: None))
    for position in range(200):
        here = root / str(position)
        shutil.copytree(source, here)
        child = os.fork()
        if child == 0:
            play_and_die(scene, here, position)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        if status != -signal.SIGKILL:
            sys.exit(f"the child ended with {status}")
    sys.exit("it never ended by itself")


@pytest.mark.parametrize("name", KILLED)
def test_a_kill_at_any_operation(name: str, home: Path, place: Path) -> None:
    """After SIGKILL before any operation, every acknowledged step that retention keeps loads bit for bit."""
    scene = SCENES[name]
    source = template(name, home)
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, __file__, name, place, source],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    killed = sorted(int(path.stem) for path in place.glob("*.acks"))
    assert len(killed) > 8

    async def check(position: int) -> None:
        acks = dict.fromkeys(scene.steps, 0)
        lines = (place / f"{position}.acks").read_text().splitlines()
        acks |= {int(step): int(version) for step, version in map(str.split, lines)}
        root = place / str(position) / scene.below
        root.mkdir(parents=True, exist_ok=True)  # a reader warns of a directory that no writer has made yet
        async with asyncckpt.CheckpointManager(root, read_only=True) as manager:
            seen = manager.steps()
        async with asyncckpt.CheckpointManager(root) as manager:
            found = {step: await version_of(manager, step) for step in manager.steps()}
            await asyncio.to_thread(find_moved, root)
            await save(manager, lambda *_: None, 9, 0)
            await asyncio.to_thread(find_moved, root, is_over=True)
        assert list(found) == seen, position  # recovery changes nothing for readers
        for step, version in acks.items():
            if version < 0:
                assert step not in found
            elif step not in scene.gone:
                assert found[step] >= version, position
        assert found.keys() <= {1, 2, 3, 4}
        assert all(path.name == ".lock" or path.name.startswith("step_") for path in root.iterdir())

    async def check_all() -> None:
        for position in killed:
            await check(position)

    asyncio.run(check_all())


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        kill_points(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
