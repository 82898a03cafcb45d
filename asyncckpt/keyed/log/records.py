"""The records of a msgpack file of keys, as bytes (docs/format.md has them byte by byte).

1. A record is a head, a map that says what it is; of a value, its body; and a tail: the digests of the body's blocks,
   and one of the head and these digests together.
2. A body is what `state.msgpack` is: an index, padding and payload, counted from its own beginning. That of a value
   with large arrays begins on a page; a small one is the index and one `bin`.
3. Nothing in a head is believed before the tail has confirmed it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import msgpack
import xxhash

from asyncckpt.compatibility import check_compatibility
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, DIGEST_NBYTES, FileRecord, digest_bytes
from asyncckpt.disk.plan import align
from asyncckpt.errors import CorruptCheckpointError
from asyncckpt.formats import msgpack as msgpack_format
from asyncckpt.keyed.key_tree import flatten_key_tree, unflatten_key_tree
from asyncckpt.keyed.values import runs_of
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.state.index import IndexEncoder
from asyncckpt.state.packed import TEXT_ERRORS
from asyncckpt.state.segments import Segment

if TYPE_CHECKING:
    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.values import CapturedValue
    from asyncckpt.runtime.pacing import Pacer

VERSION: Final = 1
MIN_PADDING_NBYTES: Final = 2
ID_NBYTES: Final = 16
_MAX_HEAD_NBYTES: Final = 1 << 18
_WINDOW_NBYTES: Final = 1 << 20
_TAIL_NBYTES: Final = 6 + 2 + DIGEST_NBYTES  # without the digests: an array of two, a bin32, a bin8
_RETRIES: Final = 20
_SECTOR_NBYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a value in a file."""

    offset: int
    end: int
    body_offset: int
    index_nbytes: int
    """Size of the index, which the body begins with."""
    body: FileRecord
    """Size and digests of the body."""
    key_tree: KeyTree
    head_nbytes: int
    is_aligned: bool


# --- writing ----------------------------------------------------------------------------------------------------------


def _pack(head: dict[str, object]) -> bytes:
    packed: bytes = msgpack.packb(head, unicode_errors=TEXT_ERRORS)
    return packed


def file_head(file_id: bytes) -> bytes:
    """Return the head that a file begins with."""
    return _pack({"asyncckpt": "keyed", "version": VERSION, "features": [], "id": file_id})


def commit_head(file_id: bytes, offset: int) -> bytes:
    """Return the head of a commit at an offset."""
    return _pack({"asyncckpt": "commit", "id": file_id, "at": offset})


def delete_head(key: str) -> bytes:
    """Return the head of a deletion."""
    return _pack({"asyncckpt": "delete", "key": key})


def set_head(key: str, key_tree: KeyTree, index_nbytes: int, nbytes: int, *, is_aligned: bool) -> bytes:
    """Return the head of a value."""
    place = {"index": index_nbytes, "nbytes": nbytes, "aligned": is_aligned}
    return _pack({"asyncckpt": "set", "key": key, "names": flatten_key_tree(key_tree), **place})


def tail(head: bytes, digests: bytes) -> bytes:
    """Return the tail of a record."""
    digest = xxhash.xxh3_128_digest(head + digests)
    return b"\x92" + msgpack_format.bin_header(len(digests)) + digests + bytes((0xC4, DIGEST_NBYTES)) + digest


def padding(offset: int) -> bytes:
    """Return the `bin` of zeros that ends on a page."""
    return msgpack_format.padding(align(offset + MIN_PADDING_NBYTES, PAGE_NBYTES) - offset)


def small_body(value: CapturedValue, pacer: Pacer) -> tuple[list[bytes], int, FileRecord]:
    """Return the body of a small value, in chunks; the length of its index; and its size and digests."""
    index = value.index
    encoder = IndexEncoder(index, pacer)
    sizes = [(number, meta.nbytes) for number, meta in enumerate(index.arrays) if meta.nbytes]
    index_nbytes = encoder.nbytes(len(sizes))
    segments = []
    offset = index_nbytes + 5
    for number, nbytes in sizes:
        segments.append(Segment(number, offset, nbytes))
        offset += nbytes
    chunks = encoder.encode(segments)
    if sizes:
        chunks.append(msgpack_format.bin_header(offset - index_nbytes - 5))
        chunks += [run.tobytes() for number, _ in sizes for run in runs_of(value, number)]
    return chunks, index_nbytes, digest_bytes(b"".join(chunks))


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Log:
    """What a file holds."""

    file_id: bytes
    commit: bytes = b""
    """The record of the last commit."""
    end: int = 0
    """Where it ends."""
    live: dict[str, Record] = field(default_factory=dict)
    has_tail: bool = False


