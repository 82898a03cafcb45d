"""Change the disk: all changes that asyncckpt makes go through a `DiskOps`.

1. It is passed down, so that tests can record the operations, or fail, tear or kill at each one.
2. Reading does not go through it.
3. Each method is one system call, unless its docstring says what else it does.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

O_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_CANNOT_EXCHANGE: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})


class DiskOps:
    """The real disk."""

    def mkdir(self, path: Path) -> None:
        """Make a directory."""
        os.mkdir(path)  # noqa: PTH102 - one call, one system call: tests count them

    def create(self, path: Path, *, direct: bool = False) -> int:
        """Create a file, which must not exist, and return a descriptor to read and write it.

        Raises:
            OSError: With EINVAL if `direct` is not to be had here.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | (O_DIRECT if direct else 0)
        return os.open(path, flags, 0o666)

    def open_lock(self, path: Path) -> int:
        """Open a lock file, created if need be, and return its descriptor; a symbolic link is an OSError.

        One that another user made, in a directory that this one may write, is opened for reading, which is enough to
        lock it: all but NFS ask for no more.
        """
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError as error:
            if not os.access(path.parent, os.W_OK, effective_ids=True):
                raise
            try:
                return os.open(path, flags | os.O_RDONLY)
            except OSError:
                raise error from None

    def write(self, fd: int, buffers: Sequence[bytes | NDArray[Any]], offset: int) -> int:
        """Write buffers at an offset and return how many bytes were written, which may be fewer than asked."""
        return os.pwritev(fd, buffers, offset)  # type: ignore[arg-type] # arrays are buffers

    def truncate(self, fd: int, nbytes: int) -> None:
        """Cut a file off, or fill it up with zeros."""
        os.ftruncate(fd, nbytes)

    def set_mode(self, fd: int, mode: int) -> None:
        """Set a file's permissions."""
        os.fchmod(fd, mode)

    def sync(self, fd: int) -> None:
        """Make a file's data and size durable."""
        os.fsync(fd)

    def sync_directory(self, path: Path) -> None:
        """Make a directory's entries durable: open, fsync, close."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or directory; a directory's target must not exist, or be empty."""
        os.rename(source, target)  # noqa: PTH104 - as above

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, which must not exist."""
        os.link(source, target, follow_symlinks=False)

    def exchange(self, first: Path, second: Path) -> bool:
        """Exchange two names in one step; return False, having done nothing, where that is not to be had."""
        renameat2 = _renameat2()
        if renameat2 is None:
            return False
        if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
        if code in _CANNOT_EXCHANGE:
            return False
        raise OSError(code, os.strerror(code), str(first), None, str(second))

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""
        os.unlink(path)  # noqa: PTH108 - as above

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        os.rmdir(path)  # noqa: PTH106 - as above


@cache
def _renameat2() -> Any:
    try:
        found = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return found
