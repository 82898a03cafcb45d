"""torch.distributed.checkpoint in one process, with the stager that its documentation recommends for async saves."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save

from benchmarks.systems.tensors import TensorSystem

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path


class TorchDcp(TensorSystem):
    """`async_save` with one `DefaultStager` for all saves: it stages in a thread, into buffers that it keeps."""

    def __init__(self, root: Path, *, staged_nbytes: int | None = None) -> None:
        super().__init__(root, staged_nbytes=staged_nbytes)
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is what is meant
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False, use_shared_memory=False, use_async_staging=True, use_non_blocking_copy=False
            )
        )
        self._upload: Future[Any] | None = None

    async def __aexit__(self, *_: object) -> None:
        """Close the stager."""
        self._stager.close()

    async def save(self, step: int, state: Any) -> None:
        """Stage."""
        response = async_save(state, checkpoint_id=self.path(step), async_stager=self._stager)
        if not isinstance(response, AsyncSaveResponse):
            message = f"async_save returned {type(response)}"
            raise TypeError(message)
        self._upload = response.upload_completion
        await asyncio.wrap_future(response.staging_completion)

    async def wait_durable(self, step: int) -> None:
        """Wait for the upload, and sync the directories."""
        if self._upload is not None:
            await asyncio.wrap_future(self._upload)
        await self._sync_all(step)

    async def restore(self, step: int, state: Any) -> None:
        """Load into the tensors."""
        await asyncio.to_thread(load, state, checkpoint_id=self.path(step))
