"""The background task that writes checkpoints, one after the other.

1. It is one plain asyncio task in an empty context. Worker threads get immutable requests and return values.
2. Saves, finalizes, deletes and prunes are done in the order of the calls. Only the unlinking of what has been retired
   runs beside them, while no step is in flight (`pruning.py`).
3. What was captured is written, unless it is cancelled or replaced, or time runs out (`deadline.py`). What is left
   unwritten then fails, and is reported like any failure.
4. A failed save leaves nothing in memory but its error, however long its handle is kept.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Final

from asyncckpt.disk.write_blocks import BLOCK_NBYTES, Progress
from asyncckpt.documents import TRAINING_INFO_NAME, parse_training_info
from asyncckpt.errors import ManagerClosedError
from asyncckpt.runtime.pacing import StopFlag, Stopped
from asyncckpt.runtime.tracebacks import drop_locals
from asyncckpt.saving import commit
from asyncckpt.saving.files import SourceError, fill
from asyncckpt.saving.queue import Operation, QueuedSave
from asyncckpt.saving.tracking import SaveState
from asyncckpt.storage.results import NoRoomError

if TYPE_CHECKING:
    from asyncckpt.saving.environment import Environment
    from asyncckpt.saving.going_back import GoingBack
    from asyncckpt.saving.ownership import DirectoryOwner
    from asyncckpt.saving.pruning import Pruner
    from asyncckpt.saving.queue import SaveQueue

_WRITE_THREADS: Final = 4  # two keep the disk busy; more of them wait for the GIL of a busy loop at the same time
_POLL_SECONDS: Final = 0.5  # between two looks at whether a thread is stuck
_STUCK_SECONDS: Final = 5.0  # how long a job may take to stop before its thread counts as stuck in a system call


class _Progress(Progress):
    """Reports the progress of a write to the save's tracker; called in threads."""

    def __init__(self, item: QueuedSave) -> None:
        self._item = item
        self._loop = asyncio.get_running_loop()

    def planned(self, nbytes: int) -> None:
        self._item.tracker.total_nbytes = nbytes

    def copied(self) -> None:
        if self._item.streams and self._item.capture.check is None:  # else it counts only when that has been passed
            self._loop.call_soon_threadsafe(self._item.captured.set)

    def written(self, nbytes: int) -> None:
        self._item.tracker.add_written(nbytes)


