"""The directory of an npz file: a member that is msgpack, and says which members the value of each key has."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import msgpack

from asyncckpt.compatibility import check_compatibility
from asyncckpt.keyed.npz.archive import damage_of, damaged
from asyncckpt.state import index as ix
from asyncckpt.state.packed import TEXT_ERRORS
from asyncckpt.state.segments import Segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from zipfile import ZipInfo

    from asyncckpt.keyed.npz.archive import Archive
    from asyncckpt.runtime.pacing import Pacer

Row: TypeAlias = tuple[str, Any, bytes | None, list[str]]
"""A key, the keys of the dicts in its value, its tree (None if it is the array of its one member), and its members."""

DIRECTORY: Final = "__asyncckpt__.npy"
_HEAD: Final = {"asyncckpt": "keyed", "version": 1, "features": []}
_SLACK_NBYTES: Final = 1 << 20


def encode_directory(
    rows: Iterable[tuple[str, Any, bytes | None, tuple[ZipInfo, ...]]], count: int, pacer: Pacer
) -> bytes:
    """Return a map of what is in `_HEAD` and, last, `keys`: a row for each key."""
    packer = msgpack.Packer(unicode_errors=TEXT_ERRORS)
    chunks = [packer.pack_map_header(len(_HEAD) + 1), *(packer.pack(each) for pair in _HEAD.items() for each in pair)]
    chunks += [packer.pack("keys"), packer.pack_array_header(count)]
    for key, names, tree, members in rows:
        chunks.append(packer.pack((key, names, tree, [info.filename for info in members])))
        pacer.pause()
    return b"".join(chunks)


def decode_directory(file: Archive, info: ZipInfo, pacer: Pacer) -> Iterator[Row]:
    """Yield the rows.

    Raises:
        CorruptCheckpointError: It is not a directory.
        UnsupportedFormatError: A later release wrote it.
    """
    if info.file_size > max(4 * info.compress_size, _SLACK_NBYTES):
        damaged(f"the directory {DIRECTORY!r} of {info.compress_size} bytes claims to hold {info.file_size}")
    array = file.value(info, pacer)
    with damage_of(f"the directory {DIRECTORY!r} is damaged"):
        unpacker = msgpack.Unpacker(unicode_errors=TEXT_ERRORS, object_pairs_hook=_no_map, max_buffer_size=array.nbytes)
        unpacker.feed(array)
        head = {unpacker.unpack(): unpacker.unpack() for _ in range(unpacker.read_map_header() - 1)}
        check_compatibility("the directory", head["version"], head["features"], reads=1)
        if head["asyncckpt"] != "keyed" or unpacker.unpack() != "keys":
            damaged(f"the directory {DIRECTORY!r} has no keys")
        for _ in range(unpacker.read_array_header()):
            key, of, tree, listed = unpacker.unpack()
            is_sound = type(key) is str and type(tree) in (bytes, type(None)) and type(listed) is list
            if not is_sound or any(type(name) is not str for name in listed) or (tree is None and len(listed) != 1):
                damaged(f"the directory {DIRECTORY!r} has a row of {key!r:.80} that is none")
            yield key, of, tree, listed
            pacer.pause()
        if unpacker.tell() != array.nbytes:
            damaged(f"something follows the end of the directory {DIRECTORY!r}")


def _no_map(pairs: Any) -> NoReturn:  # noqa: ARG001 - whatever it holds
    """Refuse a map in the one that there is: millions of them, each of a byte, would fill memory."""
    message = "there is a map in it"
    raise ValueError(message)


def encode_tree(index: ix.Index, pacer: Pacer) -> bytes:
    """Return a value's tree, with its arrays as if they lay behind each other in a file."""
    sizes = [meta.nbytes for meta in index.arrays]
    extents = enumerate(zip(accumulate(sizes, initial=0), sizes, strict=False))
    segments = [Segment(number, begin, nbytes) for number, (begin, nbytes) in extents if nbytes]
    return b"".join(ix.IndexEncoder(index, pacer).encode(segments))


def decode_tree(tree: bytes, members: tuple[ZipInfo, ...], pacer: Pacer) -> ix.Index:
    """Return the index of a value's tree, whose arrays are these members; raise a CorruptCheckpointError otherwise."""
    nbytes = sum(info.file_size for info in members)
    index, _ = ix.decode_index(memoryview(tree), file_nbytes=nbytes, pacer=pacer)
    if len(index.arrays) != len(members):
        damaged(f"it should have {len(index.arrays)} members and has {len(members)}")
    return index
