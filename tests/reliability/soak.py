"""Rig: long use at random, against a model: the state machines of `soak_machines.py`, driven by hypothesis.

A unit is a seed of hypothesis. A loss comes with the shortest run of operations that hypothesis found to lead to it.
"""

from __future__ import annotations

import importlib.util
import traceback
from typing import TYPE_CHECKING, ClassVar, Final

from . import directories, files
from .rig import Result, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RUNS: Final = 30  # of a unit
_STEPS: Final = 40  # of a run: an operation each, or a few
_GROWTH_NBYTES: Final = 32 << 20


class Soak(Rig):
    """Managers and files of many keys."""

    name: ClassVar[str] = "soak"
    tries: ClassVar[str] = (
        "A manager, or a file of many keys, is used at random for long: saves waited for and not, overwritten, pruned,"
        " deleted, loaded, verified, cancelled, closed and opened again, in this process one after the other. What is"
        " found is what a model says, at every operation; memory and descriptors stay as they were."
    )
    cases: ClassVar[str] = "operations"
    quick: ClassVar[int] = 5000
    goal: ClassVar[int] = 1_000_000
    seconds: ClassVar[float] = 600.0  # of which shortening what was lost may take most

    def missing(self) -> str | None:
        """Look for hypothesis."""
        return None if importlib.util.find_spec("hypothesis") else "needs the package hypothesis"

    def units(self, seed: int) -> Iterator[str]:
        """Give one for each kind of file."""
        for form in (*directories.FORMS, *files.FORMS):
            yield f"{form}/{seed}"

    def run(self, unit: str, scratch: Path) -> Result:
        """Let hypothesis choose."""
        from .soak_machines import use_at_random  # hypothesis need not be there

        form, _, seed = unit.partition("/")
        result = Result()
        try:
            used = use_at_random(form, int(seed), scratch, runs=_RUNS, steps=_STEPS)
        except Exception as error:  # noqa: BLE001 - it is the loss, with the operations that led to it as its notes
            result.losses.append("".join(traceback.format_exception(error))[-4000:])
            result.tried = 1
            return result
        result.tried = used.operations
        result.count(f"of {form}", used.operations)
        # The first runs fill caches and pools.
        (descriptors, nbytes), (descriptors_after, nbytes_after) = used.usages[len(used.usages) // 4], used.usages[-1]
        if descriptors_after > descriptors or nbytes_after > nbytes + _GROWTH_NBYTES:
            result.losses.append(
                f"{descriptors} descriptors became {descriptors_after}, {nbytes >> 10} KiB {nbytes_after >> 10} KiB"
            )
        return result
