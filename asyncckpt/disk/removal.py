"""Delete checkpoints, and clear what a killed writer has left.

What `publish` says about names holds at every moment. Besides:

1. No file is unlinked while its directory has a name that readers use. The directory is renamed to `trash_step_N`, the
   parent is synced, and only then are the files unlinked. They are never truncated, because a reader may have them
   mapped.
2. A directory that cannot be renamed, because it lies in a lower layer of overlayfs (EXDEV), is deleted in place: the
   mark `deleted_step_N` is made and synced, then all files are deleted, the manifest first and durably, and the mark
   last. So what a step has beside its mark, or beside `new_step_N`, may be deleted. Any other `step_N` without a
   manifest is a damaged checkpoint, or not a checkpoint: it is deleted only on request.
3. Nothing is deleted in place while the writer works, because it may use the name again. Trash may be deleted then.
4. What the file system refuses to delete stays, and does not stop anything else: it is returned, with the reason.
   Nothing is deleted through a mount point or a symbolic link.
"""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from asyncckpt.disk.names import MANIFEST_NAME, Kind, describe_misnamed, is_directory, kinds_of, name_of, paths_of, scan
from asyncckpt.disk.obstacles import explain, mounted_below
from asyncckpt.runtime.pacing import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.pacing import StopFlag


class Retired(NamedTuple):
    """The result of retiring steps."""

    trash: tuple[Path, ...]
    """What `sweep` has to delete."""
    refused: dict[int, OSError]
    """The steps that are committed still, and why."""
    leftovers: tuple[OSError, ...]
    """What cannot be deleted of steps that are no longer committed."""


def refusal(path: Path, error: OSError) -> OSError:
    """Return an error that says why the file system refuses to rename or delete a directory; see `explain`."""
    return OSError(error.errno, explain(error, path), str(path))


def recover(ops: DiskOps, root: Path) -> list[OSError]:
    """Finish or undo what a killed writer began; only the lock's holder may call this.

    All names that are found are durable afterwards: the writer may have been killed just before it synced them.

    Returns:
        What could not be deleted or moved back, which does no harm.

    Raises:
        OSError: The directory cannot be read or synced.
    """
    leftovers: list[OSError] = []
    names = scan(root).directories
    if any(names.values()):
        ops.sync_directory(root)
    unsettled = sorted({step for kind in (Kind.SWAPPED, Kind.SUCCESSOR, Kind.DELETED) for step, _ in names[kind]})
    for step in unsettled:
        leftovers += settle(ops, root, step)
    if unsettled:
        ops.sync_directory(root)
    for _, name in sorted(names[Kind.PENDING]):
        leftovers += _cleared(ops, root / name)
    return [*leftovers, *sweep_all(ops, root)[1]]


def settle(ops: DiskOps, root: Path, step: int) -> list[OSError]:
    """Finish or undo an overwrite or a deletion in place of a step, as far as that is possible.

    Raises:
        OSError: A directory could not be synced.
    """
    committed, swapped, successor, mark = (
        root / name_of(kind, step) for kind in (Kind.COMMITTED, Kind.SWAPPED, Kind.SUCCESSOR, Kind.DELETED)
    )
    leftovers: list[OSError] = []
    if is_directory(mark):
        leftovers += _finish_deletion(ops, root, step)
        if leftovers:
            return leftovers
    if is_directory(successor):
        ops.sync_directory(root)  # before the others are deleted, it must be durable
        for each in (swapped, committed):
            leftovers += move_to_trash(ops, each, step)[1]
        leftovers += rename_successor(ops, root, step)
    elif is_directory(swapped):
        if os.path.lexists(committed):
            ops.sync_directory(root)
            leftovers += move_to_trash(ops, swapped, step)[1]
        else:
            leftovers += _renamed(ops, swapped, committed)
    return leftovers


