"""One file of the msgpack kind: records are appended to it and read from it.

1. What lies behind `end` is a tail without meaning, which a killed writer or a failed append left. It is cut off,
   durably, before anything is appended.
2. After a failed sync nothing more is asked of the file (`is_suspect`): the system may have forgotten what it holds.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.disk.read_blocks import Run, Target, read_run
from asyncckpt.disk.write_blocks import Content, write_content_at
from asyncckpt.errors import CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.formats import msgpack as msgpack_format
from asyncckpt.formats.array_reader import targets_of
from asyncckpt.keyed.appender import Appender
from asyncckpt.keyed.log import records
from asyncckpt.keyed.log.records import Record
from asyncckpt.keyed.values import Found, build_value
from asyncckpt.runtime.cleanup import on_failure
from asyncckpt.state.index import decode_index

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.keyed.values import CapturedValue
    from asyncckpt.runtime.context import JobContext

ALIGNED_MIN_NBYTES: Final = 64 << 10
"""Arrays of a value that together take this much lie on pages; smaller values are packed closely."""
_COPY_NBYTES: Final = 4 << 20


class LogFile:
    """An open file.

    Attributes:
        fd: Its descriptor, for reading and, once it is `prepare`d, for writing.
        end: Where the last record ends.
        is_published: Whether it has the name of the keyed file. If not, it is the temporary file.
        is_suspect: Whether something on its way to the disk has failed, so that a new file is needed.
    """

    def __init__(self, fd: int, location: FileLocation, log: records.Log, *, is_published: bool) -> None:
        self._location = location
        self._ops = location.ops
        self._file_id, self._commit, self._has_tail = log.file_id, log.commit, log.has_tail
        self.fd = fd
        self.end = log.end
        self.is_published = is_published
        self.is_suspect = False

    @classmethod
    def create(cls, location: FileLocation) -> LogFile:
        """Begin a temporary file."""
        file_id = os.urandom(records.ID_NBYTES)
        file = cls(location.create_temporary(), location, records.Log(file_id), is_published=False)
        with on_failure(file.close, location.discard_temporary):
            file.append(records.file_head(file_id))
        return file

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)

    def prepare(self) -> None:
        """Open it for writing, and write its last commit once more: the system may have forgotten it since."""
        reader, self.fd = self.fd, os.open(self._location.path, os.O_RDWR | os.O_CLOEXEC)
        os.close(reader)
        out = Appender(self._ops, self.fd, self.end - len(self._commit))
        out.write(self._commit)
        out.flush()

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, key: str, record: Record, context: JobContext, *, keeps_kinds: bool = True) -> Found:
        """Read the value of a record.

        Raises:
            CorruptCheckpointError: It is damaged.
            UnsupportedFormatError: It has what this release or this program cannot load.
            Stopped: The job was asked to stop.
        """

        def corrupt(reason: str) -> CorruptCheckpointError:
            return self.corrupt(key, record, reason)

        run = Run(self.fd, record.body, corrupt, record.body_offset)
        encoded = np.empty(record.index_nbytes, np.uint8)
        read_run(run, [Target(0, record.index_nbytes, encoded)], context)
        try:
            index, segments = decode_index(memoryview(encoded), file_nbytes=record.body.nbytes, pacer=context.pacer)  # type: ignore[arg-type] # arrays are buffers
            # Unlike np.empty, np.ndarray leaves a dtype of no bytes ("<U0") as it is.
            arrays: dict[int, NDArray[Any]] = {
                number: np.ndarray(meta.shape, meta.dtype) for number, meta in enumerate(index.arrays)
            }
            read_run(run, targets_of(segments, arrays), context)
            return build_value(index, arrays, context.pacer, keeps_kinds=keeps_kinds)
        except CorruptCheckpointError as error:
            if error.file is None:
                raise corrupt(f"cannot be read: {error}") from error
            raise
        except UnsupportedFormatError as error:
            message = f"{self._location.name}: the value of {key!r}: {error}"
            raise UnsupportedFormatError(message) from error

    def corrupt(self, key: str, record: Record, reason: str) -> CorruptCheckpointError:
        """Return the error of a damaged record."""
        name = self._location.name
        message = f"{name}: damaged at byte {record.offset}: the record of {key!r} {reason}"
        return CorruptCheckpointError(message, file=name)

    # --- writing ------------------------------------------------------------------------------------------------------

    def append(self, head: bytes) -> None:
        """Append a record that has no body."""
        with self._appending() as out:
            out.write(head)
            out.write(records.tail(head, b""))

    def append_value(self, key: str, value: CapturedValue, context: JobContext) -> Record:
        """Append the record of a value."""
        index, begin = value.index, self.end
        is_aligned = sum(meta.nbytes for meta in index.arrays) >= ALIGNED_MIN_NBYTES
        with self._appending() as out:
            if is_aligned:
                plan = msgpack_format.plan(index, context.pacer)
                index_nbytes = plan.index_nbytes
                head = records.set_head(key, value.key_tree, index_nbytes, plan.nbytes, is_aligned=True)
                out.write(head)
                out.write(records.padding(out.offset))
                out.flush()
                offset = out.offset
                body = write_content_at(self._ops, self.fd, offset, Content(plan, value.snapshot), context)
                out.offset += body.nbytes
            else:
                chunks, index_nbytes, body = records.small_body(value, context.pacer)
                head = records.set_head(key, value.key_tree, index_nbytes, body.nbytes, is_aligned=False)
                out.write(head)
                offset = out.offset
                for chunk in chunks:
                    out.write(chunk)
            out.write(records.tail(head, body.digests))
        return Record(begin, self.end, offset, index_nbytes, body, value.key_tree, len(head), is_aligned)

    def append_copy(self, source: LogFile, key: str, record: Record, context: JobContext) -> Record:
        """Append a record of another file, as it is: its digests go with it."""
        begin = self.end
        with self._appending() as out:
            out.write(records.read_range(source.fd, record.offset, record.head_nbytes))
            if record.is_aligned:
                out.write(records.padding(out.offset))
            offset = out.offset
            at = record.body_offset
            while at < record.end:
                chunk = records.read_range(source.fd, at, min(_COPY_NBYTES, record.end - at))
                if not chunk:
                    raise source.corrupt(key, record, "is cut off: another program has made the file shorter")
                out.write(chunk)
                out.flush()
                at += len(chunk)
                context.pacer.pause()
        return replace(record, offset=begin, end=self.end, body_offset=offset)

    def commit(self) -> None:
        """Append a commit, and sync it; if the file is published, its records must have been synced before."""
        with self._appending() as out:
            head = records.commit_head(self._file_id, self.end)
            out.write(head)
            out.write(records.tail(head, b""))
            out.flush()
            self.sync()

    def sync(self) -> None:
        """Sync it."""
        with on_failure(self.suspect):
            self._ops.sync(self.fd)

    def suspect(self) -> None:
        """Ask nothing more of the file: what is on the disk, or which file has the name, is not known."""
        self.is_suspect = True

    @contextmanager
    def _appending(self) -> Iterator[Appender]:
        """Append what is written to the appender; if the block fails, that is a tail."""
        if self._has_tail:
            self._ops.truncate(self.fd, self.end)
            if not self.is_suspect:  # otherwise a new file takes what lives
                self.sync()
        self._has_tail = True
        out = Appender(self._ops, self.fd, self.end)
        yield out
        out.flush()
        self.end, self._has_tail = out.offset, False
