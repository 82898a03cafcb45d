"""Measure what the machine itself can do, without any library: the least that a save and a load can cost.

Copies and writes run in two threads. Before each measurement `rest` is called, as it is for every library.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.loops import ticking
from benchmarks.machine import evict, remove
from benchmarks.states import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.states import Array

BLOCK_NBYTES: Final = 16 * MIB
READ_NBYTES: Final = 8 * MIB
READS_IN_FLIGHT: Final = 4
ALIGNMENT: Final = 4096


def _aligned(nbytes: int) -> Array:
    """Return page-aligned memory, not touched yet."""
    size = -(-nbytes // ALIGNMENT) * ALIGNMENT
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared pages would be slower
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _in_threads(task: Callable[[int, int], object], nbytes: int, *, block: int, threads: int = 2) -> float:
    """Call `task(start, stop)` for every block in threads; return the seconds it took."""
    starts = range(0, nbytes, block)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: None, range(threads)))  # start the threads before the clock
        start = time.perf_counter()
        for _ in pool.map(lambda first: task(first, min(first + block, nbytes)), starts):
            pass
        return time.perf_counter() - start


def _copy(source: Array, target: Array) -> float:
    def task(first: int, last: int) -> None:
        np.copyto(target[first:last], source[first:last])

    return _in_threads(task, len(source), block=BLOCK_NBYTES)


def _open(path: Path, flags: int, *, is_direct: bool) -> int:
    try:
        return os.open(path, flags | (os.O_DIRECT if is_direct else 0), 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o600)  # no direct I/O on this filesystem: the page cache is its floor


def _write(path: Path, source: Array) -> float:
    start = time.perf_counter()
    descriptor = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, is_direct=True)
    try:
        _in_threads(
            lambda first, last: os.pwrite(descriptor, source.data[first:last], first), len(source), block=BLOCK_NBYTES
        )
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - start


def _read(path: Path, target: Array, *, is_direct: bool) -> float:
    start = time.perf_counter()
    descriptor = _open(path, os.O_RDONLY, is_direct=is_direct)
    try:
        _in_threads(
            lambda first, last: os.preadv(descriptor, [target.data[first:last]], first),
            len(target),
            block=READ_NBYTES,
            threads=READS_IN_FLIGHT if is_direct else 2,
        )
    finally:
        os.close(descriptor)
    return time.perf_counter() - start


def data_floors(root: Path, nbytes: int, *, repeats: int, rest: Callable[[], None]) -> Iterator[tuple[str, float]]:
    """Measure what moving `nbytes` of array data costs; yield (floor, seconds)."""
    nbytes = -(-nbytes // ALIGNMENT) * ALIGNMENT  # direct I/O moves whole pages
    source = _aligned(nbytes)
    source[:] = np.resize(np.random.default_rng(0).integers(0, 256, 4 * MIB, np.uint8), nbytes)
    path = root / "floor"

    for _ in range(repeats):
        rest()
        yield "memcpy_fresh", _copy(source, _aligned(nbytes))
    target = _aligned(nbytes)
    target[:] = 0
    for _ in range(repeats):
        rest()
        yield "memcpy", _copy(source, target)
    for _ in range(repeats):
        rest()
        yield "direct_write", _write(path, source)
        remove(path)
    _write(path, source)
    for _ in range(repeats):
        evict(path)
        rest()
        yield "direct_read", _read(path, target, is_direct=True)
    _read(path, target, is_direct=False)  # into the page cache
    for _ in range(repeats):
        rest()
        yield "cached_read", _read(path, target, is_direct=False)
    del target
    for _ in range(repeats):
        rest()
        yield "cached_read_fresh", _read(path, _aligned(nbytes), is_direct=False)
    remove(path)


def commit_floor(root: Path, *, repeats: int) -> Iterator[tuple[str, float]]:
    """Measure the bare mkdir, write, fsync, rename, fsync of one file of 10 KiB; yield (floor, seconds)."""
    content = os.urandom(10 * KIB)
    parent = os.open(root, os.O_RDONLY)
    try:
        for number in range(repeats + 1):
            pending, final = root / f"tmp_{number}", root / f"step_{number}"
            start = time.perf_counter()
            pending.mkdir()
            descriptor = os.open(pending / "state", os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, content)
            os.fsync(descriptor)
            os.close(descriptor)
            pending.rename(final)
            os.fsync(parent)
            if number:
                yield "bare_commit", time.perf_counter() - start
            remove(final)
    finally:
        os.close(parent)


def stall_floor(seconds: float) -> Iterator[tuple[str, float]]:
    """Measure the ticker's delays on a loop that does nothing else; yield (floor, seconds)."""

    async def idle() -> tuple[float, float]:
        async with ticking() as ticker:
            await asyncio.sleep(seconds)
            return ticker.stalls

    longest, p99 = asyncio.run(idle())
    yield "idle_stall_max", longest
    yield "idle_stall_p99", p99
