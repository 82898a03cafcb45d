"""The interface of a store: an open keyed file of any kind.

1. A store maps str keys to captured values. Keys keep the order in which they were added; a replaced key keeps its
   position.
2. Changes are staged one by one and committed together. Staged changes may already be on the disk, but have no effect
   there: opening the file shows the last commit.
3. A store is used by one thread at a time, never by an event loop's thread. It changes the disk through the `DiskOps`
   of its `FileLocation`, and locks the file before its first change. Reading takes no lock.
4. A failed `put` leaves the store unchanged. After a failed `commit` the changes are still staged, and `commit` may be
   called again. After a failed sync it writes a new file: the same file is never synced again.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from asyncckpt.errors import UnsupportedLeafError
from asyncckpt.runtime.cleanup import on_failure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.keyed.values import CapturedValue, Found
    from asyncckpt.runtime.context import JobContext

ContentT = TypeVar("ContentT")


class Store(ABC):
    """An open keyed file, or a substitute for one."""

    _entries: dict[str, KeyTree]

    @property
    def entries(self) -> Mapping[str, KeyTree]:
        """The keys in their order, each with what is known of the dicts in its value; staged changes included."""
        return self._entries

    keeps: ClassVar[bool] = True
    """Whether a value that was put can be read."""

    def begin(self, context: JobContext) -> None:  # noqa: B027 - a store without a file has no writers
        """Become the file's writer, as the first change does; `entries` are then those of the last writer.

        If that fails, this store is not the writer, and its entries are the previous ones or those of the last writer.

        Raises:
            FileLockedError: There is another writer.
            ReadOnlyFileError: Another program made the file.
            OSError: The file cannot be created or read.
        """

    def disk_use(self) -> tuple[Path, int] | None:
        """Return the file, and about how many bytes it takes with the staged changes; None without a file."""
        return None

    @abstractmethod
    def read(self, key: str, context: JobContext, *, keeps_kinds: bool = True) -> Found:
        """Read the value of a key in `entries`, staged or committed.

        Args:
            key: The key.
            context: The context of the job.
            keeps_kinds: Whether arrays come back as those of the frameworks that they belonged to, else as numpy's.

        Raises:
            CorruptCheckpointError: It is damaged.
            Stopped: `context.stop` was set.
        """

    @abstractmethod
    def put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        """Stage a value. After this, nothing refers to the memory of `value`.

        Raises:
            FileLockedError: Another writer has the file.
            OSError: The disk failed.
            UnsupportedLeafError: The file cannot hold the value.
        """

    @abstractmethod
    def delete(self, key: str, context: JobContext) -> None:
        """Stage the deletion of a key in `entries`."""

    @abstractmethod
    def commit(self, context: JobContext) -> None:
        """Make the staged changes durable: all of them or, if the process is killed meanwhile, none.

        Raises:
            OSError: The disk failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Drop the staged changes, close the file and release the lock."""


class FileStore(Store, Generic[ContentT]):
    """A store in a file, which is read when the store is opened, and again if another writer has changed it since."""

    _max_key_nbytes: ClassVar[int] = sys.maxsize
    """How long a key may be in UTF-8."""
    _is_changed = False

    def __init__(self, location: FileLocation, context: JobContext) -> None:
        """Open and read the file. Without a file, there are no keys.

        Raises:
            CorruptCheckpointError: It is damaged, or of another kind.
            UnsupportedFormatError: A later release wrote it.
            OSError: It cannot be read.
        """
        self._location = location
        self._use(self._load(context))

    @abstractmethod
    def _load(self, context: JobContext) -> ContentT:
        """Open and read the file. The store itself does not change, so a failure leaves it as it was."""

    @abstractmethod
    def _use(self, content: ContentT) -> None:
        """Replace the content of the store, and close the files that it had open."""

    def _open_to_write(self) -> None:
        """Prepare the file for changes; called with the lock held."""

    @abstractmethod
    def _put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        """Stage a value; called with the lock held, as the next two."""

    @abstractmethod
    def _delete(self, key: str) -> None:
        """Stage the deletion of a key."""

    @abstractmethod
    def _commit(self, context: JobContext) -> None:
        """Make the staged changes durable."""

    @abstractmethod
    def _close(self) -> None:
        """Drop the staged changes and close the files."""

    def begin(self, context: JobContext) -> None:
        """Lock the file; read it again if it has changed since it was opened; prepare it for changes."""
        if self._location.is_locked:
            return
        self._location.acquire(lambda: self._use(self._load(context)))
        with on_failure(self._location.release):
            self._open_to_write()

    def put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        """Begin, and stage a value."""
        most = self._max_key_nbytes
        if len(key) > most // 4 and len(key.encode("utf-8", "surrogatepass")) > most:
            message = f"a key of more than {most} bytes"
            raise UnsupportedLeafError(message, path=key[:80])
        self.begin(context)
        self._put(key, value, context)
        self._is_changed = True

    def delete(self, key: str, context: JobContext) -> None:
        """Begin, and stage the deletion of a key."""
        self.begin(context)
        self._delete(key)
        self._is_changed = True

    def commit(self, context: JobContext) -> None:
        """Make the staged changes durable, if there are any."""
        if self._is_changed:
            self._commit(context)
            self._location.after_commit()
            self._is_changed = False

    def close(self) -> None:
        """Close the files, and release the lock also if that fails."""
        try:
            self._close()
        finally:
            self._location.close()
