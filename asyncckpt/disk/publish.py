"""Publish a checkpoint: give its directory the name under which readers find it; `removal` takes names away.

The following holds for a checkpoint directory at every moment, whatever fails and wherever a kill or a power cut falls:

1. A directory that has one of the names of step N that readers use is complete, and was durable with all of its files
   before it got the name. Readers use `new_step_N`, else `step_N`, else `old_step_N`; if there is a mark
   `deleted_step_N`, only the first.
2. A committed step keeps such a name until the name of its successor, or its deletion, is durable. An overwrite
   exchanges the two names in one operation. If the file system cannot do that, the old directory is renamed to
   `old_step_N` first. If the old directory cannot be renamed, the new one becomes `new_step_N`, and gets the plain name
   after the old one has been deleted. If the names cannot be made durable, they are moved back.
3. Readers ignore `tmp_step_N` and `trash_step_N`, with or without a number behind them. An overwrite may just have
   exchanged `tmp_step_N` with the committed directory, so the parent is synced before it is cleared.
4. Only directories count: a symbolic link or a file with one of these names is left alone and never followed.
5. Only the holder of the lock changes anything.
6. What the file system refuses to delete stays, and does not stop anything else: a pending directory whose name is in
   use gets a number behind its name.

This assumes that a disk which reports a flush has done it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from xxhash import xxh3_128_digest

from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, FileRecord
from asyncckpt.disk.names import MANIFEST_NAME, Kind, committed_kind, kinds_of, locate, name_of, paths_of
from asyncckpt.disk.obstacles import explain
from asyncckpt.disk.removal import check_is_directory, clear, move_to_trash, refusal, rename_successor, settle, undo
from asyncckpt.disk.trees import joined, walk
from asyncckpt.disk.write_blocks import SyncBatch, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from asyncckpt.disk.manifest import Manifest
    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.pacing import StopFlag

# A directory above ours may be unreadable for this process, or on a file system that cannot sync directories.
_NOT_OURS_TO_SYNC: Final = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS})


class UnsyncedError(OSError):
    """A sync failed. How much is on the disk is not known, and a second sync would not tell."""


class Staged(NamedTuple):
    """A pending directory, empty."""

    path: Path
    leftovers: list[OSError]
    """What could not be cleared, and has a name that the directory would have had."""


class Moved(NamedTuple):
    """Names that were changed, and are not durable yet."""

    step: int
    pending: Path
    committed: Path
    """The new path of the pending directory."""
    old: Path | None
    """The present path of the step's former directory, if there was one."""
    was_renamed: bool = False
    """Whether the former directory was renamed."""
    leftovers: tuple[OSError, ...] = ()


class Published(NamedTuple):
    """A committed checkpoint, durable."""

    path: Path
    trash: Path | None
    """The step's former directory, for `sweep`, if there was one."""
    leftovers: tuple[OSError, ...]
    """What cannot be removed."""


def ensure_directory(ops: DiskOps, root: Path) -> None:
    """Make a directory and its missing ancestors, each durable in its parent before the next is made in it.

    The deepest one that exists is made durable too: the process that made it may have failed before it did that.
    """
    missing = []
    at = root
    while not at.exists():
        missing.append(at)
        at = at.parent
    if not at.is_dir():
        message = f"{at} is not a directory"
        raise NotADirectoryError(message)
    try:
        ops.sync_directory(at.parent)
    except OSError as error:
        if error.errno not in _NOT_OURS_TO_SYNC:
            raise
    for path in reversed(missing):
        try:
            ops.mkdir(path)
        except FileExistsError:
            if not path.is_dir():
                raise
        # Also if another process has just made it, which may not have come so far.
        ops.sync_directory(path.parent)


def stage(ops: DiskOps, root: Path, step: int) -> Staged:
    """Make an empty pending directory for a step; a stale one is cleared first.

    If its name belongs to something that is not ours, or that cannot be cleared, a number is added to the name.

    Raises:
        NotADirectoryError: Something else has the name of the step.
        OSError: The disk failed.
    """
    check_is_directory(root / name_of(Kind.COMMITTED, step))
    leftovers: list[OSError] = []
    for path in paths_of(root, Kind.PENDING, step):
        with contextlib.suppress(FileExistsError):
            ops.mkdir(path)
            break
        ops.sync_directory(root)
        refusals = clear(ops, path)
        leftovers += [refusal(path, error) for error in refusals[:1]]
        if not refusals:
            ops.mkdir(path)
            break
    return Staged(path, leftovers)


def seal(ops: DiskOps, pending: Path, manifest: Manifest, batch: SyncBatch | None = None) -> None:
    """Write the manifest of a pending directory, and make it, the files of a batch and the directory durable.

    All other files are durable already.

    Raises:
        UnsyncedError: The directory could not be synced.
        OSError: The manifest could not be written, or a file of the batch could not be synced.
    """
    write_bytes(ops, pending / MANIFEST_NAME, manifest.encode(), batch)
    if batch is not None:
        batch.sync()
    with _syncing():
        ops.sync_directory(pending)


