"""Checkpoints whose files the caller writes: begun, filled by whoever, then committed or discarded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from asyncckpt.disk import removal
from asyncckpt.disk.names import Kind, parse_name
from asyncckpt.errors import StepExistsError
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.saving import commit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.jobs import Jobs
    from asyncckpt.saving.catalog import Catalog
    from asyncckpt.saving.metric import MetricWatch
    from asyncckpt.saving.writer import Writer


ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")


class PendingDirectories:
    """Begins and ends pending directories. Used on the loop's thread only."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with
        self, root: Path, ops: DiskOps, writer: Writer, jobs: Jobs, catalog: Catalog, metric: MetricWatch
    ) -> None:
        self._root = root
        self._ops = ops
        self._writer = writer
        self._jobs = jobs
        self._catalog = catalog
        self._metric = metric

    async def begin(self, step: int, documents: Mapping[str, bytes]) -> Path:
        """Make a pending directory with its small files.

        Raises:
            StepExistsError: A save of the step is in flight.
        """
        if step in self._writer.in_flight:
            message = f"step {step} is being saved: await its handle first"
            raise StepExistsError(message, step=step)
        self._writer.reserve_step(step)
        try:
            await self._writer.take_directory()
            made: list[Path] = []
            try:
                remarks = await self._change(commit.begin_pending, self._ops, self._root, step, documents, made)
            except asyncio.CancelledError as error:  # it has been made, and nobody will ever know
                for path in made:
                    await self.discard(path, error)
                raise
            self._writer.remark(remarks)
            self._writer.begun.add(step)
            return made[0]
        finally:
            self._writer.free_step(step)

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
            await self._writer.take_directory()
            info = await self._writer.grace.run(StopFlag(), commit.read_pending_info, self._root / path.name)
            if info is not None and (lack := self._metric.check(step, info)) is not None:
                self._writer._warn(lack)  # noqa: SLF001 - this runs in the writer's task
            self._catalog.begin(step)
            stop = StopFlag()
            written = await self._writer.change(stop, commit.finalize, self._ops, self._root, path, step, stop)
            self._catalog.add(written.record)
            self._writer.remark(written.remarks)
            self._writer.retirement.sweep(written.trash)
            await self._writer.retirement.prune_after(step)

        async def freeing() -> None:
            try:
                await action()
            finally:
                self._writer.begun.discard(step)  # if it failed, it may be tried again, or the step saved instead
                self._writer.free_step(step)

        self._writer.reserve_step(step)
        await self._writer.perform(freeing)

    async def _change(self, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs) -> ResultT:
        """Run a job that changes the directory, beside the writer's."""
        return await self._jobs.run(commit.change, self._root, self._writer.lock, job, *args, **kwargs)

    async def discard(self, path: Path, error: BaseException) -> None:
        """Delete a pending directory because of an error, which goes before one of the disk's."""
        try:
            await self._change(removal.discard, self._ops, path)
        except OSError as second:
            error.add_note(f"{path.name} could not be removed: {second}")
        finally:
            place = parse_name(path.name)
            if place is not None:
                self._writer.begun.discard(place[1])
