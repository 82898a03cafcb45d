"""The names in a checkpoint directory."""

from __future__ import annotations

import itertools
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
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

LOCK_NAME: Final = ".lock"
MANIFEST_NAME: Final = "manifest.json"

# A step, without leading zeros. A number follows where the plain name belongs to something that cannot be deleted, or
# that has not been deleted yet.
_NAME: Final = re.compile(
    r"(step_|old_step_|new_step_|deleted_step_)(0|[1-9][0-9]*)|(tmp_step_|trash_step_)(0|[1-9][0-9]*)(\.[1-9][0-9]*)?"
)


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
