"""Rigs: programs whose tasks take part in a cut, in random schedules, and killed."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING

from .cut_program import train
from .cut_schedules import play
from .processes import run_forked
from .rig import Result, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PER_UNIT = 500


class Cuts(Rig):
    """Cuts."""

    name = "cut"
    tries = (
        "Producers, consumers and savers share queues of a cut, on a loop with a virtual clock, in random schedules"
        " with cancellations of tasks and of scopes of anyio, limits of time, deaths and new participants. At each cut,"
        " every item must be in exactly one place, and while it is held nothing may move, and no line of a"
        " participant's run; all must run between two cuts; no wake-up may be lost; in the end each item was consumed"
        " once."
    )
    cases = "schedules"
    quick = 10_000
    goal = 100_000

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each seed; that of the seed 0 is for the mistakes that must be seen."""
        yield f"schedules/{seed}"

    def run(self, unit: str, scratch: Path) -> Result:
        """Play schedules."""
        del scratch
        result = Result()
        first = int(unit.partition("/")[2]) * _PER_UNIT
        for seed in range(first, first + _PER_UNIT):
            problems, counts = play(seed)
            result.tried += 1
            result.losses += problems[:1]
            for kind, number in counts.items():
                result.count(kind, number)
            if result.has_enough:
                break
        return result


class KilledTraining(Rig):
    """A training that is killed."""

    name = "cut-kill"
    tries = (
        "A training with a cursor over a data set, leased work, queues, a buffer and a learner saves at cuts, and is"
        " killed (SIGKILL) after a random number of steps of its tasks and changes of its disk, again and again. Each"
        " run resumes from the latest checkpoint: every sample must be in exactly one place of it, and in the end each"
        " was trained on exactly once, in the order of the ordinals."
    )
    cases = "kill points"
    quick = 1000
    goal = 10_000

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each seed."""
        yield f"kills/{seed}/40"

    def run(self, unit: str, scratch: Path) -> Result:
        """Kill a training, and let it go on."""
        _, seed, kills = unit.split("/")
        result = Result()
        chance = random.Random(int(seed))  # noqa: S311 - seeded on purpose
        target, number = 100, 0
        while result.tried < int(kills):
            number += 1
            kill_after = chance.randint(1, 600)
            ended = run_forked(functools.partial(train, scratch / "root", target, number, kill_after))
            result.tried += ended.is_killed
            if ended.error:
                result.losses.append(f"run {number}: {ended.error}")
                return result
            if not ended.is_killed:
                target += 100  # it has come to its end, and goes on with more samples
                result.count("ended before they were killed")
        ended = run_forked(functools.partial(train, scratch / "root", target, number, 0))
        if ended.value != list(range(target)):
            result.losses.append(f"trained on {ended.value} in the end, of {target}: {ended.error}")
        result.count("samples", target)
        return result