def move_to_trash(ops: DiskOps, path: Path, step: int) -> tuple[Path | None, list[OSError]]:
    """Rename a directory whose successor is durable to trash, which is returned, or delete it in place."""
    if not is_directory(path):
        return None, []
    trash = trash_path(path.parent, step)
    try:
        ops.rename(path, trash)
    except OSError as error:
        return None, delete_in_place(ops, path) if error.errno == errno.EXDEV else [refusal(path, error)]
    return trash, []


def rename_successor(ops: DiskOps, root: Path, step: int) -> list[OSError]:
    """Rename `new_step_N` to `step_N`, if that is free; readers find the step under either name."""
    committed = root / name_of(Kind.COMMITTED, step)
    if os.path.lexists(committed) or is_directory(root / name_of(Kind.DELETED, step)):
        return []
    return _renamed(ops, root / name_of(Kind.SUCCESSOR, step), committed)


def retire(ops: DiskOps, root: Path, steps: Iterable[int], *, durably: bool = True) -> Retired:
    """Rename the directories of steps to trash, or mark them as deleted.

    With `durably` the parent is synced, even if a step has no committed name: a failed save may have moved its name
    back. Otherwise a power cut can bring the steps back until `sweep` syncs it.

    Raises:
        OSError: The disk failed. The names were moved back, if that could be done.
    """
    undone: list[Callable[[], object]] = []
    trash: list[Path] = []
    marked: list[int] = []
    refused: dict[int, OSError] = {}
    try:
        for step in steps:
            found = kinds_of(root, step)
            # If one name goes, readers find the step under the next one: so the name that counts least goes first.
            for kind in (Kind.SWAPPED, Kind.COMMITTED, Kind.SUCCESSOR):
                path = root / name_of(kind, step)
                try:
                    if not found.get(kind):
                        if kind in found and kind is not Kind.SWAPPED:
                            check_is_directory(path)
                        continue
                    into = _renamed_or_marked(ops, path, step, undone)
                    if into is None:
                        marked.append(step)
                    else:
                        trash.append(into)
                except OSError as error:
                    refused[step] = refusal(path, error)
                    break
        if durably or marked:
            ops.sync_directory(root)
    except OSError as error:
        for action in reversed(undone):
            undo(error, action)
        raise
    leftovers = [each for step in dict.fromkeys(marked) for each in _finish_deletion(ops, root, step)]
    return Retired(tuple(trash), refused, tuple(leftovers))


def sweep(ops: DiskOps, root: Path, trash: Sequence[Path], stop: StopFlag | None = None) -> tuple[int, list[OSError]]:
    """Delete trash, file by file, until `stop` is set.

    Returns:
        How many directories were processed, in their order, and what could not be deleted.

    Raises:
        OSError: The directory could not be synced.
    """
    if trash:
        ops.sync_directory(root)  # the new name must be durable before the first file is unlinked
    leftovers: list[OSError] = []
    for number, path in enumerate(trash):
        try:
            leftovers += _cleared(ops, path, stop)
        except Stopped:
            return number, leftovers
    return len(trash), leftovers


def sweep_all(ops: DiskOps, root: Path, stop: StopFlag | None = None) -> tuple[int, list[OSError]]:
    """Delete all trash in a directory, as `sweep` does."""
    trash = scan(root).directories[Kind.TRASH]
    return sweep(ops, root, [root / name for _, name in sorted(trash)], stop)


def discard(ops: DiskOps, path: Path) -> None:
    """Delete a directory, as `clear` does.

    Raises:
        OSError: Something in it cannot be deleted; all else is.
    """
    if refusals := clear(ops, path):
        raise refusals[0]


def clear(ops: DiskOps, path: Path, stop: StopFlag | None = None) -> list[OSError]:
    """Delete a directory that has no committed name, if it exists.

    Returns:
        The errors of what cannot be deleted. All else is deleted.

    Raises:
        Stopped: `stop` was set.
    """
    return _clear(ops, path, mounted_below(path), stop)


