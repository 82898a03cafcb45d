"""How a checkpoint goes, and what becomes of what a killed writer left.

What `publish` says of the names is true at every moment of it. Besides:

1. Nothing is unlinked below a name that a reader goes by. A victim becomes `trash_step_N`, the parent is synced, and
   only then are its files unlinked. Files are never truncated, because a reader may have them mapped.
2. A directory that cannot be renamed, because it lies in a lower layer of overlayfs (EXDEV), is deleted in place: the
   mark `deleted_step_N` is made and synced, and then everything goes, the manifest first and durably. The mark goes
   last. So what is there of a step beside its mark, or below `new_step_N`, is ours to delete. Any other `step_N`
   without a manifest is a damaged checkpoint, or somebody else's: nobody deletes it who is not told to.
3. Deleting in place is never done beside the writer, which may give the name away again. Trash may be.
4. What the file system will not let go of stays, and stops nothing: whoever asked is told what stays, and why. Nothing
   is deleted through a mount point or a symbolic link.
"""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from asyncckpt.disk.listing import is_directory, names_in, what_stands_at
from asyncckpt.disk.names import MANIFEST_NAME, Kind, name_of, paths_of
from asyncckpt.disk.obstacles import explain, mounted_below
from asyncckpt.runtime.pacing import Pacer, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.pacing import StopFlag


