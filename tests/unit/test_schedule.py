"""The rules of `should_save`, over a clock that is simulated: no manager, no disk, no waiting."""

from __future__ import annotations

import itertools
import math
import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncckpt import ConfigError, SaveReason
from asyncckpt.config import resolve_settings
from asyncckpt.saving.schedule import SaveSchedule, steady_clock

if TYPE_CHECKING:
    from collections.abc import Iterator

NONE = SaveReason(0)


class Simulation:
    """A program with a simulated clock."""

    def __init__(self, start: float = 0.0, **options: Any) -> None:
        self.time = start
        self.schedule = SaveSchedule(resolve_settings("runs", options), lambda: self.time)
        self.schedule.open()

    def reason(self, step: int = 1) -> SaveReason:
        """Ask twice."""
        reason = self.schedule.reason(step)
        assert self.schedule.reason(step) == reason
        return reason

    def save(self, cost: float = 0.0, duration: float = 0.0, *, is_saved: bool = True) -> None:
        """Save: hold the caller for so long, and become durable so long after the call."""
        save = self.begin(cost)
        self.time += max(0.0, duration - cost)
        self.schedule.end(save, is_saved=is_saved)

    def begin(self, cost: float = 0.0) -> object:
        """Call a save, and return what is being written."""
        save = object()
        with self.schedule.calling(save):
            self.time += cost
            self.schedule.accept(save)
        return save

    def due(self, times: list[float]) -> Iterator[float]:
        """Ask at these times, and return those at which a save is due, without making one."""
        for self.time in times:
            if self.reason():
                yield self.time


# --- the period -------------------------------------------------------------------------------------------------------


def test_without_a_rule_every_step_is_due() -> None:
    """With a rule of time alone, no step is by itself."""
    assert [Simulation().reason(step) for step in (0, 1, 7)] == [SaveReason.PERIOD] * 3
    for rule in ({"save_interval": 10}, {"save_by": 100.0}):
        assert [Simulation(**rule).reason(step) for step in (0, 1, 10)] == [NONE] * 3


def test_any_rule_is_enough_and_all_are_named() -> None:
    """The reason is the union."""
    program = Simulation(save_period=5, save_interval=10, save_by=40.0)
    assert program.reason(4) == NONE
    assert program.reason(5) == SaveReason.PERIOD
    program.time = 10
    assert program.reason(4) == SaveReason.INTERVAL
    program.time = 39
    program.schedule.is_preempted = lambda: True
    assert program.reason(5) == SaveReason.PERIOD | SaveReason.INTERVAL | SaveReason.DEADLINE | SaveReason.PREEMPTED


# --- the interval -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.0, -5.0, 1.7e9])
def test_the_interval_counts_from_the_opening_and_from_the_call_of_the_last_save(start: float) -> None:
    """Not from its end, so that saves that take a while are as often as asked."""
    program = Simulation(start, save_interval=10)
    assert program.reason() == NONE
    program.time = start + 9.5
    assert program.reason() == NONE
    program.time = start + 10
    assert program.reason() == SaveReason.INTERVAL
    program.save(cost=4)
    assert program.reason() == NONE
    program.time = start + 19.5
    assert program.reason() == NONE
    program.time = start + 20
    assert program.reason() == SaveReason.INTERVAL


def test_a_save_that_did_not_happen_leaves_the_step_due() -> None:
    """One that is refused or skipped, and one that fails; but not while it is captured or written."""
    program = Simulation(save_interval=10, save_by=100.0)
    program.time = 50.0
    with program.schedule.calling(object()):
        assert program.reason() == NONE  # another task asks meanwhile
    assert program.reason() == SaveReason.INTERVAL
    save = program.begin()
    assert program.reason() == NONE
    program.schedule.end(save, is_saved=False)
    assert program.reason() == SaveReason.INTERVAL
    program.time = 95
    save = program.begin()
    assert program.reason() == NONE
    program.schedule.end(save, is_saved=False)
    assert program.reason() == SaveReason.INTERVAL | SaveReason.DEADLINE
    program.save()
    assert program.reason() == NONE


