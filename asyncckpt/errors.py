"""The errors and warnings of asyncckpt.

Messages name the step, the leaf's path, what was expected, what was found and what to do; attributes hold the same
facts. An error that corresponds to a builtin one also inherits from it, so that ``except FileNotFoundError`` works.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import FrameType


_BRIEF_LENGTH = 500
_INNER_FILES: Final = (os.path.join(os.path.dirname(__file__), ""), contextlib.__file__)  # noqa: PTH118, PTH120 - a str
_RUNNERS: Final = ("asyncio", "concurrent", "threading", "uvloop")


def brief(value: object) -> str:
    """Return a value as text of bounded length, for a message; text from a file may be as long as the file."""
    text = str(value)
    return text if len(text) <= _BRIEF_LENGTH else f"{text[:_BRIEF_LENGTH]}..."


def nearest(word: str, known: Iterable[object], count: int = 1, *, likeness: float = 0.6) -> list[str]:
    """Return up to `count` known strings that are most similar to a word, ignoring case, the best first."""
    import difflib

    by_fold = {each.casefold(): each for each in known if isinstance(each, str)}
    close = difflib.get_close_matches(word.strip().casefold(), by_fold, n=count, cutoff=likeness)
    return [by_fold[each] for each in close]


class CheckpointError(Exception):
    """Base class of all errors that asyncckpt defines. They can be copied and pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Support `copy` and `pickle`: an exception does not keep the keyword arguments it was made with."""
        return _recreate, (type(self), self.args, vars(self))


def _recreate(kind: type[CheckpointError], args: tuple[Any, ...], facts: dict[str, Any]) -> CheckpointError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(facts)
    return error


class ConfigError(CheckpointError, ValueError, TypeError):
    """An option, directory or file cannot be used as given; the message says what is accepted."""


class ManagerUsageError(CheckpointError, RuntimeError):
    """A manager was used while it was not open, on another loop, under trio, or after a fork."""


class ManagerClosedError(ManagerUsageError):
    """The manager is closing or closed, and accepts no new work."""


class ReadOnlyError(ManagerUsageError):
    """A manager with ``read_only=True`` was asked to save, delete or prune."""


class CheckpointerUsageError(CheckpointError, RuntimeError):
    """A Checkpointer was used in both modes at once, its view outside its block or loop, or after a fork."""


class QueueFullError(CheckpointError):
    """A call that does not wait would have to: for room in the budget or the queue, or for another save."""


class StepExistsError(CheckpointError, FileExistsError):
    """The step is already committed, or being saved, and ``overwrite`` was not given.

    Attributes:
        step: The step.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no committed checkpoint like the one asked for.

    Attributes:
        step: The step asked for; None if "latest" or "best" was asked for and there is no checkpoint.
    """

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class CheckpointKeyError(CheckpointError, KeyError):
    """A key, path or pattern matches nothing that exists, or a key is not allowed.

    Attributes:
        key: The key, path or pattern asked for.
        known: The existing or allowed ones (at most the first few).
    """

    def __init__(self, message: str, *, key: object, known: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.key = key
        self.known = tuple(known)

    def __str__(self) -> str:
        """Return the message; KeyError would return its repr."""
        return str(self.args[0])


class LeafError(CheckpointError):
    """Base class of errors about one leaf of a state; raised itself if a device failed while it was copied from there.

    Attributes:
        path: The leaf's path, such as "params/w1"; empty for the root.
        step: The step being saved or loaded, if known.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path or 'the root'}: {message}")
        self.path = path
        self.step: int | None = None

    def name_step(self, step: int) -> None:
        """Add the step to the message, unless it has one."""
        if self.step is None:
            self.step = step
            self.args = (f"step {step}: {self.args[0]}", *self.args[1:])

    @classmethod
    @contextmanager
    def naming(cls, step: int) -> Iterator[None]:
        """Return a context manager that adds the step to errors of this class."""
        try:
            yield
        except cls as error:
            error.name_step(step)
            raise


