"""The directory of our npz files: the member `__asyncckpt__.npy`, an array of bytes.

It is msgpack: a map of `asyncckpt`, `version`, `features` and, last, `keys`, an array with a row for each key: the key,
the names of the dicts in its value, its tree, and the names of its members. docs/format.md has it in full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import msgpack
import numpy as np

from asyncckpt.errors import CheckpointError, CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.state import index as ix

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from asyncckpt.runtime.pacing import Pacer

NAME: Final = "__asyncckpt__.npy"
VERSION: Final = 1
_ERRORS: Final = "surrogatepass"


class Row(NamedTuple):
    """What the directory knows of a key."""

    key: str
    names: Any
    """As `flat_names` gives them."""
    tree: bytes | None
    """None where the value is just the array of its one member."""
    members: list[str]


def encode(rows: Iterable[Row], count: int, pacer: Pacer) -> bytes:
    """Return the bytes of a directory of so many rows."""
    packer = msgpack.Packer(unicode_errors=_ERRORS)
    head = {"asyncckpt": "keyed", "version": VERSION, "features": []}
    chunks = [packer.pack_map_header(len(head) + 1)]
    chunks += [packer.pack(each) for pair in head.items() for each in pair]
    chunks += [packer.pack("keys"), packer.pack_array_header(count)]
    for batch in pacer.batches(rows):
        chunks += map(packer.pack, batch)
    return b"".join(chunks)


def decode(array: NDArray[Any], pacer: Pacer) -> Iterator[Row]:
    """Yield the rows.

    Raises:
        CorruptCheckpointError: It is no directory.
        UnsupportedFormatError: A later release wrote it.
    """
    try:
        if array.dtype != np.uint8 or array.ndim != 1:
            message = "it is no array of bytes"
            raise ValueError(message)  # noqa: TRY301 - one answer to all that is wrong with it
        unpacker = msgpack.Unpacker(unicode_errors=_ERRORS, object_pairs_hook=_no_map, max_buffer_size=len(array))
        unpacker.feed(array)
        head = {unpacker.unpack(): unpacker.unpack() for _ in range(unpacker.read_map_header() - 1)}
        if head["asyncckpt"] != "keyed" or head["version"] != VERSION or head["features"]:
            needs = f"version {head['version']!r:.200} and needs {head['features']!r:.200}"
            message = f"its directory has {needs}: use a later release"
            raise UnsupportedFormatError(message)
        if unpacker.unpack() != "keys":
            message = "it has no keys"
            raise ValueError(message)  # noqa: TRY301 - as above
        for _ in range(unpacker.read_array_header()):
            key, names, tree, listed = unpacker.unpack()
            pacer.pause()
            is_sound = type(key) is str and type(tree) in (bytes, type(None)) and type(listed) is list
            if not is_sound or any(type(name) is not str for name in listed) or (tree is None and len(listed) != 1):
                message = f"the row of {key!r:.80} is none"
                raise ValueError(message)  # noqa: TRY301 - as above
            yield Row(key, names, tree, listed)
        if unpacker.tell() != len(array):
            message = "something follows its end"
            raise ValueError(message)  # noqa: TRY301 - as above
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.exceptions.UnpackException) as error:
        if isinstance(error, CheckpointError):
            raise
        message = f"the directory {NAME!r} is damaged: {error!r:.200}"
        raise CorruptCheckpointError(message) from error


def encode_tree(index: ix.Index, pacer: Pacer) -> bytes:
    """Return a tree, with its arrays laid out as if they lay behind each other."""
    segments = []
    offset = 0
    for number, meta in enumerate(index.arrays):
        if meta.nbytes:
            segments.append(ix.Segment(number, offset, meta.nbytes))
            offset += meta.nbytes
    return b"".join(ix.IndexEncoder(index, pacer).encode(segments))


def decode_tree(tree: bytes, nbytes: int, count: int, pacer: Pacer) -> ix.Index:
    """Return the index that a tree was made of.

    Raises:
        CorruptCheckpointError: It is none, or not of `count` arrays.
    """
    index, _ = ix.decode_index(memoryview(tree), file_nbytes=nbytes, pacer=pacer)
    if len(index.arrays) != count:
        message = f"it should have {len(index.arrays)} members and has {count}"
        raise CorruptCheckpointError(message)
    return index


def _no_map(pairs: list[tuple[Any, Any]]) -> NoReturn:  # noqa: ARG001 - whatever it holds
    """Refuse a map in the one that there is: millions of them, each of a byte, would fill memory."""
    message = "there is a map in it"
    raise ValueError(message)