class _UnreadableError(Exception):
    """There is no whole record at this place."""


def read_range(fd: int, offset: int, nbytes: int) -> bytes:
    """Read bytes of a file: all of them, or up to its end."""
    found = bytearray()
    while len(found) < nbytes:
        chunk = os.pread(fd, nbytes - len(found), offset + len(found))
        if not chunk:
            break
        found += chunk
    return bytes(found)


def scan(fd: int, name: str, pacer: Pacer) -> Log:
    """Read the records of a file, without their bodies.

    Raises:
        CorruptCheckpointError: There is damage before the last commit, or the file is something else.
        UnsupportedFormatError: A later release wrote it.
    """
    reader = _Reader(fd)
    try:
        head, begin, _ = reader.read(0)
    except _UnreadableError as error:
        raise _corrupt(name, 0, f"it is not a file of asyncckpt's: {error}") from error
    if head["asyncckpt"] != "keyed":
        raise _corrupt(name, 0, "it does not begin as a file of keys does")
    try:
        check_compatibility(name, head["version"], head["features"], reads=VERSION)
    except ValueError as error:
        raise _corrupt(name, 0, str(error)) from error
    log = Log(head["id"], end=begin)
    if len(log.file_id) != ID_NBYTES:
        raise _corrupt(name, 0, "its head is damaged")
    _replay(log, reader, name, pacer)
    if log.end == begin:  # it got its name when its first commit was durable
        raise _corrupt(name, begin, "its first commit is damaged")
    log.has_tail = os.fstat(fd).st_size > log.end
    return log


def _replay(log: Log, reader: _Reader, name: str, pacer: Pacer) -> None:
    """Read the records up to the last commit."""
    offset = log.end
    staged: list[tuple[int, dict[str, Any], Record | None]] = []
    tries = 0
    while True:
        pacer.pause()
        try:
            head, end, record = reader.read(offset)
        except _UnreadableError as error:
            if offset >= reader.nbytes or not (
                _is_damaged_commit(reader, log.file_id, offset) or _find_commit(reader.fd, log.file_id, offset)
            ):
                return
            # A writer may be at work just there, and have committed meanwhile.
            tries += 1
            if tries > _RETRIES:
                raise _corrupt(name, offset, str(error)) from error
            reader = _Reader(reader.fd)
            continue
        if head["asyncckpt"] == "commit":
            if head["id"] != log.file_id or head["at"] != offset:
                raise _corrupt(name, offset, "a commit of another file, or of another place")
            _apply(log, staged, name)
            log.commit, log.end, staged = reader.bytes_at(offset, end - offset), end, []
        else:
            staged.append((offset, head, record))
        offset = end


def _apply(log: Log, staged: list[tuple[int, dict[str, Any], Record | None]], name: str) -> None:
    for offset, head, record in staged:
        if record is not None:
            log.live[head["key"]] = record
        elif head["asyncckpt"] != "delete":
            raise _corrupt(name, offset, "there is another file's beginning")
        elif log.live.pop(head["key"], None) is None:
            raise _corrupt(name, offset, f"it deletes {head['key']!r}, which is not there")


