"""The jobs of a file that is open on a loop: whatever is done with its store, in worker threads, in the right order.

1. Each use of the store is one job in a worker thread, and jobs follow each other in the order of the calls. A job
   begins with the writes that were called before it, so a read sees them, and not those called after it.
2. A write is a captured value in the queue until a job has put it into the store. If that fails for the disk's sake it
   stays in the queue, and each job that comes tries again; a load of another key goes on without. A value that the
   store refuses is dropped, and the error raised by the next change, `flush` or end of the block. If the file has
   another writer, all that wait are refused.
3. A job is awaited to its end, whatever is cancelled. A cancelled load ends early; a change is made or not.
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
    from asyncckpt.keyed.pending_writes import Change
    from asyncckpt.keyed.values import Names
    from asyncckpt.runtime.pacing import StopFlag
    from asyncckpt.state.flat import FlatState

ResultT = TypeVar("ResultT")


class StoreJobs:
    """What is done with one store. Used on the loop's thread only.

    Attributes:
        queue: The writes that wait, and the index of the keys.
        refusals: The errors that nobody has been told of yet.
        pool: Memory for captured values.
        engine: The store, while it is open.
    """

    def __init__(self, open_engine: Callable[[JobContext], Engine], place: str, max_staged_nbytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs = Jobs(self._loop)
        self._open_engine = open_engine
        self._place = place
        self.queue = WriteQueue(max_staged_nbytes, KeyIndex({}, place))
        self.refusals = Refusals(place)
        self.pool = BufferPool()
        self.engine: Engine | None = None
        self.idle: PoolTrimmer | None = None
        self._opened: Engine | None = None  # set in a thread, whoever is cancelled meanwhile
        self._turn = asyncio.Lock()
        self._drainer: asyncio.Task[None] | None = None
        self._is_writer = False
        self._entries: Mapping[str, Names] | None = None  # of which the index was made
        self._found: KeyIndex | None = None

    # --- opening and closing ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the store and make the index."""
        await self._jobs.run(self._open)
        self.engine = self._opened
        self.idle = PoolTrimmer(self.pool, self._jobs)
        self._settle(Outcome(found=self._found), None)

    def _open(self) -> None:
        with young_collections_only():
            self._opened = self._open_engine(JobContext())
            self._find_names(self._opened)

    async def end(self) -> None:
        """Close the store, and let go of the threads and of what waits."""
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
        """Read what the store has, unless that is known; in a thread."""
        entries = engine.store.entries
        if entries is not self._entries:
            self._entries, self._found = entries, KeyIndex.of(engine.store, self._place)

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def change(
        self,
        path: Path,
        captured: CapturedValue | None,
        action: Callable[[Engine, JobContext], ResultT],
        stop: StopFlag | None = None,
    ) -> ResultT:
        """Change what is at a path by a job, and let the index show it from now on."""
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
        """Do something with the store, once the queue has been written.

        Args:
            action: What is done; in a thread.
            stop: Ends it early when the caller is cancelled.
            change: The change that it makes, if it does.
            needed: The number of the last write that it cannot do without; all there are now, if None.
        """
        until = self.queue.number
        needed = until if needed is None else needed
        is_complete = False

        def job(engine: Engine, outcome: Outcome) -> ResultT | None:
            nonlocal is_complete
            with young_collections_only():
                work = self._jobs.context()
                if self.queue.drain(until, needed, lambda write: self._store(engine, write, work), outcome):
                    return None
                result = action(engine, self._jobs.context(stop=stop))
                is_complete = True
                if change is not None:
                    outcome.done.append(change)
                return result

        try:
            async with self._turn:
                while True:
                    engine = self._check_open()
                    outcome = Outcome()
                    try:
                        result = await self._jobs.run_stoppable(stop, job, engine, outcome)
                    finally:
                        self._settle(outcome, change if is_complete else None)
                    if is_complete:
                        return result  # type: ignore[return-value] # what the action returned
        finally:
            if not is_complete:
                self._settle(Outcome(), change)

    def _check_open(self) -> Engine:
        if self.engine is None:  # it was closed while its caller waited
            message = f"{self._place} is closed: use the view inside its `async with`"
            raise CheckpointerUsageError(message)
        return self.engine

    def _settle(self, outcome: Outcome, change: Change | None) -> None:
        outcome.found, self._found = self._found, None
        self.queue.settle(outcome, change)
        for _, error in outcome.refused:
            self.refusals.add(error)
        outcome.refused.clear()  # of the job's frames, to which the errors lead

    def _store(self, engine: Engine, write: Change, work: JobContext) -> None:
        self._begin(engine, work)
        if write.captured is None:
            # One that is gone is what was asked for: the write of it, which the disk refused, was dropped for this.
            with suppress(CheckpointKeyError) if len(write.path) == 1 else nullcontext():
                engine.delete(write.path, work)
        else:
            captured = write.captured
            engine.put(write.path, captured.unpack() if isinstance(captured, PackedValue) else captured, work)
        work.pacer.pause()

    async def become_writer(self) -> None:
        """Let a caller who can wait know at once that the file has another writer."""
        if not self._is_writer:
            await self.run(self._begin, needed=0)

    def _begin(self, engine: Engine, work: JobContext) -> None:
        """Become the writer; in a thread. The index is made again if another writer was there since it was made."""
        if not self._is_writer:
            engine.begin(work)
            self._find_names(engine)
            self._is_writer = True

    async def in_thread(self, job: Callable[..., ResultT], *args: object) -> ResultT:
        """Run a job that looks at the caller's value, and is stopped when the caller is cancelled."""
        self._check_open()
        return await self._jobs.run_in_context(0, job, *args)

    async def capture(self, flat: FlatState) -> CapturedValue:
        """Copy a state's arrays."""
        return await self._jobs.run_in_context(1, capture, flat, self.pool, discard=CapturedValue.give_back)

    # --- writes -------------------------------------------------------------------------------------------------------

    def add(self, path: Path, captured: CapturedValue | PackedValue | None, nbytes: int) -> None:
        """Queue a write, or a deletion, and write it in the background."""
        self.queue.add(path, captured, nbytes)
        if self._drainer is None:
            # In an empty context, which nothing of the caller's outlives.
            self._drainer = contextvars.Context().run(lambda: asyncio.Task(self._drain(), loop=self._loop))

    async def _drain(self) -> None:
        """Write what waits, in the background. What fails stays, for the next job to try and to tell."""
        try:
            while self.queue and self.engine is not None:
                await self.run(_nothing)
        except Exception:  # noqa: BLE001 - the write is still in the queue, or its error among the refused
            return
        finally:
            self._drainer = None

    async def wait_for_room(self, nbytes: int) -> None:
        """Wait until the budget holds so many bytes more."""
        while not self.queue.has_room(nbytes):
            await self.run(_nothing)


def _nothing(engine: Engine, work: JobContext) -> None:
    """Do nothing: the writes that come before are what the job is for."""
