"""The background task that writes checkpoints, one after the other.

1. It is one plain asyncio task in an empty context. It owns the queue, the catalog and retention; worker threads get
   immutable requests and return values.
2. Saves, finalizes, deletes and prunes happen in the order in which they were asked for. Only the unlinking of what
   has been retired runs beside them, while no step is in flight (`retirement.py`).
3. What was captured is written, unless it is cancelled, replaced, or the time for it runs out (`grace.py`). What is
   left unwritten then fails, and is reported like any failure.
4. Every failed save reaches somebody: its handle, or else the next `save`, `flush` or `aclose`.
5. A step is in flight from the moment it is reserved until its save has come to an end.
6. A failed save leaves nothing in memory but its error, however long somebody keeps the handle.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from asyncckpt.disk.names import TRAINING_INFO_NAME
from asyncckpt.disk.room import NoRoomError
from asyncckpt.disk.write_blocks import BLOCK_NBYTES
from asyncckpt.documents import parse_training_info
from asyncckpt.errors import CheckpointError, CheckpointWarning, ManagerClosedError, warn
from asyncckpt.runtime.deadline import ShutdownDeadline
from asyncckpt.runtime.pacing import StopFlag, Stopped
from asyncckpt.runtime.tracebacks import drop_locals
from asyncckpt.saving import commit
from asyncckpt.saving.pruning import Pruner
from asyncckpt.saving.tracking import SaveState, SaveTracker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from asyncckpt.config import Settings
    from asyncckpt.disk.lock import DirectoryLock
    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.jobs import Jobs
    from asyncckpt.saving.catalog import Catalog
    from asyncckpt.saving.metric import PolicyRequest
    from asyncckpt.state.capture import Capture
    from asyncckpt.storage.base import CheckpointRecord

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")

MAX_WAITING_SAVES: Final = 64
_WRITE_THREADS: Final = 4  # two keep the disk busy; more of them wait for the GIL of a busy loop at the same time
_POLL_SECONDS: Final = 0.5  # between two looks at whether a thread is stuck
_STUCK_SECONDS: Final = 5.0  # how long a job may take to stop before its thread counts as stuck in a system call


@dataclass(slots=True, kw_only=True, eq=False)
class QueuedSave:
    """A save in the queue."""

    tracker: SaveTracker
    capture: Capture
    documents: Mapping[str, bytes]
    streams: bool = False
    """Whether the state is copied only while it is written, because the budget does not hold it."""
    captured: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a streaming save has copied its last block."""
    stop: StopFlag = field(default_factory=StopFlag)


class _Progress(commit.WriteProgress):
    """Tells a save's tracker, and whoever waits for its capture, how the writing goes on; called in threads."""

    def __init__(self, item: QueuedSave, loop: asyncio.AbstractEventLoop) -> None:
        self._item = item
        self._loop = loop

    def planned(self, nbytes: int) -> None:
        self._item.tracker.total_nbytes = nbytes

    def copied(self) -> None:
        if self._item.streams:
            self._loop.call_soon_threadsafe(self._item.captured.set)

    def written(self, nbytes: int) -> None:
        self._item.tracker.add_written(nbytes)


@dataclass(slots=True, kw_only=True, eq=False)
class _Command:
    """Anything else that keeps its place in the queue."""

    action: Callable[[], Awaitable[Any]]
    done: asyncio.Future[Any]
    """Cancelled when whoever waits for it is."""


