"""A zip file of arrays, as `numpy.savez` makes it, rewritten as a whole.

1. Every array is a member, an npy file, which numpy opens. What else a value consists of stands in the member
   `__asyncckpt__.npy`, an array of bytes: for each key its members and, unless it is just an array, its tree.
2. Members that this directory does not know are somebody else's: each is a key.
3. New members go to the sibling as soon as they are put. A commit copies the others to it, as they are, and gives it
   the file's name.
4. After a failed commit nothing more is written to its file, which may have the file's name by then: what was put into
   it is copied to another, and verified.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from asyncckpt.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnsupportedFormatError,
    UnsupportedLeafError,
    UntrustedFileError,
)
from asyncckpt.formats import _hdf5_names as names
from asyncckpt.keyed import npz_directory as directory
from asyncckpt.keyed import npz_zip as zips
from asyncckpt.keyed.base import Found, Store
from asyncckpt.keyed.values import build_value, flat_names, nested_names, runs_of
from asyncckpt.runtime.pacing import Pacer, discard
from asyncckpt.state import index as ix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from asyncckpt.keyed.base import Work
    from asyncckpt.keyed.home import Home
    from asyncckpt.keyed.values import Captured, Names

_SUFFIX: Final = ".npy"
_SLACK_NBYTES: Final = 1 << 20
_MAX_KEY_NBYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class _Item:
    """A key: its members, and its tree, if it is not just the array of its one member."""

    members: tuple[zips.Member, ...]
    tree: bytes | None
    names: Names
    is_staged: bool = False


class NumPyStore(Store):
    """An open zip file of arrays."""

    def __init__(self, home: Home, work: Work, *, trusted: bool) -> None:
        """Open it and read its directory.

        Raises:
            CorruptCheckpointError: It is damaged, or no such file.
            OSError: It cannot be read.
        """
        self._home = home
        self._is_trusted = trusted
        self._fd: int | None = None
        self._sibling: int | None = None
        self._left: set[int] = set()  # earlier siblings, from which what was put into them is copied
        self._forget()
        self._load(work)

    def _forget(self) -> None:
        self._items: dict[str, _Item] = {}
        self._entries: dict[str, Names] = {}
        self._owners: dict[str, str] = {}  # the key of each member, by its name
        self._end = 0  # of the sibling
        self._is_changed = False

    @property
    def entries(self) -> Mapping[str, Names]:
        """See `Store`."""
        return self._entries

    def disk_use(self) -> tuple[Path, int]:
        """See `Store`."""
        members = (member for item in self._items.values() for member in item.members)
        return self._home.path, sum(member.stored_nbytes for member in members)

    def read(self, key: str, work: Work) -> Found:
        """See `Store`."""
        item = self._items[key]
        pacer = work.pacer()
        try:
            if not self._is_trusted:
                zips.check_expansion(item.members)
            if item.tree is None:
                return Found(self._read_member(item.members[0], pacer), {})
            nbytes = sum(member.nbytes for member in item.members)
            index = directory.decode_tree(item.tree, nbytes, len(item.members), pacer)
            arrays = {number: self._read_member(member, pacer) for number, member in enumerate(item.members)}
            restored = {number: _restored(array, index.arrays[number]) for number, array in arrays.items()}
            return build_value(index, restored, pacer)
        except (CorruptCheckpointError, UnsupportedFormatError, UntrustedFileError) as error:
            raise self._tell(key, error) from error

    def put(self, key: str, value: Captured, work: Work) -> None:
        """See `Store`."""
        if len(key.encode("utf-8", "surrogatepass")) > _MAX_KEY_NBYTES:
            message = f"a key of more than {_MAX_KEY_NBYTES} bytes"
            raise UnsupportedLeafError(message, path=key[:80])
        self.begin(work)
        fd = self._begin_sibling()
        index = value.index
        is_plain = _is_plain(index)
        prefix = self._prefix(key, 0 if is_plain else len(index.arrays))
        members = []
        end = self._end
        for number, meta in enumerate(index.arrays):
            name = prefix + ("" if is_plain else f"/{number}") + _SUFFIX
            header = zips.npy_header(meta.dtype, meta.shape) or _raw_header(meta.nbytes)
            pieces = _pieces(header, value, number)
            member, end = zips.write_member(self._home.ops, fd, end, name, pieces, len(header) + meta.nbytes)
            members.append(member)
            work.pacer().pause()
        tree = None if is_plain else directory.encode_tree(index, work.pacer())
        self._end = end
        self._set(key, _Item(tuple(members), tree, value.names, is_staged=True))

    def delete(self, key: str, work: Work) -> None:
        """See `Store`."""
        self.begin(work)
        self._drop(key)
        del self._items[key], self._entries[key]
        self._is_changed = True

    def commit(self, work: Work) -> None:
        """See `Store`."""
        if not self._is_changed:
            return
        pacer = work.pacer()
        held = sum(member.stored_nbytes for item in self._items.values() for member in item.members if item.is_staged)
        if self._sibling is not None and self._end > held + held // 2 + _SLACK_NBYTES:
            self._leave_sibling()
        target = self._begin_sibling()
        try:
            items = self._complete(target, self._end, pacer)
            self._home.ops.sync(target)
            self._home.publish_sibling()
        except BaseException as error:
            self._leave_sibling()
            if isinstance(error, CheckpointError):  # what stays is damaged
                raise self._tell(None, error) from error
            raise
        for fd in {self._fd, *self._left} - {None}:
            os.close(fd)  # type: ignore[arg-type] # None is left out
        self._fd, self._sibling, self._end = target, None, 0
        self._left.clear()
        self._is_changed = False
        self._items = items

    def close(self) -> None:
        """See `Store`."""
        if self._sibling is not None:
            self._home.discard_sibling()
        for fd in {self._fd, self._sibling, *self._left} - {None}:
            os.close(fd)  # type: ignore[arg-type] # None is left out
        self._fd = self._sibling = None
        self._left.clear()
        discard(self._items, Pacer())
        self._forget()
        self._home.release()

    # --- opening ------------------------------------------------------------------------------------------------------

    def _load(self, work: Work) -> None:
        self._forget()
        fd = self._home.open()
        if fd is None:
            return
        self._fd = fd
        try:
            if os.fstat(fd).st_size:  # else somebody has made it in advance
                self._read_directory(zips.read_members(fd, work.pacer()), work.pacer())
        except BaseException as error:
            self._fd = None
            os.close(fd)
            if isinstance(error, CheckpointError):
                raise self._tell(None, error) from error
            if isinstance(error, ValueError):
                raise CorruptCheckpointError(f"{self._home.name}: {error}", file=self._home.name) from error
            raise

    def _read_directory(self, listed: list[zips.Member], pacer: Pacer) -> None:
        by_name = {member.name: member for member in listed}
        own = by_name.pop(directory.NAME, None)
        if own is not None and own.nbytes > max(4 * own.stored_nbytes, _SLACK_NBYTES):
            _damaged(f"the directory {directory.NAME!r} of {own.stored_nbytes} bytes claims to hold {own.nbytes}")
        for row in directory.decode(self._read_member(own, pacer), pacer) if own is not None else ():
            if lacking := [name for name in row.members if name not in by_name]:
                _damaged(f"the key {row.key!r} lacks its member {lacking[0]!r}")
            members = [by_name.pop(name) for name in dict.fromkeys(row.members)]
            self._add(row.key, members, row.tree, nested_names(row.names))
        if by_name or own is None:
            self._home.mark_foreign("the comments, dates and attributes of the zip archive and its members")
        for name, member in by_name.items():
            self._add(name.removesuffix(_SUFFIX), [member], None, None)
        self._is_changed = False

    def _add(self, key: str, members: list[zips.Member], tree: bytes | None, of: Any) -> None:
        if key in self._items:
            _damaged(f"the key {key!r} stands twice")
        self._set(key, _Item(tuple(members), tree, of))

    def begin(self, work: Work) -> None:
        """Become the writer; what another has written since the file was opened is read first. See `Store.begin`."""

        def read_again() -> None:
            before = self._fd
            with self._as_before_on_failure():
                self._fd = None
                self._load(work)
            if before is not None:
                os.close(before)

        self._home.become_writer(read_again)

    # --- writing ------------------------------------------------------------------------------------------------------

    def _begin_sibling(self) -> int:
        if self._sibling is None:
            self._sibling = self._home.create_sibling()
            self._end = 0
        return self._sibling

    def _leave_sibling(self) -> None:
        """Write no more to the sibling; what was put into it can still be read."""
        fd, self._sibling = self._sibling, None
        assert fd is not None  # noqa: S101 - whoever leaves it has it
        self._home.discard_sibling()
        self._left.add(fd)
        needed = {member.fd for item in self._items.values() for member in item.members}
        for each in self._left - needed:
            os.close(each)
        self._left &= needed

    def _complete(self, target: int, end: int, pacer: Pacer) -> dict[str, _Item]:
        """Copy what is not in the new file yet, and end it with the directories."""
        ops = self._home.ops
        items = {}
        for key, item in self._items.items():
            moved = []
            for member in item.members:
                if member.fd == target:
                    moved.append(member)
                    continue
                if member.fd in self._left:
                    self._read_member(member, pacer)  # it may not have come through
                copy, end = zips.copy_member(ops, member, target, end, pacer)
                moved.append(copy)
            items[key] = replace(item, members=tuple(moved), is_staged=False)
        members = [member for item in items.values() for member in item.members]
        rows = (
            directory.Row(key, flat_names(item.names), item.tree, [member.name for member in item.members])
            for key, item in items.items()
        )
        encoded = directory.encode(rows, len(items), pacer)
        header = _raw_header(len(encoded))
        own, end = zips.write_member(ops, target, end, directory.NAME, [header, encoded], len(header) + len(encoded))
        end = zips.write_directory(ops, target, end, [*members, own], pacer)
        if os.fstat(target).st_size > end:
            ops.truncate(target, end)  # a member that failed went further
        return items

    def _prefix(self, key: str, count: int) -> str:
        """Return a name for the one member of a key, or for its `count` members, that no other key's members have."""
        name = names.escape(key)
        if len(name.encode()) > names.NAME_MAX_NBYTES:
            name = names.shorten(name)
        found, number = name, 0
        while any(
            self._owners.get(each, key) != key
            for each in ([f"{found}/{n}{_SUFFIX}" for n in range(count)] if count else [found + _SUFFIX])
        ):
            number += 1
            found = f"{name}%~{number}"
        return found

    def _set(self, key: str, item: _Item) -> None:
        self._drop(key)
        self._items[key] = item
        self._entries[key] = item.names
        self._owners.update((member.name, key) for member in item.members)
        self._is_changed = True

    def _drop(self, key: str) -> None:
        for member in self._items[key].members if key in self._items else ():
            self._owners.pop(member.name, None)

    def _read_member(self, member: zips.Member, pacer: Pacer) -> NDArray[Any]:
        if not member.name.endswith(_SUFFIX):
            reader = zips.MemberReader(member, pacer)
            data: Any = reader.read(member.nbytes)
            reader.finish()
            return data  # type: ignore[no-any-return] # as numpy.load gives it
        return zips.read_array(member, pacer)

    def _tell(self, key: str | None, error: CheckpointError) -> CheckpointError:
        """Add the file and the key to an error."""
        path = self._home.name
        message = f"{path}: {error}" if key is None else f"{path}: the value of {key!r}: {error}"
        if isinstance(error, CorruptCheckpointError):
            return CorruptCheckpointError(message, file=path)
        return type(error)(message)


