"""Read the arrays of an index from the files that hold their bytes.

The index has the location of each array's bytes (`Segment`), and files are read into their destinations (`Target`).

1. The bytes of an array may be in several files. Each file is opened once. The file with the index is verified whole if
   the whole state is loaded; of the others, only the blocks that are needed are read.
2. An array that consists of boxes is allocated whole, and its parts are read into it.
3. A lazy load maps files. An array that consists of boxes, or of segments that cannot be mapped behind each other, is
   read: those that lie in several files, or begin on no page.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from asyncckpt.arrays.target import ArrayTarget, copy_into, finished, memory_of, store_bytes
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES
from asyncckpt.disk.read_blocks import Target
from asyncckpt.errors import CheckpointError, CorruptCheckpointError
from asyncckpt.runtime.memory import PAGE_NBYTES, aligned_array
from asyncckpt.runtime.pacing import BATCH_OBJECTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from asyncckpt.arrays.meta import ArrayMeta
    from asyncckpt.disk.mapping import MappedFile
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state.decode_walk import LoadPlan
    from asyncckpt.state.index import Index
    from asyncckpt.state.segments import Segment
    from asyncckpt.storage.reader import CheckpointReader

_ALIGNED_MIN_NBYTES: Final = 1 << 20  # smaller arrays are allocated by numpy, since a mapping would cost more


class Contents(NamedTuple):
    """A decoded index, and what is needed of it."""

    file_name: str
    """The file that holds the index."""
    decoded: Index
    segments: Sequence[Segment]
    """Sorted by file and offset."""
    plan: LoadPlan


def read_arrays(
    reader: CheckpointReader, contents: Contents, context: JobContext, *, lazy: bool, is_whole: bool
) -> dict[int, NDArray[Any]]:
    """Read the arrays that are needed, or map them.

    Args:
        reader: Opens the files.
        contents: What is needed.
        context: The job's.
        lazy: Whether to map the arrays that become leaves, instead of reading them.
        is_whole: Whether to verify also the bytes of the file that are not needed.

    Returns:
        The arrays by their numbers; those of the template are filled.

    Raises:
        CorruptCheckpointError: Bytes are damaged; it names the template's arrays that may be overwritten.
        Stopped: The job was asked to stop.
    """
    file_name, index, segments, plan = contents
    mapped = _mappable(contents) if lazy else set()
    arrays: dict[int, Any] = {}
    read = _prepare(contents, plan.arrays - mapped, arrays, context)
    by_file = {number: list(group) for number, group in groupby(segments, attrgetter("file"))} if index.files else {}
    begun: list[tuple[int, int, int]] = []
    for number, name in enumerate((file_name, *index.files)):
        own = by_file.get(number, []) if index.files else segments
        if number and not any(segment.array in read or segment.array in mapped for segment in own):
            continue
        with reader.open(name) as file:
            if mapped:
                arrays |= map_arrays(file.map(is_private=bool(index.frameworks)), index, own, mapped)
            targets = targets_in_runs(index, own, read, arrays, context.pacer) if read else []
            on_begin = partial(_note_begun, begun, number)
            try:
                file.read(targets, context, is_whole=is_whole and number == 0, on_begin=on_begin)
            except CorruptCheckpointError as error:
                error.overwritten = _overwritten(contents, begun)
                if error.overwritten:
                    error.add_note(f"arrays overwritten by then: {', '.join(error.overwritten)}")
                raise
    for number in index.boxes:
        arrays.pop(number, None)
    _finish(plan, arrays)
    return arrays


def _finish(plan: LoadPlan, arrays: dict[int, Any]) -> None:
    """Fill the arrays of the template that were not read into, and let the others know that they have been."""
    for number, places in plan.destinations.items():
        filled = arrays[number]
        for place in places:
            if place is not filled:
                copy_into(place, filled)
            made = finished(place)
            if place is filled:
                arrays[number] = made


def _note_begun(begun: list[tuple[int, int, int]], file: int, low: int, high: int) -> None:
    begun.append((file, low, high))


def _mappable(contents: Contents) -> set[int]:
    """Return the arrays that become leaves, and that are, or can be mapped as, one run of memory."""
    _, index, segments, plan = contents
    found = plan.arrays - plan.contents - {box.whole for box in index.boxes.values()}
    cut = {segment.array for segment in segments if segment.start}
    files: dict[int, int] = {}
    for number, offset, nbytes, file, start in segments if cut else ():
        if number in cut:
            is_last = start + nbytes == index.arrays[number].nbytes
            fits = offset % PAGE_NBYTES == 0 and (is_last or nbytes % PAGE_NBYTES == 0)
            if not fits or files.setdefault(number, file) != file:
                found.discard(number)
    return found


def _prepare(contents: Contents, needed: set[int], arrays: dict[int, Any], context: JobContext) -> set[int]:
    """Make the memory that arrays are read into, but for small ones, which are made of the bytes when those have come.

    Returns:
        The numbers of the arrays to be read: in place of a whole, those of its parts.
    """
    _, index, _, plan = contents
    wholes = {box.whole for box in index.boxes.values()}
    for batch in context.pacer.batches(needed):
        for number in batch:
            meta = index.arrays[number]
            if number in plan.destinations:
                places = plan.destinations[number]
                is_alone = len(places) == 1 and number not in wholes
                arrays[number] = places[0] if is_alone else _filled_first(places, meta)
            elif not 0 < meta.nbytes < PAGE_NBYTES or number in wholes:
                arrays[number] = fresh_array(meta)
    if not wholes:
        return needed
    parts = {part: box for part, box in index.boxes.items() if box.whole in needed}
    for boxes in context.pacer.batches(parts.items()):
        for part, box in boxes:
            arrays[part] = arrays[box.whole][box.slices(index.arrays[part].shape)]
    return needed - wholes | parts.keys()


def _filled_first(places: Sequence[ArrayTarget], meta: ArrayMeta) -> NDArray[Any]:
    """Return what the bytes are read into where several arrays get them, or several boxes: a numpy array."""
    for place in places:
        if isinstance(place, np.ndarray):
            return place
    return fresh_array(meta)


def _overwritten(contents: Contents, begun: Sequence[tuple[int, int, int]]) -> tuple[str, ...]:
    """Return the paths of the template's arrays that lie in the ranges which were being read."""
    _, index, segments, plan = contents
    ends = [(segment.file, segment.offset + segment.nbytes) for segment in segments]
    touched = set()
    for file, low, high in begun:
        for segment in segments[bisect_left(ends, (file, low + 1)) :]:
            if (segment.file, segment.offset) >= (file, high):
                break
            box = index.boxes.get(segment.array)
            touched.add(segment.array if box is None else box.whole)
    return tuple(sorted(plan.paths[number] for number in touched if number in plan.destinations))


# --- destinations -----------------------------------------------------------------------------------------------------


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
