"""Write a checkpoint into a pending directory, and publish it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncckpt.disk import publish, removal, taking
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES
from asyncckpt.disk.read_blocks import Target
from asyncckpt.disk.write_blocks import Part, SyncBatch, write_all, write_bytes, write_content
from asyncckpt.runtime.memory import aligned_buffer
from asyncckpt.storage.base import Attempt
from asyncckpt.storage.local.outcomes import committed_at, explain
from asyncckpt.storage.local.reader import open_step

if TYPE_CHECKING:
    from types import TracebackType

    from asyncckpt.disk.manifest import FileRecord, Manifest
    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.disk.trees import Entry
    from asyncckpt.disk.write_blocks import Content
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import StopFlag
    from asyncckpt.storage.reader import CheckpointFile
    from asyncckpt.storage.results import Committed

_COPY_NBYTES: Final = 16 * DIGEST_BLOCK_NBYTES  # so that each block is read once


class LocalAttempt(Attempt):
    """A pending directory that is being filled. Its small files are synced together."""

    def __init__(self, ops: DiskOps, root: Path, step: int, needed: str) -> None:
        """Make the directory; `needed` says in words how much space the checkpoint takes."""
        self._ops = ops
        self._root = root
        self._step = step
        self._needed = needed
        self._pending, self._leftovers = publish.stage(ops, root, step)
        self._batch = SyncBatch(ops)
        self._folders: dict[str, None] = {}  # that were made here, each after the one that holds it
        self._moved: dict[str, list[Entry]] = {}
        self._is_open = True

    def write(self, name: str, data: bytes) -> FileRecord:
        return write_bytes(self._ops, self._pending / name, data, self._batch)

    def write_content(self, name: str, content: Content, context: JobContext) -> FileRecord:
        self._add_parents(name)
        return write_content(self._ops, self._pending / name, content, context, batch=self._batch)

    def link(self, name: str, step: int) -> FileRecord:
        with open_step(self._root, step) as reader, reader.open(name) as file:
            self._ops.link(Path(reader.directory, name), self._pending / name)
            return file.record

    def copy_verified(self, name: str, file: CheckpointFile, context: JobContext) -> FileRecord:
        self._add_parents(name)
        nbytes = file.record.nbytes
        buffer = aligned_buffer(min(nbytes, _COPY_NBYTES))
        fd = self._ops.create(self._pending / name)
        try:  # not in the batch: it would keep thousands of files open
            for offset in range(0, nbytes, _COPY_NBYTES):
                context.stop.check()
                part = buffer[: min(_COPY_NBYTES, nbytes - offset)]
                file.read([Target(offset, len(part), part)], context)
                write_all(self._ops, fd, [Part(offset, part)])
            self._ops.sync(fd)
        finally:
            os.close(fd)
        return file.record

    def add_folder(self, name: str) -> None:
        self._add_parents(name)
        if name not in self._folders:
            self._ops.mkdir(self._pending / name)
            self._folders[name] = None

    def open_folder(self, name: str) -> Path:
        self.add_folder(name)
        return self._pending / name

    def take_in(self, name: str, stop: StopFlag) -> dict[str, FileRecord]:
        self._folders.pop(name, None)  # the caller may have put a file in its place
        return publish.digest_tree(self._ops, self._pending, stop, below=name)

    def move(self, name: str, path: Path, stop: StopFlag) -> dict[str, FileRecord]:
        self._add_parents(name)
        self._moved[name] = taking.link_tree(self._ops, path, self._pending / name, stop)
        return self.take_in(name, stop)

    def commit(self, manifest: Manifest, stop: StopFlag) -> Committed:
        if self._moved:
            sources = {name: taken[0].path for name, taken in self._moved.items()}
            taking.announce(self._ops, self._root, self._step, sources)
        for folder in reversed(self._folders):
            self._ops.sync_directory(self._pending / folder)
        publish.seal(self._ops, self._pending, manifest, self._batch)
        self._batch.close()
        stop.check()
        moved = publish.move(self._ops, self._pending, self._step)
        self._is_open = False  # if the names cannot be made durable, it is not known which would survive a power cut
        path, old, others = publish.make_durable(self._ops, moved)
        left = [each for taken in self._moved.values() for each in taking.leave(self._ops, taken)]
        if self._moved:
            with contextlib.suppress(OSError):  # the next writer does it
                taking.forget(self._ops, self._root)
        return committed_at(path, old, [*self._leftovers, *others], left)

    def discard(self) -> None:
        self._batch.close()
        if self._is_open:
            self._is_open = False
            if self._moved:
                with contextlib.suppress(OSError):  # as above
                    taking.forget(self._ops, self._root)
            removal.discard(self._ops, self._pending)

    def _add_parents(self, name: str) -> None:
        parent, _, _ = name.rpartition("/")
        if parent:
            self.add_folder(parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Discard it. Then complete an error that is a lack of space: what was discarded counts as free."""
        super().__exit__(kind, error, traceback)
        if isinstance(error, OSError):
            explain(error, self._root, self._needed)
