"""What runs on the loop during a save: a ticker that measures stalls, callbacks that keep it busy, steps to count."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

TICK: Final = 0.001
"""Seconds between two ticks."""


class Stalls(NamedTuple):
    """How late the ticker was called, in seconds."""

    longest: float
    p99: float


class Ticker:
    """Sleeps for a millisecond again and again, and records how much longer each sleep took."""

    def __init__(self) -> None:
        self._delays: list[float] = []

    @property
    def stalls(self) -> Stalls:
        """The stalls so far."""
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
    """Run a ticker during the body, until the first tick after it."""
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


class Witness:
    """A separate process that only sleeps, a millisecond at a time: its delays are caused by the machine."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True)  # noqa: S603 - this module
        self._delays: list[tuple[float, float]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        for line in self._process.stdout:
            end, delay = map(float, line.split())
            self._delays.append((end, delay))

    def longest_since(self, start: float) -> float:
        """Return the longest delay that ended after a time of `time.perf_counter`; less than a tick counts as none."""
        return max((delay for end, delay in self._delays if end > start), default=0.0)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def _witness() -> None:
    """Print when each late sleep ended, and how late."""
    last = time.perf_counter()
    while True:
        time.sleep(TICK)
        now = time.perf_counter()
        if now - last > 2 * TICK:
            print(now, now - last - TICK, flush=True)
        last = now


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


if __name__ == "__main__":
    _witness()