def test_an_older_save_that_ends_later_changes_nothing() -> None:
    """The last save is the one that was called last."""
    program = Simulation(save_interval=10)
    older = program.begin()
    program.time = 10
    program.save()
    program.time = 15
    program.schedule.end(older, is_saved=True)
    program.time = 19
    assert program.reason() == NONE


# --- the overhead -----------------------------------------------------------------------------------------------------


@given(
    share=st.floats(0.005, 0.25),
    usual=st.floats(0.01, 30),
    seed=st.integers(0, 1000),
    spread=st.floats(0, 0.5),
    start=st.sampled_from([0.0, 1.8e9]),
)
def test_the_overhead_is_what_was_asked_for(share: float, usual: float, seed: int, spread: float, start: float) -> None:
    """Within half a percentage point, with costs and steps at random, where steps are shorter than the spacing."""
    program = Simulation(start, max_overhead=share)
    chance = random.Random(seed)  # noqa: S311 - a simulation
    blocked = 0.0
    spacing = usual / share
    while program.time - start < 400 * spacing:
        program.time += chance.expovariate(1) * spacing / 4
        if program.reason():
            cost = usual * chance.lognormvariate(-(spread**2) / 2, spread)
            program.save(cost, duration=cost)
            blocked += cost
    assert abs(blocked / (program.time - start) - share) < 0.005


def test_the_overhead_never_exceeds_its_bound_once_it_has_reached_it() -> None:
    """With equal costs. The first save is due at once, since it tells what a save costs."""
    program = Simulation(max_overhead=0.02)
    assert program.reason() == SaveReason.OVERHEAD
    blocked, saves = 0.0, 0
    while program.time < 20_000:
        if program.reason():
            program.save(5.0, duration=5.0)
            blocked, saves = blocked + 5.0, saves + 1
            assert saves == 1 or blocked <= 0.02 * program.time
        program.time += 1.0
    assert saves == 80


def test_what_was_saved_up_is_not_spent_at_once() -> None:
    """After an hour without a question, saves come twice as often, and not at every step."""
    program = Simulation(max_overhead=0.02)
    program.save(1.0, duration=1.0)
    program.time = 3600.0
    times = []
    while program.time < 7300:
        if program.reason():
            times.append(program.time)
            program.save(1.0, duration=1.0)
        program.time += 0.5
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) == 25
    assert sum(gap < 40 for gap in gaps) > 50


def test_callers_who_are_held_at_the_same_time_cost_it_once() -> None:
    """Half of the time is blocked here, not all of it."""
    program = Simulation(max_overhead=0.5)
    program.save(1.0)
    with program.schedule.calling("a"), program.schedule.calling("b"):
        program.schedule.accept("a")
        program.schedule.accept("b")
        program.time += 9.0
        assert program.reason() == NONE
    # 10 seconds of 10 are blocked, and another save takes 6 1/3: (10 + 6 1/3) / 2 from now on
    assert list(program.due([16.2, 26.4])) == [26.4]


# --- the deadline -----------------------------------------------------------------------------------------------------


def test_the_last_save_has_room_for_twice_the_slowest() -> None:
    """Plus the longest time between two questions, since the next one may come that much later. It is due once."""
    program = Simulation(save_by=1000.0)
    program.save(cost=1.0, duration=20.0)
    program.save(cost=1.0, duration=5.0)
    times = [25.0, 28.0, *(float(second) for second in range(29, 1000))]
    first = next(program.due(times))
    assert first == 1000 - 2 * 20 - 3
    assert program.reason() == SaveReason.DEADLINE
    program.save(duration=30.0)
    assert not list(program.due([float(second) for second in range(987, 1100)]))


def test_a_step_that_takes_long_is_allowed_for() -> None:
    """Steps take ten minutes: the save is due at the last question after which another would be too late."""
    program = Simulation(save_by=3600.0)
    program.save(duration=30.0)
    assert list(program.due([600.0 * number for number in range(1, 6)])) == [3000.0]


