"""The life of a manager: opened once, used on one loop, closed.

1. Everything that a manager has while it is open is made when it is entered, and gone when it is closed: tasks,
   threads, lock.
2. Every use is checked: it is open, on its own loop, in its own process.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from asyncckpt.errors import ManagerClosedError, ManagerUsageError, ReadOnlyError, warn
from asyncckpt.formats.base import find_format
from asyncckpt.runtime.buffers import BufferPool, PoolTrimmer, PoolWarmer
from asyncckpt.runtime.cancellation import DeferredCancellation
from asyncckpt.runtime.deadline import ShutdownDeadline
from asyncckpt.runtime.jobs import Jobs
from asyncckpt.saving.admission import Admission
from asyncckpt.saving.catalog import Catalog
from asyncckpt.saving.environment import DirectoryWarnings, Environment, StepLedger
from asyncckpt.saving.files import check_caller
from asyncckpt.saving.forking import Forking
from asyncckpt.saving.going_back import GoingBack
from asyncckpt.saving.listing import enter_store
from asyncckpt.saving.loader import Loader
from asyncckpt.saving.metric import MetricWatch, PolicyRequest
from asyncckpt.saving.ownership import DirectoryOwner
from asyncckpt.saving.pending_directories import PendingDirectories
from asyncckpt.saving.preemption import Preemption
from asyncckpt.saving.pruning import Pruner
from asyncckpt.saving.queue import SaveQueue
from asyncckpt.saving.retention import RetentionPolicy
from asyncckpt.saving.schedule import SaveSchedule
from asyncckpt.saving.tracking import SaveHandle
from asyncckpt.saving.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.config import Settings
    from asyncckpt.storage.base import CheckpointStore


class Session:
    """Opens a manager, checks each use of it, and closes it.

    Args:
        settings: The manager's options, with an absolute path of the directory.
        store: The store in which the checkpoints are.
        is_direction_given: Whether ``higher_is_better`` was given.
        kind: The name of the manager's class, for messages.
        clock: What the rules of `should_save` measure time with; the system's if None.
    """

    def __init__(
        self,
        settings: Settings,
        store: CheckpointStore,
        *,
        is_direction_given: bool,
        kind: str,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.settings = settings
        self.schedule = SaveSchedule(settings, clock)
        self.preemption = Preemption(settings.preempt_signals)
        self.schedule.is_preempted = self.preemption.event.is_set
        policy = RetentionPolicy.from_settings(settings)
        self._policy_request = PolicyRequest(policy, is_direction_given)
        self.pool = BufferPool()
        self._store = store
        self.kind = kind
        self.reworded: Callable[[str], str] = str
        """Words messages for a program that does not await."""
        self.listens = True
        """Whether the loop's thread is that in which the signals of preemption are handled."""
        self._open: OpenSession | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_entered = False
        reason = policy.why_nothing_is_pruned(least=1 if settings.has_rules_of_time else None)
        if reason is not None and settings.is_writer:
            warn(f"{settings.checkpoint_dir}: {reason}")
        # Last: if the warning is raised as an error, `__del__` finds no process, and does nothing.
        self._process = os.getpid()

    def __repr__(self) -> str:
        """Show the directory."""
        return f"<{self.kind} {str(self.settings.checkpoint_dir)!r}>"

    async def open(self) -> None:
        """List what is committed, and start the writer; see `CheckpointManager.__aenter__`."""
        was_entered, self._is_entered = self._is_entered, True
        _check_asyncio()
        if was_entered:
            is_open = self._open is not None and self._closing is None
            message = f"{self!r} {'is entered already' if is_open else 'was entered before'}: make a new one"
            raise ManagerClosedError(message)
        settings = self.settings
        jobs = Jobs(asyncio.get_running_loop())
        if settings.is_writer:
            jobs.spawn(find_format, settings.format)  # imports h5py, so that no save waits for it
        catalog = Catalog(self._policy_request.policy)
        env = Environment(
            settings=settings,
            policy_request=self._policy_request,
            store=self._store,
            jobs=jobs,
            deadline=ShutdownDeadline(jobs, settings.grace),
            pool=self.pool,
            warmer=PoolWarmer(self.pool, jobs, settings.max_staged_nbytes),
            catalog=catalog,
            metric=MetricWatch(catalog, settings),
            steps=StepLedger(),
            schedule=self.schedule,
            warnings=DirectoryWarnings(settings.checkpoint_dir),
        )
        try:
            listing, ranking = await jobs.run(
                enter_store,
                self._store,
                self._policy_request,
                is_writer=settings.is_writer,
                must_exist=settings.read_only,
            )
            catalog.replace(listing, ranking)
            env.warnings.issue(listing.remarks)
            if settings.preempt_signals is not None and self.listens:
                self.preemption.listen(asyncio.get_running_loop())
        except BaseException:
            self.preemption.stop()
            await jobs.close(is_stuck=False)
            raise
        self._open = OpenSession(env)
        self.schedule.open()

    def use(self, *, is_closing: bool = False, writes: bool = False) -> OpenSession:
        """Check that the manager may be used here and now, and return what it has while it is open."""
        if self._open is None:
            message = f"{self!r} is not open: use it inside `async with`"
            raise ManagerUsageError(message)
        if self._process != os.getpid():
            message = f"{self!r} belongs to the parent process: a forked child may not use it; make one of its own"
            raise ManagerUsageError(message)
        _check_asyncio(self._open.loop)
        if writes:
            check_caller(self._open.queue)
        if not is_closing:
            self._open.queue.check_open()
        if writes and self.settings.read_only:
            message = f"{self!r} was made with read_only=True: make one without it to save or delete"
            raise ReadOnlyError(message)
        return self._open

    async def close(self, error: BaseException | None) -> None:
        """Write what was captured, and stop; then raise the failures that no caller has received.

        Args:
            error: The exception that ends the manager's block: the failures are added to it as notes instead.
        """
        here = self.use(is_closing=True)
        check_caller(here.queue)
        here.queue.close()
        if error is not None and not isinstance(error, Exception):
            here.deadline.start_countdown(error)
        if self._closing is None:
            self._closing = asyncio.Task(self._end(here), loop=here.loop)
        cancellation = DeferredCancellation()
        await cancellation.wait(self._closing, here.deadline.start_countdown)
        if not cancellation:
            self._closing.result()
        if error is None and not cancellation:
            here.queue.failures.raise_any()
        raised = cancellation if error is None else error
        for failure in here.queue.failures.receive():
            raised.add_note(f"asyncckpt: {failure}")
        if error is None:
            cancellation.reraise()

    async def _end(self, here: OpenSession) -> None:
        try:
            await here.close()
        finally:
            self.preemption.stop()  # until what was captured is written, a signal must not end the program

    def preempted(self) -> asyncio.Event:
        """Return the event of preemption, and handle its signals from now on; see `CheckpointManager.preempted`."""
        here = self.use(is_closing=True)
        if self._closing is None:
            self.preemption.listen(here.loop)
        return self.preemption.event

    def __del__(self) -> None:
        """Warn if the manager was never entered, or entered and never closed."""
        if getattr(self, "_process", None) != os.getpid():
            return
        if not self._is_entered and self.settings.enabled:
            warn(self.reworded(f"{self!r} was never entered, so it saved and loaded nothing: use it in `async with`"))
        here = self._open
        if here is not None and self._closing is None:
            warn(f"{self!r} was never closed: use `async with`, or await aclose()", ResourceWarning, source=self)
            if not here.loop.is_closed():
                here.loop.call_soon_threadsafe(here.queue.close)
            for failure in here.queue.failures.receive():
                warn(f"{self!r} was never closed, and {failure}")


