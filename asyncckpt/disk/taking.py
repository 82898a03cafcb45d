"""Take a program's files over into a checkpoint: they move from their place into it.

1. At every moment a file is at its old place, or in a committed checkpoint, or both. So it gets a second name in the
   pending directory (a hard link), the checkpoint is committed, and only then is the first name removed. Whatever fails
   before has changed nothing, and a kill loses nothing.
2. A file that has other names already is refused: whoever writes to it under one of them would damage the checkpoint.
3. The old names are gone, durably, before the commit is acknowledged. What cannot be removed is returned.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.trees import walk
from asyncckpt.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.disk.trees import Entry
    from asyncckpt.runtime.pacing import StopFlag

_REASONS: Final = {
    errno.EXDEV: "it lies on another file system",
    errno.EPERM: "its file system has no hard links, or it belongs to another user",
    errno.EOPNOTSUPP: "its file system has no hard links",
    errno.EMLINK: "its file system allows no more links",
}


def check_place(path: Path, root: Path, *, move: bool) -> None:
    """Refuse what lies in the checkpoint directory and is to be moved, and what holds that directory.

    Raises:
        CheckpointError: It does.
    """
    real, home = (os.path.realpath(each) for each in (path, root))
    if os.path.commonpath([real, home]) == real:
        raise CheckpointError(f"{path} holds the checkpoint directory {root}: a checkpoint cannot hold itself")
    if move and os.path.commonpath([real, home]) == home:
        raise CheckpointError(f"{path} lies in the checkpoint directory {root}: it can be copied, without move=True")


def check_movable(entry: Entry) -> None:
    """Refuse a file that has other names.

    Raises:
        CheckpointError: It does.
    """
    if not entry.is_folder and entry.found.st_nlink != 1:
        message = (
            f"{entry.path} cannot be moved: it has {entry.found.st_nlink} names (hard links), and a write to it under"
            " another one would damage the checkpoint; it can be copied, without move=True"
        )
        raise CheckpointError(message)


def link_tree(ops: DiskOps, path: Path, target: Path, stop: StopFlag) -> list[Entry]:
    """Give a file, or each file of a directory, a second name at a target, which does not exist; return what was found.

    Raises:
        CheckpointError: There is a symbolic link or a special file, or a file cannot have a second name.
        OSError: The disk failed.
        Stopped: `stop` was set.
    """
    taken = []
    for entry in walk(path, stop):
        check_movable(entry)
        taken.append(entry)
        into = target / entry.name if entry.name else target
        if entry.is_folder:
            ops.mkdir(into)
            continue
        try:
            ops.link(entry.path, into)
        except OSError as error:
            reason = _REASONS.get(error.errno or 0)
            if reason is None:
                raise
            message = f"{entry.path} cannot be moved: {reason} ({error.strerror}); it can be copied, without move=True"
            raise CheckpointError(message) from error
    return taken


def leave(ops: DiskOps, taken: Sequence[Entry]) -> list[OSError]:
    """Remove the old names of what was taken over, durably, but of nothing else; return what cannot be removed, once.

    What has another file now is left as it is.
    """
    top = taken[0].path
    try:
        for entry in reversed(taken):
            found = os.lstat(entry.path)
            if (found.st_dev, found.st_ino) != (entry.found.st_dev, entry.found.st_ino):
                return [OSError(errno.ESTALE, "it was replaced meanwhile", str(entry.path))]
            (ops.rmdir if entry.is_folder else ops.unlink)(entry.path)
        ops.sync_directory(top.parent)
    except OSError as error:
        return [OSError(error.errno, error.strerror, str(error.filename or top))]
    return []
