"""The npz kind: a zip file of arrays, as `numpy.savez` makes it, rewritten as a whole by each commit.

1. Every array is a member, an npy file, which numpy opens. The rest of a value is in the member `__asyncckpt__.npy`,
   the directory: for each key its members and, unless it is just an array, its tree. Members that are not in the
   directory are keys of their own.
2. Values are written to the temporary file when they are put. A commit copies the others to it, and gives it the file's
   name.
3. Nothing more is written to a temporary file after a commit of it failed, because it may have the file's name by then.
   What was put into it is copied to the next one, and verified.
"""

from __future__ import annotations

from itertools import accumulate, count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import msgpack
import numpy as np

from asyncckpt.compatibility import check_compatibility
from asyncckpt.formats import key_names as names
from asyncckpt.keyed.base import FileStore
from asyncckpt.keyed.damage import damage_of, damaged, errors_of
from asyncckpt.keyed.key_tree import flatten_key_tree, unflatten_key_tree
from asyncckpt.keyed.npz.archive import SUFFIX, Archive, check_expansion, npy_header
from asyncckpt.keyed.values import Found, build_value, runs_of
from asyncckpt.runtime.cleanup import on_failure
from asyncckpt.state import index as ix
from asyncckpt.state.packed import TEXT_ERRORS
from asyncckpt.state.segments import Segment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from zipfile import ZipInfo

    from numpy.typing import NDArray

    from asyncckpt.arrays.meta import ArrayMeta
    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.keyed.values import CapturedValue
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import Pacer

DIRECTORY: Final = "__asyncckpt__.npy"
_HEAD: Final = {"asyncckpt": "keyed", "version": 1, "features": []}
_SLACK_NBYTES: Final = 1 << 20
_ONE_ARRAY: Final = ix.pack_chunk([ix.ext(ix.ARRAY, 0)])


class _Item(NamedTuple):
    """A key: its members, and its tree, if it is not just the array of its one member."""

    file: Archive
    members: tuple[ZipInfo, ...]
    tree: bytes | None
    key_tree: KeyTree


class NumPyStore(FileStore[dict[str, _Item]]):
    """An open zip file of arrays."""

    _max_key_nbytes = 1 << 16

    def __init__(self, location: FileLocation, context: JobContext, *, trusted: bool) -> None:
        """See `FileStore`; `trusted` allows for arrays that are very much larger than in the file."""
        self._is_trusted = trusted
        self._files: set[Archive] = set()  # that are open: the last commit's, the temporary file, and those that failed
        super().__init__(location, context)

    def _use(self, content: dict[str, _Item]) -> None:
        self._items: dict[str, _Item] = {}
        self._entries: dict[str, KeyTree] = {}
        self._owners: dict[str, str] = {}  # the key of each member, by its name
        self._temporary: Archive | None = None
        for key, item in content.items():
            self._set(key, item)
        self._close_unused()

    def _close(self) -> None:
        if self._temporary is not None:
            self._location.discard_temporary()
        self._use({})

    def disk_use(self) -> tuple[Path, int]:
        members = (info for item in self._items.values() for info in item.members)
        return self._location.path, sum(info.compress_size for info in members)

    def read(self, key: str, context: JobContext, *, keeps_kinds: bool = True) -> Found:
        item, pacer = self._items[key], context.pacer
        with errors_of(self._location.name, f"the value of {key!r}"):
            if not self._is_trusted:
                check_expansion(item.members)
            if item.tree is None:
                return Found(item.file.value(item.members[0], pacer), {})
            nbytes = sum(info.file_size for info in item.members)
            index, _ = ix.decode_index(memoryview(item.tree), file_nbytes=nbytes, pacer=pacer)
            if len(index.arrays) != len(item.members):
                damaged(f"it should have {len(index.arrays)} members and has {len(item.members)}")
            pairs = enumerate(zip(item.members, index.arrays, strict=True))
            arrays = {number: _restored(item.file.value(info, pacer), meta) for number, (info, meta) in pairs}
            return build_value(index, arrays, pacer, keeps_kinds=keeps_kinds)

    def _put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        temporary, metas = self._open_temporary(), value.index.arrays
        headers = [npy_header(meta.dtype, meta.shape) for meta in metas]
        is_plain = list(value.index.chunks) == [_ONE_ARRAY] and headers[0] is not None
        suffixes = [SUFFIX] if is_plain else [f"/{number}{SUFFIX}" for number in range(len(metas))]
        prefix, members = self._prefix(key, suffixes), []
        for number, (meta, header, suffix) in enumerate(zip(metas, headers, suffixes, strict=True)):
            members.append(temporary.add(prefix + suffix, header, meta.nbytes, runs_of(value, number)))
            context.pacer.pause()
        tree = None if is_plain else _encode_tree(value.index, context.pacer)
        self._set(key, _Item(temporary, tuple(members), tree, value.key_tree))

    def _delete(self, key: str) -> None:
        self._drop(key)
        del self._items[key], self._entries[key]

    def _commit(self, context: JobContext) -> None:
        new = [item for item in self._items.values() if item.file is self._temporary]
        held = sum(info.compress_size for item in new for info in item.members)
        if self._temporary is not None and self._temporary.end > held + held // 2 + _SLACK_NBYTES:
            self._abandon_temporary()
        target = self._open_temporary()
        with on_failure(self._abandon_temporary):
            with errors_of(self._location.name):  # what stays may be damaged
                items = {key: self._moved(item, target, context.pacer) for key, item in self._items.items()}
                encoded = _encode_directory(items)
                own = target.add(DIRECTORY, None, len(encoded), [encoded])
                target.finish([*(info for item in items.values() for info in item.members), own])
            self._location.ops.sync(target.fd)
            self._location.publish_temporary()
        self._items, self._temporary = items, None
        self._close_unused()

    # --- opening ------------------------------------------------------------------------------------------------------

    def _load(self, context: JobContext) -> dict[str, _Item]:
        fd = self._location.open()
        if fd is None:
            return {}
        with errors_of(self._location.name), damage_of("it is not a zip file, or is damaged"):
            file = Archive(fd, self._location.ops)
            with on_failure(file.close_file):
                items = self._read_items(file, context.pacer)
        self._files.add(file)
        return items

    def _read_items(self, file: Archive, pacer: Pacer) -> dict[str, _Item]:
        items: dict[str, _Item] = {}
        members = file.members()
        own = members.pop(DIRECTORY, None)
        for key, key_tree, tree, listed in () if own is None else _decode_directory(file, own, pacer):
            if key in items:
                damaged(f"duplicate key {key!r}")
            if lacking := [name for name in listed if name not in members]:
                damaged(f"the key {key!r} lacks its member {lacking[0]!r}")
            own_members = tuple([members.pop(name) for name in dict.fromkeys(listed)])
            items[key] = _Item(file, own_members, tree, key_tree)
        if members or own is None:
            self._location.mark_foreign("the comments, dates and attributes of the zip archive and its members")
        for name, info in members.items():
            if (key := name.removesuffix(SUFFIX)) in items:
                damaged(f"duplicate key {key!r}")
            items[key] = _Item(file, (info,), None, None)
        return items

    # --- writing ------------------------------------------------------------------------------------------------------

    def _open_temporary(self) -> Archive:
        if self._temporary is None:
            fd = self._location.create_temporary()
            with on_failure(self._location.discard_temporary):
                self._temporary = Archive(fd, self._location.ops)
            self._files.add(self._temporary)
        return self._temporary

    def _abandon_temporary(self) -> None:
        """Write no more to the temporary file; what was put into it can still be read."""
        if self._temporary is not None:
            self._temporary.is_sure, self._temporary = False, None
            self._location.discard_temporary()
        self._close_unused()

    def _close_unused(self) -> None:
        needed = {self._temporary, *(item.file for item in self._items.values())}
        for file in self._files - needed:
            file.close_file()
        self._files &= needed

    def _moved(self, item: _Item, target: Archive, pacer: Pacer) -> _Item:
        if item.file is target:
            return item
        return item._replace(file=target, members=tuple([target.copy(item.file, i, pacer) for i in item.members]))

    def _prefix(self, key: str, suffixes: list[str]) -> str:
        """Return a name which no other key's member has, whichever of the suffixes is behind it."""
        name = names.shorten(names.escape(key))
        tries = (name + (f"%~{number}" if number else "") for number in count())
        return next(found for found in tries if all(self._owners.get(found + each, key) == key for each in suffixes))

    def _set(self, key: str, item: _Item) -> None:
        self._drop(key)
        self._items[key] = item
        self._entries[key] = item.key_tree
        self._owners.update((info.filename, key) for info in item.members)

    def _drop(self, key: str) -> None:
        for info in self._items[key].members if key in self._items else ():
            self._owners.pop(info.filename, None)


