"""A disk under our hands: it records every change with its bytes, and lets a hook stop, fail or shorten each."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncckpt.disk.ops import DiskOps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


@dataclass(slots=True)
class Change:
    """One change of the disk, asked for through `DiskOps`."""

    number: int
    name: str
    """The method's."""
    path: Path
    """The file or directory; of a rename, its old name."""
    target: Path | None = None
    """The new name."""
    offset: int = 0
    """Of a write, where; of a file that is cut off, its new size."""
    data: bytes = b""
    """What a write has written."""
    has_failed: bool = False
    code: int | None = None
    """The errno with which it failed."""

    def __str__(self) -> str:
        """Name it, for whoever looks for a loss."""
        target = "" if self.target is None else f" -> {self.target.name}"
        return f"#{self.number} {self.name} {self.path.parent.name}/{self.path.name}{target}"


class ShimDisk(DiskOps):
    """The real disk, one change at a time.

    Args:
        before: Called with each change before it is made; it may raise what the disk shall raise, or end the process.
            Of a write, it may return how many bytes to write at most.
        after: Called with each change that was made.
        exchanges: Whether two names can be exchanged in one step.
        is_fixed: Whether a directory cannot be renamed, as overlayfs refuses it (EXDEV) for what lies in a lower layer.
        keeps_data: Whether the record holds the bytes written.
    """

    def __init__(
        self,
        before: Callable[[Change], int | None] | None = None,
        after: Callable[[Change], object] | None = None,
        *,
        exchanges: bool = True,
        is_fixed: Callable[[Path], bool] = lambda _: False,
        keeps_data: bool = False,
    ) -> None:
        self.record: list[Change] = []
        self._before = before
        self._after = after
        self._exchanges = exchanges
        self._is_fixed = is_fixed
        self._keeps_data = keeps_data
        self._lock = threading.Lock()

    def _do(self, change: Change, action: Callable[[int | None], Any]) -> Any:
        with self._lock:
            change.number = len(self.record)
            self.record.append(change)
            try:
                limit = None if self._before is None else self._before(change)
                result = action(limit)
            except OSError as error:
                change.has_failed, change.code = True, error.errno
                raise
            if change.name == "write" and self._keeps_data:
                change.data = change.data[:result]
            if self._after is not None:
                self._after(change)
            return result

    def mkdir(self, path: Path) -> None:
        """Make a directory."""
        self._do(Change(0, "mkdir", path), lambda _: super(ShimDisk, self).mkdir(path))

    def create(self, path: Path, *, direct: bool = False) -> int:
        """Create a file."""
        found: int = self._do(Change(0, "create", path), lambda _: super(ShimDisk, self).create(path, direct=direct))
        return found

    def open_lock(self, path: Path) -> int:
        """Open the lock file."""
        found: int = self._do(Change(0, "open_lock", path), lambda _: super(ShimDisk, self).open_lock(path))
        return found

    def write(self, fd: int, buffers: Sequence[bytes | NDArray[Any]], offset: int) -> int:
        """Write, or some of it."""
        data = b"".join(bytes(each) for each in buffers) if self._keeps_data else b""

        def action(limit: int | None) -> int:
            if limit is None:
                return super(ShimDisk, self).write(fd, buffers, offset)
            return super(ShimDisk, self).write(fd, shorten(buffers, limit), offset)

        written: int = self._do(Change(0, "write", path_of(fd), offset=offset, data=data), action)
        return written

    def truncate(self, fd: int, nbytes: int) -> None:
        """Cut a file off."""
        change = Change(0, "truncate", path_of(fd), offset=nbytes)
        self._do(change, lambda _: super(ShimDisk, self).truncate(fd, nbytes))

    def set_mode(self, fd: int, mode: int) -> None:
        """Set permissions."""
        self._do(Change(0, "set_mode", path_of(fd)), lambda _: super(ShimDisk, self).set_mode(fd, mode))

    def sync(self, fd: int) -> None:
        """Sync a file."""
        self._do(Change(0, "sync", path_of(fd)), lambda _: super(ShimDisk, self).sync(fd))

    def sync_directory(self, path: Path) -> None:
        """Sync a directory."""
        self._do(Change(0, "sync_directory", path), lambda _: super(ShimDisk, self).sync_directory(path))

    def rename(self, source: Path, target: Path) -> None:
        """Rename."""
        self._check_movable(source)
        self._do(Change(0, "rename", source, target), lambda _: super(ShimDisk, self).rename(source, target))

    def exchange(self, first: Path, second: Path) -> bool:
        """Exchange two names."""
        if not self._exchanges:
            return False
        self._check_movable(first)
        self._check_movable(second)
        done: bool = self._do(
            Change(0, "exchange", first, second), lambda _: super(ShimDisk, self).exchange(first, second)
        )
        return done

    def _check_movable(self, path: Path) -> None:
        if self._is_fixed(path):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))

    def unlink(self, path: Path) -> None:
        """Unlink a file."""
        self._do(Change(0, "unlink", path), lambda _: super(ShimDisk, self).unlink(path))

    def rmdir(self, path: Path) -> None:
        """Remove a directory."""
        self._do(Change(0, "rmdir", path), lambda _: super(ShimDisk, self).rmdir(path))


def path_of(fd: int) -> Path:
    """Return the name that an open file has now."""
    return Path(f"/proc/self/fd/{fd}").readlink()


def shorten(buffers: Sequence[bytes | NDArray[Any]], limit: int) -> list[bytes | NDArray[Any]]:
    """Return the first bytes of buffers."""
    kept: list[bytes | NDArray[Any]] = []
    for each in buffers:
        if limit <= 0:
            break
        kept.append(each[:limit])
        limit -= len(kept[-1])
    return kept
