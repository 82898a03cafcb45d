"""Values as stores take and return them.

1. Every kind of store takes the same captured value: the nodes of its tree and the bytes of its arrays, encoded as in a
   checkpoint. So a value comes back the same from all of them.
2. A value that is read consists of new objects; no two reads share anything.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgpack
import numpy as np

from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.arrays.source import bytes_of
from asyncckpt.arrays.strided import flat_bytes, scatter
from asyncckpt.errors import warn
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.memory import SMALL_BOUNDARY
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.capture import Capture
from asyncckpt.state.decode import Decoder
from asyncckpt.state.encode import flatten
from asyncckpt.state.flat import FlatState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from asyncckpt.disk.write_blocks import ArrayBytes
    from asyncckpt.runtime.buffers import BufferPool
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.state.capture import Snapshot

Names: TypeAlias = "dict[Any, Any] | bool | None"
"""The keys of a dict, each with the names of its value; None for a value that is not a dict; False if not known."""


class Found(NamedTuple):
    """A value that was read."""

    value: Any
    unknown_types: Mapping[str, str]
    """Names of types whose objects came back as plain data, each with the path of the first object."""


_MAX_NAMES: Final = 256
_MAX_DEPTH: Final = 32
_COPY_NBYTES: Final = 1 << 20
_ZEROS: Final = bytes(SMALL_BOUNDARY)


@dataclass(frozen=True, slots=True)
class CapturedValue(Capture):
    """A value as a store takes it."""

    names: Names
    _packed: PackedValue | None = None

    @classmethod
    def of_index(
        cls, index: ix.Index, snapshot: Snapshot, names: Names, packed: PackedValue | None = None
    ) -> CapturedValue:
        """Combine an index, where the bytes of its arrays are, and its names."""
        return cls(FlatState(chunks=list(index.chunks), arrays=list(index.arrays)), snapshot, names, packed)

    @classmethod
    def of(cls, capture: Capture) -> CapturedValue:
        """Add the names of its dicts to a capture."""
        return cls(capture.flat, capture.snapshot, names_of(capture.flat.chunks))

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
        return PackedValue.of(index, arrays, self.names)


class PackedValue:
    """A small value in memory, in few objects that a garbage collection walks over, because there may be many."""

    __slots__ = ("_arrays", "_index", "names", "stored_nbytes")

    def __init__(self, index: tuple[Any, ...], arrays: bytes, names: Names, stored_nbytes: int) -> None:
        self._index = index
        self._arrays = arrays
        self.names = names
        self.stored_nbytes = stored_nbytes

    @classmethod
    def of(cls, index: ix.Index, arrays: Iterable[bytes], names: Names) -> PackedValue:
        """Pack an index and the bytes of its arrays."""
        padded = b"".join([part for data in arrays for part in (data, _ZEROS[: -len(data) % SMALL_BOUNDARY])])
        return cls(pack_index(index), padded, names, _stored_nbytes(index))

    @classmethod
    def of_flat(cls, flat: FlatState) -> PackedValue:
        """Pack a flattened value, so that the caller may change it."""
        return cls.of(flat.index(), map(bytes_of, flat.sources), names_of(flat.chunks))

    def share(self) -> PackedValue:
        """Return another one of the same memory, to be released by itself."""
        return PackedValue(self._index, self._arrays, self.names, self.stored_nbytes)

    def unpack(self) -> CapturedValue:
        """Return it as a store takes it."""
        index = unpack_index(self._index)
        offsets = accumulate((-(-meta.nbytes // SMALL_BOUNDARY) * SMALL_BOUNDARY for meta in index.arrays), initial=0)
        arrays = ArraysInMemory(self._arrays, dict(enumerate(offsets)))
        return CapturedValue.of_index(index, arrays, self.names, self)

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
    """Return an index as one tuple of bytes, dtypes and ints, which a garbage collection does not look into."""
    arrays = (each for meta in index.arrays for each in (meta.dtype, len(meta.shape), *meta.shape))
    return (len(index.chunks), *index.chunks, *arrays)


def unpack_index(packed: tuple[Any, ...]) -> ix.Index:
    """Return the index that was packed."""
    count, *parts = packed
    arrays = []
    at = count
    while at < len(parts):
        dtype, behind = parts[at], at + 2 + parts[at + 1]
        arrays.append(ArrayMeta(dtype, tuple(parts[at + 2 : behind])))
        at = behind
    return ix.Index(parts[:count], arrays)


def capture(flat: FlatState, pool: BufferPool | None, context: JobContext) -> CapturedValue:
    """Copy the arrays of a flattened value, so that the caller may change them.

    Raises:
        Stopped: The job was asked to stop.
    """
    with young_collections_only():
        return CapturedValue.of(Capture.staged(flat, pool, context))


def capture_live(value: object, key: str, work: JobContext) -> CapturedValue:
    """Capture a value without a copy, for a caller that waits until it has been stored.

    Raises:
        UnsupportedLeafError: It cannot be saved; the message names the path.
    """
    with young_collections_only():
        return capture_live_flat(flatten(value, root=key, pacer=work.pacer))


def capture_live_flat(flat: FlatState) -> CapturedValue:
    """Capture a flattened value, as `capture_live` does."""
    return CapturedValue.of(Capture.live(flat, is_frozen=True))


def receive(found: Found, key: str) -> Any:
    """Return a value that was read, and warn of the types whose objects came back as plain data."""
    for name, path in found.unknown_types.items():
        message = (
            f"{key!r}: {path or 'the value'} was saved as {name}, which is not registered here, and comes back as plain"
            " data: use asyncckpt.register_type"
        )
        warn(message)
    return found.value


def build_value(index: ix.Index, arrays: Mapping[int, NDArray[Any]], pacer: Pacer) -> Found:
    """Build a value from its nodes and its arrays, which become parts of it.

    Raises:
        CorruptCheckpointError: The nodes are not a tree.
        CheckpointError: An object could not be built from its state.
    """
    with young_collections_only():
        decoder = Decoder(index, pacer)
        return Found(decoder.decode(arrays), decoder.unknown_types)


def build_captured(captured: CapturedValue, pacer: Pacer) -> Found:
    """Build a value from a captured one, which does not change."""
    index = captured.index
    return build_value(index, copies_of(index, captured.snapshot, pacer), pacer)


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


def names_of(chunks: list[bytes]) -> Names:
    """Return the names of an encoded value; False if they are too many.

    They are decoded, instead of taken from the value, so that they are those that are stored even if another thread
    changes the value meanwhile.
    """
    if not chunks or len(chunks[0]) > 1 << 16:
        return False
    nodes = iter(ix.read_nodes(chunks[:1], Pacer(yields=False)))
    try:
        return _Names(nodes).read(0)
    except (StopIteration, _UnknownError):
        return False


def plain_names(value: object) -> Names:
    """Return the names of a value, up to the same number and depth as `names_of`."""
    left = _MAX_NAMES

    def read(value: object, depth: int) -> Names:
        nonlocal left
        if type(value) not in (dict, OrderedDict):
            return None
        left -= len(value)  # type: ignore[arg-type]
        if left < 0 or depth > _MAX_DEPTH:
            raise _UnknownError
        return {key: read(child, depth + 1) for key, child in value.items()}  # type: ignore[attr-defined]

    try:
        return read(value, 0)
    except _UnknownError:
        return False


def flat_names(names: Names) -> object:
    """Return names as lists of keys and their names, because common msgpack readers refuse maps with other than str."""
    if not isinstance(names, dict):
        return names
    return [each for key, below in names.items() for each in (key, flat_names(below))]


def nested_names(flat: Any) -> Names:
    """Return names from what `flat_names` returned; False if they are damaged."""
    if flat is None or type(flat) is not list:
        return None if flat is None else False
    try:
        return {key: nested_names(below) for key, below in zip(flat[::2], flat[1::2], strict=True)}
    except (TypeError, ValueError, RecursionError):
        return False


class _UnknownError(Exception):
    pass


class _Names:
    def __init__(self, nodes: Iterator[ix.Node]) -> None:
        self._nodes = nodes
        self._left = _MAX_NAMES

    def read(self, depth: int) -> Names:
        node = next(self._nodes)
        if type(node) is not msgpack.ExtType or node.code not in ix.MAPPINGS:
            if depth:
                self._skip(node)
            return None
        if depth > _MAX_DEPTH:
            raise _UnknownError
        found: dict[Any, Any] = {}
        for _ in range(ix.argument_of(node)):
            key = next(self._nodes)
            self._left -= 1
            if type(key) is msgpack.ExtType or self._left < 0:
                raise _UnknownError
            found[key] = self.read(depth + 1)
        return found

    def _skip(self, node: ix.Node) -> None:
        left = _children(node)
        while left:
            left += _children(next(self._nodes)) - 1


def _children(node: ix.Node) -> int:
    if type(node) is not msgpack.ExtType:
        return 0
    if node.code == ix.OBJECT:
        return 1
    if node.code not in ix.CONTAINERS:
        return 0
    argument = ix.argument_of(node)
    count: int = argument[0] if node.code == ix.DEQUE else argument
    return 2 * count if node.code in ix.MAPPINGS else count
