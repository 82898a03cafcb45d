"""The right to change a checkpoint directory: the lock, and jobs that need it.

The first change takes the directory: it is made if it is missing, locked, recovered and listed.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from asyncckpt.saving import commit
from asyncckpt.saving.directory_warnings import warn_in_background

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.disk.lock import DirectoryLock
    from asyncckpt.runtime.pacing import StopFlag
    from asyncckpt.saving.environment import Environment

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")


class DirectoryOwner:
    """Takes a directory's lock, changes the directory under it, and gives it back. Used on the loop's thread only."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._root = env.root
        self._lock: DirectoryLock | None = None
        self.taking: asyncio.Task[None] | None = None
        """The attempt to take the directory that is under way."""

    async def take(self) -> None:
        """Take the directory, if that has not been done.

        All callers wait for one attempt, which goes on when one of them is cancelled.

        Raises:
            DirectoryLockedError: There is another writer.
            OSError: The directory cannot be made or written.
        """
        while self._lock is None:
            taking = self._attempt()
            try:
                await asyncio.wait((taking,))
                taking.result()
            finally:
                del taking  # it holds its error, whose traceback holds this frame

    async def take_in_writer(self) -> None:
        """Take the directory in the writer's task, where a cancellation only starts the countdown.

        Raises:
            DirectoryLockedError: There is another writer.
            OSError: The directory cannot be made or written.
        """
        while self._lock is None:
            await self._env.deadline.wait_for(self.take)

    def _attempt(self) -> asyncio.Task[None]:
        if self.taking is None or self.taking.done():
            loop = asyncio.get_running_loop()
            self.taking = asyncio.Task(self._take(), loop=loop, context=contextvars.Context())
            # Retrieve the error: if all callers are gone, the next save tries again.
            self.taking.add_done_callback(lambda taking: taking.cancelled() or taking.exception())
        return self.taking

    async def _take(self) -> None:
        env = self._env
        try:
            lock, listed = await env.jobs.run_stoppable(
                env.deadline.start_countdown,
                commit.change,
                self._root,
                None,
                commit.take_directory,
                env.ops,
                self._root,
                env.policy_request,
                env.catalog.records(),
            )
        finally:
            self.taking = None  # if it failed, its error is for the callers only
        self._lock = lock
        env.catalog.replace(listed)
        env.warnings.issue_in_background(listed.remarks)
        if not lock.is_supported:
            warn_in_background(f"{self._root} has no file locks: nothing keeps a second writer away")

    async def change(
        self, stop: StopFlag, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> ResultT:
        """Run a job of the writer's that changes the directory, as `ShutdownDeadline.run` does.

        Raises:
            FileNotFoundError: The directory was removed or replaced.
        """
        return await self._env.deadline.run(stop, commit.change, self._root, self._lock, job, *args, **kwargs)

    async def change_beside(
        self, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> ResultT:
        """Run a job that changes the directory beside the writer's, for a caller.

        Raises:
            FileNotFoundError: The directory was removed or replaced.
        """
        return await self._env.jobs.run(commit.change, self._root, self._lock, job, *args, **kwargs)

    def release(self) -> None:
        """Give the directory back when the last job has ended; a thread that is stuck keeps it until then."""
        lock, self._lock = self._lock, None
        if lock is not None:
            self._env.jobs.when_idle(lock.release)
