"""A store of checkpoints in memory: the simplest one that keeps the promises of `asyncckpt.storage.base`."""

from __future__ import annotations

import errno
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, FileRecord, Manifest, digest_bytes
from asyncckpt.disk.plan import Span
from asyncckpt.documents import TRAINING_INFO_NAME, parse_training_info
from asyncckpt.errors import CheckpointNotFoundError, DirectoryLockedError
from asyncckpt.runtime.context import JobContext
from asyncckpt.storage.base import Attempt, CheckpointStore
from asyncckpt.storage.reader import CheckpointFile, CheckpointReader
from asyncckpt.storage.results import CheckpointRecord, Committed, Listing, NoRoomError, Retired, Swept, Trash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from asyncckpt.disk.read_blocks import Target
    from asyncckpt.disk.write_blocks import Content
    from asyncckpt.runtime.pacing import StopFlag

_numbers = itertools.count(1)


@dataclass
class Checkpoint:
    """A committed checkpoint."""

    manifest: Manifest
    files: dict[str, bytearray]
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def nbytes(self) -> int:
        """The size of its files, in bytes."""
        return sum(map(len, self.files.values()))


@dataclass
class Shared:
    """What several stores, as of several processes, have in common."""

    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)
    trash: dict[str, Checkpoint] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    writer: object = None
    capacity: int = 1 << 30

    def throw_away(self, checkpoint: Checkpoint) -> Trash:
        """Move a checkpoint to the trash."""
        self.trash[str(checkpoint.number)] = checkpoint
        return Trash(str(checkpoint.number), checkpoint.nbytes, self.free_nbytes())

    def free_nbytes(self) -> int:
        """Return how much room is left, in bytes."""
        return self.capacity - sum(each.nbytes for each in (*self.checkpoints.values(), *self.trash.values()))


class MemoryStore(CheckpointStore):
    """One store of a location."""

    location = "memory"
    attempt: type[MemoryAttempt]
    file: type[MemoryFile]

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.is_taken = False

    def enter(self, *, is_writer: bool, must_exist: bool) -> Listing:
        return self.list_checkpoints({})

    def list_checkpoints(self, known: Mapping[int, CheckpointRecord]) -> Listing:
        records = {}
        for step, checkpoint in sorted(self.shared.checkpoints.items()):
            info = parse_training_info(bytes(checkpoint.files[TRAINING_INFO_NAME]))
            record = CheckpointRecord(step=step, directory="", training_info=info, identity=checkpoint.number)
            is_known = step in known and known[step].identity == record.identity
            records[step] = known[step] if is_known else record
        return Listing(records)

    def missing(self, steps: Iterable[int]) -> list[int]:
        return [step for step in steps if step not in self.shared.checkpoints]

    def open(self, step: int) -> CheckpointReader:
        if step not in self.shared.checkpoints:
            raise CheckpointNotFoundError(f"step {step} is not committed in memory", step=step)
        return MemoryReader(self.shared, self.shared.checkpoints[step], self.file)

    def free_nbytes(self) -> int | None:
        return self.shared.free_nbytes()

    def nbytes_of(self, steps: Iterable[int]) -> int:
        return sum(each.nbytes for step in steps if (each := self.shared.checkpoints.get(step)) is not None)

    def read_document(self, name: str) -> bytes | None:
        return self.shared.documents.get(name)

    def take(self, known: Mapping[int, CheckpointRecord]) -> tuple[str, ...]:
        if self.shared.writer not in (None, self):
            raise DirectoryLockedError("memory: another writer has it")
        self.shared.writer = self
        self.is_taken = True
        return ()

    def check(self) -> None:
        if self.is_taken and self.shared.writer is not self:
            raise OSError(errno.ESTALE, "another writer has taken it", "memory")

    def release(self) -> None:
        if self.shared.writer is self:
            self.shared.writer = None
        self.is_taken = False

    def begin(self, step: int, nbytes: int, min_free_nbytes: int | None = None) -> Attempt:
        needed = nbytes if min_free_nbytes is None else min_free_nbytes
        if self.shared.free_nbytes() < needed:
            error = NoRoomError(errno.ENOSPC, "no room in memory", "memory")
            error.nbytes = needed
            raise error
        return self.attempt(self.shared, step)

    def retire(self, steps: Iterable[int], *, durably: bool = True) -> Retired:
        found = [step for step in steps if step in self.shared.checkpoints]
        return Retired(tuple(self.shared.throw_away(self.shared.checkpoints.pop(step)) for step in found), {}, ())

    def sweep(self, trash: Sequence[Trash] | None, stop: StopFlag) -> Swept:
        names = list(self.shared.trash) if trash is None else [each.name for each in trash]
        for number, name in enumerate(names):
            if stop.is_set:
                return Swept(number, 0, ())
            self.shared.trash.pop(name, None)
        return Swept(len(names), 0, ())

    def write_document(self, name: str, data: bytes) -> None:
        self.shared.documents[name] = data


