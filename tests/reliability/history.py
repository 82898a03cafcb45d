"""What a program knows of its saves, and what it may expect of the directory for that.

The one place that says what the guarantee means, step by step. It shares nothing with the library: not its retention,
not its catalog.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Event(NamedTuple):
    """Something that happened in the program."""

    kind: str
    """`begin` or `ack` of a version's save; `delete` or `deleted` of a step; `keep` and `keep-top` set the retention.

    Of a keyed file: `clear` when it is opened, and what is `found` then; `set` and `unset` of a key; `begin` and
    `ack` of a flush.
    """
    step: int
    """The step, or the key."""
    version: int = 0
    """The version, or the number that tells a key's values apart."""


@dataclass(slots=True)
class History:
    """What happened up to a moment."""

    acknowledged: dict[int, int] = field(default_factory=dict)
    """The version of each step that must be there, or a later one that was begun."""
    begun: dict[int, set[int]] = field(default_factory=dict)
    """Versions that may be there: their saves have begun, and not ended well."""
    may_be_gone: set[int] = field(default_factory=set)
    """Steps that retention has let go of, or whose deletion has begun."""
    gone: set[int] = field(default_factory=set)
    """Steps whose deletion was acknowledged."""
    keep_latest: int | None = None
    keep_every: int | None = None
    keep_top: int | None = None
    """How many of the best stay, by their versions: the greatest are the best, or the smallest; of equals the later."""
    higher_is_better: bool = True

    @classmethod
    def of(cls, events: Iterable[Event]) -> History:
        """Tell a history from its events."""
        history = cls()
        for event in events:
            history.take(event)
        return history

    def take(self, event: Event) -> None:
        """Go on."""
        kind, step, version = event
        if kind == "keep":
            self.keep_latest, self.keep_every = step or None, version or None
        elif kind == "keep-top":
            self.keep_top, self.higher_is_better = step or None, bool(version)
        elif kind == "begin":
            self.begun.setdefault(step, set()).add(version)
            self.gone.discard(step)
        elif kind == "ack":
            self.acknowledged[step] = version
            self.begun[step] = {each for each in self.begun.get(step, ()) if each > version}
            self.may_be_gone.discard(step)
            self.gone.discard(step)
            self.may_be_gone |= self.acknowledged.keys() - self._kept({})
        elif kind == "delete":
            self.may_be_gone.add(step)
        elif kind == "deleted":
            self.acknowledged.pop(step, None)
            self.begun.pop(step, None)
            self.gone.add(step)

    def _kept(self, found: Mapping[int, int]) -> set[int]:
        """Return what retention keeps for sure of what was acknowledged or found, the newest always."""
        ordered = sorted(self.acknowledged.keys() | found.keys())
        if self.keep_latest is None and self.keep_top is None:
            return set(ordered)
        kept = set(ordered[-(self.keep_latest or 1) :])
        kept |= {step for step in ordered if self.keep_every and step % self.keep_every == 0}
        return kept | (set() if self.keep_top is None else self._best(found, self.keep_top))

    def _best(self, found: Mapping[int, int], count: int) -> set[int]:
        """Return the acknowledged steps that are among the best, whichever of the saves that have begun are there."""
        ranks: dict[int, list[tuple[int, int]]] = {}
        for step in self.acknowledged.keys() | self.begun.keys() | found.keys():
            versions = {*self.begun.get(step, ()), self.acknowledged.get(step), found.get(step)} - {None}
            ranks[step] = [(each if self.higher_is_better else -each, step) for each in versions if each is not None]
        return {
            step
            for step in self.acknowledged
            if sum(max(rank) > min(ranks[step]) for other, rank in ranks.items() if rank and other != step) < count
        }

    def judge(self, found: Mapping[int, int]) -> str | None:
        """Say what is wrong with what was found, if something is.

        Args:
            found: The versions that load bit for bit, by step; -1 for a step that is listed and does not.
        """
        for step, version in sorted(found.items()):
            if version < 0:
                return f"step {step} is listed and does not load"
            if step in self.gone:
                return f"step {step} is back, version {version}, after its deletion was acknowledged"
            least = self.acknowledged.get(step, -1)
            if version < least:
                return f"step {step} is version {version} again, after version {least} was acknowledged"
            if version != least and version not in self.begun.get(step, ()):
                return f"step {step} has version {version}, which nobody saved"
        for step in sorted(self._kept(found) & self.acknowledged.keys() - self.may_be_gone - found.keys()):
            return (
                f"step {step} is lost: its version {self.acknowledged[step]} was acknowledged, and retention keeps it"
            )
        return None


@dataclass(slots=True)
class KeyedHistory:
    """What a program knows of its keyed file: it holds the last completed flush or a later one, all together."""

    current: dict[int, int] = field(default_factory=dict)
    """The number of each key that the program has set."""
    possible: list[dict[int, int]] = field(default_factory=lambda: [{}])
    """What the file may hold."""
    has_changed: bool = False
    """Whether anything was changed since it was opened: else a flush writes nothing, and vouches for nothing."""

    def take(self, event: Event) -> None:
        """Go on."""
        kind, key, number = event
        if kind == "clear":
            self.current, self.has_changed = {}, False
        elif kind in {"found", "set"}:
            self.current[key] = number
            self.has_changed = self.has_changed or kind == "set"
        elif kind == "unset":
            self.current.pop(key, None)
            self.has_changed = True
        elif kind == "begin":
            self.possible.append(dict(self.current))
        elif kind == "ack" and self.has_changed:
            self.possible = self.possible[-1:]

    def judge(self, found: Mapping[int, int]) -> str | None:
        """Say what is wrong with the numbers that were found, by key; -1 for one that does not load."""
        for key, number in found.items():
            if number < 0:
                return f"key {key} is there and does not load"
        if dict(found) not in self.possible:
            return f"the file holds {dict(found)}, and of the flushes it may hold: {self.possible}"
        return None
