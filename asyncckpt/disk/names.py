"""The names in a checkpoint directory."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What a directory holds, told by its name's prefix."""

    COMMITTED = "step_"
    PENDING = "tmp_step_"
    SWAPPED = "old_step_"  # moved aside by an overwrite, until its successor is synced
    TRASH = "trash_step_"


_KINDS: Final = {kind.value: kind for kind in Kind}  # to call the class takes ten times as long

LOCK_NAME: Final = ".lock"
METRIC_NAME: Final = ".asyncckpt.json"
MANIFEST_NAME: Final = "manifest.json"
TRAINING_INFO_NAME: Final = "training_info.json"
CONFIG_NAME: Final = "config.yaml"

# A step in its one spelling; trash may carry a number, because a step can be deleted again before its trash is gone.
_NAME: Final = re.compile(r"(step_|tmp_step_|old_step_)(0|[1-9][0-9]*)|(trash_step_)(0|[1-9][0-9]*)(\.[0-9]+)?")


def name_of(kind: Kind, step: int) -> str:
    """Return the directory's name."""
    return f"{kind.value}{step}"


def parse_name(name: str) -> tuple[Kind, int] | None:
    """Return what a directory's name says, or None if it is none of ours (`step_1-hf`, `step_01`)."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return _KINDS[found[1] or found[3]], int(found[2] or found[4])
