"""How a checkpoint goes, and what becomes of what a killed writer left.

1. Nothing is unlinked below a committed name: a victim becomes `trash_step_N`, the parent is synced, and only then are
   its files unlinked. Files are never truncated, because a reader may have them mapped.
2. What the file system will not let go of stays, and stops nothing.

What the names mean, and what is true of them at every moment, says `publish`.
"""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.listing import names_in
from asyncckpt.disk.names import Kind, name_of
from asyncckpt.runtime.pacing import Pacer, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.pacing import StopFlag

# What a file system answers where it will not let a name go, whatever else it does: it is another user's, a mount
# point, a lower layer, or a file that is open elsewhere (on NFS its directory never becomes empty).
_REFUSALS: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EBUSY,
        errno.ENOTEMPTY,
        errno.EEXIST,
        errno.EXDEV,
    }
)


def recover(ops: DiskOps, root: Path) -> list[OSError]:
    """Bring a directory that a killed writer left into order; only the lock's holder may call this.

    Every name that is found is durable afterwards: the writer may have been killed just before it synced them.

    Returns:
        Why a name could not be deleted or moved back, one error for each that stays. It is in nobody's way, because
        `tmp_step_N` and `trash_step_N` mean nothing, and a lone `old_step_N` is step N.
    """
    refusals: list[OSError] = []
    names = names_in(root, Pacer())
    if any(names.values()):
        ops.sync_directory(root)
    swapped = sorted(step for step, _ in names[Kind.SWAPPED])
    for step in swapped:
        try:
            settle(ops, root / name_of(Kind.SWAPPED, step), root / name_of(Kind.COMMITTED, step), step)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            refusals.append(error)
    if swapped:
        ops.sync_directory(root)
    for _, name in sorted(names[Kind.PENDING]):
        refusals += clear(ops, root / name)[:1]
    if swapped:
        names = names_in(root, Pacer())
    trash = sorted(names[Kind.TRASH])
    if trash:
        ops.sync_directory(root)  # as in `sweep`
    for _, name in trash:
        refusals += clear(ops, root / name)[:1]
    return refusals


def retire(ops: DiskOps, root: Path, steps: Iterable[int], refused: dict[int, OSError] | None = None) -> list[Path]:
    """Take away the committed names of steps, durably, and return the trash that `sweep` deletes.

    That a step has no such name is made durable too: a save that failed may have moved its name back, or not.
    Steps whose names the file system does not let go of are put into `refused`, with the reason, and stay committed.

    Raises:
        OSError: The disk failed, or a step stays and there is no `refused`. The names were given back, if that could
            be done.
    """
    retired: list[tuple[Path, Path]] = []
    try:
        for step in steps:
            # A lone old_step_N is step N: it goes first, so that it never stands alone.
            for kind in (Kind.SWAPPED, Kind.COMMITTED):
                path = root / name_of(kind, step)
                if path.is_dir():
                    trash = trash_name(root, step)
                    try:
                        ops.rename(path, trash)
                    except OSError as error:
                        if refused is None or error.errno not in _REFUSALS:
                            raise
                        refused[step] = error
                        break
                    retired.append((path, trash))
        ops.sync_directory(root)
    except OSError as error:
        for path, trash in reversed(retired):
            undo(error, functools.partial(ops.rename, trash, path))
        raise
    return [trash for _, trash in retired]


def sweep(ops: DiskOps, root: Path, trash: Sequence[Path], stop: StopFlag | None = None) -> int:
    """Delete trash, file by file; return how many of the directories are gone: all of them, unless `stop` was set.

    Raises:
        OSError: The disk failed; or the file system would not let something go: then all else is deleted first.
    """
    if trash:
        ops.sync_directory(root)  # a victim's new name must be durable before its first file goes
    refusals: list[OSError] = []
    for number, path in enumerate(trash):
        try:
            refusals += clear(ops, path, stop)
        except Stopped:
            return number
    if refusals:
        raise refusals[0]
    return len(trash)


def sweep_all(ops: DiskOps, root: Path, stop: StopFlag | None = None) -> None:
    """Delete all trash that is there, whoever left it, as `sweep` does."""
    sweep(ops, root, [root / name for _, name in sorted(names_in(root, Pacer())[Kind.TRASH])], stop)


def discard(ops: DiskOps, path: Path, stop: StopFlag | None = None) -> None:
    """Delete what `clear` does.

    Raises:
        OSError: The disk failed; or the file system would not let something go: then all else is deleted first.
    """
    if refusals := clear(ops, path, stop):
        raise refusals[0]


def clear(ops: DiskOps, path: Path, stop: StopFlag | None = None) -> list[OSError]:
    """Delete a directory that has no committed name, if it exists. Of a symbolic link, only the link goes.

    Returns:
        Why something in it stays, where the file system would not let it go. All else is deleted.

    Raises:
        OSError: The disk failed.
        Stopped: `stop` was set.
    """
    refusals: list[OSError] = []
    try:
        if path.is_symlink():
            ops.unlink(path)
            return []
        with os.scandir(path) as found:
            entries = list(found)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [_refusal(error)]
    for entry in entries:
        if stop is not None:
            stop.check()
        if entry.is_dir(follow_symlinks=False):
            refusals += clear(ops, Path(entry.path), stop)
            continue
        try:
            ops.unlink(Path(entry.path))
        except OSError as error:
            refusals.append(_refusal(error))
    if not refusals:
        try:
            ops.rmdir(path)
        except OSError as error:
            refusals.append(_refusal(error))
    return refusals


def _refusal(error: OSError) -> OSError:
    """Return an error that only says that a name stays; raise any other."""
    if error.errno not in _REFUSALS:
        raise error
    return error


def settle(ops: DiskOps, swapped: Path, committed: Path, step: int) -> None:
    """Undo or complete an overwrite that stopped half-way, if there was one."""
    if not swapped.is_dir():
        return
    if not committed.exists():
        ops.rename(swapped, committed)
        return
    root = committed.parent
    ops.sync_directory(root)  # it takes the old one's place for good
    ops.rename(swapped, trash_name(root, step))


def undo(error: OSError, action: Callable[[], object]) -> None:
    """Move names back because of an error, which goes before one of the moving back."""
    try:
        action()
    except OSError as second:  # the first error is what matters; recovery understands what is left
        error.add_note(f"the names could not be moved back: {second}")


def trash_name(root: Path, step: int) -> Path:
    """Return a free name for what a step leaves behind."""
    path = root / name_of(Kind.TRASH, step)
    number = 0
    while path.exists():
        number += 1
        path = root / f"{name_of(Kind.TRASH, step)}.{number}"
    return path
