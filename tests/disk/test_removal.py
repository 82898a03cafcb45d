"""Deleting, and replacing, what cannot be renamed: a directory in a lower layer of overlayfs."""

from __future__ import annotations

import errno
import itertools
import os
import weakref
from typing import TYPE_CHECKING

import pytest

from asyncckpt.disk import publish, removal
from asyncckpt.disk.manifest import Manifest
from asyncckpt.disk.names import locate, scan
from asyncckpt.disk.write_blocks import write_bytes
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path


class Layered(FaultyDisk):
    """A disk on which what was there before cannot be renamed."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.lower = {path.stat().st_ino for path in root.iterdir()}
        # Held open, so that nothing new gets the inode of one that is deleted.
        held = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in root.iterdir()]
        weakref.finalize(self, lambda: [os.close(fd) for fd in held])

    def rename(self, source: Path, target: Path) -> None:
        """Rename a directory of the upper layer."""
        if os.lstat(source).st_ino in self.lower:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        super().rename(source, target)

    def exchange(self, first: Path, second: Path) -> bool:
        """Exchange two of them."""
        if {os.lstat(first).st_ino, os.lstat(second).st_ino} & self.lower:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(first))
        return super().exchange(first, second)


class Killed(BaseException):
    """Ends a program at once."""


def kill() -> None:
    """End the program."""
    raise Killed


def save(disk: FaultyDisk, root: Path, step: int, content: str) -> publish.Published:
    """Commit a checkpoint of one file."""
    pending = publish.stage(disk, root, step).path
    files = {"file": write_bytes(disk, pending / "file", content.encode())}
    publish.seal(disk, pending, Manifest(step=step, created=0.0, files=files))
    return publish.make_durable(disk, publish.move(disk, pending, step))


def committed(root: Path) -> dict[int, str]:
    """Read what readers see, which must be whole."""
    found = {}
    for step, name in scan(root).committed.items():
        assert (root / name / "manifest.json").exists()
        assert locate(root, step) == root / name
        found[step] = (root / name / "file").read_text()
    return found


@pytest.mark.parametrize("name", ["step_3", "old_step_3"])
def test_a_deletion_in_place_may_be_cut_off_anywhere(tmp_path: Path, name: str) -> None:
    """The step is there whole or not at all, never comes back, and the next start leaves nothing of it."""
    for position in itertools.count():
        root = tmp_path / str(position)
        root.mkdir()
        for step in (3, 4):
            save(FaultyDisk(), root, step, "a")
        (root / "step_3").rename(root / name)
        disk = Layered(root)
        disk.fail(None, kill, after=position)
        try:
            retired = removal.retire(disk, root, [3])
        except Killed:
            seen = committed(root)
            assert seen in ({3: "a", 4: "a"}, {4: "a"})
            disk.heal()
            removal.recover(disk, root)
            assert committed(root) == seen
        else:
            assert retired == ((), {}, ())
            assert position > 5
            break
    assert committed(root) == {4: "a"}
    assert [path.name for path in root.iterdir()] == ["step_4"]
    names = [(each.name, each.path.name) for each in disk.operations]
    order = [("mkdir", "deleted_step_3"), ("sync_directory", root.name), ("unlink", "manifest.json")]
    order += [("sync_directory", name), ("unlink", "file"), ("rmdir", name)]
    order += [("sync_directory", root.name), ("rmdir", "deleted_step_3")]
    assert names == order


def test_an_overwrite_in_place_may_be_cut_off_anywhere(tmp_path: Path) -> None:
    """At every moment there is the old one or the new one, whole; the next start leaves nothing else."""
    for position in itertools.count():
        root = tmp_path / str(position)
        root.mkdir()
        save(FaultyDisk(), root, 3, "a")
        disk = Layered(root)
        disk.fail(None, kill, after=position)
        try:
            published = save(disk, root, 3, "b")
        except Killed:
            seen = committed(root)
            assert seen in ({3: "a"}, {3: "b"})
            disk.heal()
            removal.recover(disk, root)
            assert committed(root) == seen
            assert [path.name for path in root.iterdir()] == ["step_3"]
        else:
            assert published == (root / "step_3", None, ())
            break
    assert committed(root) == {3: "b"}
    assert [path.name for path in root.iterdir()] == ["step_3"]


def test_a_failed_sync_takes_it_all_back(tmp_path: Path) -> None:
    """A deletion, or an overwrite, that may not have become durable has not been."""
    save(FaultyDisk(), tmp_path, 3, "a")
    disk = Layered(tmp_path)
    disk.fail("sync_directory", errno.EIO, path_part=f"{tmp_path.name}", after=0)
    with pytest.raises(OSError, match="Input/output"):
        removal.retire(disk, tmp_path, [3])
    assert committed(tmp_path) == {3: "a"}
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]
    pending = publish.stage(disk, tmp_path, 3).path
    files = {"file": write_bytes(disk, pending / "file", b"b")}
    publish.seal(disk, pending, Manifest(step=3, created=0.0, files=files))
    moved = publish.move(disk, pending, 3)
    assert committed(tmp_path) == {3: "b"}
    disk.fail("sync_directory", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        publish.make_durable(disk, moved)
    assert committed(tmp_path) == {3: "a"}


def test_what_stays_of_a_deletion_in_place_is_in_nobodys_way(tmp_path: Path) -> None:
    """The step is gone, may be saved, overwritten and deleted again, and gets its plain name when the rest has gone."""
    save(FaultyDisk(), tmp_path, 3, "a")
    disk = Layered(tmp_path)
    disk.fail("unlink", errno.ESTALE, path_part="/step_3/file", lasting=True)
    (leftover,) = removal.retire(disk, tmp_path, [3]).leftovers
    assert (leftover.filename, leftover.errno) == (str(tmp_path / "step_3"), errno.ESTALE)
    assert committed(tmp_path) == {}
    assert [error.filename for error in removal.recover(disk, tmp_path)] == [str(tmp_path / "step_3")]
    for content in "bc":
        assert save(disk, tmp_path, 3, content).path == tmp_path / "new_step_3"
        assert committed(tmp_path) == {3: content}
    removal.retire(disk, tmp_path, [3])
    assert committed(tmp_path) == {}
    assert save(disk, tmp_path, 3, "d").path == tmp_path / "new_step_3"
    disk.heal()
    assert removal.recover(disk, tmp_path) == []
    assert committed(tmp_path) == {3: "d"}
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]


def test_a_mark_that_stays_hides_no_step(tmp_path: Path) -> None:
    """A step that is saved beside its mark is committed, whatever becomes of the mark."""
    save(FaultyDisk(), tmp_path, 3, "a")
    disk = Layered(tmp_path)
    disk.fail("rmdir", errno.EBUSY, path_part="deleted_step_3", lasting=True)
    removal.retire(disk, tmp_path, [3])
    for content in "bc":
        save(disk, tmp_path, 3, content)
        assert committed(tmp_path) == {3: content}
        removal.recover(disk, tmp_path)
        assert committed(tmp_path) == {3: content}
    disk.heal()
    removal.recover(disk, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]


def test_a_step_without_a_manifest_is_deleted_only_if_it_is_marked(tmp_path: Path) -> None:
    """It may be somebody else's, or a copy that is not complete: it stays, listed, until somebody deletes it."""
    for step in (1, 2):
        save(FaultyDisk(), tmp_path, step, "a")
        (tmp_path / f"step_{step}" / "manifest.json").unlink()
    (tmp_path / "deleted_step_1").mkdir()
    removal.recover(FaultyDisk(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_2"]
    assert (tmp_path / "step_2" / "file").exists()
    assert scan(tmp_path).committed.keys() == {2}
