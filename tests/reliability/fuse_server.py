"""The server of a `FuseDisk`: the one module that needs mfusepy and libfuse."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import mfusepy

from .fuse_disk import CONTROL, FAILED, FLUSH, HEADER, IMAGE, MARK, WRITE

if TYPE_CHECKING:
    from pathlib import Path


def serve(mount_point: Path, backing: Path, log: Path) -> None:
    """Serve until the file system is unmounted."""
    mfusepy.FUSE(Served(backing, log), str(mount_point), foreground=True, nothreads=True, fsname="fusedisk")


class Served(mfusepy.Operations):
    """The two files. One request at a time."""

    use_ns = True

    def __init__(self, backing: Path, log: Path) -> None:
        self._data = os.open(backing, os.O_RDWR)
        self._nbytes = os.fstat(self._data).st_size
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND)
        self._failure: tuple[int, int, bool] | None = None

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        """Say what there is."""
        del fh
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        if path == f"/{IMAGE}":
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": self._nbytes}
        if path == f"/{CONTROL}":
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": 0}
        raise mfusepy.FuseOSError(errno.ENOENT)

    def open(self, path: str, flags: int) -> int:
        """Open."""
        del flags
        return int(path == f"/{CONTROL}")

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Read the image."""
        del fh
        return os.pread(self._data, size, offset) if path == f"/{IMAGE}" else b""

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """Write to the image, or obey."""
        del fh
        if path == f"/{CONTROL}":
            self._obey(data.decode())
            return len(data)
        self._note(WRITE, offset, data)
        return os.pwrite(self._data, data, offset)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        """Flush, or fail as told."""
        del datasync, fh
        if path == f"/{CONTROL}":
            return 0
        if self._failure is not None:
            left, code, is_lasting = self._failure
            if left == 0:
                self._failure = self._failure if is_lasting else None
                self._note(MARK, 0, FAILED.encode())
                raise mfusepy.FuseOSError(code)
            self._failure = (left - 1, code, is_lasting)
        self._note(FLUSH, 0, b"")
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        """Leave the size as it is."""
        del path, length, fh
        return 0

    def _obey(self, command: str) -> None:
        word, _, rest = command.partition(" ")
        if word == "mark":
            self._note(MARK, 0, rest.encode())
        elif word == "fail":
            after, code, is_lasting = map(int, rest.split())
            self._failure = (after, code, bool(is_lasting))
        else:
            self._failure = None

    def _note(self, kind: bytes, offset: int, data: bytes) -> None:
        os.writev(self._log, [HEADER.pack(kind, offset, len(data)), data])
