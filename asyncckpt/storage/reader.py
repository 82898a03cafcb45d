"""What the reader of a checkpoint is, in any store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Self

from asyncckpt.disk.read_blocks import Target
from asyncckpt.errors import CheckpointError, CorruptCheckpointError
from asyncckpt.runtime.memory import aligned_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncckpt.disk.manifest import FileRecord, Manifest
    from asyncckpt.disk.mapping import MappedFile
    from asyncckpt.runtime.context import JobContext

_SHOWN_NAME: Final = 255


class CheckpointReader(ABC):
    """One checkpoint, opened once and read by one job; closed when its block is left."""

    manifest: Manifest
    directory: str
    """As of its record."""

    @abstractmethod
    def is_current(self) -> bool:
        """Whether the step is committed still, and this is its checkpoint."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""

    @abstractmethod
    def _open(self, name: str, record: FileRecord) -> CheckpointFile:
        """Open a file, whose record the manifest has, as `open` does."""

    def open(self, name: str) -> CheckpointFile:
        """Open a file of the manifest and check its size.

        Raises:
            CorruptCheckpointError: It is missing, or has another size.
        """
        return self._open(name, self._record(name))

    def read_small(self, name: str) -> bytes:
        """Read and verify a whole file."""
        return bytes(self.read_range(name, 0, self._record(name).nbytes))

    def read_range(self, name: str, offset: int, nbytes: int) -> memoryview:
        """Read bytes of a file, from verified blocks."""
        with self.open(name) as file:  # first: the size claimed is a file's size
            file.check_range(offset, nbytes)
            data = aligned_buffer(nbytes)
            file.read([Target(offset, nbytes, data)] if nbytes else [])
        return data.data  # without a copy: an index may be large

    def verify(self, name: str, context: JobContext) -> None:
        """Read a whole file and verify it."""
        with self.open(name) as file:
            file.read([], context, is_whole=True)

    def corrupt(self, name: str, reason: str) -> CorruptCheckpointError:
        """Make the error that says what is wrong with a file."""
        step = self.manifest.step
        shown = name if len(name) <= _SHOWN_NAME else f"{name[:_SHOWN_NAME]}..."
        return CorruptCheckpointError(f"step {step}: {shown} {reason}", step=step, file=name)

    def _record(self, name: str) -> FileRecord:
        record = self.manifest.files.get(name)
        if record is None:
            raise self.corrupt(name, "is not in the manifest")
        return record

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


class CheckpointFile(ABC):
    """One file of a checkpoint, open for reading; closed when its block is left."""

    def __init__(self, record: FileRecord, corrupt: Callable[[str], CorruptCheckpointError]) -> None:
        self.record = record
        self.corrupt = corrupt
        """Makes the error to raise from what is wrong with the file."""

    def read(
        self,
        targets: Sequence[Target],
        context: JobContext | None = None,
        *,
        is_whole: bool = False,
        on_begin: Callable[[int, int], None] | None = None,
    ) -> None:
        """Read what is wanted, and verify every digest block that was touched.

        Args:
            targets: What is wanted, sorted by offset, without overlaps.
            context: The job's; its stop flag is checked before each chunk. Without one, no thread helps.
            is_whole: Whether to read and verify the rest of the file, too.
            on_begin: Called before each chunk is read, from any thread, with the range of the chunk: (begin, end).

        Raises:
            CorruptCheckpointError: A digest does not match, or the file ends too early.
            Stopped: The job was asked to stop.
        """
        if targets:
            self.check_range(targets[-1].offset, targets[-1].nbytes)
        self._read(targets, context, is_whole=is_whole, on_begin=on_begin)

    def check_range(self, offset: int, nbytes: int) -> None:
        """Refuse a range that the file does not have."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.record.nbytes:
            raise self.corrupt(f"has {self.record.nbytes} bytes, and {nbytes} from byte {offset} on are wanted")

    @abstractmethod
    def _read(
        self,
        targets: Sequence[Target],
        context: JobContext | None,
        *,
        is_whole: bool,
        on_begin: Callable[[int, int], None] | None,
    ) -> None:
        """Do what `read` does."""

    def map(self, *, is_private: bool) -> MappedFile:
        """Map the file into memory, as `MappedFile` does; the mapping outlives this object.

        Raises:
            CheckpointError: The store has no local files.
        """
        del is_private
        raise CheckpointError("lazy=True maps files of a local disk, which this store does not have: load without it")

    def close(self) -> None:  # noqa: B027 - there may be nothing to close
        """Let go of the file."""

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