class OpenSession:
    """The parts of a manager that is open."""

    def __init__(self, env: Environment) -> None:
        self.loop = asyncio.get_running_loop()
        self.jobs = env.jobs
        self.deadline = env.deadline
        self.pool = env.pool
        self.warmer = env.warmer
        self.catalog = env.catalog
        self.metric = env.metric
        self.steps = env.steps
        self.schedule = env.schedule
        self.queue = SaveQueue(env)
        self.owner = DirectoryOwner(env)
        self.pruner = Pruner(env, self.owner)
        self.going_back = GoingBack(env, self.queue, self.owner, self.pruner)
        self.writer = Writer(env, self.queue, self.owner, self.pruner, self.going_back)
        self.admission = Admission(env, self.queue, self.owner)
        self.loader = Loader(env)
        self.pending = PendingDirectories(env, self.queue, self.owner, self.pruner, self.going_back)
        self.forking = Forking(env, self.queue, self.owner, self.pruner)
        self.idle = PoolTrimmer(env.pool, env.jobs)

    def leave_out(self, step: int) -> SaveHandle:
        """Return the handle of a save that a disabled manager leaves out."""
        handle = SaveHandle.skipped(step)
        self.schedule.count(handle)
        return handle

    async def close(self) -> None:
        """Wait for the writer, then end the threads, then release the lock."""
        self.idle.stop()
        self.warmer.stop()
        is_stuck = await self.writer.wait_closed()
        if not is_stuck:  # giving memory back takes a while
            await self.jobs.run_stoppable(self.deadline.start_countdown, self.pool.close)
        await self.jobs.close(is_stuck=is_stuck)
        self.deadline.forget()
        self.owner.release()


def _check_asyncio(expected: asyncio.AbstractEventLoop | None = None) -> None:
    """Check that this is a task of an asyncio loop, and of the expected one."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_run():
            message = "asyncckpt runs on asyncio (stock or uvloop), not on trio"
        else:
            message = "no event loop runs in this thread: use the manager on the loop that entered it"
        raise ManagerUsageError(message) from None
    if expected is not None and running is not expected:
        message = "the manager belongs to another event loop: use it on the loop that entered it"
        raise ManagerUsageError(message)
