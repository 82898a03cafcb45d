"""One writer per directory, in any process."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.support import descriptors_below

from asyncckpt.disk import lock as lock_module
from asyncckpt.disk.lock import acquire_file_lock, acquire_lock
from asyncckpt.disk.ops import DiskOps
from asyncckpt.errors import DirectoryLockedError
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLDER = """
import sys
from pathlib import Path
from asyncckpt.disk.lock import acquire_file_lock, acquire_lock
from asyncckpt.disk.ops import DiskOps
lock = acquire_lock(DiskOps(), Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_one_is_refused(tmp_path: Path) -> None:
    """Within one process too there is one writer; the error names the directory and says what to do."""
    lock = acquire_lock(DiskOps(), tmp_path)
    assert lock.is_supported
    with pytest.raises(DirectoryLockedError, match="read_only=True") as caught:
        acquire_lock(DiskOps(), tmp_path)
    assert str(tmp_path) in str(caught.value)
    lock.release()
    acquire_lock(DiskOps(), tmp_path).release()


def test_released_twice(tmp_path: Path) -> None:
    """Giving the lock back again does nothing to whoever holds it by then."""
    first = acquire_lock(DiskOps(), tmp_path)
    first.release()
    second = acquire_lock(DiskOps(), tmp_path)
    first.release()
    with pytest.raises(DirectoryLockedError):
        acquire_lock(DiskOps(), tmp_path)
    second.release()


def test_other_directories_are_free(tmp_path: Path) -> None:
    """The lock is of one directory."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    locks = [acquire_lock(DiskOps(), tmp_path / name) for name in ("a", "b")]
    for lock in locks:
        lock.release()


def test_forgotten(tmp_path: Path) -> None:
    """A lock that nobody refers to any more is free: a manager never closed does not lock out the next."""
    lock = acquire_lock(DiskOps(), tmp_path)
    del lock
    gc.collect()
    acquire_lock(DiskOps(), tmp_path).release()


def test_another_process(tmp_path: Path) -> None:
    """A writer in another process is respected, and its death by SIGKILL frees the lock."""
    holder = subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DirectoryLockedError):
            acquire_lock(DiskOps(), tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    acquire_lock(DiskOps(), tmp_path).release()


def in_child(action: object) -> int:
    """Run a function in a forked child, and give its result as the exit status."""
    child = os.fork()
    if child == 0:  # pragma: no cover - the child's coverage goes with it
        try:
            status = int(action())  # type: ignore[operator]
        except BaseException:  # noqa: BLE001 - a child must not return into pytest
            status = 99
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_free_it(tmp_path: Path) -> None:
    """The child closes its copy, unlocks nothing, and cannot take the lock itself while the parent holds it."""
    lock = acquire_lock(DiskOps(), tmp_path)

    def child() -> bool:
        lock.release()
        try:
            acquire_lock(DiskOps(), tmp_path)
        except DirectoryLockedError:
            return True
        return False

    assert in_child(child) == 1
    with pytest.raises(DirectoryLockedError):
        acquire_lock(DiskOps(), tmp_path)
    lock.release()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_orphan_does_not_hold_it(tmp_path: Path) -> None:
    """A child that lives on does not keep the lock when its parent has given it back."""
    lock = acquire_lock(DiskOps(), tmp_path)
    (child_reads, parent_writes), (parent_reads, child_writes) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - as above
        os.close(parent_writes)
        os.write(child_writes, b"here")
        os.read(child_reads, 1)  # until the parent has looked
        os._exit(0)
    try:
        os.read(parent_reads, 4)
        lock.release()
        acquire_lock(DiskOps(), tmp_path).release()
    finally:
        for fd in (child_reads, parent_writes, parent_reads, child_writes):
            os.close(fd)
        os.waitpid(child, 0)


def test_a_child_that_has_not_closed_its_copy_yet_does_not_hold_it(tmp_path: Path) -> None:
    """Between the fork and the child's first step its copy is open, as this one is."""
    for acquire in (acquire_lock, lambda ops, path: acquire_file_lock(ops, path / "file")):
        lock = acquire(DiskOps(), tmp_path)
        copy = os.dup(lock._fd)
        lock.release()
        acquire(DiskOps(), tmp_path).release()
        os.close(copy)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_no_locks_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int) -> None:
    """Where the file system has no locks, the answer is a lock that says so."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock_module.fcntl, "flock", refuse)
    lock = acquire_lock(DiskOps(), tmp_path)
    assert not lock.is_supported
    lock.release()


def test_other_errors_come_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is neither a held lock nor a missing feature is raised, and no descriptor stays behind."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=r"Input/output.* errno 5.*file system.*/\.lock") as caught:
        acquire_lock(DiskOps(), tmp_path)
    assert caught.value.errno == errno.EIO
    assert descriptors_below(tmp_path) == []


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """Return a directory that other users reach, unlike those below pytest's own."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o777)
        yield Path(path)


@pytest.mark.skipif(os.getuid() != 0, reason="changing the user needs root")
def test_the_lock_file_of_another_user_of_a_group_is_locked(shared_path: Path) -> None:
    """It may be read and not written, which is enough; and it is one lock for both users."""
    for name in (".lock", ".woof.h5.lock"):
        (shared_path / name).touch(0o644)
    held = acquire_lock(DiskOps(), shared_path)
    script = """
import os, sys
from pathlib import Path
from asyncckpt.disk.lock import acquire_file_lock, acquire_lock
from asyncckpt.disk.ops import DiskOps
from asyncckpt.errors import DirectoryLockedError
root = Path(sys.argv[1])
os.setgroups([]); os.setgid(1001); os.setuid(1001)
acquire_file_lock(DiskOps(), root / "woof.h5").release()
try:
    acquire_lock(DiskOps(), root)
except DirectoryLockedError:
    print("held")
sys.stdin.readline()
acquire_lock(DiskOps(), root).release()
print("taken")
"""
    command = [sys.executable, "-c", script, str(shared_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:  # noqa: S603
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        held.release()
        other.stdin.write("\n")
        other.stdin.close()
        assert other.stdout.readline() == "taken\n"


def test_the_lock_file_cannot_be_opened(tmp_path: Path) -> None:
    """No permission is no permission, not a second writer."""
    disk = FaultyDisk()
    disk.fail("open_lock", errno.EACCES)
    with pytest.raises(PermissionError, match=r"\.lock"):
        acquire_lock(disk, tmp_path)


def test_a_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """What it leads to would be made, or locked, in somebody else's place."""
    root = tmp_path / "root"
    root.mkdir()
    (root / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match="symbolic links"):
        acquire_lock(DiskOps(), root)
    assert not (tmp_path / "made").exists()