class Writer:
    """The queue and the task that works it off. All methods are called on the loop's thread."""

    def __init__(self, settings: Settings, request: PolicyRequest, ops: DiskOps, jobs: Jobs, catalog: Catalog) -> None:
        self._settings = settings
        self._policy_request = request
        self._ops = ops
        self._jobs = jobs
        self._catalog = catalog
        self._root = settings.checkpoint_dir
        self._loop = asyncio.get_running_loop()
        self._queue: deque[QueuedSave | _Command] = deque()
        self._changed = asyncio.Event()  # something for the task to look at
        self._room = asyncio.Event()  # something for a waiting save to look at
        self._writing: QueuedSave | None = None
        self.lock: DirectoryLock | None = None
        """None until the directory is taken."""
        self._taking: asyncio.Task[None] | None = None
        self._failed: list[SaveTracker] = []
        self.in_flight: Counter[int] = Counter()
        self.begun: set[int] = set()
        """Steps whose pending directory a caller is filling; no save may clear it."""
        self.loading: Counter[int] = Counter()
        """Steps being loaded in this process; they are not pruned."""
        self.staged_nbytes = 0
        self.is_closing = False
        self.grace = ShutdownDeadline(jobs, settings.grace)
        self.grace.on_ending = self.close
        self.retirement = Pruner(settings, ops, self.grace, catalog, self.loading, self._warn, self.remark, self.change)
        self.task = asyncio.Task(
            self._run(), loop=self._loop, name=f"asyncckpt writer {self._root}", context=contextvars.Context()
        )

    # --- for the manager ----------------------------------------------------------------------------------------------

    @property
    def waiting_saves(self) -> int:
        """The number of saves in the queue, the one being written aside."""
        return sum(isinstance(item, QueuedSave) for item in self._queue)

    def has_room(self, nbytes: int) -> bool:
        """Whether a save that holds so many bytes may be queued now; an oversized one may when it is alone."""
        if self.waiting_saves >= MAX_WAITING_SAVES:
            return False
        return self.staged_nbytes == 0 or self.staged_nbytes + nbytes <= self._settings.max_staged_nbytes

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
            state = "closed: make a new one" if self.task.done() else "closing: it takes no more work"
            raise ManagerClosedError(f"the manager of {self._root} is {state}")

    async def take_directory(self) -> None:
        """Become the directory's writer, with the first mutation.

        Raises:
            DirectoryLockedError: There is another writer.
            OSError: The directory cannot be made or written.
        """
        while self.lock is None:
            # Whoever waits may be cancelled; the lock is taken all the same, once, for all who want it.
            taking = self._attempt()
            try:
                await asyncio.wait((taking,))
                taking.result()
            except asyncio.CancelledError as error:
                if asyncio.current_task() is not self.task:
                    raise
                self.grace.start_countdown(error)
            finally:
                del taking  # or it would hold its error, and that this frame

    def _attempt(self) -> asyncio.Task[None]:
        """Return the attempt to take the directory that is under way, or begin one."""
        if self._taking is None or self._taking.done():
            self._taking = asyncio.Task(self._take_directory(), loop=self._loop, context=contextvars.Context())
            # Who waits is told, and who no longer does needs no telling: the next save tries again.
            self._taking.add_done_callback(lambda taking: taking.cancelled() or taking.exception())
        return self._taking

    async def _take_directory(self) -> None:
        try:
            lock, listed = await self._jobs.run_stoppable(
                self.grace.start_countdown,
                commit.change,
                self._root,
                None,
                commit.take_directory,
                self._ops,
                self._root,
                self._policy_request,
                self._catalog.records(),
            )
        finally:
            self._taking = None  # its error, if it failed, is for those who wait
        self.lock = lock
        for remark in self._catalog.replace(listed):
            self._warn(f"{self._root}: {remark}")
        if not lock.is_supported:
            self._warn(f"{self._root} has no file locks: nothing keeps a second writer away")

    async def change(
        self, stop: StopFlag, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> ResultT:
        """Run a job of the writer's that changes the directory, as `ShutdownDeadline.run` does.

        Raises:
            FileNotFoundError: The directory was removed or replaced.
        """
        return await self.grace.run(stop, commit.change, self._root, self.lock, job, *args, **kwargs)

    def enqueue(self, item: QueuedSave) -> None:
        """Queue a save. Its handle is the caller's from now on."""
        item.tracker.on_cancel = lambda: self._drop(item, SaveState.CANCELLED)
        self.staged_nbytes += item.capture.nbytes
        self._queue.append(item)
        self._changed.set()

    def replace_waiting(self) -> None:
        """Drop the saves that are not being written yet, for a newer one."""
        for item in [each for each in self._queue if isinstance(each, QueuedSave) and not each.streams]:
            self._drop(item, SaveState.REPLACED)

    def withdraw(self, item: QueuedSave) -> None:
        """Take a streaming save back: its caller was cancelled. If it is being written, it stops within a block."""
        if item.tracker.state is SaveState.QUEUED:
            self._drop(item, SaveState.CANCELLED)
        else:
            item.tracker.is_received = True  # the caller knows
            item.stop.set()

    async def perform(self, action: Callable[[], Awaitable[Any]]) -> Any:
        """Queue an action of the manager's and return its result.

        A cancellation ends the waiting, not the action; if that fails then, it warns.
        """
        return await self._command(action)  # a variable for it would hold the error, and the error this frame

    def _command(self, action: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
        command = _Command(action=action, done=self._loop.create_future())
        self._queue.append(command)
        self._changed.set()
        return command.done

    def unreceived_failures(self) -> list[Exception]:
        """Return the errors of failed saves that nobody has received, which thereby counts as done."""
        errors: list[Exception] = []
        for tracker in self._failed:
            if tracker.is_unreceived:
                tracker.is_received = True
                errors.append(tracker.error())
        self._failed = [tracker for tracker in self._failed if not tracker.is_received]
        return errors

    # --- closing ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more work; the task ends when what was captured is written."""
        self.is_closing = True
        self._changed.set()
        self._room.set()

    async def wait_closed(self) -> bool:
        """Wait for the tasks, whoever cancels; return whether a thread is stuck in a system call."""
        is_stuck = False
        while tasks := [each for each in (self.task, self._taking, self.retirement.task) if each and not each.done()]:
            try:
                await asyncio.wait(tasks, timeout=_POLL_SECONDS)
            except asyncio.CancelledError as error:
                self.grace.start_countdown(error)
            is_late = self.grace.is_over_since(_STUCK_SECONDS) and any(not task.done() for task in tasks)
            if is_late and not is_stuck:
                is_stuck = True
                self._jobs.give_up()
        return is_stuck

    def give_lock_back(self) -> None:
        """Release the directory when the last job has ended; a thread that is stuck keeps it until then."""
        self.grace.forget()
        lock, self.lock = self.lock, None
        if lock is not None:
            self._jobs.when_idle(lock.release)

    # --- the task -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._work()
        except BaseException as error:
            self._fail_all(error)
            raise
        self._fail_all(ManagerClosedError(f"the manager of {self._root} ran out of time while closing"))

    async def _work(self) -> None:
        while not self.grace.is_over:
            await self.retirement.catch_up()
            if self._queue and not self.grace.is_over:
                item = self._queue.popleft()
                await (self._save(item) if isinstance(item, QueuedSave) else self._act(item))
                del item  # or its error would stay until the next one comes
                continue
            if self.is_closing:
                break
            self._changed.clear()
            try:
                await self._changed.wait()
            except asyncio.CancelledError as error:  # asyncio.run is ending: what was captured is written in the grace
                self.grace.start_countdown(error)
        await self.retirement.finish()

    async def _act(self, command: _Command) -> None:
        try:
            result = await command.action()
        except Stopped:
            self._fail(command, ManagerClosedError("it was stopped while the manager closed"))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            self._fail(command, error)
        else:
            if not command.done.cancelled():
                command.done.set_result(result)
        finally:
            del command  # which holds the error, and the error this frame

    def _fail(self, command: _Command, error: Exception) -> None:
        if command.done.cancelled():
            self._warn(f"{self._root}: an operation that nobody waits for any more failed: {error}")
        else:
            command.done.set_exception(error)

    async def _save(self, item: QueuedSave) -> None:
        tracker = item.tracker
        self._writing = item
        tracker.time("queued")
        tracker.move(SaveState.WRITING)
        try:
            await self.take_directory()
            self._catalog.begin(tracker.step)
            written = await self._write(item)
        except Exception as error:  # noqa: BLE001 - it becomes the handle's
            drop_locals(error)  # for a handle may be kept for long
            stopped = ManagerClosedError("it was stopped while it was being written")
            self._end(item, SaveState.FAILED, cause=stopped if item.stop.is_set else error)
        else:
            self._catalog.add(written.record)
            self.remark(written.remarks)
            self.retirement.sweep(written.trash)
            tracker.time("written", written.written_at)
            tracker.time("committed")
            try:  # first, so that `steps` and the disk show what retention keeps when the handle resolves
                await self.retirement.prune_after(tracker.step)
            finally:
                self._end(item, SaveState.COMMITTED, record=written.returned)
        finally:
            self._writing = None

    async def _write(self, item: QueuedSave) -> commit.Written:
        """Write a checkpoint; if there is no room for it, make some, and look again."""
        try:
            return await self._try_to_write(item, is_last_try=False)
        except NoRoomError as error:
            nbytes = error.nbytes
        info = parse_training_info(item.documents[TRAINING_INFO_NAME])
        await self.retirement.make_room(item.tracker.step, info, nbytes)
        return await self._try_to_write(item, is_last_try=True)

    async def _try_to_write(self, item: QueuedSave, *, is_last_try: bool) -> commit.Written:
        request = self._request(item)._replace(is_last_try=is_last_try)
        context = self._jobs.context(_WRITE_THREADS - 1, stop=item.stop)
        return await self.change(item.stop, commit.write_checkpoint, self._ops, request, context)

    def _request(self, item: QueuedSave) -> commit.WriteRequest:
        budget = self._settings.max_staged_nbytes
        return commit.WriteRequest(
            root=self._root,
            step=item.tracker.step,
            capture=item.capture,
            documents=item.documents,
            format_name=self._settings.format,
            min_free_nbytes=self._settings.min_free_nbytes,
            block_nbytes=commit.block_nbytes_within(budget // _WRITE_THREADS) if item.streams else BLOCK_NBYTES,
            progress=_Progress(item, self._loop),
        )

    # --- endings ------------------------------------------------------------------------------------------------------

    def _drop(self, item: QueuedSave, state: SaveState) -> None:
        self._queue.remove(item)
        item.capture.give_back()
        self._end(item, state)

    def _end(
        self,
        item: QueuedSave,
        state: SaveState,
        *,
        record: CheckpointRecord | None = None,
        cause: BaseException | None = None,
    ) -> None:
        tracker = item.tracker
        self.staged_nbytes -= item.capture.nbytes
        self.free_step(tracker.step)
        tracker.move(state, record=record, cause=cause)
        if state is SaveState.FAILED:
            self._failed.append(tracker)
        item.captured.set()
        self._room.set()

    def reserve_step(self, step: int) -> None:
        """Note that a save of a step is on its way."""
        self.in_flight[step] += 1
        self.retirement.hold()

    def free_step(self, step: int) -> None:
        """Let go of a reserved step."""
        self.in_flight[step] -= 1
        if not self.in_flight[step]:
            del self.in_flight[step]
        if not self.in_flight:
            self.retirement.resume()

    def _fail_all(self, error: BaseException) -> None:
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, QueuedSave):
                item.capture.give_back()
                self._end(item, SaveState.FAILED, cause=error)
            else:
                failure = error if isinstance(error, Exception) else CheckpointError("the writer task was ended")
                self._fail(item, failure)
        if self._writing is not None and not self._writing.tracker.is_done:
            self._end(self._writing, SaveState.FAILED, cause=error)
        self.close()

    def remark(self, remarks: Iterable[str]) -> None:
        """Warn of what there is to say of the directory, and has not been said before."""
        for remark in self._catalog.news(remarks):
            self._warn(f"{self._root}: {remark}")

    def _warn(self, message: str) -> None:
        try:
            warn(message)
        except CheckpointWarning as error:  # warnings are errors here, and this task must live
            self._loop.call_exception_handler({"message": message, "exception": error})
