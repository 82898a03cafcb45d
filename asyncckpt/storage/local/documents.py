"""Documents of a whole checkpoint directory: small files beside its checkpoints.

1. Only the holder of the lock writes one, as a whole: a temporary file is written, synced and then renamed, so there is
   always the old one or the new one. Its name becomes durable with the next commit.
2. What is not a regular file is never opened, and never waited for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.write_blocks import write_bytes
from asyncckpt.storage.results import DOCUMENT_NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from asyncckpt.disk.ops import DiskOps

_MAX_NBYTES: Final = 1 << 20


def read_document(root: Path, name: str) -> bytes | None:
    """Read a document, but no more than would be written; None if there is none.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    try:
        fd = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read(_MAX_NBYTES)


def write_document(ops: DiskOps, root: Path, name: str, data: bytes) -> None:
    """Write a document; only for the lock's holder, after `clear_half_written`.

    Raises:
        OSError: The disk failed, or the document is too large. What was there before still is.
    """
    if len(data) > _MAX_NBYTES:
        raise OSError(errno.EFBIG, f"{name} would have more than {_MAX_NBYTES} bytes")
    temporary = _temporary(root, name)
    try:
        write_bytes(ops, temporary, data)
        ops.rename(temporary, root / name)
    except OSError:
        clear_half_written(ops, root)
        raise


def has_half_written(root: Path) -> bool:
    """Whether a killed writer has left a temporary file behind."""
    return any(os.path.lexists(_temporary(root, name)) for name in DOCUMENT_NAMES)


def clear_half_written(ops: DiskOps, root: Path) -> None:
    """Remove what a killed writer has left, if that can be done; only for the lock's holder."""
    for path in (_temporary(root, name) for name in DOCUMENT_NAMES):
        if os.path.lexists(path):
            with contextlib.suppress(OSError):  # only the next `write_document` needs the name, and will say so
                ops.unlink(path)


def _temporary(root: Path, name: str) -> Path:
    return root / f"{name}.tmp"
