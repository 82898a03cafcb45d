"""Rig: the power is cut at any moment of a workload, on a model of a disk that keeps only what was synced."""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import TYPE_CHECKING

from .checks import NEXT_STEP, judge, survey
from .crash_model import CrashModel, Shelf, State
from .disks import Change, ShimDisk
from .history import Event, History
from .rig import Result, Rig
from .workloads import Workload, fill, make_workload, play, workload_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PER_MOMENT = 400
_STATES_KEPT = 2000
_RANDOM_A_SEED = 20


class PowerCut(Rig):
    """The crash-state model."""

    name = "power-cut"
    tries = (
        "Every disk operation of a workload is recorded; from the record, what a power cut may leave at each moment is"
        " made as a directory, and a program starts on it: unsynced data absent, whole, torn at 512 B or 4 KiB, or"
        " zeros with the size advanced; unsynced directory entries in any subset, in ext4's order and in any other."
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
        asyncio.run(fill(workload, home))
        result = Result()
        cuts = Cuts(workload, scratch, chance)
        found = cuts.try_all(home, workload, workload.before(), result, seen=set())
        # The power fails again while the first start after a power cut recovers.
        again = Workload(
            form=workload.form, seed=workload.seed, sessions=((("save", (NEXT_STEP - 1,)),),), below=workload.below
        )
        seen = set(found)
        for number, state in enumerate(chance.sample(sorted(found, key=repr), min(2, len(found)))):
            home = scratch / f"home-{number}"
            cuts.shelf.make(state, home)
            events = [Event(kind, step, version) for step, version in found[state].items() for kind in ("begin", "ack")]
            seen.update(cuts.try_all(home, again, [*events, Event("keep", 0)], result, seen=seen))
        return result


class Cuts:
    """What is tried of one unit."""

    def __init__(self, workload: Workload, scratch: Path, chance: random.Random) -> None:
        self.workload = workload
        self.scratch = scratch
        self.chance = chance
        self.store: dict[bytes, bytes] = {}
        self.names: set[tuple[str, ...]] = set()
        self.shelf = Shelf(scratch / "shelf", self.store)

    def try_all(
        self, home: Path, workload: Workload, before: list[Event], result: Result, *, seen: set[State]
    ) -> dict[State, dict[int, int]]:
        """Play a workload, and try what power cuts leave of it; give what was found in each new state."""
        model = CrashModel(home)
        events: list[tuple[int, Event]] = [(0, event) for event in before]
        disk = ShimDisk(exchanges=workload.exchanges, keeps_data=True)
        asyncio.run(play(workload, home, disk, lambda event: events.append((len(disk.record), event))))
        return asyncio.run(self.try_record(model, disk.record, events, result, seen))

    async def try_record(
        self,
        model: CrashModel,
        record: list[Change],
        events: list[tuple[int, Event]],
        result: Result,
        seen: set[State],
    ) -> dict[State, dict[int, int]]:
        """Try what power cuts leave at each moment of a record, given how long it was at each event."""
        model.store = self.store
        found: dict[State, tuple[dict[int, int], str | None]] = {}
        for moment in range(len(record) + 1):
            if result.has_enough:
                break
            if moment:
                model.apply(record[moment - 1])
            history = History.of(event for at, event in events if at <= moment)
            lost = set()
            for state in model.states(PER_MOMENT, self.chance):
                if result.has_enough:
                    break
                if state in seen:
                    continue
                if state not in found:
                    if len(found) >= _STATES_KEPT * (moment + 1) / (len(record) + 1):
                        continue  # the moments share what a unit may try
                    found[state] = await self._look(state)
                    result.tried += 1
                loss = judge(*found[state], history)
                if loss is not None and loss not in lost:
                    lost.add(loss)
                    last = record[moment - 1] if moment else "nothing"
                    result.losses.append(f"{loss}; power cut after {last}; left: {describe(state)}")
        return {state: versions for state, (versions, _) in found.items()}

    async def _look(self, state: State) -> tuple[dict[int, int], str | None]:
        root = self.scratch / "state"
        self.shelf.make(state, root)
        # A save sees names and nothing else of what is there: one for each set of names.
        names = tuple(path for path, _ in state)
        saves = names not in self.names
        self.names.add(names)
        try:
            return await survey(root / self.workload.below, self.workload.seed, self.workload.form, saves=saves)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a loss
            return {}, f"the start after the power cut failed: {error!r}"
        finally:
            shutil.rmtree(root)


def describe(state: State) -> str:
    """Name what a state holds."""
    return " ".join(f"{path}{'/' if digest is None else ''}" for path, digest in state)
