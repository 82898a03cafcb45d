"""Checkpoints that go: chosen, taken away durably, and deleted while nobody waits for the disk.

1. A victim loses its name, durably, in the writer's order (it is retired); its files are deleted later (swept), beside
   whatever the writer does.
2. While a save is on its way, from its call to its end, no file is begun to be unlinked: unlinking a large one takes as
   long as writing it, and slows down who writes meanwhile. A save that comes in the middle of an unlink is not held up:
   it goes on beside.
3. What waits is bounded, or back-to-back saves would fill the disk: while more than `MAX_WAITING` retired checkpoints
   wait, or while they hold more than half as much as the disk has left, the writer takes no save.
4. A save that finds no room waits until all of them are gone. Then that goes which retention will give up for it, but
   only if this makes enough room; the latest and the best stay until the save is committed.
5. Closing deletes what is left, unless time runs out. What cannot be deleted is out of everybody's way: a warning names
   it, and the next start tries again.
6. A checkpoint that cannot be retired is named once, keeps no other, and is tried again: one of them whenever others
   are pruned after a commit, in turn, and all of them in any other prune.
"""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

from asyncckpt.disk import removal, room
from asyncckpt.disk.listing import missing
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.saving import commit

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from asyncckpt.config import Settings
    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.deadline import ShutdownDeadline
    from asyncckpt.saving.catalog import Catalog
    from asyncckpt.saving.commit import Retired, Trash

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")