def digest_tree(
    ops: DiskOps,
    pending: Path,
    stop: StopFlag | None = None,
    *,
    below: str = "",
    known: Mapping[str, FileRecord] | None = None,
) -> dict[str, FileRecord]:
    """Read the files that a user has put into a pending directory, make them durable, and return their records.

    Args:
        ops: The disk.
        pending: The pending directory.
        stop: Ends it early.
        below: The name in it of the file or directory to look at; all by default, except the manifest that a failed
            attempt to commit may have left.
        known: The records of files that are durable already, by name.

    Raises:
        CheckpointError: There is a symbolic link or a special file.
        UnsyncedError: A file or directory could not be synced.
        OSError: There is nothing of this name, or a file cannot be read.
        Stopped: `stop` was set.
    """
    if not below and os.path.lexists(pending / MANIFEST_NAME):
        ops.unlink(pending / MANIFEST_NAME)
    records: dict[str, FileRecord] = dict(known or {})
    folders = []
    batch = SyncBatch(ops)
    try:
        for entry in walk(pending / below, stop):
            name = joined(below, entry.name)
            if entry.is_folder:
                folders.append(entry.path)
            elif name not in records:
                records[name] = _digest_file(ops, entry.path, batch, stop)
        with _syncing():
            batch.sync()
    finally:
        batch.close()
    for folder in reversed(folders):
        if folder != pending:  # which `seal` syncs
            with _syncing():
                ops.sync_directory(folder)
    return records


def move(ops: DiskOps, pending: Path, step: int) -> Moved:
    """Give a sealed pending directory its committed name, which `make_durable` then makes durable.

    Raises:
        NotADirectoryError: Something else has the name of the step.
        OSError: The disk failed, or the step's former directory cannot be replaced. What was committed still is, and
            the pending directory has its name still.
    """
    root = pending.parent
    committed, swapped, successor = (
        root / name_of(kind, step) for kind in (Kind.COMMITTED, Kind.SWAPPED, Kind.SUCCESSOR)
    )
    leftovers: tuple[OSError, ...] = ()
    found = kinds_of(root, step)
    if found.keys() - {Kind.COMMITTED}:
        leftovers = tuple(settle(ops, root, step))
        found = kinds_of(root, step)
    for path, each in ((committed, Kind.COMMITTED), (successor, Kind.SUCCESSOR)):
        if found.get(each) is False:
            check_is_directory(path)
    kind = committed_kind(found)
    current = None if kind is None else root / name_of(kind, step)
    if current in (committed, successor):
        try:
            if ops.exchange(pending, current):
                return Moved(step, pending, current, pending, was_renamed=True, leftovers=leftovers)
            if current == committed and Kind.SWAPPED not in found:
                _move_aside(ops, pending, committed, swapped)
                return Moved(step, pending, committed, swapped, was_renamed=True, leftovers=leftovers)
        except OSError as error:
            if error.errno != errno.EXDEV or current == successor:
                message = f"step {step} cannot be replaced: {explain(error, current)}"
                raise OSError(error.errno, message, str(current)) from error
    target = successor if Kind.COMMITTED in found or found.get(Kind.DELETED) else committed
    ops.rename(pending, target)
    return Moved(step, pending, target, current, leftovers=leftovers)


def make_durable(ops: DiskOps, moved: Moved) -> Published:
    """Make changed names durable. The step's former directory becomes trash.

    Raises:
        OSError: The disk failed. The names were moved back, if that could be done. Nothing was deleted, because it is
            not known which of the names would survive a power cut.
    """
    step, pending, path, old, was_renamed, _ = moved
    root = path.parent

    def move_back() -> None:
        if old == pending:
            ops.exchange(pending, path)
            return
        ops.rename(path, pending)
        if old is not None and was_renamed:
            ops.rename(old, path)

    try:
        ops.sync_directory(root)
    except OSError as error:
        undo(error, move_back)
        raise
    if old is None:
        return Published(path, None, moved.leftovers)
    trash, leftovers = move_to_trash(ops, old, step)
    if path.name == name_of(Kind.SUCCESSOR, step):
        leftovers += rename_successor(ops, root, step)
        path = locate(root, step) or path
    return Published(path, trash, (*moved.leftovers, *leftovers))


def _move_aside(ops: DiskOps, pending: Path, committed: Path, swapped: Path) -> None:
    ops.rename(committed, swapped)
    try:
        ops.rename(pending, committed)
    except OSError as error:
        undo(error, lambda: ops.rename(swapped, committed))
        raise


@contextlib.contextmanager
def _syncing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnsyncedError(error.errno, error.strerror, error.filename) from error


def _digest_file(ops: DiskOps, path: Path, batch: SyncBatch, stop: StopFlag | None) -> FileRecord:
    """Digest a file, and make it durable: a large one now, a small one with its batch."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    is_small = os.fstat(fd).st_size < DIGEST_BLOCK_NBYTES
    if is_small:
        with _syncing():
            batch.add(fd)
    digests, nbytes = [], 0
    with os.fdopen(fd, "rb", closefd=not is_small) as file:
        while block := file.read(DIGEST_BLOCK_NBYTES):
            if stop is not None:
                stop.check()
            digests.append(xxh3_128_digest(block))
            nbytes += len(block)
        if not is_small:
            with _syncing():
                ops.sync(fd)
    return FileRecord(nbytes, b"".join(digests))
