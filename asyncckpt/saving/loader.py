"""From a call of `load` to a checkpoint: which one, and what stands in for it.

1. A step that is being read is not pruned by this process.
2. A checkpoint found corrupt is noted in the catalog, so that it is neither the latest nor the best any more.
3. Another process may prune what was chosen before it is read: then the directory is listed again, and the choice made
   anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from asyncckpt.disk.diagnosis import describe_absence
from asyncckpt.disk.read_blocks import READERS
from asyncckpt.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, warn
from asyncckpt.saving import directory
from asyncckpt.saving.load_job import Loaded, LoadRequest, load_checkpoint, load_directory, verify_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from asyncckpt.config import Settings
    from asyncckpt.runtime.jobs import Jobs
    from asyncckpt.saving.catalog import Catalog, LoadedCheckpoint
    from asyncckpt.saving.metric import PolicyRequest
    from asyncckpt.saving.steps import Choice
    from asyncckpt.saving.writer import Writer

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")

_HELPERS: Final = READERS - 1


class Loader:
    """Reads checkpoints. Used on the loop's thread only."""

    def __init__(
        self, settings: Settings, request: PolicyRequest, writer: Writer, jobs: Jobs, catalog: Catalog
    ) -> None:
        self._settings = settings
        self._request = request
        self._root = settings.checkpoint_dir
        self._writer = writer
        self._jobs = jobs
        self._catalog = catalog
        self.on_loaded: Callable[[int], None] = lambda _: None
        """Called with the memory that a copy of a loaded state would take, in bytes."""

    async def refresh(self) -> None:
        """List the directory again."""
        while True:
            changes = self._catalog.changes
            listed = await self._jobs.run(directory.list_again, self._root, self._request, self._catalog.records())
            if changes == self._catalog.changes:  # else the writer has committed or deleted something meanwhile
                for remark in self._catalog.replace(listed):
                    warn(f"{self._root}: {remark}")
                return

    async def choose(self, which: Choice) -> int | None:
        """Return the latest or best step, or None; a read-only manager lists the directory first."""
        if self._settings.read_only:
            await self.refresh()
        return self.chosen(which)

    async def load_step(self, step: int, request: LoadRequest) -> LoadedCheckpoint:
        """Load this step and no other.

        Raises:
            CheckpointNotFoundError: It is not committed.
            CorruptCheckpointError: It is damaged.
        """
        try:
            self._check_not_begun(step)
            loaded = await self._reading(step, load_checkpoint, self._root, step, request)
        except CheckpointNotFoundError as error:
            if step in self._writer.in_flight:
                message = f"step {step} is not committed yet: await its handle first"
                raise CheckpointNotFoundError(message, step=step) from error
            raise
        _warn_of_plain_data(loaded)
        self.on_loaded(loaded.staged_nbytes)
        return loaded.checkpoint

    async def load_path(self, path: Path, request: LoadRequest) -> LoadedCheckpoint:
        """Load the checkpoint that a directory is, of this manager's or not.

        Raises:
            CheckpointNotFoundError: It is none.
            CorruptCheckpointError: It is damaged.
        """
        loaded = await self._jobs.run_in_context(_HELPERS, load_directory, path, request)
        _warn_of_plain_data(loaded)
        self.on_loaded(loaded.staged_nbytes)
        return loaded.checkpoint

    async def load_choice(self, which: Choice, request: LoadRequest) -> LoadedCheckpoint:
        """Load the latest or the best, or what stands in for it.

        Raises:
            CheckpointNotFoundError: There is no checkpoint.
            CorruptCheckpointError: It is damaged, and nothing stands in.
        """
        has_listed = False
        overwritten: set[str] = set()
        while (step := await self.choose(which)) is not None:
            try:
                return await self.load_step(step, request)
            except CheckpointNotFoundError:
                if has_listed and not self._settings.read_only:
                    raise
                await self.refresh()
                has_listed = True
            except CorruptCheckpointError as error:
                overwritten.update(error.overwritten)
                error.overwritten = tuple(sorted(overwritten))
                instead = self.chosen(which)
                if instead is None or not self._settings.fallback:
                    raise
                message = f"falling back from step {step} to step {instead}: {error}"
                warn(message)
            except CheckpointError as error:
                if overwritten:  # by a checkpoint tried before, whatever this error says of its own
                    error.add_note(f"arrays overwritten by then: {', '.join(sorted(overwritten))}")
                raise
        if steps := self._catalog.steps():
            listed = ", ".join(map(str, steps))
            message = (
                f"every checkpoint in {self._root} has been found corrupt; their steps: {listed}. `verify` says of each"
                " what is wrong with it"
            )
            raise CorruptCheckpointError(message, step=steps[-1])
        found = await self._jobs.run(describe_absence, self._root)
        raise CheckpointNotFoundError(f"there is no checkpoint in {self._root}{found}")

    def _check_not_begun(self, step: int) -> None:
        """Refuse a step that has its name on the disk, maybe, and is not durable."""
        if self._catalog.is_begun(step):
            raise CheckpointNotFoundError(f"step {step} is not committed in {self._root}", step=step)

    async def verify(self, step: int) -> None:
        """Read every file of a checkpoint and verify every bit of it."""
        await self._reading(step, verify_checkpoint, self._root, step)

    def chosen(self, which: Choice) -> int | None:
        """Return the latest or best step of those that are listed, or None; an odd choice of the best warns."""
        if which == "latest":
            return self._catalog.latest()
        choice = self._catalog.best()
        for message in choice.warnings:
            warn(message)
        return choice.step

    async def _reading(self, step: int, job: Callable[..., ResultT], /, *args: object) -> ResultT:
        self._writer.loading[step] += 1
        try:
            return await self._jobs.run_in_context(_HELPERS, job, *args)
        except CorruptCheckpointError:
            self._catalog.mark_corrupt(step)
            raise
        finally:
            self._writer.loading[step] -= 1
            if not self._writer.loading[step]:
                del self._writer.loading[step]


def _warn_of_plain_data(loaded: Loaded) -> None:
    for name, path in loaded.unknown_types.items():
        message = (
            f"{path or 'the root'} was saved as {name}, which is not registered here, and comes back as plain data: use"
            " asyncckpt.register_type, or give a template with like="
        )
        warn(message)
