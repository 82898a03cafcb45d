"""Rig: programs whose tasks take part in a cut, in random schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cut_schedules import play
from .rig import Result, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PER_UNIT = 500


class Cuts(Rig):
    """Cuts."""

    name = "cut"
    tries = (
        "Producers, consumers and savers share queues of a cut, on a loop with a virtual clock, in random schedules"
        " with cancellations of tasks and of scopes of anyio, limits of time, deaths and new participants. At each cut,"
        " every item must be in exactly one place, and while it is held nothing may move, and no line of a"
        " participant's run; all must run between two cuts; no wake-up may be lost; in the end each item was consumed"
        " once."
    )
    cases = "schedules"
    quick = 10_000
    goal = 100_000

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each seed; that of the seed 0 is for the mistakes that must be seen."""
        yield f"schedules/{seed}"

    def run(self, unit: str, scratch: Path) -> Result:
        """Play schedules."""
        del scratch
        result = Result()
        first = int(unit.partition("/")[2]) * _PER_UNIT
        for seed in range(first, first + _PER_UNIT):
            problems, counts = play(seed)
            result.tried += 1
            result.losses += problems[:1]
            for kind, number in counts.items():
                result.count(kind, number)
            if result.has_enough:
                break
        return result
