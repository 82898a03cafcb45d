"""The asynchronous view of a `Checkpointer`: an index in memory, and one thread hop for all else.

1. A small value is captured on the spot, a large one in a thread. Until a job has put it into the store it waits in the
   queue; see `asyncckpt.keyed.store_jobs`.
2. The index, the queue and the budget belong to the loop's thread; see `asyncckpt.keyed.pending_writes`.
3. A block is left when the file has been flushed and closed, however often that is cancelled.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from asyncckpt.errors import CheckpointerUsageError, QueueFullError
from asyncckpt.keyed.engine import missing
from asyncckpt.keyed.evaluations import Evaluations
from asyncckpt.keyed.store_jobs import StoreJobs
from asyncckpt.keyed.values import CapturedValue, Found, PackedValue, capture_live_flat, receive
from asyncckpt.runtime.cancellation import DeferredCancellation
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.state.encode import flatten
from asyncckpt.state.inline import INLINE_NBYTES, INLINE_NODES, flatten_inline
from asyncckpt.state.selection import join_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.keyed.engine import Engine, Path
    from asyncckpt.keyed.key_index import KeyIndex
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.state.flat import FlatState

ResultT = TypeVar("ResultT")

_YIELD_SECONDS: Final = 0.001


class Session:
    """A file, open on a loop. Used on the loop's thread only."""

    def __init__(self, open_engine: Callable[[JobContext], Engine], place: str, max_staged_nbytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._place = place
        self._jobs = StoreJobs(open_engine, place, max_staged_nbytes)
        self._queue, self._refusals = self._jobs.queue, self._jobs.refusals
        self._gate = asyncio.Lock()  # opening and closing
        self._intake = asyncio.Lock()  # large values, captured one at a time
        self._depth = 0
        self._yielded_at = time.perf_counter()
        self.evaluations = Evaluations(self._loop.create_future)
        self.is_over = False

    # --- opening and closing ------------------------------------------------------------------------------------------

    async def enter(self) -> bool:
        """Open the file, if this is the outermost block; return False if it has been closed for good meanwhile."""
        self._check(is_opening=True)
        async with self._gate:
            if self.is_over:
                return False
            if self._jobs.engine is None:
                try:
                    await self._jobs.open()
                except BaseException:
                    self.is_over = True
                    await self._jobs.end()
                    raise
            self._depth += 1
            return True

    async def leave(self, error: BaseException | None) -> None:
        """Flush and close the file, if this is the outermost block, whoever cancels."""
        self._check()
        self._depth -= 1
        if self._depth:
            return
        cancellation = await self._close_surely()
        if error is None and not cancellation:
            self._refusals.tell()
            return
        for failure in self._refusals.take():
            (error or cancellation).add_note(f"asyncckpt: {self._place} could not be flushed: {failure}")
        if error is None:
            cancellation.reraise()

    async def _close_surely(self) -> DeferredCancellation:
        """Close in a task of its own, and return the cancellation that arrived meanwhile, if any."""
        cancellation = DeferredCancellation()
        closing = None
        while closing is None or closing.cancelled():  # a loop that is shutting down cancels all its tasks
            closing = asyncio.Task(self._close(), loop=self._loop)
            await cancellation.wait(closing)
        if (failure := closing.exception()) is not None:
            self._refusals.add(failure)
        return cancellation

    async def _close(self) -> None:
        async with self._gate:
            if self._depth or self._jobs.engine is None:  # entered again meanwhile, and maybe closed by that block
                return
            self.is_over = True
            try:
                await self._jobs.run(_commit)
            except asyncio.CancelledError:
                self.is_over = False
                raise
            except BaseException as failure:  # noqa: BLE001 - told when the file is closed
                self._refusals.add(failure)
            await self._jobs.end()

    def _check(self, *, is_opening: bool = False) -> None:
        """Check that the file may be used here and now."""
        if self._process != os.getpid():
            message = f"{self._place} was opened by the parent process: a forked child may not use it"
            raise CheckpointerUsageError(message)
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            message = f"{self._place} is open on another event loop: use it there, on that loop's thread"
            raise CheckpointerUsageError(message)
        if not is_opening and (self._jobs.engine is None or self.is_over):
            state = "is closed" if self._jobs.engine is None else "is being closed"
            message = f"{self._place} {state}: use the view inside its `async with`"
            raise CheckpointerUsageError(message)

    # --- the index ----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> KeyIndex:
        """The keys, pending writes included; to be looked at only now."""
        self._check()
        return self._queue.names

    # --- writes -------------------------------------------------------------------------------------------------------

    def save_now(self, path: Path, value: object) -> None:
        """Capture a small value on the spot.

        Raises:
            CheckpointerUsageError: It is not small.
            QueueFullError: There is no room in the budget.
        """
        self._check()
        self._refusals.tell()
        self._queue.names.check_way(path)
        assert self._jobs.engine is not None  # noqa: S101 - it is open
        flat = flatten_inline(self._jobs.engine.to_state(value), join_path(path))
        if flat is None:
            message = (
                f"{path[0]!r}: a value of more than {INLINE_NBYTES} bytes, or of more than {INLINE_NODES} nodes in its"
                " tree, is not captured on the loop: use `await chk.save_parameter(key, value)`"
            )
            raise CheckpointerUsageError(message)
        nbytes = flat.encoded_nbytes + flat.array_nbytes
        if not self._queue.has_room(nbytes):
            message = (
                f"{path[0]!r}: {len(self._queue)} writes of {self._queue.staged_nbytes} bytes wait for the disk: `await"
                " chk.save_parameter(key, value)` waits for room"
            )
            raise QueueFullError(message)
        self._enqueue(path, PackedValue.of_flat(flat), nbytes)

    async def save(self, path: Path, value: object) -> None:
        """Capture a value of any size, and return; or, if the budget does not hold it, when it has been written."""
        self._check()
        self._refusals.tell()
        self._queue.names.check_way(path)
        await self._yield_to_loop()
        async with self._intake:
            flat = None if self._has_serializer() else flatten_inline(value, join_path(path))
            if flat is not None:
                nbytes = flat.encoded_nbytes + flat.array_nbytes
                await self._jobs.become_writer()
                await self._jobs.wait_for_room(nbytes)
                self._enqueue(path, PackedValue.of_flat(flat), nbytes)
                return
            flat = await self._jobs.in_thread(self._flatten, path, value)
            await self._jobs.become_writer()
            nbytes = flat.encoded_nbytes + flat.array_nbytes
            if not self._queue.fits(nbytes):
                await self._stream(path, flat)
                return
            await self._jobs.wait_for_room(nbytes)
            self._enqueue(path, await self._jobs.capture(flat), nbytes)

    def delete(self, path: Path) -> None:
        """Delete what is at a path.

        Raises:
            CheckpointKeyError: There is nothing.
        """
        self._check()
        self._refusals.tell()
        if not self._queue.names.contains(path):
            raise missing(path, self._place, self._queue.names.keys())
        self._enqueue(path, None, 0)

    async def remove(self, path: Path) -> None:
        """Delete what is at a path, once the file's writer; and in the store at once, where the index cannot tell."""
        self._check()
        self._queue.names.check(path)
        await self._yield_to_loop()
        await self._jobs.become_writer()
        if self._queue.names.find(path) is not None:
            self.delete(path)
            return
        self._refusals.tell()
        await self._jobs.change(path, None, lambda engine, work: engine.delete(path, work))

    async def _yield_to_loop(self) -> None:
        """Let the loop run now and then, if a caller saves or deletes many in a row: nothing else here would."""
        if time.perf_counter() - self._yielded_at > _YIELD_SECONDS:
            await asyncio.sleep(0)
            self._yielded_at = time.perf_counter()

    def _has_serializer(self) -> bool:
        return self._jobs.engine is not None and self._jobs.engine.has_serializer

    def _flatten(self, path: Path, value: object, context: JobContext) -> FlatState:
        assert self._jobs.engine is not None  # noqa: S101 - it is open
        with young_collections_only():
            return flatten(self._jobs.engine.to_state(value), root=join_path(path), pacer=context.pacer)

    async def _stream(self, path: Path, flat: FlatState) -> None:
        """Write a value that the budget does not hold, from where it is, while the caller waits."""
        captured = capture_live_flat(flat)
        try:
            await self._jobs.change(path, captured, lambda engine, work: engine.put(path, captured, work))
        finally:
            captured.release()

    def _enqueue(self, path: Path, captured: CapturedValue | PackedValue | None, nbytes: int) -> None:
        self._check()
        self._jobs.add(path, captured, nbytes)

    # --- reading, and making durable ----------------------------------------------------------------------------------

    async def load(self, path: Path, *default: object) -> Any:
        """Load the value at a path; the default, if there is one, where there is none at its first part."""
        self._check()

        def action(engine: Engine, work: JobContext) -> Found:
            if default and path[0] not in engine.store.entries:  # an error would list all keys
                return Found(default[0], {})
            return engine.read(path, work)

        found = await self._jobs.run(action, StopFlag(), needed=self._queue.last_of(path[0]))
        return receive(found, path[0], stacklevel=3)

    async def take(self, path: Path) -> Any:
        """Load the value at a path and delete it; if the caller is cancelled before that, it stays."""
        self._check()
        self._queue.names.check(path)
        await self._jobs.become_writer()
        self._queue.names.check(path)  # another task, or another writer, may have been quicker
        stop = StopFlag()

        def action(engine: Engine, work: JobContext) -> Found:
            found = engine.read(path, work)
            stop.check()
            engine.delete(path, work.uninterruptible())
            return found

        return receive(await self._jobs.change(path, None, action, stop), path[0], stacklevel=3)

    async def flush(self) -> None:
        """Make all writes called so far durable, together."""
        self._check()
        await self._jobs.run(_commit)
        self._refusals.tell()


def _commit(engine: Engine, work: JobContext) -> None:
    engine.commit(work)
