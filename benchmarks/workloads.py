"""The workloads: each is one function, run in a fresh process for one system or for the floors."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks import cuts, floors, machine, own, states
from benchmarks.loops import busy, step_rate, ticking
from benchmarks.measuring import GivenUpError, time_load, time_save, time_save_within
from benchmarks.samples import FLOORS
from benchmarks.states import GIB, KIB
from benchmarks.systems import HDF5, MSGPACK, NAMES, OURS, OURS_OF_TENSORS, PEERS, system_class
from benchmarks.systems.ours import Asyncckpt

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

    from benchmarks.measuring import Context
    from benchmarks.scale import Scale
    from benchmarks.states import State
    from benchmarks.systems.base import System

BUSY_DURATIONS: Final = {"0.2 ms": 0.0002, "1 ms": 0.001, "2 ms": 0.002}
"""How long a callback of the busy loop takes."""

_INT_NBYTES: Final = 40
"""The size of an int in a list: the object and its reference in the list."""


class Turn(NamedTuple):
    """One process."""

    system: str
    number: int
    """Counts the processes of the system in this workload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A row of the report."""

    name: str
    title: str
    """With fields of the scale in braces."""
    measure: Callable[[Context, type[System]], Coroutine[Any, Any, None]]
    floors: Callable[[Context], Iterable[tuple[str, float]]] | None = None
    systems: tuple[str, ...] = tuple(name for name in NAMES if name not in OURS_OF_TENSORS)
    quick_systems: tuple[str, ...] | None = None
    """The systems that a quick run measures, if not all."""
    rounds: int | None = None
    """The greatest number of rounds, for workloads that take long or vary little."""
    peer_rounds: int = 1
    """The number of rounds in which other libraries are measured, too."""
    patience: float = 1.0
    """How long a process may take, as a multiple of the scale's `timeout`."""
    needs: Callable[[Scale], bool] = lambda _: True

    def title_at(self, scale: Scale) -> str:
        """Name the workload at the sizes of a scale."""
        return self.title.format(scale=scale)

    def systems_at(self, scale: Scale) -> tuple[str, ...]:
        """Return the systems to measure, with the floors before each of ours, in the same condition of the machine."""
        chosen = self.systems if scale.name == "full" or self.quick_systems is None else self.quick_systems
        turns = [(FLOORS, name) if self.floors and name in OURS else (name,) for name in chosen]
        return tuple(name for turn in turns for name in turn)

    def turns(self, scale: Scale, rounds: int | None = None) -> Iterator[Turn]:
        """Yield every system's turn in every round; each round starts with another system."""
        for number in range(rounds or min(scale.rounds, self.rounds or scale.rounds)):
            names = self.systems_at(scale)
            if rounds is None and number >= self.peer_rounds:
                names = tuple(name for name in names if name not in PEERS)
            turns = [
                Turn(name, number * names.count(name) + names[:index].count(name)) for index, name in enumerate(names)
            ]
            first = number % len(turns)
            yield from turns[first:] + turns[:first]


# --- arrays: the main row, and one array that is larger than 4 GiB ----------------------------------------------------


async def _measure_arrays(context: Context, make: type[System]) -> None:
    state = states.float_arrays(context.scale.array_nbytes, context.scale.array_count)
    await _save_and_load(context, make(context.root), state, saves=context.scale.saves)
    if issubclass(make, Asyncckpt):
        await _measure_prewarmed(context, make(context.root / "prewarmed"), state)


async def _measure_tensors(context: Context, make: type[System]) -> None:
    state = states.float_arrays(context.scale.array_nbytes, context.scale.array_count)
    await _save_and_load(context, make(context.root), state, saves=context.scale.saves)


async def _measure_gpt(context: Context, make: type[System]) -> None:
    state = states.gpt_with_adamw(context.scale.gpt_layers)
    system = make(context.root, staged_nbytes=states.nbytes_of(state) + GIB)
    await _save_and_load(context, system, state, saves=context.scale.saves)


async def _measure_huge(context: Context, make: type[System]) -> None:
    nbytes = context.scale.huge_nbytes or 0
    await _save_and_load(context, make(context.root, staged_nbytes=nbytes + GIB), states.byte_array(nbytes), saves=1)


