"""The goals: each is a measure and a limit, usually a multiple of another figure from the same run.

A goal's ratio is the median of the measure divided by its reference. The goal is met if the ratio is at most `factor`,
or at least `factor` if more is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.cuts import SAVERS_PARTICIPANTS
from benchmarks.own import LAZY_SIZES
from benchmarks.samples import FLOORS
from benchmarks.systems import HDF5, HDF5_TENSORS, MSGPACK, MSGPACK_TENSORS, OURS, OURS_OF_TENSORS, PEERS
from benchmarks.workloads import BUSY_DURATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.samples import Samples, Spread


class Reference(NamedTuple):
    """What a measure is compared with, in the measure's unit."""

    value: float
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One line of the table."""

    workload: str
    measure: str
    factor: float
    against: Callable[[Samples, str, str], Reference | None]
    """From the samples, the goal's workload and the system to the reference, or None if it was not measured."""
    systems: tuple[str, ...] = OURS
    is_more_better: bool = False


class Verdict(NamedTuple):
    """Whether one system meets one goal."""

    goal: Goal
    system: str
    measured: Spread | None
    reference: Reference | None

    @property
    def ratio(self) -> float | None:
        """The measured median over the reference, or None if either is missing."""
        if self.measured is None or self.reference is None:
            return None
        return self.measured.median / self.reference.value

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met, or None if it was not measured."""
        ratio = self.ratio
        if ratio is None or self.measured is None:
            return None
        if self.goal.is_more_better:
            return ratio >= self.goal.factor
        return ratio <= self.goal.factor and not self.measured.is_censored


def evaluate(samples: Samples) -> Iterator[Verdict]:
    """Compare every goal with what was measured."""
    for goal in GOALS:
        for system in goal.systems:
            measured = samples.spread(goal.workload, system, goal.measure)
            yield Verdict(goal, system, measured, goal.against(samples, goal.workload, system))


# --- references -------------------------------------------------------------------------------------------------------


def floors(*names: str) -> Callable[[Samples, str, str], Reference | None]:
    """Use the sum of some floors of the same workload as the reference."""

    def find(samples: Samples, workload: str, _: str) -> Reference | None:
        medians = [samples.median(workload, FLOORS, name) for name in names]
        found = [median for median in medians if median is not None]
        return Reference(sum(found), " + ".join(names)) if len(found) == len(names) else None

    return find


def best_of(measure: str, *systems: str) -> Callable[[Samples, str, str], Reference | None]:
    """Use the least median of some systems as the reference."""

    def find(samples: Samples, workload: str, _: str) -> Reference | None:
        medians = [(samples.median(workload, system, measure), system) for system in systems]
        found = [Reference(median, system) for median, system in medians if median is not None]
        return min(found, default=None)

    return find


def itself(measure: str, *, name: str) -> Callable[[Samples, str, str], Reference | None]:
    """Use another measure of the same system as the reference."""

    def find(samples: Samples, workload: str, system: str) -> Reference | None:
        median = samples.median(workload, system, measure)
        return None if median is None else Reference(median, name)

    return find


def limit(value: float) -> Callable[[Samples, str, str], Reference | None]:
    """Use a fixed value as the reference."""
    return lambda *_: Reference(value, "")


# --- the table --------------------------------------------------------------------------------------------------------

_MS: Final = 1e-3
_US: Final = 1e-6


def _array_goals(workload: str) -> Iterator[Goal]:
    def goal(measure: str, factor: float, against: Callable[[Samples, str, str], Reference | None]) -> Goal:
        return Goal(workload=workload, measure=measure, factor=factor, against=against)

    for measure in ("blocked", "prewarmed_blocked") if workload == "arrays" else ("blocked",):
        yield goal(measure, 1.25, floors("memcpy"))
        yield goal(measure, 0.8, best_of("blocked", *PEERS))
    yield goal("first_blocked", 1.3, floors("memcpy_fresh"))
    yield goal("stall_max", 1, limit(10 * _MS))
    yield goal("stall_p99", 1, limit(4 * _MS))
    yield goal("durable", 1.25, floors("memcpy", "direct_write"))
    yield goal("durable", 0.35, best_of("durable", "Orbax", "torch DCP", "Moonclip"))
    yield goal("durable", 1, best_of("durable", "safetensors"))
    yield goal("load_cold", 1.2, floors("direct_read"))
    yield goal("load_cold", 1, best_of("load_cold", *PEERS))
    yield goal("load_warm", 1.2, floors("cached_read_fresh"))
    yield goal("load_warm", 1, best_of("load_warm", *PEERS))
    yield goal("restore_warm", 1.4, floors("cached_read"))
    yield goal("restore_warm", 1, best_of("restore_warm", *PEERS))
    yield goal("load_lazy", 1, limit(10 * _MS))


def _tensor_goals() -> Iterator[Goal]:
    """Compare tensors with the same state in numpy arrays, and with libraries that take tensors."""
    for tensors, arrays in ((MSGPACK_TENSORS, MSGPACK), (HDF5_TENSORS, HDF5)):
        for measure in ("blocked", "stall_max", "durable", "load_warm", "load_cold", "restore_warm"):
            yield Goal(
                workload="tensors", measure=measure, factor=1.1, against=best_of(measure, arrays), systems=(tensors,)
            )
        yield Goal(
            workload="many_tensors", measure="blocked", factor=3, against=best_of("blocked", arrays), systems=(tensors,)
        )
    for workload, measure, factor, against in (
        ("many_tensors", "blocked", 0.5, best_of("blocked", "torch DCP")),
        ("gpt", "blocked", 1.05, best_of("blocked", *PEERS)),
        ("gpt", "durable", 0.6, best_of("durable", "torch DCP")),
    ):
        yield Goal(workload=workload, measure=measure, factor=factor, against=against, systems=OURS_OF_TENSORS)


def _busy_goals() -> Iterator[Goal]:
    for label in BUSY_DURATIONS:
        yield Goal(
            workload="busy", measure=f"blocked, {label}", factor=3, against=itself("blocked, idle", name="idle loop")
        )
        yield Goal(
            workload="busy", measure=f"durable, {label}", factor=2.5, against=itself("durable, idle", name="idle loop")
        )


GOALS: Final = (
    *_array_goals("arrays"),
    *_busy_goals(),
    *_array_goals("huge"),
    Goal(workload="many", measure="blocked", factor=1, against=limit(40 * _MS), systems=(MSGPACK,)),
    Goal(workload="many", measure="durable", factor=1, against=limit(120 * _MS), systems=(MSGPACK,)),
    Goal(workload="many", measure="durable", factor=1, against=limit(700 * _MS), systems=(HDF5,)),
    Goal(workload="small", measure="blocked", factor=1, against=limit(0.3 * _MS)),
    Goal(workload="small", measure="durable", factor=5, against=floors("bare_commit"), systems=(MSGPACK,)),
    Goal(workload="small", measure="durable", factor=8, against=floors("bare_commit"), systems=(HDF5,)),
    *(
        Goal(
            workload="blocking",
            measure=f"{measure}, without",
            factor=2,
            against=itself(f"{measure}, with await", name="the same save with await"),
        )
        for measure in ("blocked", "durable")
    ),
    *(
        Goal(workload=workload, measure=measure, factor=1, against=limit(seconds))
        for workload, measure, seconds in (
            ("flat_ints", "stall_max", 20 * _MS),
            ("flat_ints", "load_stall_max", 100 * _MS),
            ("listed_ints", "stall_max", 20 * _MS),
            ("listed_ints", "load_stall_max", 20 * _MS),
        )
    ),
    Goal(
        workload="steps",
        measure="steps_saving",
        factor=0.9,
        against=itself("steps_alone", name="the same loop without saves"),
        is_more_better=True,
    ),
    Goal(workload="budget", measure="peak_per_budget", factor=1.15, against=limit(1)),
    Goal(workload="budget", measure="stall_max", factor=1, against=limit(10 * _MS)),
    Goal(workload="catalog", measure="open_warm", factor=1, against=limit(0.3), systems=(MSGPACK,)),
    *(
        Goal(workload="catalog", measure=measure, factor=1, against=limit(20 * _US), systems=(MSGPACK,))
        for measure in ("latest_step", "best_step", "best_step_anew", "should_save")
    ),
    *(
        Goal(workload="lazy", measure=f"load, lazy, arrays of {label}", factor=1, against=limit(10 * _MS))
        for label in LAZY_SIZES
    ),
    Goal(
        workload="cuts",
        measure="`safe_point()`",
        factor=0.2,
        against=itself("`asyncio.sleep(0)`", name="asyncio.sleep(0)"),
        systems=(MSGPACK,),
    ),
    Goal(
        workload="cuts",
        measure="put and get, CutQueue",
        factor=1.2,
        against=itself("put and get, asyncio.Queue", name="asyncio.Queue"),
        systems=(MSGPACK,),
    ),
    Goal(workload="cuts", measure="cut, 1,000 participants", factor=1, against=limit(10 * _MS), systems=(MSGPACK,)),
    Goal(
        workload="cuts",
        measure=f"blocked, {SAVERS_PARTICIPANTS} participants",
        factor=1.1,
        against=itself("blocked", name="the same save without a cut"),
        systems=(MSGPACK,),
    ),
    Goal(workload="import", measure="import", factor=1, against=limit(60 * _MS), systems=(MSGPACK,)),
    Goal(workload="frozen", measure="blocked", factor=1, against=limit(5 * _MS)),
    Goal(workload="frozen_jax", measure="blocked", factor=1, against=limit(5 * _MS)),
    *_tensor_goals(),
)
