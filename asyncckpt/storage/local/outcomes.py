"""Convert the results and errors of `disk/` to those of `CheckpointStore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.diagnosis import explain_refusal
from asyncckpt.disk.room import explain as explain_shortage
from asyncckpt.disk.room import free_nbytes, nbytes_of
from asyncckpt.storage.local.records import identity_of
from asyncckpt.storage.results import Committed, Trash

if TYPE_CHECKING:
    from collections.abc import Iterable

_ADVICE: Final = ", delete() checkpoints or keep fewer of them (keep_latest_k, keep_top_k)"
"""What else to do about a lack of space."""


def explain(error: OSError, root: Path, needed: str | None = None) -> None:
    """Add to an error what to do if nothing may be written here, or if there is too little space for what is needed."""
    if needed is not None:
        explain_shortage(error, root, needed, _ADVICE)
    explain_refusal(error)


def remarks_of(leftovers: Iterable[OSError]) -> tuple[str, ...]:
    """Say what cannot be removed, and why."""
    return tuple(
        f"{Path(error.filename).name} cannot be removed: {error.strerror}; the next start tries again"
        for error in leftovers
    )


def weigh(root: Path, paths: Iterable[Path]) -> tuple[Trash, ...]:
    """Measure how much space trash takes, and how much is left (0 if that is not known)."""
    return tuple(Trash(path.name, nbytes_of(path), free_nbytes(root) or 0) for path in paths)


def committed_at(path: Path, old: Path | None, leftovers: Iterable[OSError]) -> Committed:
    """Describe a checkpoint that has just been published."""
    trash = () if old is None else weigh(path.parent, [old])
    return Committed(str(path), identity_of(path), trash, remarks_of(leftovers))
