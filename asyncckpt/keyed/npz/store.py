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

from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from asyncckpt.errors import CorruptCheckpointError, UnsupportedFormatError, UnsupportedLeafError, UntrustedFileError
from asyncckpt.formats import key_names as names
from asyncckpt.keyed.base import FileStore
from asyncckpt.keyed.key_tree import flatten_key_tree, unflatten_key_tree
from asyncckpt.keyed.npz.archive import SUFFIX, Archive, check_expansion, damage_of, damaged, npy_header
from asyncckpt.keyed.npz.directory import DIRECTORY, decode_directory, decode_tree, encode_directory, encode_tree
from asyncckpt.keyed.values import Found, build_value, runs_of
from asyncckpt.state import index as ix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from zipfile import ZipInfo

    from numpy.typing import NDArray

    from asyncckpt.arrays.meta import ArrayMeta
    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.keyed.values import CapturedValue
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import Pacer

_SLACK_NBYTES: Final = 1 << 20
_MAX_KEY_NBYTES: Final = 1 << 16
_ONE_ARRAY: Final = ix.pack_chunk([ix.ext(ix.ARRAY, 0)])


class _Item(NamedTuple):
    """A key: its members, and its tree, if it is not just the array of its one member."""

    file: Archive
    members: tuple[ZipInfo, ...]
    tree: bytes | None
    key_tree: KeyTree


class _Content(NamedTuple):
    """What a file holds."""

    file: Archive | None
    items: dict[str, _Item]