def _damaged(reason: str) -> NoReturn:
    raise CorruptCheckpointError(reason)


def _is_plain(index: ix.Index) -> bool:
    """Whether a value is an array whose member says everything."""
    if len(index.arrays) != 1 or len(index.pieces) != 1 or list(index.pieces) != [_ONE_ARRAY]:
        return False
    meta = index.arrays[0]
    return zips.npy_header(meta.dtype, meta.shape) is not None


_ONE_ARRAY: Final = ix.pack_piece([ix.ext(ix.ARRAY, 0)])


def _raw_header(nbytes: int) -> bytes:
    header = zips.npy_header(np.dtype(np.uint8), (nbytes,))
    assert header is not None  # noqa: S101 - bytes are bytes
    return header


def _pieces(header: bytes, value: Captured, number: int) -> Iterator[bytes | NDArray[np.uint8]]:
    yield header
    yield from runs_of(value, number)


def _restored(array: NDArray[Any], meta: ix.ArrayMeta) -> NDArray[Any]:
    """Return a member's array as the tree says it is."""
    if type(array) is np.ndarray and array.shape == meta.shape and array.dtype == meta.dtype:
        return array
    if type(array) is not np.ndarray or array.dtype != np.uint8 or array.shape != (meta.nbytes,):
        _damaged(f"an array should be {meta.dtype} {meta.shape} and is {getattr(array, 'dtype', 'none')}")
    made: NDArray[Any] = np.ndarray(meta.shape, meta.dtype)
    if meta.nbytes:
        made.reshape(-1).view(np.uint8)[:] = array
    return made
