"""The right to change a store, and jobs that need it.

The first change takes the store; see `CheckpointStore.take`. Then it is listed.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from asyncckpt.saving.listing import take_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.runtime.pacing import StopFlag
    from asyncckpt.saving.environment import Environment
    from asyncckpt.storage.base import CheckpointStore

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")


class DirectoryOwner:
    """Takes a store, changes it, and gives it back. Used on the loop's thread only."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._is_taken = False
        self.taking: asyncio.Task[None] | None = None
        """The attempt to take the directory that is under way."""

    async def take(self) -> None:
        """Take the directory, if that has not been done.

        All callers wait for one attempt, which goes on when one of them is cancelled.

        Raises:
            DirectoryLockedError: There is another writer.
            OSError: The directory cannot be made or written.
        """
        while not self._is_taken:
            taking = self._attempt()
            try:
                await asyncio.wait((taking,))
                taking.result()
            finally:
                del taking  # it holds its error, whose traceback holds this frame

    async def take_in_writer(self) -> None:
        """Take the directory as `take` does, in the writer's task, where a cancellation only starts the countdown."""
        while not self._is_taken:
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
            listing, ranking = await env.jobs.run_stoppable(
                env.deadline.start_countdown, take_store, env.store, env.policy_request, env.catalog.records()
            )
        finally:
            self.taking = None  # if it failed, its error is for the callers only
        self._is_taken = True
        env.catalog.replace(listing, ranking)
        env.warnings.issue_in_background(listing.remarks)

    async def change(
        self, stop: StopFlag, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> ResultT:
        """Run a job of the writer's that changes the directory, as `ShutdownDeadline.run` does.

        Raises:
            FileNotFoundError: The directory was removed or replaced.
        """
        return await self._env.deadline.run(stop, _change, self._env.store, job, *args, **kwargs)

    async def change_beside(
        self, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> ResultT:
        """Run a job that changes the directory, for a caller, beside those of the writer."""
        return await self._env.jobs.run(_change, self._env.store, job, *args, **kwargs)

    def release(self) -> None:
        """Give the directory back when the last job has ended; a thread that is stuck keeps it until then."""
        self._env.jobs.when_idle(self._env.store.release)


def _change(
    store: CheckpointStore, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs
) -> ResultT:
    """Do a job that changes a store, if this is its writer still.

    Raises:
        OSError: The location was removed or has another writer, and the job was not done; or the store failed.
    """
    store.check()
    return job(*args, **kwargs)
