"""The msgpack kind: a log of records, appended to and, when a third of it is dead, rewritten (compacted).

1. A commit is its records, a sync, a commit record, and another sync. Only records with a commit behind them count.
2. What lies behind the last commit is a torn tail: readers ignore it, and the next writer cuts it off, durably, before
   it appends. If a commit lies behind something that cannot be read, that is damage, and an error.
3. A file gets its name with its first commit. Until then, and while it is rewritten, it is a temporary file.
4. After a failed sync nothing more is asked of that file. The next commit writes a new one, and verifies what it
   copies.
5. The next writer cannot know of a failed sync. The records of the last commit were synced before that commit was
   written; of the commit itself there may be nothing on the disk. So a writer that continues a file writes its last
   commit again, as it was read: the kernel may have forgotten it since.
6. Replaying the records gives the keys in their order: the new value of a key takes the position of the old one.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.keyed.base import FileStore
from asyncckpt.keyed.log import records
from asyncckpt.keyed.log.file import LogFile
from asyncckpt.runtime.cleanup import on_failure
from asyncckpt.runtime.pacing import Pacer, discard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.log.records import Record
    from asyncckpt.keyed.values import CapturedValue, Found
    from asyncckpt.runtime.context import JobContext

_SLACK_NBYTES: Final = 1 << 20  # dead bytes that are never worth a rewriting


class _Content(NamedTuple):
    """An opened file, and the record of each key's value in it."""

    file: LogFile | None
    live: Mapping[str, Record]


class MsgpackStore(FileStore[_Content]):
    """An open log."""

    _max_key_nbytes = 1 << 16
    _current: LogFile | None = None

    def _use(self, content: _Content) -> None:
        before, self._current = self._current, content.file
        self._live: dict[str, Record] = {}
        self._entries: dict[str, KeyTree] = {}
        self._live_nbytes = 0
        for key, record in content.live.items():
            self._set(key, record)
        self._staged: set[str] = set()
        if before is not None:
            before.close()

    def disk_use(self) -> tuple[Path, int]:
        return self._location.path, self._live_nbytes

    def read(self, key: str, context: JobContext, *, keeps_kinds: bool = True) -> Found:
        return self._file.read(key, self._live[key], context, keeps_kinds=keeps_kinds)

    def _put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        self._set(key, self._file.append_value(key, value, context))
        self._staged.add(key)

    def _delete(self, key: str) -> None:
        self._file.append(records.delete_head(key))
        self._live_nbytes -= _nbytes(self._live.pop(key))
        del self._entries[key]
        self._staged.discard(key)

    def _commit(self, context: JobContext) -> None:
        file = self._file
        if file.is_published and not self._location.is_same_file(file.fd):
            file.is_suspect = True  # it was removed or replaced: what is appended would be lost
        if file.is_suspect or file.end > self._live_nbytes + self._live_nbytes // 2 + _SLACK_NBYTES:
            try:
                self._rewrite(file, context)
            except BaseException as error:
                file.is_suspect |= not file.is_published  # it has no name any more
                if file.is_suspect or not isinstance(error, OSError):
                    raise
                self._append_commit(file)  # there is no room for a second file, say; the old one takes what is new
                self._location.warn_of_growth(file.end, self._live_nbytes, error)
        else:
            self._append_commit(file)
        self._staged.clear()

    def _close(self) -> None:
        if self._current is not None and not self._current.is_published:
            self._location.discard_temporary()
        discard(self._live, Pacer())
        self._use(_Content(None, {}))

    def _load(self, context: JobContext) -> _Content:
        fd = self._location.open()
        if fd is None:
            return _Content(None, {})
        with on_failure(partial(os.close, fd)):
            log = records.scan(fd, self._location.name, context.pacer)
        return _Content(LogFile(fd, self._location, log, is_published=True), log.live)

    def _open_to_write(self) -> None:
        if self._current is None:
            self._current = LogFile.create(self._location)
        else:
            self._current.prepare()

    @property
    def _file(self) -> LogFile:
        assert self._current is not None  # noqa: S101 - there is a key, or this is the writer
        return self._current

    def _append_commit(self, file: LogFile) -> None:
        """Commit at the end of the log; a file without a name gets it."""
        if file.is_published:
            with on_failure(file.suspect):
                self._location.sync_entry()
            file.sync()  # or the commit could reach the disk before its records
        file.commit()
        if not file.is_published:
            self._publish(file)

    def _publish(self, new: LogFile) -> None:
        """Give a file the name; the current one is suspect if it is then unknown which of them has it."""
        try:
            self._location.rename_temporary()
        except BaseException:
            self._file.is_suspect |= not self._file.is_published  # else the old file is what it was
            raise
        with on_failure(self._file.suspect):
            self._location.sync_entry()
        new.is_published = True

    def _rewrite(self, old: LogFile, context: JobContext) -> None:
        """Commit by writing everything that lives to a new file."""
        if not old.is_published:
            self._location.discard_temporary()
        new = LogFile.create(self._location)
        with on_failure(new.close, self._location.discard_temporary):
            moved = {}
            for key, record in self._live.items():
                if old.is_suspect and key in self._staged:  # it may not have reached the file
                    old.read(key, record, context)
                moved[key] = new.append_copy(old, key, record, context)
            new.commit()
            self._publish(new)
        old.close()
        self._current = new
        for key, record in moved.items():
            self._set(key, record)

    def _set(self, key: str, record: Record) -> None:
        if key in self._live:
            self._live_nbytes -= _nbytes(self._live[key])
        self._live[key] = record
        self._entries[key] = record.key_tree
        self._live_nbytes += _nbytes(record)


def _nbytes(record: Record) -> int:
    return record.end - record.offset
