"""Rig: the power is cut at any moment of a workload, on a model of a disk that keeps only what was synced."""

from __future__ import annotations

import asyncio
import copy
import functools
import random
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .crash_model import CrashModel, Shelf, State
from .disks import Change, ShimDisk
from .rig import Result, Rig
from .workload import Looked
from .workloads import make_workload, split_unit, workload_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .history import Event
    from .workload import Expectation, Known, Workload

PER_MOMENT = 400
FEW = "few"
"""The share of a unit with so few states at each moment, and no next start."""
FEW_PER_MOMENT = 24
_STATES_KEPT = 2000
_SAVES_SHARE = 0.25
_RANDOM_A_SEED = 20
_CUTS_BEFORE = 2
_KILLS_BEFORE = 6


class PowerCut(Rig):
    """The crash-state model."""

    name = "power-cut"
    tries = (
        "Every disk operation of a workload is recorded. From the record, directories are made as a power cut may"
        " leave them at each moment, and a program starts on each: unsynced data absent, whole, torn at 512 B or 4"
        " KiB, or zeros with the size advanced; unsynced directory entries in any subset, in ext4's order and in"
        " any other. The same is done while the next program starts: after such a power cut, or after a kill, with"
        " everything still in the kernel's cache. Every listed checkpoint is loaded, except those that equal one"
        " loaded before, bit for bit."
    )
    cases = "distinct directories"
    quick = 20_000
    goal = 1_000_000
    seconds = 300.0

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each workload."""
        return workload_names(seed, randoms=_RANDOM_A_SEED)

    def run(self, unit: str, scratch: Path) -> Result:
        """Record a workload and try what a power cut may leave of it; then the same with what starts next."""
        name, share = split_unit(unit)
        workload = make_workload(name)
        again = workload.next_start()
        chance = random.Random(unit)  # noqa: S311 - seeded on purpose
        home = scratch / "home"
        asyncio.run(workload.fill(home))
        cuts = Cuts(workload, scratch, chance, FEW_PER_MOMENT if share == FEW else PER_MOMENT)
        model = CrashModel(home)
        first = play(home, workload)
        cuts.try_run(copy.deepcopy(model), first, workload.history)
        if share == FEW:
            return cuts.result
        # Where a start has failed, and been counted as a loss, no program goes on.
        states = sorted((state for state, looked in cuts.looked.items() if looked.problem is None), key=repr)
        for number, state in enumerate(chance.sample(states, min(_CUTS_BEFORE, len(states)))):
            home = scratch / f"cut-{number}"
            cuts.shelf.make(state, home)
            there = functools.partial(again.history_of, cuts.looked[state].found)
            cuts.try_run(CrashModel(home), play(home, again), there)
        moments = range(1, len(first.record) + 1)
        for number, moment in enumerate(chance.sample(moments, min(_KILLS_BEFORE, len(moments)))):
            home = scratch / f"kill-{number}"
            killed = copy.deepcopy(model)
            killed.store = cuts.store
            for change in first.record[:moment]:
                killed.apply(change)
            cuts.shelf.make(killed.seen(), home)
            killed.home = home
            there = functools.partial(workload.history, first.events_until(moment))
            cuts.try_run(killed, play(home, again), there)
        return cuts.result


@dataclass(slots=True)
class Run:
    """What a program did."""

    record: list[Change]
    events: list[tuple[int, Event]]
    """What it knew, and how long the record was then."""

    def events_until(self, moment: int) -> list[Event]:
        """Return what it knew at a moment."""
        return [event for at, event in self.events if at <= moment]


def play(home: Path, workload: Workload) -> Run:
    """Play a workload, and record it."""
    events: list[tuple[int, Event]] = []
    disk = ShimDisk(keeps_data=True, **workload.disk_options())
    asyncio.run(workload.play(home, disk, lambda event: events.append((len(disk.record), event))))
    return Run(disk.record, events)


class Cuts:
    """What is tried of one unit."""

    def __init__(self, workload: Workload, scratch: Path, chance: random.Random, per_moment: int) -> None:
        self.workload = workload
        self.scratch = scratch
        self.chance = chance
        self.per_moment = per_moment
        self.store: dict[bytes, bytes] = {}
        self.names: set[tuple[str, ...]] = set()
        self.known: Known = {}
        self.looked: dict[State, Looked] = {}
        """What a program found in each state that was tried."""
        self.result = Result()
        self.shelf = Shelf(scratch / "shelf", self.store, links=not workload.is_changed_in_place)

    def try_run(self, model: CrashModel, run: Run, before: Callable[[], Expectation]) -> None:
        """Try what power cuts leave at each moment of a run.

        Args:
            model: The disk before it; changed.
            run: What happened.
            before: Makes what was to be expected before it.
        """
        model.store = self.store
        record, result = run.record, self.result
        new = 0
        for moment in range(len(record) + 1):
            if result.has_enough:
                break
            if moment:
                model.apply(record[moment - 1])
            history = before()
            for event in run.events_until(moment):
                history.take(event)
            lost = set()
            for state in model.states(self.per_moment, self.chance):
                if result.has_enough:
                    break
                if state not in self.looked:
                    if new >= _STATES_KEPT * (moment + 1) / (len(record) + 1):
                        continue  # the moments share what a run may try
                    self.looked[state] = self._look(state)
                    new += 1
                    result.tried += 1
                loss = self.looked[state].problem or history.judge(self.looked[state].found)
                if loss is not None and loss not in lost:
                    lost.add(loss)
                    last = record[moment - 1] if moment else "nothing"
                    result.losses.append(f"{loss}; power cut after {last}; left: {describe(state)}")

    def _look(self, state: State) -> Looked:
        root = self.scratch / "state"
        self.shelf.make(state, root)
        # A save of a checkpoint sees names and nothing else of what is there: one for each set of names. What is
        # changed in place is saved into more often.
        names = tuple(path for path, _ in state)
        saves = names not in self.names or (self.workload.is_changed_in_place and self.chance.random() < _SAVES_SHARE)
        self.names.add(names)
        try:
            return self.workload.look(root / self.workload.below, self.known, saves=saves)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a loss
            return Looked({}, f"the start after the power cut failed: {error!r}")
        finally:
            shutil.rmtree(root)


def describe(state: State) -> str:
    """Name what a state holds."""
    return " ".join(f"{path}{'/' if digest is None else ''}" for path, digest in state)
