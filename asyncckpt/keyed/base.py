"""What a store is: the file of a `Checkpointer`, opened, whatever its kind.

1. A store is a mapping of str keys to captured values. Keys keep the order in which they came; a replaced key keeps its
   place.
2. Changes are staged, one by one, and committed, all together. What is staged may be on the disk, but means nothing
   there: whoever opens the file finds the last commit.
3. A store is used by one thread at a time, never by a loop's. It changes the disk through the `DiskOps` of its
   `FileLocation`, and takes the file's lock before it does so for the first time; reading takes none.
4. A failed `put` leaves the store as it was. After a failed `commit` the changes are still staged, and `commit` may be
   called again; it never syncs the same file a second time after a failure, but writes a new one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from asyncckpt.keyed.values import CapturedValue, Found, Names
    from asyncckpt.runtime.context import JobContext


class Store(ABC):
    """An open file of keys and values."""

    @property
    @abstractmethod
    def entries(self) -> Mapping[str, Names]:
        """The keys in their order, each with what is known of the dicts in its value; staged changes included."""

    keeps: ClassVar[bool] = True
    """Whether what is put is there afterwards."""

    @contextmanager
    def _rollback_on_failure(self) -> Iterator[None]:
        """While the file is read again: if that fails, the store stays what it was."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).update(before)
            raise

    def begin(self, work: JobContext) -> None:  # noqa: B027 - a store without a file has no writers
        """Become the file's writer, as the first change does; `entries` are then what the last writer left.

        If that fails, this store is no writer, and its entries are what they were, or what the last writer left.

        Raises:
            FileLockedError: There is another writer.
            ReadOnlyFileError: Another program made the file.
            OSError: The file cannot be made or read.
        """

    def disk_use(self) -> tuple[Path, int] | None:
        """Return the file, and about how many bytes it takes with what is staged; None where there is no file."""
        return None

    @abstractmethod
    def read(self, key: str, work: JobContext) -> Found:
        """Read the value of a key that is there, staged or committed.

        Raises:
            CorruptCheckpointError: It is damaged.
            Stopped: `work.stop` was set.
        """

    @abstractmethod
    def put(self, key: str, value: CapturedValue, work: JobContext) -> None:
        """Stage a value. When this returns, nothing refers to the memory of `value` any more.

        Raises:
            FileLockedError: Another writer has the file.
            OSError: The disk failed.
            UnsupportedLeafError: The file cannot hold the value.
        """

    @abstractmethod
    def delete(self, key: str, work: JobContext) -> None:
        """Stage the deletion of a key that is there."""

    @abstractmethod
    def commit(self, work: JobContext) -> None:
        """Make what is staged durable: all of it or, if the process is killed meanwhile, none.

        Raises:
            OSError: The disk failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Drop what is staged, close the file, and give the lock back."""
