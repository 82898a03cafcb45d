"""How much room a disk has, and what is said when there is too little.

1. A lack of room stays the OSError that the system would raise, with its errno: what is added is how much was needed,
   how much is free, and what to do.
2. What `statvfs` says is a hint. It knows of no quota and of no limit on a file's size; a file system that says nothing
   is taken to have room.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_WAYS_OUT: Final = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "the quota is used up, whatever the disk has left: make room within it, or have it raised",
    errno.EFBIG: "a file may not become so large here: raise the limit (ulimit -f), or use another file system",
}
"""What to do, by the errno of what a file system answers for lack of room."""
_UNITS: Final = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def free_nbytes(path: Path) -> int | None:
    """Return how much the disk of a path has left, in bytes; None where its file system does not say."""
    try:
        disk = os.statvfs(path)
    except OSError:  # if there is something wrong with the disk, whoever writes will say it better
        return None
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else None


def explain(error: OSError, path: Path, needed: str, advice: str = "") -> None:
    """Let an error that is a lack of room say so in full; any other stays as it is.

    Args:
        error: What the disk answered.
        path: What was to be written, or the directory that it was to go to.
        needed: How much room that takes, in words.
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
def explaining(path: Path, needed: Callable[[], str], advice: str = "") -> Iterator[None]:
    """Let errors that pass say what they lack, as `explain` does."""
    try:
        yield
    except OSError as error:
        explain(error, path, needed(), advice)
        raise


def spell(nbytes: int) -> str:
    """Return a number of bytes as text, with the largest unit that fits: 5368709120 bytes (5.0 GiB)."""
    for unit, size in _UNITS:
        if nbytes >= size:
            return f"{nbytes} bytes ({nbytes / size:.1f} {unit})"
    return f"{nbytes} bytes"


def _left(path: Path) -> str:
    """Say what the disk of a path has left; of a path that is not there yet, that of the directory it will be in."""
    while not path.exists():
        path = path.parent
    disk = os.statvfs(path)
    if not disk.f_blocks:
        return "and the file system does not say how much is free"
    inodes = f" and {disk.f_favail} inodes" if disk.f_files else ""  # each file and directory takes one
    return f"{spell(disk.f_bavail * disk.f_frsize)}{inodes} are free"
