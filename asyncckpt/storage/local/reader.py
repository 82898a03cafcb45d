"""Read a checkpoint from its directory.

All files are opened through one descriptor of the directory: if it is replaced or deleted meanwhile, the reader still
sees one checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from asyncckpt.disk.diagnosis import describe_absence, describe_checkpoint, describe_missing, step_of
from asyncckpt.disk.manifest import Manifest, decode_manifest
from asyncckpt.disk.mapping import MappedFile
from asyncckpt.disk.names import MANIFEST_NAME, locate
from asyncckpt.disk.open_below import open_below, open_directory
from asyncckpt.disk.read_blocks import Run, read_run
from asyncckpt.errors import CheckpointNotFoundError, CorruptCheckpointError
from asyncckpt.storage.local.records import identity_of
from asyncckpt.storage.reader import CheckpointFile, CheckpointReader
from asyncckpt.storage.results import SHORTAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncckpt.disk.manifest import FileRecord
    from asyncckpt.disk.read_blocks import Target
    from asyncckpt.runtime.context import JobContext


class LocalReader(CheckpointReader):
    """A checkpoint's directory, open for reading."""

    def __init__(self, path: Path, step: int, find: Callable[[], Path]) -> None:
        """Open a directory; `find` returns the path of the step's checkpoint at any later time.

        Raises:
            FileNotFoundError: There is no such directory.
            OSError: It cannot be opened, or is not a directory.
        """
        self._fd = open_directory(path)
        self._identity = identity_of(self._fd)
        self._find = find
        self.directory = str(path)
        self.manifest = Manifest(step=step, created=0.0)

    def read_manifest(self) -> None:
        """Read and verify the manifest.

        Raises:
            CorruptCheckpointError: It is missing or damaged.
            UnsupportedFormatError: A later release wrote it.
        """
        fd, _ = self._open_regular(MANIFEST_NAME)
        with os.fdopen(fd, "rb") as file:
            self.manifest = decode_manifest(file.read(), self.manifest.step)

    def is_current(self) -> bool:
        try:
            return identity_of(self._find()) == self._identity
        except CheckpointNotFoundError:
            return False

    def close(self) -> None:
        os.close(self._fd)

    def _open(self, name: str, record: FileRecord) -> LocalFile:
        fd, nbytes = self._open_regular(name)
        file = LocalFile(fd, record, lambda reason: self.corrupt(name, reason))
        if nbytes != record.nbytes:
            file.close()
            raise self.corrupt(name, f"has {nbytes} bytes instead of {record.nbytes}")
        return file

    def _open_regular(self, name: str) -> tuple[int, int]:
        try:
            return open_below(self._fd, name)
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            raise self.corrupt(name, f"cannot be opened: {error.strerror}") from error
        except ValueError as error:  # a name that no file can have
            raise self.corrupt(name, f"cannot be opened: {error}") from error


class LocalFile(CheckpointFile):
    """A file of a checkpoint's directory, open for reading."""

    def __init__(self, fd: int, record: FileRecord, corrupt: Callable[[str], CorruptCheckpointError]) -> None:
        super().__init__(record, corrupt)
        self._run = Run(fd, record, corrupt, may_go_direct=True)

    def _read(
        self,
        targets: Sequence[Target],
        context: JobContext | None,
        *,
        is_whole: bool,
        on_begin: Callable[[int, int], None] | None,
    ) -> None:
        read_run(self._run, targets, context, is_whole=is_whole, on_begin=on_begin)

    def map(self, *, is_private: bool) -> MappedFile:
        return MappedFile(self._run.fd, is_private=is_private)

    def close(self) -> None:
        os.close(self._run.fd)


def open_step(root: Path, step: int) -> LocalReader:
    """Open a committed checkpoint of a directory, as `CheckpointStore.open` does."""

    def find() -> Path:
        path = locate(root, step)
        if path is None:
            message = f"step {step} is not committed in {root}{describe_absence(root, step)}"
            raise CheckpointNotFoundError(message, step=step)
        return path

    return _open(find, step)


def open_path(path: Path) -> LocalReader:
    """Open the checkpoint that a directory is, as `LocalDirectories.open` does."""
    path = Path(os.path.realpath(path))
    step = step_of(path)

    def find() -> Path:
        if step is None or step_of(path) is None:
            raise _no_checkpoint(path)
        return path

    return _open(find, step or 0)


def _open(find: Callable[[], Path], step: int) -> LocalReader:
    """Open what `find` returns; if another process replaces or deletes it meanwhile, call `find` again.

    So an error is about a checkpoint that existed from beginning to end.
    """
    while True:
        path = find()
        try:
            reader = LocalReader(path, step, find)
        except FileNotFoundError:
            continue
        try:
            reader.read_manifest()
        except BaseException as error:
            reader.close()
            if isinstance(error, CorruptCheckpointError) and not reader.is_current():
                continue
            raise
        return reader


def _no_checkpoint(path: Path) -> CheckpointNotFoundError:
    if path.is_file():
        reason = describe_checkpoint(path.parent) or "it is a file, and the directory of a checkpoint is needed"
    elif not path.exists():
        reason = describe_missing(path)
    else:
        reason = f"there is no {MANIFEST_NAME} in it{describe_absence(path)}"
    return CheckpointNotFoundError(f"{path} is not a checkpoint: {reason}")
