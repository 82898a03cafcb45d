"""The HDF5 kind: a file that every HDF5 tool reads, and that a kill never harms (docs/format.md has the bytes).

1. Small values wait in memory, large ones are written as they come; both lie behind the last commit, or in the
   temporary file that will take the file's name.
2. A file that would grow beyond `_outgrows` is written anew, to the temporary file; so is a new file, one that others
   made, and one whose disk failed, which is never written or synced again. It is decided before a large value is
   written, so that a value is written once, and only what stays is copied.
3. HDF5 that asyncckpt did not write is read through libhdf5, and only if the caller trusts it. Where a new file takes
   its place, that begins with copies of the objects that stay; so a file of ours has them, and still needs that trust.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.errors import CheckpointWarning, CorruptCheckpointError, UntrustedFileError
from asyncckpt.keyed.base import FileStore
from asyncckpt.keyed.hdf5.catalog import Linked, naming
from asyncckpt.keyed.hdf5.data_file import DataFile, ForeignFileError
from asyncckpt.keyed.hdf5.region import SMALL_NBYTES, Value
from asyncckpt.keyed.hdf5.value_sources import OBJECT_NBYTES, Foreign, Held, Placed, Source
from asyncckpt.keyed.values import build_value
from asyncckpt.runtime.pacing import Pacer, discard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from asyncckpt.keyed.hdf5.foreign_file import ForeignFile
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.keyed.values import CapturedValue, Found, Names
    from asyncckpt.runtime.context import JobContext

_ALL_HELD_NBYTES: Final = 16 << 20
_BATCH_KEYS: Final = 1024
_SLACK_NBYTES: Final = 1 << 20
_PROMISED_SLACK_NBYTES: Final = 7 << 19  # the promise is 4 MiB


class _Content(NamedTuple):
    """What a file holds."""

    main: DataFile | None
    foreign: ForeignFile | None
    sources: Mapping[str, Source]


class HDF5Store(FileStore[_Content]):
    """An open HDF5 keyed file."""

    def __init__(self, location: FileLocation, work: JobContext, *, trusted: bool) -> None:
        """Open the file; without one, there are no keys.

        Raises:
            UntrustedFileError: asyncckpt did not write it, or not last, and `trusted` is False.
            CorruptCheckpointError: It is not HDF5, or damaged.
            UnsupportedFormatError: A later release wrote it.
            OSError: It cannot be read.
        """
        self._trusted = trusted
        self._files: list[DataFile] = []
        self._foreign: ForeignFile | None = None
        self._fresh: DataFile | None = None
        self._is_dirty = False
        self._is_tainted = False
        self._obstacle: Exception | None = None  # why it could not be written anew
        self._small_until = 0  # after a writing anew that failed: how large the file becomes until it is tried again
        super().__init__(location, work)

    def _use(self, content: _Content) -> None:
        files, foreign = self._files, self._foreign
        self._main, self._foreign, sources = content
        self._files = [] if self._main is None else [self._main]
        self._sources: dict[str, Source] = {}
        self._entries: dict[str, Names] = {}
        self._live_nbytes = self._payload_nbytes = self._held_nbytes = 0
        for key, source in sources.items():
            self._set(key, source)
        _close(files, foreign)

    def _load(self, work: JobContext) -> _Content:
        fd = self._location.open()
        if fd is None:
            return _Content(None, None, {})
        try:
            if os.fstat(fd).st_size == 0:  # as a temporary file begins
                os.close(fd)
                return _Content(None, None, {})
            main = DataFile.open(self._location.name, fd, work.pacer)
        except ForeignFileError as error:
            try:
                return self._open_foreign(str(error), fd, work)
            finally:
                os.close(fd)
        except BaseException:
            os.close(fd)
            raise
        try:
            foreign = self._open_linked(main)
        except BaseException:
            main.close()
            raise
        sources: dict[str, Source] = {
            key: Foreign(place.nbytes) if isinstance(place, Linked) else Placed(main, place)
            for key, place in main.places.items()
        }
        return _Content(main, foreign, sources)

    def _open_linked(self, file: DataFile) -> ForeignFile | None:
        """Open what reads the objects of other programs in a file of ours, if there are any."""
        if not file.linked:
            return None
        from asyncckpt.keyed.hdf5.foreign_file import ForeignFile

        self._check_trust("holds objects that another program made")
        return ForeignFile(self._location, file.fd, file.linked)

    def _check_trust(self, reason: str) -> None:
        if not self._trusted:
            message = (
                f"{self._location.name} {reason}. Only libhdf5 can read it, which a hostile file can crash or keep busy"
                " for ever: open it with trusted=True if you know where it comes from"
            )
            raise UntrustedFileError(message)

    def _open_foreign(self, reason: str, fd: int, work: JobContext) -> _Content:
        from asyncckpt.keyed.hdf5.changed_file import ChangedFile
        from asyncckpt.keyed.hdf5.foreign_file import ForeignFile, check_signature

        check_signature(self._location)
        self._check_trust(reason)
        file = ForeignFile(self._location, fd)
        keys = list(file.names)
        if ChangedFile.is_one(file, fd):
            file.close()
            file = changed = ChangedFile(self._location, fd, work)
            keys = changed.keys
            what = "is the state of a checkpoint" if changed.is_state else reason
            self._location.mark_read_only(what)
        else:
            self._location.mark_foreign(
                "the attributes of its root group, references between its objects, and, of what libhdf5 cannot copy as"
                " it is, the attributes and the compression"
            )
        return _Content(None, file, {key: Foreign(0) for key in keys})

    @property
    def entries(self) -> Mapping[str, Names]:
        """The keys in their order, staged changes included."""
        return self._entries

    def disk_use(self) -> tuple[Path, int]:
        """Return where the file is and what it takes; see `Store.disk_use`."""
        return self._location.path, self._live_nbytes

    def read(self, key: str, work: JobContext) -> Found:
        """Read a value; see `Store.read`."""
        source = self._sources[key]
        if isinstance(source, Placed):
            try:
                found = source.file.read(key, source.place, work)
            except CorruptCheckpointError as error:
                if not self._trusted or source.file is not self._main:
                    raise
                return self._read_changed(key, error, work)
            with naming(self._location.name, key):
                return build_value(*found, work.pacer)
        if isinstance(source, Held):
            return source.read(work.pacer)
        assert self._foreign is not None  # noqa: S101 - it is where this source comes from
        return self._foreign.read(key, work)

    def _read_changed(self, key: str, error: CorruptCheckpointError, work: JobContext) -> Found:
        """Read a value that another program changed in its place, so that only its digest tells."""
        from asyncckpt.keyed.hdf5.changed_file import ChangedFile

        assert self._main is not None  # noqa: S101 - the value is in it
        file = ChangedFile(self._location, self._main.fd, work)
        try:
            found = file.read(key, work)
        finally:
            file.close()
        warnings.warn(f"{error}. It is read as it is now, because the file is trusted", CheckpointWarning, stacklevel=2)
        return found

    def put(self, key: str, value: CapturedValue, work: JobContext) -> None:
        """Stage a value; see `Store.put`."""
        self.begin(work)
        payload_nbytes = value.stored_nbytes
        nbytes = payload_nbytes + OBJECT_NBYTES
        source: Source
        if payload_nbytes <= SMALL_NBYTES:
            if self._held_nbytes + nbytes > _ALL_HELD_NBYTES:
                self._write_held(self._target(work), work)
            source = Held(value)
        else:
            target = self._target(work, key, nbytes)
            values = [Value(key, value.index, value.snapshot, value.names)]
            try:
                places = target.append(self._location.ops, values, work)
            except OSError as error:
                if not self._can_go_back(target):
                    raise
                target = self._go_back(error, work)
                places = target.append(self._location.ops, values, work)
            source = Placed(target, places[key])
        self._set(key, source)
        self._is_dirty = True

    def delete(self, key: str, work: JobContext) -> None:
        """Stage a deletion; see `Store.delete`."""
        self.begin(work)
        if key in self._sources:  # another process may have been quicker
            self._forget(self._sources.pop(key))
            del self._entries[key]
        self._is_dirty = True

    def commit(self, work: JobContext) -> None:
        """Make what is staged durable; see `Store.commit`."""
        if not self._is_dirty:
            return
        target = self._target(work)
        before = dict(self._sources)
        try:
            self._write_held(target, work)
            if target is self._fresh:
                self._move_all(target, work)
            self._commit(target, work)
        except (OSError, CorruptCheckpointError) as error:
            # There is no room for a new file, say, it cannot take the name, or a value that stays is damaged.
            if not self._can_go_back(target):
                raise
            for key, source in before.items():
                if not (isinstance(source, Placed) and source.file is target):
                    self._set(key, source)
            self._commit(self._go_back(error, work), work)
        self._is_dirty = False
        if self._obstacle is not None and self._main is not None:
            self._location.warn_of_growth(self._main.tail, self._live_nbytes, self._obstacle)

    def close(self) -> None:
        """Drop what is staged and close the file; see `Store.close`."""
        main, fresh, self._fresh = self._main, self._fresh, None
        if fresh is not None:
            self._location.discard_temporary()
        elif main is not None and self._location.is_locked and not self._is_tainted:
            with contextlib.suppress(OSError):  # the commit is durable without: the next writer would do the same
                main.settle(self._location.ops)
        self._close_files()
        discard(self._sources, Pacer())
        self._location.release()

    # --- staging ------------------------------------------------------------------------------------------------------

    def _open_to_write(self) -> None:
        if self._main is not None:
            self._main.reopen(os.open(self._location.path, os.O_RDWR | os.O_CLOEXEC))
            self._main.recover(self._location.ops)

    def _target(self, work: JobContext, key: str | None = None, nbytes: int = 0) -> DataFile:
        """Return the file that is written to, when `nbytes` more for `key` are."""
        if self._fresh is None:
            if self._main is not None and not self._location.is_same_file(self._main.fd):
                self._is_tainted = True  # it was removed or replaced: what is appended would be nobody's
            if self._main is not None and not self._is_tainted and not self._outgrows(self._main, key, nbytes):
                return self._main
            try:
                self._fresh = self._create(work)
            except OSError as error:
                if self._main is None or self._is_tainted:
                    raise
                return self._put_off(error, self._main)
            self._files.append(self._fresh)
        return self._fresh

    def _create(self, work: JobContext) -> DataFile:
        """Begin a new file, with the objects of other programs."""
        fd = self._location.create_temporary()
        try:
            keys = [key for key, source in self._sources.items() if isinstance(source, Foreign)]
            if self._foreign is None or not keys:
                return DataFile(self._location.name, fd)
            linked, end = self._foreign.copy(keys, self._location.ops, fd, work.pacer)
        except BaseException:
            os.close(fd)
            self._location.discard_temporary()
            raise
        for key, place in linked.items():
            self._set(key, Foreign(place.nbytes))
        return DataFile(self._location.name, fd, linked, end)

    def _outgrows(self, file: DataFile, key: str | None, nbytes: int) -> bool:
        """Whether so much more would make the file larger than what lives in it allows.

        It may be twice as large, and 1 MiB; so all copying together is about as much as has been written. What is
        promised counts the values alone, and is looked at where it can be kept: the objects of very many tiny values
        are larger than they are.
        """
        if file.tail < self._small_until:
            return False
        replaced = None if key is None else self._sources.get(key)
        live = self._live_nbytes + nbytes - (replaced.nbytes if replaced else 0)
        payload = self._payload_nbytes + nbytes - (replaced.payload_nbytes if replaced else 0)
        allowed = 2 * live + _SLACK_NBYTES
        promised = 3 * payload + _PROMISED_SLACK_NBYTES
        if live + live // 4 < promised:
            allowed = min(allowed, promised)
        return file.tail + self._held_nbytes + nbytes + len(self._sources) * OBJECT_NBYTES // 2 > allowed

    def _write_held(self, target: DataFile, work: JobContext) -> None:
        """Write the values that wait in memory, in batches: to let go of all at once would take long."""
        held = [(key, source) for key, source in self._sources.items() if isinstance(source, Held)]
        for batch in work.pacer.batches(held):
            self._append(target, [source.value(key) for key, source in batch], work)

    def _append(self, target: DataFile, values: list[Value], work: JobContext) -> None:
        if not values:
            return
        for key, place in target.append(self._location.ops, values, work).items():
            self._set(key, Placed(target, place))

    def _set(self, key: str, source: Source) -> None:
        """Let a key have another source; a key that is there keeps its place."""
        before = self._sources.get(key)
        if before is not None:
            self._forget(before)
        self._live_nbytes += source.nbytes
        self._payload_nbytes += source.payload_nbytes
        self._held_nbytes += source.nbytes if isinstance(source, Held) else 0
        self._sources[key] = source
        self._entries[key] = source.names

    def _forget(self, source: Source) -> None:
        self._live_nbytes -= source.nbytes
        self._payload_nbytes -= source.payload_nbytes
        self._held_nbytes -= source.nbytes if isinstance(source, Held) else 0

    # --- committing ---------------------------------------------------------------------------------------------------

    def _can_go_back(self, target: DataFile) -> bool:
        """Whether there is an old file, besides this new one, that may still be appended to."""
        return target is self._fresh and self._main is not None and not self._is_tainted

    def _go_back(self, obstacle: Exception, work: JobContext) -> DataFile:
        """Let the old file have what is staged, and the new one go; return the old one."""
        main = self._main
        assert main is not None  # noqa: S101 - asked before
        self._write_held(main, work)
        self._move_all(main, work)  # what was written to the new one directly
        _close([file for file in self._files if file is not main], None)
        self._files = [main]
        self._location.discard_temporary()
        self._fresh = None
        return self._put_off(obstacle, main)

    def _put_off(self, obstacle: Exception, main: DataFile) -> DataFile:
        """Go on with the old file until it is larger by a quarter; return it."""
        self._small_until = main.tail + main.tail // 4
        self._obstacle = obstacle
        return main

    def _move_all(self, target: DataFile, work: JobContext) -> None:
        """Bring every value into the new file, in batches."""
        batches: dict[bool, list[Value]] = {True: [], False: []}
        held_nbytes = 0
        for value in self._values_elsewhere(target, work):
            batch = batches[value.is_small]
            batch.append(value)
            held_nbytes += value.nbytes
            if held_nbytes > _ALL_HELD_NBYTES or len(batch) == _BATCH_KEYS:
                for each in batches.values():
                    self._append(target, each, work)
                    each.clear()
                held_nbytes = 0
        for batch in batches.values():
            self._append(target, batch, work)
        # Of files that failed, and from which all is taken now: the next failure must not leave one more.
        for file in [each for each in self._files if each not in (target, self._main)]:
            file.close()
            self._files.remove(file)

    def _values_elsewhere(self, target: DataFile, work: JobContext) -> Iterator[Value]:
        for key, source in list(self._sources.items()):
            if isinstance(source, Foreign):
                if key not in target.linked:
                    assert self._foreign is not None  # noqa: S101 - it is where this source comes from
                    yield self._foreign.value(key, work)
            elif isinstance(source, Placed) and source.file is not target:
                yield source.file.stored(key, source.place, work.pacer)

    def _commit(self, target: DataFile, work: JobContext) -> None:
        places = {
            key: source.place if isinstance(source, Placed) else target.linked[key]
            for key, source in self._sources.items()
        }
        if target is self._main:
            with self._tainting():
                self._location.sync_entry()
        try:
            target.commit(self._location.ops, places, work.pacer)
        except BaseException:
            if target.is_suspect:
                self._taint()
            raise
        if target is self._fresh:
            linked = self._open_linked(target)
            try:
                self._location.rename_temporary()
            except BaseException:
                if linked is not None:
                    linked.close()
                if not self._can_go_back(target):
                    self._taint()
                raise
            with self._tainting():
                self._location.sync_entry()
            self._main, self._fresh, self._obstacle, self._small_until = target, None, None, 0
            self._is_tainted = False
            self._close_files(but=target)
            self._foreign = linked

    @contextlib.contextmanager
    def _tainting(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._taint()
            raise

    def _taint(self) -> None:
        """Write to none of the files again: the next commit makes another. What is in them can still be read."""
        self._is_tainted = True
        if self._fresh is not None:
            self._location.discard_temporary()
            self._fresh = None

    def _close_files(self, but: DataFile | None = None) -> None:
        _close([file for file in self._files if file is not but], self._foreign)
        self._files = [] if but is None else [but]
        self._foreign = None


def _close(files: Sequence[DataFile], foreign: ForeignFile | None) -> None:
    for file in files:
        file.close()
    if foreign is not None:
        foreign.close()
