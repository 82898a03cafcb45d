"""The jobs that write a checkpoint: each one plain function, run in a worker thread to its end."""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, IndexLocation, Manifest
from asyncckpt.disk.write_blocks import BLOCK_NBYTES, Content, Progress
from asyncckpt.documents import TRAINING_INFO_NAME, parse_training_info
from asyncckpt.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError
from asyncckpt.formats.base import find_format
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.saving.discards import note_discards
from asyncckpt.state.capture import Capture
from asyncckpt.state.encode import flatten
from asyncckpt.storage.results import SHORTAGES, CheckpointRecord, NoRoomError, saved_files

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from pathlib import Path

    from asyncckpt.arrays.device import Moment
    from asyncckpt.disk.manifest import FileRecord
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.saving.files import CallersFile, SourceError
    from asyncckpt.storage.base import Attempt, CheckpointStore, LocalDirectories
    from asyncckpt.storage.results import StateFile, Trash


class WriteRequest(NamedTuple):
    """Everything that the job which writes a checkpoint needs; nothing in it changes any more."""

    step: int
    capture: Capture
    documents: Mapping[str, bytes]
    """The small files beside the state, by name."""
    format_name: str
    files: tuple[CallersFile, ...] = ()
    """The files of the caller's own."""
    progress: Progress = Progress()
    """Receives the progress of the state file."""
    block_nbytes: int = BLOCK_NBYTES
    min_free_nbytes: int | None = None
    """How much room the store must have before; None: the size of the checkpoint."""
    discarded: tuple[int, ...] = ()
    """The steps that the commit discards."""
    is_last_try: bool = True
    """Whether a save for which there is no room has failed, and is not tried again when there is some."""


class Written(NamedTuple):
    """A checkpoint that was committed."""

    record: CheckpointRecord
    """For the catalog alone."""
    returned: CheckpointRecord
    """For the handle, whose caller may change it."""
    trash: tuple[Trash, ...]
    """What it has replaced."""
    remarks: tuple[str, ...]
    """What cannot be removed, and why."""
    written_at: float
    """When the bytes were on the disk, by `time.perf_counter`."""


Writing: TypeAlias = "Generator[tuple[CallersFile, Path], None, Written]"
"""The writing of a checkpoint. It yields a function to be called, and the directory that it fills."""


class Paused(NamedTuple):
    """A checkpoint that is being written, and waits for a function to fill a directory."""

    file: CallersFile
    """Its function is to be called."""
    path: Path
    """The directory, which is empty."""
    writing: Writing


def block_nbytes_within(nbytes: int) -> int:
    """Return the largest block size that fits into so much memory, but at least a digest block."""
    blocks = nbytes // DIGEST_BLOCK_NBYTES
    return min(max(blocks, 1) * DIGEST_BLOCK_NBYTES, BLOCK_NBYTES)


def write_checkpoint(store: CheckpointStore, request: WriteRequest, context: JobContext) -> Written | Paused:
    """Write a checkpoint and commit it. Whatever happens, the capture is released.

    Returns:
        What was committed; or, if a function has to write files first, what `resume` goes on with when it has.

    Raises:
        NoRoomError: The store has too little room, which was seen before anything was written. Unless this was the last
            try, the capture is kept.
        OSError: The store failed.
        CheckpointError: A file of the caller's was refused.
        UnsupportedLeafError: The format cannot hold the state.
        StateChangedError: The state is not what was written of it.
        Stopped: The job was asked to stop. In each case what was written is discarded, unless it may have been
            committed: then it is left to the next save of the step, or to the next start.
    """
    return resume(_writing(store, request, context))


def resume(writing: Writing, failure: SourceError | None = None) -> Written | Paused:
    """Go on with the writing of a checkpoint, as `write_checkpoint` does.

    Args:
        writing: What is under way.
        failure: What has become of the function, if it has failed.
    """
    try:
        return Paused(*(next(writing) if failure is None else writing.throw(failure)), writing)
    except StopIteration as done:
        result: Written = done.value
        return result


def abandon(writing: Writing) -> None:
    """Discard what was written of a checkpoint, if its writing is paused."""
    if inspect.getgeneratorstate(writing) == inspect.GEN_SUSPENDED:
        writing.close()


def _writing(store: CheckpointStore, request: WriteRequest, context: JobContext) -> Writing:
    plan = content = None
    is_over = True
    try:
        form = find_format(request.format_name)
        with young_collections_only():
            plan = form.plan(request.capture.index, context.pacer)
        request.progress.planned(plan.nbytes)
        nbytes = plan.nbytes + sum(map(len, request.documents.values())) + check_sources(store, request.files)
        context.stop.check()
        with store.begin(request.step, nbytes, request.min_free_nbytes) as attempt:
            files = {name: attempt.write(name, data) for name, data in request.documents.items()}
            content = Content(plan, request.capture.snapshot, request.block_nbytes, request.progress)
            files[form.file_name] = attempt.write_content(form.file_name, content, context)
            written_at = time.perf_counter()
            request.capture.confirm(context)
            index = IndexLocation(form.file_name, plan.index_offset, plan.index_nbytes)
            plan = content = None  # hold the encoded nodes too, which `release` frees chunk by chunk
            if request.files:
                request.capture.release()  # functions may take long
            callers: dict[str, FileRecord] = {}
            for file in sorted(request.files, key=lambda each: each.move):
                if file.function is not None:
                    yield file, attempt.open_folder(file.name)
                callers |= _take_in(attempt, file, context)
            manifest = Manifest(step=request.step, created=time.time(), files=files | callers, index=index)
            if request.discarded:
                note_discards(store, request.step, manifest.created, request.discarded)
            committed = attempt.commit(manifest, context.stop)
    except BaseException as error:
        is_over = request.is_last_try or not isinstance(error, NoRoomError)
        raise
    finally:
        plan = content = None  # as above
        if is_over:
            request.capture.release()
    info = request.documents[TRAINING_INFO_NAME]
    record = committed.record(request.step, parse_training_info(info))
    saved = saved_files(committed.directory, callers)
    returned = committed.record(request.step, parse_training_info(info), saved)
    return Written(record, returned, committed.trash, committed.remarks, written_at)


