"""What the calls of a store return."""

from __future__ import annotations

import errno
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from asyncckpt.errors import ManagerUsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from asyncckpt.disk.manifest import FileRecord, IndexLocation

Identity: TypeAlias = Hashable
"""Tells one checkpoint from another of the same step; None if that is not known."""

METRIC_NAME: Final = ".asyncckpt.json"
DISCARDS_NAME: Final = ".asyncckpt.discards.json"
DOCUMENT_NAMES: Final = (METRIC_NAME, DISCARDS_NAME)
"""The documents that a store may be asked for."""
SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""The system is short of descriptors or memory. That says nothing about what was to be read."""


class NoRoomError(OSError):
    """There is too little space, which was noticed before anything was written."""

    nbytes: int
    """How much must be free, in bytes."""


class SavedFile(NamedTuple):
    """A file of a checkpoint that the program gave to `CheckpointManager.save`, or wrote itself."""

    name: str
    """Its path relative to the checkpoint, with slashes."""
    size: int
    """In bytes."""
    path: Path
    """Where it is; relative to the checkpoint if its store has no local directories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A committed checkpoint."""

    step: int
    directory: str
    """The path of its directory; empty if the store has no local directories. A str, because creating thousands of
    Paths would slow down the opening of a manager."""
    training_info: dict[str, Any] = field(default_factory=dict)
    """What was passed with it; numpy scalars have become numbers."""
    files: tuple[SavedFile, ...] = field(default=(), repr=False, compare=False)
    """The program's own files, by name. `load` and `restore` know them, and the handle of a save."""
    identity: Identity = field(default=None, repr=False, compare=False)
    """Tells it from an earlier or later checkpoint of the same step; None if that is not known."""

    @property
    def path(self) -> Path:
        """Its directory.

        Raises:
            ManagerUsageError: The store has no local directories.
        """
        if not self.directory:
            message = f"step {self.step} has no directory: its store has no local directories"
            raise ManagerUsageError(message)
        return Path(self.directory)


class Listing(NamedTuple):
    """What is committed in a store."""

    records: dict[int, CheckpointRecord]
    """By step, ascending."""
    remarks: tuple[str, ...] = ()
    incomplete: frozenset[int] = frozenset()
    """The steps that have no manifest: damaged, or not asyncckpt's. They do not count as checkpoints."""


class Trash(NamedTuple):
    """A checkpoint that was retired or replaced, and is to be deleted by `CheckpointStore.sweep`."""

    name: str
    """Its name in the store."""
    nbytes: int
    """How much space its files take, in bytes."""
    free_nbytes: int
    """How much space was left when it was retired, in bytes; 0 if that is not known."""


class Retired(NamedTuple):
    """The result of `CheckpointStore.retire`."""

    trash: tuple[Trash, ...]
    refused: dict[int, OSError]
    """Why steps are committed still, by step. The error's `filename` says where the checkpoint lies."""
    remarks: tuple[str, ...]


class Swept(NamedTuple):
    """The result of `CheckpointStore.sweep`."""

    done: int
    """How many items were processed, in their order."""
    left_nbytes: int
    """How much space is taken by what could not be deleted, in bytes."""
    remarks: tuple[str, ...]


class Committed(NamedTuple):
    """A checkpoint that has just been committed, durably."""

    directory: str
    """As of its record."""
    identity: Identity
    trash: tuple[Trash, ...]
    """What it has replaced."""
    remarks: tuple[str, ...]

    def record(self, step: int, training_info: dict[str, Any], files: tuple[SavedFile, ...] = ()) -> CheckpointRecord:
        """Return its record."""
        return CheckpointRecord(
            step=step, directory=self.directory, training_info=training_info, files=files, identity=self.identity
        )


def saved_files(directory: str, files: Mapping[str, FileRecord], but: Collection[str] = ()) -> tuple[SavedFile, ...]:
    """Describe the files of a checkpoint, except for some, by name."""
    return tuple(
        SavedFile(name, record.nbytes, Path(directory, name))
        for name, record in sorted(files.items())
        if name not in but
    )


class StateFile(NamedTuple):
    """The state file that was written into a pending directory, durably."""

    name: str
    record: FileRecord
    location: IndexLocation
    """Where the index lies in it."""
    stamp: Identity
    """What the file was then: it may not be changed before it is committed."""


class PendingDirectory(NamedTuple):
    """A directory whose files a caller writes."""

    path: Path
    remarks: tuple[str, ...]
