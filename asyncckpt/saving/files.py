"""Files of the program's own that are committed with a state: `CheckpointManager.save(..., files=...)`.

1. Names and sources are checked before anything is captured.
2. A function that writes files is called on the loop, in a task and the context of its caller, and at most once. It is
   cancelled when the manager runs out of time, and left alone if it does not end then.
3. While a function runs, the writer waits for it. So the function may not wait for the writer, which is refused.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from asyncckpt.errors import ManagerClosedError, ManagerUsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from asyncckpt.runtime.deadline import ShutdownDeadline


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file or directory that `CheckpointManager.save` takes into a checkpoint, as a value of ``files``.

    Attributes:
        path: Where it is. It must not change until the save is done.
        move: Whether it moves into the checkpoint instead of being copied. It leaves its place when the checkpoint is
            committed, and not before. It must lie on the same file system, which must have hard links, and each file
            must have one name only.
    """

    path: str | os.PathLike[str]
    move: bool = False


Source: TypeAlias = "str | os.PathLike[str] | FileSource | Callable[[Path], Awaitable[object]]"

RESERVED: Final = frozenset({"manifest.json", "training_info.json", "config.yaml", "state.msgpack", "state.h5"})
"""The names of a checkpoint's other files."""
_MAX_NAME_NBYTES: Final = 255
_MAX_PATH_NBYTES: Final = 2048  # within PATH_MAX, together with the path of the checkpoint


class CallersFile(NamedTuple):
    """A file or directory, or the function that writes it, under the name that it will have."""

    name: str
    path: Path | None = None
    move: bool = False
    function: Callable[[Path], Awaitable[object]] | None = None
    context: contextvars.Context | None = None


class SourceError(Exception):
    """A function has failed; its error is the cause. Handles raise that instead."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Fill:
    """A function that runs, and the manager that waits for it."""

    def __init__(self, manager: object, step: int, name: str) -> None:
        self.manager = manager
        self.step = step
        self.name = name
        self.is_over = False


_running: contextvars.ContextVar[_Fill | None] = contextvars.ContextVar("asyncckpt_fill", default=None)


def check_files(files: Mapping[str, Source] | None) -> tuple[CallersFile, ...]:
    """Check the names and the types of files and their sources; nothing is looked at on the disk.

    Raises:
        TypeError: A name or a source is of a wrong type.
        ValueError: A name is invalid, taken, or clashes with another.
    """
    if not files:
        return ()
    if not hasattr(files, "items"):
        message = f"files is a mapping from names to sources, not {type(files).__name__}"
        raise TypeError(message)
    made = tuple(_check_source(name, source) for name, source in files.items())
    taken: dict[tuple[str, ...], str] = {}
    for name in sorted(files):
        parts = tuple(name.casefold().split("/"))
        for count in range(1, len(parts) + 1):
            if (other := taken.get(parts[:count])) is not None:
                message = f"files[{name!r}] clashes with files[{other!r}]: one would lie in or replace the other"
                raise ValueError(message)
        taken[parts] = name
    return made


def _check_source(name: object, source: object) -> CallersFile:
    checked = _check_name(name)
    given, move = (source.path, source.move) if isinstance(source, FileSource) else (source, False)
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        if isinstance(path, str) and path and "\0" not in path:
            return CallersFile(checked, path=Path(path).absolute(), move=bool(move))
    elif callable(given) and not isinstance(source, FileSource) and not isinstance(given, type):
        return CallersFile(checked, function=given, context=contextvars.copy_context())
    if inspect.iscoroutine(given):
        given.close()  # otherwise Python warns that it was never awaited
        message = f"files[{checked!r}] is a coroutine: pass the async function itself, which is called with a path"
        raise TypeError(message)
    message = (
        f"files[{checked!r}] is a path, an asyncckpt.FileSource, or an async function that is called with a path, not"
        f" {given!r} ({type(given).__name__})"
    )
    raise TypeError(message)


def _check_name(name: object) -> str:
    if not isinstance(name, str):
        message = f"the name of a file is a str, not {name!r} ({type(name).__name__})"
        raise TypeError(message)
    parts = name.split("/")
    reason = None
    if name.startswith("/"):
        reason = "it is absolute: names are relative to the checkpoint"
    elif not all(parts) or "." in parts or ".." in parts:
        reason = 'its parts must not be empty, "." or ".."'
    elif not name.isprintable() or "\\" in name:
        reason = "it has a backslash, or a character that cannot be printed"
    elif max(len(part.encode()) for part in parts) > _MAX_NAME_NBYTES or len(name.encode()) > _MAX_PATH_NBYTES:
        reason = f"it is too long: a part may have {_MAX_NAME_NBYTES} bytes, and the whole {_MAX_PATH_NBYTES}"
    elif parts[0].casefold() in RESERVED:
        reason = "a file of the checkpoint itself has this name"
    if reason is not None:
        message = f"{name!r} cannot be the name of a file in a checkpoint: {reason}"
        raise ValueError(message)
    return name


async def fill(
    manager: object, step: int, file: CallersFile, path: Path, deadline: ShutdownDeadline
) -> SourceError | None:
    """Call a function that fills a directory, and wait for it; return what went wrong.

    Args:
        manager: What the function may not wait for; see `check_caller`.
        step: The step.
        file: The function.
        path: The directory.
        deadline: The time that the manager has.
    """
    running = _Fill(manager, step, file.name)
    loop = asyncio.get_running_loop()
    name = f"asyncckpt files[{file.name!r}] of step {step}"
    task = asyncio.Task(_call(running, file, path), loop=loop, name=name, context=file.context)
    try:
        await deadline.see_through(task)
    finally:
        running.is_over = True
    failure: BaseException | None
    if not task.done():
        failure = ManagerClosedError("its function did not end when the manager ran out of time")
    elif task.cancelled():
        is_late = deadline.is_over
        failure = ManagerClosedError("time ran out while the manager closed") if is_late else _Cancelled("cancelled")
    else:
        failure = task.exception()
    if failure is None:
        return None
    error = SourceError(file.name)
    error.__cause__ = failure
    return error


class _Cancelled(Exception):  # noqa: N818 - it says what happened
    """Something has cancelled the task of a function."""


async def _call(running: _Fill, file: CallersFile, path: Path) -> None:
    _running.set(running)
    assert file.function is not None  # noqa: S101 - others are not called
    made: Any = file.function(path)
    if not inspect.isawaitable(made):
        message = (
            f"the function returned {type(made).__name__}, which cannot be awaited: pass an async function, or for a"
            " blocking one `lambda path: asyncio.to_thread(function, path)`"
        )
        raise TypeError(message)
    await made


def check_caller(manager: object) -> None:
    """Refuse what would wait for the writer, if the caller is a function that the writer waits for.

    Raises:
        ManagerUsageError: It is.
    """
    running = _running.get()
    if running is not None and running.manager is manager and not running.is_over:
        message = (
            f"step {running.step}: the function of files[{running.name!r}] may not save, flush, delete or close: the"
            " manager waits for this function, and would wait for itself"
        )
        raise ManagerUsageError(message)
