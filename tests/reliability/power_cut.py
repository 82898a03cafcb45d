"""Rig: the power is cut at any moment of a workload, on a model of a disk that keeps only what was synced."""

from __future__ import annotations

import asyncio
import functools
import random
import shutil
from typing import TYPE_CHECKING

from .crash_model import CrashModel, Shelf, State
from .disks import Change, ShimDisk
from .rig import Result, Rig
from .workload import Looked
from .workloads import make_workload, workload_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .history import Event
    from .workload import Expectation, Known, Workload

PER_MOMENT = 400
_STATES_KEPT = 2000
_SAVES_SHARE = 0.25
_RANDOM_A_SEED = 20


class PowerCut(Rig):
    """The crash-state model."""

    name = "power-cut"
    tries = (
        "Every disk operation of a workload is recorded; from the record, what a power cut may leave at each moment is"
        " made as a directory, and a program starts on it: unsynced data absent, whole, torn at 512 B or 4 KiB, or"
        " zeros with the size advanced; unsynced directory entries in any subset, in ext4's order and in any other."
        " Every checkpoint listed is loaded, but for those that are the same to the bit as one loaded before."
    )
    cases = "distinct directories"
    quick = 20_000
    goal = 1_000_000
    seconds = 300.0

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each workload."""
        return workload_names(seed, randoms=_RANDOM_A_SEED)

    def run(self, unit: str, scratch: Path) -> Result:
        """Record a workload and try what a power cut may leave of it; then the same with the recovery from some."""
        workload = make_workload(unit)
        chance = random.Random(unit)  # noqa: S311 - seeded on purpose
        home = scratch / "home"
        asyncio.run(workload.fill(home))
        result = Result()
        cuts = Cuts(workload, scratch, chance)
        found = cuts.try_all(home, workload, workload.history, result, seen=set())
        # The power fails again while the first start after a power cut recovers.
        again = workload.next_start()
        seen = set(found)
        for number, state in enumerate(chance.sample(sorted(found, key=repr), min(2, len(found)))):
            home = scratch / f"home-{number}"
            cuts.shelf.make(state, home)
            there = functools.partial(again.history_of, found[state])
            seen.update(cuts.try_all(home, again, there, result, seen=seen))
        return result


class Cuts:
    """What is tried of one unit."""

    def __init__(self, workload: Workload, scratch: Path, chance: random.Random) -> None:
        self.workload = workload
        self.scratch = scratch
        self.chance = chance
        self.store: dict[bytes, bytes] = {}
        self.names: set[tuple[str, ...]] = set()
        self.known: Known = {}
        self.shelf = Shelf(scratch / "shelf", self.store, links=not workload.is_changed_in_place)

    def try_all(
        self,
        home: Path,
        workload: Workload,
        before: Callable[[], Expectation],
        result: Result,
        *,
        seen: set[State],
    ) -> dict[State, dict[int, int]]:
        """Play a workload, and try what power cuts leave of it; give what was found in each new state."""
        model = CrashModel(home)
        events: list[tuple[int, Event]] = []
        disk = ShimDisk(exchanges=workload.exchanges, keeps_data=True)
        asyncio.run(workload.play(home, disk, lambda event: events.append((len(disk.record), event))))
        return self.try_record(model, disk.record, before, events, result, seen)

    def try_record(  # noqa: PLR0913, PLR0917 - a workload's record has these parts
        self,
        model: CrashModel,
        record: list[Change],
        before: Callable[[], Expectation],
        events: list[tuple[int, Event]],
        result: Result,
        seen: set[State],
    ) -> dict[State, dict[int, int]]:
        """Try what power cuts leave at each moment of a record, given how long it was at each event."""
        model.store = self.store
        found: dict[State, Looked] = {}
        for moment in range(len(record) + 1):
            if result.has_enough:
                break
            if moment:
                model.apply(record[moment - 1])
            history = before()
            for at, event in events:
                if at <= moment:
                    history.take(event)
            lost = set()
            for state in model.states(PER_MOMENT, self.chance):
                if result.has_enough:
                    break
                if state in seen:
                    continue
                if state not in found:
                    if len(found) >= _STATES_KEPT * (moment + 1) / (len(record) + 1):
                        continue  # the moments share what a unit may try
                    found[state] = self._look(state)
                    result.tried += 1
                loss = found[state].problem or history.judge(found[state].found)
                if loss is not None and loss not in lost:
                    lost.add(loss)
                    last = record[moment - 1] if moment else "nothing"
                    result.losses.append(f"{loss}; power cut after {last}; left: {describe(state)}")
        return {state: looked.found for state, looked in found.items()}

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
