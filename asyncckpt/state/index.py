"""Encode and decode the index: the tree of a state, and where its arrays are (docs/format.md has every byte).

1. The tree is its nodes in preorder. A container is a header with the number of its children, which follow. The bytes
   are not nested, so decoding needs no recursion.
2. The nodes are encoded in chunks, each a msgpack array of at most `CHUNK_ELEMENTS` nodes that can be decoded by
   itself, so that no call of msgpack holds the GIL for long.
3. Scalars are msgpack's own. All other nodes are ext objects with one of the codes below, whose data is the msgpack of
   their arguments (for a large int, its bytes).
4. The length of an index does not depend on the offsets in it, so a file can be laid out before they are known.
5. The index is not trusted. Nothing is allocated for a count before its elements are there. Only descriptions of dtypes
   are nested; they are bounded, and skipped over before they are decoded.
"""

from __future__ import annotations

import math
import reprlib
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from asyncckpt.arrays.adapters import FRAMEWORKS
from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.compatibility import check_compatibility
from asyncckpt.errors import CorruptCheckpointError, UnsupportedLeafError
from asyncckpt.state.boxes import Box, decode_boxes, encode_boxes
from asyncckpt.state.dtypes import dtype_from_plain, dtype_to_plain, has_alias
from asyncckpt.state.packed import TEXT_ERRORS, MsgpackStream, make_ext, read_row
from asyncckpt.state.segments import FILE, ROW, TABLE_ROWS, Segment, decode_segments, encode_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from asyncckpt.runtime.pacing import Pacer

FORMAT_VERSION: Final = 1
ALIASES: Final = "aliases"  # a dtype is an alias
FILES: Final = "files"  # segments are in several files
BOXES: Final = "boxes"  # arrays are parts of others
FEATURES: Final = frozenset({ALIASES, FILES, BOXES}) | FRAMEWORKS  # arrays of a framework, by its name
"""The features that this reader knows. An index lists those that it needs."""
_SINGLE_FILE_FEATURES: Final = frozenset({ALIASES}) | FRAMEWORKS
"""Those that it knows in the index of a single file, which is not part of a checkpoint."""

LIST: Final = 1  # n
TUPLE: Final = 2  # n
DICT: Final = 3  # n; then key, value, key, value
SET: Final = 4  # n
FROZENSET: Final = 5  # n
DEQUE: Final = 6  # (n, maxlen)
ORDERED_DICT: Final = 7  # n, as DICT
OBJECT: Final = 8  # name of a reduction; then its plain state
ARRAY: Final = 9  # number of the array
SCALAR: Final = 10  # (dtype, bytes); for str_ and bytes_: (their name, the value), since numpy drops trailing NULs
INTEGER: Final = 11  # two's complement, little-endian: ints beyond 64 bits
COMPLEX: Final = 12  # (real, imag)
BYTES: Final = 13  # number of an array of bytes
STRING: Final = 14  # number of an array of UTF-8 bytes, lone surrogates included
NUMBERS: Final = 15  # (LIST or TUPLE, "<i8" or "<f8", bytes): ints or floats of one type
NUMBERS_ARRAY: Final = 16  # (LIST or TUPLE, number of an array)
FRAMEWORK_ARRAY: Final = 17  # (number of the array, framework, dtype or "", flags): see arrays/adapters.py

CONTAINERS: Final = frozenset({LIST, TUPLE, DICT, SET, FROZENSET, DEQUE, ORDERED_DICT})
SETS: Final = frozenset({SET, FROZENSET})  # whose elements are hashed
MAPPINGS: Final = frozenset({DICT, ORDERED_DICT})
MADE_OF_ARRAYS: Final = frozenset({BYTES, STRING, NUMBERS_ARRAY})  # their last argument is the number of an array

_BIN_HEADER_NBYTES: Final = 5  # a bin32
_MAX_DIMENSIONS: Final = 64
_MAX_NBYTES: Final = (1 << 63) - 1
_MAX_DTYPE_NBYTES: Final = 1 << 18
_INTS: Final = {int}

Node = Any
"""None, a bool, int, float, str, bytes, or a `msgpack.ExtType` with one of the codes above."""


def ext(code: int, argument: object) -> msgpack.ExtType:
    """Make an ext node."""
    return msgpack.ExtType(code, msgpack.packb(argument, unicode_errors=TEXT_ERRORS))


