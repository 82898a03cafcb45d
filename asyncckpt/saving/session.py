"""The life of a manager: opened once, used on one loop, closed.

1. Everything that a manager has while it is open is made when it is entered, and gone when it is closed: tasks,
   threads, lock.
2. Every use is checked: it is open, on its own loop, in its own process.
3. Nothing of ours wraps the body of `async with`: its exception comes out as it is.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn, Self

from asyncckpt.errors import ManagerClosedError, ManagerUsageError, ReadOnlyError, warn
from asyncckpt.formats.base import find_format
from asyncckpt.runtime.buffers import BufferPool, PoolTrimmer, PoolWarmer
from asyncckpt.runtime.jobs import Jobs
from asyncckpt.saving import commit
from asyncckpt.saving.admission import Admission
from asyncckpt.saving.catalog import Catalog
from asyncckpt.saving.loader import Loader
from asyncckpt.saving.metric import MetricWatch, PolicyRequest
from asyncckpt.saving.pending_directories import PendingDirectories
from asyncckpt.saving.retention import RetentionPolicy
from asyncckpt.saving.writer import Writer
from asyncckpt.state.inline import INLINE_NBYTES

if TYPE_CHECKING:
    from types import TracebackType

    from asyncckpt.config import Settings
    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.saving.catalog import Listed


class Session:
    """Opens and closes; `asyncckpt.CheckpointManager` adds what is done in between."""

    def __init__(self, settings: Settings, ops: DiskOps, *, is_direction_given: bool) -> None:
        # The working directory may change until the manager is entered.
        self._settings = settings = replace(settings, checkpoint_dir=settings.checkpoint_dir.absolute())
        policy = RetentionPolicy.from_settings(settings)
        self._request = PolicyRequest(policy, is_direction_given)
        self._root = settings.checkpoint_dir
        self._ops = ops
        self._catalog = Catalog(policy)
        self._pool = BufferPool()
        self._process = os.getpid()
        self._open: OpenSession | None = None
        self._closing: asyncio.Task[None] | None = None
        reason = policy.why_nothing_is_pruned()
        if reason is not None and settings.enabled and not settings.read_only:
            warn(f"{self._root}: {reason}")
        self._is_entered = False  # last: what could not be made is not to be entered either

    def __repr__(self) -> str:
        """Show the directory."""
        return f"<{type(self).__name__} {str(self._root)!r}>"

    async def __aenter__(self) -> Self:
        """List what is committed, and start the background writer.

        Raises:
            ManagerUsageError: It was entered before, or another library than asyncio runs this task.
            ConfigError: The directory is no directory of checkpoints, but one of them.
            NotADirectoryError: There is a file in the directory's place.
            PermissionError: The directory cannot be read.
        """
        was_entered, self._is_entered = self._is_entered, True
        _check_asyncio()
        if was_entered:
            is_open = self._open is not None and self._closing is None
            message = f"{self!r} {'is entered already' if is_open else 'was entered before'}: make a new one"
            raise ManagerClosedError(message)
        jobs = Jobs(asyncio.get_running_loop())
        if self._settings.enabled and not self._settings.read_only:
            jobs.spawn(find_format, self._settings.format)  # imports h5py, so that no save waits for it
        try:
            listed = await jobs.run(_list, self._ops, self._settings, self._request)
            for remark in self._catalog.replace(listed):
                warn(f"{self._root}: {remark}")
        except BaseException:
            await jobs.close(is_stuck=False)
            raise
        self._open = OpenSession(self._settings, self._request, self._ops, jobs, self._catalog, self._pool)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what was captured and stop; see the class for how long that may take."""
        await self._close_and_report(error)

    if not TYPE_CHECKING:  # a type checker refuses `with` by itself

        def __enter__(self) -> NoReturn:
            """Say that this takes ``async with``."""
            message = f"{self!r} was entered by `with`: use `async with`, inside an `async def`"
            raise ManagerUsageError(message)

        def __exit__(self, *_: object) -> None:
            """Do nothing: `with` looks for it before it calls `__enter__`."""

    async def aclose(self) -> None:
        """Write what was captured, and stop. May be called from any task of the loop, and more than once: all wait.

        Raises:
            SaveFailedError: A save failed and nobody had received it; several come as an ExceptionGroup.
        """
        await self._close_and_report(None)

    async def _close_and_report(self, error: BaseException | None) -> None:
        """Close; raise the failures that nobody has received, or note them on the exception that comes out instead."""
        try:
            await self._close(error)
        except asyncio.CancelledError as cancelled:
            self._note_failures(error or cancelled)
            if error is None:
                raise
            return
        if error is None:
            raise_failures(self._here(is_closing=True).writer.unreceived_failures())
        else:
            self._note_failures(error)

    def _note_failures(self, raised: BaseException) -> None:
        for failure in self._here(is_closing=True).writer.unreceived_failures():
            raised.add_note(f"asyncckpt: {failure}")

    async def _close(self, error: BaseException | None) -> None:
        here = self._here(is_closing=True)
        here.writer.close()
        if error is not None and not isinstance(error, Exception):
            here.writer.grace.start_countdown(error)
        if self._closing is None:
            self._closing = asyncio.Task(here.close(), loop=here.loop)
        cancelled: asyncio.CancelledError | None = None
        while not self._closing.done():
            try:
                await asyncio.wait((self._closing,))
            except asyncio.CancelledError as again:
                cancelled = again
                here.writer.grace.start_countdown(again)
        try:
            if cancelled is not None:
                raise cancelled
        finally:
            del cancelled  # which leads to this frame, and so to the caller's state
        self._closing.result()

    def __del__(self) -> None:
        """Warn when it was never entered, or entered and never closed."""
        if getattr(self, "_process", None) != os.getpid():  # absent if __init__ raised
            return
        if not getattr(self, "_is_entered", True) and self._settings.enabled:
            message = f"{self!r} was never entered, so it saved and loaded nothing: use it in `async with`"
            warn(message)
        here = self._open
        if here is not None and self._closing is None:
            message = f"{self!r} was never closed: use `async with`, or await aclose()"
            warn(message, ResourceWarning, source=self)
            if not here.loop.is_closed():
                here.loop.call_soon_threadsafe(here.writer.close)

    def _here(self, *, is_closing: bool = False, writes: bool = False) -> OpenSession:
        """Check that the manager may be used here and now."""
        if self._open is None:
            message = f"{self!r} is not open: use it inside `async with`"
            raise ManagerUsageError(message)
        if self._process != os.getpid():
            message = f"{self!r} belongs to the parent process: a forked child may not use it; make one of its own"
            raise ManagerUsageError(message)
        _check_asyncio(self._open.loop)
        if not is_closing:
            self._open.writer.check_open()
        if writes and self._settings.read_only:
            message = f"{self!r} was made with read_only=True: make one without it to save or delete"
            raise ReadOnlyError(message)
        return self._open


