"""The jobs that change the disk: each one plain function, run in a worker thread to its end."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar

from asyncckpt.disk import publish, removal, room
from asyncckpt.disk.batch import SyncBatch
from asyncckpt.disk.checkpoint import open_directory, read_unverified
from asyncckpt.disk.diagnosis import describe_checkpoint, describe_missing, explain_refusal
from asyncckpt.disk.listing import nbytes_of
from asyncckpt.disk.lock import DirectoryLock, acquire_lock
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, IndexPlace
from asyncckpt.disk.metric_file import clear_half_made, is_half_made, read_metric_file, write_metric_file
from asyncckpt.disk.names import TRAINING_INFO_NAME
from asyncckpt.disk.write_blocks import BLOCK_NBYTES, Content, Progress, write_bytes, write_content
from asyncckpt.documents import parse_training_info
from asyncckpt.errors import ConfigError
from asyncckpt.formats.base import find_format
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.saving.directory import arrange_listed
from asyncckpt.saving.metric import metric_to_store
from asyncckpt.storage.base import CheckpointRecord
from asyncckpt.storage.local.records import identity_of, read_record, say_if_gone, scan_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from asyncckpt.disk.metric_file import MetricFile
    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.disk.removal import Leftover
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import StopFlag
    from asyncckpt.saving.catalog import Listed
    from asyncckpt.saving.metric import PolicyRequest
    from asyncckpt.state.capture import Capture


ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")

_ADVICE: Final = ", delete() checkpoints or keep fewer of them (keep_latest_k, keep_top_k)"
"""What to do besides where there is no room."""


class WriteProgress(Progress):
    """Is told how the writing of a checkpoint goes on, from any thread. This one looks at nothing."""

    def planned(self, nbytes: int) -> None:
        """The state file will have so many bytes."""


class WriteRequest(NamedTuple):
    """Everything that the job which writes a checkpoint needs; nothing in it changes any more."""

    root: Path
    step: int
    capture: Capture
    documents: Mapping[str, bytes]
    """The small files beside the state, by name."""
    format_name: str
    progress: WriteProgress = WriteProgress()
    block_nbytes: int = BLOCK_NBYTES
    min_free_nbytes: int | None = None
    """What the disk must have free before; None: the size of the checkpoint."""
    is_last_try: bool = True
    """Whether a save for which there is no room has failed, and is not tried again when there is some."""


class Trash(NamedTuple):
    """A checkpoint that was retired, or overwritten, and is to be deleted."""

    path: Path
    nbytes: int
    """What its files take on the disk, in bytes."""
    free_nbytes: int
    """What the disk had left, in bytes, when it was retired."""


class Retired(NamedTuple):
    """What came of steps that were to go."""

    trash: tuple[Trash, ...]
    refused: dict[int, Leftover]
    """Why steps stay committed, by step."""
    remarks: tuple[str, ...]
    """What cannot be removed of steps that are deleted, and why."""


class Swept(NamedTuple):
    """What came of trash."""

    done: int
    """How many directories were dealt with, the first ones."""
    left_nbytes: int
    """What of them cannot be removed takes on the disk, in bytes."""
    remarks: tuple[str, ...]
    """What cannot be removed, and why."""


class Written(NamedTuple):
    """What came of it."""

    record: CheckpointRecord
    """For the catalog alone: what the caller gets may be changed."""
    trash: tuple[Trash, ...]
    """What had the name before."""
    remarks: tuple[str, ...]
    """What cannot be removed, and why."""
    written_at: float
    """When the bytes were on the disk, by `time.perf_counter`."""
    returned: CheckpointRecord | None = None
    """The record for the handle, if there is one."""


def block_nbytes_within(nbytes: int) -> int:
    """Return the largest block size that fits into so much memory, but at least a digest block."""
    blocks = nbytes // DIGEST_BLOCK_NBYTES
    return min(max(blocks, 1) * DIGEST_BLOCK_NBYTES, BLOCK_NBYTES)


def change(
    root: Path,
    lock: DirectoryLock | None,
    job: Callable[Params, ResultT],
    /,
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> ResultT:
    """Do a job that changes a directory, if it is the one that was locked; None for one that locks it.

    Raises:
        FileNotFoundError: The directory was removed or replaced; the job was not done.
        OSError: The disk failed; if it may not be written, the error says what to do.
    """
    if lock is not None:
        lock.check_in_place(root)
    try:
        return job(*args, **kwargs)
    except OSError as error:
        explain_refusal(error)
        raise


def write_checkpoint(ops: DiskOps, request: WriteRequest, context: JobContext) -> Written:
    """Write a checkpoint, make it durable and publish it. Whatever happens, the capture is released.

    Raises:
        NoRoomError: The disk has too little room, which was seen before anything was written. Unless this was the last
            try, the capture is kept.
        OSError: The disk failed.
        UnsupportedLeafError: The format cannot hold the state.
        Stopped: The job was asked to stop. In each case what was written is discarded, unless its name could not be
            made durable: then it is left to the next save of the step, or to the next start.
    """
    pending = plan = content = None
    is_over = True
    nbytes = sum(map(len, request.documents.values()))
    try:
        form = find_format(request.format_name)
        with young_collections_only():
            plan = form.plan(request.capture.index, context.pacer)
        request.progress.planned(plan.nbytes)
        nbytes += plan.nbytes
        context.stop.check()
        room.check_room(request.root, nbytes if request.min_free_nbytes is None else request.min_free_nbytes)
        pending, leftovers = publish.stage(ops, request.root, request.step)
        with SyncBatch(ops) as batch:
            files = {name: write_bytes(ops, pending / name, data, batch) for name, data in request.documents.items()}
            content = Content(plan, request.capture.snapshot, request.block_nbytes, request.progress)
            files[form.file_name] = write_content(ops, pending / form.file_name, content, context, batch=batch)
            written_at = time.perf_counter()
            place = IndexPlace(form.file_name, plan.index_offset, plan.index_nbytes)
            publish.seal(ops, pending, request.step, files, place, batch)
        context.stop.check()
        moved = publish.move(ops, pending, request.step)
    except BaseException as error:
        is_over = request.is_last_try or not isinstance(error, room.NoRoomError)
        if pending is not None:
            _discard(ops, pending, error)
        if is_over and isinstance(error, OSError):
            _explain(error, request, nbytes)
        raise
    finally:
        plan = content = None  # hold the encoded nodes too, which `release` frees chunk by chunk
        if is_over:
            request.capture.release()
    try:
        path, old, others = publish.make_durable(ops, moved)
    except OSError as error:
        _explain(error, request, nbytes)
        raise
    info = request.documents[TRAINING_INFO_NAME]
    record = CheckpointRecord(
        step=request.step,
        directory=str(path),
        training_info=parse_training_info(info),
        identity=identity_of(path),
    )
    return Written(
        record=record,
        returned=replace(record, training_info=parse_training_info(info)),
        trash=_weigh(request.root, old),
        remarks=_remarks(*leftovers, *others),
        written_at=written_at,
    )


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
    pending = root / path.name
    if path.absolute() != pending and not (path.parent.is_dir() and path.parent.samefile(root)):
        message = f"{path} is not in {root}: use what init_tmp_checkpoint returned"
        raise ValueError(message)
    if not pending.is_dir():
        message = f"{pending} does not exist: make it with init_tmp_checkpoint({step}, ...)"
        raise FileNotFoundError(message)
    with room.explaining(root, lambda: f"its files take {room.spell(nbytes_of(pending))}", _ADVICE):
        try:
            files = publish.digest_tree(ops, pending, stop)
            written_at = time.perf_counter()
            publish.seal(ops, pending, step, files)
        except publish.UnsyncedError as error:
            _discard(ops, pending, error)
            raise
        committed, old, leftovers = publish.publish(ops, pending, step)
    record = read_record(committed, step)
    return Written(record=record, trash=_weigh(root, old), remarks=_remarks(*leftovers), written_at=written_at)


def read_pending_info(path: Path) -> dict[str, Any] | None:
    """Read the training_info of a pending directory: None without a directory, empty if none can be read."""
    try:
        directory = open_directory(path)
    except OSError:
        return None
    try:
        return parse_training_info(read_unverified(directory, TRAINING_INFO_NAME))
    except (OSError, ValueError):
        return {}
    finally:
        os.close(directory)


def begin_pending(
    ops: DiskOps, root: Path, step: int, documents: Mapping[str, bytes], made: list[Path]
) -> tuple[str, ...]:
    """Make a pending directory with its small files, for a caller who writes the rest.

    Its path goes into `made`, so that a caller who is cancelled knows it. What is returned is `Written.remarks`.
    """
    nbytes = sum(map(len, documents.values()))
    with room.explaining(root, lambda: f"its small files take {room.spell(nbytes)}", _ADVICE):
        pending, leftovers = publish.stage(ops, root, step)
        made.append(pending)
        try:
            for name, data in documents.items():
                write_bytes(ops, pending / name, data)
        except BaseException as error:
            _discard(ops, pending, error)
            raise
    return _remarks(*leftovers)


def retire(ops: DiskOps, root: Path, steps: Iterable[int], *, durably: bool) -> Retired:
    """Take away the committed names of steps, as `removal.retire` does.

    Raises:
        OSError: The disk failed. The names were given back, if that could be done.
    """
    trash, refused, leftovers = removal.retire(ops, root, steps, durably=durably)
    return Retired(_weigh(root, *trash), refused, _remarks(*leftovers))


def sweep(ops: DiskOps, root: Path, trash: Sequence[Trash], stop: StopFlag) -> Swept:
    """Delete trash, as `removal.sweep` does.

    Raises:
        OSError: The directory could not be synced.
    """
    done, leftovers = removal.sweep(ops, root, [each.path for each in trash], stop)
    return Swept(done, sum(nbytes_of(each.path) for each in leftovers), _remarks(*leftovers))


def _remarks(*leftovers: Leftover) -> tuple[str, ...]:
    return tuple(str(each) for each in leftovers)


def free_nbytes(root: Path) -> int:
    """Return how much the disk has left, in bytes; none where nobody knows."""
    return room.free_nbytes(root) or 0


def _explain(error: OSError, request: WriteRequest, nbytes: int) -> None:
    """Let an error that is a lack of room say what the checkpoint needs."""
    needed = f"the checkpoint takes {room.spell(nbytes)}"
    if isinstance(error, room.NoRoomError) and request.min_free_nbytes is not None:
        needed += f", of min_free_nbytes={request.min_free_nbytes} that must be free before it is written"
    room.explain(error, request.root, needed, _ADVICE)


def _weigh(root: Path, *paths: Path | None) -> tuple[Trash, ...]:
    """Look how much room trash takes, and how much is left."""
    return tuple(Trash(path, nbytes_of(path), free_nbytes(root)) for path in paths if path is not None)


def take_directory(
    ops: DiskOps, root: Path, request: PolicyRequest, known: Mapping[int, CheckpointRecord]
) -> tuple[DirectoryLock, Listed]:
    """Become the directory's writer: make it, lock it, bring it into order, store the metric, list what is committed.

    `known` is that of `read_records`.

    Raises:
        DirectoryLockedError: There is another writer.
        OSError: The directory cannot be made or written.
    """
    remarks = say_if_gone(root, known)
    with room.explaining(root, lambda: "the directory and its lock are made before the first checkpoint"):
        publish.ensure_directory(ops, root)
        lock = acquire_lock(ops, root)
    try:
        remarks += _recover(ops, root)
        file = read_metric_file(root)
        remarks += _store_metric(ops, root, request, file)
        return lock, arrange_listed(root, scan_root(root), request, file, known, remarks)
    except BaseException:
        lock.release()
        raise


def _store_metric(ops: DiskOps, root: Path, request: PolicyRequest, file: MetricFile) -> list[str]:
    """Let the directory say which metric ranks its checkpoints; return what there is to warn of."""
    metric = metric_to_store(request.resolve(file)[0], file)
    try:
        if metric is not None:
            write_metric_file(ops, root, metric)
    except OSError as error:  # no checkpoint depends on it: the next manager tries again
        return [f"the metric could not be stored for those who open the directory later: {error}"]
    return []


def list_directory(
    ops: DiskOps, root: Path, request: PolicyRequest, *, is_writer: bool, must_exist: bool = False
) -> Listed:
    """List a directory for a catalog, as `read_records` does; a writer brings it into order first, as far as it may.

    With `must_exist`, the listing of a directory that does not exist says so.

    Raises:
        ConfigError: The directory is no directory of checkpoints, but one of them.
        NotADirectoryError: There is a file in the directory's place.
        OSError: The directory cannot be read.
    """
    listing = scan_root(root)
    remarks = []
    if must_exist and not root.exists():
        remarks.append(f"{describe_missing(root)}: nothing is listed until a writer makes it")
    if (is_checkpoint := describe_checkpoint(root)) is not None:
        if not listing.committed:
            raise ConfigError(is_checkpoint)
        remarks.append(f"{is_checkpoint}. What is saved here is deleted with it")
    if is_writer and (listing.has_leftovers or is_half_made(root)):
        remarks += _tidy(ops, root)
        listing = scan_root(root)
    return arrange_listed(root, listing, request, read_metric_file(root), {}, remarks)


def _recover(ops: DiskOps, root: Path) -> list[str]:
    """Bring a directory that a killed writer left into order, for the lock's holder; return what stays, and why."""
    leftovers = removal.recover(ops, root)
    clear_half_made(ops, root)
    return [str(each) for each in leftovers]


def _tidy(ops: DiskOps, root: Path) -> list[str]:
    """Bring a directory into order if a killed writer has left one behind and no writer is there now, as `_recover`."""
    try:
        lock = acquire_lock(ops, root)
    except Exception:  # noqa: BLE001 - somebody else's to clear, or not ours to change: the first save will say so
        return []
    try:
        return _recover(ops, root) if lock.is_supported else []  # else a writer may be at work for all we know
    except OSError:
        return []  # as above
    finally:
        lock.release()


def _discard(ops: DiskOps, pending: Path, error: BaseException) -> None:
    try:
        removal.discard(ops, pending)
    except OSError as second:  # the first error is what matters; the next start clears the rest
        error.add_note(f"{pending.name} could not be removed: {second}")
