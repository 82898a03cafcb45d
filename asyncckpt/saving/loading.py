"""The job that reads a checkpoint, in a worker thread, to its end.

1. Everything is verified before it is used: the manifest by its own digest, then the blocks that hold the index, then
   those of the arrays while they are filled. Only a lazy load leaves the arrays' blocks to whoever touches them.
2. A template is checked against the index before the first byte of an array is read.
3. The directory is opened once. If another process swapped or deleted the checkpoint meanwhile, it is tried again, as
   often as that happens: what is said of a checkpoint is said of one that was there from beginning to end.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np

from asyncckpt.collector import young_collections_only
from asyncckpt.disk.checkpoint import CheckpointReader, open_checkpoint, read_targets
from asyncckpt.disk.listing import locate
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES
from asyncckpt.disk.mapping import MappedFile
from asyncckpt.disk.names import TRAINING_INFO_NAME
from asyncckpt.disk.reading import Target
from asyncckpt.documents import parse_training_info
from asyncckpt.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, LeafError
from asyncckpt.memory import PAGE_NBYTES, aligned_array
from asyncckpt.saving.catalog import LoadedCheckpoint
from asyncckpt.state.build import Builder
from asyncckpt.state.index import ArrayMeta, Index, Segment, decode_index, find_contents
from asyncckpt.state.leaves import ABSENT, Survey
from asyncckpt.state.selection import Selection
from asyncckpt.state.strided import flat_bytes, scatter
from asyncckpt.workers import BATCH_OBJECTS, Pacer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from asyncckpt.workers import Crew, StopFlag


ResultT = TypeVar("ResultT")

_ALIGNED_MIN_NBYTES: Final = 1 << 20  # smaller arrays are left to numpy: a mapping of their own would cost more


class LoadRequest(NamedTuple):
    """What is wanted of a checkpoint."""

    template: object = ABSENT
    in_place: bool = False
    select: str | Iterable[str] | None = None
    lazy: bool = False


class Loaded(NamedTuple):
    """What came of it."""

    checkpoint: LoadedCheckpoint
    unknown_types: dict[str, str]
    """Names of types that came back as plain data, each with the path of its first object."""


def load_checkpoint(root: Path, step: int, request: LoadRequest, crew: Crew, stop: StopFlag) -> Loaded:
    """Load one checkpoint.

    Raises:
        CheckpointNotFoundError: There is none for this step.
        CorruptCheckpointError: It is damaged.
        UnsupportedFormatError: A later release wrote it.
        StateMismatchError: The template does not fit.
        CheckpointKeyError: Nothing is selected.
        Stopped: `stop` was set.
    """
    return _with_retry(root, step, lambda path: _load(path, step, request, crew, stop))


def verify_checkpoint(root: Path, step: int, crew: Crew, stop: StopFlag) -> None:
    """Read every file of a checkpoint and verify every bit of it, the structure of its index included.

    Raises:
        CheckpointNotFoundError: There is none for this step.
        CorruptCheckpointError: It is damaged.
        Stopped: `stop` was set.
    """

    def verify(path: Path) -> None:
        with open_checkpoint(path, step) as reader:
            for name in reader.manifest.files:
                reader.verify(name, crew, stop)
            if reader.manifest.index is not None:
                index, _ = _read_index(reader, Pacer(stop))
                Builder(index, Pacer(stop)).survey()

    _with_retry(root, step, verify)


def _with_retry(root: Path, step: int, action: Callable[[Path], ResultT]) -> ResultT:
    while True:
        path = locate(root, step)
        before = _identity(path)
        if path is None or before is None:
            message = f"step {step} is not committed in {root}"
            raise CheckpointNotFoundError(message, step=step)
        try:
            return action(path)
        except (FileNotFoundError, CorruptCheckpointError) as error:
            if _identity(locate(root, step)) == before:
                if isinstance(error, FileNotFoundError):
                    raise CheckpointNotFoundError(f"step {step} is gone from {root}", step=step) from error
                if error.step is None:
                    raise CorruptCheckpointError(f"step {step}: {error}", step=step) from error
                raise


def _identity(path: Path | None) -> tuple[int, int, int] | None:
    """Tell one directory from the next, which may get the inode of one that was deleted."""
    try:
        found = path.stat() if path is not None else None
    except FileNotFoundError:
        return None
    return found and (found.st_dev, found.st_ino, found.st_ctime_ns)


def _load(path: Path, step: int, request: LoadRequest, crew: Crew, stop: StopFlag) -> Loaded:
    pacer = Pacer(stop)
    with open_checkpoint(path, step) as reader, young_collections_only():
        files = reader.manifest.files
        info = _read_info(reader) if TRAINING_INFO_NAME in files else {}
        if reader.manifest.index is None:
            message = (
                f"step {step} holds files of the caller's own ({', '.join(files)}) and no state: open them below {path}"
            )
            raise CheckpointError(message)
        index, segments = _read_index(reader, pacer)
        builder = Builder(
            index,
            pacer,
            template=request.template,
            in_place=request.in_place,
            selection=None if request.select is None else Selection.parse(request.select),
        )
        with LeafError.naming(step):
            if builder.is_plain:
                contents = find_contents(index.pieces, pacer) if request.lazy else set()
                survey = Survey(arrays=set(range(len(index.arrays))), contents=contents)
            else:
                survey = builder.survey()
            arrays = _read_arrays(reader, index, segments, survey, request, crew, pacer, stop)
            state = builder.build(arrays)
    checkpoint = LoadedCheckpoint(step=step, directory=str(path), training_info=info, state=state)
    return Loaded(checkpoint=checkpoint, unknown_types=builder.unknown_types)


def _read_info(reader: CheckpointReader) -> dict[str, Any]:
    try:
        return parse_training_info(reader.read_small(TRAINING_INFO_NAME))
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise reader.corrupt(TRAINING_INFO_NAME, f"cannot be read: {error}") from error


def _read_index(reader: CheckpointReader, pacer: Pacer) -> tuple[Index, list[Segment]]:
    place = reader.manifest.index
    assert place is not None  # noqa: S101 - both callers have looked
    data = reader.read_range(place.file, place.offset, place.nbytes)
    return decode_index(data, file_nbytes=reader.manifest.files[place.file].nbytes, pacer=pacer)


def _read_arrays(  # noqa: PLR0913, PLR0917 - one step of `_load`, which has them all
    reader: CheckpointReader,
    index: Index,
    segments: list[Segment],
    survey: Survey,
    request: LoadRequest,
    crew: Crew,
    pacer: Pacer,
    stop: StopFlag,
) -> dict[int, NDArray[Any]]:
    """Fill the arrays that are needed, or map them."""
    assert reader.manifest.index is not None  # noqa: S101 - as above
    name = reader.manifest.index.file
    fd = reader.open(name)
    try:
        mapped = survey.arrays - survey.contents if request.lazy else set()
        arrays = _map_arrays(fd, index, segments, mapped) if mapped else {}
        read = survey.arrays - mapped
        for batch in pacer.batches(read):
            for number in batch:
                if number in survey.destinations:
                    arrays[number] = survey.destinations[number][0]
                elif not 0 < index.arrays[number].nbytes < PAGE_NBYTES:
                    arrays[number] = fresh_array(index.arrays[number])
        targets = _targets_in_runs(index, segments, read, arrays, pacer) if read else []
        is_whole = request.select is None and not request.lazy
        begun: list[tuple[int, int]] = []
        try:
            read_targets(
                reader,
                fd,
                name,
                targets,
                crew=crew,
                stop=stop,
                is_whole=is_whole,
                on_begin=lambda low, high: begun.append((low, high)),
            )
        except CorruptCheckpointError as error:
            error.overwritten = _touched(segments, survey, begun)
            if error.overwritten:
                error.add_note(f"arrays overwritten by then: {', '.join(error.overwritten)}")
            raise
        for places in survey.destinations.values():
            for other in places[1:]:
                np.copyto(other, places[0])
        return arrays
    finally:
        os.close(fd)


def fresh_array(meta: ArrayMeta) -> NDArray[Any]:
    """Return memory for an array that is to be read."""
    if meta.nbytes >= _ALIGNED_MIN_NBYTES:
        return aligned_array(meta.shape, meta.dtype)
    return np.ndarray(meta.shape, meta.dtype)  # unlike np.empty, it leaves a dtype of no bytes ("<U0") as it is


def targets_of(segments: list[Segment], arrays: dict[int, NDArray[Any]]) -> list[Target]:
    """Say where each segment of these arrays goes."""
    memories = {number: flat_bytes(array) for number, array in arrays.items()}
    filled = dict.fromkeys(arrays, 0)
    targets = []
    for segment in segments:
        if segment.array not in arrays:
            continue
        start = filled[segment.array]
        filled[segment.array] = start + segment.nbytes
        memory = memories[segment.array]
        if memory is not None:
            targets.append(Target(segment.offset, segment.nbytes, memory[start : start + segment.nbytes]))
        else:
            targets.append(Target(segment.offset, segment.nbytes, None, _scatterer(arrays[segment.array], start)))
    return targets


def _targets_in_runs(
    index: Index, segments: list[Segment], wanted: set[int], arrays: dict[int, NDArray[Any]], pacer: Pacer
) -> list[Target]:
    """Say where each segment of the wanted arrays goes, and make those that `arrays` lacks, the small ones, on the way.

    Small arrays that lie in one digest block are one target, which is handed out at once: none is cut in two.
    """
    targets: list[Target] = []
    large: dict[int, NDArray[Any]] = {}
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
            number, offset, nbytes = segment
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
    arrays: dict[int, NDArray[Any]],
    pacer: Pacer,
    position: int,
    data: NDArray[np.uint8],
) -> None:
    """Make, or fill, the small arrays of a run from the bytes that hold them all."""
    begin = run[0][1] + position
    for number, offset, meta in run:
        found: NDArray[Any] = np.ndarray(meta.shape, meta.dtype, data, offset - begin)
        if number in arrays:
            np.copyto(arrays[number], found)
        else:
            arrays[number] = found.copy()
    pacer.pause()


def _scatterer(array: NDArray[Any], start: int) -> Callable[[int, NDArray[np.uint8]], None]:
    return lambda position, data: scatter(array, start + position, data)


def _map_arrays(fd: int, index: Index, segments: list[Segment], wanted: set[int]) -> dict[int, NDArray[Any]]:
    file = MappedFile(fd)
    arrays: dict[int, NDArray[Any]] = {}
    cut: dict[int, list[tuple[int, int]]] = {}
    for number, offset, nbytes in segments:
        meta = index.arrays[number]
        if number not in wanted:
            continue
        if nbytes == meta.nbytes:
            arrays[number] = np.ndarray(meta.shape, meta.dtype, file.memory, offset)
        else:
            cut.setdefault(number, []).append((offset, nbytes))
    for number, runs in cut.items():
        meta = index.arrays[number]
        try:
            joined = file.join(runs)
        except ValueError as error:
            raise CorruptCheckpointError(f"the index is damaged: array {number}: {error}") from error
        except OSError as error:
            raise CheckpointError(f"array {number} cannot be mapped: {error}: load it without lazy") from error
        arrays[number] = joined.view(meta.dtype).reshape(meta.shape)
    for number in wanted - arrays.keys():  # those without a byte
        meta = index.arrays[number]
        arrays[number] = np.ndarray(meta.shape, meta.dtype)
        arrays[number].flags.writeable = False
    return arrays


def _touched(segments: list[Segment], survey: Survey, begun: list[tuple[int, int]]) -> tuple[str, ...]:
    """Return the paths of the template's arrays that lie in the ranges which were being read."""
    ends = [segment.offset + segment.nbytes for segment in segments]
    touched = set()
    for low, high in begun:
        for segment in segments[bisect_left(ends, low + 1) :]:
            if segment.offset >= high:
                break
            touched.add(segment.array)
    return tuple(sorted(survey.paths[number] for number in touched if number in survey.destinations))
