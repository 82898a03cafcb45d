"""asyncckpt, with both of its formats."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from asyncckpt import CheckpointManager
from benchmarks.systems.base import System

if TYPE_CHECKING:
    from pathlib import Path

    from asyncckpt import SaveHandle


class Asyncckpt(System):
    """Shared by the two formats."""

    restores_in_place = True
    format: ClassVar[Literal["msgpack", "hdf5"]]

    def __init__(self, root: Path, *, staged_nbytes: int | None = None) -> None:
        super().__init__(root, staged_nbytes=staged_nbytes)
        budget = {} if staged_nbytes is None else {"max_staged_nbytes": staged_nbytes}
        self.manager = CheckpointManager({"checkpoint_dir": root, "format": self.format, **budget})
        self._handles: dict[int, SaveHandle] = {}

    async def __aenter__(self) -> Self:
        """Open the manager."""
        await self.manager.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the manager."""
        await self.manager.__aexit__(None, None, None)

    async def save(self, step: int, state: Any) -> None:
        """Capture."""
        self._handles[step] = await self.manager.save(step, state)

    async def wait_durable(self, step: int) -> None:
        """Wait for the commit."""
        await self._handles.pop(step)

    async def load(self, step: int) -> Any:
        """Load and verify."""
        loaded = await self.manager.load(step)
        return None if loaded is None else loaded.state

    async def load_lazily(self, step: int) -> Any:
        """Map the arrays."""
        loaded = await self.manager.load(step, lazy=True)
        return None if loaded is None else loaded.state

    async def restore(self, step: int, state: Any) -> None:
        """Fill the arrays."""
        await self.manager.restore(step, into=state)

    async def discard(self, step: int) -> None:
        """Delete through the manager, and wait until it has also removed the files, which it does in the background."""
        await self.manager.delete(step)
        while any(self.root.glob("trash_*")):  # noqa: ASYNC110 - the manager has no event for it
            await asyncio.sleep(0.01)


class AsyncckptMsgpack(Asyncckpt):
    """`format="msgpack"`, the default."""

    format = "msgpack"


class AsyncckptHdf5(Asyncckpt):
    """`format="hdf5"`."""

    format = "hdf5"
