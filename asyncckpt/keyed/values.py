"""Values as stores take and return them.

1. Every kind of store takes the same captured value: the nodes of its tree and the bytes of its arrays, encoded as in a
   checkpoint. So a value comes back the same from all of them.
2. A value that is read consists of new objects; no two reads share anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.arrays.source import bytes_of
from asyncckpt.arrays.strided import flat_bytes, scatter
from asyncckpt.errors import warn
from asyncckpt.keyed.key_tree import key_tree_of
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.memory import SMALL_BOUNDARY
from asyncckpt.state import index as ix
from asyncckpt.state.capture import Capture
from asyncckpt.state.decode import Decoder
from asyncckpt.state.encode import flatten
from asyncckpt.state.flat import FlatState
from asyncckpt.state.types import advice_on_unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from asyncckpt.disk.write_blocks import ArrayBytes
    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.runtime.buffers import BufferPool
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state.capture import Snapshot


class Found(NamedTuple):
    """A value that was read."""

    value: Any
    unknown_types: Mapping[str, str]
    """Names of types whose objects came back as plain data, each with the path of the first object."""


_COPY_NBYTES: Final = 1 << 20
_ZEROS: Final = bytes(SMALL_BOUNDARY)


@dataclass(frozen=True, slots=True)
class CapturedValue(Capture):
    """A value as a store takes it."""

    key_tree: KeyTree
    _packed: PackedValue | None = None

    @classmethod
    def of_index(
        cls, index: ix.Index, snapshot: Snapshot, key_tree: KeyTree, packed: PackedValue | None = None
    ) -> CapturedValue:
        """Combine an index, where the bytes of its arrays are, and its key tree."""
        flat = FlatState(chunks=list(index.chunks), arrays=list(index.arrays), frameworks=set(index.frameworks))
        return cls(flat, snapshot, key_tree, packed)

    @classmethod
    def of(cls, capture: Capture) -> CapturedValue:
        """Add its key tree to a capture."""
        return cls(capture.flat, capture.snapshot, key_tree_of(capture.flat.chunks))

    @property
    def stored_nbytes(self) -> int:
        """How many bytes a store needs for it, at least: those of its arrays and its nodes."""
        return _stored_nbytes(self.index)

    def pack(self) -> PackedValue:
        """Return a copy for a store that keeps a small value in memory."""
        if self._packed is not None:
            return self._packed.share()
        index = self.index
        arrays = (b"".join(run.tobytes() for run in runs_of(self, number)) for number in range(len(index.arrays)))
        return PackedValue.of(index, arrays, self.key_tree)


class PackedValue:
    """A small value in memory, in few objects that a garbage collection walks over, because there may be many."""

    __slots__ = ("_arrays", "_index", "held_nbytes", "key_tree", "stored_nbytes")

    def __init__(self, index: tuple[Any, ...], arrays: bytes, key_tree: KeyTree, stored_nbytes: int) -> None:
        self._index = index
        self._arrays = arrays
        self.key_tree = key_tree
        self.stored_nbytes = stored_nbytes
        self.held_nbytes = len(arrays) + sum(map(len, index[2 : 2 + index[1]])) + 8 * len(index)
        """How much memory that takes, padding included."""

    @classmethod
    def of(cls, index: ix.Index, arrays: Iterable[bytes], key_tree: KeyTree) -> PackedValue:
        """Pack an index and the bytes of its arrays."""
        padded = b"".join([part for data in arrays for part in (data, _ZEROS[: -len(data) % SMALL_BOUNDARY])])
        return cls(pack_index(index), padded, key_tree, _stored_nbytes(index))

    @classmethod
    def of_flat(cls, flat: FlatState) -> PackedValue:
        """Pack a flattened value, so that the caller may change it."""
        return cls.of(flat.index(), map(bytes_of, flat.sources), key_tree_of(flat.chunks))

    def share(self) -> PackedValue:
        """Return another one of the same memory, to be released by itself."""
        return PackedValue(self._index, self._arrays, self.key_tree, self.stored_nbytes)

    def unpack(self) -> CapturedValue:
        """Return it as a store takes it."""
        index = unpack_index(self._index)
        offsets = accumulate((-(-meta.nbytes // SMALL_BOUNDARY) * SMALL_BOUNDARY for meta in index.arrays), initial=0)
        arrays = ArraysInMemory(self._arrays, dict(enumerate(offsets)))
        return CapturedValue.of_index(index, arrays, self.key_tree, self)

    def release(self) -> None:
        """Let go of the memory; more than once does no harm."""
        self._index, self._arrays = (), b""


class ArraysInMemory:
    """The arrays of a small value, in one run of memory."""

    def __init__(self, data: bytes, offsets: Mapping[int, int]) -> None:
        """Take the memory, and where in it each array begins; one without bytes needs no offset."""
        self._data = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
        self._offsets = offsets
        self.nbytes = len(data)

    def view(self, array: int, start: int, nbytes: int) -> Sequence[NDArray[np.uint8]]:
        """See `Snapshot`."""
        begin = self._offsets.get(array, 0) + start
        return [self._data[begin : begin + nbytes]]

    def copy_to(self, target: NDArray[np.uint8], array: int, start: int) -> None:
        """See `Snapshot`."""
        target[:] = self.view(array, start, len(target))[0]

    def release(self) -> None:
        """See `Snapshot`."""
        self._data = np.empty(0, np.uint8)


def _stored_nbytes(index: ix.Index) -> int:
    return sum(meta.nbytes for meta in index.arrays) + sum(map(len, index.chunks))


def pack_index(index: ix.Index) -> tuple[Any, ...]:
    """Return an index as one tuple of bytes, strings, dtypes and ints, which no garbage collection looks into."""
    arrays = (each for meta in index.arrays for each in (meta.dtype, len(meta.shape), *meta.shape))
    return (",".join(index.frameworks), len(index.chunks), *index.chunks, *arrays)


def unpack_index(packed: tuple[Any, ...]) -> ix.Index:
    """Return the index that was packed."""
    frameworks, count, *parts = packed
    arrays = []
    at = count
    while at < len(parts):
        dtype, behind = parts[at], at + 2 + parts[at + 1]
        arrays.append(ArrayMeta(dtype, tuple(parts[at + 2 : behind])))
        at = behind
    return ix.Index(parts[:count], arrays, frameworks=frameworks.split(",") if frameworks else ())


def capture(flat: FlatState, pool: BufferPool | None, context: JobContext) -> CapturedValue:
    """Copy the arrays of a flattened value, so that the caller may change them.

    Raises:
        Stopped: The job was asked to stop.
    """
    with young_collections_only():
        return CapturedValue.of(Capture.staged(flat, pool, context))


def capture_live(value: object, key: str, context: JobContext) -> CapturedValue:
    """Capture a value without a copy, for a caller that waits until it has been stored.

    Raises:
        UnsupportedLeafError: It cannot be saved; the message names the path.
    """
    with young_collections_only():
        return capture_live_flat(flatten(value, root=key, pacer=context.pacer))


def capture_live_flat(flat: FlatState) -> CapturedValue:
    """Capture a flattened value, as `capture_live` does."""
    return CapturedValue.of(Capture.live(flat, is_frozen=True))


def receive(found: Found, key: str) -> Any:
    """Return a value that was read, and warn of the types whose objects came back as plain data."""
    for name, path in found.unknown_types.items():
        message = (
            f"{key!r}: {path or 'the value'} was saved as {name}, which is not registered here, and comes back as plain"
            f" data: {advice_on_unknown(name)}"
        )
        warn(message)
    return found.value


def build_value(
    index: ix.Index, arrays: Mapping[int, NDArray[Any]], pacer: Pacer, *, keeps_kinds: bool = True
) -> Found:
    """Build a value from its nodes and its arrays, which become parts of it.

    Raises:
        CorruptCheckpointError: The nodes are not a tree.
        CheckpointError: An object could not be built from its state.
    """
    with young_collections_only():
        decoder = Decoder(index, pacer, keeps_kinds=keeps_kinds)
        return Found(decoder.decode(arrays), decoder.unknown_types)


def build_captured(captured: CapturedValue, pacer: Pacer, *, keeps_kinds: bool = True) -> Found:
    """Build a value from a captured one, which does not change."""
    index = captured.index
    return build_value(index, copies_of(index, captured.snapshot, pacer), pacer, keeps_kinds=keeps_kinds)


def copies_of(index: ix.Index, source: ArrayBytes, pacer: Pacer) -> dict[int, NDArray[Any]]:
    """Return copies of the arrays of a value."""
    arrays = {}
    for number, meta in enumerate(index.arrays):
        array: NDArray[Any] = np.ndarray(meta.shape, meta.dtype)
        memory = flat_bytes(array)
        start = 0
        for run in _runs(source, number, meta.nbytes):
            if memory is not None:
                memory[start : start + len(run)] = run
            else:
                scatter(array, start, run)
            start += len(run)
            pacer.pause()
        arrays[number] = array
    return arrays


def runs_of(captured: CapturedValue, number: int, nbytes: int = _COPY_NBYTES) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of an array in C order, in runs of at most `nbytes`, each valid until the next is requested."""
    return _runs(captured.snapshot, number, captured.index.arrays[number].nbytes, nbytes)


def _runs(source: ArrayBytes, number: int, total: int, nbytes: int = _COPY_NBYTES) -> Iterator[NDArray[np.uint8]]:
    spare: NDArray[np.uint8] | None = None
    for start in range(0, total, nbytes):
        count = min(nbytes, total - start)
        views = source.view(number, start, count)
        if views is not None:
            yield from views
            continue
        if spare is None:
            spare = np.empty(min(nbytes, total), np.uint8)
        source.copy_to(spare[:count], number, start)
        yield spare[:count]
