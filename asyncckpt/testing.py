"""For tests of programs that save checkpoints: a disk that records what is done to it, and fails when told to.

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
"""The names of all operations that change a disk."""


class Operation(NamedTuple):
    """One change of the disk."""

    name: str
    """One of `OPERATIONS`."""
    path: Path
    """The file or directory; of a rename or a link, its old name."""
    target: Path | None = None
    """The new name."""
    nbytes: int | None = None
    """The size of a write, or of a file that is cut off, in bytes."""


@dataclass(slots=True)
class _Fault:
    operation: str | None
    error: int | Callable[[], object]
    left: int
    is_lasting: bool
    path_part: str


class FaultyDisk(DiskOps):
    """The real disk, recording every operation, and failing those that `fail` names.

    Attributes:
        operations: What was asked for, in order, operations that failed included. Appended to from worker threads.
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
        """Let an operation fail.

        Args:
            operation: Its name, one of `OPERATIONS`; None stands for all of them.
            error: The errno of the OSError to raise before anything is done, or a function to call instead, which may
                raise, block, or kill the process; if it returns, the operation goes on.
            after: How many matching operations succeed first.
            lasting: Whether all that match fail from then on, or just one.
            path_part: Only operations whose path contains this match.
        """
        if operation is not None and operation not in OPERATIONS:
            message = f"{operation!r} is none of {', '.join(OPERATIONS)}"
            raise ValueError(message)
        with self._lock:
            self._faults.append(_Fault(operation, error, after, lasting, path_part))

    def heal(self) -> None:
        """Forget all faults."""
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
        """Write."""
        nbytes = sum(len(each) for each in buffers)
        self._do(Operation("write", self._path(fd), nbytes=nbytes))
        return super().write(fd, buffers, offset)

    def truncate(self, fd: int, nbytes: int) -> None:
        """Cut a file off."""
        self._do(Operation("truncate", self._path(fd), nbytes=nbytes))
        super().truncate(fd, nbytes)

    def set_mode(self, fd: int, mode: int) -> None:
        """Set permissions."""
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
        """Rename."""
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
            pass  # the number is another file's by now
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
