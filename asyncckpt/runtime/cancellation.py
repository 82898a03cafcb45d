"""Wait for something to end although the waiting task is cancelled, and raise the cancellation afterwards."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def shielded() -> Iterator[None]:
    """Keep anyio from cancelling the task again and again, as long as a cancelled scope has not been left."""
    if "anyio" not in sys.modules:  # then there are no scopes
        yield
        return
    import anyio

    with anyio.CancelScope(shield=True):
        yield


class DeferredCancellation:
    """The cancellation of a task that must not end yet.

    The exception is kept without its traceback, and no longer than until it is raised: a traceback refers to the frames
    that wait, and a frame that referred back would keep the caller's state until a garbage collection.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[asyncio.CancelledError] = []

    def __bool__(self) -> bool:
        """Return whether a cancellation has arrived."""
        return bool(self._held)

    async def wait(
        self, future: asyncio.Future[Any], on_cancel: Callable[[asyncio.CancelledError], object] | None = None
    ) -> None:
        """Wait until `future` is done, and call `on_cancel` for each cancellation that arrives meanwhile."""
        while not future.done():
            try:
                await asyncio.wait((future,))
            except asyncio.CancelledError as error:
                self._held = [error.with_traceback(None)]
                if on_cancel is not None:
                    on_cancel(error)

    def add_note(self, note: str) -> None:
        """Add a note to the cancellation, if one has arrived."""
        for error in self._held:
            error.add_note(note)

    def reraise(self) -> None:
        """Raise the last cancellation that has arrived, if any."""
        if self._held:
            raise self._held.pop()
