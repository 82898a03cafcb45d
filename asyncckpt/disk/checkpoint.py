"""One checkpoint's files, opened once and read.

1. All files of a checkpoint are opened through the descriptor of its directory, opened once: if it is swapped or
   deleted meanwhile, the reader still sees one checkpoint. A path's parts are never followed out of the directory.
2. What is read is verified before use; `read_unverified` is for what says itself what it is.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from asyncckpt.disk.manifest import FileRecord, Manifest, decode_manifest
from asyncckpt.disk.mapping import MappedFile
from asyncckpt.disk.names import MANIFEST_NAME
from asyncckpt.disk.read_blocks import Run, Target, read_run
from asyncckpt.errors import CorruptCheckpointError
from asyncckpt.runtime.memory import aligned_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncckpt.runtime.context import JobContext

_SHOWN_NAME: Final = 255


class CheckpointReader:
    """One checkpoint's files, opened once. Used and closed by one job."""

    def __init__(self, directory: int, manifest: Manifest) -> None:
        self._directory = directory
        self.manifest = manifest

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the directory."""
        os.close(self._directory)

    def open(self, name: str) -> CheckpointFile:
        """Open a file of the manifest and check its size.

        Raises:
            CorruptCheckpointError: It is missing, not a regular file, or has another size.
        """
        record = self._record(name)
        fd, nbytes = self._open_regular(name)
        if nbytes != record.nbytes:
            os.close(fd)
            raise self.corrupt(name, f"has {nbytes} bytes instead of {record.nbytes}")
        return CheckpointFile(fd, record, partial(self.corrupt, name))

    def read_small(self, name: str) -> bytes:
        """Read and verify a whole file."""
        return bytes(self.read_range(name, 0, self._record(name).nbytes))

    def read_range(self, name: str, offset: int, nbytes: int) -> memoryview:
        """Read bytes of a file, from verified blocks."""
        with self.open(name) as file:  # first: the size claimed is a file's size
            data = aligned_buffer(nbytes)
            file.read([Target(offset, nbytes, data)] if nbytes else [])
        return data.data  # without a copy: an index may be large

    def verify(self, name: str, context: JobContext) -> None:
        """Read a whole file and verify it."""
        with self.open(name) as file:
            file.read([], context, is_whole=True)

    def corrupt(self, name: str, reason: str) -> CorruptCheckpointError:
        """Make the error that says what is wrong with a file."""
        step = self.manifest.step
        shown = name if len(name) <= _SHOWN_NAME else f"{name[:_SHOWN_NAME]}..."
        return CorruptCheckpointError(f"step {step}: {shown} {reason}", step=step, file=name)

    def _record(self, name: str) -> FileRecord:
        record = self.manifest.files.get(name)
        if record is None:
            raise self.corrupt(name, "is not in the manifest")
        return record

    def _open_regular(self, name: str) -> tuple[int, int]:
        try:
            return _open_below(self._directory, name)
        except OSError as error:
            raise self.corrupt(name, f"cannot be opened: {error.strerror}") from error
        except ValueError as error:  # a name that no file can have
            raise self.corrupt(name, f"cannot be opened: {error}") from error


class CheckpointFile:
    """One file of a checkpoint, open for reading; closed when its block is left."""

    def __init__(self, fd: int, record: FileRecord, corrupt: Callable[[str], CorruptCheckpointError]) -> None:
        self._run = Run(fd, record, corrupt, may_go_direct=True)

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        os.close(self._run.fd)

    def read(
        self,
        targets: Sequence[Target],
        context: JobContext | None = None,
        *,
        is_whole: bool = False,
        on_begin: Callable[[int, int], None] | None = None,
    ) -> None:
        """Read what is wanted, and verify every digest block that was touched; see `read_run`.

        Raises:
            CorruptCheckpointError: A digest does not match, or the file is too short.
            Stopped: The job was asked to stop.
        """
        read_run(self._run, targets, context, is_whole=is_whole, on_begin=on_begin)

    def map(self) -> MappedFile:
        """Map the file into memory, read-only; the mapping outlives this object."""
        return MappedFile(self._run.fd)


def read_unverified(directory: int, name: str) -> bytes:
    """Read a small file below an open directory as it is.

    Raises:
        OSError: It is missing, or not a regular file.
    """
    fd, missing = _open_below(directory, name)
    try:
        data = []
        while missing and (part := os.read(fd, missing)):
            data.append(part)
            missing -= len(part)
        return b"".join(data)
    finally:
        os.close(fd)


def open_directory(path: str | os.PathLike[str], at: int | None = None) -> int:
    """Open a checkpoint's directory, and return its descriptor; `at` is one of the directory that `path` lies below.

    Raises:
        OSError: It is missing, or something else.
    """
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)


def _open_below(directory: int, name: str) -> tuple[int, int]:
    """Open a regular file below a directory without following symbolic links, or waiting for anybody.

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
            at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            opened.append(at)
        fd = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        for each in opened:
            os.close(each)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return fd, found.st_size


def open_checkpoint(path: str | os.PathLike[str], step: int) -> CheckpointReader:
    """Open a checkpoint's directory and read its manifest.

    Raises:
        FileNotFoundError: There is no such directory.
        CorruptCheckpointError: The manifest is missing or damaged.
        UnsupportedFormatError: A later release wrote it.
    """
    directory = open_directory(path)
    reader = CheckpointReader(directory, Manifest(step=step, created=0.0))
    try:
        fd, _ = reader._open_regular(MANIFEST_NAME)  # noqa: SLF001 - the one file that no manifest lists
        with os.fdopen(fd, "rb") as file:
            reader.manifest = decode_manifest(file.read(), step)
    except BaseException:
        os.close(directory)
        raise
    return reader