async def _save_and_load(context: Context, system: System, state: State, *, saves: int) -> None:
    adopted = system.adopt(state)
    async with system:
        for step in range(saves + 1):
            if step:
                await system.discard(step - 1)
                await asyncio.to_thread(states.update, state)
            await context.settle(states.nbytes_of(state))
            times = await time_save(system, step, adopted)
            prefix = "" if step else "first_"
            context.record(f"{prefix}blocked", times.blocked)
            context.record(f"{prefix}durable", times.durable)
            context.record(f"{prefix}stall_max", times.stalls.longest)
            context.record(f"{prefix}stall_p99", times.stalls.p99)
        await _load_each_way(context, system, saves, state, adopted)
        await system.discard(saves)


async def _load_each_way(context: Context, system: System, step: int, state: State, adopted: Any) -> None:
    nbytes = states.nbytes_of(state)
    await context.settle(nbytes)
    seconds, loaded = await time_load(system.load(step))
    context.record("load_after_save", seconds)
    if not states.is_equal(state, loaded):
        message = f"{type(system).__name__} did not give back what it was given"
        raise AssertionError(message)
    del loaded

    for _ in range(context.scale.loads):
        await asyncio.to_thread(machine.warm, system.path(step))
        await context.settle(nbytes)
        context.record("load_warm", (await time_load(system.load(step)))[0])
    if system.restores_in_place:
        for _ in range(context.scale.loads):
            await context.settle(nbytes)
            context.record("restore_warm", (await time_load(system.restore(step, adopted)))[0])
    if isinstance(system, Asyncckpt):
        await system.load_lazily(step)  # the imports
        for _ in range(context.scale.loads):
            context.record("load_lazy", (await time_load(system.load_lazily(step)))[0])
    for _ in range(context.scale.loads):
        await asyncio.to_thread(machine.evict, system.path(step))
        await context.settle(nbytes)
        context.record("load_cold", (await time_load(system.load(step)))[0])


async def _measure_prewarmed(context: Context, system: Asyncckpt, state: State) -> None:
    async with system:
        if hasattr(system.manager, "prewarm"):
            await system.manager.prewarm(state)
            await context.settle(states.nbytes_of(state))
            times = await time_save(system, 0, state)
            context.record("prewarmed_blocked", times.blocked)


def _array_floors(context: Context) -> Iterable[tuple[str, float]]:
    yield from _data_floors(context, context.scale.array_nbytes)
    yield from floors.stall_floor(context.scale.step_seconds / 2)


def _huge_floors(context: Context) -> Iterable[tuple[str, float]]:
    return _data_floors(context, context.scale.huge_nbytes or 0)


def _data_floors(context: Context, nbytes: int) -> Iterable[tuple[str, float]]:
    return floors.data_floors(context.root, nbytes, repeats=context.scale.loads, rest=lambda: context.rest(nbytes))


# --- while the loop is always busy ------------------------------------------------------------------------------------


async def _measure_busy(context: Context, make: type[System]) -> None:
    state = states.float_arrays(context.scale.array_nbytes, context.scale.array_count)
    system = make(context.root)
    adopted = system.adopt(state)
    step = 0
    async with system:
        for label, duration in {"warm-up": 0.0, "idle": 0.0, **BUSY_DURATIONS}.items():
            await context.settle(states.nbytes_of(state))
            if duration:
                async with busy(duration):
                    blocked, durable = await time_save_within(system, step, adopted, context.scale.busy_limit)
            else:
                blocked, durable = await time_save_within(system, step, adopted, context.scale.timeout)
            if label != "warm-up":
                for measure, seconds in (("blocked", blocked), ("durable", durable)):
                    value = context.scale.busy_limit if seconds is None else seconds
                    context.record(f"{measure}, {label}", value, is_censored=seconds is None)
            if durable is None:
                message = f"a save beside callbacks of {label} took more than {context.scale.busy_limit:.0f} s"
                raise GivenUpError(message)
            await system.discard(step)
            await asyncio.to_thread(states.update, state)
            step += 1


# --- many small arrays, one small state -------------------------------------------------------------------------------


async def _measure_many(context: Context, make: type[System]) -> None:
    count = context.scale.many_count
    await _save_and_load(
        context, make(context.root), states.float_arrays(count * KIB, count), saves=context.scale.saves
    )


