"""What the parts of an open manager share: its options, store, threads and memory, its steps, and its warnings."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asyncckpt.errors import CheckpointWarning, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from asyncckpt.config import Settings
    from asyncckpt.runtime.buffers import BufferPool, PoolWarmer
    from asyncckpt.runtime.deadline import ShutdownDeadline
    from asyncckpt.runtime.jobs import Jobs
    from asyncckpt.saving.catalog import Catalog
    from asyncckpt.saving.metric import MetricWatch, PolicyRequest
    from asyncckpt.saving.schedule import SaveSchedule
    from asyncckpt.storage.base import CheckpointStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The options, the store, the threads, the memory and the state that all parts of one open manager share."""

    settings: Settings
    policy_request: PolicyRequest
    store: CheckpointStore
    jobs: Jobs
    deadline: ShutdownDeadline
    pool: BufferPool
    warmer: PoolWarmer
    catalog: Catalog
    metric: MetricWatch
    steps: StepLedger
    schedule: SaveSchedule
    warnings: DirectoryWarnings

    @property
    def root(self) -> Path:
        """The checkpoint directory."""
        return self.settings.checkpoint_dir


class StepLedger:
    """The steps that are being saved, filled or loaded. Used on the loop's thread only.

    Attributes:
        in_flight: Steps that are reserved, from the call of `save` until the save has ended.
        filling: Steps whose pending directory a caller is filling; no save may clear it.
        loading: Steps that are being read, or to which the run went back; they are not pruned.
        discarded: Steps that the next commit discards, because the run went back to an earlier one.
        on_busy: Called when a first step is reserved.
        on_idle: Called when no step is reserved any more.
    """

    def __init__(self) -> None:
        self.in_flight: Counter[int] = Counter()
        self.filling: set[int] = set()
        self.loading: Counter[int] = Counter()
        self.discarded: frozenset[int] = frozenset()
        self.on_busy: Callable[[], None] = lambda: None
        self.on_idle: Callable[[], None] = lambda: None

    def reserve(self, step: int) -> None:
        """Reserve a step for a save."""
        was_idle = not self.in_flight
        self.in_flight[step] += 1
        if was_idle:
            self.on_busy()

    def free(self, step: int) -> None:
        """Free a step that was reserved."""
        _decrement(self.in_flight, step)
        if not self.in_flight:
            self.on_idle()

    @contextmanager
    def reading(self, step: int) -> Iterator[None]:
        """Keep a step from being pruned within the block."""
        self.loading[step] += 1
        try:
            yield
        finally:
            _decrement(self.loading, step)


def _decrement(counter: Counter[int], step: int) -> None:
    counter[step] -= 1
    if not counter[step]:
        del counter[step]


class DirectoryWarnings:
    """Issues each remark about a directory once. Used on the loop's thread only."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._issued: set[str] = set()

    def issue(self, remarks: Iterable[str]) -> None:
        """Warn of the remarks that are new, in the task of the caller."""
        for message in self._new(remarks):
            warn(message)

    def issue_in_background(self, remarks: Iterable[str]) -> None:
        """Warn of the remarks that are new, in a task that must not fail."""
        for message in self._new(remarks):
            warn_in_background(message)

    def _new(self, remarks: Iterable[str]) -> list[str]:
        new = [remark for remark in dict.fromkeys(remarks) if remark not in self._issued]
        self._issued.update(new)
        return [f"{self._root}: {remark}" for remark in new]


def warn_in_background(message: str) -> None:
    """Warn in a task that must not fail: where warnings are errors, the loop's exception handler is called instead."""
    try:
        warn(message)
    except CheckpointWarning as error:
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
