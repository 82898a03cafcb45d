"""Errors about damaged keyed files."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from asyncckpt.errors import CheckpointError, CorruptCheckpointError, UnsupportedFormatError, UntrustedFileError, brief
from asyncckpt.runtime.pacing import Stopped

if TYPE_CHECKING:
    from collections.abc import Iterator


def damaged(reason: str) -> NoReturn:
    """Raise the error of a damaged file.

    Raises:
        CorruptCheckpointError: Always.
    """
    raise CorruptCheckpointError(reason)


@contextmanager
def damage_of(what: str) -> Iterator[None]:
    """Turn whatever a block raises for damaged data into one error, and pass on other errors.

    Raises:
        CorruptCheckpointError: The data are damaged.
    """
    try:
        yield
    except (CheckpointError, OSError, MemoryError, Stopped):
        raise
    except Exception as error:
        message = f"{what}: {type(error).__name__}: {brief(error)}"
        raise CorruptCheckpointError(message) from error


@contextmanager
def errors_of(file_name: str, what: str = "") -> Iterator[None]:
    """Add the file, and what of it, to the errors of a block."""
    try:
        yield
    except (CorruptCheckpointError, UnsupportedFormatError, UntrustedFileError) as error:
        message = ": ".join(filter(None, (file_name, what, str(error))))
        if isinstance(error, CorruptCheckpointError):
            raise CorruptCheckpointError(message, file=file_name) from error
        raise type(error)(message) from error
