"""Forking: a run starts from another run's checkpoint, which is copied, verified and committed as a save would be.

The source is only read: it is not locked, and nothing is written there.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from asyncckpt.errors import CheckpointNotFoundError, ManagerUsageError, StepExistsError
from asyncckpt.runtime.cancellation import DeferredCancellation
from asyncckpt.runtime.pacing import StopFlag, Stopped
from asyncckpt.saving.commit import copy_checkpoint
from asyncckpt.saving.listing import enter_store
from asyncckpt.storage.results import NoRoomError

if TYPE_CHECKING:
    from asyncckpt.saving.commit import Written
    from asyncckpt.saving.environment import Environment
    from asyncckpt.saving.metric import PolicyRequest
    from asyncckpt.saving.ownership import DirectoryOwner
    from asyncckpt.saving.pruning import Pruner
    from asyncckpt.saving.queue import SaveQueue
    from asyncckpt.saving.steps import Choice
    from asyncckpt.storage.base import CheckpointStore
    from asyncckpt.storage.results import CheckpointRecord


class Forking:
    """Copies checkpoints of other runs. Used on the loop's thread only."""

    def __init__(self, env: Environment, queue: SaveQueue, owner: DirectoryOwner, pruner: Pruner) -> None:
        self._env = env
        self._queue = queue
        self._owner = owner
        self._pruner = pruner

    async def fork(self, source: CheckpointStore, which: int | Choice) -> CheckpointRecord:
        """Copy a checkpoint of another store; see `CheckpointManager.fork`."""
        env = self._env
        step = await env.jobs.run(_choose, source, env.store, env.policy_request, which)
        self._queue.check_open()
        if step in env.steps.in_flight or step in env.steps.filling:
            message = f"step {step} is being saved here: await its handle first, and delete the step, or fork another"
            raise StepExistsError(message, step=step)
        stop, cancellation = StopFlag(), DeferredCancellation()
        ended: list[asyncio.Future[None]] = []

        async def action() -> CheckpointRecord | None:
            if stop.is_set:
                return None
            ended.append(asyncio.get_running_loop().create_future())
            try:
                return await self._copy(source, step, stop)
            except Stopped:
                if cancelled:
                    return None
                raise
            finally:
                ended[0].set_result(None)

        cancelled = False
        env.steps.reserve(step)
        try:
            record: CheckpointRecord = await self._queue.perform(action)
        except asyncio.CancelledError:
            cancelled = True
            stop.set()
            for each in ended:  # until what was copied is gone
                await cancellation.wait(each)
            raise
        finally:
            env.steps.free(step)
        return record

    async def _copy(self, source: CheckpointStore, step: int, stop: StopFlag) -> CheckpointRecord:
        env = self._env
        await self._owner.take_in_writer()
        if env.catalog.get(step) is not None:
            message = f"step {step} exists in {env.root}: delete it first, or fork into a new directory"
            raise StepExistsError(message, step=step)
        env.catalog.begin(step)
        try:
            written = await self._try_to_copy(source, step, stop)
        except NoRoomError as error:
            nbytes = error.nbytes
        else:
            return await self._list(written)
        await self._pruner.make_room(step, {}, nbytes)
        return await self._list(await self._try_to_copy(source, step, stop))

    async def _try_to_copy(self, source: CheckpointStore, step: int, stop: StopFlag) -> Written:
        context = self._env.jobs.context(source.read_threads - 1, stop=stop)
        least = self._env.settings.min_free_nbytes
        return await self._owner.change(stop, copy_checkpoint, self._env.store, source, step, least, context)

    async def _list(self, written: Written) -> CheckpointRecord:
        self._env.catalog.add(written.record)
        self._env.warnings.issue_in_background(written.remarks)
        self._pruner.sweep(written.trash)
        await self._pruner.prune_after(written.record.step)
        return written.returned


def _choose(source: CheckpointStore, store: CheckpointStore, request: PolicyRequest, which: int | Choice) -> int:
    """Return the step that is to be copied, in a thread."""
    if os.path.realpath(source.location) == os.path.realpath(store.location):
        message = f"{source.location} is this manager's own directory: make a manager for the new run's directory"
        raise ManagerUsageError(message)
    if isinstance(which, int):
        return which
    listing, ranking = enter_store(source, request, is_writer=False, must_exist=False)
    latest = max(listing.records.keys() - listing.incomplete, default=None)
    step = latest if which == "latest" else ranking.best().step
    if step is None:
        raise CheckpointNotFoundError(f"there is no checkpoint in {source.location}{source.describe_absence()}")
    return step
