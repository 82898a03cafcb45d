"""The catalog of committed checkpoints. Used on the loop's thread; no I/O.

1. It holds committed checkpoints only: a step is added when its bytes, its directory and its parent are durable.
2. A step that this process has begun to write is not taken from a listing of the directory: it may have its name
   already, and not be durable yet, or never have become so.
3. A checkpoint found corrupt is still listed by `steps`, so that it can be examined and deleted, and is otherwise
   ignored. So is one without a manifest, which may belong to another program: only `overwrite` replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asyncckpt.saving.retention import Candidate, Ranking, RetentionPolicy, metric_of
from asyncckpt.storage.results import CheckpointRecord

if TYPE_CHECKING:
    from collections.abc import Collection

    from asyncckpt.storage.results import Identity, Listing


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCheckpoint(CheckpointRecord):
    """A checkpoint with its state."""

    state: Any = field(repr=False)
    """The state: new objects, or the one that `restore` filled."""


class Catalog:
    """The committed checkpoints of a directory, by step."""

    def __init__(self, policy: RetentionPolicy) -> None:
        self._records: dict[int, CheckpointRecord] = {}
        self._corrupt: dict[int, Identity] = {}
        self._incomplete: frozenset[int] = frozenset()
        self.ranking = Ranking(policy)
        """The intact ones, ranked by the policy of the manager's options and the directory's stored metric."""
        self._begun: set[int] = set()
        self.changes = 0
        """Counts additions and removals, so that a listing that is out of date by then can be repeated."""

    def __contains__(self, step: int) -> bool:
        """Whether the step is committed, and not known to be corrupt."""
        return step in self._records and step not in self._corrupt

    def replace(self, listing: Listing, ranking: Ranking) -> None:
        """Replace all records by those of a listing and their ranking, without the steps that were begun.

        What is known to be corrupt stays so, unless another process has saved the step again since.
        """
        self._records, self.ranking, self._incomplete = listing.records, ranking, listing.incomplete
        for step in self._begun & self._records.keys():
            del self._records[step]
        self._corrupt = {
            step: identity
            for step, identity in self._corrupt.items()
            if step in self._records and self._records[step].identity == identity
        }
        self.ranking.remove(self._begun | self._corrupt.keys())

    def add(self, record: CheckpointRecord) -> None:
        """Add a checkpoint that has just been committed."""
        self.changes += 1
        self._begun.discard(record.step)
        is_in_order = record.step in self._records or record.step > next(reversed(self._records), -1)
        self._records[record.step] = record
        self._corrupt.pop(record.step, None)
        self._incomplete -= {record.step}
        self.ranking.add(candidate_of(record, self.ranking.policy))
        if not is_in_order:
            self._records = dict(sorted(self._records.items()))

    def remove(self, steps: Collection[int]) -> None:
        """Forget steps."""
        self.changes += 1
        self.ranking.remove(steps)
        for step in steps:
            self._records.pop(step, None)
            self._corrupt.pop(step, None)

    def begin(self, step: int) -> None:
        """Note that a step is about to be written: until it is added, it is not committed, whatever a listing shows."""
        if step not in self._records:
            self._begun.add(step)

    def is_begun(self, step: int) -> bool:
        """Whether a step was begun and has not been committed."""
        return step in self._begun

    def mark_corrupt(self, step: int) -> None:
        """Note that a step was found corrupt; one without a manifest stays what it is."""
        if step in self._records and step not in self._incomplete:
            self.ranking.remove([step])
            self._corrupt[step] = self._records[step].identity

    def records(self) -> dict[int, CheckpointRecord]:
        """Return all records by step, corrupt or not, for another thread."""
        return self._records.copy()

    def get(self, step: int) -> CheckpointRecord | None:
        """Return a step's record, corrupt or not."""
        return self._records.get(step)

    def path_of(self, step: int | None) -> str | None:
        """Return the path of a step's directory; None if there is no step, or no record of it."""
        record = None if step is None else self._records.get(step)
        return None if record is None else record.directory

    def steps(self) -> list[int]:
        """Return all committed steps, ascending."""
        return list(self._records)

    @property
    def incomplete(self) -> frozenset[int]:
        """The steps without a manifest, which may belong to another program."""
        return self._incomplete

    def latest(self, *, without: Collection[int] = ()) -> int | None:
        """Return the newest intact step, or None; some may be left out."""
        steps = (step for step in reversed(self._records) if self._is_intact(step) and step not in without)
        return next(steps, None)

    def _is_intact(self, step: int) -> bool:
        return step not in self._corrupt and step not in self._incomplete

    def to_prune_after(self, step: int, training_info: dict[str, Any], *, protect: Collection[int]) -> list[int]:
        """Return the intact steps that retention would give up if a step were committed, ascending.

        The latest and the best of those that there are now are not among them: they stay until the step is committed.
        """
        ranking = self.ranking
        kept = {*protect, self.latest(), ranking.best().step}
        ranking.add(Candidate(step, metric_of(training_info, self.ranking.policy.metric_name)))
        steps = ranking.to_prune(committed=step)
        ranking.remove([step])
        if step in self._records and self._is_intact(step):
            ranking.add(candidate_of(self._records[step], self.ranking.policy))
        return [each for each in steps if each not in kept]


def candidate_of(record: CheckpointRecord, policy: RetentionPolicy) -> Candidate:
    """Return a record as it is ranked under a policy."""
    return Candidate(record.step, metric_of(record.training_info, policy.metric_name))
