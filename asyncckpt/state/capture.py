"""Snapshots of a state's arrays: copies in buffers, or the caller's own arrays.

1. A snapshot owns its buffers until `release`, which the job that has written them calls.
2. An array that no program can change is not copied. Neither are the arrays of a frozen state, which the caller has
   promised not to change.
3. A live snapshot has no copy: each block is copied when it is written, and the caller waits for the last one.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, Self, TypeVar

import numpy as np

from asyncckpt.arrays.device import fetched
from asyncckpt.arrays.source import SourceChangedError, SourceError, copy_bytes, view_bytes
from asyncckpt.errors import LeafError, StateChangedError
from asyncckpt.runtime.buffers import LARGE_NBYTES, SMALL_NBYTES, BufferPool
from asyncckpt.runtime.memory import PAGE_NBYTES, SMALL_BOUNDARY
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.array_paths import path_of_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from asyncckpt.arrays.source import ArraySource
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.state.flat import FlatState
    from asyncckpt.state.index import Index

    Bytes = NDArray[np.uint8]

_RUN: Final = 256  # small arrays copied at once


class Snapshot(Protocol):
    """The bytes of a state's arrays, by number.

    A range of bytes may extend beyond an array of less than a page. There it has zeros up to the next multiple of
    `SMALL_BOUNDARY`, and then the next array, if that is small, too.
    """

    nbytes: int
    """The memory that it holds, in bytes: buffers, encoded nodes and frozen arrays."""

    def view(self, array: int, start: int, nbytes: int) -> Sequence[Bytes] | None:
        """Return the memory of these bytes, in order, or None if they must be copied."""

    def copy_to(self, target: Bytes, array: int, start: int) -> None:
        """Copy bytes of an array, from `start` on, until `target` is full."""

    def release(self) -> None:
        """Release the memory; idempotent."""


ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


def _naming_paths(method: Callable[ParamsT, ResultT]) -> Callable[ParamsT, ResultT]:
    """Let a method of a snapshot name the path of an array that could not be copied."""

    @wraps(method)
    def named(*args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ResultT:
        try:
            return method(*args, **kwargs)
        except SourceError as error:
            snapshot: Any = args[0]
            kind = StateChangedError if isinstance(error, SourceChangedError) else LeafError
            raise kind(str(error), path=snapshot.path_of(error.source)) from error

    return named


class _SourceSnapshot:
    """What snapshots that read a state's arrays have in common."""

    def __init__(self, flat: FlatState) -> None:
        self._flat = flat
        self._sources: Mapping[int, ArraySource] | list[ArraySource] = flat.sources
        self._stable = flat.stable

    def _listed(self) -> Iterable[tuple[int, ArraySource]]:
        return enumerate(self._sources) if isinstance(self._sources, list) else self._sources.items()

    def _small(self, numbers: range) -> list[ArraySource]:
        """Return small arrays, those on devices as copies."""
        sources = [self._sources[number] for number in numbers]
        return fetched(sources) if self._flat.is_on_device else sources

    def path_of(self, source: object) -> str:
        """Return the path at which an array occurs first, for an error message."""
        number = next(number for number, each in self._listed() if each is source)
        return path_of_array(self._flat.index(), number, self._flat.root)


class LiveSnapshot(_SourceSnapshot):
    """The caller's own arrays: frozen ones, or ones that are copied block by block while the caller waits."""

    def __init__(self, flat: FlatState, *, is_frozen: bool) -> None:
        super().__init__(flat)
        self._is_frozen = is_frozen
        self.on_copy: Callable[[int, int, Bytes], None] | None = None
        """Called in several threads with the bytes that were copied, and the array and the byte at which they begin. If
        it is set, all bytes are copied that a program could change."""
        self.nbytes = flat.encoded_nbytes + (flat.array_nbytes if is_frozen else 0)

    @_naming_paths
    def view(self, array: int, start: int, nbytes: int) -> Sequence[Bytes] | None:
        """Return the array's own memory if it must not be copied first, and is contiguous."""
        if array not in self._stable and (self.on_copy is not None or not self._is_frozen):
            return None
        source = self._sources[array]
        data = None if start + nbytes > source.nbytes else view_bytes(source, start, nbytes)
        return None if data is None else [data]

    @_naming_paths
    def copy_to(self, target: Bytes, array: int, start: int) -> None:
        """Copy from the array, and from small ones after it."""
        self._copy_to(target, array, start)
        if self.on_copy is not None:
            self.on_copy(array, start, target)

    def _copy_to(self, target: Bytes, array: int, start: int) -> None:
        end = start + len(target)
        if end <= self._sources[array].nbytes:
            copy_bytes(self._sources[array], start, target)
            return
        stop, found = array, 0
        while found < end:
            found += padded_nbytes(self._sources[stop].nbytes)
            stop += 1
        target[:] = _joined(self._small(range(array, stop)))[start:end]

    def release(self) -> None:
        """Drop the references to the arrays."""
        self._sources = []


