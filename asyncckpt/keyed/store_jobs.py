"""The jobs of a file that is open on an event loop: all uses of its store, in worker threads, in the right order.

1. Each use of the store is one job in a worker thread, and jobs run in the order of the calls. A job begins with the
   writes of earlier calls, so a read sees those and no later ones.
2. A write is a captured value in the queue until a job has put it into the store. If the disk fails, it stays in the
   queue, and each further job tries again; a load of another key does without it. A value that the store refuses is
   dropped, and the error is raised by the next change, `flush` or end of the block. If the file has another writer, all
   writes in the queue are refused.
3. A job is awaited to its end, even if the caller is cancelled. A cancelled load ends early; a change is made wholly
   or not at all.
"""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, TypeVar

from asyncckpt.errors import CheckpointerUsageError, CheckpointKeyError
from asyncckpt.keyed.key_index import KeyIndex
from asyncckpt.keyed.pending_writes import Outcome, Refusals, WriteQueue
from asyncckpt.keyed.values import CapturedValue, PackedValue, capture
from asyncckpt.runtime.buffers import BufferPool, PoolTrimmer
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.jobs import Jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from asyncckpt.keyed.engine import Engine, Path
    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.pending_writes import Change
    from asyncckpt.runtime.pacing import StopFlag
    from asyncckpt.state.flat import FlatState

ResultT = TypeVar("ResultT")


