"""Make the metadata of an HDF5 file: groups, datasets and attributes, first as objects, then as bytes.

1. The length of a structure does not depend on the addresses in it. So `arrange` assigns an address to each object, and
   `render` makes the bytes after the data have got their addresses, too.
2. Links and attributes keep the order in which they were made.
3. Files of the same content have the same bytes, because no times are stored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.disk.plan import PlanEntry, align
from asyncckpt.formats.hdf5 import structures as hb
from asyncckpt.formats.hdf5.leaves import TEXT, VALUE_MAX_NBYTES, Leaf

if TYPE_CHECKING:
    from asyncckpt.runtime.pacing import Pacer

_COMPACT_LINKS: Final = 8  # more links of a group are stored in a B-tree by name
_COLLECTION: Final = 4096  # texts stored together
_REFERENCE_NBYTES: Final = 16  # to a text
_CHUNK_NBYTES: Final = 1 << 18

Data = bytes | list[int]
"""Bytes, or numbers of texts."""


@dataclass(slots=True, eq=False)
class Node:
    """A group or a dataset."""

    description: bytes
    """The messages of its header that do not depend on addresses."""
    links: list[tuple[bytes, Node]] | None = None
    """The links of a group."""
    data: Data | None = None
    """The data of a small dataset."""
    nbytes: int = 0
    """The size of a dataset's data outside the metadata, in bytes."""
    data_address: int = hb.NOWHERE
    """The address of data that are not in the header."""
    attributes: list[tuple[bytes, bytes, bytes, Data]] = field(default_factory=list)
    """Their names, datatypes, dataspaces and values."""
    references: int = 0
    address: int = 0
    dense: hb.DenseLinks | None = None
    parts: list[int] = field(default_factory=list)
    """The addresses of the parts of `dense`."""