def argument_of(node: msgpack.ExtType) -> Any:
    """Return the arguments of an ext node.

    Raises:
        CorruptCheckpointError: They cannot be decoded.
    """
    try:
        if node.code == SCALAR:
            return _scalar_argument(node.data)
        return msgpack.unpackb(node.data, unicode_errors=TEXT_ERRORS, use_list=False, max_array_len=4, max_map_len=0)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        message = f"the index is damaged: node {node.code}: {error}"
        raise CorruptCheckpointError(message) from error


def _scalar_argument(data: bytes) -> Any:
    stream = MsgpackStream(memoryview(data))
    if stream.read("read_array_header") != 2:  # noqa: PLR2004 - (dtype, bytes)
        raise ValueError("a scalar is not a pair of a dtype and bytes")
    return stream.read_nested(_MAX_DTYPE_NBYTES), stream.read("unpack")


def pack_chunk(nodes: list[Node]) -> bytes:
    """Encode nodes as a chunk."""
    packed: bytes = msgpack.packb(nodes, unicode_errors=TEXT_ERRORS)
    return packed


def read_nodes(
    chunks: Iterable[bytes], pacer: Pacer, make_ext: Callable[[int, bytes], Node] = make_ext
) -> Iterator[Node]:
    """Decode the nodes of a tree, in preorder.

    Args:
        chunks: The nodes.
        pacer: Paused between chunks.
        make_ext: Makes an ext node from its code and data; by default, a `msgpack.ExtType`.

    Raises:
        CorruptCheckpointError: A chunk cannot be decoded, or is too long.
    """
    for chunk in chunks:
        pacer.pause()
        try:
            nodes = read_row(chunk, pacer, make_ext=make_ext)
        except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
            message = f"the index is damaged: {error}"
            raise CorruptCheckpointError(message) from error
        for batch in pacer.batches(nodes):
            yield from batch


def find_contents(chunks: Iterable[bytes], pacer: Pacer) -> set[int]:
    """Return the numbers of the arrays that hold the contents of strings and other leaves.

    Raises:
        CorruptCheckpointError: A chunk, or such a node, cannot be decoded.
    """

    def only_made_of_arrays(code: int, data: bytes) -> Node:
        return make_ext(code, data) if code in MADE_OF_ARRAYS else None

    found = set()
    for node in read_nodes(chunks, pacer, only_made_of_arrays):
        if type(node) is msgpack.ExtType:
            argument = argument_of(node)
            number = argument[-1] if type(argument) is tuple and argument else argument
            if type(number) is int:
                found.add(number)
    return found


class Index(NamedTuple):
    """The tree of a state, and the arrays it refers to."""

    chunks: Sequence[bytes]
    arrays: Sequence[ArrayMeta]
    files: Sequence[str] = ()
    """The names of the other files that hold arrays' bytes, besides the one that holds the index."""
    boxes: Mapping[int, Box] = MappingProxyType({})
    """Where arrays that are parts of others lie in them, by their numbers."""
    frameworks: Collection[str] = ()
    """The frameworks that arrays belong to."""

    @property
    def whole_arrays(self) -> set[int]:
        """The numbers of the arrays that nodes may refer to: all that are not parts of others."""
        return set(range(len(self.arrays))) - self.boxes.keys()

    def encode(self, segments: Sequence[Segment] | NDArray[np.uint64], pacer: Pacer) -> list[bytes]:
        """Return the index as a list of chunks, which together are one msgpack map."""
        return IndexEncoder(self, pacer).encode(segments)


