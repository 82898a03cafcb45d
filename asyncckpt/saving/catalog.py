"""What is committed. Owned by the loop's thread; no I/O.

1. It holds committed checkpoints only: a step enters when its bytes, its directory and its parent are durable.
2. A checkpoint found corrupt stays listed by `steps`, so that it can be looked at and deleted, and counts for nothing
   else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asyncckpt.saving.retention import BestChoice, Candidate, RetentionPolicy, choose_best, metric_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A committed checkpoint."""

    step: int
    path: Path
    """Its directory."""
    training_info: dict[str, Any] = field(default_factory=dict)
    """What was passed with it; numpy scalars have become numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCheckpoint(CheckpointRecord):
    """A checkpoint with its state."""

    state: Any
    """The state: new objects, or the one that `restore` filled."""


class Catalog:
    """The committed checkpoints of a directory, by step."""

    def __init__(self, policy: RetentionPolicy) -> None:
        self._policy = policy
        self._records: dict[int, CheckpointRecord] = {}
        self._corrupt: set[int] = set()

    def __contains__(self, step: int) -> bool:
        """Whether the step is committed, and not known to be corrupt."""
        return step in self._records and step not in self._corrupt

    def replace(self, records: Iterable[CheckpointRecord]) -> None:
        """Hold these instead of what was held; what is known to be corrupt stays so."""
        self._records = {record.step: record for record in sorted(records, key=lambda each: each.step)}
        self._corrupt &= self._records.keys()

    def add(self, record: CheckpointRecord) -> None:
        """Add a checkpoint that has just been committed."""
        is_newest = not self._records or record.step > next(reversed(self._records))
        self._records[record.step] = record
        self._corrupt.discard(record.step)
        if not is_newest:
            self._records = dict(sorted(self._records.items()))

    def remove(self, steps: Iterable[int]) -> None:
        """Forget steps."""
        for step in steps:
            self._records.pop(step, None)
            self._corrupt.discard(step)

    def mark_corrupt(self, step: int) -> None:
        """Note that a step was found corrupt."""
        if step in self._records:
            self._corrupt.add(step)

    def get(self, step: int) -> CheckpointRecord | None:
        """Return a step's record, corrupt or not."""
        return self._records.get(step)

    def steps(self) -> list[int]:
        """Return all committed steps, ascending."""
        return list(self._records)

    def intact(self) -> list[CheckpointRecord]:
        """Return the checkpoints not known to be corrupt, by ascending step."""
        return [record for step, record in self._records.items() if step not in self._corrupt]

    def latest(self) -> int | None:
        """Return the newest intact step, or None."""
        return next((step for step in reversed(self._records) if step not in self._corrupt), None)

    def candidates(self) -> list[Candidate]:
        """Return the intact checkpoints as retention sees them."""
        name = self._policy.metric_name
        return [Candidate(step=each.step, metric=metric_of(each.training_info, name)) for each in self.intact()]

    def best(self) -> BestChoice:
        """Choose the best intact checkpoint."""
        return choose_best(self.candidates(), self._policy)
