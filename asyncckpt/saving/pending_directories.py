"""Pending directories: checkpoints whose files the caller writes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from asyncckpt.errors import ManagerUsageError, StepExistsError
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.saving.commit import PendingState, read_pending_info, write_pending_state
from asyncckpt.saving.discards import note_discards
from asyncckpt.saving.environment import warn_in_background

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from asyncckpt.arrays import device
    from asyncckpt.saving.environment import Environment
    from asyncckpt.saving.going_back import GoingBack
    from asyncckpt.saving.ownership import DirectoryOwner
    from asyncckpt.saving.pruning import Pruner
    from asyncckpt.saving.queue import SaveQueue
    from asyncckpt.saving.schedule import Moment
    from asyncckpt.storage.base import CheckpointStore, LocalDirectories
    from asyncckpt.storage.results import PendingDirectory, StateFile

_HELPERS: Final = 3  # threads that help to write a state, as in `writer.py`


class PendingDirectories:
    """Makes, commits and discards pending directories. Used on the loop's thread only."""

    def __init__(
        self, env: Environment, queue: SaveQueue, owner: DirectoryOwner, pruner: Pruner, going_back: GoingBack
    ) -> None:
        self._env = env
        self._going_back = going_back
        self._queue = queue
        self._owner = owner
        self._pruner = pruner
        self._begun: dict[int, Moment] = {}  # when the program began to fill a step's directory

    async def begin(self, step: int, documents: Mapping[str, bytes]) -> Path:
        """Make a pending directory with its small files.

        Raises:
            StepExistsError: A save of the step is in flight.
        """
        if step in self._env.steps.in_flight:
            message = f"step {step} is being saved: await its handle first"
            raise StepExistsError(message, step=step)
        self._env.steps.reserve(step)
        self._begun[step] = self._env.schedule.moment()
        try:
            await self._owner.take()
            made: list[PendingDirectory] = []
            try:
                await self._owner.change_beside(_begin, local_directories(self._env.store), step, documents, made)
            except asyncio.CancelledError as error:  # the caller will never know its path
                for pending in made:
                    await self.discard(pending.path, error)
                raise
            self._env.warnings.issue_in_background(made[0].remarks)
            self._env.steps.filling.add(step)
            return made[0].path
        finally:
            self._env.steps.free(step)

    async def write_state(self, path: Path, state: object, moment: device.Moment, *, is_frozen: bool) -> StateFile:
        """Write a state into a pending directory, durably; see `PendingCheckpoint.save`."""
        self._queue.check_open()
        format_name = self._env.settings.format
        request = PendingState(path, state, moment, format_name, is_frozen)
        jobs, store = self._env.jobs, self._env.store
        unwanted: list[StateFile] = []
        try:
            return await jobs.run_in_context(_HELPERS, write_pending_state, store, request, discard=unwanted.append)
        except asyncio.CancelledError:
            for each in unwanted:  # it was complete when the caller was cancelled
                await jobs.run(local_directories(store).remove, path, each.name)
            raise

    async def commit(self, path: Path, state: StateFile | None = None) -> None:
        """Seal, publish and list a pending directory, in the writer's order; then prune.

        Args:
            path: The directory.
            state: What `write_state` has returned.

        Raises:
            ValueError: It is not a pending directory of this root.
            MetricMissingError: Its training_info lacks the metric that is required. It stays as it is.
        """
        directories = local_directories(self._env.store)
        step = directories.parse_step(path)

        async def action() -> None:
            is_saved = False
            try:
                await self._owner.take_in_writer()
                info = await self._env.deadline.run(StopFlag(), read_pending_info, directories, path)
                if info is not None and (lack := self._env.metric.check(step, info)) is not None:
                    warn_in_background(lack)
                self._env.catalog.begin(step)
                stop = StopFlag()
                later = self._going_back.discarded_by(step)

                def before_commit(created: float) -> None:
                    if later:
                        note_discards(self._env.store, step, created, later)

                committed = await self._owner.change(stop, directories.commit, path, stop, before_commit, state)
                self._env.catalog.add(committed.record(step, info or {}))
                is_saved = True
                self._env.warnings.issue_in_background(committed.remarks)
                self._pruner.sweep(committed.trash)
                await self._going_back.discard_after(step)
                await self._pruner.prune_after(step)
            finally:
                self._env.schedule.end(action, is_saved=is_saved)
                self._env.steps.filling.discard(step)  # if it failed, it may be tried again, or the step saved instead
                self._env.steps.free(step)

        self._env.steps.reserve(step)
        with self._env.schedule.calling(action):
            self._env.schedule.accept(action, self._begun.pop(step, None))
            await self._queue.perform(action)

    async def discard(self, path: Path, error: BaseException) -> None:
        """Delete a pending directory because of an error, to which an error of the disk is added as a note."""
        directories = local_directories(self._env.store)
        try:
            await self._owner.change_beside(directories.discard, path)
        except OSError as second:
            error.add_note(f"{path.name} could not be removed: {second}")
        finally:
            step = directories.parse_step(path)
            self._env.steps.filling.discard(step)
            self._begun.pop(step, None)


def local_directories(store: CheckpointStore) -> LocalDirectories:
    """Return the local directories of a store.

    Raises:
        ManagerUsageError: It has none.
    """
    if store.directories is None:
        message = f"{store.location} has no local directories: use save() and load() with a step"
        raise ManagerUsageError(message)
    return store.directories


def _begin(
    directories: LocalDirectories, step: int, documents: Mapping[str, bytes], made: list[PendingDirectory]
) -> None:
    """Make a pending directory and note it, so that a caller who is cancelled can discard it."""
    made.append(directories.begin(step, documents))
