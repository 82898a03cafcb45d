"""The asynchronous view of a `Checkpointer`: an index in memory, and one thread hop for all else.

1. Each use of the store is one job in a worker thread, and jobs follow each other in the order of the calls. A job
   begins with the writes that were called before it, so a read sees them, and not those called after it.
2. A write is a captured value in the queue until a job has put it into the store. If that fails for the disk's sake it
   stays in the queue, and each job that comes tries again; a load of another key goes on without. A value that the
   store refuses is dropped, and the error raised by the next change, `flush` or end of the block. If the file has
   another writer, all that wait are refused.
3. The index, the queue and the budget belong to the loop's thread; see `asyncckpt.keyed.writes`.
4. A job is awaited to its end, whatever is cancelled. A cancelled load ends early; a change is made or not. A block is
   left when the file has been flushed and closed, however often that is cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from asyncckpt.errors import CheckpointerUsageError, CheckpointKeyError, QueueFullError
from asyncckpt.keyed.base import Found, Work
from asyncckpt.keyed.engine import missing
from asyncckpt.keyed.names import NameIndex
from asyncckpt.keyed.values import Captured, Condensed, capture, receive, refer_flat
from asyncckpt.keyed.writes import Outcome, Refusals, WriteQueue
from asyncckpt.saving.intake import INLINE_NBYTES, INLINE_NODES
from asyncckpt.saving.jobs import Jobs
from asyncckpt.state.leaf_nodes import TooLargeError
from asyncckpt.state.staging import BufferPool
from asyncckpt.state.tree import flatten
from asyncckpt.workers import Crew, Pacer, StopFlag, paused_gc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from asyncckpt.keyed.engine import Engine, Path
    from asyncckpt.keyed.values import Names
    from asyncckpt.keyed.view import Evaluation
    from asyncckpt.keyed.writes import Change
    from asyncckpt.state.flat import FlatState

ResultT = TypeVar("ResultT")

_GIVE_WAY_SECONDS: Final = 0.001


class Session:
    """A file, open on a loop. Used on the loop's thread only."""

    def __init__(self, open_engine: Callable[[Work], Engine], place: str, max_staged_nbytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._open_engine = open_engine
        self._place = place
        self._jobs = Jobs(self._loop)
        self._pool = BufferPool()
        self._opened: Engine | None = None
        self._engine: Engine | None = None
        self._gate = asyncio.Lock()  # opening and closing
        self._turn = asyncio.Lock()  # jobs, in the order of the calls
        self._intake = asyncio.Lock()  # large values, captured one at a time
        self._depth = 0
        self._queue = WriteQueue(max_staged_nbytes, NameIndex({}, place))
        self._refusals = Refusals(place)
        self._drainer: asyncio.Task[None] | None = None
        self._is_writer = False
        self._entries: Mapping[str, Names] | None = None  # of which the index was made
        self._found: NameIndex | None = None
        self._gave_way = time.perf_counter()
        self.evaluations: dict[Path, Evaluation] = {}
        self.is_over = False

    # --- opening and closing ------------------------------------------------------------------------------------------

    async def enter(self) -> bool:
        """Open the file, if this is the outermost block; return False if it has been closed for good meanwhile."""
        self._check(is_opening=True)
        async with self._gate:
            if self.is_over:
                return False
            if self._engine is None:
                try:
                    await self._jobs.run(self._open)
                except BaseException:
                    self.is_over = True
                    await self._end()
                    raise
                self._engine = self._opened
                self._settle(Outcome(found=self._found), None)
            self._depth += 1
            return True

    def _open(self) -> None:
        with paused_gc():
            self._opened = self._open_engine(Work(Crew()))
            self._find_names(self._opened)

    async def leave(self, error: BaseException | None) -> None:
        """Flush and close the file, if this is the outermost block, whoever cancels."""
        self._check()
        self._depth -= 1
        if self._depth:
            return
        cancelled = await self._close_surely()
        raised = error or cancelled
        if raised is None:
            self._refusals.tell()
            return
        for failure in self._refusals.take():
            raised.add_note(f"asyncckpt: {self._place} could not be flushed: {failure}")
        if cancelled is not None and error is None:
            raise cancelled

    async def _close_surely(self) -> asyncio.CancelledError | None:
        """Close in a task of its own, and return the last cancellation that came meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        while True:
            closing = asyncio.Task(self._close(), loop=self._loop)
            while not closing.done():
                try:
                    await asyncio.wait((closing,))
                except asyncio.CancelledError as again:
                    cancelled = again
            if not closing.cancelled():  # as all tasks of a loop are that is ending, but this one has work to do
                failure = closing.exception()
                if failure is not None:
                    self._refusals.add(failure)
                return cancelled

    async def _close(self) -> None:
        async with self._gate:
            if self._depth or self._engine is None:  # entered again meanwhile, and maybe closed by that block
                return
            self.is_over = True
            try:
                await self._run(_commit)
            except asyncio.CancelledError:
                self.is_over = False
                raise
            except BaseException as failure:  # noqa: BLE001 - told when the file is closed
                self._refusals.add(failure)
            self._engine = None
            await self._end()

    async def _end(self) -> None:
        try:
            await self._jobs.run(self._shut)
        finally:
            await self._jobs.close(is_stuck=False)

    def _shut(self) -> None:
        try:
            if self._opened is not None:
                self._opened.store.close()
        finally:
            self._queue.clear()
            self._pool.close()

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
        if not is_opening and (self._engine is None or self.is_over):
            message = f"{self._place} is closed: use the view inside its `async with`"
            raise CheckpointerUsageError(message)

    # --- the index ----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> NameIndex:
        """The keys, pending writes included; to be looked at only now."""
        self._check()
        return self._queue.names

    def _find_names(self, engine: Engine) -> None:
        """Read what the store has, unless that is known; in a thread."""
        entries = engine.store.entries
        if entries is not self._entries:
            self._entries, self._found = entries, NameIndex.of(engine.store, self._place)

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
        assert self._engine is not None  # noqa: S101 - it is open
        flat = _flatten_inline(self._engine.to_state(value), path)
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
        self._enqueue(path, Condensed(flat), nbytes)

    async def save(self, path: Path, value: object) -> None:
        """Capture a value of any size, and return; or, if the budget does not hold it, when it has been written."""
        self._check()
        self._refusals.tell()
        self._queue.names.check_way(path)
        await self._give_way()
        async with self._intake:
            flat = None if self._has_serializer() else _flatten_inline(value, path)
            if flat is not None:
                nbytes = flat.encoded_nbytes + flat.array_nbytes
                await self._become_writer()
                await self._wait_for_room(nbytes)
                self._enqueue(path, Condensed(flat), nbytes)
                return
            flat = await self._in_thread(self._flatten, path, value)
            await self._become_writer()
            nbytes = flat.encoded_nbytes + flat.array_nbytes
            if not self._queue.fits(nbytes):
                await self._stream(path, flat)
                return
            await self._wait_for_room(nbytes)
            self._enqueue(path, await self._in_thread(capture, flat, self._pool, self._jobs.crew()), nbytes)

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
        await self._give_way()
        await self._become_writer()
        if self._queue.names.find(path) is not None:
            self.delete(path)
            return
        self._refusals.tell()
        await self._change(path, None, lambda engine, work: engine.delete(path, work))

    async def _become_writer(self) -> None:
        """Let a caller who can wait know at once that the file has another writer."""
        if not self._is_writer:
            await self._run(self._begin, needed=0)

    def _begin(self, engine: Engine, work: Work) -> None:
        """Become the writer; in a thread. The index is made again if another writer was there since it was made."""
        if not self._is_writer:
            engine.store.begin(work)
            self._find_names(engine)
            self._is_writer = True

    async def _give_way(self) -> None:
        """Let the loop run now and then, if a caller saves or deletes many in a row: nothing else here would."""
        if time.perf_counter() - self._gave_way > _GIVE_WAY_SECONDS:
            await asyncio.sleep(0)
            self._gave_way = time.perf_counter()

    def _has_serializer(self) -> bool:
        return self._engine is not None and self._engine.has_serializer

    def _flatten(self, path: Path, value: object, stop: StopFlag) -> FlatState:
        assert self._engine is not None  # noqa: S101 - it is open
        with paused_gc():
            return flatten(self._engine.to_state(value), root=path[0], pacer=Pacer(stop))

    async def _in_thread(self, job: Callable[..., ResultT], *args: object) -> ResultT:
        """Run a job that looks at the caller's value, and is stopped when the caller is cancelled."""
        stop = StopFlag()
        return await self._jobs.run_stoppable(stop, job, *args, stop)

    async def _stream(self, path: Path, flat: FlatState) -> None:
        """Write a value that the budget does not hold, from where it is, while the caller waits."""
        captured = refer_flat(flat)
        try:
            await self._change(path, captured, lambda engine, work: engine.put(path, captured, work))
        finally:
            captured.release()

    async def _wait_for_room(self, nbytes: int) -> None:
        while not self._queue.has_room(nbytes):
            await self._run(_nothing)
        self._check()

    def _enqueue(self, path: Path, captured: Captured | Condensed | None, nbytes: int) -> None:
        self._check()
        self._queue.add(path, captured, nbytes)
        if self._drainer is None:
            # In an empty context, which nothing of the caller's outlives.
            self._drainer = contextvars.Context().run(lambda: asyncio.Task(self._drain(), loop=self._loop))

    async def _drain(self) -> None:
        """Write what waits, in the background. What fails stays, for the next job to try and to tell."""
        try:
            while self._queue and self._engine is not None:
                await self._run(_nothing)
        except Exception:  # noqa: BLE001 - the write is still in the queue, or its error among the refused
            return
        finally:
            self._drainer = None

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def _change(
        self,
        path: Path,
        captured: Captured | None,
        action: Callable[[Engine, Work], ResultT],
        stop: StopFlag | None = None,
    ) -> ResultT:
        """Change what is at a path by a job, and let the index show it from now on."""
        needed = self._queue.last_of(path[0])
        return await self._run(action, stop, change=self._queue.announce(path, captured), needed=needed)

    async def _run(
        self,
        action: Callable[[Engine, Work], ResultT],
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
        until = self._queue.number
        needed = until if needed is None else needed
        is_complete = False

        def job(engine: Engine, outcome: Outcome) -> ResultT | None:
            nonlocal is_complete
            with paused_gc():
                work = Work(self._jobs.crew())
                if self._queue.drain(until, needed, lambda write: self._store(engine, write, work), outcome):
                    return None
                result = action(engine, Work(work.crew, stop))
                is_complete = True
                if change is not None:
                    outcome.done.append(change)
                return result

        try:
            async with self._turn:
                while True:
                    if self._engine is None:
                        message = f"{self._place} is closed"
                        raise CheckpointerUsageError(message)
                    outcome = Outcome()
                    try:
                        result = await self._jobs.run_stoppable(stop, job, self._engine, outcome)
                    finally:
                        self._settle(outcome, change if is_complete else None)
                    if is_complete:
                        return result  # type: ignore[return-value] # what the action returned
        finally:
            if not is_complete:
                self._settle(Outcome(), change)

    def _settle(self, outcome: Outcome, change: Change | None) -> None:
        outcome.found, self._found = self._found, None
        self._queue.settle(outcome, change)
        for _, error in outcome.refused:
            self._refusals.add(error)

    def _store(self, engine: Engine, write: Change, work: Work) -> None:
        self._begin(engine, work)
        if write.captured is None:
            # One that is gone is what was asked for: the write of it, which the disk refused, was dropped for this.
            with suppress(CheckpointKeyError) if len(write.path) == 1 else nullcontext():
                engine.delete(write.path, work)
        else:
            captured = write.captured
            engine.put(write.path, captured.captured() if isinstance(captured, Condensed) else captured, work)
        work.pacer().pause()

    async def load(self, path: Path, *default: object) -> Any:
        """Load the value at a path; the default, if there is one, where there is none at its first part."""
        self._check()

        def action(engine: Engine, work: Work) -> Found:
            if default and path[0] not in engine.store.entries:  # an error would list all keys
                return Found(default[0], {})
            return engine.read(path, work)

        found = await self._run(action, StopFlag(), needed=self._queue.last_of(path[0]))
        return receive(found, path[0], stacklevel=3)

    async def take(self, path: Path) -> Any:
        """Load the value at a path and delete it; if the caller is cancelled before that, it stays."""
        self._check()
        self._queue.names.check(path)
        await self._become_writer()
        self._queue.names.check(path)  # another task, or another writer, may have been quicker
        stop = StopFlag()

        def action(engine: Engine, work: Work) -> Found:
            found = engine.read(path, work)
            stop.check()
            engine.delete(path, Work(work.crew))
            return found

        return receive(await self._change(path, None, action, stop), path[0], stacklevel=3)

    async def flush(self) -> None:
        """Make all writes called so far durable, together."""
        self._check()
        await self._run(_commit)
        self._refusals.tell()


def _flatten_inline(value: object, path: Path) -> FlatState | None:
    """Encode a value on the loop, or return None if it is too large for that."""
    try:
        return flatten(value, root=path[0], pacer=Pacer(yields=False), max_nodes=INLINE_NODES, max_nbytes=INLINE_NBYTES)
    except TooLargeError:
        return None


def _commit(engine: Engine, work: Work) -> None:
    engine.store.commit(work)


def _nothing(engine: Engine, work: Work) -> None:
    """Do nothing: the writes that come before are what the job is for."""
