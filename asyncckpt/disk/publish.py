"""The publish protocol: how a checkpoint comes to be, is replaced, and goes.

What is true of a checkpoint directory at every moment, whatever fails and wherever a kill or a power cut falls:

1. `step_N` is complete and was durable, with everything in it, before it got its name.
2. A step once committed exists under a name that recovery understands until its successor's name, or its deletion, is
   durable: an overwrite exchanges the two names in one step, or moves the old one to `old_step_N` first.
3. Nothing is unlinked below a committed name: a victim becomes `trash_step_N`, the parent is synced, and only then are
   its files unlinked. Files are never truncated, because a reader may have them mapped.
4. `tmp_step_N` and `trash_step_N` mean nothing to readers; a lone `old_step_N` is step N.
5. Only the holder of the lock changes anything.

What POSIX does not promise: a disk that lies about having flushed its cache loses what it lies about.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xxhash import xxh3_128_digest

from asyncckpt.disk.blocks import write_bytes
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, FileRecord, IndexPlace, Manifest
from asyncckpt.disk.names import MANIFEST_NAME, Kind, name_of, parse_name
from asyncckpt.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.workers import StopFlag


def ensure_directory(ops: DiskOps, root: Path) -> None:
    """Make a directory and its missing ancestors, each durable in its parent before the next is made in it."""
    missing = []
    at = root
    while not at.exists():
        missing.append(at)
        at = at.parent
    if not at.is_dir():
        message = f"{at} is not a directory"
        raise NotADirectoryError(message)
    for path in reversed(missing):
        try:
            ops.mkdir(path)
        except FileExistsError:
            if not path.is_dir():
                raise
        # Synced even if another process has just made it: that one may not have come so far.
        ops.sync_directory(path.parent)


def scan(root: Path) -> dict[int, Path]:
    """Return the committed checkpoints' directories by step: `step_N`, or a lone `old_step_N`."""
    found: dict[int, Path] = {}
    for kind, step, path in _entries(root):
        if kind is Kind.COMMITTED or (kind is Kind.SWAPPED and step not in found):
            found[step] = path
    return found


def locate(root: Path, step: int) -> Path | None:
    """Return the directory of a committed checkpoint, or None."""
    for kind in (Kind.COMMITTED, Kind.SWAPPED):
        path = root / name_of(kind, step)
        if path.is_dir():
            return path
    return None


def has_leftovers(root: Path) -> bool:
    """Whether there is something for `recover` to do."""
    return any(kind is not Kind.COMMITTED for kind, _, _ in _entries(root))


def recover(ops: DiskOps, root: Path) -> None:
    """Bring a directory that a killed writer left into order; only the lock's holder may call this."""
    entries = _entries(root)
    committed = {step for kind, step, _ in entries if kind is Kind.COMMITTED}
    has_moved = False
    for kind, step, path in entries:
        if kind is Kind.SWAPPED and step not in committed:
            ops.rename(path, root / name_of(Kind.COMMITTED, step))
            has_moved = True
        elif kind is Kind.SWAPPED:
            ops.rename(path, _trash_name(root, step))
            has_moved = True
    if has_moved:
        ops.sync_directory(root)
    for kind, _, path in entries:
        if kind is Kind.PENDING:
            discard(ops, path)
    sweep(ops, root)


def stage(ops: DiskOps, root: Path, step: int) -> Path:
    """Make an empty pending directory for a step, clearing a stale one first."""
    path = root / name_of(Kind.PENDING, step)
    discard(ops, path)
    ops.mkdir(path)
    return path


def seal(
    ops: DiskOps, pending: Path, step: int, files: Mapping[str, FileRecord], index: IndexPlace | None = None
) -> Manifest:
    """Write the manifest of a pending directory whose files are durable, and make its entries durable."""
    manifest = Manifest(step=step, created=time.time(), files=files, index=index)
    write_bytes(ops, pending / MANIFEST_NAME, manifest.encode())
    ops.sync_directory(pending)
    return manifest


def digest_tree(ops: DiskOps, pending: Path, stop: StopFlag | None = None) -> dict[str, FileRecord]:
    """Read back the files that a user wrote, make them durable, and return their records.

    Raises:
        CheckpointError: There is a symbolic link or a special file.
        OSError: A file cannot be read, or the disk failed.
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
            ops.sync_directory(pending / folder)
    return records


def publish(ops: DiskOps, root: Path, step: int) -> None:
    """Give a sealed pending directory its committed name, durably; what had the name before becomes trash.

    Raises:
        OSError: The disk failed. The step may or may not have its name; it is not durable.
    """
    pending = root / name_of(Kind.PENDING, step)
    committed = root / name_of(Kind.COMMITTED, step)
    if not committed.exists():
        ops.rename(pending, committed)
        ops.sync_directory(root)
        return
    if ops.exchange(pending, committed):
        ops.sync_directory(root)
        ops.rename(pending, _trash_name(root, step))
        return
    swapped = root / name_of(Kind.SWAPPED, step)
    ops.rename(committed, swapped)
    ops.rename(pending, committed)
    ops.sync_directory(root)
    ops.rename(swapped, _trash_name(root, step))


def retire(ops: DiskOps, root: Path, steps: Iterable[int]) -> list[int]:
    """Take away the committed names of steps, durably; `sweep` deletes what they held. Return those that existed."""
    retired = []
    for step in steps:
        path = locate(root, step)
        if path is not None:
            ops.rename(path, _trash_name(root, step))
            retired.append(step)
    if retired:
        ops.sync_directory(root)
    return retired


def sweep(ops: DiskOps, root: Path, stop: StopFlag | None = None) -> None:
    """Delete all trash. Its names were made durable by whoever made it trash."""
    entries = [path for kind, _, path in _entries(root) if kind is Kind.TRASH]
    if entries:
        ops.sync_directory(root)  # a victim's new name must be durable before its first file goes
    for path in entries:
        discard(ops, path, stop)


def discard(ops: DiskOps, path: Path, stop: StopFlag | None = None) -> None:
    """Delete a directory that has no committed name, if it exists."""
    try:
        with os.scandir(path) as found:
            entries = list(found)
    except FileNotFoundError:
        return
    for entry in entries:
        if stop is not None:
            stop.check()
        if entry.is_dir(follow_symlinks=False):
            discard(ops, Path(entry.path), stop)
        else:
            ops.unlink(Path(entry.path))
    ops.rmdir(path)


def _entries(root: Path) -> list[tuple[Kind, int, Path]]:
    """List what is ours, committed names first; none if the directory does not exist."""
    try:
        with os.scandir(root) as found:
            names = [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    parsed = [(*place, root / name) for name in names if (place := parse_name(name)) is not None]
    return sorted(parsed, key=lambda each: (each[0] is not Kind.COMMITTED, each[1]))


def _trash_name(root: Path, step: int) -> Path:
    path = root / name_of(Kind.TRASH, step)
    number = 0
    while path.exists():
        number += 1
        path = root / f"{name_of(Kind.TRASH, step)}.{number}"
    return path


def _digest_file(ops: DiskOps, path: Path, name: str, stop: StopFlag | None) -> FileRecord:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC) if not path.is_symlink() else -1
    if fd < 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
        if fd >= 0:
            os.close(fd)
        message = f"{name} is a symbolic link or a special file: a checkpoint holds regular files only"
        raise CheckpointError(message)
    try:
        digests, nbytes = [], 0
        while block := _read_block(fd):
            if stop is not None:
                stop.check()
            digests.append(xxh3_128_digest(block))
            nbytes += len(block)
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
