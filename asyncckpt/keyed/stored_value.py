"""A value read from where its index and its arrays lie in a file, verified before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncckpt.disk.read_blocks import Run, Target, read_run
from asyncckpt.formats.array_targets import targets_of
from asyncckpt.keyed.values import Found, build_value
from asyncckpt.state.index import decode_index

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from asyncckpt.disk.manifest import FileRecord
    from asyncckpt.runtime.context import JobContext


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value lies in a file: a run of bytes that begins with its index."""

    offset: int
    index_nbytes: int
    record: FileRecord
    """Size and digests of the run."""


def read_stored_value(fd: int, place: Place, corrupt: Callable[[str], Exception], work: JobContext) -> Found:
    """Read a value.

    Raises:
        Exception: What `corrupt` made: a digest does not match, or the file is too short.
        CorruptCheckpointError: The index is damaged.
        Stopped: `work.stop` was set.
    """
    pacer = work.pacer
    run = Run(fd, place.record, corrupt, place.offset)
    encoded = np.empty(place.index_nbytes, np.uint8)
    read_run(run, [Target(0, place.index_nbytes, encoded)], work)
    index, segments = decode_index(memoryview(encoded), file_nbytes=place.record.nbytes, pacer=pacer)  # type: ignore[arg-type] # arrays are buffers
    # Unlike np.empty, np.ndarray leaves a dtype of no bytes ("<U0") as it is.
    arrays: dict[int, NDArray[Any]] = {
        number: np.ndarray(meta.shape, meta.dtype) for number, meta in enumerate(index.arrays)
    }
    read_run(run, targets_of(segments, arrays), work)
    return build_value(index, arrays, pacer)