class Change(Protocol):
    """`Writer.change`."""

    def __call__(
        self, stop: StopFlag, job: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> Awaitable[ResultT]:
        """Run a job that changes the directory."""
        ...


MAX_WAITING: Final = 4
"""Retired checkpoints that may wait to be deleted while saves are on their way."""


class Pruner:
    """Applies the retention policy. Used on the loop's thread only."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with
        self,
        settings: Settings,
        ops: DiskOps,
        grace: ShutdownDeadline,
        catalog: Catalog,
        loading: Counter[int],
        warn: Callable[[str], None],
        remark: Callable[[Iterable[str]], None],
        change: Change,
    ) -> None:
        self._root = settings.checkpoint_dir
        self._ops = ops
        self._grace = grace
        self._catalog = catalog
        self._loading = loading
        self._warn = warn
        self._remark = remark
        self._change = change
        self._trash: list[Trash] = []
        self._left_nbytes = 0  # of what could not be deleted
        self._stuck: list[int] = []  # steps that could not be pruned; who has waited longest comes first
        self._stop = StopFlag()  # of the deletion that is under way
        self._is_held = False
        self._is_urgent = False
        self.task: asyncio.Task[None] | None = None
        """Deletes, while there is something to delete and nothing forbids it."""

    async def prune(self, *, exclude_latest: bool = True, committed: int | None = None) -> None:
        """Apply the retention policy."""
        loading = {step for step, count in self._loading.items() if count}
        surplus = self._catalog.surplus(exclude_latest=exclude_latest, protect=loading, committed=committed)
        again = [step for step in self._stuck if step in surplus]
        steps = [step for step in surplus if step not in again]
        if committed is not None:
            again = again[: bool(steps)]
        retired = await self._retire([*steps, *again], durably=False)
        self._stuck = [step for step in self._stuck if step not in again] + list(retired.refused)
        self._remark(
            f"step {step} cannot be pruned: {each.path.name}: {each.reason}; it is tried again later"
            for step, each in retired.refused.items()
        )

    async def prune_after(self, step: int) -> None:
        """Apply the retention policy after a commit, which a failure does not undo: it warns."""
        try:
            await self.prune(committed=step)
        except Exception as error:  # noqa: BLE001 - the save itself is safe
            self._warn(f"{self._root}: pruning after step {step} failed: {error}; the next commit tries again")

    async def make_room(self, step: int, training_info: dict[str, Any], nbytes: int) -> None:
        """Delete what retention does not keep, for a save that so many bytes must be free for; a failure warns."""
        loading = {step for step, count in self._loading.items() if count}
        try:
            await self.prune()
            await self.finish()
            stop = StopFlag()
            with suppress(OSError):  # what stays has been told of before
                await self._change(stop, removal.sweep_all, self._ops, self._root, stop)
            surplus = self._catalog.surplus_after(step, training_info, protect=loading.union(self._stuck))
            if await self._grace.run(StopFlag(), room.would_suffice, self._root, surplus, nbytes):
                await self.retire(surplus)
                await self.finish()
        except Exception as error:  # noqa: BLE001 - whether there is room now, the save will see
            self._warn(f"{self._root}: making room for step {step} failed: {error}")

    async def retire(self, steps: Collection[int]) -> None:
        """Take steps away: their names durably, then their files when there is time.

        Raises:
            OSError: The disk failed, or would not let a step go; the others are gone.
        """
        retired = await self._retire(steps, durably=True)
        for step, (path, code, reason) in retired.refused.items():
            raise OSError(code, f"step {step} cannot be deleted: {reason}", str(path))

    async def _retire(self, steps: Collection[int], *, durably: bool) -> Retired:
        if not steps:
            return commit.Retired((), {}, ())
        job = partial(commit.retire, durably=durably)
        try:
            retired = await self._change(StopFlag(), job, self._ops, self._root, steps)
        except OSError:
            self._catalog.remove(await self._grace.run(StopFlag(), missing, self._root, steps))
            raise
        self._catalog.remove([step for step in steps if step not in retired.refused])
        self._remark(retired.remarks)
        self.sweep(retired.trash)
        return retired

    def sweep(self, trash: Iterable[Trash]) -> None:
        """Delete what has been retired, as soon as no save is on its way."""
        self._trash += trash
        self._go_on()

    # --- beside the saves ---------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Begin no more files: a save is on its way."""
        if not self._is_held:
            self._is_held = True
            self._stop.set()

    def resume(self) -> None:
        """Go on deleting: no save is on its way."""
        self._is_held = False
        self._go_on()

    @property
    def nbytes(self) -> int:
        """What has been retired, and is still there, takes on the disk, in bytes."""
        return self._left_nbytes + sum(each.nbytes for each in self._trash)

    async def catch_up(self) -> None:
        """Wait until no more than what may wait is left; for the writer, before it takes a save."""
        while self._is_held and self._allowance and not self._grace.is_over:
            self._go_on()
            await self._grace.wait_for(self._wait)

    async def finish(self) -> None:
        """Wait until everything is deleted, or time has run out; for the writer, who needs the room, or closes."""
        self._is_urgent = True
        self._go_on()
        while self.task is not None and not self.task.done():
            await self._grace.wait_for(self._wait)
        self._is_urgent = False

    async def finish_if_short(self) -> None:
        """Wait until everything is deleted, if it is much of what the disk has left; for who has freed space."""
        if self._surplus(len(self._trash)):
            await self.finish()

    @property
    def _allowance(self) -> int:
        """How many retired checkpoints, the oldest first, may be deleted now."""
        count = len(self._trash)
        if not self._is_held or self._is_urgent:
            return count
        return self._surplus(MAX_WAITING)

    def _surplus(self, most: int) -> int:
        """How many must be deleted until no more than `most` wait, nor more than half of what the disk has left."""
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
        if self._allowance and not self._grace.is_over and (self.task is None or self.task.done()):
            self.task = asyncio.Task(self._sweep(), loop=asyncio.get_running_loop(), context=contextvars.Context())

    async def _sweep(self) -> None:
        while (count := self._allowance) and not self._grace.is_over:
            trash = self._trash[:count]
            self._stop = stop = StopFlag()
            try:
                swept = await self._change(stop, commit.sweep, self._ops, self._root, trash, stop)
            except Exception as error:  # noqa: BLE001 - see 5
                self._warn(f"{self._root}: deleting old checkpoints failed: {error}; the next start tries again")
            else:
                count = swept.done
                self._left_nbytes += swept.left_nbytes
                self._remark(swept.remarks)
            del self._trash[:count]