class StagedSnapshot(_SourceSnapshot):
    """Arrays copied into buffers."""

    def __init__(self, flat: FlatState, pool: BufferPool | None) -> None:
        """Allocate the buffers, which `capture` fills. Without a pool, for small states, they are plain memory."""
        super().__init__(flat)
        self._metas = flat.arrays
        self._offsets, staged_nbytes = _lay_out(flat, Pacer(yields=pool is not None))
        self._pool = pool
        if pool is None:
            self._buffers = [np.empty(staged_nbytes, np.uint8)]
            self._starts = [0]
        else:
            self._buffers = pool.take(staged_nbytes)
            self._starts = []
            at = 0
            for buffer in self._buffers:
                self._starts.append(at)
                at += len(buffer)
        self.nbytes = flat.encoded_nbytes + staged_nbytes

    @_naming_paths
    def capture(self, context: JobContext) -> None:
        """Copy the arrays, and drop the references to the caller's.

        Other threads help only with large arrays. To copy small ones is Python work, which threads cannot share.

        Raises:
            Stopped: The job was asked to stop; the caller's arrays are no longer used.
        """
        small = 0
        for first, end in self._small_runs():
            self._copy_small(first, end)
            context.pacer.pause()
            small += end - first
        if small < len(self._metas):
            context.run(lambda copy: copy(), self._large_copies())
        self._sources = {array: self._sources[array] for array in self._stable}

    @_naming_paths
    def view(self, array: int, start: int, nbytes: int) -> Sequence[Bytes] | None:
        """Return the parts of the buffers that hold these bytes."""
        if array in self._stable:
            data = view_bytes(self._sources[array], start, nbytes)
            return None if data is None else [data]
        return list(self._parts(self._offsets[array] + start, nbytes))

    @_naming_paths
    def copy_to(self, target: Bytes, array: int, start: int) -> None:
        """Copy from a stable array that is not contiguous; the others have a view."""
        copy_bytes(self._sources[array], start, target)

    def release(self) -> None:
        """Return the buffers to the pool; idempotent."""
        buffers, self._buffers, self._sources = self._buffers, [], {}
        if self._pool is not None:
            self._pool.give(buffers)

    def _parts(self, offset: int, nbytes: int) -> Iterator[Bytes]:
        """Yield the runs of memory of a range of the staged bytes."""
        number = bisect_right(self._starts, offset) - 1
        while nbytes:
            at = offset - self._starts[number]
            run = self._buffers[number][at : at + nbytes]
            yield run
            offset += len(run)
            nbytes -= len(run)
            number += 1

    def _small_runs(self) -> Iterator[tuple[int, int]]:
        """Yield runs of consecutive small arrays: the numbers of the first and of the one after the last."""
        first = 0
        for array, meta in enumerate(self._metas):
            is_small = meta.nbytes < PAGE_NBYTES
            if is_small and array - first < _RUN:
                continue
            if first < array:
                yield first, array
            first = array if is_small else array + 1
        if first < len(self._metas):
            yield first, len(self._metas)

    def _copy_small(self, first: int, end: int) -> None:
        """Copy consecutive small arrays with one call."""
        data = _joined(self._small(range(first, end)))
        start = 0
        for target in self._parts(self._offsets[first], len(data)):
            np.copyto(target, data[start : start + len(target)])
            start += len(target)

    def _large_copies(self) -> Iterator[Callable[[], None]]:
        """Yield functions that copy parts of large arrays."""
        for array, meta in enumerate(self._metas):
            if meta.nbytes >= PAGE_NBYTES and array not in self._stable:
                for start, target in self._targets(array):
                    yield partial(copy_bytes, self._sources[array], start, target)

    def _targets(self, array: int) -> Iterator[tuple[int, Bytes]]:
        """Yield the memory for an array, in runs, each with the position of its first byte."""
        start = 0
        for target in self._parts(self._offsets[array], self._sources[array].nbytes):
            yield start, target
            start += len(target)


