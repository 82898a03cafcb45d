"""The protocol between `saving/` and the storage in which checkpoints are kept.

1. Readers find a whole checkpoint of a step or none, whatever fails and whenever a process is killed.
2. An attempt is invisible until it is committed. Its files are durable before its manifest counts. The manifest, which
   is written last, makes it the checkpoint of its step, and replaces an earlier one.
3. Steps are ints. A file has a name relative to its checkpoint, with slashes. Only `LocalDirectories`, which a store
   need not have, knows paths.
4. All calls except `CheckpointStore.release` may block, and are made in worker threads. Several threads may use a store
   at the same time. An attempt or a reader is used by one job.
5. If something cannot be deleted, that is not an error: calls return remarks, each of which becomes a warning once.

`asyncckpt.testing.StorageContract` tests these promises of any store.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from asyncckpt.disk.read_blocks import Target
from asyncckpt.disk.trees import content_of, joined, walk
from asyncckpt.errors import CheckpointError
from asyncckpt.runtime.memory import aligned_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from asyncckpt.disk.manifest import FileRecord, Manifest
    from asyncckpt.disk.write_blocks import Content
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import StopFlag
    from asyncckpt.storage.reader import CheckpointFile, CheckpointReader
    from asyncckpt.storage.results import (
        CheckpointRecord,
        Committed,
        Listing,
        PendingDirectory,
        Retired,
        StateFile,
        Swept,
        Trash,
    )


class CheckpointStore(ABC):
    """Holds the checkpoints of one run, at most one for each step, at one location."""

    location: str
    """The location, for messages."""
    read_threads = 1
    """The number of threads with which one checkpoint is read fastest."""
    directories: LocalDirectories | None = None
    """The store's local directories, if it has any."""

    # --- looking ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def enter(self, *, is_writer: bool, must_exist: bool) -> Listing:
        """List what is committed, as `list_checkpoints` does, for a manager that begins to use the store.

        Args:
            is_writer: Whether the manager may change the store. If so, what a killed writer has left is cleared,
                unless there is a writer now or this fails.
            must_exist: Whether to return a remark if the location does not exist.

        Raises:
            ConfigError: The location is not one of checkpoints.
            OSError: The store cannot be read.
        """

    @abstractmethod
    def list_checkpoints(self, known: Mapping[int, CheckpointRecord]) -> Listing:
        """List what is committed, without verifying it.

        Args:
            known: Records of an earlier listing. Those of checkpoints that have not been replaced are kept.

        Raises:
            OSError: The store cannot be read.
        """

    @abstractmethod
    def missing(self, steps: Iterable[int]) -> list[int]:
        """Return those of the steps that are not committed."""

    @abstractmethod
    def open(self, step: int) -> CheckpointReader:
        """Open a checkpoint, and read and verify its manifest.

        Raises:
            CheckpointNotFoundError: The step is not committed.
            CorruptCheckpointError: The manifest is missing or damaged.
            UnsupportedFormatError: A later release wrote it.
            OSError: The store cannot be read, which says nothing about the checkpoint.
        """

    def describe_absence(self, step: int | None = None) -> str:  # noqa: ARG002 - for implementations
        """Describe, after a semicolon, what there is instead of this checkpoint, or of any; empty if not known."""
        return ""

    @abstractmethod
    def free_nbytes(self) -> int | None:
        """Return how much space is left, in bytes; None if that is not known."""

    @abstractmethod
    def nbytes_of(self, steps: Iterable[int]) -> int:
        """Return how much space deleting these steps will free, in bytes."""

    def check_source(self, path: Path, *, move: bool) -> int:
        """Look at a file or directory that `Attempt.copy` or `Attempt.move` is to take in.

        Returns:
            How much space that will take, in bytes.

        Raises:
            CheckpointError: There is a symbolic link or a special file, or it cannot be moved.
            OSError: There is nothing, or it cannot be read.
        """
        if move:
            raise CheckpointError(f"{path} cannot be moved into {self.location}: only copied, without move=True")
        return sum(entry.found.st_size for entry in walk(path) if not entry.is_folder)

    @abstractmethod
    def read_document(self, name: str) -> bytes | None:
        """Return a document of the whole store, one of `DOCUMENT_NAMES`; None if there is none.

        Raises:
            OSError: It cannot be read.
        """

    # --- writing ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def take(self, known: Mapping[int, CheckpointRecord]) -> tuple[str, ...]:
        """Become the only writer: create the location, and finish or undo what a killed writer began.

        Args:
            known: Records of an earlier listing, for a remark if the location has been removed since.

        Returns:
            Remarks.

        Raises:
            DirectoryLockedError: There is another writer.
            OSError: The store cannot be written.
        """

    @abstractmethod
    def check(self) -> None:
        """Check that this is the only writer still; nothing if it was not taken.

        Raises:
            OSError: The location was removed, or there is another writer.
        """

    @abstractmethod
    def release(self) -> None:
        """Stop being the writer; more than once does no harm. It may be called in any thread and must not block."""

    @abstractmethod
    def begin(self, step: int, nbytes: int, min_free_nbytes: int | None = None) -> Attempt:
        """Begin a checkpoint that no reader sees yet.

        Args:
            step: Its step, committed or not.
            nbytes: How much space it takes, in bytes.
            min_free_nbytes: How much must be free; None: as much as it takes.

        Raises:
            NoRoomError: There is too little space; nothing was written.
            OSError: The store failed.
        """

    @abstractmethod
    def retire(self, steps: Iterable[int], *, durably: bool = True) -> Retired:
        """Hide checkpoints from readers. A reader that has one open can go on reading it.

        Args:
            steps: The steps; those that are not committed are ignored.
            durably: Whether no crash can bring them back when this returns; otherwise `sweep` makes that sure.

        Raises:
            OSError: The store failed. The checkpoints were put back, if that could be done.
        """

    @abstractmethod
    def sweep(self, trash: Sequence[Trash] | None, stop: StopFlag) -> Swept:
        """Delete trash, in this order, until `stop` is set; None: all trash of the store.

        Raises:
            OSError: The store failed.
        """

    @abstractmethod
    def write_document(self, name: str, data: bytes) -> None:
        """Write or replace a document of the whole store, all or nothing. It is durable from the next commit on.

        Raises:
            OSError: The store failed. What was there before still is.
        """


