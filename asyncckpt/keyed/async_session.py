"""A file that is open on an event loop: an index in memory, and jobs in worker threads for everything else.

1. A small value is captured on the loop's thread, a large one in a worker thread. It waits in the queue until a job has
   put it into the store; see `asyncckpt.keyed.store_jobs`.
2. The index, the queue and the budget belong to the loop's thread; see `asyncckpt.keyed.pending_writes`.
3. A block ends when the file has been flushed and closed, however often that is cancelled.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from asyncckpt.arrays.adapters import current_moment
from asyncckpt.errors import CheckpointerUsageError, QueueFullError
from asyncckpt.keyed.engine import missing
from asyncckpt.keyed.evaluations import Evaluations
from asyncckpt.keyed.store_jobs import StoreJobs
from asyncckpt.keyed.values import CapturedValue, Found, PackedValue, capture_live_flat, receive
from asyncckpt.runtime.cancellation import DeferredCancellation
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.state.encode import flatten
from asyncckpt.state.encode_leaves import TooLargeError
from asyncckpt.state.inline import flatten_inline
from asyncckpt.state.selection import join_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.arrays.device import Moment
    from asyncckpt.config import Arrays
    from asyncckpt.keyed.engine import Engine, Path
    from asyncckpt.keyed.key_index import KeyIndex
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.state.flat import FlatState

ResultT = TypeVar("ResultT")

_YIELD_SECONDS: Final = 0.001


class Session:
    """A file, open on a loop. Used on the loop's thread only."""

    def __init__(self, open_engine: Callable[[JobContext], Engine], file_name: str, max_staged_nbytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._file_name = file_name
        self._jobs = StoreJobs(open_engine, file_name, max_staged_nbytes)
        self._queue, self._refusals = self._jobs.queue, self._jobs.refusals
        self._opening = asyncio.Lock()  # or closing
        self._capturing = asyncio.Lock()  # one value at a time, in a thread
        self._depth = 0
        self._yielded_at = time.perf_counter()
        self.evaluations = Evaluations(self._loop.create_future)
        self.is_over = False

    # --- opening and closing ------------------------------------------------------------------------------------------

    async def enter(self) -> bool:
        """Open the file, if this is the outermost block; return False if the session has ended meanwhile."""
        self._check_caller()
        async with self._opening:
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
        """Flush and close the file, if this is the outermost block, even if the caller is cancelled."""
        self._check()
        self._depth -= 1
        if self._depth:
            return
        cancellation = await self._close_surely()
        if error is None and not cancellation:
            self._refusals.raise_all()
            return
        for failure in self._refusals.take():
            (error or cancellation).add_note(f"asyncckpt: {self._file_name} could not be flushed: {failure}")
        if error is None:
            cancellation.reraise()

    async def _close_surely(self) -> DeferredCancellation:
        """Close in a separate task, and return the cancellation that arrived meanwhile, if any."""
        cancellation = DeferredCancellation()
        closing = None
        while closing is None or closing.cancelled():  # a loop that is shutting down cancels all its tasks
            closing = asyncio.Task(self._close(), loop=self._loop)
            await cancellation.wait(closing)
        if (failure := closing.exception()) is not None:
            self._refusals.add(failure)
        return cancellation

    async def _close(self) -> None:
        async with self._opening:
            if self._depth or self._jobs.engine is None:  # entered again meanwhile, and perhaps closed by that block
                return
            self.is_over = True
            try:
                await self._jobs.run(_commit)
            except asyncio.CancelledError:
                self.is_over = False
                raise
            except BaseException as failure:  # noqa: BLE001 - raised when the file is closed
                self._refusals.add(failure)
            await self._jobs.end()

    def _check_caller(self) -> None:
        """Check that the session can be used in this thread and process."""
        if self._process != os.getpid():
            message = f"{self._file_name} was opened by the parent process: a forked child cannot use it"
            raise CheckpointerUsageError(message)
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            message = f"{self._file_name} is open on another event loop: use it there, on that loop's thread"
            raise CheckpointerUsageError(message)

    def _check(self) -> Engine:
        """Check that the file can be used here and now, and return its engine."""
        self._check_caller()
        engine = self._jobs.check_open()
        if self.is_over:
            message = f"{self._file_name} is being closed: use the view inside its `async with`"
            raise CheckpointerUsageError(message)
        return engine

    # --- the index ----------------------------------------------------------------------------------------------------

    @property
    def index(self) -> KeyIndex:
        """The index with all pending changes; valid until the next change."""
        self._check()
        return self._queue.index

    # --- writes -------------------------------------------------------------------------------------------------------

    def save_now(self, path: Path, value: object) -> None:
        """Capture a small value at once.

        Raises:
            CheckpointerUsageError: It is not small.
            QueueFullError: There is no room in the budget.
        """
        engine = self._check()
        self._refusals.raise_all()
        self._queue.index.check_way(path)
        try:
            flat = flatten_inline(engine.to_state(value), join_path(path))
        except TooLargeError as error:
            message = (
                f"{path[0]!r}: a value with {error} cannot be captured on the loop's thread: use"
                " `await chk.save_parameter(key, value)`"
            )
            raise CheckpointerUsageError(message) from None
        nbytes = flat.encoded_nbytes + flat.array_nbytes
        if not self._queue.has_room(nbytes):
            message = (
                f"{path[0]!r}: {len(self._queue)} writes of {self._queue.staged_nbytes} bytes wait for the disk: use"
                " `await chk.save_parameter(key, value)`, which waits for room"
            )
            raise QueueFullError(message)
        self._enqueue(path, PackedValue.of_flat(flat), nbytes)

    async def save(self, path: Path, value: object) -> None:
        """Capture a value of any size; if it exceeds the whole budget, return when it has been written."""
        engine = self._check()
        self._refusals.raise_all()
        self._queue.index.check_way(path)
        moment = current_moment()
        await self._yield_to_loop()
        async with self._capturing:
            flat = None
            if not engine.has_serializer:
                with suppress(TooLargeError):
                    flat = flatten_inline(value, join_path(path))
            is_small = flat is not None
            if flat is None:
                flat = await self._jobs.in_thread(_flatten, engine, path, value, moment)
            await self._jobs.become_writer()
            nbytes = flat.encoded_nbytes + flat.array_nbytes
            if not is_small and not self._queue.fits(nbytes):
                await self._stream(path, flat)
                return
            await self._jobs.wait_for_room(nbytes)
            self._enqueue(path, PackedValue.of_flat(flat) if is_small else await self._jobs.capture(flat), nbytes)

    def delete(self, path: Path) -> None:
        """Delete the value at a path.

        Raises:
            CheckpointKeyError: There is none.
        """
        self._check()
        self._refusals.raise_all()
        if not self._queue.index.contains(path):
            raise missing(path, self._file_name, self._queue.index.keys())
        self._enqueue(path, None, 0)

    async def remove(self, path: Path) -> None:
        """Delete the value at a path, as the file's writer; by a job, if the index cannot tell whether there is one."""
        self._check()
        self._queue.index.check(path)
        await self._yield_to_loop()
        await self._jobs.become_writer()
        if self._queue.index.find(path) is not None:
            self.delete(path)
            return
        self._refusals.raise_all()
        await self._jobs.change(path, None, lambda engine, context: engine.delete(path, context))

    async def _yield_to_loop(self) -> None:
        """Let the loop run about once a millisecond while a caller saves or deletes many keys in a row."""
        if time.perf_counter() - self._yielded_at > _YIELD_SECONDS:
            await asyncio.sleep(0)
            self._yielded_at = time.perf_counter()

    async def _stream(self, path: Path, flat: FlatState) -> None:
        """Write a value that exceeds the budget, without a copy, while the caller waits."""
        captured = capture_live_flat(flat)
        try:
            await self._jobs.change(path, captured, lambda engine, context: engine.put(path, captured, context))
        finally:
            captured.release()

    def _enqueue(self, path: Path, captured: CapturedValue | PackedValue | None, nbytes: int) -> None:
        self._check()
        self._jobs.add(path, captured, nbytes)

    # --- reading, and making durable ----------------------------------------------------------------------------------

    async def load(self, path: Path, *default: object, arrays: Arrays = "saved") -> Any:
        """Load the value at a path; if its first part does not exist, return the default, if there is one."""
        self._check()

        def action(engine: Engine, context: JobContext) -> Found:
            if default and path[0] not in engine.store.entries:  # an error would list all keys
                return Found(default[0], {})
            return engine.read(path, context, arrays)

        found = await self._jobs.run(action, StopFlag(), needed=self._queue.last_of(path[0]))
        return receive(found, path[0])

    async def take(self, path: Path) -> Any:
        """Load the value at a path and delete it, unless the caller is cancelled before that."""
        self._check()
        self._queue.index.check(path)
        await self._jobs.become_writer()
        self._queue.index.check(path)  # another task, or another writer, may have been quicker
        stop = StopFlag()

        def action(engine: Engine, context: JobContext) -> Found:
            found = engine.read(path, context)
            stop.check()
            engine.delete(path, context.uninterruptible())
            return found

        return receive(await self._jobs.change(path, None, action, stop), path[0])

    async def flush(self) -> None:
        """Make all changes so far durable, together."""
        self._check()
        await self._jobs.run(_commit)
        self._refusals.raise_all()


def _flatten(engine: Engine, path: Path, value: object, moment: Moment, context: JobContext) -> FlatState:
    with young_collections_only(), moment.entered():
        return flatten(engine.to_state(value), root=join_path(path), pacer=context.pacer, moment=moment)


def _commit(engine: Engine, context: JobContext) -> None:
    engine.commit(context)
