"""Read files into arrays in large chunks, and verify them before use.

1. A chunk is a run of digest blocks, which is read with one call: directly into arrays if their parts are large, and
   into a scratch buffer if they are small or not wanted. A file that is not in the page cache is read with direct I/O.
   Then the memory is populated some chunks ahead, because page faults during a direct read leave the disk idle.
2. Each digest block with a wanted byte is read whole and verified. A block that does not match ends the reading.
"""

from __future__ import annotations

import errno
import fcntl
import os
from bisect import bisect_left, bisect_right
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, DIGEST_NBYTES, FileRecord
from asyncckpt.disk.mapping import MappedFile
from asyncckpt.disk.ops import O_DIRECT
from asyncckpt.disk.plan import align
from asyncckpt.disk.write_blocks import Part, digest_parts
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.memory import PAGE_NBYTES, aligned_buffer, populate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

CHUNK_NBYTES: Final = 2 << 20
READERS: Final = 5  # threads: about four read, and one populates memory
_COPIES_IN_FLIGHT: Final = 2  # threads that read from the page cache; more would share the same memory bandwidth
_DIRECT_MIN_NBYTES: Final = 16 << 20  # direct I/O gains nothing for less
_IN_PLACE_MIN_NBYTES: Final = 64 << 10
_CHUNKS_AHEAD: Final = 16


class Target(NamedTuple):
    """Bytes of a file that are wanted."""

    offset: int
    nbytes: int
    memory: Bytes | None
    """The memory that they are read into, if it is contiguous."""
    store: Callable[[int, Bytes], None] | None = None
    """Otherwise called with the bytes, and the position of the first of them among the wanted ones."""


class Run(NamedTuple):
    """A run of bytes of an open file, whose digests are known."""

    fd: int
    """The file, open for reading."""
    record: FileRecord
    """Size and digests of the run."""
    corrupt: Callable[[str], Exception]
    """Makes the error to raise from a description of the damage."""
    base: int = 0
    """The offset of the run in the file."""
    may_go_direct: bool = False
    """Whether the descriptor may be switched to direct I/O for good."""


def read_run(
    run: Run,
    targets: Sequence[Target],
    context: JobContext | None = None,
    *,
    is_whole: bool = False,
    on_begin: Callable[[int, int], None] | None = None,
) -> None:
    """Read the targets of a run, and verify each digest block that they touch.

    The arguments are those of `asyncckpt.storage.reader.CheckpointFile.read`; offsets are relative to the run.

    Raises:
        Exception: The error that `run.corrupt` has made: a digest does not match, or the file is too short.
        Stopped: The job was asked to stop.
    """
    context = context or JobContext()
    nbytes = run.record.nbytes
    chunks = _chunks_of([Target(0, nbytes, None)] if is_whole else targets, nbytes)
    reading = _Reading(run, targets, on_begin)
    is_large = sum(end - begin for begin, end in chunks) >= _DIRECT_MIN_NBYTES
    if run.may_go_direct and is_large and nbytes % PAGE_NBYTES == 0 and not MappedFile(run.fd).is_cached():
        reading.go_direct()
    if len(chunks) == 1:
        context.stop.check()
        reading.read(chunks[0])
    elif reading.is_direct:
        context.run(lambda each: each(), reading.with_memory_ready(chunks), threads=READERS)
    else:
        context.run(reading.read, chunks, threads=_COPIES_IN_FLIGHT)