class MetadataFile:
    """The metadata of an HDF5 file while it is made."""

    def __init__(self, pacer: Pacer, *, has_root: bool = True) -> None:
        """Make an empty file, or a part of a file without a root group, whose objects are linked from elsewhere."""
        self._pacer = pacer
        self._types: dict[int, tuple[Any, bytes]] = {}
        self._descriptions: dict[tuple[int, tuple[int, ...]], bytes] = {}
        self._nodes: list[Node] = []
        self._texts: list[bytes] = []
        self._collections: list[tuple[int, bytes]] = []
        self.nbytes = 0
        """The end of the metadata, after `arrange`."""
        self._begin = 0
        self.root = Node(b"", links=[])
        if has_root:
            self._add(self.root)

    # --- making objects -----------------------------------------------------------------------------------------------

    def group(self, holder: Node, name: bytes) -> Node:
        """Make a group."""
        return self.link(holder, name, self._add(Node(b"", links=[])))

    def dataset(self, holder: Node, name: bytes, type_id: Any, shape: tuple[int, ...], nbytes: int) -> Node:
        """Make a dataset whose data are outside the metadata. Set its `data_address` before `render`."""
        return self.link(holder, name, self._add(Node(self._described(type_id, shape), nbytes=nbytes)))

    def leaf_dataset(self, holder: Node, name: bytes, leaf: Leaf) -> Node:
        """Make a dataset of a small value."""
        fill = hb.FILL_IF_SET if leaf.nbytes <= VALUE_MAX_NBYTES else hb.FILL_NEVER
        description = self._description(_space_of(leaf), leaf.type_id, fill)
        return self.link(holder, name, self._add(Node(description, data=self._data_of(leaf))))

    def link(self, holder: Node, name: bytes, node: Node) -> Node:
        """Add a link to an object."""
        holder.links.append((name, node))  # type: ignore[union-attr] # holders are groups
        node.references += 1
        return node

    def attach(self, target: Node, name: bytes, leaf: Leaf) -> None:
        """Make an attribute."""
        target.attributes.append((name, self._type(leaf.type_id), _space_of(leaf), self._data_of(leaf)))

    def _add(self, node: Node) -> Node:
        self._nodes.append(node)
        return node

    def _described(self, type_id: Any, shape: tuple[int, ...]) -> bytes:
        """Return the messages of a dataset. They are made once for each type and shape."""
        key = (id(type_id), shape)
        found = self._descriptions.get(key)
        if found is None:
            found = self._descriptions[key] = self._description(hb.dataspace(shape), type_id, hb.FILL_NEVER)
        return found

    def _description(self, space: bytes, type_id: Any, fill: bytes) -> bytes:
        datatype = hb.message(hb.DATATYPE, self._type(type_id), is_constant=True)
        return hb.message(hb.DATASPACE, space) + datatype + hb.message(hb.FILL_VALUE, fill)

    def _type(self, type_id: Any) -> bytes:
        """Return the message of a datatype, which is kept, so that its id is not reused."""
        found = self._types.get(id(type_id))
        if found is None:
            encoded = type_id.encode()[2:]
            if type_id is TEXT:  # a pointer in memory, and a reference in the file
                encoded = encoded[:4] + _REFERENCE_NBYTES.to_bytes(4, "little") + encoded[8:]
            found = self._types[id(type_id)] = (type_id, encoded)
        return found[1]

    def _data_of(self, leaf: Leaf) -> Data:
        if leaf.data is None:
            return b""
        if leaf.type_id is TEXT:
            return [self._text(text) for text in leaf.data.flat]
        return leaf.data.tobytes()

    def _text(self, text: str) -> int:
        self._texts.append(text.encode())
        return len(self._texts) - 1

    # --- making bytes -------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of objects."""
        return len(self._nodes)

    def address(self, number: int) -> int:
        """Return the address of the n-th object, in the order in which they were made, or the end of all."""
        return self._nodes[number].address if number < len(self._nodes) else self.nbytes

    def arrange(self, begin: int = hb.SUPERBLOCK_NBYTES) -> int:
        """Assign addresses to all objects, from `begin` on. Return the end of the metadata."""
        self._begin = end = begin
        for first in range(0, len(self._texts), _COLLECTION):
            collection = hb.text_collection(self._texts[first : first + _COLLECTION])
            end = align(end, 8)
            self._collections.append((end, collection))
            end += len(collection)
            self._pacer.pause()
        for node in self._nodes:
            self._pacer.pause()
            if node.links is not None and len(node.links) > _COMPACT_LINKS:
                batches = self._pacer.batches(node.links)
                nbytes = sum(len(hb.link(name, 0, 0)) for batch in batches for name, _ in batch)
                node.dense = hb.DenseLinks.of(len(node.links), nbytes)
                node.parts = [0, 0, 0]
            node.address = end = align(end, 8)
            end += len(self._header(node))
            if node.dense is not None:
                node.parts = []
                for nbytes in node.dense.parts():
                    end = align(end, 8)
                    node.parts.append(end)
                    end += nbytes
            if self._is_apart(node):
                node.data_address = end = align(end, 8)
                end += len(node.data)  # type: ignore[arg-type]
        self.nbytes = end
        return end

    def render(self, file_nbytes: int | None) -> list[PlanEntry]:
        """Return the metadata of a file of this size as entries of a plan; without a superblock if it is None."""
        base = 0 if file_nbytes is not None else self._begin
        image = bytearray(self.nbytes - base)
        sealed: list[tuple[int, int]] = []

        def put(address: int, data: bytes, *, has_checksum: bool = True) -> None:
            begin = address - base
            image[begin : begin + len(data)] = data
            if has_checksum:
                sealed.append((begin, len(data)))

        if file_nbytes is not None:
            put(0, hb.superblock(file_nbytes, self.root.address))
        for address, collection in self._collections:
            put(address, collection, has_checksum=False)
        for node in self._nodes:
            self._pacer.pause()
            put(node.address, self._header(node))
            if node.dense is not None:
                batches = self._pacer.batches(enumerate(node.links or ()))
                links = [hb.link(name, order, child.address) for batch in batches for order, (name, child) in batch]
                hashes = hb.hashes([name for name, _ in node.links or ()], self._pacer)
                parts = node.dense.render(node.parts, links, hashes, self._pacer)
                for number, (address, part) in enumerate(zip(node.parts, parts, strict=True)):
                    put(address, part, has_checksum=number != 1)  # which is the block of the heap
            if self._is_apart(node):
                put(node.data_address, node.data, has_checksum=False)  # type: ignore[arg-type]
        hb.seal(np.frombuffer(image, np.uint8), sealed, self._pacer)
        view = memoryview(image)
        chunks = []
        for begin in range(0, len(view), _CHUNK_NBYTES):
            data = bytes(view[begin : begin + _CHUNK_NBYTES])
            chunks.append(PlanEntry(base + begin, len(data), data))
        return chunks

    def _header(self, node: Node) -> bytes:
        messages = [node.description]
        if node.links is None:
            if node.data is None:
                layout = hb.contiguous(node.data_address, node.nbytes)
            elif self._is_apart(node):
                layout = hb.contiguous(node.data_address, len(node.data))
            else:
                layout = hb.compact(self._encoded(node.data))
            messages.append(hb.message(hb.LAYOUT, layout))
        else:
            heap, tree = (node.parts[0], node.parts[2]) if node.dense is not None else (hb.NOWHERE, hb.NOWHERE)
            messages.append(hb.message(hb.LINK_INFO, hb.link_info(len(node.links), heap, tree)))
            messages.append(hb.message(hb.GROUP_INFO, hb.GROUP_DEFAULTS))
            if node.dense is None:
                for order, (name, child) in enumerate(node.links):
                    messages.append(hb.message(hb.LINK, hb.link(name, order, child.address)))
        if node.attributes:
            messages.append(hb.message(hb.ATTRIBUTE_INFO, hb.attribute_info(len(node.attributes))))
            for order, (name, datatype, space, data) in enumerate(node.attributes):
                body = hb.attribute(name, datatype, space, self._encoded(data))
                messages.append(hb.message(hb.ATTRIBUTE, body, order=order))
        if node.references > 1:
            messages.append(hb.message(hb.REFERENCE_COUNT, struct.pack("<BI", 0, node.references)))
        return hb.object_header(b"".join(messages), len(node.attributes))

    def _encoded(self, data: Data) -> bytes:
        """Return data as in the file: texts are references."""
        if isinstance(data, bytes):
            return data
        references = []
        for number in data:
            collection, position = divmod(number, _COLLECTION)
            nbytes = len(self._texts[number])
            references.append(
                struct.pack("<IQI", nbytes, self._collections[collection][0], position + 1)
                if nbytes
                else bytes(_REFERENCE_NBYTES)
            )
        return b"".join(references)

    @staticmethod
    def _is_apart(node: Node) -> bool:
        """Whether the data of a leaf are too large for its header."""
        return isinstance(node.data, bytes) and len(node.data) > VALUE_MAX_NBYTES


def _space_of(leaf: Leaf) -> bytes:
    return hb.NULL_SPACE if leaf.data is None else hb.dataspace(leaf.data.shape)
