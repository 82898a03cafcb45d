"""The commits of an HDF5 keyed file: catalogs, which list the keys, and what points to them (docs/format.md).

1. Each commit writes a new catalog, and a new root group, through which other programs find the keys; none of these is
   ever changed, nor are the HDF5 objects below. A slot holds the catalog's offset and digest, and the superblock the
   address of the root group.
2. There are two slots, on pages of their own. A commit overwrites the older one, so one of them always points to a
   complete catalog. Of two valid slots, the one with the higher number counts.
3. The content of the catalog is checked before it is used: a damaged file is an error, never a wrong value.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgpack
import numpy as np
from xxhash import xxh3_128_digest

from asyncckpt.compatibility import check_compatibility
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, DIGEST_NBYTES, FileRecord
from asyncckpt.formats import key_names as names
from asyncckpt.formats.hdf5 import structures as hb
from asyncckpt.formats.hdf5.leaves import Leaf
from asyncckpt.formats.hdf5.metadata import MetadataFile, Node
from asyncckpt.keyed.damage import damage_of
from asyncckpt.libhdf5 import h5t
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.packed import TEXT_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asyncckpt.keyed.key_tree import KeyTree

FORMAT_VERSION: Final = 1
CATALOG_NAME: Final = b"__asyncckpt__"
DIGEST_NAME: Final = b"__asyncckpt_digest__"
HEAD_NBYTES: Final = 3 * PAGE_NBYTES
"""The superblock and the two slots, a page each."""
_MAGIC: Final = b"asyncckpt keyed\n"
_SLOT: Final = struct.Struct("<16sIIQQQQQQ16s")
_LINKED: Final = "linked"
"""The feature of a file with objects that other programs made."""
_ROWS: Final = 1024
_ROW_NBYTES: Final = 180


class Slot(NamedTuple):
    """One commit."""

    number: int
    """The commit's number, from 1 on."""
    end: int
    """The end of the file."""
    offset: int
    """The offset of the catalog's region."""
    nbytes: int
    """The region's size: the catalog, and the HDF5 objects that point to it and to the keys."""
    catalog_nbytes: int
    """The size of the catalog itself, which comes first."""
    root: int
    """The address of the root group's header."""
    digest: bytes
    """The xxh3-128 of the region."""

    @property
    def position(self) -> int:
        """The offset of the slot itself."""
        return PAGE_NBYTES * (1 + self.number % 2)

    def encode(self) -> bytes:
        """Return the slot's bytes."""
        body = _SLOT.pack(_MAGIC, FORMAT_VERSION, 0, *self)
        return body + xxh3_128_digest(body)

    def superblock(self) -> bytes:
        """Return the superblock that shows the commit to other programs."""
        made = np.frombuffer(bytearray(hb.superblock(self.end, self.root)), np.uint8)
        hb.seal(made, [(0, len(made))], Pacer(yields=False))
        return made.tobytes()