def test_before_a_save_has_ended_room_is_assumed() -> None:
    """A tenth of the time there is, or five minutes; and a save that hangs is slow, too."""
    assert list(Simulation(save_by=100.0).due([89.0, 89.5])) == [89.5]
    assert list(Simulation(save_by=timedelta(hours=10)).due([35_699.0, 35_699.5])) == [35_699.5]
    program = Simulation(save_by=100.0)
    program.begin()
    assert list(program.due([33.0, 33.3])) == [33.3]


def test_what_was_saved_for_lack_of_knowledge_does_not_count_as_the_last() -> None:
    """The first save came with the room that was assumed; once it is known how fast saves are, there is another."""
    program = Simulation(save_by=1000.0)
    assert next(program.due([float(second) for second in range(880, 1000)])) == 899.0
    program.save(duration=2.0)
    assert next(program.due([901.0 + second for second in range(99)])) == 1000 - 2 * 2 - 2


def test_a_deadline_that_has_passed_is_due_once() -> None:
    """Late is better than never."""
    program = Simulation(start=50.0, save_by=10.0)
    assert program.reason() == SaveReason.DEADLINE
    program.save()
    program.time += 1
    assert program.reason() == NONE


@given(
    slowest=st.floats(0, 50),
    steps=st.lists(st.floats(0.01, 60), min_size=1, max_size=200),
    save_by=st.floats(200, 2000),
)
def test_a_last_save_always_has_its_room(slowest: float, steps: list[float], save_by: float) -> None:
    """If no step is longer than those before, the save that the deadline asks for ends in time."""
    program = Simulation(save_by=save_by)
    program.save(duration=slowest)
    steps = [max(steps), *steps * math.ceil(save_by / sum(steps))]
    program.reason()
    for step in steps:
        program.time += step
        if program.reason():
            break
    else:
        raise AssertionError("no last save")
    assert program.time + 2 * slowest <= save_by + 1e-6 or program.time == slowest + steps[0]


# --- the clock --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "save_by",
    [timedelta(seconds=50), 1.9e9 + 50, datetime.fromtimestamp(1.9e9 + 50, UTC)],
    ids=lambda value: type(value).__name__,
)
def test_the_kinds_of_deadlines_mean_the_same(save_by: Any) -> None:
    """A time after the opening, seconds since the epoch, and a datetime."""
    program = Simulation(1.9e9, save_by=save_by)
    assert list(program.due([1.9e9 + 44.0, 1.9e9 + 44.5])) == [1.9e9 + 44.5]


def test_the_clock_of_the_system_goes_on_evenly_when_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read once."""
    clock = steady_clock()
    before = clock()
    assert abs(before - time.time()) < 3600
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= clock() < before + 3600


@pytest.mark.parametrize("save_by", [3600, 3600.0])
def test_seconds_from_now_are_not_taken_for_a_time(save_by: float) -> None:
    """The error says what to pass; with a clock of one's own, any number is a time."""
    with pytest.raises(ConfigError, match=r"timedelta\(seconds=3600"):
        SaveSchedule(resolve_settings("runs", {"save_by": save_by}))
    SaveSchedule(resolve_settings("runs", {"save_by": save_by}), lambda: 0.0)


def test_a_clock_is_a_function() -> None:
    """A time is not."""
    with pytest.raises(ConfigError, match="clock: expected a function"):
        SaveSchedule(resolve_settings("runs", {}), 5.0)  # type: ignore[arg-type]


# --- preemption -------------------------------------------------------------------------------------------------------


def test_a_preempted_program_saves_once() -> None:
    """Although the clock stands still; and again if it is preempted again."""
    program = Simulation(save_interval=10)
    program.save()
    preempted = True
    program.schedule.is_preempted = lambda: preempted
    assert program.reason() == SaveReason.PREEMPTED
    program.save(is_saved=False)
    assert program.reason() == SaveReason.PREEMPTED
    program.save()
    assert program.reason() == NONE
    preempted = False
    assert program.reason() == NONE
    preempted = True
    assert program.reason() == SaveReason.PREEMPTED


def test_a_save_that_nobody_asked_for_counts_too() -> None:
    """It was called after the signal."""
    program = Simulation(save_interval=10)
    program.schedule.is_preempted = lambda: True
    program.save()
    assert program.reason() == NONE
