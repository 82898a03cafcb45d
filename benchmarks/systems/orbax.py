"""Orbax, as its guide to asynchronous checkpointing recommends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orbax.checkpoint as ocp

from benchmarks.systems.base import System

if TYPE_CHECKING:
    from pathlib import Path


class Orbax(System):
    """`AsyncCheckpointer` with the standard handler."""

    def __init__(self, root: Path, *, staged_nbytes: int | None = None) -> None:
        super().__init__(root, staged_nbytes=staged_nbytes)
        self._checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())

    async def __aexit__(self, *_: object) -> None:
        """Close the checkpointer."""
        self._checkpointer.close()

    async def save(self, step: int, state: Any) -> None:
        """Copy the state; Orbax's threads write it."""
        self._checkpointer.save(self.path(step), args=ocp.args.StandardSave(state))

    async def wait_durable(self, step: int) -> None:
        """Wait for Orbax, and sync what it does not."""
        await asyncio.to_thread(self._checkpointer.wait_until_finished)
        await self._sync_all(step)

    async def load(self, step: int) -> Any:
        """Restore what was saved, as numpy arrays."""
        return await asyncio.to_thread(self._checkpointer.restore, self.path(step), args=ocp.args.StandardRestore())