# --- the directory, a map in msgpack ----------------------------------------------------------------------------------


def _encode_directory(items: dict[str, _Item]) -> bytes:
    """Return a map of what is in `_HEAD` and, last, `keys`: a row for each key."""
    rows = [
        (key, flatten_key_tree(item.key_tree), item.tree, [info.filename for info in item.members])
        for key, item in items.items()
    ]
    packed: bytes = msgpack.packb({**_HEAD, "keys": rows}, unicode_errors=TEXT_ERRORS)
    return packed


def _decode_directory(
    file: Archive, info: ZipInfo, pacer: Pacer
) -> Iterator[tuple[str, KeyTree, bytes | None, list[str]]]:
    """Yield, for each key, its key tree, its tree (None if it is the array of its one member), and its members.

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
            yield key, unflatten_key_tree(of), tree, listed
            pacer.pause()
        if unpacker.tell() != array.nbytes:
            damaged(f"something follows the end of the directory {DIRECTORY!r}")


def _no_map(pairs: Any) -> NoReturn:  # noqa: ARG001 - whatever it holds
    """Refuse a map in the one that there is: millions of them, each of a byte, would fill memory."""
    message = "there is a map in it"
    raise ValueError(message)


def _encode_tree(index: ix.Index, pacer: Pacer) -> bytes:
    """Return a value's tree, with its arrays as if they lay behind each other in a file."""
    sizes = [meta.nbytes for meta in index.arrays]
    extents = enumerate(zip(accumulate(sizes, initial=0), sizes, strict=False))
    segments = [Segment(number, begin, nbytes) for number, (begin, nbytes) in extents if nbytes]
    return b"".join(ix.IndexEncoder(index, pacer).encode(segments))


def _restored(array: Any, meta: ArrayMeta) -> NDArray[Any]:
    """Return a member's array as the tree says it is."""
    found = (array.dtype, array.shape) if isinstance(array, np.ndarray) else None
    if found == (meta.dtype, meta.shape):
        return array  # type: ignore[no-any-return] # it is one
    if found != (np.dtype(np.uint8), (meta.nbytes,)):
        damaged(f"an array should be {meta.dtype} {meta.shape} and is {found}")
    return np.ndarray(meta.shape, meta.dtype, array)