def find_slots(head: bytes) -> list[Slot]:
    """Return the valid slots in the first `HEAD_NBYTES` of a file, the one that counts first.

    Raises:
        UnsupportedFormatError: A later release wrote the file.
    """
    found = []
    for position in (PAGE_NBYTES, 2 * PAGE_NBYTES):
        body = head[position : position + _SLOT.size]
        if not body.startswith(_MAGIC) or head[position + _SLOT.size :][:DIGEST_NBYTES] != xxh3_128_digest(body):
            continue
        _, version, _, *fields = _SLOT.unpack(body)
        check_compatibility("the file", version, (), reads=FORMAT_VERSION)
        slot = Slot(*fields)
        if slot.position == position:
            found.append(slot)
    return sorted(found, reverse=True)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A run of pages that was written at once."""

    offset: int
    record: FileRecord

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.record.nbytes


class Extent(NamedTuple):
    """Where the value of a key is: the fields of its row in the catalog."""

    region: Region
    begin: int
    """The offset of its HDF5 objects."""
    end: int
    """The offset behind them. Where its arrays are is in its index."""
    index_offset: int
    index_nbytes: int
    address: int | None
    """The address of the header of its own HDF5 object; None if it has none."""
    array_nbytes: int
    """Bytes of its arrays."""
    key_tree: KeyTree
    """The keys of its dicts."""
    data_offset: int | None
    """The offset of the arrays of a small value, which its index follows; None for a large one."""
    digest: bytes | None
    """The xxh3-128 of the HDF5 objects, arrays and index of a small value; None for a large one, which is verified by
    the digests of the region."""

    @property
    def nbytes(self) -> int:
        """What the value takes in the file, in bytes."""
        return self.end - self.begin + self.payload_nbytes + _ROW_NBYTES

    @property
    def payload_nbytes(self) -> int:
        """How much of that is its arrays and its index."""
        return self.array_nbytes + self.index_nbytes


class ForeignObject(NamedTuple):
    """An object of another program, which was copied as it is and has no digest."""

    address: int
    """The address of its header."""
    nbytes: int
    """What it takes in the file, as far as that is known."""


Row: TypeAlias = Extent | ForeignObject
"""Where the value of a key is."""


def link_name(key: str) -> str:
    """Return the name that a key has in HDF5."""
    return names.shorten(names.spell(key, among_ints=False))


def encode_catalog(extents: Mapping[str, Row], pacer: Pacer) -> list[bytes]:
    """Return the catalog of these keys, in chunks."""
    numbers: dict[int, int] = {}
    regions: list[Any] = []
    chunks = [b""]
    features: list[str] = []
    for batch in pacer.batches(extents.items(), _ROWS):
        rows: list[Any] = []
        for key, extent in batch:
            if isinstance(extent, ForeignObject):
                features = [_LINKED]
                rows.append((key, None, *extent))
                continue
            region = extent.region
            number = numbers.setdefault(region.offset, len(numbers))
            if number == len(regions):
                regions.append((region.offset, region.record.nbytes, region.record.digests))
            rows.append((key, number, *extent[1:]))
        chunks.append(msgpack.packb(msgpack.packb(rows, unicode_errors=TEXT_ERRORS)))
    packer = msgpack.Packer(unicode_errors=TEXT_ERRORS)
    head = ("asyncckpt_keyed", FORMAT_VERSION, "features", features, "regions", regions, "keys")
    chunks[0] = packer.pack_map_header(4) + b"".join(map(packer.pack, head)) + packer.pack_array_header(len(chunks) - 1)
    return chunks


def decode_catalog(data: bytes, end: int, pacer: Pacer) -> dict[str, Row]:
    """Decode a catalog whose digest is right.

    Args:
        data: The catalog.
        end: The end of the file.
        pacer: Paused between chunks.

    Raises:
        CorruptCheckpointError: Its content is not possible.
        UnsupportedFormatError: A later release wrote it.
    """
    with damage_of("the catalog is damaged"):
        content = msgpack.unpackb(data, unicode_errors=TEXT_ERRORS, use_list=False)
        version, features = content["asyncckpt_keyed"], content["features"]
        check_compatibility("the file", version, features, reads=FORMAT_VERSION, known=(_LINKED,))
        regions = [_region(end, *row) for row in content["regions"]]
        found: dict[str, Row] = {}
        for chunk in content["keys"]:
            pacer.pause()
            for key, number, *fields in msgpack.unpackb(chunk, unicode_errors=TEXT_ERRORS, strict_map_key=False):
                _require(type(key) is str and key not in found, f"the key {key!r:.200}")
                if number is None:
                    found[key] = _foreign_object(key, end, *fields)
                else:
                    _require(type(number) is int and number >= 0, f"the row of {key!r}")
                    found[key] = _checked(key, Extent(regions[number], *fields))
        return found


def _foreign_object(key: str, end: int, address: int, nbytes: int) -> ForeignObject:
    _require({type(address), type(nbytes)} == {int} and HEAD_NBYTES <= address < end, f"the row of {key!r}")
    return ForeignObject(address, nbytes)


def _checked(key: str, extent: Extent) -> Extent:
    """Return an extent in which everything is where it can be."""
    region, begin, end, index_offset, index_nbytes, address, array_nbytes, _, data_offset, digest = extent
    optional = [number for number in (address, data_offset) if number is not None]
    numbers = (begin, end, index_offset, index_nbytes, array_nbytes, *optional)
    _require({*map(type, numbers)} == {int}, f"the row of {key!r}")
    _require(region.offset <= begin <= end <= region.end, f"the HDF5 objects of {key!r}")
    _require(region.offset <= index_offset <= index_offset + index_nbytes <= region.end, f"the index of {key!r}")
    if digest is None:
        _require(bool(region.record.digests), f"the digest of {key!r}")
    else:
        is_possible = type(digest) is bytes and data_offset is not None and region.offset <= data_offset <= index_offset
        _require(is_possible, f"the data of {key!r}")
    return extent


def _region(end: int, offset: int, nbytes: int, digests: bytes) -> Region:
    _require(HEAD_NBYTES <= offset <= offset + nbytes <= end, f"a region at {offset}")
    expected = -(-nbytes // DIGEST_BLOCK_NBYTES) * DIGEST_NBYTES
    _require(len(digests) in {0, expected}, f"the digests of the region at {offset}")
    return Region(offset, FileRecord(nbytes, digests))


def _require(holds: bool, what: str) -> None:  # noqa: FBT001 - what must hold
    if not holds:
        raise ValueError(what)


def root_group(
    begin: int, links: Iterable[tuple[str, int]], catalog: tuple[int, int, bytes], pacer: Pacer
) -> tuple[int, list[bytes]]:
    """Return a root group.

    Args:
        begin: Its offset.
        links: The names of the keys, each with the address of its object.
        catalog: Offset, size and xxh3-128 of the catalog, which is a dataset with its digest as an attribute.
        pacer: Paused between chunks.

    Returns:
        The address of its header, and its bytes, in chunks.
    """
    file = MetadataFile(pacer)
    for name, address in links:
        file.link(file.root, name.encode(), Node(b"", address=address))
    offset, nbytes, digest = catalog
    dataset = file.dataset(file.root, CATALOG_NAME, h5t.STD_U8LE, (nbytes,), nbytes)
    dataset.data_address = offset
    file.attach(dataset, DIGEST_NAME, Leaf(h5t.STD_U8LE, np.frombuffer(digest, np.uint8)))
    file.arrange(begin)
    return file.root.address, [bytes(chunk.source) for chunk in file.render(None)]