class Leftover(NamedTuple):
    """Something that stays because the file system does not let it go."""

    path: Path
    errno: int | None
    reason: str
    """Why, in words."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> Self:
        """Look what is in the way."""
        return cls(path, error.errno, explain(error, path))

    def __str__(self) -> str:
        """Say what stays, and why."""
        return f"{self.path.name} cannot be removed: {self.reason}; the next start tries again"


class Retired(NamedTuple):
    """What became of steps that were to go."""

    trash: tuple[Path, ...]
    """What `sweep` is to delete."""
    refused: dict[int, Leftover]
    """Why steps stay committed, by step."""
    leftovers: tuple[Leftover, ...]
    """What cannot be removed of steps that are deleted."""


class Swept(NamedTuple):
    """What became of trash."""

    done: int
    """How many of the directories were dealt with, the first ones."""
    leftovers: tuple[Leftover, ...]


def recover(ops: DiskOps, root: Path) -> list[Leftover]:
    """Bring a directory that a killed writer left into order; only the lock's holder may call this.

    Every name that is found is durable afterwards: the writer may have been killed just before it synced them.

    Returns:
        What could not be deleted or moved back. It is in nobody's way.

    Raises:
        OSError: The directory cannot be read or synced.
    """
    leftovers: list[Leftover] = []
    names = names_in(root, Pacer()).directories
    if any(names.values()):
        ops.sync_directory(root)
    unsettled = sorted({step for kind in (Kind.SWAPPED, Kind.SUCCESSOR, Kind.DELETED) for step, _ in names[kind]})
    for step in unsettled:
        leftovers += settle(ops, root, step)
    if unsettled:
        ops.sync_directory(root)
    for _, name in sorted(names[Kind.PENDING]):
        leftovers += _cleared(ops, root / name)
    return [*leftovers, *sweep_all(ops, root).leftovers]


def settle(ops: DiskOps, root: Path, step: int) -> list[Leftover]:
    """Complete or undo what an overwrite or a deletion in place has left of a step, as far as that is possible.

    Raises:
        OSError: A directory could not be synced.
    """
    committed, swapped, successor, mark = (
        root / name_of(kind, step) for kind in (Kind.COMMITTED, Kind.SWAPPED, Kind.SUCCESSOR, Kind.DELETED)
    )
    leftovers: list[Leftover] = []
    if is_directory(mark):
        leftovers += _finish_deletion(ops, root, step)
        if leftovers:
            return leftovers
    if is_directory(successor):
        ops.sync_directory(root)  # it takes the others' place for good
        for each in (swapped, committed):
            leftovers += take_away(ops, each, step)[1]
        leftovers += give_plain_name(ops, root, step)
    elif is_directory(swapped):
        if os.path.lexists(committed):
            ops.sync_directory(root)
            leftovers += take_away(ops, swapped, step)[1]
        else:
            leftovers += _renamed(ops, swapped, committed)
    return leftovers


def take_away(ops: DiskOps, path: Path, step: int) -> tuple[Path | None, list[Leftover]]:
    """Let a directory that something durable stands above become trash, which is returned, or delete it in place."""
    if not is_directory(path):
        return None, []
    trash = trash_path(path.parent, step)
    try:
        ops.rename(path, trash)
    except OSError as error:
        return None, delete_in_place(ops, path) if error.errno == errno.EXDEV else [Leftover.of(path, error)]
    return trash, []


def give_plain_name(ops: DiskOps, root: Path, step: int) -> list[Leftover]:
    """Rename `new_step_N` to `step_N`, if that has gone; it stands for the step under either name."""
    committed = root / name_of(Kind.COMMITTED, step)
    if os.path.lexists(committed) or is_directory(root / name_of(Kind.DELETED, step)):
        return []
    return _renamed(ops, root / name_of(Kind.SUCCESSOR, step), committed)


def retire(ops: DiskOps, root: Path, steps: Iterable[int], *, durably: bool = True) -> Retired:
    """Take away the committed names of steps.

    That a step has no such name is made durable too: a save that failed may have moved its name back, or not.

    Args:
        ops: The disk.
        root: The directory.
        steps: Which.
        durably: Whether no power cut can bring them back when this returns; otherwise `sweep` sees to it.

    Raises:
        OSError: The disk failed. The names were given back, if that could be done.
    """
    undone: list[Callable[[], object]] = []
    trash: list[Path] = []
    marked: list[int] = []
    refused: dict[int, Leftover] = {}
    try:
        for step in steps:
            # What a name stands for shows when the one above it has gone: so the lowest goes first.
            for kind in (Kind.SWAPPED, Kind.COMMITTED, Kind.SUCCESSOR):
                path, into = root / name_of(kind, step), trash_path(root, step)
                try:
                    if not is_directory(path):
                        if kind is not Kind.SWAPPED:
                            check_place(path)
                        continue
                    if _renamed_or_marked(ops, path, into, step, undone):
                        trash.append(into)
                    else:
                        marked.append(step)
                except OSError as error:
                    refused[step] = Leftover.of(path, error)
                    break
        if durably or marked:
            ops.sync_directory(root)
    except OSError as error:
        for action in reversed(undone):
            undo(error, action)
        raise
    leftovers = [each for step in dict.fromkeys(marked) for each in _finish_deletion(ops, root, step)]
    return Retired(tuple(trash), refused, tuple(leftovers))


def sweep(ops: DiskOps, root: Path, trash: Sequence[Path], stop: StopFlag | None = None) -> Swept:
    """Delete trash, file by file, until `stop` is set.

    Raises:
        OSError: The directory could not be synced.
    """
    if trash:
        ops.sync_directory(root)  # a victim's new name must be durable before its first file goes
    leftovers: list[Leftover] = []
    for number, path in enumerate(trash):
        try:
            leftovers += _cleared(ops, path, stop)
        except Stopped:
            return Swept(number, tuple(leftovers))
    return Swept(len(trash), tuple(leftovers))


def sweep_all(ops: DiskOps, root: Path, stop: StopFlag | None = None) -> Swept:
    """Delete all trash that is there, whoever left it, as `sweep` does."""
    trash = names_in(root, Pacer()).directories[Kind.TRASH]
    return sweep(ops, root, [root / name for _, name in sorted(trash)], stop)


def discard(ops: DiskOps, path: Path) -> None:
    """Delete what `clear` does.

    Raises:
        OSError: Something in it stays; all else is deleted.
    """
    if refusals := clear(ops, path):
        raise refusals[0]


def clear(ops: DiskOps, path: Path, stop: StopFlag | None = None) -> list[OSError]:
    """Delete a directory that has no committed name, if it exists.

    Returns:
        Why something in it stays. All else is deleted.

    Raises:
        Stopped: `stop` was set.
    """
    return _clear(ops, path, mounted_below(path), stop)


def delete_in_place(ops: DiskOps, path: Path) -> list[Leftover]:
    """Delete a directory under its committed name, which means nothing any more: the manifest first, durably."""
    if not is_directory(path):
        return []
    try:
        _check_not_mounted(path, mounted_below(path))
        if os.path.lexists(path / MANIFEST_NAME):
            ops.unlink(path / MANIFEST_NAME)
            ops.sync_directory(path)
    except OSError as error:
        return [Leftover.of(path, error)]
    return _cleared(ops, path)


def check_place(path: Path) -> None:
    """Refuse what is in the place of a checkpoint's directory and is none.

    Raises:
        NotADirectoryError: It is a symbolic link, or a file.
    """
    if os.path.lexists(path) and not is_directory(path):
        raise NotADirectoryError(errno.ENOTDIR, f"{path.name}: {what_stands_at(path)}", str(path))


def undo(error: OSError, action: Callable[[], object]) -> None:
    """Move names back because of an error, which goes before one of the moving back."""
    try:
        action()
    except OSError as second:  # the first error is what matters; recovery understands what is left
        error.add_note(f"the names could not be moved back: {second}")


def trash_path(root: Path, step: int) -> Path:
    """Return a free name for what a step leaves behind."""
    return next(path for path in paths_of(root, Kind.TRASH, step) if not os.path.lexists(path))


def _renamed_or_marked(ops: DiskOps, path: Path, into: Path, step: int, undone: list[Callable[[], object]]) -> bool:
    """Rename a directory that is to go, or mark its step as deleted if that cannot be; note how to take it back."""
    try:
        ops.rename(path, into)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        mark = path.with_name(name_of(Kind.DELETED, step))
        if not is_directory(mark):  # else what was deleted before could not be removed
            ops.mkdir(mark)
            undone.append(functools.partial(ops.rmdir, mark))
        return False
    undone.append(functools.partial(ops.rename, into, path))
    return True


def _finish_deletion(ops: DiskOps, root: Path, step: int) -> list[Leftover]:
    """Delete what is left of a marked step, then the mark."""
    leftovers = [
        each for kind in (Kind.SWAPPED, Kind.COMMITTED) for each in delete_in_place(ops, root / name_of(kind, step))
    ]
    if not leftovers:
        ops.sync_directory(root)  # a mark that went first would leave the rest without one
        leftovers += _cleared(ops, root / name_of(Kind.DELETED, step))
    return leftovers


def _renamed(ops: DiskOps, path: Path, target: Path) -> list[Leftover]:
    try:
        ops.rename(path, target)
    except OSError as error:
        return [Leftover.of(path, error)]
    return []


def _cleared(ops: DiskOps, path: Path, stop: StopFlag | None = None) -> list[Leftover]:
    """Delete what `clear` does; return the directory if it stays."""
    return [Leftover.of(path, error) for error in clear(ops, path, stop)[:1]]


def _clear(ops: DiskOps, path: Path, mounted: set[Path], stop: StopFlag | None) -> list[OSError]:
    refusals: list[OSError] = []
    try:
        _check_not_mounted(path, mounted)
        check_place(path)
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
            refusals += _gone(ops.unlink, Path(entry.path))
    return refusals or _gone(ops.rmdir, path)


def _check_not_mounted(path: Path, mounted: set[Path]) -> None:
    """Refuse a mount point: what lies below it may be anybody's."""
    if path in mounted:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))


def _gone(delete: Callable[[Path], object], path: Path) -> list[OSError]:
    try:
        delete(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        return [error]
    return []
