"""The job that reads a checkpoint, in a worker thread, to its end.

1. Everything is verified before it is used: the manifest by its own digest, then the blocks that hold the index, then
   those of the arrays while they are filled. Only a lazy load leaves the arrays' blocks unverified.
2. A template is checked against the index before the first byte of an array is read.
3. A checkpoint that is found damaged may have been replaced or deleted meanwhile by another process. Then it is opened
   again, as often as that happens: an error is about a checkpoint that was there from beginning to end.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from asyncckpt.arrays.device import Moment
from asyncckpt.documents import CONFIG_NAME, TRAINING_INFO_NAME, parse_training_info
from asyncckpt.errors import CheckpointError, CorruptCheckpointError, LeafError, UnsupportedFormatError
from asyncckpt.formats.array_reader import Contents, read_arrays
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.saving.catalog import LoadedCheckpoint
from asyncckpt.state.decode import Decoder
from asyncckpt.state.decode_walk import ABSENT, LoadPlan
from asyncckpt.state.index import Index, decode_index, find_contents
from asyncckpt.state.selection import Selection
from asyncckpt.storage.results import saved_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from asyncckpt.config import Arrays
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state.segments import Segment
    from asyncckpt.storage.base import CheckpointStore, LocalDirectories
    from asyncckpt.storage.reader import CheckpointReader


ResultT = TypeVar("ResultT")


_NO_MOMENT: Final = Moment()


class LoadRequest(NamedTuple):
    """What is wanted of a checkpoint."""

    template: object = ABSENT
    in_place: bool = False
    select: str | Iterable[str] | None = None
    lazy: bool = False
    arrays: Arrays = "saved"
    moment: Moment = _NO_MOMENT
    """When the program called, on whose streams arrays on devices are filled."""


class Loaded(NamedTuple):
    """What came of it."""

    checkpoint: LoadedCheckpoint
    unknown_types: dict[str, str]
    """Names of types that came back as plain data, each with the path of its first object."""
    staged_nbytes: int = 0
    """Memory that a copy of the state would take, in bytes: its arrays lie on the same boundaries in a file. 0 if only
    parts of it were loaded."""


def load_checkpoint(store: CheckpointStore, step: int, request: LoadRequest, context: JobContext) -> Loaded:
    """Load one checkpoint.

    Raises:
        CheckpointError: As `CheckpointManager.load`.
        Stopped: The job was asked to stop.
    """
    return _reading(partial(store.open, step), partial(_load, request=request, context=context))


def load_directory(directories: LocalDirectories, path: Path, request: LoadRequest, context: JobContext) -> Loaded:
    """Load the checkpoint that a directory is, wherever it lies and whatever its name, as `load_checkpoint` does."""
    return _reading(partial(directories.open, path), partial(_load, request=request, context=context))


def verify_checkpoint(store: CheckpointStore, step: int, context: JobContext) -> None:
    """Read every file of a checkpoint and verify every bit of it, the structure of its index included.

    Raises:
        CheckpointError: As `CheckpointManager.verify`.
        Stopped: The job was asked to stop.
    """

    def verify(reader: CheckpointReader) -> None:
        for name in reader.manifest.files:
            reader.verify(name, context)
        if reader.manifest.index is not None:
            index, _ = _read_index(reader, context.pacer)
            Decoder(index, context.pacer, keeps_kinds=False).plan()

    _reading(partial(store.open, step), verify)


def _reading(find: Callable[[], CheckpointReader], action: Callable[[CheckpointReader], ResultT]) -> ResultT:
    """Do something with a checkpoint; `find` opens it."""
    while True:
        with find() as reader:
            try:
                return action(reader)
            except CorruptCheckpointError as error:
                if not reader.is_current():
                    continue
                if error.step is None:
                    step = reader.manifest.step
                    raise CorruptCheckpointError(f"step {step}: {error}", step=step) from error
                raise
            except UnsupportedFormatError as error:  # about the index, or an array
                raise UnsupportedFormatError(f"step {reader.manifest.step}: {error}") from error


def _load(reader: CheckpointReader, request: LoadRequest, context: JobContext) -> Loaded:
    pacer, step = context.pacer, reader.manifest.step
    with young_collections_only(), request.moment.entered():
        files = reader.manifest.files
        info = _read_info(reader) if TRAINING_INFO_NAME in files else {}
        place = reader.manifest.index
        if place is None:
            message = (
                f"step {step} holds files of the caller's own ({', '.join(files)}) and no state: open them below"
                f" {reader.directory}"
            )
            raise CheckpointError(message)
        index, segments = _read_index(reader, pacer)
        is_whole = request.select is None and not request.lazy
        decoder = Decoder(
            index,
            pacer,
            template=request.template,
            in_place=request.in_place,
            selection=None if request.select is None else Selection.parse(request.select),
            keeps_kinds=request.arrays == "saved",
        )
        with LeafError.naming(step):
            if decoder.needs_plan:
                plan = decoder.plan()
            else:
                leaves = find_contents(index.chunks, pacer) if request.lazy else set()
                plan = LoadPlan(arrays=index.whole_arrays, contents=leaves)
            contents = Contents(place.file, index, segments, plan)
            arrays = read_arrays(reader, contents, context, lazy=request.lazy, is_whole=is_whole)
            state = decoder.decode(arrays)
    ours = {TRAINING_INFO_NAME, CONFIG_NAME, place.file, *index.files}
    saved = saved_files(reader.directory, files, ours)
    checkpoint = LoadedCheckpoint(step=step, directory=reader.directory, training_info=info, files=saved, state=state)
    return Loaded(
        checkpoint=checkpoint,
        unknown_types=decoder.unknown_types,
        staged_nbytes=files[place.file].nbytes - place.nbytes if is_whole else 0,
    )


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
    sizes = {name: record.nbytes for name, record in reader.manifest.files.items()}
    return decode_index(data, file_nbytes=sizes.pop(place.file), pacer=pacer, other_files=sizes)
