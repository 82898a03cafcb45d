"""One writer per directory, and per keyed file.

1. The lock is advisory (flock), taken by a writer's first mutation and held until it is released or the process ends.
   Listing and loading take none.
2. It belongs to the open file, so a second writer in the same process is refused as well.
3. A forked child closes its copy of the descriptor and never unlocks: that would release the lock of the parent, and a
   child that kept the descriptor would keep the lock after the parent has ended. The holder unlocks explicitly, because
   a child may not have closed its copy yet.
4. A keyed file is replaced by renaming when it is rewritten, so its lock is a file beside it. The holder removes that
   when it is done; who takes the lock checks that the file still has its name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from functools import partial
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.names import LOCK_NAME
from asyncckpt.errors import DirectoryLockedError, FileLockedError
from asyncckpt.runtime.cleanup import on_failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from asyncckpt.disk.ops import DiskOps

_ENOTSUPP: Final = (
    524  # internal to the kernel, but some network and FUSE file systems return it; Python has no name for it
)
_UNSUPPORTED: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, _ENOTSUPP})


class Lock:
    """The lock of a checkpoint directory or of a keyed file, held."""

    def __init__(
        self, fd: int, file: os.stat_result, *, is_supported: bool, remove: Callable[[], object] | None = None
    ) -> None:
        """Take over a locked descriptor; `file` is the status of its file, which `remove` removes on release."""
        # Also when the lock is collected: a manager that was never closed does not keep others out.
        self._close = weakref.finalize(self, self._unlock, fd)
        self._fd = fd
        self._file = file
        self._remove = remove
        self.is_supported = is_supported
        """False where the file system has no locks: nothing keeps a second writer away."""
        _held[fd] = self

    def release(self) -> None:
        """Release the lock; more than once does no harm."""
        try:
            if self._remove is not None and self._close.alive and self.is_supported:
                with contextlib.suppress(OSError):  # a file that stays is empty, and does no harm
                    self._remove()
        finally:
            self._close()

    @staticmethod
    def _unlock(fd: int) -> None:
        """Unlock and close. Neither blocks, so this may run in any thread."""
        with contextlib.suppress(OSError):  # the file system may have no locks
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def check_in_place(self, root: Path) -> None:
        """Check that a checkpoint directory is still the one that was locked.

        Raises:
            FileNotFoundError: It was removed, or another one is in its place.
        """
        try:
            if not self.is_supported or os.path.samestat((root / LOCK_NAME).stat(), self._file):
                return
        except FileNotFoundError:
            pass
        reason = (
            "the directory was removed, or replaced by another one, after this manager had locked it, and nothing is"
            " written: put it back, or make a new CheckpointManager, which makes the directory again"
        )
        raise FileNotFoundError(errno.ENOENT, reason, str(root))

    def is_of(self, file: os.stat_result) -> bool:
        """Whether it is held, and its file is this one."""
        return self._close.alive and os.path.samestat(self._file, file)

    def close_copy(self) -> None:
        """Close a forked child's copy, without unlocking."""
        if self._close.detach() is not None:
            os.close(self._fd)


def acquire_lock(ops: DiskOps, root: Path) -> Lock:
    """Take the lock of a checkpoint directory, which must exist.

    Raises:
        DirectoryLockedError: Another writer holds it.
        OSError: The lock file cannot be opened.
    """
    fd, file = _open(ops, root / LOCK_NAME)
    is_supported = _try_lock(fd, root / LOCK_NAME)
    if is_supported is None:
        if _is_held_here(file):
            holder, way_out = "another CheckpointManager of this process", "Save with that one, or close it first; open"
        else:
            holder, way_out = "another writer", "Open"
        message = (
            f"{root}: {holder} holds the lock: one CheckpointManager at a time may save here. {way_out} this one with"
            " read_only=True, or use another directory"
        )
        raise DirectoryLockedError(message)
    return Lock(fd, file, is_supported=is_supported)


def acquire_file_lock(ops: DiskOps, file: Path) -> Lock:
    """Take the lock of a file, which need not exist; its directory must.

    Raises:
        FileLockedError: Another writer holds it.
        OSError: The lock file cannot be opened.
    """
    path = file.with_name(f".{file.name}.lock")
    while True:
        fd, found = _open(ops, path)
        is_supported = _try_lock(fd, path)
        if is_supported is None:
            if _is_held_here(found):
                holder, way_out = (
                    "another Checkpointer of this process",
                    "Change it with that one, or close it first",
                )
            else:
                holder, way_out = "another writer", "Wait until that one is closed"
            message = (
                f"{file}: {holder} has it open: one Checkpointer at a time may change a file. {way_out}, or use another"
                " file; reading needs no lock"
            )
            raise FileLockedError(message, file=str(file))
        try:
            if os.path.samestat(path.stat(), found):
                return Lock(fd, found, is_supported=is_supported, remove=partial(ops.unlink, path))
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its last holder removed it between our two calls


def _open(ops: DiskOps, path: Path) -> tuple[int, os.stat_result]:
    """Open a lock file, and return its descriptor and status."""
    fd = ops.open_lock(path)
    with on_failure(partial(os.close, fd)):
        return fd, os.fstat(fd)


def _try_lock(fd: int, path: Path) -> bool | None:
    """Lock an open file.

    Returns:
        True if that worked, False if the file system has no locks, None if another holder has it; then it is closed.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        os.close(fd)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        reason = (
            f"{error.strerror}; the lock file cannot be locked (flock: errno {error.errno}): a directory on a file"
            " system that has locks is needed, or one on which they work"
        )
        raise OSError(error.errno, reason, str(path)) from error
    return True


_held: weakref.WeakValueDictionary[int, Lock] = weakref.WeakValueDictionary()
"""By descriptor."""


def _all_held() -> list[Lock]:
    return [lock for each in _held.valuerefs() if (lock := each()) is not None]  # other threads may change it meanwhile


def _is_held_here(file: os.stat_result) -> bool:
    return any(lock.is_of(file) for lock in _all_held())


def _close_in_child() -> None:
    for lock in _all_held():
        with contextlib.suppress(OSError):
            lock.close_copy()  # the lock and its file belong to the parent


os.register_at_fork(after_in_child=_close_in_child)
