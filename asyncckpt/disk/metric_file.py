"""`.asyncckpt.json`: which metric ranks the checkpoints of a directory, for whoever opens it later.

1. Only the holder of the lock writes it, as a whole: another file is written and synced, and then renamed, so there is
   always the old one or the new one. Its name becomes durable with the first commit, before which there is nothing to
   rank.
2. No checkpoint depends on it. What is wrong with it is said, never raised: a save must not fail because of it.
3. What is not a regular file, cannot be read, or was written by a later release is left as it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import reprlib
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.disk.names import METRIC_NAME
from asyncckpt.disk.write_blocks import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from asyncckpt.disk.ops import DiskOps

FORMAT_VERSION: Final = 1
_MAX_NBYTES: Final = 1 << 20
_SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_HALF_MADE_NAME: Final = f"{METRIC_NAME}.tmp"


class StoredMetric(NamedTuple):
    """What ranks the checkpoints of a directory."""

    metric_name: str
    higher_is_better: bool


class MetricFile(NamedTuple):
    """What was found under the file's name."""

    stored: StoredMetric | None
    """None where there is no file, or none that can be used."""
    problem: str | None = None
    """Why it cannot be used, in words; None where nothing is wrong."""
    may_be_written: bool = True
    """Whether a writer may put another one in its place."""


def read_metric_file(root: Path) -> MetricFile:
    """Read the file of a checkpoint directory.

    Raises:
        OSError: The system is short of descriptors or memory, which says nothing of the file: retention that went on
            without the metric might prune the best.
    """
    try:
        text = _read(root / METRIC_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return MetricFile(None)
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise
        return MetricFile(None, f"cannot be read ({error.strerror})", may_be_written=False)
    try:
        content = json.loads(text.decode("ascii"))
        version = content["format_version"]
        if type(version) is int and version > FORMAT_VERSION:
            problem = f"has format version {version}, and this asyncckpt knows {FORMAT_VERSION}: use a later release"
            return MetricFile(None, problem, may_be_written=False)
        stored = StoredMetric(content["metric_name"], content["higher_is_better"])
        if version != FORMAT_VERSION or [type(value) for value in stored] != [str, bool]:
            return MetricFile(None, "is damaged (a value is not of its type)")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return MetricFile(None, f"is damaged ({type(error).__name__}: {reprlib.repr(str(error))})")
    return MetricFile(stored)


def write_metric_file(ops: DiskOps, root: Path, stored: StoredMetric) -> None:
    """Put the file in its place; only for the lock's holder, after `clear_half_made`.

    Raises:
        OSError: The disk failed, or the name is too long to be stored. What was there before still is.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **stored._asdict()}) + "\n"
    if len(text) > _MAX_NBYTES:
        raise OSError(errno.EFBIG, f"the metric's name takes more than {_MAX_NBYTES} bytes")
    half_made = root / _HALF_MADE_NAME
    try:
        write_bytes(ops, half_made, text.encode("ascii"))
        ops.rename(half_made, root / METRIC_NAME)
    except OSError:
        clear_half_made(ops, root)
        raise


def is_half_made(root: Path) -> bool:
    """Whether a killed writer has left a file behind that had not come to its place."""
    return os.path.lexists(root / _HALF_MADE_NAME)


def clear_half_made(ops: DiskOps, root: Path) -> None:
    """Remove what a killed writer has left, if that can be done; only for the lock's holder."""
    if is_half_made(root):
        with contextlib.suppress(OSError):  # it is in nobody's way but the next one's, who will say so
            ops.unlink(root / _HALF_MADE_NAME)


def _read(path: Path) -> bytes:
    """Read a regular file, but no more than would be written, without waiting for anybody.

    Raises:
        OSError: It cannot be opened, or is something else.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read(_MAX_NBYTES)
