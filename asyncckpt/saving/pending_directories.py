"""Pending directories: checkpoints whose files the caller writes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from asyncckpt.disk import removal
from asyncckpt.disk.names import Kind, parse_name
from asyncckpt.errors import StepExistsError
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.saving import commit
from asyncckpt.saving.directory_warnings import warn_in_background

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from asyncckpt.saving.environment import Environment
    from asyncckpt.saving.metric import MetricWatch
    from asyncckpt.saving.ownership import DirectoryOwner
    from asyncckpt.saving.pruning import Pruner
    from asyncckpt.saving.queue import SaveQueue


class PendingDirectories:
    """Makes, commits and discards pending directories. Used on the loop's thread only."""

    def __init__(
        self, env: Environment, queue: SaveQueue, owner: DirectoryOwner, pruner: Pruner, metric: MetricWatch
    ) -> None:
        self._root = env.root
        self._ops = env.ops
        self._deadline = env.deadline
        self._catalog = env.catalog
        self._steps = env.steps
        self._warnings = env.warnings
        self._queue = queue
        self._owner = owner
        self._pruner = pruner
        self._metric = metric

    async def begin(self, step: int, documents: Mapping[str, bytes]) -> Path:
        """Make a pending directory with its small files.

        Raises:
            StepExistsError: A save of the step is in flight.
        """
        if step in self._steps.in_flight:
            message = f"step {step} is being saved: await its handle first"
            raise StepExistsError(message, step=step)
        self._steps.reserve(step)
        try:
            await self._owner.take()
            made: list[Path] = []
            try:
                remarks = await self._owner.change_beside(
                    commit.begin_pending, self._ops, self._root, step, documents, made
                )
            except asyncio.CancelledError as error:  # the caller will never know its path
                for path in made:
                    await self.discard(path, error)
                raise
            self._warnings.issue_in_background(remarks)
            self._steps.filling.add(step)
            return made[0]
        finally:
            self._steps.free(step)

    async def commit(self, path: Path) -> None:
        """Seal, publish and list a pending directory, in the writer's order; then prune.

        Raises:
            ValueError: It is not a pending directory of this root.
            MetricMissingError: Its training_info lacks the metric that is required. It stays as it is.
        """
        place = parse_name(path.name)
        if place is None or place[0] is not Kind.PENDING:
            message = f"{path} is not named {Kind.PENDING}N: use what init_tmp_checkpoint returned"
            raise ValueError(message)
        step = place[1]

        async def action() -> None:
            await self._owner.take_in_writer()
            info = await self._deadline.run(StopFlag(), commit.read_pending_info, self._root / path.name)
            if info is not None and (lack := self._metric.check(step, info)) is not None:
                warn_in_background(lack)
            self._catalog.begin(step)
            stop = StopFlag()
            written = await self._owner.change(stop, commit.finalize, self._ops, self._root, path, step, stop)
            self._catalog.add(written.record)
            self._warnings.issue_in_background(written.remarks)
            self._pruner.sweep(written.trash)
            await self._pruner.prune_after(step)

        async def freeing() -> None:
            try:
                await action()
            finally:
                self._steps.filling.discard(step)  # if it failed, it may be tried again, or the step saved instead
                self._steps.free(step)

        self._steps.reserve(step)
        await self._queue.perform(freeing)

    async def discard(self, path: Path, error: BaseException) -> None:
        """Delete a pending directory because of an error, to which an error of the disk is added as a note."""
        try:
            await self._owner.change_beside(removal.discard, self._ops, path)
        except OSError as second:
            error.add_note(f"{path.name} could not be removed: {second}")
        finally:
            place = parse_name(path.name)
            if place is not None:
                self._steps.filling.discard(place[1])
