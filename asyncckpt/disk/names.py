"""The names in a checkpoint directory: how they are formed, and which there are; `publish` says what they mean."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.runtime.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class Kind(StrEnum):
    """What a directory holds, by the prefix of its name."""

    COMMITTED = "step_"
    PENDING = "tmp_step_"
    SWAPPED = "old_step_"  # the old version of a step, until an overwrite by renaming has been synced
    SUCCESSOR = "new_step_"  # the version of a step that counts, where the old one cannot be renamed
    TRASH = "trash_step_"
    DELETED = "deleted_step_"  # an empty mark: the step is deleted, but its directory cannot be renamed


_KINDS: Final = {kind.value: kind for kind in Kind}  # faster to look up than by calling the class
_READ: Final = (Kind.SUCCESSOR, Kind.COMMITTED, Kind.SWAPPED)
"""The names under which readers find a step: the first one that exists counts."""

LOCK_NAME: Final = ".lock"
MANIFEST_NAME: Final = "manifest.json"

# A step, without leading zeros. A number follows where the plain name belongs to something that cannot be deleted, or
# that has not been deleted yet.
_NAME: Final = re.compile(
    r"(step_|old_step_|new_step_|deleted_step_)(0|[1-9][0-9]*)|(tmp_step_|trash_step_)(0|[1-9][0-9]*)(\.[1-9][0-9]*)?"
)


class Scan(NamedTuple):
    """The names in a checkpoint directory that are ours."""

    directories: Mapping[Kind, list[tuple[int, str]]]
    """The steps and names of each kind, in no order."""
    committed: dict[int, str]
    """The names of the committed checkpoints, by ascending step: `step_N`, a lone `old_step_N`, or `new_step_N`."""
    misnamed: tuple[str, ...]
    """What has the name of a checkpoint and is not a directory: symbolic links and files."""

    @property
    def has_leftovers(self) -> bool:
        """Whether there is something for `recover` to do."""
        return any(names for kind, names in self.directories.items() if kind is not Kind.COMMITTED)


def name_of(kind: Kind, step: int) -> str:
    """Return the directory's name."""
    return kind + str(step)  # the fastest way to join an enum's value


def paths_of(root: Path, kind: Kind, step: int) -> Iterator[Path]:
    """Yield the paths that a pending directory, or trash, of a step may have, the plain one first."""
    name = name_of(kind, step)
    yield root / name
    yield from (root / f"{name}.{number}" for number in itertools.count(1))


def parse_name(name: str) -> tuple[Kind, int] | None:
    """Return what a directory's name says, or None if it is not ours (`step_1-hf`, `step_01`)."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return _KINDS[found[1] or found[3]], int(found[2] or found[4])


def scan(root: Path) -> Scan:
    """List a checkpoint directory; one that does not exist is empty."""
    pacer = Pacer()
    directories: dict[Kind, list[tuple[int, str]]] = {kind: [] for kind in Kind}
    misnamed: list[str] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(root) as found:
        for entries in pacer.batches(found):
            for entry in entries:
                parsed = parse_name(entry.name)
                if parsed is None:
                    continue
                kind, step = parsed
                if entry.is_dir(follow_symlinks=False):
                    directories[kind].append((step, entry.name))
                elif kind in _READ:
                    misnamed.append(entry.name)
    names = dict(directories[Kind.SWAPPED]) | dict(directories[Kind.COMMITTED])
    for step, _ in directories[Kind.DELETED]:
        names.pop(step, None)
    names |= dict(directories[Kind.SUCCESSOR])
    committed: dict[int, str] = {}
    for steps in pacer.batches(sorted(names)):
        committed.update((step, names[step]) for step in steps)
    return Scan(directories, committed, tuple(sorted(misnamed)))


def locate(root: Path, step: int) -> Path | None:
    """Return the directory of a committed checkpoint, or None."""
    for _ in range(2):  # another process may overwrite the step between two calls of lstat
        kind = committed_kind(kinds_of(root, step))
        if kind is not None:
            return root / name_of(kind, step)
    return None


def kinds_of(root: Path, step: int) -> dict[Kind, bool]:
    """Return which names of a step that matter to readers exist, and whether each is a directory."""
    found = {}
    for kind in (*_READ, Kind.DELETED):
        try:
            found[kind] = stat.S_ISDIR(os.lstat(f"{root}/{name_of(kind, step)}").st_mode)
        except FileNotFoundError:
            continue
    return found


def committed_kind(found: Mapping[Kind, bool]) -> Kind | None:
    """Choose the name under which readers find a step; None if it is not committed."""
    kinds = _READ[:1] if found.get(Kind.DELETED) else _READ
    return next((kind for kind in kinds if found.get(kind)), None)


def is_directory(path: Path) -> bool:
    """Whether a path is a directory, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def describe_misnamed(path: Path) -> str:
    """Say what something is that has the name of a checkpoint's directory, and what to do about it."""
    what = "a symbolic link, which is not followed" if path.is_symlink() else "not a directory"
    return f"it is {what}, and is left as it is: remove it or give it another name"
