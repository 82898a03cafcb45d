"""`load`: one checkpoint, in one line, for programs that only read."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from asyncckpt.arrays.adapters import current_moment
from asyncckpt.blocking import call_on
from asyncckpt.config import check_arrays
from asyncckpt.disk.diagnosis import describe_missing, step_of
from asyncckpt.disk.ops import DiskOps
from asyncckpt.errors import CheckpointNotFoundError, ConfigError
from asyncckpt.manager import CheckpointManager
from asyncckpt.runtime.jobs import Jobs
from asyncckpt.runtime.portal import Portal
from asyncckpt.saving.load_job import LoadRequest, load_directory
from asyncckpt.saving.loader import warn_of_plain_data
from asyncckpt.saving.steps import check_which
from asyncckpt.state.decode_walk import ABSENT
from asyncckpt.storage.local.store import LocalStore

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from asyncckpt.config import Arrays
    from asyncckpt.saving.catalog import LoadedCheckpoint
    from asyncckpt.saving.steps import Choice


@overload
def load(
    path: str | os.PathLike[str],
    step: int | Choice = "latest",
    *,
    like: object = None,
    select: str | Iterable[str] | None = None,
    lazy: bool = False,
    arrays: Arrays = "saved",
    missing_ok: Literal[False] = False,
) -> LoadedCheckpoint: ...
@overload
def load(
    path: str | os.PathLike[str],
    step: int | Choice = "latest",
    *,
    like: object = None,
    select: str | Iterable[str] | None = None,
    lazy: bool = False,
    arrays: Arrays = "saved",
    missing_ok: bool,
) -> LoadedCheckpoint | None: ...
def load(  # noqa: PLR0913 - those of `CheckpointManager.load`
    path: str | os.PathLike[str],
    step: int | Choice = "latest",
    *,
    like: object = None,
    select: str | Iterable[str] | None = None,
    lazy: bool = False,
    arrays: Arrays = "saved",
    missing_ok: bool = False,
) -> LoadedCheckpoint | None:
    """Load a checkpoint from a directory of checkpoints, or the checkpoint that a directory is.

    It takes no lock, may read while another process writes, and works in any thread, also in one in which an event loop
    runs (which it stops meanwhile). No thread of it is left when it returns.

    Args:
        path: A directory of checkpoints; or one checkpoint by itself, wherever it is and whatever its name.
        step: The step, "latest" or "best" (which fall back to the next intact checkpoint, with a warning).
        like: As for `CheckpointManager.load`, and so are the following.
        select: The parts to load.
        lazy: Whether arrays are mapped instead of read.
        arrays: "saved" or "numpy".
        missing_ok: Whether to return None if there is no such checkpoint.

    Returns:
        The checkpoint: its ``state``, ``step``, ``path`` and ``training_info``.

    Raises:
        CheckpointNotFoundError: There is no such checkpoint, or no such directory.
        ConfigError: The path is a file; a keyed file is opened by `Checkpointer.from_file`. Or `arrays` has another
            value.
        CheckpointError: As `CheckpointManager.load`.
        OSError: The disk failed.
    """
    which = check_which(step)
    if isinstance(which, Path):
        message = (
            f"step is an int, 'latest' or 'best', not {step!r}: pass the path of a checkpoint as the first argument"
        )
        raise TypeError(message)
    find = partial(
        _load, Path(path).absolute(), which, like=like, select=select, lazy=lazy, arrays=check_arrays(arrays)
    )
    portal = Portal("a call of asyncckpt.load", Portal.stop)
    try:
        found: LoadedCheckpoint = call_on(portal, find)
    except CheckpointNotFoundError:
        if missing_ok:
            return None
        raise
    finally:
        portal.stop()
    return found


async def _load(  # noqa: PLR0913 - as above
    path: Path,
    which: int | Choice,
    *,
    like: object,
    select: str | Iterable[str] | None,
    lazy: bool,
    arrays: Arrays,
) -> LoadedCheckpoint:
    jobs = Jobs(asyncio.get_running_loop())
    try:
        step = await jobs.run(_look, path, which)
        if step is not None:
            store = LocalStore(path.parent, DiskOps())
            request = LoadRequest(
                template=ABSENT if like is None else like,
                select=select,
                lazy=lazy,
                arrays=arrays,
                moment=current_moment(),
            )
            helpers = store.read_threads - 1
            loaded = await jobs.run_in_context(helpers, load_directory, store.directories, path, request)
            warn_of_plain_data(loaded)
            return loaded.checkpoint
    finally:
        await jobs.close(is_stuck=False)
    async with CheckpointManager(path, read_only=True) as manager:
        found = await manager.load(which, like=like, select=select, lazy=lazy, arrays=arrays)
        assert found is not None  # noqa: S101 - else it has raised
        return found


def _look(path: Path, which: int | Choice) -> int | None:
    """Return the step of the checkpoint that a directory is, or None if it may hold checkpoints."""
    if not path.exists():
        message = f"there is no checkpoint at {path}: {describe_missing(path)}"
        raise CheckpointNotFoundError(message)
    if not path.is_dir():
        message = (
            f"{path} is a file, not a checkpoint, which is a directory: for a keyed file, use"
            " asyncckpt.Checkpointer.from_file; for a file of a checkpoint, pass its directory"
        )
        raise ConfigError(message)
    step = step_of(path)
    if step is not None and isinstance(which, int) and step != which:
        message = f"{path} is the checkpoint of step {step}, not of step {which}"
        raise CheckpointNotFoundError(message, step=which)
    return step
