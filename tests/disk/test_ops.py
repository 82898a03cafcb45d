"""The operations that change a disk, and the disk that records them and fails."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import inspect
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from asyncckpt.disk import ops as ops_module
from asyncckpt.disk.ops import O_DIRECT, DiskOps
from asyncckpt.testing import OPERATIONS, FaultyDisk, Operation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=[DiskOps, FaultyDisk])
def disk(request: pytest.FixtureRequest) -> DiskOps:
    """Give the real disk, and the one for tests, which must do the same."""
    made: DiskOps = request.param()
    return made


def test_files(disk: DiskOps, tmp_path: Path) -> None:
    """A file is created once, written at an offset from several buffers, synced, renamed and unlinked."""
    path = tmp_path / "a"
    fd = disk.create(path)
    assert not os.get_inheritable(fd)
    assert disk.write(fd, [b"ab", np.frombuffer(b"cd", np.uint8)], 2) == 4
    disk.sync(fd)
    os.close(fd)
    assert path.read_bytes() == b"\0\0abcd"
    with pytest.raises(FileExistsError):
        disk.create(path)
    disk.rename(path, tmp_path / "b")
    disk.unlink(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_directories(disk: DiskOps, tmp_path: Path) -> None:
    """A directory is made, synced, and removed when it is empty; it never takes the place of one that is not."""
    disk.mkdir(tmp_path / "a")
    with pytest.raises(FileExistsError):
        disk.mkdir(tmp_path / "a")
    disk.mkdir(tmp_path / "b")
    (tmp_path / "b" / "file").touch()
    disk.sync_directory(tmp_path / "b")
    with pytest.raises(OSError, match="not empty"):
        disk.rename(tmp_path / "a", tmp_path / "b")
    with pytest.raises(OSError, match="not empty"):
        disk.rmdir(tmp_path / "b")
    disk.rmdir(tmp_path / "a")
    with pytest.raises(NotADirectoryError):
        disk.sync_directory(tmp_path / "b" / "file")


def test_a_lock_file_is_opened_again(disk: DiskOps, tmp_path: Path) -> None:
    """The lock file is made once and opened ever after; programs that are started do not inherit it."""
    first, second = disk.open_lock(tmp_path / ".lock"), disk.open_lock(tmp_path / ".lock")
    assert os.path.samestat(os.fstat(first), os.fstat(second))
    assert not os.get_inheritable(first)
    os.close(first)
    os.close(second)


def test_exchange(disk: DiskOps, tmp_path: Path) -> None:
    """Two directories that are not empty exchange their names, or nothing is done and the answer is no."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    done = disk.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / ("b" if done else "a")).exists()
    assert (tmp_path / "b" / ("a" if done else "b")).exists()
    if done:
        with pytest.raises(FileNotFoundError):
            disk.exchange(tmp_path / "a", tmp_path / "none")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_no_exchange_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int) -> None:
    """Where the system or the file system has no such call, the answer is no, and nothing is raised."""

    def refuse(*_: object) -> int:
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(ops_module, "_renameat2", lambda: refuse)
    assert DiskOps().exchange(tmp_path / "a", tmp_path / "b") is False
    monkeypatch.setattr(ops_module, "_renameat2", lambda: None)
    assert DiskOps().exchange(tmp_path / "a", tmp_path / "b") is False


def test_direct_io(disk: DiskOps, tmp_path: Path) -> None:
    """A file opened for direct I/O bypasses the page cache, or opening it is refused with EINVAL."""
    try:
        fd = disk.create(tmp_path / "a", direct=True)
    except OSError as error:
        assert error.errno == errno.EINVAL  # noqa: PT017 - some file systems refuse, and some do not
        return
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & O_DIRECT == O_DIRECT
    os.close(fd)


def test_the_faulty_disk_knows_every_operation() -> None:
    """What the real disk can do, the faulty one records; nothing goes past it."""
    public = {name for name, _ in inspect.getmembers(DiskOps, inspect.isfunction) if not name.startswith("_")}
    assert public == set(OPERATIONS)
    assert all(name in vars(FaultyDisk) for name in public)


def test_records_in_order(tmp_path: Path) -> None:
    """Every operation is recorded with its path, its new name and its size, those that fail included."""
    disk = FaultyDisk()
    disk.mkdir(tmp_path / "d")
    fd = disk.create(tmp_path / "a")
    disk.write(fd, [b"12", np.zeros(3, np.uint8)], 0)
    disk.sync(fd)
    os.close(fd)
    disk.rename(tmp_path / "a", tmp_path / "b")
    disk.fail("unlink", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        disk.unlink(tmp_path / "b")
    disk.unlink(tmp_path / "b")
    assert disk.operations == [
        Operation("mkdir", tmp_path / "d"),
        Operation("create", tmp_path / "a"),
        Operation("write", tmp_path / "a", nbytes=5),
        Operation("sync", tmp_path / "a"),
        Operation("rename", tmp_path / "a", tmp_path / "b"),
        Operation("unlink", tmp_path / "b"),
        Operation("unlink", tmp_path / "b"),
    ]
    assert disk.names()[-2:] == ["unlink", "unlink"]


def test_names_a_file_that_it_did_not_create(tmp_path: Path) -> None:
    """A sync is recorded under its own file's name, even when the descriptor's number was another file's before."""
    disk = FaultyDisk()
    fd = disk.create(tmp_path / "ours")
    os.close(fd)
    (tmp_path / "users").touch()
    again = os.open(tmp_path / "users", os.O_RDONLY)
    assert again == fd
    disk.sync(again)
    os.close(again)
    assert disk.operations[-1] == Operation("sync", tmp_path / "users")


def test_fails_once_or_for_good(tmp_path: Path) -> None:
    """A fault strikes after so many operations, once or from then on, until the disk is healed."""
    disk = FaultyDisk()

    def outcomes(count: int) -> list[bool]:
        found = []
        for _ in range(count):
            try:
                disk.sync_directory(tmp_path)
                found.append(True)
            except OSError as error:
                found.append((error.errno, error.filename) != (errno.ENOSPC, str(tmp_path)))
        return found

    disk.fail("sync_directory", errno.ENOSPC, after=2)
    assert outcomes(5) == [True, True, False, True, True]
    disk.fail(None, errno.ENOSPC, after=1, lasting=True)
    assert outcomes(4) == [True, False, False, False]
    disk.heal()
    assert outcomes(1) == [True]


def test_fails_for_some_paths(tmp_path: Path) -> None:
    """A fault may be for paths that contain something, and for one kind of operation."""
    disk = FaultyDisk()
    disk.fail("mkdir", errno.EACCES, path_part="bad", lasting=True)
    disk.mkdir(tmp_path / "good")
    with pytest.raises(PermissionError):
        disk.mkdir(tmp_path / "bad")
    with pytest.raises(ValueError, match="unknown operation 'fsync'"):
        disk.fail("fsync", errno.EIO)


def test_calls_instead_of_failing(tmp_path: Path) -> None:
    """A function takes an error's place; if it returns, the operation goes on."""
    disk = FaultyDisk()
    called = []
    disk.fail("mkdir", lambda: called.append(1))
    disk.mkdir(tmp_path / "a")
    assert called == [1]
    assert (tmp_path / "a").is_dir()
