"""Loads: the choice of a checkpoint, and the fallback where it is damaged.

1. A step that is being read is not pruned by this process.
2. A checkpoint found corrupt is marked in the catalog, so that it is neither the latest nor the best any more.
3. Another process may prune the chosen checkpoint before it is read: then the directory is listed again, and the choice
   is repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from asyncckpt.documents import TRAINING_INFO_NAME, parse_training_info
from asyncckpt.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, warn
from asyncckpt.saving.listing import list_again
from asyncckpt.saving.load_job import Loaded, LoadRequest, load_checkpoint, load_directory, verify_checkpoint
from asyncckpt.saving.pending_directories import local_directories
from asyncckpt.state.inline import INLINE_NBYTES
from asyncckpt.state.types import advice_on_unknown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from asyncckpt.saving.catalog import LoadedCheckpoint
    from asyncckpt.saving.environment import Environment
    from asyncckpt.saving.steps import Choice

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")


class Loader:
    """Reads checkpoints. Used on the loop's thread only."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._helpers = env.store.read_threads - 1

    async def refresh(self) -> None:
        """List the directory again."""
        while True:
            changes = self._env.catalog.changes
            listing, ranking = await self._env.jobs.run(
                list_again, self._env.store, self._env.policy_request, self._env.catalog.records()
            )
            if changes == self._env.catalog.changes:  # else the writer has committed or deleted something meanwhile
                self._env.catalog.replace(listing, ranking)
                self._env.warnings.issue(listing.remarks)
                return

    async def choose(self, which: Choice) -> int | None:
        """Return the latest or best step, or None; a read-only manager lists the directory first."""
        if self._env.settings.read_only:
            await self.refresh()
        return self.chosen(which)

    async def load_step(self, step: int, request: LoadRequest) -> LoadedCheckpoint:
        """Load this step and no other; see `CheckpointManager.load`."""
        if self._env.catalog.is_begun(step):  # it may have its name on the disk already, and is not durable
            raise self._not_committed(step)
        try:
            loaded = await self._reading(step, load_checkpoint, self._env.store, step, request)
        except CheckpointNotFoundError as error:
            if step in self._env.steps.in_flight:
                raise self._not_committed(step) from error
            raise
        return self._finish(loaded)

    def _not_committed(self, step: int) -> CheckpointNotFoundError:
        state = "yet: await its handle first" if step in self._env.steps.in_flight else f"in {self._env.root}"
        return CheckpointNotFoundError(f"step {step} is not committed {state}", step=step)

    async def load_path(self, path: Path, request: LoadRequest) -> LoadedCheckpoint:
        """Load the checkpoint in this directory, whether or not it is of this manager."""
        directories = local_directories(self._env.store)
        loaded = await self._env.jobs.run_in_context(self._helpers, load_directory, directories, path, request)
        return self._finish(loaded)

    async def load_choice(self, which: Choice, request: LoadRequest) -> LoadedCheckpoint:
        """Load the latest or the best, or the next one if that is damaged; see `CheckpointManager.load`."""
        has_listed = False
        overwritten: set[str] = set()
        while (step := await self.choose(which)) is not None:
            try:
                return await self.load_step(step, request)
            except CheckpointNotFoundError:
                if has_listed and not self._env.settings.read_only:
                    raise
                await self.refresh()
                has_listed = True
            except CorruptCheckpointError as error:
                overwritten.update(error.overwritten)
                error.overwritten = tuple(sorted(overwritten))
                instead = self.chosen(which)
                if instead is None or not self._env.settings.fallback:
                    raise
                message = f"falling back from step {step} to step {instead}: {error}"
                warn(message)
            except CheckpointError as error:
                if overwritten:  # by a checkpoint that was tried before
                    error.add_note(f"arrays overwritten by then: {', '.join(sorted(overwritten))}")
                raise
        if steps := self._env.catalog.steps():
            listed = ", ".join(map(str, steps))
            message = (
                f"every checkpoint in {self._env.root} has been found corrupt; their steps: {listed}. `verify` raises"
                " the reason for each"
            )
            raise CorruptCheckpointError(message, step=steps[-1])
        found = await self._env.jobs.run(self._env.store.describe_absence)
        raise CheckpointNotFoundError(f"there is no checkpoint in {self._env.root}{found}")

    async def verify(self, step: int) -> None:
        """Verify every file of a checkpoint; see `CheckpointManager.verify`."""
        await self._reading(step, verify_checkpoint, self._env.store, step)

    def chosen(self, which: Choice) -> int | None:
        """Return the latest or best step of those that are listed, or None; an odd choice of the best warns."""
        if which == "latest":
            return self._env.catalog.latest()
        choice = self._env.catalog.ranking.best()
        for message in choice.warnings:
            warn(message)
        return choice.step

    async def read_training_info(self, directory: Path) -> dict[str, Any]:
        """Read a checkpoint's training_info without verifying it; see `CheckpointManager.load_training_info`."""
        import aiofiles  # with its own imports, as costly as all of this package's

        file_path = directory / TRAINING_INFO_NAME
        try:
            file = await aiofiles.open(file_path, "rb", executor=self._env.jobs.executor)
            try:
                return parse_training_info(await file.read())
            finally:
                await file.close()  # as a context manager it would be closed in the loop's own threads
        except FileNotFoundError as error:
            message = f"{file_path} does not exist"
            raise CheckpointNotFoundError(message) from error
        except ValueError as error:
            message = f"{file_path}: {error}"
            raise CorruptCheckpointError(message, file=TRAINING_INFO_NAME) from error

    async def _reading(self, step: int, job: Callable[..., ResultT], /, *args: object) -> ResultT:
        with self._env.steps.reading(step):
            try:
                return await self._env.jobs.run_in_context(self._helpers, job, *args)
            except CorruptCheckpointError:
                self._env.catalog.mark_corrupt(step)
                raise

    def _finish(self, loaded: Loaded) -> LoadedCheckpoint:
        """Warn of objects that were restored as plain data, and make memory ready for a save of the state."""
        warn_of_plain_data(loaded)
        settings = self._env.settings
        # A state that the budget does not hold is not copied as a whole.
        if settings.is_writer and INLINE_NBYTES < loaded.staged_nbytes <= settings.max_staged_nbytes:
            self._env.warmer.warm(loaded.staged_nbytes)
        return loaded.checkpoint


def warn_of_plain_data(loaded: Loaded) -> None:
    """Warn of objects that were restored as plain data."""
    for name, path in loaded.unknown_types.items():
        warn(
            f"{path or 'the root'} was saved as {name}, which is not registered here, and comes back as plain data:"
            f" {advice_on_unknown(name)}, or give a template with like="
        )
