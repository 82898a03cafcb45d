"""Describe what there is instead of what was expected, for errors and warnings.

1. It goes by names and by unverified manifests, and raises nothing.
2. It looks at no more than `_LOOKED_AT` entries of a directory, and names no more than a few.
"""

from __future__ import annotations

import json
import os
from itertools import islice
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.names import MANIFEST_NAME, Kind, name_of, parse_name, scan
from asyncckpt.disk.open_below import open_directory, read_unverified
from asyncckpt.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOOKED_AT: Final = 1000
_NAMED: Final = 3
_STEPS_NAMED: Final = 10


def step_of(path: Path) -> int | None:
    """Return the step of the checkpoint in a directory of any name; None if there is none."""
    try:
        directory = open_directory(os.path.realpath(path))
        try:
            text = read_unverified(directory, MANIFEST_NAME)
        finally:
            os.close(directory)
    except OSError:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # damaged, if it is ours
        parsed = parse_name(path.name)
        return None if parsed is None else parsed[1]
    is_ours = isinstance(content, dict) and {"format_version", "step", "files"} <= content.keys()
    return content["step"] if is_ours and type(content["step"]) is int else None


def describe_checkpoint(path: Path) -> str | None:
    """Say that a directory is a checkpoint, and how to load it; None if it is not."""
    step = step_of(path)
    if step is None:
        return None
    if path.name == name_of(Kind.COMMITTED, step):
        way = f"use CheckpointManager({str(path.parent)!r}), and load({step}) there"
    else:
        way = _by_path(path)
    return f"{path} is the checkpoint of step {step}, not a directory of checkpoints: {way}"


def describe_missing(root: Path) -> str:
    """Say that a directory does not exist, and which similar ones do."""
    above, name = root.parent, root.name
    while not above.exists():
        above, name = above.parent, above.name
    if close := nearest(name, _directories(above), _NAMED):
        return f"the directory does not exist (did you mean {' or '.join(str(above / each) for each in close)}?)"
    return f"the directory does not exist (the nearest directory that does is {above})"


def describe_absence(root: Path, step: int | None = None) -> str:
    """Say what there is in a directory instead of this checkpoint, or of any, after a semicolon.

    The text is empty if that is nothing of note.
    """
    try:
        return "".join(f"; {finding}" for finding in _findings(root, step))
    except OSError:
        return ""


def _findings(root: Path, step: int | None) -> Iterator[str]:
    if not root.exists():
        yield describe_missing(root)
        return
    steps = list(scan(root).committed)
    if steps:
        shown = ", ".join(map(str, steps[-_STEPS_NAMED:]))
        yield f"committed {'is' if len(steps) == 1 else 'are'} {'... ' * (len(steps) > _STEPS_NAMED)}{shown}"
    if (itself := describe_checkpoint(root)) is not None:
        yield itself
    others = ((name, found) for name in _directories(root) if (found := _uncounted(root / name)) is not None)
    for name, found in islice((each for each in others if step in (None, each[1])), _NAMED):
        path = root / name
        way = _by_path(path)
        if path.is_symlink():
            yield f"{name} is a symbolic link to a checkpoint, of step {found}, which is not followed here: {way}"
        else:
            yield f"{name} is a checkpoint of another name: rename it to {name_of(Kind.COMMITTED, found)}, or {way}"
    if not steps:
        below = (path for name in _directories(root) if scan(path := root / name).committed)
        for path in islice(below, _NAMED):
            yield f"there are checkpoints in {path}"


def _by_path(path: Path) -> str:
    return f"load it by its path, load(Path({str(path)!r}))"


def _uncounted(path: Path) -> int | None:
    """Return the step of a checkpoint that is not listed, because of its name or because it is a symbolic link."""
    return step_of(path) if parse_name(path.name) is None or path.is_symlink() else None


def _directories(path: Path) -> list[str]:
    try:
        with os.scandir(path) as found:
            return sorted(entry.name for entry in islice(found, _LOOKED_AT) if entry.is_dir())
    except OSError:
        return []
