"""Write files: planned ones in large blocks, from several threads, and small ones that are synced together.

1. A file is written in blocks of `BLOCK_NBYTES`. One thread gathers the bytes of a block, hashes them, and writes them
   with one call. Whole pages are written from their own memory. Everything else (short entries, odd ends, memory that
   is not aligned for direct I/O) is copied to a bounce buffer, which has the layout of the block.
2. Direct I/O is used where the file system supports it. A file is never written partly through the page cache.
3. A digest block of the manifest never lies in two blocks, so no thread waits for another to hash.
4. A short write is continued where it stopped. An error ends the file; it is never retried.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np
from xxhash import xxh3_128, xxh3_128_digest

from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, FileRecord, digest_bytes
from asyncckpt.disk.ops import O_DIRECT
from asyncckpt.disk.plan import FilePlan, Span
from asyncckpt.runtime.memory import PAGE_NBYTES, aligned_buffer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.context import JobContext

    Bytes = NDArray[np.uint8]

BLOCK_NBYTES: Final = 16 << 20
DIRECT_MIN_NBYTES: Final = 1 << 20
"""Smaller files are written through the page cache, which is faster for a small write and its sync."""
_IN_PLACE_MIN_NBYTES: Final = 64 << 10  # shorter runs are gathered: fewer, larger parts per call (IOV_MAX is 1024)
_MAX_OPEN: Final = 64  # small files that wait to be synced together; a process may have 1024 descriptors
_NEED_BUFFERED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


class ArrayBytes(Protocol):
    """The bytes of captured arrays."""

    def view(self, array: int, start: int, nbytes: int) -> Sequence[Bytes] | None:
        """Return the memory of these bytes, in order, or None if they must be copied."""

    def copy_to(self, target: Bytes, array: int, start: int) -> None:
        """Copy bytes of an array, from `start` on, until `target` is full."""


class Part(NamedTuple):
    """A run of bytes in memory, and its offset in a file."""

    offset: int
    data: Bytes


class Progress:
    """Receives the progress of writing a file, from any thread. This class ignores it."""

    def planned(self, nbytes: int) -> None:
        """The file will have `nbytes` bytes; called before it is created."""

    def copied(self) -> None:
        """All bytes of the arrays have been read."""

    def written(self, nbytes: int) -> None:
        """A block of `nbytes` bytes has been written."""


_UNWATCHED: Final = Progress()


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file that is to be written."""

    plan: FilePlan
    """The layout of the file."""
    arrays: ArrayBytes
    """The bytes of the arrays."""
    block_nbytes: int = BLOCK_NBYTES
    """Size of a block, a multiple of `DIGEST_BLOCK_NBYTES`."""
    progress: Progress = _UNWATCHED
    """Receives the progress."""


class SyncBatch:
    """Small files that are open until they are synced together.

    Each is synced once, through the descriptor that wrote it. Before the first sync the system is asked to begin
    writing all of them. So their blocks are allocated by then, and one commit of the file system's journal covers all
    files, instead of one for each. If anything fails, the files are closed, and none is synced again. If there are
    many, those that are complete are synced and closed before the next is opened.
    """

    def __init__(self, ops: DiskOps) -> None:
        self._ops = ops
        self._fds: list[int] = []

    def add(self, fd: int) -> None:
        """Take over a file that is about to be written; the others are complete."""
        if len(self._fds) >= _MAX_OPEN:
            fds, self._fds = self._fds, [fd]  # so that it is closed, too, if a sync fails
            try:
                self._sync(fds)
            finally:
                _close(fds)
        else:
            self._fds.append(fd)

    def sync(self) -> None:
        """Make all files durable.

        Raises:
            OSError: A sync failed. How much of that file is on the disk is not known.
        """
        self._sync(self._fds)

    def close(self) -> None:
        """Close the files; more than once does no harm."""
        fds, self._fds = self._fds, []
        _close(fds)

    def _sync(self, fds: Sequence[int]) -> None:
        if hasattr(os, "posix_fadvise"):
            for fd in fds:
                with contextlib.suppress(OSError):  # only a hint
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for fd in fds:
            self._ops.sync(fd)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def write_content(
    ops: DiskOps,
    path: Path,
    content: Content,
    context: JobContext,
    *,
    batch: SyncBatch | None = None,
) -> FileRecord:
    """Create a file, which must not exist, write its content, and make it durable.

    A batch syncs and closes a small file later. A large one is durable on return. The stop flag of the job is checked
    before each block.

    Raises:
        OSError: The disk failed.
        Stopped: The job was asked to stop.
    """
    is_large = content.plan.nbytes >= DIRECT_MIN_NBYTES
    is_whole = content.plan.nbytes % PAGE_NBYTES == 0  # the end of a direct write is a page's
    fd, is_direct = _create(ops, path, want_direct=is_large and is_whole)
    with _durable(ops, fd, None if is_large else batch):
        return _Writer(ops, fd, content, is_direct=is_direct).run(context)


