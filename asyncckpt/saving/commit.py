"""The jobs that write a checkpoint: each one plain function, run in a worker thread to its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, IndexLocation, Manifest
from asyncckpt.disk.write_blocks import BLOCK_NBYTES, Content, Progress
from asyncckpt.documents import TRAINING_INFO_NAME, parse_training_info
from asyncckpt.formats.base import find_format
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.storage.results import SHORTAGES, CheckpointRecord, NoRoomError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from asyncckpt.runtime.context import JobContext
    from asyncckpt.state.capture import Capture
    from asyncckpt.storage.base import CheckpointStore, LocalDirectories
    from asyncckpt.storage.results import Trash


class WriteRequest(NamedTuple):
    """Everything that the job which writes a checkpoint needs; nothing in it changes any more."""

    step: int
    capture: Capture
    documents: Mapping[str, bytes]
    """The small files beside the state, by name."""
    format_name: str
    progress: Progress = Progress()
    """Receives the progress of the state file."""
    block_nbytes: int = BLOCK_NBYTES
    min_free_nbytes: int | None = None
    """How much room the store must have before; None: the size of the checkpoint."""
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


def block_nbytes_within(nbytes: int) -> int:
    """Return the largest block size that fits into so much memory, but at least a digest block."""
    blocks = nbytes // DIGEST_BLOCK_NBYTES
    return min(max(blocks, 1) * DIGEST_BLOCK_NBYTES, BLOCK_NBYTES)


def write_checkpoint(store: CheckpointStore, request: WriteRequest, context: JobContext) -> Written:
    """Write a checkpoint and commit it. Whatever happens, the capture is released.

    Raises:
        NoRoomError: The store has too little room, which was seen before anything was written. Unless this was the last
            try, the capture is kept.
        OSError: The store failed.
        UnsupportedLeafError: The format cannot hold the state.
        Stopped: The job was asked to stop. In each case what was written is discarded, unless it may have been
            committed: then it is left to the next save of the step, or to the next start.
    """
    plan = content = None
    is_over = True
    try:
        form = find_format(request.format_name)
        with young_collections_only():
            plan = form.plan(request.capture.index, context.pacer)
        request.progress.planned(plan.nbytes)
        nbytes = plan.nbytes + sum(map(len, request.documents.values()))
        context.stop.check()
        with store.begin(request.step, nbytes, request.min_free_nbytes) as attempt:
            files = {name: attempt.write(name, data) for name, data in request.documents.items()}
            content = Content(plan, request.capture.snapshot, request.block_nbytes, request.progress)
            files[form.file_name] = attempt.write_content(form.file_name, content, context)
            written_at = time.perf_counter()
            index = IndexLocation(form.file_name, plan.index_offset, plan.index_nbytes)
            manifest = Manifest(step=request.step, created=time.time(), files=files, index=index)
            committed = attempt.commit(manifest, context.stop)
    except BaseException as error:
        is_over = request.is_last_try or not isinstance(error, NoRoomError)
        raise
    finally:
        plan = content = None  # hold the encoded nodes too, which `release` frees chunk by chunk
        if is_over:
            request.capture.release()
    info = request.documents[TRAINING_INFO_NAME]
    record = committed.record(request.step, parse_training_info(info))
    returned = committed.record(request.step, parse_training_info(info))
    return Written(record, returned, committed.trash, committed.remarks, written_at)


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
