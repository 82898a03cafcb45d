"""The protocol between `saving/` and the storage in which checkpoints are kept.

1. A step is committed, or it is not. Readers find a whole checkpoint or none, whatever fails and wherever a kill falls.
2. An attempt is invisible until it is committed. Its bytes are durable before its manifest is, and the manifest, which
   is written last, makes it the checkpoint of its step and replaces an earlier one.
3. Steps are ints. A file of a checkpoint has a name relative to it, with slashes. Only `LocalDirectories`, which not
   every store has, knows paths.
4. Every call may block, so it is made in a worker thread; `CheckpointStore.release` alone must not. Several threads may
   use a store at the same time; an attempt and a reader belong to one job each.
5. What a call cannot remove is no error: it is returned as remarks, which the manager warns of once each.

`asyncckpt.testing.StorageContract` tests these promises of any store.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from asyncckpt.disk.manifest import FileRecord, Manifest
    from asyncckpt.disk.write_blocks import Content
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import StopFlag
    from asyncckpt.storage.reader import CheckpointReader
    from asyncckpt.storage.results import CheckpointRecord, Committed, Listing, PendingDirectory, Retired, Swept, Trash


class CheckpointStore(ABC):
    """Holds the checkpoints of one run, at most one for each step, at one location."""

    location: str
    """Where it is, for messages."""
    read_threads = 1
    """How many threads read one checkpoint well."""
    directories: LocalDirectories | None = None
    """The store's local directories, if it has any."""

    # --- looking ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def enter(self, *, is_writer: bool, must_exist: bool) -> Listing:
        """List what is committed, as `list_checkpoints` does, for a manager that begins to use the store.

        Args:
            is_writer: Whether the manager may change the store. If so, what a killed writer has left is brought into
                order, unless a writer is there now or this fails.
            must_exist: Whether to return a remark if the location does not exist.

        Raises:
            ConfigError: The location is that of something else.
            OSError: The store cannot be read.
        """

    @abstractmethod
    def list_checkpoints(self, known: Mapping[int, CheckpointRecord]) -> Listing:
        """List what is committed, without verifying it.

        Args:
            known: Records of an earlier listing. What is the same checkpoint still is not read again.

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
        """

    def describe_absence(self, step: int | None = None) -> str:  # noqa: ARG002 - for those who know more
        """Describe, after a semicolon, what there is instead of this checkpoint, or of any; empty if not known."""
        return ""

    @abstractmethod
    def free_nbytes(self) -> int | None:
        """Return how much room is left, in bytes; None where that is not known."""

    @abstractmethod
    def nbytes_of(self, steps: Iterable[int]) -> int:
        """Return how much room there will be, in bytes, when these steps have been deleted."""

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
            nbytes: How much room it takes, in bytes.
            min_free_nbytes: How much must be free; None: as much as it takes.

        Raises:
            NoRoomError: There is too little room; nothing was written.
            OSError: The store failed.
        """

    @abstractmethod
    def retire(self, steps: Iterable[int], *, durably: bool = True) -> Retired:
        """Take checkpoints away from readers. Readers that have one open go on reading it.

        Args:
            steps: Which; those that are not committed are left out.
            durably: Whether no crash can bring them back when this returns; otherwise `sweep` sees to it.

        Raises:
            OSError: The store failed. The checkpoints were put back, if that could be done.
        """

    @abstractmethod
    def sweep(self, trash: Sequence[Trash] | None, stop: StopFlag) -> Swept:
        """Delete trash, in its order, until `stop` is set; None: all trash of the store.

        Raises:
            OSError: The store failed.
        """

    @abstractmethod
    def write_document(self, name: str, data: bytes) -> None:
        """Write a document of the whole store as a whole. It is durable with the next commit at the latest.

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

    def link(self, name: str, step: int) -> FileRecord:
        """Take over a file of a committed checkpoint without copying it; either may be deleted without the other.

        Raises:
            OSError: This cannot be done here, and the file has to be written.
            CorruptCheckpointError: The other checkpoint lacks it.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), f"{name} of step {step}")

    @abstractmethod
    def commit(self, manifest: Manifest, stop: StopFlag) -> Committed:
        """Make this the checkpoint of its step, durably; an earlier one is replaced and becomes trash.

        Raises:
            OSError: The store failed. What was there before still is.
            Stopped: `stop` was set in time.
        """

    @abstractmethod
    def discard(self) -> None:
        """Delete what was written; nothing once it was committed, or may have been.

        Raises:
            OSError: Something stays. No reader sees it, and the next writer clears it.
        """

    def __enter__(self) -> Self:
        """Return the attempt."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Discard it; what goes wrong with that is a note of the error that came before."""
        try:
            self.discard()
        except OSError as second:
            if error is None:
                raise
            error.add_note(f"what was written could not be removed: {second}")


class LocalDirectories(ABC):
    """What a store adds whose checkpoints are directories of the local file system."""

    @abstractmethod
    def begin(self, step: int, documents: Mapping[str, bytes]) -> PendingDirectory:
        """Make a pending directory with its small files, for a caller who writes the rest.

        Raises:
            OSError: The disk failed.
        """

    @abstractmethod
    def parse_step(self, path: Path) -> int:
        """Return the step of a pending directory, by its name.

        Raises:
            ValueError: It is none.
        """

    @abstractmethod
    def read_pending(self, path: Path, name: str) -> bytes | None:
        """Read a small file of a pending directory as it is; None if the directory does not exist.

        Raises:
            OSError: The file cannot be read.
        """

    @abstractmethod
    def commit(self, path: Path, stop: StopFlag) -> Committed:
        """Commit a pending directory that the caller has filled.

        Raises:
            ValueError: It is not one of this store's.
            FileNotFoundError: It does not exist.
            CheckpointError: There is a symbolic link or a special file in it.
            OSError: The disk failed. If it was a sync of the caller's files, they are discarded: syncing them again
                might report a success that it is not. Otherwise they stay, and may be committed again.
            Stopped: `stop` was set.
        """

    @abstractmethod
    def discard(self, path: Path) -> None:
        """Delete a pending directory.

        Raises:
            OSError: Something in it stays.
        """

    @abstractmethod
    def open(self, path: Path) -> CheckpointReader:
        """Open the checkpoint that a directory is, wherever it lies and whatever it is called.

        Raises:
            CheckpointNotFoundError: It is none.
            CheckpointError: As `CheckpointStore.open`.
        """