def write_content_at(ops: DiskOps, fd: int, base: int, content: Content, context: JobContext) -> FileRecord:
    """Write content into an open file through the page cache, without a sync.

    It begins at the offset `base`, a multiple of `asyncckpt.runtime.memory.PAGE_NBYTES`, to which the offsets of the
    plan and the digest blocks are relative. The stop flag of the job is checked before each block.

    Raises:
        OSError: The disk failed.
        Stopped: The job was asked to stop.
    """
    return _Writer(ops, fd, content, base=base).run(context)


def write_bytes(ops: DiskOps, path: Path, data: bytes, batch: SyncBatch | None = None) -> FileRecord:
    """Create a small file, which must not exist, and sync it, or add it to a batch."""
    with _durable(ops, ops.create(path), batch) as fd:
        write_all(ops, fd, [Part(0, np.frombuffer(data, np.uint8))] if data else [])
    return digest_bytes(data)


@contextlib.contextmanager
def _durable(ops: DiskOps, fd: int, batch: SyncBatch | None) -> Iterator[int]:
    """Sync and close a file after it has been written, unless a batch does."""
    if batch is not None:
        batch.add(fd)
        yield fd
        return
    try:
        yield fd
        ops.sync(fd)
    finally:
        os.close(fd)


def write_all(ops: DiskOps, fd: int, parts: Sequence[Part], *, granularity: int = 1) -> None:
    """Write parts that are consecutive in the file; a short write is continued at a multiple of `granularity`."""
    while parts:
        offset = parts[0].offset
        written = ops.write(fd, [part.data for part in parts], offset)
        end = offset + written
        if end < parts[-1].offset + len(parts[-1].data):
            end -= end % granularity
            if end <= offset:
                raise OSError(errno.EIO, f"the disk took {written} bytes of a write and reported no error")
            parts = [Part(max(p.offset, end), p.data[max(0, end - p.offset) :]) for p in parts]
            parts = [part for part in parts if len(part.data)]
        else:
            return


def _create(ops: DiskOps, path: Path, *, want_direct: bool) -> tuple[int, bool]:
    if want_direct and O_DIRECT:
        try:
            return ops.create(path, direct=True), True
        except OSError as error:
            if error.errno not in _NEED_BUFFERED:
                raise
            with contextlib.suppress(FileNotFoundError):
                ops.unlink(path)  # some file systems create the file before they fail
    return ops.create(path), False


class _Writer:
    """Writes the blocks of one file."""

    def __init__(self, ops: DiskOps, fd: int, content: Content, *, is_direct: bool = False, base: int = 0) -> None:
        self._base = base
        self._ops = ops
        self._fd = fd
        self._plan = content.plan
        self._arrays = content.arrays
        self._block_nbytes = content.block_nbytes
        self._is_direct = is_direct
        self._progress = content.progress
        self._offsets = [entry.offset for entry in self._plan.entries]
        self._spare: list[Bytes] = []  # bounce buffers, one for each thread
        self._begins = range(0, self._plan.nbytes, self._block_nbytes)
        self._digests = [b""] * len(self._begins)
        self._left = len(self._begins)  # to be gathered
        self._counting = threading.Lock()

    def run(self, context: JobContext) -> FileRecord:
        """Write all blocks."""
        context.run(self._work, range(len(self._begins)))
        return FileRecord(self._plan.nbytes, b"".join(self._digests))

    def _work(self, block: int) -> None:
        """Gather and write a block; called from several threads."""
        gathering = self._gather(block)
        with self._counting:
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._progress.copied()
        self._write(block, gathering)
        self._progress.written(sum(len(part.data) for part in gathering.parts))

    def _gather(self, block: int) -> _Gathering:
        """Gather the bytes of a block."""
        begin = self._begins[block]
        end = min(begin + self._block_nbytes, self._plan.nbytes)
        gathering = _Gathering(self, begin, end)
        first = max(bisect_right(self._offsets, begin) - 1, 0)
        for offset, nbytes, source in self._plan.entries[first : bisect_left(self._offsets, end)]:
            low, high = max(offset, begin), min(offset + nbytes, end)
            if low >= high:
                continue
            if not isinstance(source, Span):
                gathering.add(low, np.frombuffer(source, np.uint8)[low - offset : high - offset])
                continue
            start = source.start + low - offset
            views = self._arrays.view(source.array, start, high - low)
            if views is None:
                self._arrays.copy_to(gathering.gap(low, high), source.array, start)
                continue
            for view in views:
                gathering.add(low, view)
                low += len(view)
        gathering.finish()
        return gathering

    def _write(self, block: int, gathering: _Gathering) -> None:
        """Hash a block and write it."""
        self._digests[block] = digest_parts(gathering.parts)
        parts = [Part(self._base + part.offset, part.data) for part in gathering.parts]
        try:
            granularity = PAGE_NBYTES if self._is_direct else 1
            write_all(self._ops, self._fd, parts, granularity=granularity)
        except OSError as error:
            if not self._is_direct or error.errno != errno.EINVAL:
                raise
            # Some file systems accept the flag and refuse the write, which has written nothing then.
            fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~O_DIRECT)
            write_all(self._ops, self._fd, parts)
        if gathering.bounce is not None:
            self._spare.append(gathering.bounce)

    def can_go_in_place(self, offset: int, data: Bytes) -> tuple[int, int]:
        """Return the range of a run that can be written from its own memory: (first, last + 1), or an empty one."""
        if len(data) < _IN_PLACE_MIN_NBYTES:
            return 0, 0
        if not self._is_direct:
            return 0, len(data)
        first = -offset % PAGE_NBYTES
        if (data.ctypes.data + first) % PAGE_NBYTES:
            return 0, 0
        last = len(data) - (offset + len(data)) % PAGE_NBYTES
        return (first, last) if last - first >= _IN_PLACE_MIN_NBYTES else (0, 0)

    def take_bounce(self) -> Bytes:
        """Return a bounce buffer."""
        try:
            return self._spare.pop()
        except IndexError:
            nbytes = min(self._block_nbytes, self._plan.nbytes)
            return aligned_buffer(nbytes) if self._is_direct else np.empty(nbytes, np.uint8)


