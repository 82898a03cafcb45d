"""What a manager has to do: saves and other operations, in the order of the calls.

1. The writer (`writer.py`) takes them from the queue, one after the other.
2. Captured states hold at most `max_staged_nbytes` of memory; a larger one may be queued while no other is held.
3. Each queued save ends once, by `SaveQueue.end`: its memory no longer counts, and its step is free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from asyncckpt.errors import CheckpointError, ManagerClosedError
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.saving.environment import warn_in_background
from asyncckpt.saving.files import check_caller
from asyncckpt.saving.tracking import SaveState, SaveTracker, UnreceivedFailures

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from asyncckpt.saving.environment import Environment
    from asyncckpt.saving.files import CallersFile
    from asyncckpt.state.capture import Capture
    from asyncckpt.storage.results import CheckpointRecord

MAX_WAITING_SAVES: Final = 64


@dataclass(slots=True, kw_only=True, eq=False)
class QueuedSave:
    """A save in the queue."""

    tracker: SaveTracker
    capture: Capture
    documents: Mapping[str, bytes]
    files: tuple[CallersFile, ...] = ()
    streams: bool = False
    """Whether the state is copied only while it is written, because the budget does not hold it."""
    captured: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a streaming save has copied its last block, and when it has ended."""
    stop: StopFlag = field(default_factory=StopFlag)


@dataclass(slots=True, kw_only=True, eq=False)
class Operation:
    """Anything else that keeps its place in the queue."""

    action: Callable[[], Awaitable[Any]]
    done: asyncio.Future[Any]
    """The result, for the caller; cancelled when the caller is."""


class SaveQueue:
    """The queue, and the budget of its saves. Used on the loop's thread only.

    Attributes:
        staged_nbytes: Memory that captured states hold, the one that is being written included, in bytes.
        is_closing: Whether the queue takes no more.
        failures: The saves that have failed, until a caller has received the error.
    """

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._items: deque[QueuedSave | Operation] = deque()
        self._changed = asyncio.Event()  # wakes the writer
        self._room = asyncio.Event()  # wakes a save that waits for room
        self._is_closed = False
        self.staged_nbytes = 0
        self.is_closing = False
        self.failures = UnreceivedFailures()
        env.deadline.on_ending = self.close

    # --- for the manager ----------------------------------------------------------------------------------------------

    @property
    def waiting_saves(self) -> int:
        """The number of saves in the queue, without the one that is being written."""
        return sum(isinstance(item, QueuedSave) for item in self._items)

    def has_room(self, nbytes: int) -> bool:
        """Whether a save that holds so many bytes may be queued now."""
        if self.waiting_saves >= MAX_WAITING_SAVES:
            return False
        return self.staged_nbytes == 0 or self.staged_nbytes + nbytes <= self._env.settings.max_staged_nbytes

    async def wait_for_room(self, nbytes: int) -> None:
        """Wait until `has_room`.

        Raises:
            ManagerClosedError: The manager began to close meanwhile.
        """
        while not self.has_room(nbytes):
            self.check_open()
            self._room.clear()
            await self._room.wait()
        self.check_open()

    def check_open(self) -> None:
        """Raise ManagerClosedError once the manager is closing."""
        if self.is_closing:
            state = "closed: make a new one" if self._is_closed else "closing: it takes no more work"
            raise ManagerClosedError(f"the manager of {self._env.root} is {state}")

    def add(self, item: QueuedSave) -> None:
        """Queue a save, whose step is reserved.

        Raises:
            ManagerClosedError: The manager began to close meanwhile. The captured state is given back.
        """
        if self.is_closing:
            item.capture.give_back()
            self.check_open()
        item.tracker.captured_nbytes = item.capture.nbytes
        item.tracker.on_cancel = lambda: self._drop(item, SaveState.CANCELLED)
        self.staged_nbytes += item.capture.nbytes
        self._env.schedule.accept(item.tracker)
        self._append(item)

    def replace_waiting(self) -> None:
        """Drop the saves that are not being written yet, for a newer one."""
        for item in [each for each in self._items if isinstance(each, QueuedSave) and not each.streams]:
            self._drop(item, SaveState.REPLACED)

    def withdraw(self, item: QueuedSave) -> None:
        """Withdraw a streaming save whose caller was cancelled; if it is being written, it stops within a block."""
        if item.tracker.state is SaveState.QUEUED:
            self._drop(item, SaveState.CANCELLED)
        else:
            item.tracker.is_received = True  # the caller knows
            item.stop.set()

    async def perform(self, action: Callable[[], Awaitable[Any]]) -> Any:
        """Queue an action and return its result.

        A cancellation ends the waiting, not the action; if that fails then, it warns.

        Raises:
            ManagerUsageError: The caller is a function that the writer waits for.
        """
        check_caller(self)
        return await self._queue_action(action)  # a variable for it would hold the error, and the error this frame

    def _queue_action(self, action: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
        operation = Operation(action=action, done=asyncio.get_running_loop().create_future())
        self._append(operation)
        return operation.done

    def _append(self, item: QueuedSave | Operation) -> None:
        self._items.append(item)
        self._changed.set()

    def close(self) -> None:
        """Take no more; the writer ends when what is queued is done."""
        self.is_closing = True
        self._changed.set()
        self._room.set()

    # --- for the writer -----------------------------------------------------------------------------------------------

    def pop(self) -> QueuedSave | Operation | None:
        """Return what is to be done next; None if there is nothing."""
        return self._items.popleft() if self._items else None

    async def wait(self) -> None:
        """Wait until there is something to do, or the manager closes."""
        self._changed.clear()
        await self._changed.wait()

    def end(
        self,
        item: QueuedSave,
        state: SaveState,
        *,
        record: CheckpointRecord | None = None,
        cause: BaseException | None = None,
    ) -> None:
        """End a save that has left the queue."""
        tracker = item.tracker
        self.staged_nbytes -= item.capture.nbytes
        self._env.steps.free(tracker.step)
        tracker.move(state, record=record, cause=cause)
        was_written = state in (SaveState.COMMITTED, SaveState.FAILED)
        self._env.schedule.end(tracker, is_saved=state is SaveState.COMMITTED, is_timed=was_written)
        if state is SaveState.FAILED:
            self.failures.add(tracker)
        item.captured.set()
        self._room.set()

    def fail(self, operation: Operation, error: Exception) -> None:
        """Give the caller of an operation its error; warn if the caller was cancelled."""
        if operation.done.cancelled():
            warn_in_background(f"{self._env.root}: an operation whose caller was cancelled has failed: {error}")
        else:
            operation.done.set_exception(error)

    def fail_all(self, error: BaseException) -> None:
        """Fail everything that is queued, and take no more: the writer has ended."""
        while self._items:
            item = self._items.popleft()
            if isinstance(item, QueuedSave):
                item.capture.give_back()
                self.end(item, SaveState.FAILED, cause=error)
            else:
                self.fail(item, error if isinstance(error, Exception) else CheckpointError("the writer task was ended"))
        self._is_closed = True
        self.close()

    def _drop(self, item: QueuedSave, state: SaveState) -> None:
        self._items.remove(item)
        item.capture.give_back()
        self.end(item, state)
