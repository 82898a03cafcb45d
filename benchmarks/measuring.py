"""Time one save, one load or one call; `workloads.py` says what is timed when."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks import machine
from benchmarks.loops import Stalls, ticking
from benchmarks.samples import Sample, as_line
from benchmarks.states import MIB

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path
    from typing import TextIO

    from benchmarks.scale import Scale
    from benchmarks.systems.base import System


_CLAIMED_PER_STATE: Final = 2
"""A copy of the state, and its file in the page cache."""
_CLAIMED_AT_LEAST: Final = 256 * MIB
_LARGE_NBYTES: Final = 64 * MIB
_SMALL_SETTLE: Final = 0.2  # seconds, for what takes little memory


class GivenUpError(Exception):
    """A save took too long. The process must end, because the save continues in its threads."""


class Labels(NamedTuple):
    """What all samples of one process have in common."""

    workload: str
    system: str
    round: int


class Context:
    """The arguments of a workload: where to work, how much to do, and where to record the results."""

    def __init__(self, scale: Scale, *, labels: Labels, root: Path, out: TextIO) -> None:
        self.scale = scale
        self.root = root
        self._labels = labels
        self._out = out

    def record(self, measure: str, value: float, *, is_censored: bool = False) -> None:
        """Record one number, in seconds unless its name says otherwise."""
        sample = Sample(**self._labels._asdict(), measure=measure, value=value, is_censored=is_censored)
        self._out.write(as_line(sample))
        self._out.flush()  # keep what was measured even if the process is killed

    def rest(self, nbytes: int) -> None:
        """Bring the machine into the same condition before each measurement, with a state of `nbytes`.

        Freed memory is returned and the disk comes to rest; then as much memory as the measurement may take is claimed
        for the guest's kernel. Floors and all libraries are measured after this.
        """
        machine.return_memory()
        machine.settle_disk(self.root)
        is_large = nbytes >= _LARGE_NBYTES
        machine.claim_memory(
            max(nbytes * _CLAIMED_PER_STATE, _CLAIMED_AT_LEAST),
            hold=self.scale.settle if is_large else min(self.scale.settle, _SMALL_SETTLE),
        )

    async def settle(self, nbytes: int) -> None:
        """Rest, in a thread."""
        await asyncio.to_thread(self.rest, nbytes)


class SaveTimes(NamedTuple):
    """The times of one save, and the loop's stalls meanwhile, in seconds."""

    blocked: float
    durable: float
    stalls: Stalls


async def time_save(system: System, step: int, state: Any) -> SaveTimes:
    """Save while a ticker runs, from the call to durability."""
    async with ticking() as ticker:
        start = time.perf_counter()
        await system.save(step, state)
        blocked = time.perf_counter() - start
        await system.wait_durable(step)
        durable = time.perf_counter() - start
    return SaveTimes(blocked, durable, ticker.stalls)


async def time_save_within(system: System, step: int, state: Any, limit: float) -> tuple[float | None, float | None]:
    """Save without a ticker; return (blocked, durable), None for either that took more than `limit` seconds."""
    start = time.perf_counter()
    blocked: float | None = None

    async def save() -> float:
        nonlocal blocked
        await system.save(step, state)
        blocked = time.perf_counter() - start
        await system.wait_durable(step)
        return time.perf_counter() - start

    saving = asyncio.create_task(save())
    await asyncio.wait({saving}, timeout=limit)
    return blocked, (await saving) if saving.done() else None


async def time_load(loading: Awaitable[Any]) -> tuple[float, Any]:
    """Await a load; return the seconds it took and what it gave."""
    start = time.perf_counter()
    loaded = await loading
    return time.perf_counter() - start, loaded
