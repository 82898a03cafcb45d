"""Pruning and deletion of checkpoints, in the background.

1. A checkpoint to be deleted is retired first: it loses its name, durably, in the writer's order. Its files are deleted
   (swept) later, beside the writer.
2. While a step is in flight no new file is unlinked: unlinking a large file takes as long as writing it, and slows down
   the save beside it. A save that comes in the middle of an unlink does not wait for it.
3. What waits to be swept is bounded, or back-to-back saves would fill the disk: while more than `MAX_WAITING` retired
   checkpoints wait, or while they hold more than half as much as the disk has left, the writer takes no save.
4. A save that finds too little room waits until all of them are gone. Then what retention gives up for this save is
   deleted, but only if that makes enough room; the latest and the best stay until the save is committed.
5. Closing deletes what is left, unless time runs out. What cannot be deleted is in the way of nothing: a warning names
   it, and the next start tries again.
6. A checkpoint that cannot be retired is named once, does not stop the others, and is tried again: one of them, in
   rotation, whenever others are pruned after a commit, and all of them in any other prune.
"""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import suppress
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.saving.commit import would_suffice
from asyncckpt.saving.environment import warn_in_background
from asyncckpt.storage.results import Retired

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from asyncckpt.saving.environment import Environment
    from asyncckpt.saving.ownership import DirectoryOwner
    from asyncckpt.storage.results import Trash

MAX_WAITING: Final = 4
"""How many retired checkpoints may wait to be deleted while a step is in flight."""


