"""Encode the structures of HDF5 files, as in the HDF5 File Format Specification, version 3.0.

1. A structure with a checksum ends with four zero bytes. `seal` computes the checksums of all structures together.
2. Addresses and lengths have eight bytes. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from asyncckpt.runtime.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Words = NDArray[np.uint32]

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
"""The beginning of a file."""
NOWHERE: Final = (1 << 64) - 1
"""The undefined address."""
SUPERBLOCK_NBYTES: Final = 48

DATASPACE: Final = 0x01
LINK_INFO: Final = 0x02
DATATYPE: Final = 0x03
FILL_VALUE: Final = 0x05
LINK: Final = 0x06
LAYOUT: Final = 0x08
GROUP_INFO: Final = 0x0A
ATTRIBUTE: Final = 0x0C
ATTRIBUTE_INFO: Final = 0x15
REFERENCE_COUNT: Final = 0x16

FILL_NEVER: Final = b"\x03\x05"
"""Space is allocated early and never filled."""
FILL_IF_SET: Final = b"\x03\x09"
NULL_SPACE: Final = b"\x02\x00\x00\x02"
GROUP_DEFAULTS: Final = b"\0\0"

_CHECKSUM: Final = bytes(4)
_FEW: Final = 16
_KNOWN_NBYTES: Final = 1024
_UNUSED: Final = b"asyncckpt"
_HEAP_ID_NBYTES: Final = 7
_RECORD_NBYTES: Final = 4 + _HEAP_ID_NBYTES
_NODE_PREFIX_NBYTES: Final = 6
_BLOCK_PREFIX_NBYTES: Final = 17


def superblock(end: int, root: int) -> bytes:
    """Make a superblock of version 3, for a file that ends at `end`."""
    return struct.pack("<8s4B4Q", SIGNATURE, 3, 8, 8, 0, 0, NOWHERE, end, root) + _CHECKSUM


def dataspace(shape: tuple[int, ...]) -> bytes:
    """Make the message of a scalar or simple dataspace."""
    return struct.pack(f"<4B{len(shape)}Q", 2, len(shape), 0, bool(shape), *shape)


def message(kind: int, body: bytes, *, order: int = 0, is_constant: bool = False) -> bytes:
    """Make a message of an object header that keeps the order of its attributes."""
    return struct.pack("<BHBH", kind, len(body), is_constant, order) + body


def object_header(messages: bytes, attributes: int) -> bytes:
    """Make an object header of version 2, without times."""
    flags = 0x02 | 0x04  # four bytes for its size; the order of attributes
    limits = b""
    if attributes > 8:  # noqa: PLR2004 - the default of HDF5
        flags |= 0x10
        limits = struct.pack("<2H", attributes, 6)
    return b"OHDR\x02" + bytes((flags,)) + limits + len(messages).to_bytes(4, "little") + messages + _CHECKSUM


def attribute(name: bytes, datatype: bytes, space: bytes, data: bytes) -> bytes:
    """Make the body of an attribute message."""
    is_utf8 = not name.isascii()
    return (
        struct.pack("<2B3HB", 3, 0, len(name) + 1, len(datatype), len(space), is_utf8)
        + name
        + b"\0"
        + datatype
        + space
        + data
    )


def attribute_info(count: int) -> bytes:
    """Make the message before the attributes in a header."""
    return struct.pack("<2BH2Q", 0, 1, count, NOWHERE, NOWHERE)


def contiguous(address: int, nbytes: int) -> bytes:
    """Make the layout message of data at an address."""
    return struct.pack("<2B2Q", 3, 1, address, nbytes)


def compact(data: bytes) -> bytes:
    """Make the layout message that holds the data itself."""
    return struct.pack("<2BH", 3, 0, len(data)) + data


def link_info(count: int, heap: int, tree: int) -> bytes:
    """Make the message of a group with `count` links, whose order is stored."""
    return struct.pack("<2B3Q", 0, 1, count, heap, tree)


def link(name: bytes, order: int, address: int) -> bytes:
    """Make a hard link."""
    is_long = len(name) > 0xFF  # noqa: PLR2004 - its length takes more than a byte
    is_utf8 = not name.isascii()
    return (
        struct.pack("<2BQ", 1, 0x04 | is_long | is_utf8 << 4, order)
        + (b"\x01" if is_utf8 else b"")
        + len(name).to_bytes(1 + is_long, "little")
        + name
        + address.to_bytes(8, "little")
    )


def text_collection(texts: Sequence[bytes]) -> bytes:
    """Make a collection of the global heap, whose objects are numbered from 1.

    Its last object is not referred to. Without it, libhdf5 would free the collection when its only text is replaced,
    make another at the same address, and give the new text the same number, so that the change could not be detected.
    """
    parts: list[bytes] = []
    for number, text in enumerate([*texts, _UNUSED], 1):
        parts += (struct.pack("<2HIQ", number, 1, 0, len(text)), text, bytes(-len(text) % 8))
    content = b"".join(parts)
    nbytes = -(-(len(content) + 32) // 4096) * 4096  # 16 for the collection's header, 16 for that of its free space
    free = nbytes - 16 - len(content)
    return struct.pack("<4sIQ", b"GCOL", 1, nbytes) + content + struct.pack("<2HIQ", 0, 0, 0, free) + bytes(free - 16)


class DenseLinks(NamedTuple):
    """The storage of a large group's links: a fractal heap of one block, and a B-tree of the hashes of names."""

    block_nbytes: int
    node_nbytes: int
    leaves: tuple[int, ...]
    """The number of records in each leaf. Between two leaves, the root has one more."""

    @classmethod
    def of(cls, count: int, links_nbytes: int) -> DenseLinks:
        """Choose the sizes for `count` links."""
        block_nbytes = max(512, 1 << (links_nbytes + _BLOCK_PREFIX_NBYTES - 1).bit_length())
        node_nbytes = 4096
        while True:
            per_leaf = (node_nbytes - _NODE_PREFIX_NBYTES - 4) // _RECORD_NBYTES
            number = 1 if count <= per_leaf else -(-(count + 1) // (per_leaf + 1))
            pointer = 8 + _size_nbytes(per_leaf)
            if number - 1 <= (node_nbytes - _NODE_PREFIX_NBYTES - 4 - pointer) // (_RECORD_NBYTES + pointer):
                break
            node_nbytes *= 2
        share, rest = divmod(count - number + 1, number)
        return cls(block_nbytes, node_nbytes, (*[share + 1] * rest, *[share] * (number - rest)))

    def parts(self) -> list[int]:
        """Return the sizes of the header and block of the heap, and of the header, leaves and root of the tree."""
        trees = [self.node_nbytes] * len(self.leaves) + [self.node_nbytes] * (len(self.leaves) > 1)
        return [146, self.block_nbytes, 38, *trees]

    def render(self, places: Sequence[int], links: Sequence[bytes], hashes: Sequence[int], pacer: Pacer) -> list[bytes]:
        """Make the parts. Each ends with its checksum, except for the block of the heap, which has none.

        Args:
            places: The addresses of the parts.
            links: The bodies of the links' messages, in their order.
            hashes: The hashes of the links' names.
            pacer: Paused between chunks.
        """
        heap, block, _, *nodes = places
        records, at = [], _BLOCK_PREFIX_NBYTES
        for batch in pacer.batches(zip(links, hashes, strict=True)):
            for body, hashed in batch:
                records.append(struct.pack("<IBIH", hashed, 0, at, len(body)))
                at += len(body)
        records = [records[number] for number in by_hash(hashes, links)]
        pacer.pause()
        free = self.block_nbytes - at
        header = struct.pack(
            "<4sB2HBI12QH2Q2HQH",
            *(b"FRHP", 0, _HEAP_ID_NBYTES, 0, 0, 4096),
            *(0, NOWHERE, free, NOWHERE, self.block_nbytes, self.block_nbytes, self.block_nbytes, len(links)),
            *(0, 0, 0, 0),
            *(4, self.block_nbytes, self.block_nbytes, 32, 1, block, 0),
        )
        content = struct.pack("<4sBQI", b"FHDB", 0, heap, 0) + b"".join(links)
        leaves, between, at = [], [], 0
        for count in self.leaves:
            leaves.append(b"BTLF\0\x05" + b"".join(records[at : at + count]) + _CHECKSUM)
            between += records[at + count : at + count + 1]
            at += count + 1
        if len(self.leaves) > 1:
            size = _size_nbytes((self.node_nbytes - _NODE_PREFIX_NBYTES - 4) // _RECORD_NBYTES)
            pointers = (
                place.to_bytes(8, "little") + count.to_bytes(size, "little")
                for place, count in zip(nodes, self.leaves, strict=False)
            )
            leaves.append(b"BTIN\0\x05" + b"".join((*between, *pointers)) + _CHECKSUM)
        depth = len(self.leaves) > 1
        in_root = len(between) if depth else len(links)
        tree = struct.pack(
            "<4s2BI2H2BQHQ",
            b"BTHD",
            0,
            5,
            self.node_nbytes,
            _RECORD_NBYTES,
            depth,
            100,
            40,
            nodes[-1],
            in_root,
            len(links),
        )
        return [header + _CHECKSUM, content, tree + _CHECKSUM, *leaves]


def _size_nbytes(largest: int) -> int:
    return (largest.bit_length() - 1) // 8 + 1


def by_hash(hashes: Sequence[int], links: Sequence[bytes]) -> list[int]:
    """Return the numbers of the links, sorted by their hashes, and by their names if those are equal."""
    by_number = np.array(hashes, np.uint32)
    order = np.argsort(by_number, kind="stable")  # releases the GIL, unlike sorting a list
    found: list[int] = order.tolist()
    in_order = by_number[order]
    for at in np.flatnonzero(in_order[1:] == in_order[:-1]):
        begin, end = (int(np.searchsorted(in_order, in_order[at], side)) for side in ("left", "right"))
        found[begin:end] = sorted(found[begin:end], key=lambda number: _name_of(links[number]))
    return found


def _name_of(body: bytes) -> bytes:
    """Return the name in a link's message."""
    return body[10 + (body[1] >> 4 & 1) + 1 + (body[1] & 1) : -8]


_ROWS: Final = 512
"""The number of runs of bytes whose checksums are computed together, with one call for each step."""


def checksums(rows: NDArray[np.uint8], pacer: Pacer) -> Words:
    """Return Bob Jenkins's lookup3 of each row of bytes, at least one byte long, as HDF5 computes it (from 0)."""
    count, nbytes = rows.shape
    if count < _FEW:
        return np.array([_checksum(row.tobytes(), pacer) for row in rows], np.uint32)
    padded = np.zeros((count, max(12, -(-nbytes // 12) * 12)), np.uint8)
    padded[:, :nbytes] = rows
    words = np.ascontiguousarray(padded.view("<u4").T).astype(np.uint32)
    start = np.full(count, (0xDEADBEEF + nbytes) & 0xFFFFFFFF, np.uint32)
    a, b, c = start, start.copy(), start.copy()
    for at in range(0, len(words) - 3, 3):
        pacer.pause()
        a, b, c = _mix(a + words[at], b + words[at + 1], c + words[at + 2])
    found: Words = _finish(a + words[-3], b + words[-2], c + words[-1])
    return found


def _rotated(x: Any, k: int) -> Any:
    return (x << np.uint32(k)) | (x >> np.uint32(32 - k))


def _mix(a: Any, b: Any, c: Any) -> tuple[Any, Any, Any]:
    for k in (4, 6, 8, 16, 19, 4):
        a = (a - c) ^ _rotated(c, k)
        c = c + b
        a, b, c = b, c, a
    return a, b, c


def _finish(a: Any, b: Any, c: Any) -> Any:
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotated(b, k)
        a, b, c = b, c, a
    return b


def _checksum(data: bytes, pacer: Pacer) -> int:
    """Return the lookup3 of one run of bytes. Those of short runs are cached."""
    return _known_checksum(data) if len(data) <= _KNOWN_NBYTES else _lookup3(data, pacer)


@lru_cache(maxsize=1024)
def _known_checksum(data: bytes) -> int:
    """Cache the checksums of small states' structures, because the next save has the same ones."""
    return _lookup3(data, Pacer(yields=False))


def _lookup3(data: bytes, pacer: Pacer) -> int:
    """Compute lookup3 with Python's ints, which is ten times as fast as arrays for a few runs of bytes.

    The loop over the shifts is unrolled, which halves the time.
    """
    full = 0xFFFFFFFF
    count = max(3, -(-len(data) // 12) * 3)
    words: tuple[int, ...] = struct.unpack(f"<{count}I", data.ljust(4 * count, b"\0"))
    a = b = c = (0xDEADBEEF + len(data)) & full
    for batch in pacer.batches(range(0, count - 3, 3)):
        for at in batch:
            a, b, c = a + words[at], (b + words[at + 1]) & full, (c + words[at + 2]) & full
            a, c = (a - c ^ (c << 4 | c >> 28)) & full, (c + b) & full
            b, a = (b - a ^ (a << 6 | a >> 26)) & full, (a + c) & full
            c, b = (c - b ^ (b << 8 | b >> 24)) & full, (b + a) & full
            a, c = (a - c ^ (c << 16 | c >> 16)) & full, (c + b) & full
            b, a = (b - a ^ (a << 19 | a >> 13)) & full, (a + c) & full
            c, b = (c - b ^ (b << 4 | b >> 28)) & full, (b + a) & full
    a, b, c = (a + words[-3]) & full, (b + words[-2]) & full, (c + words[-1]) & full
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - (b << k | b >> 32 - k)) & full
        a, b, c = b, c, a
    return b


def hashes(names: Sequence[bytes], pacer: Pacer) -> list[int]:
    """Return the hash of each name, which is its key in a B-tree."""
    by_length: dict[int, list[int]] = {}
    for batch in pacer.batches(enumerate(names)):
        for number, name in batch:
            by_length.setdefault(len(name), []).append(number)
    found = [0] * len(names)
    for nbytes, alike in by_length.items():
        for numbers in pacer.batches(alike, _ROWS):
            rows = np.frombuffer(b"".join([names[number] for number in numbers]), np.uint8).reshape(-1, nbytes)
            for number, value in zip(numbers, checksums(rows, pacer).tolist(), strict=True):
                found[number] = value
    return found


def seal(image: NDArray[np.uint8], structures: Sequence[tuple[int, int]], pacer: Pacer) -> None:
    """Fill in the checksums of structures, given as (begin, length with the checksum)."""
    by_length: dict[int, list[int]] = {}
    for batch in pacer.batches(structures):
        for begin, nbytes in batch:
            by_length.setdefault(nbytes - 4, []).append(begin)
    for nbytes, alike in by_length.items():
        if len(alike) < _FEW:
            for begin in alike:
                end = begin + nbytes
                struct.pack_into("<I", image.data, end, _checksum(image[begin:end].tobytes(), pacer))
            continue
        for begins in pacer.batches(alike, _ROWS):
            places = np.array(begins)[:, np.newaxis]
            found = checksums(image[places + np.arange(nbytes)], pacer)
            image[places + np.arange(nbytes, nbytes + 4)] = found.astype("<u4")[:, np.newaxis].view(np.uint8)
