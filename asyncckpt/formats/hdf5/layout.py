"""The format HDF5: state.h5 is an ordinary HDF5 file for any HDF5 reader (docs/format.md has the mapping).

1. The metadata is encoded without libhdf5 (`metadata.py`; docs/design.md, section 7, says why). h5py only describes
   datatypes. An array has one segment, of any size.
2. Every array is a dataset, and every key is a name. Python leaves are mirrored as attributes or small datasets, up to
   `MAX_LEAVES` in a file. The index, which is the dataset `/__asyncckpt__`, has all of them.
3. Arrays below `MAX_DEPTH`, and those in keys, are in the group `/__asyncckpt_arrays__`, by number.
4. The names of asyncckpt's own attributes begin with `__asyncckpt`, and no user's names do (`formats.key_names`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from msgpack import ExtType

from asyncckpt.disk.plan import FilePlan, PlanEntry, align
from asyncckpt.formats import key_names as names
from asyncckpt.formats.hdf5.datatypes import ElementTypes
from asyncckpt.formats.hdf5.leaves import int_leaf, make_leaf, text_leaf
from asyncckpt.formats.hdf5.metadata import MetadataFile, Node
from asyncckpt.formats.payload import Payload
from asyncckpt.libhdf5 import h5t
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.state import index as ix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncckpt.runtime.pacing import Pacer

MAX_LEAVES: Final = 2048
"""The number of Python leaves, and of containers that are groups even without arrays, in one file."""
MAX_ENTRIES: Final = 1024
"""The number of entries up to which the Python leaves of a container are mirrored."""
MAX_DEPTH: Final = 64
"""How deep groups are nested."""

_INDEX: Final = b"__asyncckpt__"
_ARRAYS: Final = b"__asyncckpt_arrays__"
_VALUE: Final = "value"  # the entry of a group that is not a container
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
_UNBOUNDED: Final = 1 << 62
_ARRAY_KINDS: Final = {ix.ARRAY: None, ix.BYTES: "bytes", ix.STRING: "str"}
_NODES_PER_PAUSE: Final = 256


file_name: Final = "state.h5"


def plan(index: ix.Index, pacer: Pacer) -> FilePlan:
    """Lay out the file; see `asyncckpt.formats.base.Format`."""
    file = MetadataFile(pacer)
    mirror = Mirror(file, index, pacer)
    mirror.write_tree()
    encoder = ix.IndexEncoder(index, pacer)
    sizes = [meta.nbytes for meta in index.arrays]
    index_nbytes = encoder.nbytes(sum(nbytes > 0 for nbytes in sizes))
    index_dataset = file.dataset(file.root, _INDEX, h5t.STD_U8LE, (index_nbytes,), index_nbytes)
    file.attach(index_dataset, _FORMAT, int_leaf(ix.FORMAT_VERSION))
    payload = Payload(align(file.arrange(), PAGE_NBYTES), _UNBOUNDED)
    payload.place(sizes, pacer)
    segments = payload.segments()
    for number, offset, _ in segments.tolist():
        mirror.datasets[number].data_address = offset
    spans = [chunk for _, _, chunks in payload.extents for chunk in chunks]
    end = payload.extents[-1][1] if payload.extents else align(file.nbytes, PAGE_NBYTES)
    index_dataset.data_address = offset = end
    nbytes = align(end + index_nbytes, PAGE_NBYTES)
    chunks = [*file.render(nbytes), *spans]
    for chunk in encoder.encode(segments):
        chunks.append(PlanEntry(offset, len(chunk), chunk))
        offset += len(chunk)
    return FilePlan(nbytes, chunks, index_offset=end, index_nbytes=index_nbytes)


@dataclass(slots=True, eq=False)
class _Frame:
    """A container whose entries are being read."""

    parent: _Frame | None
    code: int
    left: int
    """The number of entries to come."""
    depth: int
    is_shown: bool
    """Whether it is a group even if there are no arrays in it."""
    mirrors: bool
    """Whether its Python leaves become attributes and datasets."""
    tags: tuple[str, ...] = ()
    maxlen: int | None = None
    group: Node | None = None
    key: names.Key = -1
    among_ints: bool = True
    is_partial: bool = False
    literals: set[str] | None = None
    """The names of keys that are neither str nor int; None until a mapping has read its first key."""


class Mirror:
    """The tree of a state as groups, datasets and attributes."""

    def __init__(
        self,
        file: MetadataFile,
        index: ix.Index,
        pacer: Pacer,
        *,
        entry: bytes | None = None,
        max_leaves: int = MAX_LEAVES,
    ) -> None:
        """Prepare to write.

        Args:
            file: The metadata of the file.
            index: The tree, and descriptions of its arrays.
            pacer: Paused between chunks.
            entry: The name of the state in the root group; None if the state is the root group.
            max_leaves: The number of Python leaves, and of containers that are groups even without arrays.
        """
        self._index = index
        self._pacer = pacer
        self.leaves_left = max_leaves
        self._elements = ElementTypes()
        self._file = file
        self._entry = entry
        self._top: Node | None = None  # the group of the state, once it is complete
        self.datasets: dict[int, Node] = {}
        """The datasets of the arrays, by number."""
        self._marks: dict[int, tuple[tuple[str, ...], str | None]] = {}  # the types and the kind of each of them

    def write_tree(self) -> None:
        """Mirror the tree, with a dataset for every array."""
        nodes = ix.read_nodes(self._index.chunks, self._pacer)
        frame: _Frame | None = _Frame(
            None, ix.LIST, 1, -1, is_shown=True, mirrors=True, group=self._file.root, among_ints=False
        )
        count = 0
        while frame is not None:
            if frame.left == 0:
                self._leave(frame)
                frame = frame.parent
                continue
            count += 1
            if not count % _NODES_PER_PAUSE:
                self._pacer.pause()
            frame.left -= 1
            _read_key(frame, nodes)
            node = next(nodes)
            tags: tuple[str, ...] = ()
            while type(node) is ExtType and node.code == ix.OBJECT:
                tags += (names.escape(ix.argument_of(node)),)
                node = next(nodes)
            if type(node) is not ExtType:
                self._add_leaf(frame, node, tags)
            elif node.code in ix.CONTAINERS:
                frame = self._enter(frame, node, tags)
            elif node.code in _ARRAY_KINDS:
                self._add_array(frame, ix.argument_of(node), tags, _ARRAY_KINDS[node.code])
            elif node.code == ix.NUMBERS_ARRAY:
                code, number = ix.argument_of(node)
                self._add_array(frame, number, tags, names.container_name(code))
            elif node.code == ix.FRAMEWORK_ARRAY:
                number, framework, dtype, _ = ix.argument_of(node)
                self._add_array(frame, number, tags, f"{framework} {dtype}".rstrip())
            else:
                self._add_leaf(frame, node, tags)
        self._add_remaining_arrays()

    # --- containers ---------------------------------------------------------------------------------------------------

    def _enter(self, parent: _Frame, node: Any, tags: tuple[str, ...]) -> _Frame:
        argument = ix.argument_of(node)
        count, maxlen = argument if node.code == ix.DEQUE else (argument, None)
        depth = parent.depth + 1
        is_shown = parent.mirrors and self.leaves_left > 0
        mirrors = is_shown and count <= MAX_ENTRIES and depth < MAX_DEPTH
        frame = _Frame(parent, node.code, count, depth, is_shown, mirrors, tags, maxlen)
        if depth == 0 and self._entry is None:  # the state itself is the root group
            frame.group, parent.group = parent.group, None
        elif is_shown:
            self.leaves_left -= 1
            self._group(frame)
        return frame

    def _leave(self, frame: _Frame) -> None:
        """Add the attributes of a container to its group."""
        is_partial = frame.is_partial or frame.group is None
        if frame.parent is not None and not frame.is_shown:
            frame.parent.is_partial |= is_partial
        group, frame.group = frame.group, None
        if group is None:
            return
        is_top = frame.depth == 0
        if is_top:
            self._top = group
        if frame.parent is None:
            if self._entry is not None:
                return
            self._file.attach(group, _KIND, text_leaf("leaf"))
        elif frame.code != ix.DICT:
            self._file.attach(group, _KIND, text_leaf(names.container_name(frame.code)))
        self._tag(group, frame.tags, None)
        if frame.code in ix.MAPPINGS and frame.literals is not None and frame.among_ints:
            self._file.attach(group, _KEYS, text_leaf("int"))
        if frame.maxlen is not None:
            self._file.attach(group, _MAXLEN, int_leaf(frame.maxlen))
        if is_partial and (frame.is_shown or is_top):
            self._file.attach(group, _PARTIAL, make_leaf(True, self._elements))  # noqa: FBT003 - the value itself

    def _group(self, frame: _Frame) -> Node:
        """Return the group of a container, which is made on first use. `MAX_DEPTH` bounds the recursion."""
        if frame.group is None:
            self._pacer.pause()
            parent: _Frame = frame.parent  # type: ignore[assignment]
            holder = self._group(parent)
            name = self._name(parent)
            frame.group = self._file.group(holder, name)
        return frame.group

    def _name(self, frame: _Frame) -> bytes:
        """Return the name of the current entry. Call it once for each entry, because it makes names unique."""
        key = frame.key
        if frame.parent is None:
            if self._entry is not None:
                return self._entry
            key = _VALUE
        name = names.spell(key, among_ints=frame.among_ints)
        if type(key) is names.Literal:
            taken: set[str] = frame.literals  # type: ignore[assignment]
            if name in taken:
                name += f"%~{frame.left}"
            taken.add(name)
        short = names.shorten(name)
        if short != name:
            self._file.attach(self._group(frame), _LONG_NAME.format(short[-32:]).encode(), text_leaf(name))
        return short.encode()

    # --- arrays -------------------------------------------------------------------------------------------------------

    def _add_array(self, frame: _Frame, number: int, tags: tuple[str, ...], kind: str | None) -> None:
        if frame.depth > MAX_DEPTH:
            return  # see _add_remaining_arrays
        group = self._group(frame)
        name = self._name(frame)
        if number not in self.datasets:
            self._add_dataset(group, name, number, tags, kind)
            return
        if self._marks[number] != (tags, kind):  # all links of a dataset have the same attributes
            group = self._file.group(group, name)
            self._tag(group, tags, "reference" if kind is None else f"reference {kind}")
            name = _VALUE.encode()
        self._file.link(group, name, self.datasets[number])

    def _add_dataset(self, group: Node, name: bytes, number: int, tags: tuple[str, ...], kind: str | None) -> None:
        self._pacer.pause()
        meta = self._index.arrays[number]
        element = self._elements.of(meta.dtype)
        shape = meta.shape
        is_flat = len(shape) + (not element.has_size) > _MAX_RANK
        if is_flat:
            shape = (math.prod(shape),)
        if not element.has_size:
            shape = (*shape, 0)
        self._marks[number] = tags, kind
        dataset = self.datasets[number] = self._file.dataset(group, name, element.type_id, shape, meta.nbytes)
        self._tag(dataset, tags, kind)
        if element.note is not None:
            self._file.attach(dataset, _DTYPE, text_leaf(element.note))
        if is_flat:
            self._file.attach(dataset, _SHAPE, int_leaf(meta.shape))

    def _add_remaining_arrays(self) -> None:
        """Add datasets of the arrays below `MAX_DEPTH`, and of those in keys."""
        group = None
        for number in range(len(self._index.arrays)):
            if number not in self.datasets:
                if group is None:
                    if self._top is None:
                        root = self._file.root
                        self._top = root if self._entry is None else self._file.group(root, self._entry)
                    group = self._file.group(self._top, _ARRAYS)
                self._add_dataset(group, str(number).encode(), number, (), None)

    # --- leaves -------------------------------------------------------------------------------------------------------

    def _add_leaf(self, frame: _Frame, node: ix.Node, tags: tuple[str, ...]) -> None:
        if not frame.mirrors or self.leaves_left == 0:
            frame.is_partial = True
            return
        self._pacer.pause()
        self.leaves_left -= 1
        name = self._name(frame)
        leaf = make_leaf(node, self._elements)
        is_entry = frame.parent is None and self._entry is not None
        if leaf.is_attribute and not tags and not is_entry:
            self._file.attach(self._group(frame), name, leaf)
            return
        dataset = self._file.leaf_dataset(self._group(frame), name, leaf)
        self._tag(dataset, tags, leaf.kind)
        if leaf.note is not None:
            self._file.attach(dataset, _DTYPE, text_leaf(leaf.note))

    def _tag(self, target: Node, tags: tuple[str, ...], kind: str | None) -> None:
        """Add the kind of a value, and the types of an object, to its dataset or group."""
        if kind is not None:
            self._file.attach(target, _KIND, text_leaf(kind))
        if tags:
            self._file.attach(target, _TYPE, text_leaf(tags if len(tags) > 1 else tags[0]))


def _read_key(frame: _Frame, nodes: Iterator[ix.Node]) -> None:
    """Read the key of the next entry; its position if there are no keys."""
    if frame.code not in ix.MAPPINGS:
        frame.key += 1  # type: ignore[operator]
        return
    frame.key = names.read_key(nodes)
    if frame.literals is None:
        frame.literals = set()
        frame.among_ints = type(frame.key) is int