def check_sources(store: CheckpointStore, files: Iterable[CallersFile]) -> int:
    """Look at the files that are to be taken into a checkpoint; return how much room that will take, in bytes.

    Raises:
        CheckpointError: The store has no local directories for a function, or there is something that cannot be taken.
        OSError: Something is missing, or cannot be read.
    """
    nbytes = 0
    for file in files:
        if file.path is not None:
            nbytes += store.check_source(file.path, move=file.move)
        elif store.directories is None:
            message = f"files[{file.name!r}]: {store.location} has no local directories that a function could fill"
            raise CheckpointError(message)
    return nbytes


def _take_in(attempt: Attempt, file: CallersFile, context: JobContext) -> dict[str, FileRecord]:
    if file.path is None:
        return attempt.take_in(file.name, context.stop)
    if file.move:
        return attempt.move(file.name, file.path, context.stop)
    return attempt.copy(file.name, file.path, context)


class PendingState(NamedTuple):
    """A state that is to be written into a pending directory."""

    path: Path
    state: object
    moment: Moment
    """When the program called."""
    format_name: str
    is_frozen: bool


def write_pending_state(store: CheckpointStore, request: PendingState, context: JobContext) -> StateFile:
    """Encode a state and write it into a pending directory, without a copy of the whole.

    Raises:
        LeafError: A leaf cannot be saved, or a container changed.
        OSError: The store failed, or there is another writer.
        Stopped: The job was asked to stop. In each case nothing is left of it.
    """
    store.check()
    directories = store.directories
    assert directories is not None  # noqa: S101 - one of them was made
    form = find_format(request.format_name)
    capture = plan = content = None
    try:
        with young_collections_only(), request.moment.entered():
            flat = flatten(request.state, pacer=context.pacer, moment=request.moment)
            capture = Capture.live(flat, is_frozen=request.is_frozen)
            del flat  # `release` frees it chunk by chunk
            plan = form.plan(capture.index, context.pacer)
        content = Content(plan, capture.snapshot)
        return directories.write_state(request.path, form.file_name, content, context)
    finally:
        plan = content = None  # as in `_writing`
        if capture is not None:
            capture.release()


def copy_checkpoint(
    store: CheckpointStore, source: CheckpointStore, step: int, min_free_nbytes: int | None, context: JobContext
) -> Written:
    """Copy a checkpoint of another store, verify every bit of it, and commit it.

    Raises:
        CheckpointNotFoundError: The source lacks the step, or it was deleted or replaced meanwhile.
        CorruptCheckpointError: The source is damaged.
        NoRoomError: As `write_checkpoint`.
        OSError: A store failed.
        Stopped: The job was asked to stop. In each case nothing is committed.
    """
    with source.open(step) as reader:
        found = reader.manifest
        try:
            info = reader.read_small(TRAINING_INFO_NAME) if TRAINING_INFO_NAME in found.files else b"{}"
            nbytes = sum(record.nbytes for record in found.files.values())
            with store.begin(step, nbytes, min_free_nbytes) as attempt:
                files = {}
                for name in found.files:
                    with reader.open(name) as file:
                        files[name] = attempt.copy_verified(name, file, context)
                written_at = time.perf_counter()
                manifest = Manifest(step=step, created=time.time(), files=files, index=found.index)
                committed = attempt.commit(manifest, context.stop)
        except CorruptCheckpointError as error:
            if not reader.is_current():
                message = f"step {step} of {source.location} was deleted or replaced while it was copied"
                raise CheckpointNotFoundError(message, step=step) from error
            raise CorruptCheckpointError(f"{source.location}: {error}", step=step, file=error.file) from error
    record, returned = (committed.record(step, _parse_unless_damaged(info)) for _ in range(2))
    return Written(record, returned, committed.trash, committed.remarks, written_at)


def _parse_unless_damaged(info: bytes) -> dict[str, Any]:
    try:
        return parse_training_info(info)
    except (ValueError, RecursionError):  # as the source has it
        return {}


def read_pending_info(directories: LocalDirectories, path: Path) -> dict[str, Any] | None:
    """Read the training_info of a pending directory: None without a directory, empty if none can be read.

    Raises:
        OSError: The system is short of descriptors or memory.
    """
    try:
        data = directories.read_pending(path, TRAINING_INFO_NAME)
        return None if data is None else parse_training_info(data)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
    except (ValueError, RecursionError):
        pass
    return {}


def would_suffice(store: CheckpointStore, steps: Iterable[int], nbytes: int) -> bool:
    """Whether a store has too little room now, and enough without these steps."""
    free = store.free_nbytes() or 0
    return free < nbytes <= free + store.nbytes_of(steps)
