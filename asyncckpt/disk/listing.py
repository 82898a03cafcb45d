"""List a checkpoint directory by names alone; `publish` says what the names mean."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.disk.names import Kind, name_of, parse_name
from asyncckpt.runtime.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_READ: Final = (Kind.SUCCESSOR, Kind.COMMITTED, Kind.SWAPPED)
"""The names under which readers find a step: the first one that exists counts."""
_STAT_BLOCK_NBYTES: Final = 512  # the unit of st_blocks


class Scan(NamedTuple):
    """The result of listing a checkpoint directory."""

    committed: dict[int, str]
    """The names of the committed checkpoints, by ascending step: `step_N`, a lone `old_step_N`, or `new_step_N`."""
    has_leftovers: bool
    """Whether there is something for `recover` to do."""
    misnamed: tuple[str, ...] = ()
    """What has the name of a checkpoint and is not a directory: symbolic links and files."""


class Names(NamedTuple):
    """The names in a checkpoint directory that are ours."""

    directories: dict[Kind, list[tuple[int, str]]]
    """The steps and names of each kind, in no order."""
    misnamed: list[str]


def scan(root: Path) -> Scan:
    """List a checkpoint directory; one that does not exist is empty."""
    pacer = Pacer()
    found = names_in(root, pacer)
    directories = found.directories
    has_leftovers = any(names for kind, names in directories.items() if kind is not Kind.COMMITTED)
    names = dict(directories[Kind.SWAPPED]) | dict(directories[Kind.COMMITTED])
    for step, _ in directories[Kind.DELETED]:
        names.pop(step, None)
    names |= dict(directories[Kind.SUCCESSOR])
    committed: dict[int, str] = {}
    for steps in pacer.batches(sorted(names)):
        committed.update((step, names[step]) for step in steps)
    return Scan(committed, has_leftovers, tuple(sorted(found.misnamed)))


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


def names_in(root: Path, pacer: Pacer) -> Names:
    """Return the names in a checkpoint directory; none if it does not exist."""
    names = Names({kind: [] for kind in Kind}, [])
    try:
        with os.scandir(root) as found:
            for entries in pacer.batches(found):
                for entry in entries:
                    parsed = parse_name(entry.name)
                    if parsed is None:
                        continue
                    kind, step = parsed
                    if entry.is_dir(follow_symlinks=False):
                        names.directories[kind].append((step, entry.name))
                    elif kind in _READ:
                        names.misnamed.append(entry.name)
    except FileNotFoundError:
        pass
    return names


def nbytes_of(path: Path) -> int:
    """Return how much room the files below a directory take on the disk, in bytes."""
    return sum(
        os.lstat(f"{folder}/{name}").st_blocks * _STAT_BLOCK_NBYTES
        for folder, _, names in os.walk(path)
        for name in names
    )
