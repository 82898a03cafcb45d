"""Take a program's files over into a checkpoint: they move from their place into it.

1. At every moment a file is at its old place, or in a committed checkpoint, or both. So it gets a second name in the
   pending directory (a hard link), the checkpoint is committed, and only then is the first name removed. Whatever fails
   before has changed nothing, and a kill loses nothing.
2. A file that has other names already is refused: whoever writes to it under one of them would damage the checkpoint.
3. The old names are gone, durably, before the commit is acknowledged. What cannot be removed is returned.
4. Whoever wrote to a file under its old name after a kill would damage the checkpoint. So what is about to move is
   noted in the checkpoint directory, and the next writer removes the old names that are left of a step that was
   committed: of the very files that are in it, and of no others.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.names import locate
from asyncckpt.disk.trees import Entry, walk
from asyncckpt.disk.write_blocks import write_bytes
from asyncckpt.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.pacing import StopFlag

MOVING_NAME: Final = ".asyncckpt.moving"
"""The note, in the checkpoint directory."""
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

    A name that has another file now is left as it is, and so is a directory that is not empty.
    """
    refusals: list[OSError] = []
    for entry in reversed(taken):
        try:
            found = os.lstat(entry.path)
            if entry.is_folder:
                ops.rmdir(entry.path)
            elif (found.st_dev, found.st_ino) == (entry.found.st_dev, entry.found.st_ino):
                ops.unlink(entry.path)
            else:
                refusals.append(OSError(errno.ESTALE, "it was replaced meanwhile", str(entry.path)))
        except FileNotFoundError:
            continue
        except OSError as error:
            refusals.append(OSError(error.errno, error.strerror, str(entry.path)))
    try:
        ops.sync_directory(taken[0].path.parent)
    except OSError as error:
        refusals.append(OSError(error.errno, error.strerror, str(taken[0].path.parent)))
    return refusals[:1]


def announce(ops: DiskOps, root: Path, step: int, moved: Mapping[str, Path]) -> None:
    """Note durably which files a step is about to take over, by their names in it, for a writer after a kill."""
    forget(ops, root)
    content = {"format_version": 1, "step": step, "moved": {name: os.fspath(path) for name, path in moved.items()}}
    write_bytes(ops, root / MOVING_NAME, json.dumps(content).encode("ascii"))


def forget(ops: DiskOps, root: Path) -> None:
    """Remove the note, if there is one. One that stays does no harm."""
    if os.path.lexists(root / MOVING_NAME):
        ops.unlink(root / MOVING_NAME)


def finish(ops: DiskOps, root: Path) -> list[OSError]:
    """Finish what a killed writer has noted, for the lock's holder, after `recover`; return what cannot be removed.

    If the step was committed, its files lose their old names. What is another file there, or of another version of the
    step, stays.
    """
    leftovers: list[OSError] = []
    try:
        content = json.loads((root / MOVING_NAME).read_bytes())
        step = int(content["step"])
        moved = [(str(name), Path(path)) for name, path in content["moved"].items()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        moved, step = [], 0  # half written: then nothing was committed
    committed = locate(root, step) if moved else None
    for name, path in moved:
        if committed is None:
            break
        try:
            taken = [Entry(name, path / at if at else path, found) for at, _, found in walk(committed / name)]
        except (OSError, CheckpointError):  # another version, or a damaged one
            continue
        leftovers += leave(ops, taken)
    try:
        forget(ops, root)
    except OSError as error:
        leftovers.append(error)
    return leftovers
