"""One writer per directory.

1. The lock is advisory (flock), taken by a writer's first mutation and held until it is released or the process ends.
   Listing and loading take none.
2. It belongs to the open file, so a second writer in the same process is refused as well.
3. A forked child closes its copy of the descriptor and never unlocks: unlocking would free the parent's lock too, and
   an orphan that kept the descriptor would hold it on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.names import LOCK_NAME
from asyncckpt.errors import DirectoryLockedError

if TYPE_CHECKING:
    from pathlib import Path

    from asyncckpt.disk.ops import DiskOps

_UNSUPPORTED: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class DirectoryLock:
    """The lock of one checkpoint directory, held."""

    def __init__(self, fd: int, *, is_supported: bool) -> None:
        # Closed as well when nobody refers to it any more: a manager that was never closed locks nobody out.
        self._close = weakref.finalize(self, os.close, fd)
        self.is_supported = is_supported
        """False where the file system has no locks: nothing keeps a second writer away."""
        _held.add(self)

    def release(self) -> None:
        """Give the lock back; more than once does no harm."""
        self._close()


def acquire_lock(ops: DiskOps, root: Path) -> DirectoryLock:
    """Take the lock of a checkpoint directory, which must exist.

    Raises:
        DirectoryLockedError: Another writer holds it.
        OSError: The lock file cannot be opened.
    """
    fd = ops.open_lock(root / LOCK_NAME)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return DirectoryLock(fd, is_supported=False)
        os.close(fd)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        message = (
            f"{root}: another writer holds the lock: one CheckpointManager at a time may save here. Open this one with"
            " read_only=True, or use another directory"
        )
        raise DirectoryLockedError(message) from None
    return DirectoryLock(fd, is_supported=True)


_held: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        with contextlib.suppress(OSError):
            lock.release()


os.register_at_fork(after_in_child=_close_in_child)
