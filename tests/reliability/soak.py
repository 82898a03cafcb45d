"""Rig: long use at random, against a model: the state machines of `soak_machines.py`, driven by hypothesis.

1. A unit is a seed of hypothesis. A loss comes with the shortest run of operations that hypothesis found to lead to it.
2. Or it is long: one place in use, without a pause, in one process. What leaks grows with every round, however little
   it is, so its memory is judged by how much more it has late than early, when all caches and pools are full.
"""

from __future__ import annotations

import importlib.util
import statistics
import traceback
from typing import TYPE_CHECKING, ClassVar, Final

import asyncckpt.runtime.jobs as jobs_module

from . import directories, files
from .rig import Result, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .soak_machines import Usage

_FORMS: Final = (*directories.FORMS, *files.FORMS)
_RUNS: Final = 30  # of a unit
_STEPS: Final = 40  # of a run: an operation each, or a few
_GROWTH_NBYTES: Final = 32 << 20  # while caches and pools are filled
_LONG_GROWTH_NBYTES: Final = 6 << 20  # the heap grows in steps of 2 MiB now and then, when it has become patchy
_ROUNDS: Final = 2000  # of the long units of the first seed: tens of seconds
_LATER_ROUNDS: Final = 100_000  # of the others: many minutes
_SAMPLES: Final = 24
_POOL: Final = 2  # threads of a long unit's place: few, so that none comes late, with memory of its own


class Soak(Rig):
    """Managers and keyed files."""

    name: ClassVar[str] = "soak"
    tries: ClassVar[str] = (
        "A manager, or a keyed file, is used at random for long: saves waited for and not, overwritten, pruned,"
        " deleted, loaded, verified, cancelled, closed and opened again, in this process one after the other. What is"
        " found is what a model says, at every operation; memory and descriptors stay as they were. One that is used"
        " for many minutes takes at the end the memory, descriptors and threads that it took early."
    )
    cases: ClassVar[str] = "operations"
    quick: ClassVar[int] = 5000 + _ROUNDS * len(_FORMS)
    goal: ClassVar[int] = 1_000_000
    seconds: ClassVar[float] = 3600.0  # of which shortening what was lost may take most, or many rounds

    def missing(self) -> str | None:
        """Look for hypothesis."""
        return None if importlib.util.find_spec("hypothesis") else "needs the package hypothesis"

    def units(self, seed: int) -> Iterator[str]:
        """Give a long one of each kind of file first, and then of one kind for each seed; and one of each kind."""
        if seed == 1:
            yield from (f"long/{_ROUNDS}/{form}/{seed}" for form in _FORMS)
        else:
            yield f"long/{_LATER_ROUNDS}/{_FORMS[seed % len(_FORMS)]}/{seed}"
        yield from (f"{form}/{seed}" for form in _FORMS)

    def run(self, unit: str, scratch: Path) -> Result:
        """Let hypothesis choose, or a generator for long."""
        from .soak_machines import use_at_random, use_for_long  # hypothesis need not be there

        *size, form, seed = unit.split("/")  # none; or `long` and how many rounds; or `runs` and how many
        long = size if size[:1] == ["long"] else []
        runs = int(size[1]) if size[:1] == ["runs"] else _RUNS
        result = Result()
        try:
            if long:
                jobs_module._THREADS = _POOL  # type: ignore[misc]
                reopens = int(seed) // len(_FORMS) % 2 == 1  # what grows while a place is open, or with each opening
                used = use_for_long(form, int(seed), scratch, rounds=int(long[1]), samples=_SAMPLES, reopens=reopens)
            else:
                used = use_at_random(form, int(seed), scratch, runs=runs, steps=_STEPS)
        except Exception as error:  # noqa: BLE001 - it is the loss, with the operations that led to it as its notes
            result.losses.append("".join(traceback.format_exception(error))[-4000:])
            result.tried = 1
            return result
        result.tried = used.operations
        result.count(f"of {form}", used.operations)
        if long:
            result.losses += _judge_long(used.usages[:_SAMPLES])
            return result
        # The first runs fill caches and pools.
        early, late = used.usages[len(used.usages) // 4], used.usages[-1]
        if late.descriptors > early.descriptors or late.nbytes > early.nbytes + _GROWTH_NBYTES:
            result.losses.append(f"{early} became {late}")
        return result


def _judge_long(usages: list[Usage]) -> list[str]:
    """Compare the last third with the one before it: the first one fills caches and pools."""
    third = len(usages) // 3
    early, late = usages[third : 2 * third], usages[2 * third :]
    losses = []
    growth = int(statistics.median(each.nbytes for each in late) - statistics.median(each.nbytes for each in early))
    if growth > _LONG_GROWTH_NBYTES:
        losses.append(f"memory grows: {growth >> 10} KiB more; {[each.nbytes >> 10 for each in usages]} KiB in all")
    for what in ("descriptors", "threads"):
        numbers = [getattr(each, what) for each in usages]
        if min(numbers[2 * third :]) > max(numbers[third : 2 * third]):
            losses.append(f"{what} grow: {numbers}")
    return losses
