"""What operations on a checkpoint directory have come to, in the words of `storage.base`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asyncckpt.disk.diagnosis import explain_refusal
from asyncckpt.disk.listing import nbytes_of
from asyncckpt.disk.room import explain as explain_shortage
from asyncckpt.disk.room import free_nbytes
from asyncckpt.storage.local.records import identity_of
from asyncckpt.storage.results import Committed, Trash

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from asyncckpt.disk.removal import Leftover

_ADVICE: Final = ", delete() checkpoints or keep fewer of them (keep_latest_k, keep_top_k)"
"""What to do besides where there is no room."""


def explain(error: OSError, root: Path, needed: str | None = None) -> None:
    """Let an error say what to do if nothing may be written here, or if there is no room for what is needed."""
    if needed is not None:
        explain_shortage(error, root, needed, _ADVICE)
    explain_refusal(error)


def remarks_of(leftovers: Iterable[Leftover]) -> tuple[str, ...]:
    """Say what cannot be removed, and why."""
    return tuple(map(str, leftovers))


def weigh(root: Path, paths: Iterable[Path]) -> tuple[Trash, ...]:
    """Look how much room trash takes, and how much is left; none where that is not known."""
    return tuple(Trash(path.name, nbytes_of(path), free_nbytes(root) or 0) for path in paths)


def committed_at(path: Path, old: Path | None, leftovers: Iterable[Leftover]) -> Committed:
    """Describe a checkpoint that has just been published."""
    trash = () if old is None else weigh(path.parent, [old])
    return Committed(str(path), identity_of(path), trash, remarks_of(leftovers))