async def _measure_small(context: Context, make: type[System]) -> None:
    state = states.float_arrays(10 * KIB, 10)
    system = make(context.root)
    adopted = system.adopt(state)
    await context.settle(states.nbytes_of(state))
    async with system:
        for step in range(context.scale.small_saves + 3):
            start = time.perf_counter()
            await system.save(step, adopted)
            blocked = time.perf_counter() - start
            await system.wait_durable(step)
            durable = time.perf_counter() - start
            if step >= 3:  # noqa: PLR2004 - warm-up
                context.record("blocked", blocked)
                context.record("durable", durable)
            states.update(state)


def _small_floors(context: Context) -> Iterable[tuple[str, float]]:
    return floors.commit_floor(context.root, repeats=context.scale.small_saves)


# --- Python objects ---------------------------------------------------------------------------------------------------


async def _measure_flat_ints(context: Context, make: type[System]) -> None:
    await _measure_ints(context, make, states.flat_ints(context.scale.int_count))


async def _measure_listed_ints(context: Context, make: type[System]) -> None:
    await _measure_ints(context, make, states.listed_ints(context.scale.int_count, 100))


async def _measure_ints(context: Context, make: type[System], state: State) -> None:
    system = make(context.root)
    async with system:
        nbytes = context.scale.int_count * _INT_NBYTES
        for step in range(2):
            await context.settle(nbytes)
            times = await time_save(system, step, state)
            if step:
                context.record("blocked", times.blocked)
                context.record("durable", times.durable)
                context.record("stall_max", times.stalls.longest)
        await context.settle(nbytes)
        async with ticking() as ticker:
            seconds, loaded = await time_load(system.load(1))
        context.record("load_warm", seconds)
        context.record("load_stall_max", ticker.stalls.longest)
        if not states.is_equal(state, loaded):
            message = f"{type(system).__name__} did not give back what it was given"
            raise AssertionError(message)
        start = time.perf_counter()
        gc.collect()
        context.record("gc_collect", time.perf_counter() - start)


# --- what the loop gets done meanwhile --------------------------------------------------------------------------------


async def _measure_steps(context: Context, make: type[System]) -> None:
    state = states.float_arrays(context.scale.step_nbytes, 16)
    system = make(context.root)
    adopted = system.adopt(state)

    async def rate() -> float:
        until = time.perf_counter() + context.scale.step_seconds
        return await step_rate(lambda: time.perf_counter() > until)

    async with system:
        await system.save(0, adopted)
        await system.wait_durable(0)
        await context.settle(context.scale.step_nbytes)
        before = await rate()
        is_over = False
        saved = 0

        async def save_on_and_on() -> None:
            nonlocal saved
            while not is_over:
                saved += 1
                await system.save(saved, adopted)
                await system.wait_durable(saved)
                await system.discard(saved - 1)  # as retention would

        saving = asyncio.create_task(save_on_and_on())
        during = await rate()
        is_over = True
        finished = saved - 1
        await saving
        await context.settle(context.scale.step_nbytes)
        alone = statistics.mean((before, await rate()))
    context.record("steps_alone", alone)
    context.record("steps_saving", during)
    context.record("saves_meanwhile", finished)


# --- the rows of the report ------------------------------------------------------------------------------------------

_SOME: Final = (*OURS, "Orbax", "torch DCP", "Moonclip", "safetensors", "pickle 5")
"""One of each kind: torch.save, np.savez and h5py copy in one thread and write in another, as pickle 5 does."""

_TENSOR_TAKERS: Final = ("torch DCP", "torch_checkpointing", "torch.save", "safetensors")
_QUICK_TENSOR_TAKERS: Final = ("torch DCP", "safetensors")
_LIST_TAKERS: Final = (MSGPACK, HDF5, "torch.save", "pickle 5")

