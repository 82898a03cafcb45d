"""What the next writer makes of what a killed one left."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from typing import TYPE_CHECKING

import pytest

from asyncckpt.disk import publish, removal
from asyncckpt.disk.names import locate, scan
from asyncckpt.disk.ops import DiskOps
from asyncckpt.storage.local.outcomes import remarks_of
from asyncckpt.storage.local.store import LocalStore
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path


def make(root: Path, names: str) -> None:
    """Make directories, each with a file and a subdirectory that tell its name."""
    for name in names.split():
        (root / name / "sub").mkdir(parents=True)
        (root / name / "sub" / "who").write_text(name)


def tree(root: Path) -> dict[str, str]:
    """Give the directories with what their files tell."""
    return {path.name: (path / "sub" / "who").read_text() for path in root.iterdir()}


CASES = {
    "": {},
    "step_1": {"step_1": "step_1"},
    "tmp_step_1": {},
    "trash_step_1 trash_step_1.1": {},
    "old_step_1": {"step_1": "old_step_1"},
    "old_step_1 tmp_step_1": {"step_1": "old_step_1"},
    "old_step_1 step_1": {"step_1": "step_1"},
    "old_step_1 step_1 trash_step_1 tmp_step_1": {"step_1": "step_1"},
    "step_1 tmp_step_1": {"step_1": "step_1"},
    "old_step_10 step_1 old_step_1 tmp_step_2": {"step_10": "old_step_10", "step_1": "step_1"},
    "new_step_1": {"step_1": "new_step_1"},
    "new_step_1 step_1": {"step_1": "new_step_1"},
    "new_step_1 old_step_1 deleted_step_1": {"step_1": "new_step_1"},
    "deleted_step_1": {},
    "deleted_step_1 step_1": {},
    "deleted_step_1 step_1 old_step_1 tmp_step_1.3": {},
    "deleted_step_1 new_step_1 step_1 step_2": {"step_1": "new_step_1", "step_2": "step_2"},
    "step_1-hf tmp_step_01 old_1 trash_x my_step_3": {
        name: name for name in ("step_1-hf", "tmp_step_01", "old_1", "trash_x", "my_step_3")
    },
}


@pytest.mark.parametrize("names", CASES)
def test_brings_into_order(tmp_path: Path, names: str) -> None:
    """A lone old one is the step; beside its step it goes, like pending ones and trash; other names stay."""
    make(tmp_path, names)
    before = scan(tmp_path).committed
    removal.recover(FaultyDisk(), tmp_path)
    assert tree(tmp_path) == CASES[names]
    assert scan(tmp_path).committed.keys() == before.keys()
    assert not scan(tmp_path).has_leftovers


@pytest.mark.parametrize("names", [names for names in CASES if names and "my_" not in names])
def test_may_be_cut_off_anywhere(tmp_path: Path, names: str) -> None:
    """Recovery that fails at any of its operations, once or for good, loses nothing, and is completed by the next."""
    for number in itertools.count():
        position, lasting = number // 2, bool(number % 2)
        root = tmp_path / str(number)
        root.mkdir()
        make(root, names)
        before = scan(root).committed.keys()
        disk = FaultyDisk()
        disk.fail(None, errno.EIO, after=position, lasting=lasting)
        left = None
        with contextlib.suppress(OSError):
            left = removal.recover(disk, root)
        if left == []:
            assert len(disk.operations) == position >= 1
            break
        assert scan(root).committed.keys() == before
        assert removal.recover(FaultyDisk(), root) == []
        assert tree(root) == CASES[names]


def test_nothing_is_deleted_before_the_names_are_durable(tmp_path: Path) -> None:
    """Names found and names given are synced before the first unlink: the killed writer may not have come so far."""
    make(tmp_path, "old_step_1 step_1 tmp_step_1 old_step_2 trash_step_3")
    disk = FaultyDisk()
    removal.recover(disk, tmp_path)
    names = disk.names()
    assert names[0] == "sync_directory"
    first, last_rename = names.index("unlink"), len(names) - 1 - names[::-1].index("rename")
    assert "sync_directory" in names[last_rename:first]


def test_what_is_found_is_made_durable(tmp_path: Path) -> None:
    """A step that has its name may have got it just before the kill: it is synced before anybody counts on it."""
    make(tmp_path, "step_1")
    disk = FaultyDisk()
    removal.recover(disk, tmp_path)
    assert disk.names() == ["sync_directory"]
    assert disk.operations[0].path == tmp_path


def test_readers_take_a_lone_old_one(tmp_path: Path) -> None:
    """Before recovery, and without it, `old_step_N` is step N, unless `step_N` is there."""
    make(tmp_path, "old_step_1 old_step_2 step_2 tmp_step_3 trash_step_4")
    assert scan(tmp_path).committed == {1: "old_step_1", 2: "step_2"}
    assert locate(tmp_path, 1) == tmp_path / "old_step_1"
    assert locate(tmp_path, 2) == tmp_path / "step_2"
    assert locate(tmp_path, 3) is None
    make(tmp_path, "new_step_2 deleted_step_1")
    assert scan(tmp_path).committed == {2: "new_step_2"}
    assert locate(tmp_path, 1) is None
    assert locate(tmp_path, 2) == tmp_path / "new_step_2"
    (tmp_path / "deleted_step_1" / "sub" / "who").unlink()
    (tmp_path / "deleted_step_1" / "sub").rmdir()
    (tmp_path / "deleted_step_1").rmdir()
    assert LocalStore(tmp_path, DiskOps()).missing([1, 2, 3, 4]) == [3, 4]


def test_only_directories_count(tmp_path: Path) -> None:
    """Files and symbolic links with our names are nobody's: not listed, not removed."""
    make(tmp_path, "elsewhere")
    for name in ("step_1", "tmp_step_2", "old_step_3", "trash_step_4"):
        (tmp_path / name).touch()
    (tmp_path / "step_5").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    removal.recover(FaultyDisk(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    found = scan(tmp_path)
    assert found.committed == {}
    assert found.misnamed == ("old_step_3", "step_1", "step_5")
    assert not found.has_leftovers


def test_no_directory_yet(tmp_path: Path) -> None:
    """There is nothing in a directory that does not exist, and listing does not make it."""
    assert scan(tmp_path / "a").committed == {}
    assert not scan(tmp_path / "a").has_leftovers
    assert not (tmp_path / "a").exists()


REFUSALS = [errno.EACCES, errno.EPERM, errno.EBUSY, errno.ENOTEMPTY, errno.EIO, errno.EROFS, errno.ESTALE]


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("operation", ["unlink", "rmdir"])
def test_what_cannot_be_deleted_is_named_and_left(tmp_path: Path, operation: str, code: int) -> None:
    """A leftover that the file system keeps is reported once, the others go, and the next recovery tries again."""
    make(tmp_path, "step_1 tmp_step_2 trash_step_3 trash_step_4")
    disk = FaultyDisk()
    disk.fail(operation, code)
    (refusal,) = removal.recover(disk, tmp_path)
    assert refusal.errno == code
    assert {path.name for path in tmp_path.iterdir()} == {"step_1", "tmp_step_2"}
    assert removal.recover(FaultyDisk(), tmp_path) == []
    assert tree(tmp_path) == {"step_1": "step_1"}


def test_an_old_step_that_cannot_be_moved_back_is_still_the_step(tmp_path: Path) -> None:
    """It is reported, stays listed under its step, and the rest is brought into order."""
    make(tmp_path, "old_step_1 trash_step_2")
    disk = FaultyDisk()
    disk.fail("rename", errno.EBUSY)
    (refusal,) = removal.recover(disk, tmp_path)
    assert refusal.errno == errno.EBUSY
    assert tree(tmp_path) == {"old_step_1": "old_step_1"}
    assert scan(tmp_path).committed.keys() == {1}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_pending_directory_that_cannot_be_cleared_gets_a_number(tmp_path: Path, code: int) -> None:
    """A step whose stale pending directory stays is staged all the same, and what stays is named."""
    make(tmp_path, "tmp_step_2")
    (tmp_path / "tmp_step_2.1").touch()
    disk = FaultyDisk()
    disk.fail("unlink", code)
    pending, leftovers = publish.stage(disk, tmp_path, 2)
    assert pending.name == "tmp_step_2.2"
    assert list(pending.iterdir()) == []
    assert [error.filename for error in leftovers] == [str(tmp_path / name) for name in ("tmp_step_2", "tmp_step_2.1")]
    assert os.strerror(code) in str(leftovers[0])
    removal.recover(FaultyDisk(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tmp_step_2.1"]  # a file is nobody's


def test_a_sweep_deletes_the_rest_before_it_says_what_stays(tmp_path: Path) -> None:
    """One directory that cannot be deleted does not keep the others."""
    make(tmp_path, "trash_step_1 trash_step_2")
    disk = FaultyDisk()
    disk.fail("unlink", errno.EACCES)
    done, (leftover,) = removal.sweep(disk, tmp_path, [tmp_path / "trash_step_1", tmp_path / "trash_step_2"])
    assert done == 2
    assert leftover.filename == str(tmp_path / "trash_step_1")
    (remark,) = remarks_of([leftover])
    assert "trash_step_1 cannot be removed: Permission denied (sub/who)" in remark
    assert tree(tmp_path) == {"trash_step_1": "trash_step_1"}


def test_what_is_deleted_meanwhile_is_gone(tmp_path: Path) -> None:
    """A file that somebody else has just removed is not in the way."""
    make(tmp_path, "trash_step_1")
    disk = FaultyDisk()
    disk.fail("unlink", (tmp_path / "trash_step_1" / "sub" / "who").unlink)
    assert removal.recover(disk, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