def _chunks_of(targets: Sequence[Target], nbytes: int) -> list[tuple[int, int]]:
    """Return the digest blocks with wanted bytes, with neighbors joined into chunks."""
    chunks: list[tuple[int, int]] = []
    for target in targets:
        last_begin, last_end = chunks[-1] if chunks else (0, 0)
        begin = max(target.offset // DIGEST_BLOCK_NBYTES * DIGEST_BLOCK_NBYTES, last_end)
        end = min(align(target.offset + target.nbytes, DIGEST_BLOCK_NBYTES), nbytes)
        if chunks and begin == last_end < end and last_end - last_begin < CHUNK_NBYTES:
            begin = last_begin
            chunks.pop()
        chunks += [(at, min(at + CHUNK_NBYTES, end)) for at in range(begin, end, CHUNK_NBYTES)]
    return chunks


class _Reading:
    """Reads the chunks of one run of a file."""

    def __init__(self, run: Run, targets: Sequence[Target], on_begin: Callable[[int, int], None] | None) -> None:
        self._fd, self._record, self._corrupt, self._base, _ = run
        self._targets = targets
        self._offsets = [target.offset for target in targets]
        self._on_begin = on_begin
        self._spare: list[Bytes] = []
        self.is_direct = False

    def go_direct(self) -> None:
        """Switch to direct I/O, if the file system supports it."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) | O_DIRECT)
        except OSError:
            return
        self.is_direct = bool(O_DIRECT)

    def _go_buffered(self) -> None:
        self.is_direct = False
        fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~O_DIRECT)

    def read(self, chunk: tuple[int, int]) -> None:
        """Read a chunk, verify it, and copy the bytes that were not read into place."""
        if self._on_begin is not None:
            self._on_begin(*chunk)
        begin, end = chunk
        at = begin
        scratch: Bytes | None = None
        parts: list[Part] = []
        copies: list[tuple[Target, int, int]] = []
        for target, low, high in self._wanted(begin, end):
            first = last = low
            if (part := self._in_place(target, low, high)) is not None:
                first, last = part.offset, part.offset + len(part.data)
                if first > at:
                    scratch = self._take(scratch)
                    parts.append(Part(at, scratch[at - begin : first - begin]))
                parts.append(part)
                at = last
            copies += [(target, *edge) for edge in ((low, first), (last, high)) if edge[0] < edge[1]]
        if at < end:
            scratch = self._take(scratch)
            parts.append(Part(at, scratch[at - begin : end - begin]))
        self._read_parts(parts)
        self._verify(parts, begin)
        for target, low, high in copies:
            assert scratch is not None  # noqa: S101 - what is copied was read there
            data = scratch[low - begin : high - begin]
            if target.memory is not None:
                target.memory[low - target.offset : high - target.offset] = data
            elif target.store is not None:
                target.store(low - target.offset, data)
        if scratch is not None:
            self._spare.append(scratch)

    def with_memory_ready(self, chunks: list[tuple[int, int]]) -> Iterator[Callable[[], None]]:
        """Yield functions that read the chunks and, some chunks ahead, functions that populate their memory."""
        ready = 0
        for number, chunk in enumerate(chunks):
            while ready < min(number + _CHUNKS_AHEAD, len(chunks)):
                yield partial(self._populate, chunks[ready])
                ready += 1
            yield partial(self.read, chunk)

    def _populate(self, chunk: tuple[int, int]) -> None:
        """Populate the memory that a chunk will be read into."""
        for target, low, high in self._wanted(*chunk):
            if (part := self._in_place(target, low, high)) is not None:
                populate(part.data)

    def _wanted(self, begin: int, end: int) -> Iterator[tuple[Target, int, int]]:
        """Yield the targets in a chunk, each with its range of bytes there."""
        number = max(bisect_right(self._offsets, begin) - 1, 0)
        for target in self._targets[number : bisect_left(self._offsets, end)]:
            low, high = max(target.offset, begin), min(target.offset + target.nbytes, end)
            if low < high:
                yield target, low, high

    def _in_place(self, target: Target, low: int, high: int) -> Part | None:
        """Return the bytes from `low` to `high`, or those of their whole pages, if they can be read into place."""
        if target.memory is None or high - low < _IN_PLACE_MIN_NBYTES:
            return None
        if not self.is_direct:
            return Part(low, target.memory[low - target.offset : high - target.offset])
        low, high = align(low, PAGE_NBYTES), high - high % PAGE_NBYTES
        data = target.memory[low - target.offset : high - target.offset]
        return None if data.ctypes.data % PAGE_NBYTES else Part(low, data)

    def _take(self, scratch: Bytes | None) -> Bytes:
        if scratch is not None:
            return scratch
        try:
            return self._spare.pop()
        except IndexError:
            return aligned_buffer(min(CHUNK_NBYTES, self._record.nbytes))

    def _read_parts(self, parts: list[Part]) -> None:
        while parts:
            offset = parts[0].offset
            try:
                count = os.preadv(self._fd, [part.data for part in parts], self._base + offset)  # type: ignore[misc] # arrays are buffers
            except OSError as error:
                if not self.is_direct or error.errno != errno.EINVAL:
                    raise
                self._go_buffered()  # some file systems accept the flag and refuse the read
                continue
            end = offset + count
            if end == parts[-1].offset + len(parts[-1].data):
                return
            if self.is_direct:
                end -= end % PAGE_NBYTES
            if end <= offset:
                whole = self._base + self._record.nbytes
                raise self._corrupt(f"ends at byte {self._base + offset + count} instead of {whole}")
            parts = [Part(max(p.offset, end), p.data[max(0, end - p.offset) :]) for p in parts]
            parts = [part for part in parts if len(part.data)]

    def _verify(self, parts: list[Part], begin: int) -> None:
        found = digest_parts(parts)
        first = begin // DIGEST_BLOCK_NBYTES
        for number in range(len(found) // DIGEST_NBYTES):
            if found[number * DIGEST_NBYTES : (number + 1) * DIGEST_NBYTES] != self._record.digest(first + number):
                at = self._base + (first + number) * DIGEST_BLOCK_NBYTES
                raise self._corrupt(f"is damaged: the digest of the block at byte {at} does not match")
