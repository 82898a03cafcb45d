"""The interface of a checkpoint library to the benchmark.

1. Every system gets the same numpy state and is used as its own documentation recommends.
2. `save` returns when the caller may change the state again; `wait_durable` when every byte would survive a power cut.
3. If a library returns from a save before everything is synced, the benchmark adds the missing syncs to its durable
   time: of every file and directory of the checkpoint, and of the directory that holds it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from benchmarks.machine import remove, sync_tree

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.states import State


class System(ABC):
    """One library, in one directory."""

    restores_in_place: ClassVar[bool] = False
    """Whether it can load into arrays that exist."""

    def __init__(self, root: Path, *, staged_nbytes: int | None = None) -> None:
        self.root = root
        self.staged_nbytes = staged_nbytes
        """Memory that captured states may take, where a system has such an option."""

    async def __aenter__(self) -> Self:
        """Open it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        return

    def adopt(self, state: State) -> Any:
        """Return the state in the system's own types, around the same memory."""
        return state

    def path(self, step: int) -> Path:
        """Return where a step's files are: a directory or one file."""
        return self.root / f"step_{step}"

    @abstractmethod
    async def save(self, step: int, state: Any) -> None:
        """Save; return when the caller may change the state."""

    @abstractmethod
    async def wait_durable(self, step: int) -> None:
        """Wait until the save is durable."""

    @abstractmethod
    async def load(self, step: int) -> Any:
        """Load into fresh memory."""

    async def restore(self, step: int, state: Any) -> None:
        """Load into `state`, in place."""
        raise NotImplementedError

    async def discard(self, step: int) -> None:
        """Delete a checkpoint."""
        await asyncio.to_thread(remove, self.path(step))

    async def _sync_all(self, step: int) -> None:
        await asyncio.to_thread(sync_tree, self.path(step), root=self.root)


class FileWriter(System):
    """A format whose writer is one blocking call.

    On a loop it is used in the best way available to its user: the state is copied in a thread, which the caller waits
    for, and the copy is written in another thread.
    """

    def __init__(self, root: Path, *, staged_nbytes: int | None = None) -> None:
        super().__init__(root, staged_nbytes=staged_nbytes)
        self._writing: asyncio.Task[None] | None = None

    async def save(self, step: int, state: Any) -> None:
        """Copy the state and start the writing."""
        copied = await asyncio.to_thread(self._copy, state)
        self._writing = asyncio.create_task(asyncio.to_thread(self._write, self.path(step), copied))

    async def wait_durable(self, step: int) -> None:
        """Wait for the writing, and sync."""
        if self._writing is not None:
            await self._writing
        await self._sync_all(step)

    async def load(self, step: int) -> Any:
        """Read in a thread."""
        return await asyncio.to_thread(self._read, self.path(step))

    def _copy(self, state: Any) -> Any:
        return {name: _copy_leaf(leaf) for name, leaf in state.items()}

    @abstractmethod
    def _write(self, path: Path, state: Any) -> None: ...

    @abstractmethod
    def _read(self, path: Path) -> Any: ...


def _copy_leaf(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    if isinstance(leaf, list):
        return [_copy_leaf(each) for each in leaf] if leaf and isinstance(leaf[0], list) else list(leaf)
    return leaf
