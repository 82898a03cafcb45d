"""Pending directories whose files a caller writes."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from asyncckpt.disk import publish, removal, room
from asyncckpt.disk.manifest import IndexLocation, Manifest
from asyncckpt.disk.names import Kind, parse_name
from asyncckpt.disk.open_below import open_directory, read_unverified
from asyncckpt.disk.trees import stamp_of
from asyncckpt.disk.write_blocks import write_bytes, write_content
from asyncckpt.errors import CheckpointError
from asyncckpt.storage.base import LocalDirectories
from asyncckpt.storage.local.outcomes import committed_at, explain, explaining, remarks_of
from asyncckpt.storage.local.reader import open_path
from asyncckpt.storage.results import SHORTAGES, PendingDirectory, StateFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.disk.write_blocks import Content
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import StopFlag
    from asyncckpt.storage.reader import CheckpointReader
    from asyncckpt.storage.results import Committed


class PendingDirectories(LocalDirectories):
    """The pending directories of a checkpoint directory, and checkpoints by their path."""

    def __init__(self, ops: DiskOps, root: Path) -> None:
        self._ops = ops
        self._root = root

    def begin(self, step: int, documents: Mapping[str, bytes]) -> PendingDirectory:
        nbytes = sum(map(len, documents.values()))
        with explaining(self._root, f"its small files take {room.spell(nbytes)}"):
            pending, leftovers = publish.stage(self._ops, self._root, step)
            try:
                for name, data in documents.items():
                    write_bytes(self._ops, pending / name, data)
            except BaseException as error:
                self._discard_after(error, pending)
                raise
        return PendingDirectory(pending, remarks_of(leftovers))

    def parse_step(self, path: Path) -> int:
        found = parse_name(path.name)
        if found is None or found[0] is not Kind.PENDING:
            message = f"{path} is not named {Kind.PENDING}N: use what init_tmp_checkpoint returned"
            raise ValueError(message)
        return found[1]

    def read_pending(self, path: Path, name: str) -> bytes | None:
        try:
            directory = open_directory(self._root / path.name)
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            return None
        try:
            return read_unverified(directory, name)
        finally:
            os.close(directory)

    def write_state(self, path: Path, name: str, content: Content, context: JobContext) -> StateFile:
        pending = self._root / path.name
        with explaining(self._root, f"the state takes {room.spell(content.plan.nbytes)}"):
            if os.path.lexists(pending / name):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(pending / name))
            try:
                record = write_content(self._ops, pending / name, content, context)
            except BaseException:
                with contextlib.suppress(OSError):  # it is discarded with the directory, or refused by the next
                    self._ops.unlink(pending / name)
                raise
        plan = content.plan
        index = IndexLocation(name, plan.index_offset, plan.index_nbytes)
        return StateFile(name, record, index, stamp_of(os.lstat(pending / name)))

    def remove(self, path: Path, name: str) -> None:
        self._ops.unlink(self._root / path.name / name)

    def commit(
        self, path: Path, stop: StopFlag, before: Callable[[float], None], state: StateFile | None = None
    ) -> Committed:
        step, pending = self.parse_step(path), self._root / path.name
        if path.absolute() != pending and not (path.parent.is_dir() and path.parent.samefile(self._root)):
            message = f"{path} is not in {self._root}: use what init_tmp_checkpoint returned"
            raise ValueError(message)
        if not pending.is_dir():
            message = f"{pending} does not exist: make it with init_tmp_checkpoint({step}, ...)"
            raise FileNotFoundError(message)
        try:
            known = {} if state is None else {state.name: state.record}
            _check_unchanged(pending, state)
            files = publish.digest_tree(self._ops, pending, stop, known=known)
            index = None if state is None else state.location
            created = time.time()
            publish.seal(self._ops, pending, Manifest(step=step, created=created, files=files, index=index))
            before(created)
            published = publish.make_durable(self._ops, publish.move(self._ops, pending, step))
        except OSError as error:
            explain(error, self._root, f"its files take {room.spell(room.nbytes_of(pending))}")
            if isinstance(error, publish.UnsyncedError):
                self._discard_after(error, pending)
            raise
        return committed_at(published.path, published.trash, published.leftovers)

    def discard(self, path: Path) -> None:
        with explaining(self._root):
            removal.discard(self._ops, path)

    def open(self, path: Path) -> CheckpointReader:
        return open_path(path)

    def _discard_after(self, error: BaseException, pending: Path) -> None:
        try:
            removal.discard(self._ops, pending)
        except OSError as second:  # the next start clears the rest
            error.add_note(f"{pending.name} could not be removed: {second}")


def _check_unchanged(pending: Path, state: StateFile | None) -> None:
    """Refuse a state file that the caller has changed, or removed."""
    if state is None:
        return
    try:
        found = stamp_of(os.lstat(pending / state.name))
    except FileNotFoundError:
        found = None
    if found != state.stamp:
        message = f"{pending / state.name} was changed after the state had been written: leave this file alone"
        raise CheckpointError(message)