class MetricMissingError(CheckpointError, ValueError):
    """The ``training_info`` of a save lacks the metric, and ``metric_required=True``; nothing was captured or written.

    Attributes:
        step: The step.
        metric_name: The metric's name.
        known: The keys of the ``training_info`` (at most the first few).
    """

    def __init__(self, message: str, *, step: int, metric_name: str, known: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.step = step
        self.metric_name = metric_name
        self.known = tuple(known)


class StateMismatchError(LeafError, ValueError):
    """The saved state does not match the template given as ``like`` or ``into``, or a class that has changed since.

    Attributes:
        field: What differs: "type", "keys", "length", "dtype", "shape", "seed", "writability", "sharing", "update" (the
            template's object cannot be filled) or "class" (the fields or members of a class).
        expected: What the template, or the class, has.
        found: What the checkpoint has.
    """

    def __init__(self, path: str, field: str, expected: object, found: object, *, reason: str | None = None) -> None:
        if reason is None:
            verb = "differ" if field == "keys" else "differs"
            reason = f"{field} {verb}: the template has {brief(expected)}, the checkpoint has {brief(found)}"
        super().__init__(reason, path=path)
        self.field = field
        self.expected = expected
        self.found = found


class UnsupportedLeafError(LeafError, TypeError):
    """A value cannot be saved, or would not come back as it was; nothing was written."""


class StateChangedError(LeafError, RuntimeError):
    """A container changed, or the memory of an array was freed, before it was captured.

    A task or thread did that before ``save`` returned or, with ``frozen=True``, before the handle resolved. With
    ``debug=True`` any other change of the state is such an error, too.
    """


class DirectoryLockedError(CheckpointError):
    """Another writer holds the checkpoint directory's lock."""


class FileLockedError(CheckpointError):
    """Another Checkpointer holds the file's lock.

    Attributes:
        file: The file.
    """

    def __init__(self, message: str, *, file: str) -> None:
        super().__init__(message)
        self.file = file


class ReadOnlyFileError(CheckpointError):
    """The file was written or changed by another program, and is not modified unless that was asked for.

    Attributes:
        file: The file.
        losses: What the file would lose if it were rewritten; None if it cannot be rewritten.
    """

    def __init__(self, message: str, *, file: str, losses: str | None = None) -> None:
        super().__init__(message)
        self.file = file
        self.losses = losses


class CorruptCheckpointError(CheckpointError):
    """The data on the disk is not what was written: a digest, a size, a file or the structure is wrong.

    Attributes:
        step: The checkpoint's step, if known.
        file: The damaged file, relative to the checkpoint's directory, if it is one file.
        overwritten: The paths of the arrays that `restore` had begun to overwrite when it found the damage.
    """

    def __init__(self, message: str, *, step: int | None = None, file: str | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.file = file
        self.overwritten: tuple[str, ...] = ()


class UntrustedFileError(CheckpointError):
    """Reading the file needs ``trusted=True``, which says that you trust its origin.

    Such a file needs a native parser, which hostile bytes can exploit, or may take far more memory than its size.
    """


class UnsupportedFormatError(CheckpointError):
    """The file is not damaged, but needs a later release, a missing package, or a feature that does not exist."""


class SaveFailedError(CheckpointError):
    """A save failed after it was accepted; raised ``from`` the cause. The checkpoint is not listed.

    Attributes:
        step: The step that was being saved.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


class CutUsageError(CheckpointError, RuntimeError):
    """A participant or a queue of a cut was used by another task, or by the one that holds the cut, or joined twice."""


class CutBusyError(CheckpointError):
    """A call that does not wait would have to: not all participants of a cut are at rest, or another call wants it."""


class CutTimeoutError(CheckpointError, TimeoutError):
    """Not all participants of a cut came to rest in time. They go on, and nothing was saved.

    Attributes:
        late: Those that were not at rest, by name: the line of the program at which each stands.
        resting: Those that were: the line, and the call in which each waits.
    """

    def __init__(self, message: str, *, late: Mapping[str, str], resting: Mapping[str, str]) -> None:
        super().__init__(message)
        self.late = dict(late)
        self.resting = dict(resting)


class TornStateError(CheckpointError, RuntimeError):
    """A participant of a cut died otherwise than at rest, so that the state may be half changed.

    Attributes:
        torn: How each of them died, by name.
    """

    def __init__(self, message: str, *, torn: Mapping[str, str]) -> None:
        super().__init__(message)
        self.torn = dict(torn)


class CheckpointWarning(UserWarning):
    """Something needs attention, but nothing was lost: a fallback, a failed prune, an unregistered type."""


class ProgramLine(NamedTuple):
    """The line of the program that called the library, for warnings in another thread; and how that thread words them.

    Made in the thread of the program.
    """

    file: str
    number: int
    module: str
    registry: dict[Any, Any]
    reworded: Callable[[str], str]

    @classmethod
    def here(cls, reworded: Callable[[str], str]) -> ProgramLine | None:
        """Return the line of the program that called; None if there is none."""
        frame, _ = _program_frame(inspect.currentframe())
        if frame is None:
            return None
        variables = frame.f_globals
        registry = variables.setdefault("__warningregistry__", {})
        return cls(frame.f_code.co_filename, frame.f_lineno, variables.get("__name__", ""), registry, reworded)


program_line: Final[ContextVar[ProgramLine | None]] = ContextVar("program_line", default=None)
"""Where the program waits for what runs in this context, if it is in another thread."""


def _program_frame(frame: FrameType | None) -> tuple[FrameType | None, int]:
    """Return the innermost frame outside this package and contextlib, from one on, and how far it is away."""
    depth = 0
    while frame is not None and frame.f_code.co_filename.startswith(_INNER_FILES):
        frame, depth = frame.f_back, depth + 1
    return frame, depth


def warn(message: str, category: type[Warning] = CheckpointWarning, *, source: object = None) -> None:
    """Issue a warning that points to the program's line that called the library.

    That line is in the innermost frame outside this package and contextlib; if the program waits in another thread, it
    is the `program_line`. In a background task or a thread of the library there is neither, and the warning points to
    the library.
    """
    frame, depth = _program_frame(inspect.currentframe())
    is_program = frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] not in _RUNNERS
    del frame  # or, if warnings are errors, the traceback and the caller's frame would form a cycle
    if not is_program and (line := program_line.get()) is not None:
        text = line.reworded(message)
        warnings.warn_explicit(text, category, line.file, line.number, line.module, line.registry, source=source)
        return
    warnings.warn(message, category, stacklevel=depth + 1 if is_program else 2, source=source)
