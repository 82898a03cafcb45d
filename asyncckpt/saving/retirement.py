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
5. Closing deletes what is left, unless time runs out. A failed deletion warns, and the next start tries again: what was
   retired is out of everybody's way.
"""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

from asyncckpt.disk import removal, room
from asyncckpt.disk.listing import missing
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.saving import commit

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable, Iterable

    from asyncckpt.config import Settings
    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.grace import Grace
    from asyncckpt.saving.catalog import Catalog
    from asyncckpt.saving.commit import Trash

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


class Retirement:
    """Applies the retention policy. Used on the loop's thread only."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with
        self,
        settings: Settings,
        ops: DiskOps,
        grace: Grace,
        catalog: Catalog,
        loading: Counter[int],
        warn: Callable[[str], None],
        change: Change,
    ) -> None:
        self._root = settings.checkpoint_dir
        self._ops = ops
        self._grace = grace
        self._catalog = catalog
        self._loading = loading
        self._warn = warn
        self._change = change
        self._trash: list[Trash] = []
        self._stuck: set[int] = set()  # steps that could not be pruned: not tried at each save
        self._stop = StopFlag()  # of the deletion that is under way
        self._is_held = False
        self._is_urgent = False
        self.task: asyncio.Task[None] | None = None
        """Deletes, while there is something to delete and nothing forbids it."""

    async def prune(self, *, exclude_latest: bool = True, committed: int | None = None) -> None:
        """Apply the retention policy."""
        loading = {step for step, count in self._loading.items() if count}
        surplus = self._catalog.surplus(exclude_latest=exclude_latest, protect=loading, committed=committed)
        refused = await self._retire([step for step in surplus if step not in self._stuck])
        for step, error in refused.items():
            self._stuck.add(step)
            self._warn(f"{self._root}: step {step} cannot be pruned: {error}; the next start tries again")

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
            surplus = self._catalog.surplus_after(step, training_info, protect=loading | self._stuck)
            if await self._grace.run(StopFlag(), room.would_suffice, self._root, surplus, nbytes):
                await self.retire(surplus)
                await self.finish()
        except Exception as error:  # noqa: BLE001 - whether there is room now, the save will see
            self._warn(f"{self._root}: making room for step {step} failed: {error}")

    async def retire(self, steps: list[int]) -> None:
        """Take steps away: their names durably, then their files when there is time.

        Raises:
            OSError: The disk failed, or would not let a step go; the others are gone.
        """
        for error in (await self._retire(steps)).values():
            raise error

    async def _retire(self, steps: list[int]) -> dict[int, OSError]:
        """Take steps away, and return why those stay that do."""
        if not steps:
            return {}
        try:
            trash, refused = await self._change(StopFlag(), commit.retire, self._ops, self._root, steps)
        except OSError:
            self._catalog.remove(await self._grace.run(StopFlag(), missing, self._root, steps))
            raise
        self._catalog.remove([step for step in steps if step not in refused])
        self._stuck.difference_update(set(steps) - refused.keys())  # one that is saved again may go again
        self.sweep(trash)
        return refused

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

    @property
    def _allowance(self) -> int:
        """How many retired checkpoints, the oldest first, may be deleted now."""
        count = len(self._trash)
        if not self._is_held or self._is_urgent:
            return count
        nbytes = sum(each.nbytes for each in self._trash)
        surplus = 0
        while surplus < count and (count - surplus > MAX_WAITING or nbytes > self._trash[-1].free_nbytes // 2):
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
            paths = [each.path for each in self._trash[:count]]
            self._stop = stop = StopFlag()
            try:
                count = await self._change(stop, removal.sweep, self._ops, self._root, paths, stop)
            except Exception as error:  # noqa: BLE001 - see 5
                self._warn(f"{self._root}: deleting old checkpoints failed: {error}; the next start tries again")
            del self._trash[:count]