class NumPyStore(FileStore[_Content]):
    """An open zip file of arrays."""

    def __init__(self, location: FileLocation, context: JobContext, *, trusted: bool) -> None:
        """See `FileStore`; `trusted` allows for arrays that are very much larger than in the file."""
        self._is_trusted = trusted
        self._files: set[Archive] = set()  # that are open: the last commit's, the temporary file, and those that failed
        super().__init__(location, context)

    def _use(self, content: _Content) -> None:
        self._items: dict[str, _Item] = {}
        self._entries: dict[str, KeyTree] = {}
        self._owners: dict[str, str] = {}  # the key of each member, by its name
        self._temporary: Archive | None = None
        for key, item in content.items.items():
            self._set(key, item)
        self._is_changed = False
        before, self._files = self._files, set() if content.file is None else {content.file}
        for file in before:
            file.close_file()

    @property
    def entries(self) -> Mapping[str, KeyTree]:
        return self._entries

    def disk_use(self) -> tuple[Path, int]:
        members = (info for item in self._items.values() for info in item.members)
        return self._location.path, sum(info.compress_size for info in members)

    def read(self, key: str, context: JobContext) -> Found:
        item, pacer = self._items[key], context.pacer
        with self._errors_of(f"the value of {key!r}"):
            if not self._is_trusted:
                check_expansion(item.members)
            if item.tree is None:
                return Found(item.file.value(item.members[0], pacer), {})
            index = decode_tree(item.tree, item.members, pacer)
            found = enumerate([item.file.value(info, pacer) for info in item.members])
            return build_value(
                index, {number: _restored(array, index.arrays[number]) for number, array in found}, pacer
            )

    def put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        if len(key.encode("utf-8", "surrogatepass")) > _MAX_KEY_NBYTES:
            message = f"a key of more than {_MAX_KEY_NBYTES} bytes"
            raise UnsupportedLeafError(message, path=key[:80])
        self.begin(context)
        temporary, metas, pacer = self._open_temporary(), value.index.arrays, context.pacer
        headers = [npy_header(meta.dtype, meta.shape) for meta in metas]
        is_plain = list(value.index.chunks) == [_ONE_ARRAY] and headers[0] is not None
        suffixes = [SUFFIX] if is_plain else [f"/{number}{SUFFIX}" for number in range(len(metas))]
        prefix = self._prefix(key, suffixes)
        before, members = temporary.end, []
        try:
            for number, (meta, header, suffix) in enumerate(zip(metas, headers, suffixes, strict=True)):
                members.append(temporary.add(prefix + suffix, header, meta.nbytes, runs_of(value, number)))
                pacer.pause()
            tree = None if is_plain else encode_tree(value.index, pacer)
        except BaseException:
            temporary.end = before
            raise
        self._set(key, _Item(temporary, tuple(members), tree, value.key_tree))

    def delete(self, key: str, context: JobContext) -> None:
        self.begin(context)
        self._drop(key)
        del self._items[key], self._entries[key]
        self._is_changed = True

    def commit(self, context: JobContext) -> None:
        if not self._is_changed:
            return
        new = [item for item in self._items.values() if item.file is self._temporary]
        held = sum(info.compress_size for item in new for info in item.members)
        if self._temporary is not None and self._temporary.end > held + held // 2 + _SLACK_NBYTES:
            self._abandon_temporary()
        target = self._open_temporary()
        try:
            with self._errors_of():  # what stays may be damaged
                items = self._complete(target, context.pacer)
            self._location.ops.sync(target.fd)
            self._location.publish_temporary()
        except BaseException:
            self._abandon_temporary()
            raise
        self._items, self._temporary, self._is_changed = items, None, False
        self._close_unused()

    def _close(self) -> None:
        if self._temporary is not None:
            self._location.discard_temporary()
        self._use(_Content(None, {}))

    # --- opening ------------------------------------------------------------------------------------------------------

    def _load(self, context: JobContext) -> _Content:
        fd = self._location.open()
        if fd is None:
            return _Content(None, {})
        with self._errors_of():
            with damage_of("it is not a zip file, or is damaged"):
                file = Archive(fd, self._location.ops)
            try:
                return _Content(file, self._read_items(file, context.pacer))
            except BaseException:
                file.close_file()
                raise

    def _read_items(self, file: Archive, pacer: Pacer) -> dict[str, _Item]:
        items: dict[str, _Item] = {}
        members = file.members()
        own = members.pop(DIRECTORY, None)
        for key, of, tree, listed in () if own is None else decode_directory(file, own, pacer):
            if key in items:
                damaged(f"duplicate key {key!r}")
            if lacking := [name for name in listed if name not in members]:
                damaged(f"the key {key!r} lacks its member {lacking[0]!r}")
            own_members = tuple([members.pop(name) for name in dict.fromkeys(listed)])
            items[key] = _Item(file, own_members, tree, unflatten_key_tree(of))
        if members or own is None:
            self._location.mark_foreign("the comments, dates and attributes of the zip archive and its members")
        for name, info in members.items():
            if (key := name.removesuffix(SUFFIX)) in items:
                damaged(f"duplicate key {key!r}")
            items[key] = _Item(file, (info,), None, None)
        return items

    @contextmanager
    def _errors_of(self, what: str = "") -> Iterator[None]:
        """Add the file, and what of it, to errors."""
        try:
            yield
        except (CorruptCheckpointError, UnsupportedFormatError, UntrustedFileError) as error:
            message = ": ".join(filter(None, (self._location.name, what, str(error))))
            if isinstance(error, CorruptCheckpointError):
                raise CorruptCheckpointError(message, file=self._location.name) from error
            raise type(error)(message) from error

    # --- writing ------------------------------------------------------------------------------------------------------

    def _open_temporary(self) -> Archive:
        if self._temporary is None:
            fd = self._location.create_temporary()
            try:
                self._temporary = Archive(fd, self._location.ops)
            except BaseException:
                self._location.discard_temporary()
                raise
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

    def _complete(self, target: Archive, pacer: Pacer) -> dict[str, _Item]:
        """Copy what is not in the new file yet, and end it with the directories."""
        items = {}
        for key, item in self._items.items():
            items[key] = item
            if item.file is not target:
                copies = tuple([target.copy(item.file, info, pacer) for info in item.members])
                items[key] = item._replace(file=target, members=copies)
        rows = ((key, flatten_key_tree(item.key_tree), item.tree, item.members) for key, item in items.items())
        encoded = encode_directory(rows, len(items), pacer)
        own = target.add(DIRECTORY, None, len(encoded), [encoded])
        target.finish([*(info for item in items.values() for info in item.members), own])
        return items

    def _prefix(self, key: str, suffixes: list[str]) -> str:
        """Return a name which no other key's member has, whichever of the suffixes is behind it."""
        name = names.escape(key)
        if len(name.encode()) > names.NAME_MAX_NBYTES:
            name = names.shorten(name)
        tries = (name + (f"%~{number}" if number else "") for number in count())
        return next(found for found in tries if all(self._owners.get(found + each, key) == key for each in suffixes))

    def _set(self, key: str, item: _Item) -> None:
        self._drop(key)
        self._items[key] = item
        self._entries[key] = item.key_tree
        self._owners.update((info.filename, key) for info in item.members)
        self._is_changed = True

    def _drop(self, key: str) -> None:
        for info in self._items[key].members if key in self._items else ():
            self._owners.pop(info.filename, None)


def _restored(array: Any, meta: ArrayMeta) -> NDArray[Any]:
    """Return a member's array as the tree says it is."""
    found = (array.dtype, array.shape) if isinstance(array, np.ndarray) else None
    if found == (meta.dtype, meta.shape):
        return array  # type: ignore[no-any-return] # it is one
    if found != (np.dtype(np.uint8), (meta.nbytes,)):
        damaged(f"an array should be {meta.dtype} {meta.shape} and is {found}")
    return np.ndarray(meta.shape, meta.dtype, array)