class StoreJobs:
    """Runs the jobs of one store. Used on the loop's thread only.

    Attributes:
        queue: The pending changes, and the index of the keys.
        refusals: The errors that have not been raised yet.
        pool: Memory for captured values.
        engine: The store, while it is open.
    """

    def __init__(self, open_engine: Callable[[JobContext], Engine], file_name: str, max_staged_nbytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs = Jobs(self._loop)
        self._open_engine = open_engine
        self._file_name = file_name
        self.queue = WriteQueue(max_staged_nbytes, KeyIndex({}, file_name))
        self.refusals = Refusals(file_name)
        self.pool = BufferPool()
        self.engine: Engine | None = None
        self.idle: PoolTrimmer | None = None
        self._opened: Engine | None = None  # set in a thread, even if the caller is cancelled meanwhile
        self._running = asyncio.Lock()  # one job at a time
        self._drainer: asyncio.Task[None] | None = None
        self._is_writer = False
        self._entries: Mapping[str, KeyTree] | None = None  # of which the index was made
        self._found: KeyIndex | None = None

    # --- opening and closing ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the store and make the index."""
        await self._jobs.run(self._open)
        self.engine = self._opened
        self.idle = PoolTrimmer(self.pool, self._jobs)
        self._settle(Outcome())

    def _open(self) -> None:
        with young_collections_only():
            self._opened = self._open_engine(JobContext())
            self._find_names(self._opened)

    async def end(self) -> None:
        """Close the store, end the threads and drop the queue."""
        self.engine = None
        if self.idle is not None:
            self.idle.stop()
        try:
            await self._jobs.run(self._shut)
        finally:
            await self._jobs.close(is_stuck=False)

    def _shut(self) -> None:
        try:
            if self._opened is not None:
                self._opened.store.close()
        finally:
            self.queue.clear()
            self.pool.close()

    def _find_names(self, engine: Engine) -> None:
        """Make the index of the store, unless there is one of the same entries; in a thread."""
        entries = engine.store.entries
        if entries is not self._entries:
            self._entries, self._found = entries, KeyIndex.of(engine.store, self._file_name)

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def change(
        self,
        path: Path,
        captured: CapturedValue | None,
        action: Callable[[Engine, JobContext], ResultT],
        stop: StopFlag | None = None,
    ) -> ResultT:
        """Change the value at a path by a job of its own; the index shows the change at once."""
        needed = self.queue.last_of(path[0])
        return await self.run(action, stop, change=self.queue.announce(path, captured), needed=needed)

    async def run(
        self,
        action: Callable[[Engine, JobContext], ResultT],
        stop: StopFlag | None = None,
        *,
        change: Change | None = None,
        needed: int | None = None,
    ) -> ResultT:
        """Store the writes of the queue, then run an action with the store.

        Args:
            action: The action; in a thread.
            stop: Ends it early when the caller is cancelled.
            change: The change that it makes, if any.
            needed: The number of the last write that must be stored before; None for the last one of all.
        """
        until = self.queue.number
        needed = until if needed is None else needed
        is_complete = False

        def job(engine: Engine, outcome: Outcome) -> ResultT | None:
            nonlocal is_complete
            with young_collections_only():
                context = self._jobs.context()
                if self.queue.drain(until, needed, lambda write: self._store(engine, write, context), outcome):
                    return None
                result = action(engine, self._jobs.context(stop=stop))
                is_complete = True
                if change is not None:
                    outcome.done.append(change)
                return result

        try:
            async with self._running:
                while True:
                    engine = self.check_open()
                    outcome = Outcome()
                    try:
                        result = await self._jobs.run_stoppable(stop, job, engine, outcome)
                    finally:
                        self._settle(outcome)
                    if is_complete:
                        return result  # type: ignore[return-value] # what the action returned
        finally:
            if change is not None and not is_complete:
                self._settle(Outcome(dropped=[change]))

    def check_open(self) -> Engine:
        """Return the engine, or raise an error if the store is closed, perhaps while the caller waited."""
        if self.engine is None:
            message = f"{self._file_name} is closed: use the view inside its `async with`"
            raise CheckpointerUsageError(message)
        return self.engine

    def _settle(self, outcome: Outcome) -> None:
        outcome.found, self._found = self._found, None
        self.queue.settle(outcome)
        for _, error in outcome.refused:
            self.refusals.add(error)
        outcome.refused.clear()  # the errors refer to the job's frames, which refer to `outcome`

    def _store(self, engine: Engine, write: Change, context: JobContext) -> None:
        self._begin(engine, context)
        if write.captured is None:
            # The key may not exist, because its write, which the disk refused, was dropped in favor of this deletion.
            with suppress(CheckpointKeyError) if len(write.path) == 1 else nullcontext():
                engine.delete(write.path, context)
        else:
            captured = write.captured
            engine.put(write.path, captured.unpack() if isinstance(captured, PackedValue) else captured, context)
        context.pacer.pause()

    async def become_writer(self) -> None:
        """Become the file's writer, so that a caller that can wait gets the error if there is another one."""
        if not self._is_writer:
            await self.run(self._begin, needed=0)

    def _begin(self, engine: Engine, context: JobContext) -> None:
        """Become the writer; in a thread. If another writer has changed the file, the index is made again."""
        if not self._is_writer:
            engine.begin(context)
            self._find_names(engine)
            self._is_writer = True

    async def in_thread(self, job: Callable[..., ResultT], *args: object) -> ResultT:
        """Run a job that does not use the store, and is stopped when the caller is cancelled."""
        self.check_open()
        return await self._jobs.run_in_context(0, job, *args)

    async def capture(self, flat: FlatState) -> CapturedValue:
        """Copy the arrays of a flattened value."""
        return await self._jobs.run_in_context(1, capture, flat, self.pool, discard=CapturedValue.give_back)

    # --- writes -------------------------------------------------------------------------------------------------------

    def add(self, path: Path, captured: CapturedValue | PackedValue | None, nbytes: int) -> None:
        """Queue a write or a deletion, to be stored in the background."""
        self.queue.add(path, captured, nbytes)
        if self._drainer is None:
            # In an empty context, so that the task keeps no variables of the caller's alive.
            self._drainer = contextvars.Context().run(lambda: asyncio.Task(self._drain(), loop=self._loop))

    async def _drain(self) -> None:
        """Store the writes of the queue in the background. Those that fail stay, and the next job tries again."""
        try:
            while self.queue and self.engine is not None:
                await self.run(_nothing)
        except Exception:  # noqa: BLE001 - the write is still in the queue, or its error in `refusals`
            return
        finally:
            self._drainer = None

    async def wait_for_room(self, nbytes: int) -> None:
        """Wait until the budget has room for so many bytes more."""
        while not self.queue.has_room(nbytes):
            await self.run(_nothing)


def _nothing(engine: Engine, context: JobContext) -> None:
    """Do nothing: the job only stores the writes of the queue."""