class _Reader:
    """Reads records' heads and tails."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.nbytes = os.fstat(fd).st_size
        self._begin = 0
        self._window = b""

    def read(self, offset: int) -> tuple[dict[str, Any], int, Record | None]:
        """Return the head of the record at an offset, where the record ends, and the record if it is a value's."""
        head, head_nbytes = self._head(offset)
        kind = head.get("asyncckpt")
        encoded = self.bytes_at(offset, head_nbytes)
        if kind != "set":
            if kind not in _FIELDS or not _has_fields(head, _FIELDS[kind]):
                raise _UnreadableError("there is no record")
            end = self._check_tail(encoded, offset + head_nbytes, 0)[1]
            return head, end, None
        if not _has_fields(head, _FIELDS["set"]):
            raise _UnreadableError("the head of a record is damaged")
        index_nbytes, nbytes, is_aligned = head["index"], head["nbytes"], head["aligned"]
        begin = offset + head_nbytes
        if is_aligned:
            begin = align(begin + MIN_PADDING_NBYTES, PAGE_NBYTES)
        if not 0 < index_nbytes <= nbytes <= self.nbytes - begin:
            raise _UnreadableError(f"a record of {nbytes} bytes is not whole")
        digests, end = self._check_tail(encoded, begin + nbytes, -(-nbytes // DIGEST_BLOCK_NBYTES))
        body, key_tree = FileRecord(nbytes, digests), unflatten_key_tree(head["names"])
        return head, end, Record(offset, end, begin, index_nbytes, body, key_tree, head_nbytes, is_aligned)

    def _head(self, offset: int) -> tuple[dict[str, Any], int]:
        if offset >= self.nbytes:
            raise _UnreadableError("the file ends")
        for nbytes in (1 << 12, _MAX_HEAD_NBYTES):
            unpacker = msgpack.Unpacker(unicode_errors=TEXT_ERRORS, strict_map_key=False, max_buffer_size=nbytes)
            unpacker.feed(self.bytes_at(offset, nbytes))
            try:
                head = unpacker.unpack()
            except msgpack.exceptions.OutOfData:
                continue
            except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
                raise _UnreadableError(f"there is no record: {error!r:.200}") from error
            if type(head) is not dict or type(head.get("asyncckpt")) is not str:
                break
            return head, unpacker.tell()
        raise _UnreadableError("there is no record")

    def _check_tail(self, head: bytes, offset: int, blocks: int) -> tuple[bytes, int]:
        """Return the digests that a tail holds, and where it ends, if it fits the head."""
        nbytes = _TAIL_NBYTES + blocks * DIGEST_NBYTES
        if nbytes > self.nbytes - offset:
            raise _UnreadableError("a record is not whole")
        found = self.bytes_at(offset, nbytes)
        digests = found[6 : 6 + blocks * DIGEST_NBYTES]
        if found != tail(head, digests):
            raise _UnreadableError("the digest of a record does not match")
        return digests, offset + nbytes

    def bytes_at(self, offset: int, nbytes: int) -> bytes:
        """Return bytes of the file, or fewer at its end."""
        at = offset - self._begin
        if at < 0 or at + nbytes > len(self._window):
            wanted = max(nbytes, _WINDOW_NBYTES)
            self._window = read_range(self.fd, offset, min(wanted, max(self.nbytes - offset, 0)))
            self._begin = offset
            at = 0
        return self._window[at : at + nbytes]


_FIELDS: Final[dict[Any, dict[str, type]]] = {
    "keyed": {"version": int, "features": list, "id": bytes},
    "commit": {"id": bytes, "at": int},
    "delete": {"key": str},
    "set": {"key": str, "names": object, "index": int, "nbytes": int, "aligned": bool},
}


def _has_fields(head: dict[str, Any], fields: dict[str, type]) -> bool:
    return all(name in head and (type_ is object or type(head[name]) is type_) for name, type_ in fields.items())


def _is_damaged_commit(reader: _Reader, file_id: bytes, offset: int) -> bool:
    """Tell whether a commit at an offset was damaged: what a crash leaves of each of its sectors is all, or zeros."""
    head = commit_head(file_id, offset)
    right = head + tail(head, b"")
    found = reader.bytes_at(offset, len(right))
    if len(found) < len(right):
        return False
    cuts = [0, *range(_SECTOR_NBYTES - offset % _SECTOR_NBYTES, len(right), _SECTOR_NBYTES), len(right)]
    sectors = [slice(*pair) for pair in pairwise(cuts)]
    is_torn = all(found[each] == right[each] or not any(found[each]) for each in sectors)
    wrong = sum(one != other for one, other in zip(found, right, strict=True))
    return not is_torn and wrong <= len(right) // 2


def _find_commit(fd: int, file_id: bytes, offset: int) -> bool:
    """Tell whether a commit of this file lies behind an offset."""
    mark = commit_head(file_id, 0)[:-1]  # up to the offset, whose length varies
    reader = _Reader(fd)
    at = offset + 1
    held = b""
    while chunk := read_range(fd, at, _WINDOW_NBYTES):
        data = held + chunk
        start = data.find(mark)
        while start >= 0:
            found = at - len(held) + start
            try:
                head, _, _ = reader.read(found)
            except _UnreadableError:
                head = {}
            if head.get("at") == found:
                return True
            start = data.find(mark, start + 1)
        held = data[-len(mark) :]
        at += len(chunk)
    return False


def _corrupt(name: str, offset: int, reason: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{name}: damaged at byte {offset}: {reason}", file=name)
