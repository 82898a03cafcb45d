"""Moonclip, as its README recommends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import torch
from moonclip import CheckpointManager

from benchmarks.machine import sync_tree
from benchmarks.systems.base import System

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.states import State


class _Model(torch.nn.Module):
    """A model whose state dict is the state."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, array in state.items():
            self.register_buffer(name, torch.from_numpy(array))


class Moonclip(System):
    """Its `CheckpointManager` with the defaults: deltas, zstd, saves in the background."""

    def __init__(self, root: Path, *, staged_nbytes: int | None = None) -> None:
        super().__init__(root, staged_nbytes=staged_nbytes)
        self._manager = CheckpointManager(str(root))
        self._snapshots: dict[int, str] = {}

    def adopt(self, state: State) -> _Model:
        """Make a model of the arrays."""
        return _Model(state)

    def path(self, step: int) -> Path:
        """Return the directory of everything: a delta needs what came before it."""
        del step
        return self.root

    def _sync_snapshot(self, step: int) -> None:
        sync_tree(self.root / "snapshots" / self._snapshots[step], root=self.root / "snapshots")
        sync_tree(self.root / "manifest.json", root=self.root)

    async def save(self, step: int, state: Any) -> None:
        """Copy; the rest happens in Moonclip's thread."""
        self._snapshots[step] = self._manager.save(step=step, model=state)

    async def wait_durable(self, step: int) -> None:
        """Flush, and sync what it does not."""
        await asyncio.to_thread(self._manager.flush)
        await asyncio.to_thread(self._sync_snapshot, step)

    async def load(self, step: int) -> Any:
        """Load the snapshot."""
        loaded = await asyncio.to_thread(self._manager.load, self._snapshots[step])
        return loaded["model"]

    async def discard(self, step: int) -> None:
        """Leave it to Moonclip's own retention."""