class _Gathering:
    """The bytes of one block: parts in their own memory, and a bounce buffer for the rest."""

    def __init__(self, writer: _Writer, begin: int, end: int) -> None:
        self._writer = writer
        self._begin = begin
        self._end = end
        self._at = begin
        self._in_place: list[Part] = []
        self.bounce: Bytes | None = None
        self.parts: list[Part] = []

    def gap(self, low: int, high: int) -> Bytes:
        """Return the part of the bounce buffer for a range of the file; a gap before it is filled with zeros."""
        if self.bounce is None:
            self.bounce = self._writer.take_bounce()
        if low > self._at:
            self.bounce[self._at - self._begin : low - self._begin] = 0
        self._at = high
        return self.bounce[low - self._begin : high - self._begin]

    def add(self, offset: int, data: Bytes) -> None:
        """Add a run of bytes after the last one."""
        first, last = self._writer.can_go_in_place(offset, data)
        if first < last and offset + first > self._at:
            # Up to the first whole page, which may begin after a gap.
            head = self.gap(offset, offset + first)
            head[:] = data[:first]
        if first == last:
            self.gap(offset, offset + len(data))[:] = data
            return
        self._in_place.append(Part(offset + first, data[first:last]))
        self._at = offset + last
        if last < len(data):
            self.gap(offset + last, offset + len(data))[:] = data[last:]

    def finish(self) -> None:
        """Sort the parts by their offsets."""
        if self._at < self._end:
            self.gap(self._end, self._end)
        at = self._begin
        for part in self._in_place:
            if part.offset > at:
                self.parts.append(self._bounced(at, part.offset))
            self.parts.append(part)
            at = part.offset + len(part.data)
        if at < self._end:
            self.parts.append(self._bounced(at, self._end))

    def _bounced(self, low: int, high: int) -> Part:
        assert self.bounce is not None  # noqa: S101 - it holds all that is not in place
        return Part(low, self.bounce[low - self._begin : high - self._begin])


def digest_parts(parts: Sequence[Part]) -> bytes:
    """Return the digests of consecutive parts, which begin at the boundary of a digest block."""
    digests = []
    pending = xxh3_128()
    room = DIGEST_BLOCK_NBYTES
    for part in parts:
        at = 0
        while at < len(part.data):
            run = part.data[at : at + room]
            at += len(run)
            if len(run) == DIGEST_BLOCK_NBYTES:
                digests.append(xxh3_128_digest(run))  # type: ignore[arg-type] # arrays are buffers
                continue
            pending.update(run)  # type: ignore[arg-type] # as above
            room -= len(run)
            if room == 0:
                digests.append(pending.digest())
                pending.reset()
                room = DIGEST_BLOCK_NBYTES
    if room < DIGEST_BLOCK_NBYTES:
        digests.append(pending.digest())
    return b"".join(digests)
