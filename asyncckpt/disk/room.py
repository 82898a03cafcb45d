"""Measure the free space of a disk, and explain errors that are a lack of space.

1. A lack of space stays the OSError that the system raises, with its errno. Added are how much was needed, how much is
   free, and what to do.
2. What `statvfs` returns is a hint. It knows no quota and no limit on the size of a file. A file system that reports
   nothing is assumed to have space.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WAYS_OUT: Final = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "the quota is used up, whatever the disk has left: make room within it, or have it raised",
    errno.EFBIG: "a file may not become so large here: raise the limit (ulimit -f), or use another file system",
}
"""What to do about each errno that is a lack of space."""
_STAT_BLOCK_NBYTES: Final = 512  # the unit of st_blocks
_UNITS: Final = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def free_nbytes(path: Path) -> int | None:
    """Return how much space the disk of a path has left, in bytes; None if its file system does not report that."""
    try:
        disk = os.statvfs(path)
    except OSError:  # if something is wrong with the disk, the error of the next write is better
        return None
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else None


def nbytes_of(path: Path) -> int:
    """Return how much room the files below a directory take on the disk, in bytes."""
    return sum(
        os.lstat(f"{folder}/{name}").st_blocks * _STAT_BLOCK_NBYTES
        for folder, _, names in os.walk(path)
        for name in names
    )


def explain(error: OSError, path: Path, needed: str, advice: str = "") -> None:
    """Complete the text of an error that is a lack of space; any other stays as it is.

    Args:
        error: The error.
        path: What was to be written, or the directory that it was to go to.
        needed: How much space that takes, in words.
        advice: What else to do about it.
    """
    way_out = _WAYS_OUT.get(error.errno or 0)
    if way_out is None or error.strerror != os.strerror(error.errno or 0):  # or it has been explained before
        return
    text = (
        f"{os.strerror(error.errno or 0)} ({needed}, {_left(path)}; what was saved before is intact;"
        f" {way_out}{advice}, and try again)"
    )
    error.args = (error.errno, text)
    error.strerror, error.filename = text, str(path)
    del error.filename2  # None would be shown


@contextmanager
def explaining(path: Path, needed: str) -> Iterator[None]:
    """Complete the errors that leave the block, as `explain` does."""
    try:
        yield
    except OSError as error:
        explain(error, path, needed)
        raise


def spell(nbytes: int) -> str:
    """Return a number of bytes as text, with the largest unit that fits: 5368709120 bytes (5.0 GiB)."""
    for unit, size in _UNITS:
        if nbytes >= size:
            return f"{nbytes} bytes ({nbytes / size:.1f} {unit})"
    return f"{nbytes} bytes"


def _left(path: Path) -> str:
    """Say how much space the disk of a path has left; the path need not exist yet."""
    while not path.exists():
        path = path.parent
    disk = os.statvfs(path)
    if not disk.f_blocks:
        return "and the file system does not say how much is free"
    inodes = f" and {disk.f_favail} inodes" if disk.f_files else ""  # each file and directory takes one
    return f"{spell(disk.f_bavail * disk.f_frsize)}{inodes} are free"
