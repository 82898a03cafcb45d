"""A msgpack file of keys: a log of records, appended to and, when a third of it is dead, written anew.

1. A commit is its records, a sync, a commit record, and another sync. Only what a commit record stands behind counts.
2. What lies behind the last commit is a torn tail: readers leave it out, and the next writer cuts it off, durably,
   before it appends. If a commit stands behind something that cannot be read, that is damage, and an error.
3. A file gets its name with its first commit; until then, and when it is written anew, it is a temporary file.
4. After a failed sync nothing more is asked of that file: the next commit writes a new one, and verifies what it
   copies.
5. The next writer cannot know of it. What the last commit stands for was synced before it was written; of the commit
   itself there may be nothing on the disk. So whoever goes on with a file writes its last commit again, as it was
   read: the kernel may have forgotten it since.
6. Replaying the records gives the keys in their order: a value of a key that is there takes its place.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.plan import align
from asyncckpt.disk.write_blocks import Content, write_content_at
from asyncckpt.errors import CorruptCheckpointError, UnsupportedLeafError
from asyncckpt.formats.msgpack import FORMAT
from asyncckpt.keyed.appender import Appender
from asyncckpt.keyed.base import FileStore
from asyncckpt.keyed.log import records
from asyncckpt.keyed.stored_value import Place, read_stored_value
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.runtime.pacing import Pacer, discard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.keyed.values import CapturedValue, Found
    from asyncckpt.runtime.context import JobContext

ALIGNED_MIN_NBYTES: Final = 64 << 10
"""Arrays of a value that together take this much lie on pages; smaller values are packed closely."""
_SLACK_NBYTES: Final = 1 << 20  # dead bytes that are never worth a rewriting
_COPY_NBYTES: Final = 4 << 20
_MAX_KEY_NBYTES: Final = 1 << 16


class MsgpackStore(FileStore[tuple[int, records.Log] | None]):
    """An open log."""

    _fd: int | None = None

    def _use(self, content: tuple[int, records.Log] | None) -> None:
        before = self._fd
        self._fd, log = (None, records.Log(b"")) if content is None else content
        self._file_id, self._commit, self._end, self._has_tail = log.file_id, log.commit, log.end, log.has_tail
        self._live: dict[str, records.Record] = {}
        self._entries: dict[str, KeyTree] = {}
        self._live_nbytes = 0
        for key, record in log.live.items():
            self._set(key, record)
        self._staged: set[str] = set()
        self._is_changed = False
        self._is_published = content is not None
        self._is_suspect = False  # whether something on the way to the disk has failed, so that a new file is needed
        self._can_write = False  # whether the descriptor is for writing, too
        if before is not None:
            os.close(before)

    @property
    def entries(self) -> Mapping[str, KeyTree]:
        """See `Store`."""
        return self._entries

    def disk_use(self) -> tuple[Path, int]:
        """See `Store`."""
        return self._location.path, self._live_nbytes

    def read(self, key: str, work: JobContext) -> Found:
        """See `Store`."""
        assert self._fd is not None  # noqa: S101 - there is a record
        record = self._live[key]
        corrupt = self._teller(record, key)
        try:
            return read_stored_value(self._fd, _place(record), corrupt, work)
        except CorruptCheckpointError as error:
            if error.file is None:
                raise corrupt(f"cannot be read: {error}") from error
            raise

    def put(self, key: str, value: CapturedValue, work: JobContext) -> None:
        """See `Store`."""
        if len(key) * 4 > _MAX_KEY_NBYTES and len(key.encode("utf-8", "surrogatepass")) > _MAX_KEY_NBYTES:
            message = f"a key of more than {_MAX_KEY_NBYTES} bytes"
            raise UnsupportedLeafError(message, path=key[:80])
        self.begin(work)
        record = self._append(lambda fd: _write_value(self._location, fd, self._end, key, value, work))
        self._set(key, record)
        self._staged.add(key)

    def delete(self, key: str, work: JobContext) -> None:
        """See `Store`."""
        self.begin(work)
        self._append(lambda fd: self._write_small(fd, records.delete_head(key)))
        self._live_nbytes -= _nbytes(self._live.pop(key))
        del self._entries[key]
        self._staged.discard(key)

    def commit(self, work: JobContext) -> None:
        """See `Store`."""
        if not self._is_changed:
            return
        limit = self._live_nbytes + self._live_nbytes // 2 + _SLACK_NBYTES
        is_large = self._end > limit
        if self._is_published and not self._location.is_same_file(self._descriptor()):
            self._is_suspect = True  # the file was removed or replaced: what is appended would be nobody's
        if is_large or self._is_suspect:
            try:
                self._rewrite(work)
            except OSError as error:
                if self._is_suspect or not self._is_published:
                    self._is_suspect = True
                    raise
                self._append_commit()  # there is no room for a second file, say; the old one still takes what is new
                self._location.warn_of_growth(self._end, self._live_nbytes, error)
        else:
            self._append_commit()
        self._is_changed = False
        self._staged.clear()

    def close(self) -> None:
        """See `Store`."""
        if self._fd is not None and not self._is_published:
            self._location.discard_temporary()
        discard(self._live, Pacer())
        self._use(None)
        self._location.release()

    # --- opening ------------------------------------------------------------------------------------------------------

    def _load(self, work: JobContext) -> tuple[int, records.Log] | None:
        fd = self._location.open()
        if fd is None:
            return None
        try:
            log = records.scan(fd, self._location.name, work.pacer)
        except BaseException:
            os.close(fd)
            raise
        return fd, log

    def _open_to_write(self) -> None:
        if self._fd is None:
            fd, file_id = self._location.create_temporary(), os.urandom(16)
            try:
                self._end = self._write_small(fd, records.file_head(file_id), 0).end
            except BaseException:
                os.close(fd)
                self._location.discard_temporary()
                raise
            self._fd, self._file_id, self._can_write = fd, file_id, True
        elif not self._can_write:
            reader, self._fd = self._fd, os.open(self._location.path, os.O_RDWR | os.O_CLOEXEC)
            os.close(reader)
            out = Appender(self._location.ops, self._fd, self._end - len(self._commit))
            out.write(self._commit)
            out.flush()
            self._can_write = True

    # --- writing ------------------------------------------------------------------------------------------------------

    def _append(self, write: Callable[[int], records.Record]) -> records.Record:
        """Write a record at the end of the log; if that fails, what was written of it is a tail to be cut off."""
        fd = self._cut()
        self._has_tail = True
        record = write(fd)
        self._has_tail = False
        self._end = record.end
        self._is_changed = True
        return record

    def _cut(self) -> int:
        """Cut off what lies behind the end."""
        fd = self._descriptor()
        if self._has_tail:
            self._location.ops.truncate(fd, self._end)
            if not self._is_suspect:  # else nothing is asked of this file any more: a new one takes what lives
                self._sync(fd)
            self._has_tail = False
        return fd

    def _descriptor(self) -> int:
        assert self._fd is not None  # noqa: S101 - the writer has a file
        return self._fd

    def _write_small(self, fd: int, head: bytes, at: int | None = None) -> records.Record:
        begin = self._end if at is None else at
        out = Appender(self._location.ops, fd, begin)
        out.write(head)
        out.write(records.tail(head, b""))
        out.flush()
        return records.Record(begin, out.offset, None, None)

    def _append_commit(self) -> None:
        """Commit at the end of the log; a file without a name gets it."""
        fd = self._cut()
        if self._is_published:
            with self._suspect_on_failure():
                self._location.sync_entry()
            self._sync(fd)  # or the commit could reach the disk before what it stands for
        self._has_tail = True
        record = self._write_small(fd, records.commit_head(self._file_id, self._end))
        self._sync(fd)
        self._has_tail = False
        self._end = record.end
        if not self._is_published:
            self._publish()

    def _publish(self) -> None:
        try:
            self._location.rename_temporary()
        except BaseException:
            self._is_suspect |= not self._is_published  # else the old file is what it was
            raise
        with self._suspect_on_failure():
            self._location.sync_entry()
        self._is_suspect = False
        self._is_published = True

    def _sync(self, fd: int) -> None:
        with self._suspect_on_failure():
            self._location.ops.sync(fd)

    @contextmanager
    def _suspect_on_failure(self) -> Iterator[None]:
        """While something goes to the disk: if that fails, nobody knows what is there, or which file has the name."""
        try:
            yield
        except BaseException:
            self._is_suspect = True
            raise

    def _rewrite(self, work: JobContext) -> None:
        """Commit by writing everything that lives to a new file."""
        old = self._descriptor()
        if not self._is_published:
            self._location.discard_temporary()
        new = self._location.create_temporary()
        try:
            file_id = os.urandom(16)
            end = self._write_small(new, records.file_head(file_id), 0).end
            moved = {}
            for key, live in self._live.items():
                if self._is_suspect and key in self._staged:  # it may not have come through
                    read_stored_value(old, _place(live), self._teller(live, key), work)
                record = self._copy(old, new, key, live, end, work)
                moved[key] = record
                end = record.end
            end = self._write_small(new, records.commit_head(file_id, end), end).end
            self._location.ops.sync(new)
            self._publish()
        except BaseException:
            os.close(new)
            self._location.discard_temporary()
            raise
        os.close(old)
        self._fd, self._file_id, self._end = new, file_id, end
        self._has_tail = False
        for key, live in moved.items():
            self._set(key, live)

    def _copy(  # noqa: PLR0913, PLR0917 - one step of `_rewrite`, which has them all
        self, old: int, new: int, key: str, record: records.Record, end: int, work: JobContext
    ) -> records.Record:
        """Copy a record to the end of a new file, as it is: its digests go with it."""
        place = _place(record)
        head = records.read_range(old, record.offset, record.head_nbytes)
        out = Appender(self._location.ops, new, end)
        out.write(head)
        if record.is_aligned:
            out.write(records.padding(out.offset))
        offset = out.offset
        pacer = work.pacer
        at = place.offset
        until = record.end
        while at < until:
            chunk = records.read_range(old, at, min(_COPY_NBYTES, until - at))
            if not chunk:
                raise self._teller(record, key)("is cut off: another program has made the file shorter")
            out.write(chunk)
            out.flush()
            at += len(chunk)
            pacer.pause()
        out.flush()
        moved = Place(offset, place.index_nbytes, place.record)
        return records.Record(end, out.offset, moved, record.key_tree, record.head_nbytes, record.is_aligned)

    def _set(self, key: str, live: records.Record) -> None:
        if key in self._live:
            self._live_nbytes -= _nbytes(self._live[key])
        self._live[key] = live
        self._entries[key] = live.key_tree
        self._live_nbytes += _nbytes(live)

    def _teller(self, record: records.Record, key: str) -> Callable[[str], CorruptCheckpointError]:
        """Return what makes the error of a damaged record."""
        path = self._location.name

        def corrupt(reason: str) -> CorruptCheckpointError:
            message = f"{path}: damaged at byte {record.offset}: the record of {key!r} {reason}"
            return CorruptCheckpointError(message, file=path)

        return corrupt


def _nbytes(record: records.Record) -> int:
    return record.end - record.offset


def _place(record: records.Record) -> Place:
    assert record.place is not None  # noqa: S101 - of a value, as all that live are
    return record.place


def _write_value(  # noqa: PLR0913, PLR0917 - one step of `put`, which has them all
    location: FileLocation, fd: int, begin: int, key: str, value: CapturedValue, work: JobContext
) -> records.Record:
    """Write the record of a value at the end of a file."""
    index = value.index
    is_aligned = sum(meta.nbytes for meta in index.arrays) >= ALIGNED_MIN_NBYTES
    if is_aligned:
        plan = FORMAT.plan(index, work.pacer)
        head = records.set_head(key, value.key_tree, plan.index_nbytes, plan.nbytes, is_aligned=True)
        offset = align(begin + len(head) + records.MIN_PADDING_NBYTES, PAGE_NBYTES)
        out = Appender(location.ops, fd, begin)
        out.write(head)
        out.write(records.padding(out.offset))
        out.flush()
        record = write_content_at(location.ops, fd, offset, Content(plan, value.snapshot), work)
        index_nbytes = plan.index_nbytes
    else:
        body, index_nbytes, record = records.small_body(value, work.pacer)
        head = records.set_head(key, value.key_tree, index_nbytes, record.nbytes, is_aligned=False)
        offset = begin + len(head)
        out = Appender(location.ops, fd, begin)
        out.write(head)
        for chunk in body:
            out.write(chunk)
        out.flush()
    out = Appender(location.ops, fd, offset + record.nbytes)
    out.write(records.tail(head, record.digests))
    out.flush()
    place = Place(offset, index_nbytes, record)
    return records.Record(begin, out.offset, place, value.key_tree, len(head), is_aligned)
