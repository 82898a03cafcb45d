"""What runs on the loop beside a save: a ticker that measures stalls, a loop that is always busy, one that counts."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

TICK: Final = 0.001
"""Seconds between two ticks."""


class Stalls(NamedTuple):
    """How much later than due the ticker was called, in seconds."""

    longest: float
    p99: float


class Ticker:
    """Sleeps a millisecond, over and over, and notes how much longer each sleep took."""

    def __init__(self) -> None:
        self._delays: list[float] = []

    @property
    def stalls(self) -> Stalls:
        """What was seen so far."""
        delays = sorted(self._delays) or [0.0]
        return Stalls(delays[-1], delays[int(0.99 * (len(delays) - 1))])

    async def run(self) -> None:
        """Tick until cancelled."""
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            self._delays.append(now - last - TICK)
            last = now


@asynccontextmanager
async def ticking() -> AsyncIterator[Ticker]:
    """Run a ticker beside the body, until the first tick after it."""
    ticker = Ticker()
    task = asyncio.create_task(ticker.run())
    await asyncio.sleep(5 * TICK)
    try:
        yield ticker
        await asyncio.sleep(5 * TICK)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def busy(duration: float) -> AsyncIterator[None]:
    """Keep the loop busy with callbacks of pure Python that take `duration` seconds each, back to back."""
    loop = asyncio.get_running_loop()
    is_over = False

    def callback() -> None:
        until = time.perf_counter() + duration
        while time.perf_counter() < until:
            pass
        if not is_over:
            loop.call_soon(callback)

    loop.call_soon(callback)
    try:
        yield
    finally:
        is_over = True


def _work() -> int:
    """Do a step of pure-Python work, of a few hundred microseconds."""
    total = 0
    for number in range(5000):
        total += number * number % 7
    return total


async def step_rate(is_over: Callable[[], bool]) -> float:
    """Step until `is_over` and return the steps per second."""
    count = 0
    start = time.perf_counter()
    while not is_over():
        _work()
        count += 1
        await asyncio.sleep(0)
    return count / (time.perf_counter() - start)
