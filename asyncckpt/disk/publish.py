"""The publish protocol: how a checkpoint comes to be, and is replaced; how it goes, says `removal`.

What is true of a checkpoint directory at every moment, whatever fails and wherever a kill or a power cut falls:

1. `step_N` is complete and was durable, with everything in it, before it got its name.
2. A step once committed exists under a name that recovery understands until its successor's name, or its deletion, is
   durable: an overwrite exchanges the two names in one step, or moves the old one to `old_step_N` first. If the names
   cannot be made durable, they are moved back.
3. Nothing is unlinked below a committed name: a victim becomes `trash_step_N`, the parent is synced, and only then are
   its files unlinked. Files are never truncated, because a reader may have them mapped.
4. `tmp_step_N` and `trash_step_N` mean nothing to readers; a lone `old_step_N` is step N.
5. What `tmp_step_N` holds may be what an overwrite has just exchanged: the parent is synced before it is cleared.
6. Only the holder of the lock changes anything.
7. What the file system will not let go of stays, and stops nothing: a pending directory that stays becomes trash.

What POSIX does not promise: a disk that lies about having flushed its cache loses what it lies about.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from xxhash import xxh3_128_digest

from asyncckpt.disk.blocks import write_bytes
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, FileRecord, IndexPlace, Manifest
from asyncckpt.disk.names import MANIFEST_NAME, Kind, name_of
from asyncckpt.disk.removal import clear, settle, trash_name, undo
from asyncckpt.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from asyncckpt.disk.batch import SyncBatch
    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.pacing import StopFlag

# A directory above ours may be unreadable for us, or on a file system that syncs no directories.
_NOT_OURS_TO_SYNC: Final = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS})


class UnsyncedError(OSError):
    """A sync failed: nobody knows what of it is on the disk, and syncing it again would not tell."""


class Moved(NamedTuple):
    """Names that were moved, and are not durable yet."""

    step: int
    pending: Path
    committed: Path
    """What the pending directory is called now."""
    old: Path | None
    """Where the step's former directory is now, if there was one."""


def ensure_directory(ops: DiskOps, root: Path) -> None:
    """Make a directory and its missing ancestors, each durable in its parent before the next is made in it.

    The deepest one that exists is made durable too: whoever made it may have been killed, or have failed, just then.
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
        # Synced even if another process has just made it: that one may not have come so far.
        ops.sync_directory(path.parent)


def stage(ops: DiskOps, root: Path, step: int) -> Path:
    """Make an empty pending directory for a step, clearing a stale one first.

    One that cannot be cleared becomes trash, which the next start tries to delete.

    Raises:
        OSError: The disk failed, or the stale one can be neither cleared nor renamed.
    """
    path = root / name_of(Kind.PENDING, step)
    try:
        ops.mkdir(path)
    except FileExistsError:
        ops.sync_directory(root)
        if clear(ops, path):
            ops.rename(path, trash_name(root, step))
            ops.sync_directory(root)
        ops.mkdir(path)
    return path


def seal(  # noqa: PLR0913, PLR0917 - what a manifest says, and where it goes
    ops: DiskOps,
    pending: Path,
    step: int,
    files: Mapping[str, FileRecord],
    index: IndexPlace | None = None,
    batch: SyncBatch | None = None,
) -> Manifest:
    """Write the manifest of a pending directory, and make it, the files of a batch and all entries durable.

    What is not in the batch is durable already.

    Raises:
        UnsyncedError: The directory could not be synced.
        OSError: The manifest could not be written, or a file of the batch not be synced.
    """
    manifest = Manifest(step=step, created=time.time(), files=files, index=index)
    write_bytes(ops, pending / MANIFEST_NAME, manifest.encode(), batch)
    if batch is not None:
        batch.sync()
    with _syncing():
        ops.sync_directory(pending)
    return manifest


def digest_tree(ops: DiskOps, pending: Path, stop: StopFlag | None = None) -> dict[str, FileRecord]:
    """Read back the files that a user wrote, make them durable, and return their records.

    Raises:
        CheckpointError: There is a symbolic link or a special file.
        UnsyncedError: A file or directory could not be synced.
        OSError: A file cannot be read.
        Stopped: `stop` was set.
    """
    records: dict[str, FileRecord] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(pending / folder) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                name = f"{folder}/{entry.name}" if folder else entry.name
                if name == MANIFEST_NAME:
                    ops.unlink(pending / name)  # of a finalize that failed
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                else:
                    records[name] = _digest_file(ops, pending / name, name, stop)
        if folder:
            with _syncing():
                ops.sync_directory(pending / folder)
    return records


def move(ops: DiskOps, root: Path, step: int) -> Moved:
    """Give a sealed pending directory its committed name, which `make_durable` makes durable.

    Raises:
        OSError: The disk failed. What was committed still is, and the pending directory is where it was.
    """
    pending = root / name_of(Kind.PENDING, step)
    committed = root / name_of(Kind.COMMITTED, step)
    swapped = root / name_of(Kind.SWAPPED, step)
    settle(ops, swapped, committed, step)
    if not committed.exists():
        ops.rename(pending, committed)
        return Moved(step=step, pending=pending, committed=committed, old=None)
    if ops.exchange(pending, committed):
        return Moved(step=step, pending=pending, committed=committed, old=pending)
    ops.rename(committed, swapped)
    try:
        ops.rename(pending, committed)
    except OSError as error:
        undo(error, lambda: ops.rename(swapped, committed))
        raise
    return Moved(step=step, pending=pending, committed=committed, old=swapped)


def make_durable(ops: DiskOps, moved: Moved) -> Path | None:
    """Make moved names durable; what had the name before becomes trash, whose directory is returned.

    Raises:
        OSError: The disk failed. The names were moved back, if that could be done, and nothing was deleted: nobody
            knows which of them would survive a power cut.
    """
    root, old = moved.committed.parent, moved.old

    def move_back() -> None:
        if old == moved.pending:
            ops.exchange(moved.pending, moved.committed)
            return
        ops.rename(moved.committed, moved.pending)
        if old is not None:
            ops.rename(old, moved.committed)

    try:
        ops.sync_directory(root)
    except OSError as error:
        undo(error, move_back)
        raise
    if old is None:
        return None
    trash = trash_name(root, moved.step)
    try:
        ops.rename(old, trash)
    except OSError:  # the new one is durable, so the old one may as well be deleted where it is
        return old
    return trash


def publish(ops: DiskOps, root: Path, step: int) -> Path | None:
    """Commit a sealed pending directory: `move`, then `make_durable`."""
    return make_durable(ops, move(ops, root, step))


@contextlib.contextmanager
def _syncing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnsyncedError(error.errno, error.strerror, error.filename) from error


def _digest_file(ops: DiskOps, path: Path, name: str, stop: StopFlag | None) -> FileRecord:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        message = f"{name} is a symbolic link or a special file: a checkpoint holds regular files only"
        raise CheckpointError(message)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        digests, nbytes = [], 0
        while block := _read_block(fd):
            if stop is not None:
                stop.check()
            digests.append(xxh3_128_digest(block))
            nbytes += len(block)
        with _syncing():
            ops.sync(fd)
    finally:
        os.close(fd)
    return FileRecord(nbytes, b"".join(digests))


def _read_block(fd: int) -> bytes:
    """Read up to the next boundary of a digest block, or the end."""
    block = b""
    while len(block) < DIGEST_BLOCK_NBYTES and (more := os.read(fd, DIGEST_BLOCK_NBYTES - len(block))):
        block += more
    return block
