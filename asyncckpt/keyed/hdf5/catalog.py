"""Which keys an HDF5 keyed file has, and where: the catalog, and the slots that lead to it (docs/format.md).

1. A catalog is written anew with every commit and never changed; a slot says where one lies, and its digest.
2. There are two slots, on pages of their own. A commit overwrites the older one, so that one of them always leads to a
   catalog that is complete. The slot with the higher number of the two counts.
3. What the catalog says is checked before it is used: a damaged file is an error, never a wrong value.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
from xxhash import xxh3_128_digest

from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, DIGEST_NBYTES, FileRecord
from asyncckpt.errors import CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.formats import key_names as names
from asyncckpt.runtime.memory import PAGE_NBYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from asyncckpt.keyed.values import Names
    from asyncckpt.runtime.pacing import Pacer

FORMAT_VERSION: Final = 1
HEAD_NBYTES: Final = 3 * PAGE_NBYTES
"""The superblock and the two slots, a page each."""
_MAGIC: Final = b"asyncckpt keyed\n"
_SLOT: Final = struct.Struct("<16sIIQQQQQQ16s")
_LINKED: Final = "linked"
"""The feature of a file in which other programs made objects."""
_ROWS: Final = 1024
_ROW_NBYTES: Final = 180
_ERRORS: Final = "surrogatepass"


@contextmanager
def naming(file: str, key: str | None = None) -> Iterator[None]:
    """Let errors about what stands in a file name the file, and the key whose value it is."""
    where = file if key is None else f"{file}: the value of {key!r}"
    try:
        yield
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(f"{where}: {error}", file=file) from error
    except UnsupportedFormatError as error:
        raise UnsupportedFormatError(f"{where}: {error}") from error


class Slot(NamedTuple):
    """One commit."""

    number: int
    """Of the commit, from 1 on."""
    end: int
    """Where the file ends."""
    offset: int
    """Where the catalog's region begins."""
    nbytes: int
    """The region's size: the catalog, and the HDF5 objects that lead to it and to the keys."""
    catalog_nbytes: int
    """The catalog's own size; it stands first."""
    root: int
    """Where the root group's header lies."""
    digest: bytes
    """The xxh3-128 of the region."""

    @property
    def place(self) -> int:
        """Where the slot itself lies."""
        return PAGE_NBYTES * (1 + self.number % 2)

    def encode(self) -> bytes:
        """Return the slot's bytes."""
        body = _SLOT.pack(_MAGIC, FORMAT_VERSION, 0, *self)
        return body + xxh3_128_digest(body)


def find_slots(head: bytes) -> list[Slot]:
    """Return the valid slots in the first `HEAD_NBYTES` of a file, the one that counts first.

    Raises:
        UnsupportedFormatError: A later release wrote the file.
    """
    found = []
    for place in (PAGE_NBYTES, 2 * PAGE_NBYTES):
        body = head[place : place + _SLOT.size]
        if not body.startswith(_MAGIC) or head[place + _SLOT.size :][:DIGEST_NBYTES] != xxh3_128_digest(body):
            continue
        _, version, _, *fields = _SLOT.unpack(body)
        if version != FORMAT_VERSION:
            message = (
                f"the file has format version {version}; this asyncckpt reads {FORMAT_VERSION}: use a later release"
            )
            raise UnsupportedFormatError(message)
        slot = Slot(*fields)
        if slot.place == place:
            found.append(slot)
    return sorted(found, reverse=True)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A run of pages that was written at once."""

    offset: int
    record: FileRecord

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.offset + self.record.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the value of a key lies."""

    region: Region
    begin: int
    """Where its HDF5 objects begin,"""
    end: int
    """and where they end, in the file; the index says where its arrays lie."""
    index_offset: int
    index_nbytes: int
    address: int | None
    """Where the header of its own HDF5 object lies; None if it has none."""
    array_nbytes: int
    """Bytes of its arrays."""
    names: Names
    data_offset: int | None
    """Of a small value: where its arrays begin, with its index behind them,"""
    digest: bytes | None
    """and the xxh3-128 of its HDF5 objects and all that, together. Others are verified by the region's digests."""

    @property
    def nbytes(self) -> int:
        """What the value takes in the file."""
        return self.end - self.begin + self.index_nbytes + self.array_nbytes + _ROW_NBYTES

    @property
    def payload_nbytes(self) -> int:
        """What of it is the value, with no regard to how a file holds it."""
        return self.array_nbytes + self.index_nbytes


class Linked(NamedTuple):
    """Where an object lies that another program made, and that was copied as it is. It has no digest."""

    address: int
    """Of its header."""
    nbytes: int
    """What it takes in the file, as far as that is known."""


def link_name(key: str) -> bytes:
    """Return the name that a key has in HDF5."""
    name = names.spell(key, among_ints=False).encode()
    return names.shorten(name.decode()).encode() if len(name) > names.NAME_MAX_NBYTES else name


