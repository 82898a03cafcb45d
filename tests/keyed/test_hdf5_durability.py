"""A kill, a failing disk or a power cut at any operation leaves an HDF5 file at its last commit, or at a later one.

Each scene takes a file from one version of its content to others. It is run

- with a kill before every operation, a write torn in the middle included;
- with a power cut there, on a disk that keeps no, some, or only the most misleading sectors of what was not synced;
- on a disk that fails there, once, after which the same commit must succeed, or for good.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from helpers.hdf5_stores import WORK, opened, put, read
from helpers.support import assert_same

from asyncckpt.disk.ops import DiskOps
from asyncckpt.errors import CheckpointError
from asyncckpt.keyed.hdf5.catalog import HEAD_NBYTES
from asyncckpt.keyed.hdf5.store import HDF5Store
from asyncckpt.keyed.location import FileLocation
from asyncckpt.keyed.values import capture_live
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SECTOR = 512


class Killed(BaseException):
    """The process is no more."""


def content(version: int) -> dict[str, Any]:
    """Return the keys of a version: some stay, some are replaced, new or deleted, small ones and large ones."""
    return {
        "fixed": np.arange(60_000.0),
        "version": version,
        "nested": {"of": [version, np.arange(5) * version, "text"], "flag": True},
        "large": np.full(50_000, version, np.int64),
        f"only in {version}": (version, None),
    }


def move_to(store: HDF5Store, version: int) -> None:
    """Stage what takes a store to a version, and commit it."""
    wanted = content(version)
    for key in set(store.entries) - wanted.keys():
        store.delete(key, WORK)
    for key, value in wanted.items():
        if key != "fixed" or key not in store.entries:
            store.put(key, capture_live(value, key, WORK), WORK)
    store.commit(WORK)


def all_of(path: Path) -> dict[str, Any]:
    """Return what a file holds, read with nothing but the file."""
    store = HDF5Store(FileLocation(path, DiskOps()), WORK, trusted=False)
    try:
        return {key: store.read(key, WORK).value for key in store.entries}
    finally:
        store.close()


def version_of(path: Path) -> int:
    """Return the version that a file is at, which must be whole; -1 if there is no file."""
    found = all_of(path)
    if not found:
        return -1
    assert_same({key: found.get(key) for key in sorted(found)}, dict(sorted(content(found["version"]).items())))
    return int(found["version"])


# --- scenes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Versions that a store goes through, after something was done to the file."""

    versions: Sequence[int]
    prepare: Callable[[Path], object] | None = None
    is_new: bool = False

    def make(self, path: Path) -> None:
        """Make the file that the scene begins with."""
        if not self.is_new:
            store = HDF5Store(FileLocation(path, DiskOps()), WORK, trusted=False)
            move_to(store, 0)
            store.close()
        if self.prepare is not None:
            self.prepare(path)

    def play(self, path: Path, disk: DiskOps, done: list[int]) -> None:
        """Play it, writing down what was committed."""
        location = FileLocation(path, disk)
        store = None
        try:
            store = HDF5Store(location, WORK, trusted=False)
            for version in self.versions:
                move_to(store, version)
                done.append(version)
            store.close()
        except Killed:
            for file in store._files if store else ():
                file.close()  # as the system does with the descriptors of a killed process
            location.release()
            raise


def tear_tail(path: Path) -> None:
    """Leave what a writer killed in the middle of a commit leaves."""
    with path.open("ab") as file:
        file.write(bytes(100_001))


def keep_old_superblock(path: Path) -> None:
    """Leave the superblock of the commit before, and version 1."""
    before = path.read_bytes()[:48]
    store = HDF5Store(FileLocation(path, DiskOps()), WORK, trusted=False)
    move_to(store, 1)
    store.close()
    data = bytearray(path.read_bytes())
    assert data[:48] != before
    data[:48] = before
    path.write_bytes(data)


def fill_up(path: Path) -> None:
    """Leave so little room that the next commit writes the file anew."""
    store = HDF5Store(FileLocation(path, DiskOps()), WORK, trusted=False)
    for version in (1, 2, 3, 0):
        move_to(store, version)
    store.close()


def leave_sibling(path: Path) -> None:
    """Leave the temporary file that a killed writer was writing."""
    path.with_name(f".{path.name}.tmp").write_bytes(b"half")


SCENES = {
    "first": Scene((0, 1), is_new=True),
    "append": Scene((1, 2)),
    "rewrite": Scene((1, 2), fill_up),
    "torn-tail": Scene((1,), tear_tail),
    "old-superblock": Scene((2, 3), keep_old_superblock),
    "temporary file": Scene((1,), leave_sibling),
}


