"""Keep checkpoints in a directory of the local file system: the store on top of `disk/`."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from asyncckpt.disk import publish, removal, room, taking
from asyncckpt.disk.diagnosis import describe_absence, describe_checkpoint, describe_missing
from asyncckpt.disk.lock import Lock, acquire_lock
from asyncckpt.disk.names import locate
from asyncckpt.disk.read_blocks import READERS
from asyncckpt.disk.trees import walk
from asyncckpt.errors import ConfigError
from asyncckpt.runtime.cleanup import on_failure
from asyncckpt.storage.base import CheckpointStore
from asyncckpt.storage.local import documents
from asyncckpt.storage.local.attempt import LocalAttempt
from asyncckpt.storage.local.outcomes import explain, explaining, remarks_of, remarks_of_moved, weigh
from asyncckpt.storage.local.pending import PendingDirectories
from asyncckpt.storage.local.reader import open_step
from asyncckpt.storage.local.records import read_listed, say_if_gone, scan_root
from asyncckpt.storage.results import Listing, NoRoomError, Retired, Swept

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.pacing import StopFlag
    from asyncckpt.storage.base import Attempt
    from asyncckpt.storage.reader import CheckpointReader
    from asyncckpt.storage.results import CheckpointRecord, Trash


class LocalStore(CheckpointStore):
    """A checkpoint directory: one directory below it for each checkpoint, an advisory lock, and a few documents."""

    read_threads = READERS

    def __init__(self, root: Path, ops: DiskOps) -> None:
        """Name the directory, which need not exist, by an absolute path; `ops` does what changes the disk."""
        self.location = str(root)
        self.directories = PendingDirectories(ops, root)
        self._root = root
        self._ops = ops
        self._lock: Lock | None = None

    # --- looking ------------------------------------------------------------------------------------------------------

    def enter(self, *, is_writer: bool, must_exist: bool) -> Listing:
        listing = scan_root(self._root)
        remarks: list[str] = []
        if must_exist and not self._root.exists():
            remarks.append(f"{describe_missing(self._root)}: nothing is listed until a writer makes it")
        if (is_checkpoint := describe_checkpoint(self._root)) is not None:
            if not listing.committed:
                raise ConfigError(is_checkpoint)
            remarks.append(f"{is_checkpoint}. What is saved here is deleted with it")
        if is_writer and (listing.has_leftovers or self._has_notes()):
            remarks += self._tidy()
            listing = scan_root(self._root)
        return read_listed(self._root, listing, {}, remarks)

    def list_checkpoints(self, known: Mapping[int, CheckpointRecord]) -> Listing:
        return read_listed(self._root, scan_root(self._root), known, say_if_gone(self._root, known))

    def missing(self, steps: Iterable[int]) -> list[int]:
        return [step for step in steps if locate(self._root, step) is None]

    def open(self, step: int) -> CheckpointReader:
        return open_step(self._root, step)

    def describe_absence(self, step: int | None = None) -> str:
        return describe_absence(self._root, step)

    def free_nbytes(self) -> int | None:
        return room.free_nbytes(self._root)

    def nbytes_of(self, steps: Iterable[int]) -> int:
        paths = (locate(self._root, step) for step in steps)
        return sum(room.nbytes_of(path) for path in paths if path is not None)

    def check_source(self, path: Path, *, move: bool) -> int:
        taking.check_place(path, self._root, move=move)
        if not move:
            return super().check_source(path, move=move)
        for entry in walk(path):
            taking.check_movable(entry)
        return 0

    def read_document(self, name: str) -> bytes | None:
        return documents.read_document(self._root, name)

    # --- writing ------------------------------------------------------------------------------------------------------

    def take(self, known: Mapping[int, CheckpointRecord]) -> tuple[str, ...]:
        remarks = say_if_gone(self._root, known)
        with explaining(self._root):
            with room.explaining(self._root, "the directory and its lock are made before the first checkpoint"):
                publish.ensure_directory(self._ops, self._root)
                self._lock = lock = acquire_lock(self._ops, self._root)
            with on_failure(self.release):
                remarks += self._recover()
        if not lock.is_supported:
            remarks.append("the directory has no file locks: nothing keeps a second writer away")
        return tuple(remarks)

    def check(self) -> None:
        lock = self._lock  # `release` may run in another thread
        if lock is not None:
            lock.check_in_place(self._root)

    def release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def begin(self, step: int, nbytes: int, min_free_nbytes: int | None = None) -> Attempt:
        needed = f"the checkpoint takes {room.spell(nbytes)}"
        free = self.free_nbytes()
        least = nbytes if min_free_nbytes is None else min_free_nbytes
        if free is not None and free < least:
            if min_free_nbytes is not None:
                needed += f", of min_free_nbytes={min_free_nbytes} that must be free before it is written"
            error = NoRoomError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.location)
            error.nbytes = least
            explain(error, self._root, needed)
            raise error
        with explaining(self._root, needed):
            return LocalAttempt(self._ops, self._root, step, needed)

    def retire(self, steps: Iterable[int], *, durably: bool = True) -> Retired:
        with explaining(self._root):
            trash, refused, leftovers = removal.retire(self._ops, self._root, steps, durably=durably)
        return Retired(weigh(self._root, trash), refused, remarks_of(leftovers))

    def sweep(self, trash: Sequence[Trash] | None, stop: StopFlag) -> Swept:
        with explaining(self._root):
            if trash is None:
                done, leftovers = removal.sweep_all(self._ops, self._root, stop)
            else:
                done, leftovers = removal.sweep(self._ops, self._root, [self._root / each.name for each in trash], stop)
        return Swept(done, sum(room.nbytes_of(Path(error.filename)) for error in leftovers), remarks_of(leftovers))

    def write_document(self, name: str, data: bytes) -> None:
        documents.write_document(self._ops, self._root, name, data)

    def _has_notes(self) -> bool:
        """Whether a killed writer has left a document half written, or files half moved."""
        return documents.has_half_written(self._root) or os.path.lexists(self._root / taking.MOVING_NAME)

    def _recover(self) -> tuple[str, ...]:
        """Bring the directory into order, for the lock's holder; return what stays, and why."""
        leftovers = removal.recover(self._ops, self._root)
        moved = taking.finish(self._ops, self._root)
        documents.clear_half_written(self._ops, self._root)
        return (*remarks_of(leftovers), *remarks_of_moved(moved))

    def _tidy(self) -> tuple[str, ...]:
        """Do what `_recover` does, if no writer is there now and this process may."""
        try:
            lock = acquire_lock(self._ops, self._root)
        except Exception:  # noqa: BLE001 - another writer has it, or nothing may be written: the first save will say so
            return ()
        try:
            return self._recover() if lock.is_supported else ()  # without locks a writer may be at work
        except OSError:
            return ()  # as above
        finally:
            lock.release()
