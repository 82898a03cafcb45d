"""Plays the sessions of a workload of a directory: a program that saves, and says what was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import asyncckpt

from .contents import USERS_FILES, content, users_bytes, version_of
from .history import Event

if TYPE_CHECKING:
    from pathlib import Path

    from .directories import DirectoryWorkload
    from .disks import ShimDisk
    from .workload import Action, Healing


def retention_of(latest: int | None, every: int | None, top: int | None, *, higher_is_better: bool = True) -> Any:
    """Return a manager's options; the metric is the version."""
    options: dict[str, Any] = {"keep_latest_k": latest, "keep_top_k": top}
    if top is not None:
        options |= {"metric_name": "version", "higher_is_better": higher_is_better}
    if latest is not None or top is not None:
        options["keep_every"] = every
    return options


class DirectoryPlayer:
    """Plays sessions.

    Attributes:
        versions: The last version of each step whose save was begun.
    """

    def __init__(self, workload: DirectoryWorkload, root: Path, disk: ShimDisk, log: Any, *, is_patient: bool) -> None:
        self.workload = workload
        self.root = root
        self.disk = disk
        self.log = log
        self.is_patient = is_patient
        self.errors: list[Exception] = []
        self.versions = dict.fromkeys(workload.steps, 0)

    async def play(self, session: tuple[Action, ...], healing: Healing | None) -> None:
        """Play a session."""
        retention = retention_of(
            self.workload.keep_latest,
            self.workload.keep_every,
            self.workload.keep_top,
            higher_is_better=self.workload.higher_is_better,
        )
        try:
            async with asyncckpt.CheckpointManager(
                self.root, disk=self.disk, format=self.workload.form, **retention
            ) as manager:
                for kind, steps in session:
                    try:
                        await getattr(self, kind)(manager, *steps)
                    except asyncckpt.CheckpointNotFoundError:
                        if kind != "delete":  # retention was first
                            raise
                        self.log(Event("deleted", *steps))
                    except (OSError, asyncckpt.CheckpointError) as error:
                        self._fail(error)
                if healing is not None and healing.is_due(self.errors):
                    await self._look_and_save(manager, healing)
        except (OSError, asyncckpt.CheckpointError, ExceptionGroup) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self.is_patient:
            raise error
        self.errors.append(error)

    async def _look_and_save(self, manager: asyncckpt.CheckpointManager, healing: Healing) -> None:
        healing.heal()
        with contextlib.suppress(asyncckpt.CheckpointError, ExceptionGroup):  # what failed was told to its handle
            await manager.flush()  # retention may be taking steps away
        await manager.refresh()
        found = {step: await version_of(manager, step, self.workload.seed) for step in manager.steps()}
        healing.problem = healing.judge(found)
        step = max(self.versions, default=1)
        try:
            await self.burst(manager, step, step + 1)
        except Exception as error:  # noqa: BLE001 - it is the loss
            healing.problem = (
                healing.problem or f"the next save of the same manager on the healed disk failed: {error!r}"
            )

    def _next(self, step: int) -> int:
        version = self.versions[step] = self.versions.get(step, -1) + 1
        self.log(Event("begin", step, version))
        return version

    async def save(self, manager: asyncckpt.CheckpointManager, step: int) -> None:
        """Save a step, and wait."""
        await self.burst(manager, step)

    async def burst(self, manager: asyncckpt.CheckpointManager, *steps: int) -> None:
        """Save steps one behind the other, with a state that changes as soon as it may."""
        handles = []
        for step in steps:
            version = self._next(step)
            state = content(self.workload.seed, step, version)
            handle = await manager.save(
                step, state, training_info={"version": version}, run_config={"lr": 0.1}, overwrite=True
            )
            handles.append((handle, step, version))
            for array in state["arrays"]:
                array.fill(0xAA)
            state.clear()
        failed: Exception | None = None
        for handle, step, version in handles:
            try:
                await handle
            except asyncckpt.CheckpointError as error:
                failed = error
            else:
                self.log(Event("ack", step, version))
        if failed is not None:
            raise failed

    async def flush(self, manager: asyncckpt.CheckpointManager) -> None:
        """Wait for all."""
        await manager.flush()

    async def delete(self, manager: asyncckpt.CheckpointManager, step: int) -> None:
        """Delete a step."""
        self.log(Event("delete", step))
        await manager.delete(step)
        self.log(Event("deleted", step))

    async def finalize(self, manager: asyncckpt.CheckpointManager, step: int) -> None:
        """Commit a directory that the user has filled."""
        version = self._next(step)
        async with manager.checkpoint(step, {"version": version}, {"lr": 0.1}) as path:
            await asyncio.to_thread(self._write_users_files, path, step, version)
        self.log(Event("ack", step, version))

    async def discard(self, manager: asyncckpt.CheckpointManager, step: int) -> None:
        """Begin a directory, and think better of it."""
        with_error = RuntimeError("thought better of it")
        try:
            async with manager.checkpoint(step, {"version": 99}) as path:
                await asyncio.to_thread(self._write_users_files, path, step, 99)
                raise with_error
        except RuntimeError as error:
            if error is not with_error:
                raise

    def _write_users_files(self, path: Path, step: int, version: int) -> None:
        """Write as a user does: nothing is synced. It goes through our disk, so that it is in the record."""
        for folder in ("sub", "sub/deep"):
            self.disk.mkdir(path / folder)
        for name in USERS_FILES:
            fd = self.disk.create(path / name)
            try:
                data = users_bytes(self.workload.seed, step, version, name)
                done = 0
                while done < len(data):
                    done += self.disk.write(fd, [data[done:]], done)
            finally:
                os.close(fd)