def played(scene: Scene, path: Path, disk: FaultyDisk) -> None:
    """Play a scene to its end."""
    path.parent.mkdir()
    scene.make(path)
    scene.play(path, disk, [])


@pytest.mark.parametrize("name", SCENES)
def test_scenes(name: str, quick_path: Path) -> None:
    """They do what they are there for."""
    scene = SCENES[name]
    path = quick_path / "here" / "a.h5"
    disk = FaultyDisk()
    played(scene, path, disk)
    assert version_of(path) == scene.versions[-1]
    assert ("rename" in disk.names()) == (name in {"first", "rewrite"})
    assert disk.names().count("truncate") == (name == "torn-tail")
    assert sorted(each.name for each in path.parent.iterdir()) == ["a.h5"]


# --- kills ------------------------------------------------------------------------------------------------------------


class MortalDisk(DiskOps):
    """The real disk, up to one operation; of a write, the first half is still done."""

    def __init__(self, position: int) -> None:
        self._left = position

    def _live(self) -> None:
        if self._left == 0:
            raise Killed
        self._left -= 1

    def write(self, fd: int, buffers: Sequence[Any], offset: int) -> int:
        """Write, all or half of it."""
        if self._left == 0:
            data = b"".join(bytes(each) for each in buffers)
            super().write(fd, [data[: len(data) // 2]], offset)
        self._live()
        return super().write(fd, buffers, offset)

    def open_lock(self, path: Path) -> int:
        """Open, or be killed before."""
        self._live()
        return super().open_lock(path)

    def create(self, path: Path, *, direct: bool = False) -> int:
        """Create, or be killed before."""
        self._live()
        return super().create(path, direct=direct)

    def truncate(self, fd: int, nbytes: int) -> None:
        """Truncate, or be killed before."""
        self._live()
        super().truncate(fd, nbytes)

    def sync(self, fd: int) -> None:
        """Sync, or be killed before."""
        self._live()
        super().sync(fd)

    def sync_directory(self, path: Path) -> None:
        """Sync, or be killed before."""
        self._live()
        super().sync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, or be killed before."""
        self._live()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        """Unlink, or be killed before; the lock goes with the process."""
        if not path.name.endswith(".lock"):
            self._live()
        super().unlink(path)


def copies(scene: Scene, root: Path) -> Iterator[Path]:
    """Yield, again and again, a file that the scene begins with."""
    scene.make(root / "source.h5")
    for number in range(200):
        (root / str(number)).mkdir()
        path = root / str(number) / "a.h5"
        for each in root.glob("*source.h5*"):
            path.with_name(each.name.replace("source", "a")).write_bytes(each.read_bytes())
        yield path


def killed_everywhere(scene: Scene, root: Path, make_disk: Callable[[int], Any]) -> list[tuple[int, Path]]:
    """Play a scene again and again, killed one operation later each time; return what was acknowledged each time."""
    found = []
    for position, path in enumerate(copies(scene, root)):
        disk = make_disk(position)
        done = [version_of(path)] if path.exists() else [-1]
        try:
            scene.play(path, disk, done)
        except Killed:
            if hasattr(disk, "cut"):
                disk.cut()
            found.append((done[-1], path))
        else:
            assert len(found) > 5
            return found
    raise AssertionError


@pytest.mark.parametrize("name", SCENES)
def test_a_kill_at_any_operation(name: str, quick_path: Path) -> None:
    """The last completed commit or a later one is there, all keys of it together; other tools see one, too."""
    scene = SCENES[name]
    for acknowledged, path in killed_everywhere(scene, quick_path, MortalDisk):
        found = version_of(path)
        assert found >= acknowledged
        if found >= 0:
            with h5py.File(path) as file:
                seen = int(file["version"][()])
                assert found - 1 <= seen <= found
                assert np.array_equal(file["large"], content(seen)["large"])
        before = path.read_bytes() if path.exists() else b""
        assert version_of(path) == found
        assert before == (path.read_bytes() if path.exists() else b"")  # readers change nothing
        disk = FaultyDisk()
        location = FileLocation(path, disk)
        store = HDF5Store(location, WORK, trusted=False)
        move_to(store, 7)
        store.close()
        assert version_of(path) == 7
        assert [each.name for each in path.parent.iterdir()] == ["a.h5"]
        with h5py.File(path) as file:
            assert list(file) == [*all_of(path), "__asyncckpt__"]


class LosingDisk(MortalDisk):
    """A disk that loses what was not synced: all of it, or some sectors, and renames as well."""

    def __init__(self, position: int, keeps: Callable[[int, int], bool]) -> None:
        super().__init__(position)
        self._keeps = keeps
        self._synced: dict[int, bytes] = {}
        self._renamed: list[tuple[Path, Path, bytes | None]] = []
        self.root: Path | None = None

    def write(self, fd: int, buffers: Sequence[Any], offset: int) -> int:
        """Write what may get lost."""
        self._remember(fd)
        return super().write(fd, buffers, offset)

    def truncate(self, fd: int, nbytes: int) -> None:
        """Cut off what may come back."""
        self._remember(fd)
        super().truncate(fd, nbytes)

    def create(self, path: Path, *, direct: bool = False) -> int:
        """Create a file that is empty after a power cut."""
        fd = super().create(path, direct=direct)
        self.root = path.parent
        self._synced[os.fstat(fd).st_ino] = b""
        return fd

    def sync(self, fd: int) -> None:
        """Keep what there is."""
        super().sync(fd)
        self._synced.pop(os.fstat(fd).st_ino, None)

    def rename(self, source: Path, target: Path) -> None:
        """Rename what may get its old name back."""
        data = target.read_bytes() if target.exists() else None
        super().rename(source, target)
        self._renamed.append((source, target, data))

    def sync_directory(self, path: Path) -> None:
        """Keep the names."""
        super().sync_directory(path)
        self._renamed.clear()

    def _remember(self, fd: int) -> None:
        self.root = Path(f"/proc/self/fd/{fd}").readlink().parent
        inode = os.fstat(fd).st_ino
        if inode not in self._synced:
            self._synced[inode] = os.pread(fd, os.fstat(fd).st_size, 0)

    def cut(self) -> None:
        """Cut the power."""
        for path in list(self.root.iterdir()) if self.root else ():
            old = self._synced.get(path.stat().st_ino)
            if old is not None:
                path.write_bytes(self._mixed(old, path.read_bytes()))
        for source, target, data in self._renamed:
            if not self._keeps(0, 1):
                target.rename(source)
                if data is not None:
                    target.write_bytes(data)

    def _mixed(self, old: bytes, new: bytes) -> bytes:
        nbytes = len(new) if self._keeps(0, 1) else len(old)
        mixed = bytearray(nbytes)
        for at in range(0, nbytes, SECTOR):
            sector = (new if self._keeps(at, nbytes) else old)[at : at + SECTOR]
            mixed[at : at + len(sector)] = sector
        return bytes(mixed[:nbytes])


def keeping(choice: str) -> Callable[[int, int], bool]:
    """Return what says whether the sector at an offset of a file of some size is kept."""
    if choice == "ends":  # what leads to the data, and not the data
        return lambda at, nbytes: at < HEAD_NBYTES or at >= nbytes - PAGE_NBYTES
    if choice == "nothing":
        return lambda _, __: False
    chance = random.Random(choice)  # noqa: S311 - no secret
    return lambda _, __: chance.random() < 0.5


@pytest.mark.parametrize("choice", ["nothing", "ends", "chance"])
@pytest.mark.parametrize("name", SCENES)
def test_a_power_cut_at_any_operation(name: str, choice: str, quick_path: Path) -> None:
    """What was acknowledged is there, or something later, whatever of the rest the disk has kept."""
    keeps = keeping(choice)
    for acknowledged, path in killed_everywhere(SCENES[name], quick_path, lambda at: LosingDisk(at, keeps)):
        assert version_of(path) >= acknowledged, path


class LazyDisk(LosingDisk):
    """A disk whose n-th sync does nothing: a bug, planted."""

    skipped: int

    def sync(self, fd: int) -> None:
        """Sync, but for once."""
        self.skipped -= 1
        if self.skipped == -1:
            self._live()
        else:
            super().sync(fd)


@pytest.mark.parametrize(("skipped", "choice"), [(0, "ends"), (1, "nothing")])
def test_the_rig_sees_a_missing_sync(skipped: int, choice: str, quick_path: Path) -> None:
    """Without the sync before the slot is written, or the one behind it, power cuts lose commits."""

    def make_disk(position: int) -> LazyDisk:
        disk = LazyDisk(position, keeping(choice))
        disk.skipped = skipped
        return disk

    lost = 0
    for acknowledged, path in killed_everywhere(SCENES["append"], quick_path, make_disk):
        try:
            lost += version_of(path) < acknowledged
        except CheckpointError:
            lost += 1
    assert lost


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENES)
def test_a_failure_at_any_operation(name: str, quick_path: Path) -> None:
    """After an error, the next attempt succeeds, never syncing a file again whose sync failed."""
    scene = SCENES[name]
    for position, path in enumerate(copies(scene, quick_path)):
        before = version_of(path) if path.exists() else -1
        disk = FaultyDisk()
        disk.fail(None, errno.EIO, after=position)
        failures = 0
        store = HDF5Store(FileLocation(path, disk), WORK, trusted=False)
        for version in scene.versions:
            for _ in range(3):
                try:
                    move_to(store, version)
                    break
                except OSError:
                    failures += 1
                    assert version_of(path) >= before
            before = version
            assert version_of(path) == version
        store.close()
        assert version_of(path) == scene.versions[-1]
        assert failures <= 1
        if len(disk.operations) <= position:
            return
    raise AssertionError


@pytest.mark.parametrize("name", SCENES)
def test_a_disk_that_fails_for_good(name: str, quick_path: Path) -> None:
    """From some operation on nothing works any more: the last commit stays."""
    scene = SCENES[name]
    for position, path in enumerate(copies(scene, quick_path)):
        done = [version_of(path) if path.exists() else -1]
        disk = FaultyDisk()
        disk.fail(None, errno.EIO, after=position, lasting=True)
        location = FileLocation(path, disk)
        store = HDF5Store(location, WORK, trusted=False)
        with contextlib.suppress(OSError):
            for version in scene.versions:
                move_to(store, version)
                done.append(version)
        store.close()
        assert version_of(path) >= done[-1]
        if done[-1] == scene.versions[-1] and len(disk.operations) <= position:
            return
    raise AssertionError


@pytest.mark.parametrize("nth", range(3))
def test_a_file_whose_sync_failed_is_left_alone(nth: int, quick_path: Path) -> None:
    """After a failed sync, nothing is written to that file: the next commit makes another."""
    path = quick_path / "a.h5"
    SCENES["append"].make(path)
    inode = path.stat().st_ino
    disk = FaultyDisk()
    store = HDF5Store(FileLocation(path, disk), WORK, trusted=False)
    disk.fail("sync", errno.EIO, after=nth)
    with contextlib.suppress(OSError):
        move_to(store, 1)
    failed = len(disk.operations)
    disk.heal()
    move_to(store, 2)
    touched = [operation.name for operation in disk.operations[failed:] if operation.path == path]
    store.close()
    if nth < 2:
        assert path.stat().st_ino != inode
        assert not touched
    assert version_of(path) == 2


@pytest.mark.filterwarnings("ignore:.*it has grown to:asyncckpt.CheckpointWarning")
@pytest.mark.parametrize("what", ["damage", "room"])
def test_a_file_that_cannot_be_written_anew_still_takes_what_is_new(what: str, quick_path: Path) -> None:
    """A damaged value, or no room for a second file, keeps nobody else's values from being saved."""
    path = quick_path / "a.h5"
    sizes = {"bad": 1 << 20, "large": 1 << 19, "small": 10, "held": 20}
    disk = FaultyDisk()
    store = HDF5Store(FileLocation(path, disk), WORK, trusted=False)
    for key, size in sizes.items():
        put(store, key, np.zeros(size, np.uint8))
    store.commit(WORK)
    store.close()
    if what == "damage":
        with path.open("r+b") as file:
            file.seek(1 << 19)
            file.write(b"damage")
    store = HDF5Store(FileLocation(path, disk), WORK, trusted=False)
    for number in range(1, 12):
        if what == "room" and number == 3:
            disk.fail("write", errno.ENOSPC, path_part=f".{path.name}.tmp", lasting=True)
        put(store, "large", np.full(sizes["large"], number, np.uint8))
        put(store, "held", np.full(sizes["held"], number, np.uint8))
        store.commit(WORK)
        with opened(path) as other:
            for key in ("large", "held", "small"):
                assert_same(read(other, key), np.full(sizes[key], number if key != "small" else 0, np.uint8))
    assert not list(quick_path.glob(".*.tmp"))
    put(store, "bad", 1)  # replaced, it keeps the file from nothing
    store.commit(WORK)
    store.close()
    disk.heal()
    with opened(path, disk) as store:
        for number in range(12):
            put(store, "large", np.full(sizes["large"], number, np.uint8))
            store.commit(WORK)
            assert path.stat().st_size < 3 * sizes["large"] + (4 << 20)


def test_no_room(quick_path: Path) -> None:
    """When the disk is full, the commit fails, and works when there is room again, by appending."""
    path = quick_path / "a.h5"
    SCENES["append"].make(path)
    disk = FaultyDisk()
    store = HDF5Store(FileLocation(path, disk), WORK, trusted=False)
    disk.fail("write", errno.ENOSPC, lasting=True)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            move_to(store, 1)
        assert version_of(path) == 0
    disk.heal()
    move_to(store, 1)
    store.close()
    assert "rename" not in disk.names()
    assert version_of(path) == 1
