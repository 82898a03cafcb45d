"""Sync small files together.

1. All files are written first. Then each is synced, once, through the descriptor that wrote it.
2. Before the first sync the system is asked to begin writing all of them. So their blocks are allocated by then, and
   one commit of the file system's journal covers all files, instead of one for each.
3. If anything fails, the files are closed, and none is synced again.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncckpt.disk.ops import DiskOps


class SyncBatch:
    """Open files that are to be synced."""

    def __init__(self, ops: DiskOps) -> None:
        self._ops = ops
        self._fds: list[int] = []

    def add(self, fd: int) -> None:
        """Take over a file that is about to be written."""
        self._fds.append(fd)

    def sync(self) -> None:
        """Make all files durable.

        Raises:
            OSError: A sync failed. How much of that file is on the disk is not known.
        """
        if hasattr(os, "posix_fadvise"):
            for fd in self._fds:
                with contextlib.suppress(OSError):  # only a hint
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for fd in self._fds:
            self._ops.sync(fd)

    def close(self) -> None:
        """Close the files; more than once does no harm."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)
