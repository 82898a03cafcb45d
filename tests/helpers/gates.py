"""Gates: what holds a worker thread at a chosen point, so that tests need no sleeps."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING, Any, Self

from asyncckpt import QueueFullError, SaveFailedError, StepExistsError
from asyncckpt.runtime.buffers import BufferPool

if TYPE_CHECKING:
    import weakref
    from types import TracebackType

    from asyncckpt import CheckpointManager
    from asyncckpt.testing import FaultyDisk

_PATIENCE = 60.0  # seconds until a test that forgot its gate fails instead of hanging


class Gate:
    """A point that threads do not pass until it is opened; leaving its block opens it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reached = asyncio.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        """Stop here. Called by a worker thread."""
        self._loop.call_soon_threadsafe(self._reached.set)
        assert self._opened.wait(_PATIENCE), "nobody opened the gate"

    async def reached(self) -> None:
        """Wait until a thread stands here."""
        await asyncio.wait_for(self._reached.wait(), _PATIENCE)

    def open(self) -> None:
        """Let all pass, now and later."""
        self._opened.set()

    def __enter__(self) -> Self:
        """Return the gate."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Open it."""
        self.open()


def hold(
    disk: FaultyDisk, operation: str = "mkdir", path_part: str = "tmp_step_", *, after: int = 0, lasting: bool = False
) -> Gate:
    """Hold the next such operation of a disk, or all if `lasting`; the default is a save that begins to write."""
    gate = Gate()
    disk.fail(operation, gate, path_part=path_part, after=after, lasting=lasting)
    return gate


class HeldPool(BufferPool):
    """A pool whose buffers are handed out only when a gate is open: it holds a copy that is about to begin."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: Gate | None = None
        self.taken_nbytes = 0

    def take(self, nbytes: int) -> list[Any]:
        """Hand out buffers."""
        if self.gate is not None:
            self.gate()
        buffers = super().take(nbytes)
        self.taken_nbytes += sum(len(each) for each in buffers)
        return buffers


async def gone(reference: weakref.ref[Any]) -> None:
    """Wait until an object is gone: a thread whose job is over may hold it for a moment still."""
    async with asyncio.timeout(_PATIENCE):
        while reference() is not None:
            gc.collect()
            await asyncio.sleep(0.001)


async def poke(manager: CheckpointManager) -> list[Exception]:
    """Ask for unreceived failures at every turn of the loop, until cancelled; return what was told."""
    told: list[Exception] = []
    try:
        while True:
            try:
                manager.save_nowait(0, {}, overwrite=False)
            except (QueueFullError, StepExistsError):
                pass
            except (SaveFailedError, ExceptionGroup) as error:
                told.append(error)
            await asyncio.sleep(0)
    except asyncio.CancelledError:
        return told


async def turns(count: int) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)
