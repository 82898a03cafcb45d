"""Test support for programs that save checkpoints: a disk that records all changes, and fails on request.

disk = FaultyDisk()
async with CheckpointManager(directory, disk=disk) as manager:
    disk.fail("sync", errno.EIO, after=1)  # the second fsync from now on
    handle = await manager.save(1, state)
    with pytest.raises(SaveFailedError):
        await handle
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asyncckpt.disk.ops import DiskOps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

OPERATIONS: Final = (
    "mkdir",
    "create",
    "open_lock",
    "write",
    "truncate",
    "set_mode",
    "sync",
    "sync_directory",
    "rename",
    "link",
    "exchange",
    "unlink",
    "rmdir",
)
"""The names of all operations that change the disk."""


class Operation(NamedTuple):
    """One change of the disk."""

    name: str
    """One of `OPERATIONS`."""
    path: Path
    """The file or directory; for a rename or a link, the old name."""
    target: Path | None = None
    """The new name of a rename or a link, or the second name of an exchange."""
    nbytes: int | None = None
    """How many bytes are written, or to how many the file is truncated."""


@dataclass(slots=True)
class _Fault:
    operation: str | None
    error: int | Callable[[], object]
    left: int
    is_lasting: bool
    path_part: str


class FaultyDisk(DiskOps):
    """The real disk, with a record of every operation, and failures where `fail` asks for them.

    Attributes:
        operations: All operations in order, including failed ones. Worker threads append to it.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._paths: dict[int, Path] = {}
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()

    def fail(
        self,
        operation: str | None,
        error: int | Callable[[], object],
        *,
        after: int = 0,
        lasting: bool = False,
        path_part: str = "",
    ) -> None:
        """Make an operation fail.

        Args:
            operation: The name of the operation, one of `OPERATIONS`, or None for any operation.
            error: The errno of the OSError that is raised before anything is done. Or a function that is called
                instead, and may raise, block, or kill the process; if it returns, the operation is carried out.
            after: How many matching operations succeed first.
            lasting: Whether all matching operations fail from then on, instead of just one.
            path_part: Only operations whose path contains this string match.

        Raises:
            ValueError: `operation` is unknown.
        """
        if operation is not None and operation not in OPERATIONS:
            message = f"unknown operation {operation!r}; known are {', '.join(OPERATIONS)}"
            raise ValueError(message)
        with self._lock:
            self._faults.append(_Fault(operation, error, after, lasting, path_part))

    def heal(self) -> None:
        """Cancel all failures that `fail` has set up."""
        with self._lock:
            self._faults.clear()

    def names(self) -> list[str]:
        """Return the names of the operations so far, in order."""
        return [operation.name for operation in self.operations]

    def mkdir(self, path: Path) -> None:
        """Make a directory."""
        self._do(Operation("mkdir", path))
        super().mkdir(path)

    def create(self, path: Path, *, direct: bool = False) -> int:
        """Create a file."""
        self._do(Operation("create", path))
        fd = super().create(path, direct=direct)
        self._paths[fd] = path
        return fd

    def open_lock(self, path: Path) -> int:
        """Open the lock file."""
        self._do(Operation("open_lock", path))
        return super().open_lock(path)

    def write(self, fd: int, buffers: Sequence[bytes | NDArray[Any]], offset: int) -> int:
        """Write to a file."""
        nbytes = sum(len(each) for each in buffers)
        self._do(Operation("write", self._path(fd), nbytes=nbytes))
        return super().write(fd, buffers, offset)

    def truncate(self, fd: int, nbytes: int) -> None:
        """Truncate a file."""
        self._do(Operation("truncate", self._path(fd), nbytes=nbytes))
        super().truncate(fd, nbytes)

    def set_mode(self, fd: int, mode: int) -> None:
        """Set a file's permissions."""
        self._do(Operation("set_mode", self._path(fd)))
        super().set_mode(fd, mode)

    def sync(self, fd: int) -> None:
        """Sync a file."""
        self._do(Operation("sync", self._path(fd)))
        super().sync(fd)

    def sync_directory(self, path: Path) -> None:
        """Sync a directory."""
        self._do(Operation("sync_directory", path))
        super().sync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or directory."""
        self._do(Operation("rename", source, target))
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        self._do(Operation("link", source, target))
        super().link(source, target)

    def exchange(self, first: Path, second: Path) -> bool:
        """Exchange two names."""
        self._do(Operation("exchange", first, second))
        return super().exchange(first, second)

    def unlink(self, path: Path) -> None:
        """Unlink a file."""
        self._do(Operation("unlink", path))
        super().unlink(path)

    def rmdir(self, path: Path) -> None:
        """Remove a directory."""
        self._do(Operation("rmdir", path))
        super().rmdir(path)

    def _path(self, fd: int) -> Path:
        path = self._paths.get(fd)
        try:
            if path is not None and os.path.samestat(path.stat(), os.fstat(fd)):
                return path
        except FileNotFoundError:
            pass  # the descriptor belongs to another file by now
        return Path(f"/proc/self/fd/{fd}").readlink()

    def _do(self, operation: Operation) -> None:
        with self._lock:
            self.operations.append(operation)
            error = self._due(operation)
        if error is None:
            return
        if callable(error):
            error()
        else:
            raise OSError(error, os.strerror(error), str(operation.path))

    def _due(self, operation: Operation) -> int | Callable[[], object] | None:
        for fault in self._faults:
            if fault.operation not in (None, operation.name) or fault.path_part not in str(operation.path):
                continue
            if fault.left > 0:
                fault.left -= 1
                continue
            if not fault.is_lasting:
                self._faults.remove(fault)
            return fault.error
        return None
