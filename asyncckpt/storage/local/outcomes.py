"""Convert the results and errors of `disk/` to those of `CheckpointStore`."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.room import explain as explain_shortage
from asyncckpt.disk.room import free_nbytes, nbytes_of
from asyncckpt.storage.local.records import identity_of
from asyncckpt.storage.results import Committed, Trash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ADVICE: Final = ", delete() checkpoints or keep fewer of them (keep_latest_k, keep_top_k)"
"""What else to do about a lack of space."""
_REFUSALS: Final = {
    errno.EROFS: "nothing can be saved on this file system: to load from it, open the directory with read_only=True",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM),
        "this process may not write here: look at the owner and the mode; to load from it, open the directory with"
        " read_only=True",
    ),
}
"""Why nothing may be written and what to do, by errno."""


def explain(error: OSError, root: Path, needed: str | None = None) -> None:
    """Add to an error what to do if nothing may be written here, or if there is too little space for what is needed."""
    if needed is not None:
        explain_shortage(error, root, needed, _ADVICE)
    refusal = _REFUSALS.get(error.errno or 0)
    if refusal is not None and error.strerror == os.strerror(error.errno or 0):  # else its text says more already
        error.strerror = f"{error.strerror} ({refusal}, or use another directory)"
        error.args = (error.errno, error.strerror)


@contextmanager
def explaining(root: Path, needed: str | None = None) -> Iterator[None]:
    """Complete the errors that leave the block, as `explain` does."""
    try:
        yield
    except OSError as error:
        explain(error, root, needed)
        raise


def remarks_of(leftovers: Iterable[OSError]) -> tuple[str, ...]:
    """Say what cannot be removed, and why."""
    return tuple(
        f"{Path(error.filename).name} cannot be removed: {error.strerror}; the next start tries again"
        for error in leftovers
    )


def weigh(root: Path, paths: Iterable[Path]) -> tuple[Trash, ...]:
    """Measure how much space trash takes, and how much is left (0 if that is not known)."""
    return tuple(Trash(path.name, nbytes_of(path), free_nbytes(root) or 0) for path in paths)


def committed_at(path: Path, old: Path | None, leftovers: Iterable[OSError], left: Iterable[OSError] = ()) -> Committed:
    """Describe a checkpoint that has just been published; `left` is what could not be removed after it was moved in."""
    trash = () if old is None else weigh(path.parent, [old])
    return Committed(str(path), identity_of(path), trash, (*remarks_of(leftovers), *remarks_of_moved(left)))


def remarks_of_moved(leftovers: Iterable[OSError]) -> tuple[str, ...]:
    """Say what moved into a checkpoint and has kept its old name, and why."""
    return tuple(
        f"{error.filename} was moved into a checkpoint, and its old name cannot be removed: {error.strerror}; remove"
        " it, and do not write to it: it may be the file in the checkpoint"
        for error in leftovers
    )
