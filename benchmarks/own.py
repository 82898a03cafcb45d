"""Workloads of asyncckpt alone, which other libraries do not offer or which cannot be compared."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks import machine, states
from benchmarks.loops import Witness, ticking
from benchmarks.measuring import time_load, time_save
from benchmarks.states import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measuring import Context
    from benchmarks.systems.base import System

METRIC: Final = "loss"


async def measure_budget(context: Context, make: type[System]) -> None:
    """Save a state that is larger than the budget, and watch the memory."""
    state = states.float_arrays(context.scale.budget_state_nbytes, 64)
    system = make(context.root, staged_nbytes=context.scale.budget_nbytes)
    async with system:
        await system.save(0, {"warm-up": np.zeros(KIB)})
        await system.wait_durable(0)
        await context.settle(context.scale.budget_state_nbytes)
        witness = Witness()
        start = time.perf_counter()
        before = machine.reset_peak_memory()
        times = await time_save(system, 1, state)
        peak = machine.peak_memory() - before
        elsewhere = witness.longest_since(start)
        witness.stop()
        context.record("peak_nbytes", peak)
        context.record("peak_per_budget", peak / context.scale.budget_nbytes)
        context.record("blocked", times.blocked)
        context.record("durable", times.durable)
        context.record("stall_max", times.stalls.longest)
        context.record("stall_elsewhere", elsewhere)


async def measure_catalog(context: Context, make: type[System]) -> None:
    """Open a directory of many checkpoints, and ask for the latest and the best."""
    from asyncckpt import CheckpointManager

    options: dict[str, Any] = {"metric_name": METRIC, "save_period": 10}
    del make  # the format of the state files does not matter here
    async with CheckpointManager(context.root, **options) as manager:
        for step in range(context.scale.catalog_count):
            await (await manager.save(step, {"step": step}, training_info={METRIC: step * 7919 % 1009}))

    async def open_once(measure: str) -> None:
        start = time.perf_counter()
        async with ticking() as ticker, CheckpointManager(context.root, **options) as manager:
            context.record(measure, time.perf_counter() - start)
            manager.latest_step()
        context.record(f"{measure}_stall_max", ticker.stalls.longest)

    for _ in range(context.scale.saves):
        await open_once("open_warm")
    async with CheckpointManager(context.root, **options) as manager:
        calls: dict[str, Callable[[], object]] = {
            "latest_step": manager.latest_step,
            "best_step": manager.best_step,
            "should_save": lambda: manager.should_save(7),
        }
        for measure, call in calls.items():
            for _ in range(100):
                start = time.perf_counter()
                call()
                context.record(measure, time.perf_counter() - start)
        start = time.perf_counter()
        handle = await manager.save(context.scale.catalog_count, {}, training_info={METRIC: -1})
        context.record("first_blocked", time.perf_counter() - start)
        await handle
        start = time.perf_counter()
        manager.best_step()
        context.record("best_step_anew", time.perf_counter() - start)
    if machine.drop_directory_caches():
        await open_once("open_cold")


LAZY_SIZES: Final = {"1 KiB": KIB, "100 KiB": 100 * KIB, "1 MiB": MIB}
"""The size of an array."""


async def measure_lazy(context: Context, make: type[System]) -> None:
    """Load a thousand arrays that stay in the file."""
    for label, nbytes in LAZY_SIZES.items():
        count = min(1000, context.scale.array_nbytes // nbytes)
        system: Any = make(context.root / label)
        async with system:
            await system.save(0, states.float_arrays(count * nbytes, count))
            await system.wait_durable(0)
            await system.load_lazily(0)  # the imports
            await context.settle(count * nbytes)
            for _ in range(10):
                context.record(f"load, lazy, arrays of {label}", (await time_load(system.load_lazily(0)))[0])
            await system.discard(0)


async def measure_import(context: Context, make: type[System]) -> None:
    """Import the package in fresh interpreters that have numpy, and in those that have asyncio too."""
    del make
    measures = {"import": "numpy", "import_beside_asyncio": "numpy, asyncio"}
    # With compiled bytecode, as in every start but the first; the first one here compiles it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(context.root / "bytecode")
    for number in range(context.scale.import_count + 1):
        for measure, present in measures.items():
            code = (
                f"import time, {present}; start = time.perf_counter(); import asyncckpt;"
                " print(time.perf_counter() - start)"
            )
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env=environment
            )
            seconds, _ = await process.communicate()
            if number:
                context.record(measure, float(seconds))


async def measure_blocking(context: Context, make: type[System]) -> None:
    """Save a small state with `await` and without it, in turns."""
    from asyncckpt import blocking

    state = states.float_arrays(10 * KIB, 10)
    system: Any = make(context.root / "with")
    without = blocking.CheckpointManager(context.root / "without", format=system.format)
    async with system:
        with without:
            for step in range(context.scale.small_saves + 3):
                start = time.perf_counter()
                handle = await system.manager.save(step, state)
                blocked = time.perf_counter() - start
                await handle
                durable = time.perf_counter() - start
                start = time.perf_counter()
                other = without.save(step, state)
                blocked_without = time.perf_counter() - start
                other.wait()
                durable_without = time.perf_counter() - start
                if step >= 3:  # noqa: PLR2004 - warm-up
                    context.record("blocked, with await", blocked)
                    context.record("blocked, without", blocked_without)
                    context.record("durable, with await", durable)
                    context.record("durable, without", durable_without)
                states.update(state)


async def measure_frozen(context: Context, make: type[System]) -> None:
    """Save arrays that the caller promises not to change."""
    state = states.float_arrays(context.scale.array_nbytes, context.scale.array_count)
    await _measure_frozen(context, make, state)


async def measure_frozen_jax(context: Context, make: type[System]) -> None:
    """Save arrays of JAX, which no program can change."""
    import jax

    state = states.float_arrays(context.scale.array_nbytes, context.scale.array_count)
    await _measure_frozen(context, make, {name: jax.numpy.array(array) for name, array in state.items()})


async def _measure_frozen(context: Context, make: type[System], state: states.State) -> None:
    system: Any = make(context.root)
    async with system:
        for step in range(context.scale.saves + 1):
            await context.settle(states.nbytes_of(state))
            start = time.perf_counter()
            handle = await system.manager.save(step, state, frozen=True)
            blocked = time.perf_counter() - start
            await handle
            if step:
                context.record("blocked", blocked)
                context.record("durable", time.perf_counter() - start)
                await system.discard(step - 1)
