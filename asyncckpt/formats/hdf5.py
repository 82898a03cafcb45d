"""state.h5: an ordinary HDF5 file, for every HDF5 reader there is (docs/format.md has the mapping).

1. h5py writes metadata only, into a `SparseFile`. Datasets are allocated early and never filled; the arrays' bytes are
   placed by the plan at the offsets that HDF5 chose. So an array has one segment, of any size.
2. Every array is a dataset and every key a name. Python leaves are mirrored as attributes or small datasets, up to
   `MAX_LEAVES` in a file; the index, which is the dataset `/__asyncckpt__`, has them all.
3. Below `MAX_DEPTH` and beyond what the tree names, arrays lie in the group `/__asyncckpt_arrays__`, by number.
4. Attributes of our own begin with `__asyncckpt`, which no user's name does (`_hdf5_names`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5fd, h5g, h5p, h5s, h5t

from asyncckpt.disk.plan import FilePlan, Piece, Span, align
from asyncckpt.formats import _hdf5_names as names
from asyncckpt.formats._hdf5_types import ElementTypes
from asyncckpt.formats._sparse import SparseFile
from asyncckpt.memory import PAGE_NBYTES
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import dtype_from_plain, is_extension

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from asyncckpt.workers import Pacer

MAX_LEAVES: Final = 2048
"""Python leaves, and containers without arrays, that are mirrored in one file."""
MAX_ENTRIES: Final = 1024
"""Entries of a container whose Python leaves are mirrored."""
MAX_DEPTH: Final = 64
"""Containers within containers that are groups within groups."""

INDEX_NAME: Final = b"__asyncckpt__"
ARRAYS_NAME: Final = b"__asyncckpt_arrays__"
ROOT_LEAF: Final = "value"
_KIND: Final = b"__asyncckpt_kind__"
_TYPE: Final = b"__asyncckpt_type__"
_DTYPE: Final = b"__asyncckpt_dtype__"
_SHAPE: Final = b"__asyncckpt_shape__"
_KEYS: Final = b"__asyncckpt_keys__"
_MAXLEN: Final = b"__asyncckpt_maxlen__"
_PARTIAL: Final = b"__asyncckpt_partial__"
_FORMAT: Final = b"__asyncckpt_format__"
_LONG_NAME: Final = "__asyncckpt_name_{}__"

_MAX_RANK: Final = 32
_LEAF_MAX_NBYTES: Final = 1 << 15  # larger leaves are contiguous datasets: an attribute or object header ends at 64 KiB
_ARRAY_KINDS: Final = {ix.ARRAY: None, ix.BYTES: "bytes", ix.STRING: "str"}
_NATIVE_SCALARS: Final = "biufc"


class _Hdf5:
    file_name = "state.h5"

    def plan(self, index: ix.Index, pacer: Pacer) -> FilePlan:
        """Lay out the file; see `asyncckpt.formats.base.Format`."""
        file = SparseFile(pacer)
        writer = _Writer(file, index, pacer)
        try:
            writer.write_tree()
            segments = writer.segments
            chunks = index.encode(segments, pacer)
            index_nbytes = sum(map(len, chunks))
            index_offset = writer.write_index(index_nbytes)
        except BaseException:
            file.is_discarded = True
            raise
        finally:
            writer.close()
        pacer.pause()
        data = [Piece(s.offset, s.nbytes, Span(s.array, 0)) for s in segments]
        offset = index_offset
        for chunk in chunks:
            data.append(Piece(offset, len(chunk), chunk))
            offset += len(chunk)
        data.sort(key=lambda piece: piece.offset)
        pieces = list(_merge(file.runs(), data, pacer))
        end = max(file.nbytes, pieces[-1].offset + pieces[-1].nbytes)
        return FilePlan(align(end, PAGE_NBYTES), pieces, index_offset, index_nbytes)


@dataclass(slots=True, eq=False)
class _Frame:
    """A container whose entries are being read."""

    parent: _Frame | None
    code: int
    left: int
    """Entries to come."""
    depth: int
    is_shown: bool
    """Whether it is a group of its own accord, not only because of arrays in it."""
    mirrors: bool
    """Whether its Python leaves become attributes and datasets."""
    tags: tuple[str, ...] = ()
    maxlen: int | None = None
    group: Any = None
    path: bytes = b""
    key: names.Key = -1
    among_ints: bool = False
    is_partial: bool = False
    literals: set[str] | None = None


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A small value, ready to be written."""

    type_id: Any
    space: Any
    data: NDArray[Any] | None
    kind: str | None = None
    """What a dataset has to say of it, and an attribute could not."""
    is_dataset: bool = False
    """Whether it cannot be an attribute, because something has to be said of it."""
    note: str | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an array lies, and what is said there of it."""

    path: bytes
    tags: tuple[str, ...]
    kind: str | None


class _Writer:
    """Writes the metadata of one file. `segments` says where the arrays have to be put."""

    def __init__(self, file: SparseFile, index: ix.Index, pacer: Pacer) -> None:
        self._index = index
        self._pacer = pacer
        self.segments: list[ix.Segment] = []
        self._places: dict[int, _Place] = {}
        self._leaves_left = MAX_LEAVES
        self._elements = ElementTypes()
        self._spaces: dict[tuple[int, ...], Any] = {}
        self._text = h5t.py_create(h5py.string_dtype(), logical=True)
        self._text_in_memory = h5t.py_create(h5py.string_dtype())
        self._int = h5t.NATIVE_INT64
        self._leaf_types = {kind: h5t.py_create(np.dtype(kind), logical=True) for kind in (bool, float, complex)}
        self._scalar = h5s.create(h5s.SCALAR)
        self._null = h5s.create(h5s.NULL)
        self._utf8_link = h5p.create(h5p.LINK_CREATE)
        self._utf8_link.set_char_encoding(h5t.CSET_UTF8)
        self._ordered = h5p.create(h5p.GROUP_CREATE)
        _keep_order(self._ordered)
        self._placed = h5p.create(h5p.DATASET_CREATE)
        self._placed.set_layout(h5d.CONTIGUOUS)
        self._placed.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        self._placed.set_fill_time(h5d.FILL_TIME_NEVER)
        self._placed.set_obj_track_times(False)  # noqa: FBT003 - h5py takes it by position
        self._inline = h5p.create(h5p.DATASET_CREATE)
        self._inline.set_layout(h5d.COMPACT)
        self._inline.set_obj_track_times(False)  # noqa: FBT003 - as above
        self._file = _create(file)
        self._root = h5g.open(self._file, b"/")

    def close(self) -> None:
        """Write out what HDF5 still holds."""
        self._file.close()

    def write_index(self, nbytes: int) -> int:
        """Make the dataset of the index; return its offset."""
        dataset = h5d.create(self._root, INDEX_NAME, h5t.STD_U8LE, self._space((nbytes,)), dcpl=self._placed)
        self._attach(dataset, _FORMAT, np.array(ix.FORMAT_VERSION), self._int)
        offset: int = dataset.get_offset()
        return offset

    # --- the tree -----------------------------------------------------------------------------------------------------

    def write_tree(self) -> None:
        """Mirror the tree, and place every array."""
        nodes = ix.read_nodes(self._index.pieces, self._pacer)
        top = _Frame(None, ix.LIST, 1, -1, is_shown=False, mirrors=True, group=self._root)
        frame: _Frame | None = top
        count = 0
        while frame is not None:
            if frame.left == 0:
                self._leave(frame)
                frame = frame.parent
                continue
            count += 1
            if frame.mirrors or not count % 256:
                self._pacer.pause()
            frame.left -= 1
            self._next_key(frame, nodes)
            node = next(nodes)
            tags: tuple[str, ...] = ()
            while type(node) is ix.msgpack.ExtType and node.code == ix.OBJECT:
                tags += (ix.argument_of(node),)
                node = next(nodes)
            if type(node) is not ix.msgpack.ExtType:
                self._leaf(frame, node, tags)
            elif node.code in ix.CONTAINERS:
                frame = self._enter(frame, node, tags)
            elif node.code in _ARRAY_KINDS:
                self._array(frame, ix.argument_of(node), tags, _ARRAY_KINDS[node.code])
            elif node.code == ix.NUMBERS_ARRAY:
                code, number = ix.argument_of(node)
                self._array(frame, number, tags, names.container_name(code))
            else:
                self._leaf(frame, node, tags)
        self._place_the_rest()

    def _next_key(self, frame: _Frame, nodes: Iterator[ix.Node]) -> None:
        if frame.code in ix.MAPPINGS:
            is_first = frame.key == -1 and frame.literals is None
            frame.key = names.read_key(nodes)
            if is_first:
                frame.among_ints = type(frame.key) is int
                frame.literals = set()
        else:
            frame.key += 1  # type: ignore[operator]

    def _enter(self, parent: _Frame, node: Any, tags: tuple[str, ...]) -> _Frame:
        argument = ix.argument_of(node)
        count, maxlen = argument if node.code == ix.DEQUE else (argument, None)
        depth = parent.depth + 1
        is_shown = parent.mirrors and self._leaves_left > 0
        mirrors = is_shown and count <= MAX_ENTRIES and depth < MAX_DEPTH
        frame = _Frame(parent, node.code, count, depth, is_shown, mirrors, tags, maxlen)
        frame.among_ints = node.code not in ix.MAPPINGS  # positions are plain decimals too
        if parent.parent is None and parent.depth < 0:
            frame.group, parent.group = parent.group, None
        elif is_shown:
            self._leaves_left -= 1
            self._group(frame)
        return frame

    def _leave(self, frame: _Frame) -> None:
        """Say of a container what its group alone does not tell."""
        is_partial = frame.is_partial or frame.group is None
        if frame.parent is not None and not frame.is_shown:
            frame.parent.is_partial |= is_partial
        group, frame.group = frame.group, None
        if group is None:
            return
        if frame.parent is None:
            self._attach_text(group, _KIND, "leaf")
        elif frame.code != ix.DICT:
            self._attach_text(group, _KIND, names.container_name(frame.code))
        self._tag(group, frame.tags, None)
        if frame.code in ix.MAPPINGS and frame.among_ints:
            self._attach_text(group, _KEYS, "int")
        if frame.maxlen is not None:
            self._attach(group, _MAXLEN, np.array(frame.maxlen), self._int)
        if is_partial and frame.is_shown:
            self._attach(group, _PARTIAL, np.array(True), self._leaf_types[bool])  # noqa: FBT003 - the value itself

    def _group(self, frame: _Frame) -> Any:
        """Return the container's group, which is made when it is first needed. `MAX_DEPTH` bounds the recursion."""
        if frame.group is None:
            parent: _Frame = frame.parent  # type: ignore[assignment]
            holder = self._group(parent)
            name = self._name(parent)
            frame.group = h5g.create(holder, name, lcpl=self._link(name), gcpl=self._ordered)
            frame.path = parent.path + b"/" + name
        return frame.group

    def _name(self, frame: _Frame) -> bytes:
        """Return the name of the current entry. To be called once for an entry, since it makes names different."""
        key = frame.key
        name = names.spell(key, among_ints=frame.among_ints)
        if type(key) is names.Literal:
            taken = frame.literals
            if name in taken:  # type: ignore[operator] - a mapping has its set since its first key
                name += f"%~{frame.left}"
            taken.add(name)  # type: ignore[union-attr]
        encoded = name.encode()
        if len(encoded) > names.NAME_MAX_NBYTES:
            short = names.shorten(name)
            attribute = _LONG_NAME.format(short[-32:]).encode()
            self._attach_text(frame.group, attribute, name)
            return short.encode()
        return encoded

    def _link(self, name: bytes) -> Any:
        return None if name.isascii() else self._utf8_link

    # --- arrays -------------------------------------------------------------------------------------------------------

    def _array(self, frame: _Frame, number: int, tags: tuple[str, ...], kind: str | None) -> None:
        if frame.depth > MAX_DEPTH:
            return  # its turn comes in _place_the_rest
        group = self._group(frame)
        name = self._name(frame)
        place = self._places.get(number)
        if place is None:
            self._dataset(group, name, number, tags, kind)
            self._places[number] = _Place(frame.path + b"/" + name, tags, kind)
            return
        if (place.tags, place.kind) != (tags, kind):  # what is said of a dataset is said at all its places
            group = h5g.create(group, name, lcpl=self._link(name), gcpl=self._ordered)
            self._tag(group, tags, "reference")
            name = ROOT_LEAF.encode()
        group.links.create_hard(name, self._root, place.path, lcpl=self._link(name))

    def _dataset(self, group: Any, name: bytes, number: int, tags: tuple[str, ...], kind: str | None) -> None:
        meta = self._index.arrays[number]
        element = self._elements.of(meta.dtype)
        shape, nbytes = meta.shape, meta.nbytes
        if len(shape) >= _MAX_RANK and (len(shape) > _MAX_RANK or not element.has_size):
            shape = (math.prod(shape),)
        if not element.has_size:
            shape = (*shape, 0)
        space = self._space(shape)
        dataset = h5d.create(group, name, element.type_id, space, dcpl=self._placed, lcpl=self._link(name))
        if nbytes:
            self.segments.append(ix.Segment(number, dataset.get_offset(), nbytes))
        if tags or kind is not None:
            self._tag(dataset, tags, kind)
        if element.note is not None:
            self._attach_text(dataset, _DTYPE, element.note)
        if len(meta.shape) > _MAX_RANK:
            lengths = np.array(meta.shape, np.int64)
            self._attach(dataset, _SHAPE, lengths, self._int, self._space(lengths.shape))

    def _place_the_rest(self) -> None:
        """Give datasets to the arrays that lie deeper than groups do, and to those in keys."""
        rest = [number for number in range(len(self._index.arrays)) if number not in self._places]
        if not rest:
            return
        group = h5g.create(self._root, ARRAYS_NAME, gcpl=self._ordered)
        for number in rest:
            self._pacer.pause()
            self._dataset(group, str(number).encode(), number, (), None)

    def _space(self, shape: tuple[int, ...]) -> Any:
        space = self._spaces.get(shape)
        if space is None:
            space = self._spaces[shape] = h5s.create_simple(shape) if shape else self._scalar
        return space

    # --- leaves and attributes ----------------------------------------------------------------------------------------

    def _leaf(self, frame: _Frame, node: ix.Node, tags: tuple[str, ...]) -> None:
        if not frame.mirrors or self._leaves_left == 0:
            frame.is_partial = True
            return
        self._leaves_left -= 1
        if frame.depth < 0:
            self._group(frame)
        name = self._name(frame)
        leaf = self._made_leaf(node)
        nbytes = leaf.data.nbytes if leaf.data is not None else 0
        if not tags and not leaf.is_dataset and nbytes <= _LEAF_MAX_NBYTES:
            self._attach(frame.group, name, leaf.data, leaf.type_id, leaf.space)
            return
        layout = self._inline if nbytes <= _LEAF_MAX_NBYTES else self._placed
        dataset = h5d.create(frame.group, name, leaf.type_id, leaf.space, dcpl=layout, lcpl=self._link(name))
        if leaf.data is not None and leaf.data.size:
            dataset.write(h5s.ALL, h5s.ALL, leaf.data, self._in_memory(leaf.type_id))
        self._tag(dataset, tags, leaf.kind)
        if leaf.note is not None:
            self._attach_text(dataset, _DTYPE, leaf.note)

    def _made_leaf(self, node: ix.Node) -> _Leaf:
        kind = type(node)
        if node is None:
            return _Leaf(h5t.STD_I8LE, self._null, None)
        if kind is int:
            is_signed = node < 1 << 63
            data = np.array(node, np.int64 if is_signed else np.uint64)
            return _Leaf(self._int if is_signed else h5t.NATIVE_UINT64, self._scalar, data)
        if kind is str:
            return self._text_leaf(node, None)
        if kind is bytes:
            return self._bytes_leaf(node, "bytes")
        if kind is not ix.msgpack.ExtType:
            return _Leaf(self._leaf_types[kind], self._scalar, np.array(node))
        if node.code == ix.INTEGER:
            return self._text_leaf(names.integer_text(node.data), "int", is_dataset=True)
        argument = ix.argument_of(node)
        if node.code == ix.COMPLEX:
            return _Leaf(self._leaf_types[complex], self._scalar, np.array(complex(*argument)))
        if node.code == ix.NUMBERS:
            code, plain, data = argument
            numbers = np.frombuffer(data, plain)
            type_id = h5t.STD_I64LE if numbers.dtype.kind == "i" else h5t.IEEE_F64LE
            return _Leaf(type_id, self._space(numbers.shape), numbers, names.container_name(code), is_dataset=True)
        return self._scalar_leaf(*argument)

    def _scalar_leaf(self, plain: Any, data: Any) -> _Leaf:
        if plain == "str_":
            return self._text_leaf(data, "str_", is_dataset=True)
        if plain == "bytes_":
            return self._bytes_leaf(data, "bytes_", is_dataset=True)
        dtype = dtype_from_plain(plain)
        element = self._elements.of(dtype)
        if not element.has_size:
            return _Leaf(element.type_id, self._space((0,)), None, "scalar", is_dataset=True, note=element.note)
        value = np.ndarray((), dtype, data)
        if dtype.kind in _NATIVE_SCALARS and element.note is None and not is_extension(dtype):
            return _Leaf(element.type_id, self._scalar, value, "scalar")
        raw = np.ndarray((), (np.void, dtype.itemsize), data)
        return _Leaf(element.type_id, self._scalar, raw, "scalar", is_dataset=True, note=element.note)

    def _text_leaf(self, text: str, kind: str | None, *, is_dataset: bool = False) -> _Leaf:
        """Make a string, or bytes of UTF-8 where HDF5's strings, which end at a NUL, cannot hold the text."""
        try:
            encoded = text.encode()
        except UnicodeEncodeError:  # lone surrogates
            encoded = None
        if encoded is None or b"\0" in encoded:
            return self._bytes_leaf(text.encode("utf-8", "surrogatepass"), kind or "str", is_dataset=True)
        return _Leaf(self._text, self._scalar, np.array(text, object), kind, is_dataset)

    def _bytes_leaf(self, value: bytes, kind: str, *, is_dataset: bool = False) -> _Leaf:
        data = np.frombuffer(value, np.uint8)
        return _Leaf(h5t.STD_U8LE, self._space(data.shape), data, kind, is_dataset)

    def _tag(self, target: Any, tags: tuple[str, ...], kind: str | None) -> None:
        """Say what type of object, and what kind of value, a dataset or group stands for."""
        if kind is not None:
            self._attach_text(target, _KIND, kind)
        if len(tags) == 1:
            self._attach_text(target, _TYPE, tags[0])
        elif tags:
            escaped = np.array([names.escape(tag) for tag in tags], object)
            self._attach(target, _TYPE, escaped, self._text, self._space(escaped.shape))

    def _attach_text(self, target: Any, name: bytes, text: str) -> None:
        self._attach(target, name, np.array(names.escape(text) if name == _TYPE else text, object), self._text)

    def _attach(self, target: Any, name: bytes, data: NDArray[Any] | None, type_id: Any, space: Any = None) -> None:
        attribute = h5a.create(target, name, type_id, self._scalar if space is None else space)
        if data is not None and data.size:
            attribute.write(data, self._in_memory(type_id))

    def _in_memory(self, type_id: Any) -> Any:
        """Return the type that data of a type in the file have here: the same, but that strings are objects."""
        return self._text_in_memory if type_id is self._text else type_id


