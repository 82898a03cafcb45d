"""torch_checkpointing, in the configuration that its troubleshooting page gives for hosts without an accelerator."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import torch
from torch_checkpointing import CheckpointManager
from torch_checkpointing.config import AsyncCheckpointSaverConfig
from torch_checkpointing.staging import CheckpointStagerConfig
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

from benchmarks.systems.tensors import TensorSystem

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path


class TorchCheckpointing(TensorSystem):
    """Its `CheckpointManager`: staged into shared memory in a thread, written by a process of its own."""

    def __init__(self, root: Path, *, staged_nbytes: int | None = None) -> None:
        super().__init__(root, staged_nbytes=staged_nbytes)
        has_accelerator = torch.accelerator.is_available()
        staging = CheckpointStagerConfig(use_pinned_memory=has_accelerator, use_non_blocking_copy=has_accelerator)
        self._manager = CheckpointManager.Config(
            save=AsyncCheckpointSaverConfig(staging_config=staging),
            storage_config=LocalFileSystemStorageConfig(use_direct_io=False),  # its direct writes fail on ext4: EINVAL
        ).build()
        self._writing: Future[Any] | None = None

    async def __aexit__(self, *_: object) -> None:
        """Close the manager and its process."""
        await asyncio.to_thread(self._manager.close)

    async def save(self, step: int, state: Any) -> None:
        """Stage."""
        self._writing = self._manager.save(str(self.path(step)), {"state": state})
        await asyncio.to_thread(self._wait_staged)

    def _wait_staged(self) -> None:
        with self._manager.lock():
            pass

    async def wait_durable(self, step: int) -> None:
        """Wait for the write, and sync."""
        if self._writing is not None:
            await asyncio.wrap_future(self._writing)
        await self._sync_all(step)

    async def restore(self, step: int, state: Any) -> None:
        """Load into the tensors."""
        await asyncio.to_thread(self._manager.load, str(self.path(step)), into={"state": state})
