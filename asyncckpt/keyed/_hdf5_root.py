"""The little HDF5 that is written by hand: superblock, root group, and the dataset that shows the catalog.

Everything below the root group is libhdf5's own work and stays where it is. What changes with every commit is the list
of keys, and it has to lie at a place of our choice, which no interface of libhdf5 offers. Source: "HDF5 File Format
Specification Version 3.0", sections II.A (superblock version 3), IV.A.1.b (object headers of version 2) and IV.A.2
(their messages).

1. The root group holds its links in its header, one message each, in the order of the keys, and says so.
2. Nothing here has room to grow: a tool that adds to the file moves it, which changes the superblock.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncckpt.workers import Pacer

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK_NBYTES: Final = 48
_UNDEFINED: Final = (1 << 64) - 1
_WORD: Final = 0xFFFFFFFF
_GOLDEN: Final = 0xDEADBEEF
_ROUNDS_PER_PAUSE: Final = 128
_HEADER: Final = struct.Struct("<4sBBI")
_MESSAGE: Final = struct.Struct("<BHB")
_SIZE_OF_4: Final = 2  # the length of the header's messages is a uint32
_LINK_MAX_SHORT: Final = 255


def superblock(end: int, root: int) -> bytes:
    """Make the superblock of a file that ends at `end` and has its root group's header at `root`."""
    body = SIGNATURE + struct.pack("<BBBBQQQQ", 3, 8, 8, 0, 0, _UNDEFINED, end, root)
    return body + struct.pack("<I", checksum(body))


def byte_dataset(offset: int, nbytes: int) -> bytes:
    """Make the header of a dataset of uint8, in one dimension, whose bytes lie at `offset`."""
    messages = (
        _message(0x01, struct.pack("<BBBBQ", 2, 1, 0, 1, nbytes)),  # dataspace
        _message(0x03, struct.pack("<BBBBIHH", 0x10, 0, 0, 0, 1, 0, 8), flags=1),  # datatype: 8 bits, unsigned
        _message(0x05, bytes((3, 0x0A)), flags=1),  # fill value: early allocation, never written
        _message(0x08, struct.pack("<BBQQ", 3, 1, offset, nbytes)),  # layout: contiguous
    )
    return _object_header(messages, None)


def group(links: Sequence[tuple[bytes, int]], pacer: Pacer | None = None) -> bytes:
    """Make the header of a group.

    Args:
        links: The names, in UTF-8 and at most 65,000 bytes long, each with the address of its object.
        pacer: Paused between pieces.
    """
    messages = [
        _message(0x02, struct.pack("<BBQQQ", 0, 1, len(links), _UNDEFINED, _UNDEFINED)),  # links: their order is told
        _message(0x0A, bytes(2)),  # group
    ]
    for order, (name, address) in enumerate(links):
        messages.append(_message(0x06, _link(name, order, address)))
        if pacer is not None and not order % _ROUNDS_PER_PAUSE:
            pacer.pause()
    return _object_header(messages, pacer)


def _link(name: bytes, order: int, address: int) -> bytes:
    is_long = len(name) > _LINK_MAX_SHORT
    flags = is_long | 0x04 | 0x10  # the order is there, and the character set
    return (
        struct.pack("<BBQBH" if is_long else "<BBQBB", 1, flags, order, 1, len(name))
        + name
        + address.to_bytes(8, "little")
    )


def _message(kind: int, body: bytes, *, flags: int = 0) -> bytes:
    return _MESSAGE.pack(kind, len(body), flags) + body


def _object_header(messages: Sequence[bytes], pacer: Pacer | None) -> bytes:
    body = b"".join(messages)
    header = _HEADER.pack(b"OHDR", 2, _SIZE_OF_4, len(body)) + body
    return header + struct.pack("<I", checksum(header, pacer))


def checksum(data: bytes, pacer: Pacer | None = None) -> int:
    """Return HDF5's checksum of metadata: Bob Jenkins' lookup3, `hashlittle`, from 0 on."""
    a: int
    b: int
    c: int
    a = b = c = (_GOLDEN + len(data)) & _WORD
    rounds = max(len(data) - 1, 0) // 12
    for number in range(rounds):
        x, y, z = struct.unpack_from("<3I", data, 12 * number)
        a, b, c = a + x & _WORD, b + y & _WORD, c + z & _WORD
        a = a - c & _WORD ^ _rotated(c, 4)
        c = c + b & _WORD
        b = b - a & _WORD ^ _rotated(a, 6)
        a = a + c & _WORD
        c = c - b & _WORD ^ _rotated(b, 8)
        b = b + a & _WORD
        a = a - c & _WORD ^ _rotated(c, 16)
        c = c + b & _WORD
        b = b - a & _WORD ^ _rotated(a, 19)
        a = a + c & _WORD
        c = c - b & _WORD ^ _rotated(b, 4)
        b = b + a & _WORD
        if pacer is not None and not number % _ROUNDS_PER_PAUSE:
            pacer.pause()
    if not data:
        return c
    x, y, z = struct.unpack("<3I", data[12 * rounds :].ljust(12, b"\0"))
    a, b, c = a + x & _WORD, b + y & _WORD, c + z & _WORD
    c = (c ^ b) - _rotated(b, 14) & _WORD
    a = (a ^ c) - _rotated(c, 11) & _WORD
    b = (b ^ a) - _rotated(a, 25) & _WORD
    c = (c ^ b) - _rotated(b, 16) & _WORD
    a = (a ^ c) - _rotated(c, 4) & _WORD
    b = (b ^ a) - _rotated(a, 14) & _WORD
    return (c ^ b) - _rotated(b, 24) & _WORD


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> 32 - bits) & _WORD
