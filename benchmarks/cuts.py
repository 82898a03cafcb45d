"""What cuts cost: each call of a participant without one, a queue, a cut itself, and a save with one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks import states
from benchmarks.states import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncckpt import Cut
    from benchmarks.measuring import Context
    from benchmarks.systems.base import System

PARTICIPANTS: Final = (10, 100, 1000)
SAVERS_PARTICIPANTS: Final = 100
SAVED_NBYTES: Final = 256 * MIB
_CALLS: Final = 20_000
_TURNS: Final = 10


async def measure_cuts(context: Context, make: type[System]) -> None:  # noqa: C901 - a list of measurements
    """Measure calls without a cut beside those of asyncio, cuts of many participants, and saves with and without."""
    from asyncckpt import Cut

    cut = Cut()
    async with cut.participant("measuring") as me:
        queues = {"asyncio.Queue": asyncio.Queue[int](), "CutQueue": cut.Queue()}
        for _ in range(_TURNS):
            start = time.perf_counter()
            for _ in range(_CALLS):
                pass
            empty = time.perf_counter() - start
            start = time.perf_counter()
            for _ in range(_CALLS):
                if cut.is_wanted:
                    break
            context.record("`if cut.is_wanted`", max(0.0, time.perf_counter() - start - empty) / _CALLS)
            start = time.perf_counter()
            for _ in range(_CALLS):
                await me.safe_point()
            context.record("`safe_point()`", (time.perf_counter() - start) / _CALLS)
            start = time.perf_counter()
            for _ in range(_CALLS):
                await asyncio.sleep(0)
            context.record("`asyncio.sleep(0)`", (time.perf_counter() - start) / _CALLS)
            for name, queue in queues.items():
                start = time.perf_counter()
                for number in range(_CALLS):
                    await queue.put(number)
                    await queue.get()
                context.record(f"put and get, {name}", (time.perf_counter() - start) / _CALLS)
    for count in PARTICIPANTS:
        cut = Cut()
        async with _participants(cut, count, 0.0):
            for _ in range(_TURNS):
                start = time.perf_counter()
                async with cut.hold():
                    context.record(f"cut, {count:,} participants", time.perf_counter() - start)
                await asyncio.sleep(0.001)
    await _measure_saves(context, make)


async def _measure_saves(context: Context, make: type[System]) -> None:
    from asyncckpt import Cut

    state = states.float_arrays(min(SAVED_NBYTES, context.scale.array_nbytes), 16)
    system: Any = make(context.root)
    cut = Cut()
    async with system:
        for step in range(2 * context.scale.saves + 2):
            await context.settle(states.nbytes_of(state))
            has_cut = step % 2 == 1
            async with _participants(cut, SAVERS_PARTICIPANTS if has_cut else 0, 0.01):
                await asyncio.sleep(0.01)
                start = time.perf_counter()
                handle = await system.manager.save(step, state, cut=cut if has_cut else None)
                blocked = time.perf_counter() - start
                await handle
            if step >= 2:  # noqa: PLR2004 - warm-up
                context.record(f"blocked, {SAVERS_PARTICIPANTS} participants" if has_cut else "blocked", blocked)
            if step:
                await system.discard(step - 1)


@contextlib.asynccontextmanager
async def _participants(cut: Cut, count: int, seconds: float) -> AsyncIterator[None]:
    """Let so many participants run; each rests for some seconds after a safe point, or lets others run."""

    async def take_part(name: str) -> None:
        async with cut.participant(name) as me:
            while True:
                await me.safe_point()
                await (me.at_rest(asyncio.sleep(seconds)) if seconds else asyncio.sleep(0))

    tasks = [asyncio.create_task(take_part(str(number))) for number in range(count)]
    await asyncio.sleep(0.01)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for name in cut.torn:
            cut.forgive(name)
