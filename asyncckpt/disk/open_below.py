"""Open the files below a directory, which is opened once.

1. If the directory is renamed, replaced or deleted meanwhile, what is opened through its descriptor is still in it.
2. No symbolic link is followed, and no special file is opened or waited for.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_directory(path: str | os.PathLike[str], at: int | None = None) -> int:
    """Open a directory, and return its descriptor; a relative path is below the directory of the descriptor `at`.

    Raises:
        OSError: It is missing, or something else.
    """
    return os.open(path, _DIRECTORY, dir_fd=at)


def open_below(directory: int, name: str) -> tuple[int, int]:
    """Open a regular file below a directory without following symbolic links or waiting for a FIFO.

    Returns:
        Its descriptor, and how many bytes it has.

    Raises:
        OSError: It cannot be opened, or is something else.
        ValueError: No file can have such a name.
    """
    *folders, last = name.split("/")
    at, opened = directory, []
    try:
        for folder in folders:
            at = os.open(folder, _DIRECTORY, dir_fd=at)
            opened.append(at)
        fd = os.open(last, _FILE, dir_fd=at)
    finally:
        for each in opened:
            os.close(each)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return fd, found.st_size


def read_unverified(directory: int, name: str) -> bytes:
    """Read a small file below an open directory as it is.

    Raises:
        OSError: It is missing, or not a regular file.
    """
    fd, nbytes = open_below(directory, name)
    try:
        data = os.read(fd, nbytes)
        while len(data) < nbytes and (part := os.read(fd, nbytes - len(data))):
            data += part
        return data
    finally:
        os.close(fd)