class Writer:
    """The task that does what is queued. Used on the loop's thread only."""

    def __init__(
        self, env: Environment, queue: SaveQueue, owner: DirectoryOwner, pruner: Pruner, going_back: GoingBack
    ) -> None:
        self._env = env
        self._going_back = going_back
        self._queue = queue
        self._owner = owner
        self._pruner = pruner
        self._writing: QueuedSave | None = None
        loop = asyncio.get_running_loop()
        name = f"asyncckpt writer {env.root}"
        self.task = asyncio.Task(self._run(), loop=loop, name=name, context=contextvars.Context())

    async def wait_closed(self) -> bool:
        """Wait until all background tasks have ended, despite cancellations; return whether a thread is stuck.

        A thread counts as stuck when time has run out and it does not come back from a system call.
        """
        is_stuck = False
        while tasks := [
            task for task in (self.task, self._owner.taking, self._pruner.task) if task is not None and not task.done()
        ]:
            try:
                await asyncio.wait(tasks, timeout=_POLL_SECONDS)
            except asyncio.CancelledError as error:
                self._env.deadline.start_countdown(error)
            is_late = self._env.deadline.is_over_since(_STUCK_SECONDS) and any(not task.done() for task in tasks)
            if is_late and not is_stuck:
                is_stuck = True
                self._env.jobs.give_up()
        return is_stuck

    async def _run(self) -> None:
        try:
            await self._work()
        except BaseException as error:
            self._fail_all(error)
            raise
        self._fail_all(ManagerClosedError(f"the manager of {self._env.root} ran out of time while closing"))

    async def _work(self) -> None:
        while not self._env.deadline.is_over:
            await self._pruner.catch_up()
            item = None if self._env.deadline.is_over else self._queue.pop()
            if isinstance(item, QueuedSave):
                await self._save(item)
            elif item is not None:
                await self._perform(item)
            elif self._queue.is_closing:
                break
            else:  # a cancellation means that asyncio.run is ending: what was captured is written in the grace
                await self._env.deadline.wait_for(self._queue.wait)
            del item  # it may hold an error, until the next one comes
        await self._pruner.finish()

    def _fail_all(self, error: BaseException) -> None:
        self._queue.fail_all(error)
        if self._writing is not None and not self._writing.tracker.is_done:
            self._queue.end(self._writing, SaveState.FAILED, cause=error)

    async def _perform(self, operation: Operation) -> None:
        try:
            result = await operation.action()
        except Stopped:
            self._queue.fail(operation, ManagerClosedError("it was stopped while the manager closed"))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            self._queue.fail(operation, error)
        else:
            if not operation.done.cancelled():
                operation.done.set_result(result)
        finally:
            del operation  # it holds the error, whose traceback holds this frame

    async def _save(self, item: QueuedSave) -> None:
        tracker = item.tracker
        self._writing = item
        tracker.time("queued")
        tracker.move(SaveState.WRITING)
        try:
            await self._owner.take_in_writer()
            self._env.catalog.begin(tracker.step)
            written = await self._write(item)
        except Exception as error:  # noqa: BLE001 - it becomes the handle's
            drop_locals(error)  # for a handle may be kept for long
            stopped = ManagerClosedError("it was stopped while it was being written")
            is_told = isinstance(error, SourceError) or not item.stop.is_set
            self._queue.end(item, SaveState.FAILED, cause=error if is_told else stopped)
        else:
            self._env.catalog.add(written.record)
            self._env.warnings.issue_in_background(written.remarks)
            self._pruner.sweep(written.trash)
            tracker.time("written", written.written_at)
            tracker.time("committed")
            try:  # first, so that `steps` and the disk show what retention keeps when the handle resolves
                await self._going_back.discard_after(tracker.step)
                await self._pruner.prune_after(tracker.step)
            finally:
                self._queue.end(item, SaveState.COMMITTED, record=written.returned)
        finally:
            self._writing = None

    async def _write(self, item: QueuedSave) -> commit.Written:
        """Write a checkpoint; if there is no room for it, make some, and try once more."""
        try:
            return await self._try_to_write(item, is_last_try=False)
        except NoRoomError as error:
            nbytes = error.nbytes
        info = parse_training_info(item.documents[TRAINING_INFO_NAME])
        await self._pruner.make_room(item.tracker.step, info, nbytes)
        return await self._try_to_write(item, is_last_try=True)

    async def _try_to_write(self, item: QueuedSave, *, is_last_try: bool) -> commit.Written:
        budget = self._env.settings.max_staged_nbytes
        request = commit.WriteRequest(
            step=item.tracker.step,
            capture=item.capture,
            documents=item.documents,
            files=item.files,
            format_name=self._env.settings.format,
            min_free_nbytes=self._env.settings.min_free_nbytes,
            block_nbytes=commit.block_nbytes_within(budget // _WRITE_THREADS) if item.streams else BLOCK_NBYTES,
            progress=_Progress(item),
            discarded=self._going_back.discarded_by(item.tracker.step),
            is_last_try=is_last_try,
        )
        context = self._env.jobs.context(_WRITE_THREADS - 1, stop=item.stop)
        reached = await self._owner.change(item.stop, commit.write_checkpoint, self._env.store, request, context)
        while isinstance(reached, commit.Paused):
            reached = await self._go_on(item, reached)
        return reached

    async def _go_on(self, item: QueuedSave, paused: commit.Paused) -> commit.Written | commit.Paused:
        """Call the function that a save waits for, and go on writing."""
        try:
            failure = await fill(self._queue, item.tracker.step, paused.file, paused.path, self._env.deadline)
            return await self._owner.change(item.stop, commit.resume, paused.writing, failure)
        except BaseException:
            await self._env.deadline.run(StopFlag(), commit.abandon, paused.writing)
            raise