WORKLOADS: Final = (
    Workload(
        name="arrays",
        title="{scale.array_size} in {scale.array_count} arrays",
        measure=_measure_arrays,
        floors=_array_floors,
        peer_rounds=2,
        quick_systems=tuple(
            name for name in NAMES if name not in {*OURS_OF_TENSORS, "torch_checkpointing", "torch.save"}
        ),  # slow to start
    ),
    Workload(
        name="busy",
        title="{scale.array_size} in {scale.array_count} arrays, while the loop is always busy",
        measure=_measure_busy,
        systems=_SOME,
        quick_systems=(*OURS, "safetensors"),
        rounds=2,
    ),
    Workload(
        name="huge",
        title="one array of 4 GiB + 1",
        measure=_measure_huge,
        floors=_huge_floors,
        systems=(*OURS, "torch DCP", "safetensors"),
        rounds=1,
        needs=lambda scale: scale.huge_nbytes is not None,
    ),
    Workload(
        name="many",
        title="{scale.many_count:,} arrays of 1 KiB",
        measure=_measure_many,
        rounds=2,
        quick_systems=(*OURS, "safetensors", "pickle 5"),
    ),
    Workload(
        name="small",
        title="10 KiB",
        measure=_measure_small,
        floors=_small_floors,
        rounds=2,
        quick_systems=(*OURS, "Orbax", "safetensors", "pickle 5"),
    ),
    Workload(
        name="blocking", title="10 KiB, with await and without", measure=own.measure_blocking, systems=OURS, rounds=2
    ),
    Workload(
        name="flat_ints",
        title="{scale.int_count:,} ints in one list",
        measure=_measure_flat_ints,
        systems=_LIST_TAKERS,
        quick_systems=OURS,
        rounds=2,
    ),
    Workload(
        name="listed_ints",
        title="{scale.int_count:,} ints in lists of 100",
        measure=_measure_listed_ints,
        systems=_LIST_TAKERS,
        quick_systems=OURS,
        rounds=2,
    ),
    Workload(
        name="steps",
        title="steps of pure Python during back-to-back saves of {scale.step_size}",
        measure=_measure_steps,
        systems=_SOME,
        quick_systems=(*OURS, "safetensors"),
        rounds=2,
    ),
    Workload(
        name="budget",
        title="{scale.budget_state_size} with a budget of {scale.budget_size}",
        measure=own.measure_budget,
        systems=OURS,
    ),
    Workload(
        name="catalog",
        title="{scale.catalog_count:,} committed checkpoints",
        measure=own.measure_catalog,
        systems=(MSGPACK,),
        rounds=1,
        patience=4,  # they are all saved first
    ),
    Workload(
        name="import", title="import asyncckpt, over numpy", measure=own.measure_import, systems=(MSGPACK,), rounds=1
    ),
    Workload(name="cuts", title="cuts of many participants", measure=cuts.measure_cuts, systems=(MSGPACK,), rounds=2),
    Workload(name="lazy", title="1,000 arrays, loaded lazily", measure=own.measure_lazy, systems=OURS, rounds=2),
    Workload(
        name="frozen",
        title="{scale.array_size} in {scale.array_count} frozen arrays",
        measure=own.measure_frozen,
        systems=OURS,
        rounds=2,
    ),
    Workload(
        name="tensors",
        title="{scale.array_size} in {scale.array_count} tensors of PyTorch, and in numpy arrays",
        measure=_measure_tensors,
        systems=(*OURS, *OURS_OF_TENSORS, *_TENSOR_TAKERS, "Orbax"),
        quick_systems=(*OURS, *OURS_OF_TENSORS, *_QUICK_TENSOR_TAKERS),
    ),
    Workload(
        name="many_tensors",
        title="{scale.many_count:,} tensors of 1 KiB, and as many numpy arrays",
        measure=_measure_many,
        systems=(*OURS, *OURS_OF_TENSORS, *_TENSOR_TAKERS),
        quick_systems=(*OURS, *OURS_OF_TENSORS, *_QUICK_TENSOR_TAKERS),
        rounds=2,
    ),
    Workload(
        name="gpt",
        title="a GPT of {scale.gpt_layers} layers and its AdamW",
        measure=_measure_gpt,
        systems=(*OURS_OF_TENSORS, *_TENSOR_TAKERS),
        quick_systems=(*OURS_OF_TENSORS, *_QUICK_TENSOR_TAKERS),
        rounds=2,
    ),
    Workload(
        name="frozen_jax",
        title="{scale.array_size} in {scale.array_count} frozen arrays of JAX, on the CPU",
        measure=own.measure_frozen_jax,
        systems=OURS,
        rounds=2,
    ),
)


async def measure(context: Context, workload: Workload, system: str) -> None:
    """Measure one system, or the floors, in this process."""
    await workload.measure(context, system_class(system))


def measure_floors(context: Context, workload: Workload) -> None:
    """Measure the floors of a workload in this process."""
    if workload.floors is None:
        message = f"{workload.name} has no floors"
        raise ValueError(message)
    for name, seconds in workload.floors(context):
        context.record(name, seconds)