class Pruner:
    """Applies the retention policy, and deletes what has been retired. Used on the loop's thread only."""

    def __init__(self, env: Environment, owner: DirectoryOwner) -> None:
        self._env = env
        self._owner = owner
        self._trash: list[Trash] = []
        self._left_nbytes = 0  # of what could not be deleted
        self._stuck: list[int] = []  # steps that could not be pruned, in the order in which they are tried again
        self._stop = StopFlag()  # of the deletion that is under way
        self._is_urgent = False
        self.task: asyncio.Task[None] | None = None
        """Deletes, while there is something to delete and nothing forbids it."""
        env.steps.on_busy = self._interrupt
        env.steps.on_idle = self._go_on

    async def prune(self, *, exclude_latest: bool = True, committed: int | None = None) -> None:
        """Apply the retention policy."""
        to_prune = self._env.catalog.ranking.to_prune(
            exclude_latest=exclude_latest, protect=self._env.steps.loading.keys(), committed=committed
        )
        again = [step for step in self._stuck if step in to_prune]
        steps = [step for step in to_prune if step not in again]
        if committed is not None:
            again = again[: bool(steps)]
        retired = await self._retire([*steps, *again], durably=False)
        self._stuck = [step for step in self._stuck if step not in again] + list(retired.refused)
        self._env.warnings.issue_in_background(
            f"step {step} cannot be pruned: {PurePath(error.filename).name}: {error.strerror}; it is tried again later"
            for step, error in retired.refused.items()
        )

    async def prune_after(self, step: int) -> None:
        """Apply the retention policy after a commit, which a failure does not undo: it warns."""
        try:
            await self.prune(committed=step)
        except Exception as error:  # noqa: BLE001 - the save itself is safe
            warn_in_background(
                f"{self._env.root}: pruning after step {step} failed: {error}; the next commit tries again"
            )

    async def make_room(self, step: int, training_info: dict[str, Any], nbytes: int) -> None:
        """Delete what retention does not keep, for a save that needs so many free bytes; a failure warns."""
        try:
            await self.prune()
            await self.finish()
            stop = StopFlag()
            with suppress(OSError):  # of which there has been a warning
                swept = await self._owner.change(stop, self._env.store.sweep, None, stop)
                self._left_nbytes = min(self._left_nbytes, swept.left_nbytes)
            steps = self._env.catalog.to_prune_after(
                step, training_info, protect={*self._env.steps.loading, *self._stuck}
            )
            if await self._env.deadline.run(StopFlag(), would_suffice, self._env.store, steps, nbytes):
                await self.retire(steps)
                await self.finish()
        except Exception as error:  # noqa: BLE001 - the save checks again
            warn_in_background(f"{self._env.root}: making room for step {step} failed: {error}")

    async def retire(self, steps: Collection[int]) -> None:
        """Remove the names of steps, durably, and later their files.

        Raises:
            OSError: The disk failed, or a step cannot be deleted; the others have been.
        """
        retired = await self._retire(steps, durably=True)
        for step, error in retired.refused.items():
            raise OSError(error.errno, f"step {step} cannot be deleted: {error.strerror}", error.filename)

    async def _retire(self, steps: Collection[int], *, durably: bool) -> Retired:
        if not steps:
            return Retired((), {}, ())
        try:
            retired = await self._owner.change(StopFlag(), partial(self._env.store.retire, durably=durably), steps)
        except OSError:
            self._env.catalog.remove(await self._env.deadline.run(StopFlag(), self._env.store.missing, steps))
            raise
        self._env.catalog.remove([step for step in steps if step not in retired.refused])
        self._env.warnings.issue_in_background(retired.remarks)
        self.sweep(retired.trash)
        return retired

    def sweep(self, trash: Iterable[Trash]) -> None:
        """Delete what has been retired, as soon as no step is in flight."""
        self._trash += trash
        self._go_on()

    def _interrupt(self) -> None:
        self._stop.set()

    # --- deletion of files --------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """The disk space that retired checkpoints still take, in bytes."""
        return self._left_nbytes + sum(each.nbytes for each in self._trash)

    async def catch_up(self) -> None:
        """Wait until no more is left than may wait; for the writer, before its next operation."""
        while self._env.steps.in_flight and self._allowance and not self._env.deadline.is_over:
            self._go_on()
            await self._env.deadline.wait_for(self._wait)

    async def finish(self) -> None:
        """Wait until everything is deleted, or time has run out; for the writer, when it needs the room or ends."""
        self._is_urgent = True
        self._go_on()
        while self.task is not None and not self.task.done():
            await self._env.deadline.wait_for(self._wait)
        self._is_urgent = False

    async def finish_if_short(self) -> None:
        """Wait until everything is deleted, if it takes more than half of the free space."""
        if self._surplus(len(self._trash)):
            await self.finish()

    @property
    def _allowance(self) -> int:
        """How many of the retired checkpoints, the oldest first, may be deleted now."""
        count = len(self._trash)
        if not self._env.steps.in_flight or self._is_urgent:
            return count
        return self._surplus(MAX_WAITING)

    def _surplus(self, most: int) -> int:
        """How many must be deleted until at most `most` wait, which take at most half of the free space."""
        nbytes = sum(each.nbytes for each in self._trash)
        count, surplus = len(self._trash), 0
        while surplus < count and (count - surplus > most or nbytes > self._trash[-1].free_nbytes // 2):
            nbytes -= self._trash[surplus].nbytes
            surplus += 1
        return surplus

    async def _wait(self) -> None:
        if self.task is not None:
            await asyncio.wait((self.task,))

    def _go_on(self) -> None:
        if self._allowance and not self._env.deadline.is_over and (self.task is None or self.task.done()):
            self.task = asyncio.Task(self._sweep(), loop=asyncio.get_running_loop(), context=contextvars.Context())

    async def _sweep(self) -> None:
        while (count := self._allowance) and not self._env.deadline.is_over:
            trash = self._trash[:count]
            self._stop = stop = StopFlag()
            try:
                swept = await self._owner.change(stop, self._env.store.sweep, trash, stop)
            except Exception as error:  # noqa: BLE001 - see 5
                warn_in_background(
                    f"{self._env.root}: deleting old checkpoints failed: {error}; the next start tries again"
                )
            else:
                count = swept.done
                self._left_nbytes += swept.left_nbytes
                self._env.warnings.issue_in_background(swept.remarks)
            del self._trash[:count]
