"""Walk over the files of others: those that a program gives to a checkpoint, or has written into one.

1. A checkpoint holds regular files and directories. Symbolic links and special files are refused, and never followed.
2. A file that is copied must not change meanwhile, which its size and time of change show.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from asyncckpt.disk.plan import FilePlan, PlanEntry, Span
from asyncckpt.disk.write_blocks import Content
from asyncckpt.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from asyncckpt.runtime.pacing import StopFlag


class Entry(NamedTuple):
    """A file or directory that was found."""

    name: str
    """Its name relative to where the walk began, with slashes; empty for that itself."""
    path: Path
    found: os.stat_result

    @property
    def is_folder(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.found.st_mode)


def walk(top: Path, stop: StopFlag | None = None) -> Iterator[Entry]:
    """Yield a file, or a directory and all that is in it, each directory before what it holds.

    Raises:
        CheckpointError: There is a symbolic link or a special file.
        OSError: There is nothing, or it cannot be read.
        Stopped: `stop` was set.
    """
    names = [""]
    while names:
        if stop is not None:
            stop.check()
        name = names.pop()
        path = top / name if name else top
        entry = Entry(name, path, os.lstat(path))
        if not entry.is_folder and not stat.S_ISREG(entry.found.st_mode):
            message = f"{path} is a symbolic link or a special file: a checkpoint holds regular files only"
            raise CheckpointError(message)
        yield entry
        if entry.is_folder:
            with os.scandir(path) as found:
                below = sorted((each.name for each in found), reverse=True)
            names += [f"{name}/{each}" if name else each for each in below]


def joined(name: str, below: str) -> str:
    """Return the name of what lies below a name, which may be that itself (empty)."""
    return "/".join(filter(None, (name, below)))


@contextmanager
def content_of(entry: Entry) -> Iterator[Content]:
    """Open a file, so that within the block `write_content` can write a copy of it.

    Raises:
        CheckpointError: The file was changed before the block ended.
        OSError: It cannot be opened.
    """
    fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        nbytes = entry.found.st_size
        plan = FilePlan(nbytes, [PlanEntry(0, nbytes, Span(0, 0))] if nbytes else [], 0, 0)
        yield Content(plan, _FileBytes(fd, entry.path))
        if stamp_of(os.fstat(fd)) != stamp_of(entry.found):
            raise _changed(entry.path)
    finally:
        os.close(fd)


def stamp_of(found: os.stat_result) -> tuple[int, int, int, int]:
    """Return what tells a file from others, and from itself after a change."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class _FileBytes:
    """A file as the source of its copy."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def view(self, array: int, start: int, nbytes: int) -> Sequence[NDArray[np.uint8]] | None:
        """Return None: it is no memory."""
        del array, start, nbytes
        return None

    def copy_to(self, target: NDArray[np.uint8], array: int, start: int) -> None:
        """Read bytes, from `start` on, until `target` is full."""
        del array
        done = 0
        while done < len(target):
            count = os.preadv(self._fd, [target[done:].data], start + done)
            if not count:
                raise _changed(self._path)
            done += count


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} was changed while it was copied: leave it alone until the save is done")