class OpenSession:
    """What a manager has while it is open."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it is made of
        self,
        settings: Settings,
        request: PolicyRequest,
        ops: DiskOps,
        jobs: Jobs,
        catalog: Catalog,
        pool: BufferPool,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.jobs = jobs
        self._settings = settings
        self.metric = MetricWatch(catalog, settings.metric_name, is_required=settings.metric_required)
        self.writer = Writer(settings, request, ops, jobs, catalog)
        self.pool = pool
        self.warmer = PoolWarmer(pool, jobs, settings.max_staged_nbytes)
        self.intake = Admission(settings, self.writer, jobs, catalog, pool, self.metric, self.warmer)
        self.loader = Loader(settings, request, self.writer, jobs, catalog)
        self.loader.on_loaded = self.warm
        self.idle = PoolTrimmer(pool, jobs)
        self.pending = PendingDirectories(settings.checkpoint_dir, ops, self.writer, jobs, catalog, self.metric)

    def warm(self, nbytes: int) -> None:
        """Make memory ready for the first save of a state that was loaded, so large; for a writer.

        A state that the budget does not hold is not copied as a whole.
        """
        is_writer = self._settings.enabled and not self._settings.read_only
        if is_writer and INLINE_NBYTES < nbytes <= self._settings.max_staged_nbytes:
            self.warmer.warm(nbytes)

    async def close(self) -> None:
        """Wait for the writer, then end the threads, then let go of the lock."""
        self.idle.stop()
        self.warmer.stop()
        is_stuck = await self.writer.wait_closed()
        if not is_stuck:
            await self.jobs.run_stoppable(
                self.writer.grace.start_countdown, self.pool.close
            )  # giving memory back takes its time
        await self.jobs.close(is_stuck=is_stuck)
        self.writer.give_lock_back()


def _list(ops: DiskOps, settings: Settings, request: PolicyRequest) -> Listed:
    is_writer = settings.enabled and not settings.read_only
    root = settings.checkpoint_dir
    return commit.list_directory(ops, root, request, is_writer=is_writer, must_exist=settings.read_only)


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


def raise_failures(failures: list[Exception]) -> None:
    """Raise a failure, or several as a group; nothing if there is none. A single one is not left in the list."""
    if len(failures) == 1:
        raise failures.pop()  # it leads to the frames that have the list: they must not lead back
    if failures:
        message = f"{len(failures)} saves failed"
        raise ExceptionGroup(message, failures)