class Check(Protocol):
    """Finds out, when all bytes of a capture have been read, whether the program has changed them."""

    def confirm(self, context: JobContext) -> None:
        """Look at the program's arrays once more.

        Raises:
            StateChangedError: They are not what was read.
            Stopped: The job was asked to stop.
        """

    def release(self) -> None:
        """Drop the references to what belongs to the program; idempotent."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A captured state: the nodes of its tree, and the bytes of its arrays."""

    flat: FlatState
    snapshot: Snapshot
    check: Check | None = field(default=None, kw_only=True)
    """What is to be done before the capture counts."""

    @classmethod
    def staged(cls, flat: FlatState, pool: BufferPool | None, context: JobContext) -> Self:
        """Copy the arrays of a state, so that the caller may change them.

        Args:
            flat: The encoded state.
            pool: The pool of the buffers; None for a small state, which gets plain memory.
            context: The context of the job.

        Raises:
            Stopped: The job was asked to stop. The caller's arrays are not used any more.
        """
        snapshot = StagedSnapshot(flat, pool)
        try:
            snapshot.capture(context)
        except BaseException:
            snapshot.release()
            raise
        flat.detach()
        return cls(flat, snapshot)

    @classmethod
    def live(cls, flat: FlatState, *, is_frozen: bool) -> Self:
        """Refer to the caller's own arrays; see `LiveSnapshot`."""
        return cls(flat, LiveSnapshot(flat, is_frozen=is_frozen))

    @property
    def index(self) -> Index:
        """The nodes, and descriptions of the arrays."""
        return self.flat.index()

    @property
    def nbytes(self) -> int:
        """The memory that it holds, in bytes."""
        return self.snapshot.nbytes

    def confirm(self, context: JobContext) -> None:
        """Find out whether the capture counts; see `Check`."""
        if self.check is not None:
            self.check.confirm(context)

    def give_back(self) -> None:
        """Return the buffers to the pool, on any thread; idempotent."""
        self.snapshot.release()
        if self.check is not None:
            self.check.release()

    def release(self) -> None:
        """Release all memory, which may take time; idempotent."""
        self.give_back()
        self.flat.release()


_ZEROS: Final = bytes(SMALL_BOUNDARY)


def padded_nbytes(nbytes: int) -> int:
    """Return the size of a small array with its padding."""
    return -(-nbytes // SMALL_BOUNDARY) * SMALL_BOUNDARY


def _joined(arrays: Sequence[ArraySource]) -> Bytes:
    """Copy small arrays one after the other, each padded with zeros to the next boundary."""
    chunks: list[Any] = []
    for array in arrays:
        chunks.append(array if isinstance(array, np.ndarray) else array.buffer())
        if gap := -array.nbytes % SMALL_BOUNDARY:
            chunks.append(_ZEROS[:gap])
    try:
        return np.frombuffer(b"".join(chunks), np.uint8)
    except (
        ValueError,
        TypeError,
        BufferError,
    ):  # not contiguous, a dtype without a buffer format, or empty
        data = np.zeros(sum(padded_nbytes(array.nbytes) for array in arrays), np.uint8)
        end = 0
        for array in arrays:
            copy_bytes(array, 0, data[end : end + array.nbytes])
            end += padded_nbytes(array.nbytes)
        return data


def staged_nbytes(flat: FlatState, pacer: Pacer) -> int:
    """Return the size of the buffers for a copy of a state, in bytes."""
    return _lay_out(flat, pacer)[1]


def _lay_out(flat: FlatState, pacer: Pacer) -> tuple[list[int], int]:
    """Lay the copied arrays out one after the other, on pages, and small ones on cache lines."""
    offsets: list[int] = []
    end = 0
    for batch in pacer.batches(flat.arrays):
        for meta in batch:
            nbytes = meta.nbytes
            if nbytes < PAGE_NBYTES:
                end = -(-end // SMALL_BOUNDARY) * SMALL_BOUNDARY
            elif len(offsets) in flat.stable:
                nbytes = 0
            else:
                end = -(-end // PAGE_NBYTES) * PAGE_NBYTES
            offsets.append(end)
            end += nbytes
    return offsets, padded_nbytes(end)


assert LARGE_NBYTES % SMALL_NBYTES == 0  # noqa: S101 - `take` relies on it
