"""What there is in a checkpoint directory, by its names alone; `publish` says what they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.disk.names import Kind, name_of, parse_name
from asyncckpt.runtime.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Iterable

_STAT_BLOCK_NBYTES: Final = 512  # the unit of st_blocks


class Listing(NamedTuple):
    """What there is in a checkpoint directory."""

    committed: dict[int, str]
    """The names of the committed checkpoints, by ascending step: `step_N`, or a lone `old_step_N`."""
    has_leftovers: bool
    """Whether there is something for `recover` to do."""


def scan(root: Path) -> Listing:
    """List a checkpoint directory; one that does not exist is empty."""
    pacer = Pacer()
    found = names_in(root, pacer)
    has_leftovers = any(names for kind, names in found.items() if kind is not Kind.COMMITTED)
    names = dict(found[Kind.SWAPPED]) | dict(found[Kind.COMMITTED])
    committed: dict[int, str] = {}
    for steps in pacer.batches(sorted(names)):
        committed.update((step, names[step]) for step in steps)
    return Listing(committed, has_leftovers)


def locate(root: Path, step: int) -> Path | None:
    """Return the directory of a committed checkpoint, or None."""
    # The last look is for an overwrite that went on between the first two.
    for kind in (Kind.COMMITTED, Kind.SWAPPED, Kind.COMMITTED):
        path = root / name_of(kind, step)
        if path.is_dir() and not path.is_symlink():  # as `scan`
            return path
    return None


def missing(root: Path, steps: Iterable[int]) -> list[int]:
    """Return those of the steps that are not committed."""
    return [step for step in steps if locate(root, step) is None]


def names_in(root: Path, pacer: Pacer) -> dict[Kind, list[tuple[int, str]]]:
    """Return the steps and names of each kind in a checkpoint directory, in no order; none if it does not exist."""
    names: dict[Kind, list[tuple[int, str]]] = {kind: [] for kind in Kind}
    try:
        with os.scandir(root) as found:
            for entries in pacer.batches(found):
                for entry in entries:
                    place = parse_name(entry.name)
                    if place is not None and entry.is_dir(follow_symlinks=False):
                        kind, step = place
                        names[kind].append((step, entry.name))
    except FileNotFoundError:
        pass
    return names


def nbytes_of(path: Path) -> int:
    """Return what the files below a directory take on the disk, in bytes."""
    return sum(
        os.lstat(Path(folder, name)).st_blocks * _STAT_BLOCK_NBYTES
        for folder, _, names in os.walk(path)
        for name in names
    )
