"""Connect the arrays of an index to the reader of files.

The index has the location of each array's bytes (`Segment`). The reader needs their destinations (`Target`).
"""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.arrays.target import ArrayTarget, copy_into, memory_of, store_bytes
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES
from asyncckpt.disk.read_blocks import Target
from asyncckpt.errors import CheckpointError
from asyncckpt.runtime.memory import PAGE_NBYTES, aligned_array
from asyncckpt.runtime.pacing import BATCH_OBJECTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from asyncckpt.arrays.meta import ArrayMeta
    from asyncckpt.disk.mapping import MappedFile
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state.index import Index
    from asyncckpt.state.segments import Segment

_ALIGNED_MIN_NBYTES: Final = 1 << 20  # smaller arrays are allocated by numpy, since a mapping would cost more


def fresh_array(meta: ArrayMeta) -> NDArray[Any]:
    """Allocate an array that is to be read."""
    if meta.nbytes >= _ALIGNED_MIN_NBYTES:
        return aligned_array(meta.shape, meta.dtype)
    return np.ndarray(meta.shape, meta.dtype)  # np.empty would change a dtype of no bytes ("<U0")


def targets_of(segments: Iterable[Segment], arrays: Mapping[int, ArrayTarget]) -> list[Target]:
    """Return the targets for the segments of these arrays."""
    memories = {number: memory_of(array) for number, array in arrays.items()}
    targets = []
    for number, offset, nbytes, _, start in segments:
        if number not in arrays:
            continue
        memory = memories[number]
        if memory is not None:
            targets.append(Target(offset, nbytes, memory[start : start + nbytes]))
        else:
            targets.append(Target(offset, nbytes, None, partial(_store, arrays[number], start)))
    return targets


def targets_in_runs(
    index: Index, segments: Sequence[Segment], wanted: set[int], arrays: dict[int, ArrayTarget], pacer: Pacer
) -> list[Target]:
    """Return the targets for the segments of the wanted arrays.

    Arrays that `arrays` lacks are added to it: small ones when they have been read. Consecutive small arrays in one
    digest block are one target, whose bytes come with one call.
    """
    targets: list[Target] = []
    large: dict[int, ArrayTarget] = {}
    others: list[Segment] = []
    run: list[tuple[int, int, ArrayMeta]] = []

    def end_run() -> None:
        nonlocal run
        if run:
            (_, begin, _), (_, last, meta) = run[0], run[-1]
            store = partial(_store_run, run, arrays, pacer)
            targets.append(Target(begin, last + meta.nbytes - begin, None, store))
            run = []

    for batch in pacer.batches(segments):
        for segment in batch:
            number, offset, nbytes, _, _ = segment
            if number not in wanted:
                continue
            meta = index.arrays[number]
            block = offset // DIGEST_BLOCK_NBYTES
            is_cut = block != (offset + nbytes - 1) // DIGEST_BLOCK_NBYTES
            if nbytes >= PAGE_NBYTES or nbytes != meta.nbytes or is_cut or meta.dtype.names is not None:
                end_run()  # targets must not overlap
                others.append(segment)
                if number not in arrays:
                    arrays[number] = fresh_array(meta)
                large[number] = arrays[number]
                continue
            if run and (len(run) == BATCH_OBJECTS or run[0][1] // DIGEST_BLOCK_NBYTES != block):
                end_run()
            run.append((number, offset, meta))
    end_run()
    return sorted([*targets, *targets_of(others, large)], key=itemgetter(0))


def _store_run(
    run: Sequence[tuple[int, int, ArrayMeta]],
    arrays: dict[int, ArrayTarget],
    pacer: Pacer,
    position: int,
    data: NDArray[np.uint8],
) -> None:
    """Make or fill the small arrays of a run from its bytes."""
    begin = run[0][1] + position
    for number, offset, meta in run:
        found: NDArray[Any] = np.ndarray(meta.shape, meta.dtype, data, offset - begin)
        if number in arrays:
            copy_into(arrays[number], found)
        else:
            arrays[number] = found.copy()
    pacer.pause()


def _store(target: ArrayTarget, start: int, position: int, data: NDArray[np.uint8]) -> None:
    store_bytes(target, start + position, data)


def map_arrays(
    file: MappedFile, index: Index, segments: Sequence[Segment], wanted: set[int]
) -> dict[int, NDArray[Any]]:
    """Return the wanted arrays of one file in its mapped memory, and those without bytes.

    Raises:
        CheckpointError: The system cannot map an array.
    """
    arrays: dict[int, NDArray[Any]] = {}
    cut: dict[int, list[tuple[int, int, int]]] = {}
    for number, offset, nbytes, _, start in segments:
        meta = index.arrays[number]
        if number not in wanted:
            continue
        if nbytes == meta.nbytes:
            arrays[number] = np.ndarray(meta.shape, meta.dtype, file.memory, offset)
        else:
            cut.setdefault(number, []).append((start, offset, nbytes))
    for number, runs in cut.items():
        meta = index.arrays[number]
        try:
            joined = file.join([(offset, nbytes) for _, offset, nbytes in sorted(runs)])
        except OSError as error:
            raise CheckpointError(f"array {number} cannot be mapped: {error}: load it without lazy") from error
        arrays[number] = joined.view(meta.dtype).reshape(meta.shape)
    for number in wanted:
        meta = index.arrays[number]
        if meta.nbytes == 0:
            arrays[number] = np.ndarray(meta.shape, meta.dtype)
            arrays[number].flags.writeable = False
    return arrays