def encode_catalog(places: Mapping[str, Place | Linked], pacer: Pacer) -> list[bytes]:
    """Return the catalog of these keys, in chunks: to put them together would take long, if they are many."""
    regions: dict[int, int] = {}
    rows: list[Any] = []
    chunks = [b""]
    listed: list[Any] = []

    def cut() -> None:
        chunks.append(msgpack.packb(msgpack.packb(rows, unicode_errors=_ERRORS)))
        rows.clear()
        pacer.pause()

    has_linked = False
    for key, place in places.items():
        if isinstance(place, Linked):
            has_linked = True
            rows.append((key, None, *place))
        else:
            number = regions.setdefault(place.region.offset, len(regions))
            if number == len(listed):
                listed.append((place.region.offset, place.region.record.nbytes, place.region.record.digests))
            rows.append(
                (
                    key,
                    number,
                    place.begin,
                    place.end,
                    place.index_offset,
                    place.index_nbytes,
                    place.address,
                    place.array_nbytes,
                    place.names,
                    place.data_offset,
                    place.digest,
                )
            )
        if len(rows) == _ROWS:
            cut()
    if rows:
        cut()
    packer = msgpack.Packer(unicode_errors=_ERRORS)
    features = [_LINKED] if has_linked else []
    chunks[0] = packer.pack_map_header(4) + b"".join(
        map(
            packer.pack,
            ("asyncckpt_keyed", FORMAT_VERSION, "features", features, "regions", listed, "keys"),
        )
    )
    chunks[0] += packer.pack_array_header(len(chunks) - 1)
    return chunks


def decode_catalog(data: bytes, end: int, pacer: Pacer) -> dict[str, Place | Linked]:
    """Decode a catalog whose digest is right.

    Args:
        data: The catalog.
        end: Where the file ends.
        pacer: Paused between chunks.

    Raises:
        CorruptCheckpointError: It claims what cannot be.
        UnsupportedFormatError: A later release wrote it.
    """
    try:
        return _decode(data, end, pacer)
    except (ValueError, TypeError, KeyError, IndexError, msgpack.exceptions.UnpackException) as error:
        message = f"the catalog is damaged: {error!r:.200}"
        raise CorruptCheckpointError(message) from error


def _decode(data: bytes, end: int, pacer: Pacer) -> dict[str, Place | Linked]:
    content = msgpack.unpackb(data, unicode_errors=_ERRORS, use_list=False)
    missing = [feature for feature in content["features"] if feature != _LINKED]
    if content["asyncckpt_keyed"] != FORMAT_VERSION or missing:
        lacking = f"{', '.join(map(str, missing)):.200}" or "a later format"
        message = f"the file needs {lacking}: use a later release of asyncckpt"
        raise UnsupportedFormatError(message)
    regions = [_region(end, *row) for row in content["regions"]]
    found: dict[str, Place | Linked] = {}
    for key, place in _rows(end, content["keys"], regions, pacer):
        _require(type(key) is str and key not in found, f"the key {key!r:.200}")
        found[key] = place
    return found


def _rows(end: int, chunks: Any, regions: list[Region], pacer: Pacer) -> Iterator[tuple[str, Place | Linked]]:
    for chunk in chunks:
        pacer.pause()
        for row in msgpack.unpackb(chunk, unicode_errors=_ERRORS, strict_map_key=False):
            if row[1] is None:
                key, _, address, nbytes = row
                _require({type(address), type(nbytes)} == {int} and HEAD_NBYTES <= address < end, f"the row of {key!r}")
                yield key, Linked(address, nbytes)
                continue
            key, number, begin, stop, index_offset, index_nbytes, address, array_nbytes, found_names, *small = row
            data_offset, digest = small
            numbers = (number, begin, stop, index_offset, index_nbytes, array_nbytes, address or 0, data_offset or 0)
            _require({*map(type, numbers)} == {int}, f"the row of {key!r}")
            place = Place(
                region=regions[number],
                begin=begin,
                end=stop,
                index_offset=index_offset,
                index_nbytes=index_nbytes,
                address=address,
                array_nbytes=array_nbytes,
                names=found_names,
                data_offset=data_offset,
                digest=digest,
            )
            low, high = place.region.offset, place.region.end
            _require(low <= begin <= stop <= high, f"the place of {key!r}")
            _require(low <= index_offset <= index_offset + index_nbytes <= high, f"the index of {key!r}")
            if digest is None:
                _require(bool(place.region.record.digests), f"the digest of {key!r}")
            else:
                _require(type(digest) is bytes and low <= data_offset <= index_offset, f"the data of {key!r}")
            yield key, place


def _region(end: int, offset: int, nbytes: int, digests: bytes) -> Region:
    _require(HEAD_NBYTES <= offset <= offset + nbytes <= end, f"a region at {offset}")
    expected = -(-nbytes // DIGEST_BLOCK_NBYTES) * DIGEST_NBYTES
    _require(len(digests) in {0, expected}, f"the digests of the region at {offset}")
    return Region(offset, FileRecord(nbytes, digests))


def _require(holds: bool, what: str) -> None:  # noqa: FBT001 - what must hold
    if not holds:
        raise ValueError(what)
