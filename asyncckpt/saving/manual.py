"""What a loop calls that writes its own files: the steps of a save, and of its retention, one by one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncckpt.disk.names import TRAINING_INFO_NAME
from asyncckpt.documents import parse_training_info
from asyncckpt.errors import CheckpointNotFoundError, CorruptCheckpointError, LeafError, ManagerUsageError
from asyncckpt.saving.admission import encode_documents
from asyncckpt.saving.session import Session
from asyncckpt.saving.steps import check_step
from asyncckpt.storage.local.records import read_records

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Mapping


class ManualCheckpoints(Session):
    """Pending directories, what becomes of them, and where the latest and the best are."""

    async def init_tmp_checkpoint(
        self, step: int, training_info: Mapping[str, object] | None = None, run_config: object = None
    ) -> Path:
        """Make a pending directory for a step, for the caller to put files into.

        Args:
            step: The step.
            training_info: Written to ``training_info.json``; numpy scalars and 0-d arrays, torch ones too, become
            numbers.
            run_config: Written to ``config.yaml`` if given.

        Returns:
            The directory, ``tmp_step_{step}``. A stale one was cleared first; where that cannot be done, or the name
            is taken by something else, a number follows.

        Raises:
            StepExistsError: A save of this step is in flight.
            UnsupportedLeafError: A value cannot be written.
            MetricMissingError: `training_info` lacks the metric, and ``metric_required`` is set; nothing was written.
            ManagerUsageError: The manager is disabled.
            OSError: The disk failed.
        """
        here = self._here(writes=True)
        step = check_step(step)
        self._check_enabled()
        with LeafError.naming(step):
            documents = encode_documents(step, training_info, run_config, here.metric)
        return await here.pending.begin(step, documents)

    async def finalize_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Commit a pending directory: manifest, sync, rename to ``step_{step}``, sync, then `remove_old_checkpoints`.

        It runs in the writer's order. An existing ``step_{step}`` is replaced.

        Args:
            path: What `init_tmp_checkpoint` returned. Below it there may be files and directories, nothing else.

        Raises:
            ValueError: The path is not a pending directory of this manager.
            MetricMissingError: Its training_info.json lacks the metric, and ``metric_required`` is set. The directory
                stays, and may be finalized again.
            CheckpointError: It holds a symbolic link or a special file.
            OSError: The disk failed. The step is not listed.
        """
        here = self._here(writes=True)
        self._check_enabled()
        await here.pending.commit(Path(path))

    async def remove_old_checkpoints(self, exclude_latest: bool = True) -> None:  # noqa: FBT001, FBT002 - a given name
        """Apply the retention policy, after everything queued so far.

        When this returns, what the policy gives up is committed no more. Its files are deleted beside the program, and
        before this returns if they hold more than half as much as the disk has left: ``statistics().trash_nbytes``. A
        step that cannot be removed stays, and a warning names what is in the way.

        Args:
            exclude_latest: Whether the newest checkpoint stays whatever the policy says.
        """
        here = self._here(writes=True)
        if not self._settings.enabled:
            return

        async def action() -> None:
            await here.writer.take_directory()
            await here.writer.retirement.prune(exclude_latest=exclude_latest)
            await here.writer.retirement.finish_if_short()

        await here.writer.perform(action)

    @asynccontextmanager
    async def checkpoint(
        self, step: int, training_info: Mapping[str, object] | None = None, run_config: object = None
    ) -> AsyncIterator[Path]:
        """Make a pending directory, and commit it when the block is left; an exception inside discards it.

        Raises:
            CheckpointError: As `init_tmp_checkpoint` and `finalize_checkpoint`.
        """
        path = await self.init_tmp_checkpoint(step, training_info, run_config)
        try:
            yield path
        except BaseException as error:
            await self._here(is_closing=True).pending.discard(path, error)
            raise
        await self.finalize_checkpoint(path)

    async def get_best_checkpoint_path(self) -> str | None:
        """Return the directory of the best checkpoint, or None if there is none; see `best_step`."""
        return self._path_of(await self._here().loader.choose("best"))

    async def get_latest_checkpoint_path(self) -> str | None:
        """Return the directory of the latest checkpoint, or None if there is none."""
        return self._path_of(await self._here().loader.choose("latest"))

    def _path_of(self, step: int | None) -> str | None:
        record = None if step is None else self._catalog.get(step)
        return None if record is None else str(record.path)

    async def load_training_info(self, path: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
        """Read a checkpoint's ``training_info.json``, without verifying it.

        Args:
            path: The checkpoint's directory; the latest one by default.

        Returns:
            The mapping, or None if `path` is None and there is no checkpoint.

        Raises:
            CheckpointNotFoundError: There is no such file.
            CorruptCheckpointError: It is not JSON.
        """
        import aiofiles  # with its own imports, as costly as all of this package's

        here = self._here()
        found = path if path is not None else await self.get_latest_checkpoint_path()
        if found is None:
            return None
        file_path = Path(found) / TRAINING_INFO_NAME
        try:
            file = await aiofiles.open(file_path, "rb", executor=here.jobs.executor)
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

    def _check_enabled(self) -> None:
        if not self._settings.enabled:
            message = f"{self!r} is disabled (enabled=False) and writes nothing: leave it out"
            raise ManagerUsageError(message)


def _load_checkpoint_history(
    checkpoint_dir: str | os.PathLike[str],
) -> list[tuple[int, Path, dict[str, Any]]]:
    """List the committed checkpoints of a directory as (step, path, training_info), by ascending step. Blocks."""
    return [(record.step, record.path, record.training_info) for record in read_records(Path(checkpoint_dir))]