class IndexEncoder:
    """Encodes an index whose segments are not known yet. All other parts are encoded at once."""

    def __init__(self, index: Index, pacer: Pacer) -> None:
        self._pacer = pacer
        self._pack = msgpack.Packer(unicode_errors=TEXT_ERRORS)
        dtypes: list[object] = []
        tables = self._encode_arrays(index.arrays, dtypes)
        self._has_files = bool(index.files)
        flags = {ALIASES: any(map(has_alias, dtypes)), FILES: self._has_files, BOXES: bool(index.boxes)}
        features = [name for name in flags if flags[name]] + sorted(index.frameworks)
        names: list[object] = ["asyncckpt", FORMAT_VERSION, "features", features]
        names += ["dtypes", dtypes]
        if self._has_files:
            names += ["files", list(index.files)]
        entries = 6 + 2 * self._has_files + bool(index.boxes)
        self._chunks = [self._pack.pack_map_header(entries) + b"".join(map(self._pack.pack, names))]
        self._add_bins("tree", index.chunks)
        self._add_bins("arrays", tables)
        if index.boxes:
            self._add_bins("boxes", encode_boxes(index.boxes, pacer))
        self._nbytes = sum(map(len, self._chunks))

    def nbytes(self, segments: int) -> int:
        """Return the length of the index with this number of segments, in bytes."""
        bins = -(-segments // TABLE_ROWS)
        tables = {"segments": ROW.itemsize} | ({"segment_files": FILE.itemsize} if self._has_files else {})
        headers = sum(len(self._pack.pack(name)) + len(self._pack.pack_array_header(bins)) for name in tables)
        return self._nbytes + headers + len(tables) * bins * _BIN_HEADER_NBYTES + segments * sum(tables.values())

    def encode(self, segments: Sequence[Segment] | NDArray[np.uint64]) -> list[bytes]:
        """Return the index as a list of chunks, which together are one msgpack map.

        Segments may also be the rows of an array of shape (count, 3), or (count, 4) with the numbers of their files.
        """
        tables, files = encode_segments(segments, self._pacer, has_files=self._has_files)
        count = len(self._chunks)
        self._add_bins("segments", tables)
        if self._has_files:
            self._add_bins("segment_files", files)
        chunks, self._chunks = self._chunks, self._chunks[:count]
        return chunks

    def _encode_arrays(self, arrays: Sequence[ArrayMeta], dtypes: list[object]) -> list[bytes]:
        """Encode the table of arrays, and list the dtypes that it refers to."""
        known: dict[str, int] = {}
        rows: dict[int, tuple[int, ...]] = {}  # by the id of the description, which many arrays share
        tables = []
        for start in range(0, len(arrays), TABLE_ROWS):
            table = []
            for meta in arrays[start : start + TABLE_ROWS]:
                row = rows.get(id(meta))
                if row is None:
                    plain = dtype_to_plain(meta.dtype)
                    if len(self._pack.pack(plain)) > _MAX_DTYPE_NBYTES:
                        raise UnsupportedLeafError(f"a dtype of {len(meta.dtype.names or ())} fields", path="")
                    number = known.setdefault(repr(plain), len(dtypes))
                    if number == len(dtypes):
                        dtypes.append(plain)
                    row = rows[id(meta)] = (number, *meta.shape)
                table.append(row)
            tables.append(msgpack.packb(table))
            self._pacer.pause()
        return tables

    def _add_bins(self, name: str, bins: Sequence[bytes]) -> None:
        self._chunks.append(self._pack.pack(name) + self._pack.pack_array_header(len(bins)))
        for each in bins:
            self._chunks.append(b"\xc6" + len(each).to_bytes(4, "big"))
            self._chunks.append(each)


def decode_index(
    data: memoryview, *, file_nbytes: int, pacer: Pacer, other_files: Mapping[str, int] | None = None
) -> tuple[Index, list[Segment]]:
    """Decode an index and check what it claims.

    The segments come back sorted by file and offset; they lie inside their files, do not overlap, and add up to their
    arrays. Boxes tile the arrays that they are parts of.

    Args:
        data: The index's bytes.
        file_nbytes: Size of the file, in bytes.
        pacer: Paused between chunks.
        other_files: The sizes of the files that the index may name besides, in bytes, by name. By default it describes
            a file that stands alone: then it may have neither other files nor boxes.

    Raises:
        CorruptCheckpointError: It is damaged, or claims what cannot be.
        UnsupportedFormatError: A later release wrote it, or a dtype needs a package that is not installed.
    """
    try:
        return _decode_index(data, file_nbytes, other_files, pacer)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        message = f"the index is damaged: {error}"
        raise CorruptCheckpointError(message) from error
    except msgpack.exceptions.UnpackException as error:
        message = f"the index is truncated or damaged: {error!r}"
        raise CorruptCheckpointError(message) from error


def _decode_index(
    data: memoryview, file_nbytes: int, other_files: Mapping[str, int] | None, pacer: Pacer
) -> tuple[Index, list[Segment]]:
    stream = MsgpackStream(data, pacer)
    found: dict[str, Any] = {}
    known = _SINGLE_FILE_FEATURES if other_files is None else FEATURES
    for _ in range(stream.read("read_map_header")):
        key = _expect(str, stream.read("unpack"), "a key")
        if key in found:
            _refuse(f"the key {reprlib.repr(key)} occurs twice")
        found[key] = _read_entry(stream, key)
        # Before anything else is read: the version is the first key.
        check_compatibility(
            "the index", found.get("asyncckpt"), found.get("features", ()), reads=FORMAT_VERSION, known=known
        )
    if "features" not in found:
        _refuse("it does not list the features that it needs")
    arrays = _decode_arrays(found["arrays"], found["dtypes"], pacer)
    names = found["files"] if FILES in found["features"] else []
    sizes = [file_nbytes, *(_size_of(name, other_files or {}) for name in names)]
    if len(set(names)) != len(names):
        _refuse("it names a file twice")
    boxes = decode_boxes(found["boxes"], arrays, pacer) if BOXES in found["features"] else {}
    wholes = {box.whole for box in boxes.values()}
    array_sizes: list[int] = []
    for batch in pacer.batches(arrays):
        array_sizes += [meta.nbytes for meta in batch]
    for whole in wholes:
        array_sizes[whole] = 0
    segment_files = found["segment_files"] if names else None
    segments = decode_segments(found["segments"], segment_files, array_sizes, sizes, pacer)
    return Index(found["tree"], arrays, names, boxes, FRAMEWORKS.intersection(found["features"])), segments


def _size_of(name: str, files: Mapping[str, int]) -> int:
    if name not in files:
        _refuse(f"it names the file {reprlib.repr(name)}, which the checkpoint does not have")
    return files[name]


def _read_entry(stream: MsgpackStream, key: str) -> Any:
    if key == "asyncckpt":
        return stream.read("unpack")
    if key not in _ENTRIES:
        return stream.read("skip")
    count = stream.read("read_array_header")
    if key == "dtypes":
        return [_array_dtype(stream.read_nested(_MAX_DTYPE_NBYTES)) for _ in range(count)]
    return [_expect(_ENTRIES[key], stream.read("unpack"), key) for _ in range(count)]


_ENTRIES: Final = {"features": str, "dtypes": object, "files": str} | dict.fromkeys(
    ("tree", "arrays", "boxes", "segments", "segment_files"), bytes
)
"""The types of the elements of the lists in an index."""


def _decode_arrays(tables: list[bytes], dtypes: list[np.dtype[Any]], pacer: Pacer) -> list[ArrayMeta]:
    arrays: list[ArrayMeta] = []
    known: dict[tuple[Any, ...], ArrayMeta] = {}
    for table in tables:
        pacer.pause()
        for batch in pacer.batches(map(tuple, read_row(table, pacer, max_array_len=_MAX_DIMENSIONS + 1))):
            is_plain = {*map(type, chain.from_iterable(batch))} <= _INTS  # since True and 1.0 equal 1
            for row in batch:
                meta = known.get(row)
                if meta is None or not is_plain:
                    meta = known[row] = _array_meta(row, dtypes)
                arrays.append(meta)
    return arrays


def _array_meta(row: tuple[Any, ...], dtypes: list[np.dtype[Any]]) -> ArrayMeta:
    number, *shape = row
    if any(type(n) is not int or n < 0 for n in row):
        _refuse(f"an array has the shape {reprlib.repr(shape)}")
    dtype = dtypes[number]
    # As numpy counts: even the shape of an empty array must not be too large.
    if math.prod(n or 1 for n in shape) * max(dtype.itemsize, 1) > _MAX_NBYTES:
        _refuse(f"an array has the shape {reprlib.repr(shape)}, which is too large")
    return ArrayMeta(dtype, tuple(shape))


def _array_dtype(plain: Any) -> np.dtype[Any]:
    dtype = dtype_from_plain(plain)
    if dtype.subdtype is not None:
        _refuse(f"an array of {dtype}: a dtype with dimensions of its own")
    return dtype


def _expect(type_: type, value: object, what: str) -> Any:
    if type(value) is not type_:
        _refuse(f"{what} holds a {type(value).__name__}")
    return value


def _refuse(reason: str) -> None:
    message = f"the index is damaged: {reason}"
    raise CorruptCheckpointError(message)
