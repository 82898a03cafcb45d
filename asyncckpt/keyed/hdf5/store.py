"""The HDF5 store: a file that every HDF5 tool reads, and that a kill never harms (docs/format.md has the bytes).

1. Small values wait in memory, and large ones are written at once. Both are appended behind the last commit, or go to
   the temporary file that will replace the current one.
2. The file is compacted, which means rewritten to the temporary file, when it would become larger than
   `_needs_compaction` allows. This is decided before a large value is written, so that it is written once. A file that
   does not exist yet, one of another program, and one whose disk failed, which is never written or synced again, are
   written to the temporary file, too.
3. Where compaction fails, the current file has what was for the new one appended, and grows by a quarter before the
   next try.
4. HDF5 that asyncckpt did not write is read through libhdf5, and only if the caller trusts it. A file that replaces one
   of another program begins with copies of its objects, so it needs the same trust.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.errors import CorruptCheckpointError, warn
from asyncckpt.keyed.base import FileStore
from asyncckpt.keyed.hdf5.catalog import ForeignObject, link_name
from asyncckpt.keyed.hdf5.foreign_file import ForeignFile, open_hdf5
from asyncckpt.keyed.hdf5.native_file import NativeFile
from asyncckpt.keyed.hdf5.opening import Content, open_content, open_foreign_objects
from asyncckpt.keyed.hdf5.region import SMALL_NBYTES
from asyncckpt.keyed.hdf5.value_table import OBJECT_NBYTES, InFile, ValueTable
from asyncckpt.keyed.values import PackedValue, build_captured, capture_live
from asyncckpt.runtime.cleanup import on_failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.keyed.values import CapturedValue, Found
    from asyncckpt.runtime.context import JobContext

_MEMORY_NBYTES: Final = 16 << 20  # of values that wait
_BATCH_KEYS: Final = 1024
_SLACK_NBYTES: Final = 1 << 20
_PROMISED_SLACK_NBYTES: Final = 7 << 19  # the promise is 4 MiB


class _Postponement(NamedTuple):
    """A compaction that failed."""

    reason: Exception
    until_nbytes: int
    """The size of the file at which it is tried again."""


class HDF5Store(FileStore[Content]):
    """An open HDF5 keyed file."""

    def __init__(self, location: FileLocation, context: JobContext, *, trusted: bool) -> None:
        """See `open_content`."""
        self._trusted = trusted
        self._current: NativeFile | None = None
        self._temporary: NativeFile | None = None
        self._files: list[NativeFile] = []  # those two, and new files whose disk failed but which values are read from
        self._foreign: ForeignFile | None = None
        self._values = ValueTable({})
        self._postponement: _Postponement | None = None
        super().__init__(location, context)

    def _load(self, context: JobContext) -> Content:
        return open_content(self._location, context, trusted=self._trusted)

    def _use(self, content: Content) -> None:
        self._close_files()
        self._current, self._foreign, sources = content
        self._files = [] if self._current is None else [self._current]
        self._values = ValueTable(sources)

    @property
    def entries(self) -> Mapping[str, KeyTree]:
        return self._values.key_trees

    def disk_use(self) -> tuple[Path, int]:
        return self._location.path, self._values.file_nbytes

    def read(self, key: str, context: JobContext, *, keeps_kinds: bool = True) -> Found:
        source = self._values.sources[key]
        if isinstance(source, PackedValue):
            return build_captured(source.unpack(), context.pacer, keeps_kinds=keeps_kinds)
        if isinstance(source, ForeignObject):
            return self._read_objects(key, context)
        try:
            return source.file.read(key, source.extent, context, keeps_kinds=keeps_kinds)
        except CorruptCheckpointError as error:
            if not self._trusted or source.file is not self._current:
                raise
            return self._read_changed(key, source.file, error, context)

    def _read_objects(self, key: str, context: JobContext) -> Found:
        assert self._foreign is not None  # noqa: S101 - there are such objects
        return self._foreign.read(key, context)

    def _read_changed(self, key: str, file: NativeFile, error: Exception, context: JobContext) -> Found:
        """Read the HDF5 objects of a value of ours that another program changed."""
        if self._foreign is not None and key in self._foreign.ours:  # it is known that the file was changed
            return self._foreign.read(key, context)
        names = {key: link_name(key)}
        objects = ForeignFile(self._location, open_hdf5(self._location, file.fd), names, ours=names)
        with contextlib.closing(objects):
            found = objects.read(key, context)
        warn(f"{error}. It is read as it is now, because the file is trusted")
        return found

    def _put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        if value.stored_nbytes <= SMALL_NBYTES:
            packed = value.pack()
            if self._values.held_nbytes + packed.held_nbytes + OBJECT_NBYTES > _MEMORY_NBYTES:
                self._write_waiting(self._target(context), context)
            self._values.set(key, packed)
        else:
            target = self._target(context, key, value.stored_nbytes + OBJECT_NBYTES)
            try:
                self._append(target, {key: value}, context)
            except OSError as error:
                current = self._fallback(target)
                if current is None:
                    raise
                self._append(self._fall_back(current, error, context), {key: value}, context)

    def _delete(self, key: str) -> None:
        self._values.delete(key)  # which another process may have deleted before

    def _commit(self, context: JobContext) -> None:
        target = self._target(context)
        before = dict(self._values.sources)
        try:
            self._write_waiting(target, context)
            if target is self._temporary:
                self._move_all(target, context)
            self._commit_to(target, context)
        except (OSError, CorruptCheckpointError) as error:
            # A new file has no room or cannot take the name, say, or a value that would be copied is damaged.
            current = self._fallback(target)
            if current is None:
                raise
            for key, source in before.items():
                if not (isinstance(source, InFile) and source.file is target):
                    self._values.set(key, source)
            self._commit_to(self._fall_back(current, error, context), context)
        if self._postponement is not None and self._current is not None:
            self._location.warn_of_growth(self._current.tail, self._values.file_nbytes, self._postponement.reason)

    def _close(self) -> None:
        temporary, self._temporary = self._temporary, None
        try:
            if temporary is not None:
                self._location.discard_temporary()
            elif self._appendable is not None and self._location.is_locked:
                with contextlib.suppress(OSError):  # the commit is durable without: the next writer would do the same
                    self._appendable.settle()
        finally:
            self._close_files()
            self._values.clear()

    # --- staging ------------------------------------------------------------------------------------------------------

    def _open_to_write(self) -> None:
        if self._current is not None:
            fd = os.open(self._location.path, os.O_RDWR | os.O_CLOEXEC)
            self._current.recover(fd)

    @property
    def _appendable(self) -> NativeFile | None:
        """The current file, if it may be appended to."""
        return None if self._current is None or self._current.is_suspect else self._current

    def _target(self, context: JobContext, key: str | None = None, nbytes: int = 0) -> NativeFile:
        """Return the file to write to, given that `nbytes` more are going to be written for `key`."""
        if self._temporary is not None:
            return self._temporary
        if self._current is not None and not self._location.is_same_file(self._current.fd):
            self._current.is_suspect = True  # it was removed or replaced, so appended data would not be seen
        current = self._appendable
        if current is not None and not self._needs_compaction(current, key, nbytes):
            return current
        try:
            self._temporary = self._create_temporary(context)
        except OSError as error:
            if current is None:
                raise
            return self._postpone(error, current)
        self._files.append(self._temporary)
        return self._temporary

    def _create_temporary(self, context: JobContext) -> NativeFile:
        """Create the temporary file, with copies of the objects of other programs."""
        fd = self._location.create_temporary()
        with on_failure(partial(os.close, fd), self._location.discard_temporary):
            keys = [key for key, source in self._values.sources.items() if isinstance(source, ForeignObject)]
            if self._foreign is None or not keys:
                return NativeFile(self._location, fd)
            copied, end = self._foreign.copy(keys, fd, context.pacer)
        file = NativeFile(self._location, fd, end)
        file.foreign_objects = copied
        for key, each in copied.items():
            self._values.set(key, each)
        return file

    def _needs_compaction(self, file: NativeFile, key: str | None, nbytes: int) -> bool:
        """Tell whether so much more would make the file larger than its live values allow.

        It may be twice as large, and 1 MiB, so all copying together is about as much as has been written. What the
        documentation promises is in terms of the values alone. It counts where it can be kept, which it cannot if the
        HDF5 objects of very many tiny values are larger than they are.
        """
        if self._postponement is not None and file.tail < self._postponement.until_nbytes:
            return False
        values = self._values
        replaced_nbytes, replaced_payload_nbytes = values.sizes(key)
        live_nbytes = values.file_nbytes + nbytes - replaced_nbytes
        payload_nbytes = values.payload_nbytes + nbytes - replaced_payload_nbytes
        allowed = 2 * live_nbytes + _SLACK_NBYTES
        promised = 3 * payload_nbytes + _PROMISED_SLACK_NBYTES
        if live_nbytes + live_nbytes // 4 < promised:
            allowed = min(allowed, promised)
        commit_nbytes = len(values.sources) * OBJECT_NBYTES // 2
        return file.tail + values.memory_nbytes + nbytes + commit_nbytes > allowed

    def _write_waiting(self, target: NativeFile, context: JobContext) -> None:
        """Write the values that wait in memory, in batches, because freeing all of them at once would take long."""
        waiting = [(key, each) for key, each in self._values.sources.items() if isinstance(each, PackedValue)]
        for batch in context.pacer.batches(waiting):
            self._append(target, {key: packed.unpack() for key, packed in batch}, context)

    def _append(self, target: NativeFile, values: Mapping[str, CapturedValue], context: JobContext) -> None:
        if values:
            for key, extent in target.append(values, context).items():
                self._values.set(key, InFile(target, extent))

    # --- committing ---------------------------------------------------------------------------------------------------

    def _fallback(self, target: NativeFile) -> NativeFile | None:
        """Return the current file, if the target is a new one and the current one may be appended to instead."""
        return self._appendable if target is self._temporary else None

    def _fall_back(self, current: NativeFile, reason: Exception, context: JobContext) -> NativeFile:
        """Discard the temporary file, append its values to the current file, and return that."""
        self._write_waiting(current, context)
        self._move_all(current, context)  # what was written to the new one directly
        self._files = [current]
        self._location.discard_temporary()
        self._temporary = None
        return self._postpone(reason, current)

    def _postpone(self, reason: Exception, current: NativeFile) -> NativeFile:
        """Append to the current file until it has grown by a quarter; return it."""
        self._postponement = _Postponement(reason, current.tail + current.tail // 4)
        return current

    def _move_all(self, target: NativeFile, context: JobContext) -> None:
        """Copy the values that are elsewhere to a file, in batches."""
        batches: dict[bool, dict[str, CapturedValue]] = {True: {}, False: {}}
        nbytes = 0
        for key, value in self._values_elsewhere(target, context):
            batch = batches[value.stored_nbytes <= SMALL_NBYTES]
            batch[key] = value
            nbytes += value.stored_nbytes
            if nbytes > _MEMORY_NBYTES or len(batch) == _BATCH_KEYS:
                for each in batches.values():
                    self._append(target, each, context)
                    each.clear()
                nbytes = 0
        for batch in batches.values():
            self._append(target, batch, context)
        # New files that failed are not needed any more; if more of them fail, they must not add up.
        for file in [each for each in self._files if each not in (target, self._current)]:
            file.close()
            self._files.remove(file)

    def _values_elsewhere(self, target: NativeFile, context: JobContext) -> Iterator[tuple[str, CapturedValue]]:
        for key, source in list(self._values.sources.items()):
            if isinstance(source, ForeignObject):
                if key not in target.foreign_objects:
                    yield key, capture_live(self._read_objects(key, context).value, key, context)
            elif isinstance(source, InFile) and source.file is not target:
                yield key, source.file.stored(key, source.extent, context.pacer)

    def _commit_to(self, target: NativeFile, context: JobContext) -> None:
        extents = {
            key: source.extent if isinstance(source, InFile) else target.foreign_objects[key]
            for key, source in self._values.sources.items()
        }
        if target is self._current:
            with on_failure(self._abandon):
                self._location.sync_entry()
        try:
            target.commit(extents, context.pacer)
        except BaseException:
            if target.is_suspect:
                self._abandon()
            raise
        if target is self._temporary:
            self._replace_current(target)

    def _replace_current(self, target: NativeFile) -> None:
        """Give the temporary file, which is complete, the name of the current one."""
        foreign = open_foreign_objects(self._location, target, trusted=self._trusted)
        undo = [] if foreign is None else [foreign.close]
        with on_failure(*undo):
            try:
                self._location.rename_temporary()
            except BaseException:
                if self._appendable is None:
                    self._abandon()
                raise
            with on_failure(self._abandon):
                self._location.sync_entry()
        self._current, self._temporary, self._postponement = target, None, None
        self._close_files(but=target)
        self._foreign = foreign

    def _abandon(self) -> None:
        """Write to none of the files again: the next commit makes another one. Their values can still be read."""
        if self._current is not None:
            self._current.is_suspect = True
        if self._temporary is not None:
            self._location.discard_temporary()
            self._temporary = None

    def _close_files(self, but: NativeFile | None = None) -> None:
        for file in self._files:
            if file is not but:
                file.close()
        self._files = [] if but is None else [but]
        if self._foreign is not None:
            self._foreign.close()
            self._foreign = None