def delete_in_place(ops: DiskOps, path: Path) -> list[OSError]:
    """Delete a directory that has a committed name which no longer counts: the manifest first, durably."""
    if not is_directory(path):
        return []
    try:
        _check_not_mounted(path, mounted_below(path))
        if os.path.lexists(path / MANIFEST_NAME):
            ops.unlink(path / MANIFEST_NAME)
            ops.sync_directory(path)
    except OSError as error:
        return [refusal(path, error)]
    return _cleared(ops, path)


def check_is_directory(path: Path) -> None:
    """Refuse something that has the name of a checkpoint's directory.

    Raises:
        NotADirectoryError: The path is a symbolic link, or a file.
    """
    if os.path.lexists(path) and not is_directory(path):
        raise NotADirectoryError(errno.ENOTDIR, f"{path.name}: {describe_misnamed(path)}", str(path))


def undo(error: OSError, action: Callable[[], object]) -> None:
    """Move names back because of an error; if that fails, the second error becomes a note of the first."""
    try:
        action()
    except OSError as second:  # `recover` will handle what is left
        error.add_note(f"the names could not be moved back: {second}")


def trash_path(root: Path, step: int) -> Path:
    """Return a free path for the trash of a step."""
    return next(path for path in paths_of(root, Kind.TRASH, step) if not os.path.lexists(path))


def _renamed_or_marked(ops: DiskOps, path: Path, step: int, undone: list[Callable[[], object]]) -> Path | None:
    """Rename a directory to trash, or if that is impossible mark its step as deleted; add to `undone` how to undo it.

    Returns:
        Its new path; None if the step was marked.
    """
    into = trash_path(path.parent, step)
    try:
        ops.rename(path, into)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        mark = path.with_name(name_of(Kind.DELETED, step))
        if not is_directory(mark):  # else an earlier deletion could not be finished
            ops.mkdir(mark)
            undone.append(functools.partial(ops.rmdir, mark))
        return None
    undone.append(functools.partial(ops.rename, into, path))
    return into


def _finish_deletion(ops: DiskOps, root: Path, step: int) -> list[OSError]:
    """Delete what is left of a step that is marked as deleted, then the mark."""
    leftovers = [
        each for kind in (Kind.SWAPPED, Kind.COMMITTED) for each in delete_in_place(ops, root / name_of(kind, step))
    ]
    if not leftovers:
        ops.sync_directory(root)  # the mark must not go before the rest
        leftovers += _cleared(ops, root / name_of(Kind.DELETED, step))
    return leftovers


def _renamed(ops: DiskOps, path: Path, target: Path) -> list[OSError]:
    try:
        ops.rename(path, target)
    except OSError as error:
        return [refusal(path, error)]
    return []


def _cleared(ops: DiskOps, path: Path, stop: StopFlag | None = None) -> list[OSError]:
    """Delete a directory, as `clear` does; return it if something in it stays."""
    return [refusal(path, error) for error in clear(ops, path, stop)[:1]]


def _clear(ops: DiskOps, path: Path, mounted: set[Path], stop: StopFlag | None) -> list[OSError]:
    refusals: list[OSError] = []
    try:
        _check_not_mounted(path, mounted)
        check_is_directory(path)
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda each: each.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [error]
    for entry in entries:
        if stop is not None:
            stop.check()
        if entry.is_dir(follow_symlinks=False):
            refusals += _clear(ops, Path(entry.path), mounted, stop)
        else:
            refusals += _deleted(ops.unlink, Path(entry.path))
    return refusals or _deleted(ops.rmdir, path)


def _check_not_mounted(path: Path, mounted: set[Path]) -> None:
    """Refuse a mount point, below which there may be files of others."""
    if path in mounted:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))


def _deleted(delete: Callable[[Path], object], path: Path) -> list[OSError]:
    try:
        delete(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        return [error]
    return []
