"""What `CheckpointManager.checkpoint` yields: the path of a pending directory that can also save a state in it."""

from __future__ import annotations

import asyncio
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING

from asyncckpt.arrays.adapters import current_moment
from asyncckpt.errors import LeafError, ManagerUsageError

if TYPE_CHECKING:
    import os
    from typing import Self

    from asyncckpt.saving.pending_directories import PendingDirectories
    from asyncckpt.storage.results import StateFile


class PendingCheckpoint(PosixPath):
    """The directory of a checkpoint that the program fills, as a `pathlib.Path`, until it is committed.

    It is what `CheckpointManager.checkpoint` yields. Paths that are made of it are plain paths to files in it.
    """

    _pending: PendingDirectories | None = None
    _step = 0
    _state: StateFile | None = None

    @classmethod
    def of(cls, path: Path, step: int, pending: PendingDirectories) -> Self:
        """Return the path of a pending directory of an open manager."""
        made = cls(path)
        made._pending = pending
        made._step = step
        made._lock = asyncio.Lock()
        return made

    _lock: asyncio.Lock

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:  # type: ignore[override] # what lies in it is no such
        """Return the path of a file in it."""
        return Path(self) / name

    def joinpath(self, *names: str | os.PathLike[str]) -> Path:  # type: ignore[override] # as above
        """Return the path of a file in it."""
        return Path(self, *names)

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:
        """Return a path that is made of this one, for `pathlib` since Python 3.12."""
        return Path(*segments)

    async def save(self, state: object, *, frozen: bool = False) -> None:
        """Write a state into the directory, where `CheckpointManager.load` finds it when it is committed.

        It is written at once, block by block, without a copy of the whole: no task may change the state until this
        returns. If this raises, nothing is left of it, and it may be called again. Leaving the block waits for it.

        Args:
            state: As for `CheckpointManager.save`.
            frozen: A promise not to change the arrays meanwhile; their bytes are not copied then.

        Raises:
            ManagerUsageError: The directory has a state already; or it is not being filled any more.
            UnsupportedLeafError: A leaf cannot be saved.
            StateChangedError: A container changed meanwhile.
            FileExistsError: The program has written a file of the state file's name.
            ManagerClosedError: The manager is closed.
            OSError: The disk failed.
        """
        moment = current_moment()
        with LeafError.naming(self._step):
            pending = self._check_open()
            async with self._lock:
                self._check_open()
                if self._state is not None:
                    message = f"step {self._step} has a state already: a checkpoint holds one; put both into one state"
                    raise ManagerUsageError(message)
                self._state = await pending.write_state(Path(self), state, moment, is_frozen=frozen)

    async def close(self) -> StateFile | None:
        """Take no more, when what is being written has been; return the state file, if one was written."""
        self._pending = None
        async with self._lock:
            return self._state

    def _check_open(self) -> PendingDirectories:
        if self._pending is None:
            message = f"{self} is not being filled: save() is for what checkpoint() yields, inside its block"
            raise ManagerUsageError(message)
        return self._pending
