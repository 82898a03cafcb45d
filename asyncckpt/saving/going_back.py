"""Going back to an earlier step: the later ones go with the first commit after that, and not before.

1. The intent is set in the writer's order, so a save that was queued before the load does not count as the first.
2. Until the commit the loaded step is not pruned, and the later ones are what they were.
3. The commit discards them by a document (`discards.py`). Deleting them comes after it, and may fail or be repeated.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

from asyncckpt.errors import ManagerUsageError
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.saving.discards import note_discards
from asyncckpt.saving.environment import warn_in_background

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncckpt.saving.catalog import LoadedCheckpoint
    from asyncckpt.saving.environment import Environment
    from asyncckpt.saving.ownership import DirectoryOwner
    from asyncckpt.saving.pruning import Pruner
    from asyncckpt.saving.queue import SaveQueue


class GoingBack:
    """Remembers to which step the run went back, until a save is committed. Used on the loop's thread only."""

    def __init__(self, env: Environment, queue: SaveQueue, owner: DirectoryOwner, pruner: Pruner) -> None:
        self._env = env
        self._queue = queue
        self._owner = owner
        self._pruner = pruner
        self._protection = ExitStack()  # of the step that was loaded

    async def load(self, load: Callable[[], Awaitable[LoadedCheckpoint]]) -> LoadedCheckpoint:
        """Load a checkpoint, and let the next commit discard the later ones.

        Raises:
            DirectoryLockedError: Another writer uses the directory; nothing was loaded.
            CheckpointError: As the load.
        """
        if not self._env.settings.enabled:
            message = f"the manager of {self._env.root} is disabled and deletes nothing: leave out discard_later"
            raise ManagerUsageError(message)
        await self._owner.take()
        loaded = await load()
        protection = ExitStack()
        protection.enter_context(self._env.steps.reading(loaded.step))
        is_wanted = True

        async def action() -> None:
            if is_wanted:
                self._protection.close()
                self._protection = protection
                self._env.steps.discarded = frozenset(
                    step for step in self._env.catalog.steps() if step > loaded.step
                ) - set(self._env.catalog.incomplete)

        with ExitStack() as undoing:
            undoing.callback(protection.close)
            self._queue.check_open()
            try:
                await self._queue.perform(action)
            except asyncio.CancelledError:
                is_wanted = False
                if self._protection is protection:  # it had been done
                    self._env.steps.discarded = frozenset()
                raise
            undoing.pop_all()
        return loaded

    def discarded_by(self, step: int) -> tuple[int, ...]:
        """Return the steps that the commit of a step discards, ascending."""
        return tuple(sorted(self._env.steps.discarded - {step}))

    async def discard_after(self, step: int) -> None:
        """Delete what the commit of a step has discarded. A failure does not undo the commit: it warns."""
        steps = self.discarded_by(step)
        self._env.steps.discarded = frozenset()
        self._protection.close()
        if not steps:
            return
        try:
            try:
                await self._pruner.retire(steps)
            finally:
                left = [each for each in steps if self._env.catalog.get(each) is not None]
                self._env.catalog.remove(steps)
                # What is left stays discarded, even when the step that did it is pruned.
                await self._owner.change(StopFlag(), note_discards, self._env.store, None, None, left)
        except Exception as error:  # noqa: BLE001 - the save itself is safe
            warn_in_background(
                f"{self._env.root}: deleting what step {step} has discarded failed: {error}; it is listed no more, and"
                " the next start tries again"
            )