class MemoryAttempt(Attempt):
    """Files that no reader sees yet."""

    def __init__(self, shared: Shared, step: int) -> None:
        self.shared = shared
        self.step = step
        self.files: dict[str, bytearray] = {}

    def write(self, name: str, data: bytes) -> FileRecord:
        self.files[name] = bytearray(data)
        return digest_bytes(data)

    def write_content(self, name: str, content: Content, context: JobContext) -> FileRecord:
        context.stop.check()
        data = bytearray(content.plan.nbytes)
        memory = np.frombuffer(data, np.uint8)
        for offset, nbytes, source in content.plan.entries:
            target = memory[offset : offset + nbytes]
            if not isinstance(source, Span):
                target[:] = np.frombuffer(source, np.uint8)
            elif (views := content.arrays.view(source.array, source.start, nbytes)) is None:
                content.arrays.copy_to(target, source.array, source.start)
            elif nbytes:
                target[:] = np.concatenate(views)
        content.progress.copied()
        content.progress.written(len(data))
        return self.write(name, bytes(data))

    def commit(self, manifest: Manifest, stop: StopFlag) -> Committed:
        stop.check()
        old = self.shared.checkpoints.get(self.step)
        new = self.shared.checkpoints[self.step] = Checkpoint(manifest, self.files)
        return Committed("", new.number, () if old is None else (self.shared.throw_away(old),), ())

    def discard(self) -> None:
        self.files = {}  # a committed checkpoint has these files


class MemoryReader(CheckpointReader):
    """One checkpoint."""

    directory = ""

    def __init__(self, shared: Shared, checkpoint: Checkpoint, file: type[MemoryFile]) -> None:
        self.shared = shared
        self.file = file
        self.checkpoint = checkpoint
        self.manifest = checkpoint.manifest

    def is_current(self) -> bool:
        return self.shared.checkpoints.get(self.manifest.step) is self.checkpoint

    def close(self) -> None:
        pass

    def _open(self, name: str, record: FileRecord) -> CheckpointFile:
        return self.file(self.checkpoint.files[name], record, lambda reason: self.corrupt(name, reason))


class MemoryFile(CheckpointFile):
    """One file; nothing of it is mapped."""

    def __init__(self, data: bytearray, record: FileRecord, corrupt: Callable[[str], Exception]) -> None:
        super().__init__(record, corrupt)
        self.data = np.frombuffer(data, np.uint8)

    def _read(
        self,
        targets: Sequence[Target],
        context: JobContext | None,
        *,
        is_whole: bool,
        on_begin: Callable[[int, int], None] | None,
    ) -> None:
        nbytes = DIGEST_BLOCK_NBYTES
        for block, begin in enumerate(range(0, len(self.data), nbytes)):
            (context or JobContext()).stop.check()
            end = min(begin + nbytes, len(self.data))
            wanted = [(t, max(t.offset, begin), min(t.offset + t.nbytes, end)) for t in targets]
            wanted = [(target, low, high) for target, low, high in wanted if low < high]
            if not wanted and not is_whole:
                continue
            if on_begin is not None:
                on_begin(begin, end)
            if digest_bytes(bytes(self.data[begin:end])).digests != self.record.digest(block):
                raise self.corrupt(f"is damaged: the digest of the block at byte {begin} does not match")
            for target, low, high in wanted:
                if target.memory is not None:
                    target.memory[low - target.offset : high - target.offset] = self.data[low:high]
                elif target.store is not None:
                    target.store(low - target.offset, self.data[low:high])


MemoryStore.attempt, MemoryStore.file = MemoryAttempt, MemoryFile