class Attempt(ABC):
    """A checkpoint that is being written. Leaving its block discards it, unless it was committed."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> FileRecord:
        """Write a small file, and return its size and digests. It need not be durable before `commit`.

        Raises:
            OSError: The store failed.
        """

    @abstractmethod
    def write_content(self, name: str, content: Content, context: JobContext) -> FileRecord:
        """Write a file from a plan and captured arrays, as `write` does.

        Raises:
            OSError: The store failed.
            Stopped: The job was asked to stop.
        """

    def copy_verified(self, name: str, file: CheckpointFile, context: JobContext) -> FileRecord:
        """Write what a file of another checkpoint holds, and verify it; it may lie in directories, which are made.

        Raises:
            CorruptCheckpointError: The file is damaged.
            OSError: A store failed.
            Stopped: The job was asked to stop.
        """
        data = aligned_buffer(file.record.nbytes)
        file.read([Target(0, file.record.nbytes, data)] if file.record.nbytes else [], context)
        return self.write(name, data.tobytes())

    def link(self, name: str, step: int) -> FileRecord:
        """Take over a file of a committed checkpoint without copying it; either may be deleted without the other.

        Raises:
            OSError: This cannot be done here, and the file has to be written.
            CorruptCheckpointError: The other checkpoint lacks it.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), f"{name} of step {step}")

    def copy(self, name: str, path: Path, context: JobContext) -> dict[str, FileRecord]:
        """Write a copy of a local file, or of a directory with all that is in it; return the records of the files.

        Raises:
            CheckpointError: There is a symbolic link or a special file, or a file was changed meanwhile.
            OSError: It cannot be read, or the store failed.
            Stopped: The job was asked to stop.
        """
        records = {}
        for entry in walk(path, context.stop):
            at = joined(name, entry.name)
            if entry.is_folder:
                self.add_folder(at)
            else:
                with content_of(entry) as content:
                    records[at] = self.write_content(at, content, context)
        return records

    def add_folder(self, name: str) -> None:  # noqa: B027 - a store need not have folders
        """Make a folder, which may stay empty."""

    def open_folder(self, name: str) -> Path:
        """Make a folder for files that the program writes itself, before `take_in`; return its path.

        Raises:
            CheckpointError: The store has no local directories.
            OSError: The store failed.
        """
        raise CheckpointError(f"{name}: a function can fill only a local directory, which this store does not have")

    def take_in(self, name: str, stop: StopFlag) -> dict[str, FileRecord]:
        """Digest what the program has written under a name, and make it durable; return the records of the files.

        Raises:
            CheckpointError: There is a symbolic link or a special file.
            OSError: There is nothing, or it cannot be read, or the store failed.
            Stopped: `stop` was set.
        """
        raise NotImplementedError

    def move(self, name: str, path: Path, stop: StopFlag) -> dict[str, FileRecord]:
        """Take over a local file or directory, which leaves its place when this is committed, and not before.

        Raises:
            CheckpointError: There is a symbolic link or a special file, or it cannot be moved.
            OSError: The store failed.
            Stopped: `stop` was set.
        """
        raise NotImplementedError

    @abstractmethod
    def commit(self, manifest: Manifest, stop: StopFlag) -> Committed:
        """Make this the checkpoint of its step, durably; an earlier one is replaced and becomes trash.

        Raises:
            OSError: The store failed. What was there before still is.
            Stopped: `stop` was set in time.
        """

    @abstractmethod
    def discard(self) -> None:
        """Delete what was written. Once it was committed, or may have been, this does nothing.

        Raises:
            OSError: Something could not be deleted. No reader sees it, and the next writer clears it.
        """

    def __enter__(self) -> Self:
        """Return the attempt."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Discard it. If that fails after another error, it becomes a note of that error."""
        try:
            self.discard()
        except OSError as second:
            if error is None:
                raise
            error.add_note(f"what was written could not be removed: {second}")


