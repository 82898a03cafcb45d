"""The publish protocol: how a checkpoint comes to be, and is replaced; how it goes, says `removal`.

What is true of a checkpoint directory at every moment, whatever fails and wherever a kill or a power cut falls:

1. What has one of the names of step N that readers go by is complete and was durable, with everything in it, before it
   got the name. Readers take `new_step_N`, else `step_N`, else `old_step_N`; beside a mark `deleted_step_N`, only the
   first.
2. A step once committed exists under such a name until its successor's name, or its deletion, is durable. An overwrite
   exchanges the two names in one step. Where that is not to be had, the old one is moved to `old_step_N` first; where
   the old one cannot be renamed, the new one becomes `new_step_N`, and takes the plain name when the old one has been
   deleted. If the names cannot be made durable, they are moved back.
3. `tmp_step_N` and `trash_step_N`, with a number behind them or without, mean nothing to readers. What `tmp_step_N`
   holds may be what an overwrite has just exchanged: the parent is synced before it is cleared.
4. Only directories count: a symbolic link, or a file, with one of these names is left alone and never followed.
5. Only the holder of the lock changes anything.
6. What the file system will not let go of stays, and stops nothing: a name that is taken gets a number behind it.

What POSIX does not promise: a disk that lies about having flushed its cache loses what it lies about.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from xxhash import xxh3_128_digest

from asyncckpt.disk.listing import locate, look, standing
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, FileRecord
from asyncckpt.disk.names import MANIFEST_NAME, Kind, name_of, paths_of
from asyncckpt.disk.obstacles import explain
from asyncckpt.disk.removal import Leftover, check_place, clear, give_plain_name, settle, take_away, undo
from asyncckpt.disk.write_blocks import write_bytes
from asyncckpt.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from asyncckpt.disk.batch import SyncBatch
    from asyncckpt.disk.manifest import Manifest
    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.pacing import StopFlag

# A directory above ours may be unreadable for us, or on a file system that syncs no directories.
_NOT_OURS_TO_SYNC: Final = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS})


class UnsyncedError(OSError):
    """A sync failed: nobody knows what of it is on the disk, and syncing it again would not tell."""


class Staged(NamedTuple):
    """A pending directory, empty."""

    path: Path
    leftovers: list[Leftover]
    """What has a name that it might have had."""


class Moved(NamedTuple):
    """Names that were moved, and are not durable yet."""

    step: int
    pending: Path
    committed: Path
    """What the pending directory is called now."""
    old: Path | None
    """Where the step's former directory is now, if there was one."""
    was_renamed: bool = False
    """Whether the former directory has another name than before."""
    leftovers: tuple[Leftover, ...] = ()


class Published(NamedTuple):
    """A committed checkpoint, durable."""

    path: Path
    trash: Path | None
    """The step's former directory, for `sweep`, if there was one."""
    leftovers: tuple[Leftover, ...]
    """What cannot be removed."""


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


def stage(ops: DiskOps, root: Path, step: int) -> Staged:
    """Make an empty pending directory for a step, clearing a stale one first.

    Where the name is taken by something that is not ours, or cannot be cleared, it gets a number behind it.

    Raises:
        NotADirectoryError: Something else is in the place of the step.
        OSError: The disk failed.
    """
    check_place(root / name_of(Kind.COMMITTED, step))
    leftovers: list[Leftover] = []
    for path in paths_of(root, Kind.PENDING, step):
        with contextlib.suppress(FileExistsError):
            ops.mkdir(path)
            break
        ops.sync_directory(root)
        refusals = clear(ops, path)
        leftovers += [Leftover.of(path, error) for error in refusals[:1]]
        if not refusals:
            ops.mkdir(path)
            break
    return Staged(path, leftovers)


def seal(ops: DiskOps, pending: Path, manifest: Manifest, batch: SyncBatch | None = None) -> None:
    """Write the manifest of a pending directory, and make it, the files of a batch and all entries durable.

    What is not in the batch is durable already.

    Raises:
        UnsyncedError: The directory could not be synced.
        OSError: The manifest could not be written, or a file of the batch not be synced.
    """
    write_bytes(ops, pending / MANIFEST_NAME, manifest.encode(), batch)
    if batch is not None:
        batch.sync()
    with _syncing():
        ops.sync_directory(pending)


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


def move(ops: DiskOps, pending: Path, step: int) -> Moved:
    """Give a sealed pending directory its committed name, which `make_durable` makes durable.

    Raises:
        NotADirectoryError: Something else is in the place of the step.
        OSError: The disk failed, or does not let the step's former directory go. What was committed still is, and the
            pending directory is where it was.
    """
    root = pending.parent
    committed, swapped, successor = (
        root / name_of(kind, step) for kind in (Kind.COMMITTED, Kind.SWAPPED, Kind.SUCCESSOR)
    )
    leftovers: tuple[Leftover, ...] = ()
    found = look(root, step)
    if found.keys() - {Kind.COMMITTED}:
        leftovers = tuple(settle(ops, root, step))
        found = look(root, step)
    for path, kind in ((committed, Kind.COMMITTED), (successor, Kind.SUCCESSOR)):
        if found.get(kind) is False:
            check_place(path)
    name = standing(found)
    current = None if name is None else root / name_of(name, step)
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
    """Make moved names durable; what had the name before becomes trash.

    Raises:
        OSError: The disk failed. The names were moved back, if that could be done, and nothing was deleted: nobody
            knows which of them would survive a power cut.
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
    trash, leftovers = take_away(ops, old, step)
    if path.name == name_of(Kind.SUCCESSOR, step):
        leftovers += give_plain_name(ops, root, step)
        path = locate(root, step) or path
    return Published(path, trash, (*moved.leftovers, *leftovers))


def publish(ops: DiskOps, pending: Path, step: int) -> Published:
    """Commit a sealed pending directory: `move`, then `make_durable`."""
    return make_durable(ops, move(ops, pending, step))


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
