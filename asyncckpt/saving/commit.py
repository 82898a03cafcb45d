"""The jobs that change the disk: each one plain function, run in a worker thread to its end."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncckpt.disk import publish
from asyncckpt.disk.batch import SyncBatch
from asyncckpt.disk.blocks import BLOCK_NBYTES, write_bytes, write_plan
from asyncckpt.disk.lock import DirectoryLock, acquire_lock
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, IndexPlace
from asyncckpt.disk.names import TRAINING_INFO_NAME, Kind, name_of
from asyncckpt.disk.reading import read_unverified
from asyncckpt.documents import parse_training_info
from asyncckpt.formats.base import find_format
from asyncckpt.saving.catalog import CheckpointRecord
from asyncckpt.workers import Pacer, paused_gc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.state.capture import Snapshot
    from asyncckpt.state.flat import FlatState
    from asyncckpt.workers import Crew, StopFlag


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRequest:
    """Everything that the job which writes a checkpoint needs; nothing in it changes any more."""

    root: Path
    step: int
    flat: FlatState
    snapshot: Snapshot
    documents: Mapping[str, bytes]
    """The small files beside the state, by name."""
    format_name: str
    block_nbytes: int = BLOCK_NBYTES
    on_planned: Callable[[int], None]
    """Called with the size of the state file."""
    on_written: Callable[[int], None]
    on_copied: Callable[[], None]


class Trash(NamedTuple):
    """A checkpoint that was retired, or overwritten, and is to be deleted."""

    path: Path
    nbytes: int
    """What its files take on the disk, in bytes."""
    free_nbytes: int
    """What the disk had left, in bytes, when it was retired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What came of it."""

    record: CheckpointRecord
    trash: tuple[Trash, ...]
    """What had the name before."""
    written_at: float
    """When the bytes were on the disk, by `time.perf_counter`."""


def block_nbytes_within(nbytes: int) -> int:
    """Return the largest block size that fits into so much memory, but at least a digest block."""
    blocks = nbytes // DIGEST_BLOCK_NBYTES
    return min(max(blocks, 1) * DIGEST_BLOCK_NBYTES, BLOCK_NBYTES)


def write_checkpoint(ops: DiskOps, request: WriteRequest, crew: Crew, stop: StopFlag) -> Written:
    """Write a checkpoint, make it durable and publish it. Whatever happens, the snapshot is released.

    Raises:
        OSError: The disk failed.
        UnsupportedLeafError: The format cannot hold the state.
        Stopped: `stop` was set. In each case what was written is discarded, unless its name could not be made durable:
            then it is left to the next save of the step, or to the next start.
    """
    pending = plan = None
    try:
        form = find_format(request.format_name)
        with paused_gc():
            plan = form.plan(request.flat.index(), Pacer(stop))
        request.on_planned(plan.nbytes)
        stop.check()
        pending = publish.stage(ops, request.root, request.step)
        with SyncBatch(ops) as batch:
            files = {name: write_bytes(ops, pending / name, data, batch) for name, data in request.documents.items()}
            files[form.file_name] = write_plan(
                ops,
                pending / form.file_name,
                plan,
                request.snapshot,
                crew=crew,
                stop=stop,
                batch=batch,
                block_nbytes=request.block_nbytes,
                on_copied=request.on_copied,
                on_written=request.on_written,
            )
            written_at = time.perf_counter()
            place = IndexPlace(form.file_name, plan.index_offset, plan.index_nbytes)
            publish.seal(ops, pending, request.step, files, place, batch)
        stop.check()
        moved = publish.move(ops, request.root, request.step)
    except BaseException as error:
        if pending is not None:
            _discard(ops, pending, error)
        raise
    finally:
        plan = None  # holds the encoded nodes too, which `release` frees piece by piece
        request.snapshot.release()
        request.flat.release()
    old = publish.make_durable(ops, moved)
    info = parse_training_info(request.documents[TRAINING_INFO_NAME])
    path = moved.committed
    record = CheckpointRecord(step=request.step, path=path, training_info=info, identity=_identity(str(path)))
    return Written(record=record, trash=_weigh(request.root, old), written_at=written_at)


def finalize(ops: DiskOps, root: Path, path: Path, step: int, stop: StopFlag) -> Written:
    """Seal and publish a pending directory that the caller has filled.

    Raises:
        ValueError: `path` is not in this root.
        FileNotFoundError: It does not exist.
        CheckpointError: There is a symbolic link or a special file in it.
        OSError: The disk failed. If it was a sync of the caller's files, they are discarded: syncing them again might
            report a success that it is not. Otherwise they stay, and may be finalized again.
        Stopped: `stop` was set.
    """
    pending = root / name_of(Kind.PENDING, step)
    if path.absolute() != pending and not (path.parent.is_dir() and path.parent.samefile(root)):
        message = f"{path} is not in {root}: use what init_tmp_checkpoint returned"
        raise ValueError(message)
    if not pending.is_dir():
        message = f"{pending} does not exist: make it with init_tmp_checkpoint({step}, ...)"
        raise FileNotFoundError(message)
    try:
        files = publish.digest_tree(ops, pending, stop)
        written_at = time.perf_counter()
        publish.seal(ops, pending, step, files)
    except publish.UnsyncedError as error:
        _discard(ops, pending, error)
        raise
    old = publish.publish(ops, root, step)
    return Written(record=read_record(root, step), trash=_weigh(root, old), written_at=written_at)


def begin_pending(ops: DiskOps, root: Path, step: int, documents: Mapping[str, bytes]) -> Path:
    """Make a pending directory with its small files, for a caller who writes the rest."""
    pending = publish.stage(ops, root, step)
    try:
        for name, data in documents.items():
            write_bytes(ops, pending / name, data)
    except BaseException as error:
        _discard(ops, pending, error)
        raise
    return pending


def retire(ops: DiskOps, root: Path, steps: Iterable[int]) -> tuple[Trash, ...]:
    """Take away the committed names of steps, durably.

    Raises:
        OSError: The disk failed. The names were given back, if that could be done.
    """
    return _weigh(root, *publish.retire(ops, root, steps))


def free_nbytes(root: Path) -> int:
    """Return how much the disk has left, in bytes."""
    disk = os.statvfs(root)
    return disk.f_bavail * disk.f_frsize


def _weigh(root: Path, *paths: Path | None) -> tuple[Trash, ...]:
    """Look how much room trash takes, and how much is left."""
    return tuple(Trash(path, publish.nbytes_of(path), free_nbytes(root)) for path in paths if path is not None)


def take_directory(ops: DiskOps, root: Path) -> tuple[DirectoryLock, list[CheckpointRecord]]:
    """Become the directory's writer: make it, lock it, bring it into order, and list what is committed.

    Raises:
        DirectoryLockedError: There is another writer.
        OSError: The directory cannot be made or written.
    """
    publish.ensure_directory(ops, root)
    lock = acquire_lock(ops, root)
    try:
        publish.recover(ops, root)
        return lock, read_records(root)
    except BaseException:
        lock.release()
        raise


def tidy(ops: DiskOps, root: Path) -> None:
    """Bring a directory into order if a killed writer has left one behind and no writer is there now."""
    if not root.is_dir() or not publish.has_leftovers(root):
        return
    try:
        lock = acquire_lock(ops, root)
    except Exception:  # noqa: BLE001 - somebody else's to clear, or not ours to change: the first save will say so
        return
    try:
        if lock.is_supported:  # else a writer may be at work for all we know
            publish.recover(ops, root)
    except OSError:
        return  # as above
    finally:
        lock.release()


def read_records(root: Path) -> list[CheckpointRecord]:
    """List the committed checkpoints with their training_info, without verifying them.

    Raises:
        NotADirectoryError: There is a file in the directory's place.
        OSError: The directory cannot be read.
    """
    if root.exists() and not root.is_dir():
        message = f"{root} is a file: a checkpoint directory is needed"
        raise NotADirectoryError(message)
    found = publish.scan(root)
    if not found:
        return []
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # names are looked up from the directory: with thousands of checkpoints whole paths take a while
        return [_record(step, path, at) for step, path in sorted(found.items())]
    finally:
        os.close(at)


def read_record(root: Path, step: int) -> CheckpointRecord:
    """Read one committed checkpoint's record."""
    return _record(step, root / name_of(Kind.COMMITTED, step))


def _record(step: int, path: Path, at: int | None = None) -> CheckpointRecord:
    """Read a record; `at` is a descriptor of the directory that holds the checkpoint."""
    place = path.name if at is not None else str(path)
    return CheckpointRecord(step=step, path=path, training_info=_read_info(place, at), identity=_identity(place, at))


def _identity(place: str, at: int | None = None) -> tuple[int, int]:
    try:
        found = os.stat(place, dir_fd=at)
    except OSError:  # gone meanwhile: `load` will say so
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def _read_info(place: str, at: int | None) -> dict[str, Any]:
    """Read a training_info, or nothing where it is missing or damaged: `load` will say what is wrong."""
    try:
        return parse_training_info(read_unverified(place, TRAINING_INFO_NAME, at))
    except (OSError, ValueError, RecursionError):
        return {}


def _discard(ops: DiskOps, pending: Path, error: BaseException) -> None:
    try:
        publish.discard(ops, pending)
    except OSError as second:  # the first error is what matters; the next start clears the rest
        error.add_note(f"{pending.name} could not be removed: {second}")