class LocalDirectories(ABC):
    """What a store offers besides if its checkpoints are directories of the local file system."""

    @abstractmethod
    def begin(self, step: int, documents: Mapping[str, bytes]) -> PendingDirectory:
        """Make a pending directory with small files, for a caller that writes the others.

        Raises:
            OSError: The disk failed.
        """

    @abstractmethod
    def parse_step(self, path: Path) -> int:
        """Return the step of a pending directory, by its name. This does not block.

        Raises:
            ValueError: The name is not that of a pending directory.
        """

    @abstractmethod
    def read_pending(self, path: Path, name: str) -> bytes | None:
        """Read a small file of a pending directory, unverified; None if there is no directory that can be opened.

        Raises:
            OSError: The file cannot be read.
        """

    @abstractmethod
    def write_state(self, path: Path, name: str, content: Content, context: JobContext) -> StateFile:
        """Write a state file into a pending directory, and make it durable. If that fails, nothing is left of it.

        Raises:
            FileExistsError: There is a file of this name.
            OSError: The disk failed.
            Stopped: The job was asked to stop.
        """

    @abstractmethod
    def remove(self, path: Path, name: str) -> None:
        """Delete a file of a pending directory.

        Raises:
            OSError: It cannot be deleted.
        """

    @abstractmethod
    def commit(
        self, path: Path, stop: StopFlag, before: Callable[[float], None], state: StateFile | None = None
    ) -> Committed:
        """Commit a pending directory that the caller has filled.

        Args:
            path: The directory.
            stop: Stops it.
            before: Called right before the commit, with the time in the manifest. If it raises OSError, nothing is
                committed.
            state: What `write_state` has returned.

        Raises:
            ValueError: It is not a pending directory of this store.
            FileNotFoundError: It does not exist.
            CheckpointError: There is a symbolic link or a special file in it, or the state file was changed.
            OSError: The disk failed. If it was a sync of the caller's files, they are discarded: syncing them again
                might report a success that it is not. Otherwise they stay, and may be committed again.
            Stopped: `stop` was set.
        """

    @abstractmethod
    def discard(self, path: Path) -> None:
        """Delete a pending directory.

        Raises:
            OSError: Something in it could not be deleted.
        """

    @abstractmethod
    def open(self, path: Path) -> CheckpointReader:
        """Open the checkpoint that a directory is, wherever it lies and whatever it is called.

        Raises:
            CheckpointNotFoundError: It is not a checkpoint.
            CheckpointError: As `CheckpointStore.open`.
        """
