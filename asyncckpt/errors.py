"""Every public error and warning of asyncckpt.

Messages name the step, the leaf's path, what was expected, what was found and what to do; the same facts are
attributes. Errors that have a natural builtin parent inherit from it too, so that ``except FileNotFoundError`` works.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


_BRIEF_LENGTH = 500
_INNER_FILES: Final = (os.path.join(os.path.dirname(__file__), ""), contextlib.__file__)  # noqa: PTH118, PTH120 - a str
_RUNNERS: Final = ("asyncio", "concurrent", "threading")


def brief(value: object) -> str:
    """Return a value's text, cut where nobody reads on; what stands in a file may be as long as the file."""
    text = str(value)
    return text if len(text) <= _BRIEF_LENGTH else f"{text[:_BRIEF_LENGTH]}..."


def nearest(word: str, known: Iterable[object], count: int = 1, *, likeness: float = 0.6) -> list[str]:
    """Return which of the known texts a word is most like, whatever their case, the best first."""
    import difflib

    by_fold = {each.casefold(): each for each in known if isinstance(each, str)}
    close = difflib.get_close_matches(word.strip().casefold(), by_fold, n=count, cutoff=likeness)
    return [by_fold[each] for each in close]


class CheckpointError(Exception):
    """Base of every error that asyncckpt raises. Errors can be copied, and pickled for another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how to make it again: what its class is called with is not what exceptions keep."""
        return _remade, (type(self), self.args, vars(self))


def _remade(kind: type[CheckpointError], args: tuple[Any, ...], facts: dict[str, Any]) -> CheckpointError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(facts)
    return error


class ConfigError(CheckpointError, ValueError, TypeError):
    """An option is unknown or ill-typed, or a file none that can be used; the message says what there could be."""


class ManagerUsageError(CheckpointError, RuntimeError):
    """The manager was used where it cannot be: before ``async with``, from another loop or thread, after a fork."""


class ManagerClosedError(ManagerUsageError):
    """The manager is closing or closed: it accepts no new work."""


class ReadOnlyError(ManagerUsageError):
    """A manager with ``read_only=True`` was asked to save, delete or prune."""


class CheckpointerUsageError(CheckpointError, RuntimeError):
    """A Checkpointer was used as it cannot be: blocking on a running loop, in both modes at once, after a fork."""


class QueueFullError(CheckpointError):
    """What cannot wait would have to: for room in the budget, in the queue, or behind another save."""


class StepExistsError(CheckpointError, FileExistsError):
    """The step is committed already, or a save of it is in flight, and ``overwrite`` was not given.

    Attributes:
        step: The step.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No committed checkpoint answers to what was asked for.

    Attributes:
        step: The step asked for; ``None`` where "latest" or "best" was asked of a directory without checkpoints.
    """

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class CheckpointKeyError(CheckpointError, KeyError):
    """A key or path is not among those there are.

    Attributes:
        key: The key or path pattern asked for.
        known: Those there are (at most the first few).
    """

    def __init__(self, message: str, *, key: object, known: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.key = key
        self.known = tuple(known)

    def __str__(self) -> str:
        """Return the message; KeyError would show its repr."""
        return str(self.args[0])


class LeafError(CheckpointError):
    """Base of the errors about one place in a state.

    Attributes:
        path: The leaf's path, such as ``params/w1``; empty for the root.
        step: The step being saved or loaded, if known.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path or 'the root'}: {message}")
        self.path = path
        self.step: int | None = None

    def name_step(self, step: int) -> None:
        """Add the step to the message, once it is known."""
        if self.step is None:
            self.step = step
            self.args = (f"step {step}: {self.args[0]}", *self.args[1:])

    @classmethod
    @contextmanager
    def naming(cls, step: int) -> Iterator[None]:
        """Let errors of this kind that pass name the step."""
        try:
            yield
        except cls as error:
            error.name_step(step)
            raise


class MetricMissingError(CheckpointError, ValueError):
    """With ``metric_required=True``, a checkpoint was to be saved without the metric; nothing was captured or written.

    Attributes:
        step: The step.
        metric_name: The metric's name.
        known: The keys of its training_info (at most the first few).
    """

    def __init__(self, message: str, *, step: int, metric_name: str, known: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.step = step
        self.metric_name = metric_name
        self.known = tuple(known)


class StateMismatchError(LeafError, ValueError):
    """The saved state does not fit the template given as ``like`` or ``into``, or the classes as they are now.

    Attributes:
        field: What differs: "type", "keys", "length", "dtype", "shape", "seed", "writability", "sharing", "update" (an
            object that cannot be filled) or "class" (fields or members of a class, which has changed).
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
    """A value cannot be saved, or not faithfully; nothing was written."""


class StateChangedError(LeafError, RuntimeError):
    """A container changed while it was captured: some task modified the state before ``save`` returned."""


class DirectoryLockedError(CheckpointError):
    """Another writer holds the checkpoint directory's lock."""


class FileLockedError(CheckpointError):
    """Another Checkpointer is writing to the file.

    Attributes:
        file: The file.
    """

    def __init__(self, message: str, *, file: str) -> None:
        super().__init__(message)
        self.file = file


class ReadOnlyFileError(CheckpointError):
    """The file of a Checkpointer is another program's, or was changed by one: it is not written unasked.

    Attributes:
        file: The file.
        losses: What a file that is written anew would lack; None where it is never written anew.
    """

    def __init__(self, message: str, *, file: str, losses: str | None = None) -> None:
        super().__init__(message)
        self.file = file
        self.losses = losses


class CorruptCheckpointError(CheckpointError):
    """What is on disk is not what was written: a digest, a size, a file or the structure is wrong.

    Attributes:
        step: The checkpoint's step, if known.
        file: The name of the file, relative to the checkpoint's directory, if one is to blame.
        overwritten: Paths of the arrays that a ``restore`` had begun to overwrite when it found out.
    """

    def __init__(self, message: str, *, step: int | None = None, file: str | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.file = file
        self.overwritten: tuple[str, ...] = ()


class UntrustedFileError(CheckpointError):
    """A file that only a parser of native code can read, which hostile bytes can mislead, was opened as if trusted.

    ``trusted=True`` says that its origin is known.
    """


class UnsupportedFormatError(CheckpointError):
    """A file was written by a later release, or needs a feature or package that is missing here; it is not damaged."""


class SaveFailedError(CheckpointError):
    """A save failed after it was accepted; raised ``from`` the cause. Nothing of it is listed.

    Attributes:
        step: The step that was being saved.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


class CheckpointWarning(UserWarning):
    """Something deserves attention but lost nothing: a fallback, a failed prune, an unregistered type."""


def warn(message: str, category: type[Warning] = CheckpointWarning, *, source: object = None) -> None:
    """Issue a warning that names the line of the program that called the library.

    This is the innermost frame outside of this package and contextlib. A background task or a thread of the library has
    no such frame; its warnings name the library's line.
    """
    frame, depth = inspect.currentframe(), 0
    while frame is not None and frame.f_code.co_filename.startswith(_INNER_FILES):
        frame, depth = frame.f_back, depth + 1
    is_program = frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] not in _RUNNERS
    del frame  # if warnings are errors, the traceback would hold the caller's frame in a cycle
    warnings.warn(message, category, stacklevel=depth + 1 if is_program else 2, source=source)