def _create(file: SparseFile) -> Any:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5fd.fileobj_driver, file)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    creation = h5p.create(h5p.FILE_CREATE)
    creation.set_file_space_strategy(h5f.FSPACE_STRATEGY_PAGE, False, 1)  # noqa: FBT003 - h5py takes it by position
    creation.set_file_space_page_size(PAGE_NBYTES)
    _keep_order(creation)
    return h5f.create(b"state.h5", h5f.ACC_TRUNC, fcpl=creation, fapl=access)


def _keep_order(creation: Any) -> None:
    """Let readers see entries in the order in which they were made, and files not depend on the clock."""
    creation.set_link_creation_order(h5p.CRT_ORDER_TRACKED)
    creation.set_attr_creation_order(h5p.CRT_ORDER_TRACKED)
    creation.set_obj_track_times(False)  # noqa: FBT003 - h5py takes it by position


def _merge(runs: Iterable[tuple[int, bytes]], data: list[Piece], pacer: Pacer) -> Iterator[Piece]:
    """Yield the data, and the metadata wherever no data lies; both come sorted."""
    following = iter(data)
    piece = next(following, None)
    begin = 0
    for start, blob in runs:
        pacer.pause()
        end = start + len(blob)
        begin = max(begin, start)
        while piece is not None and piece.offset < end:
            if piece.offset > begin:
                yield Piece(begin, piece.offset - begin, blob[begin - start : piece.offset - start])
            yield piece
            begin = max(begin, piece.offset + piece.nbytes)
            piece = next(following, None)
        if begin < end:
            yield Piece(begin, end - begin, blob[begin - start :])
    while piece is not None:
        yield piece
        piece = next(following, None)


FORMAT: Final = _Hdf5()
